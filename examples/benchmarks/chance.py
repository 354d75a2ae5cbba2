"""What labels drawn by chance score, by each way to train: above chance, a way leaks from the photos that are scored.

python examples/benchmarks/chance.py WORK [PERSONS [EPOCHS]]

Each person has four photos of one pattern, which a network remembers after a few epochs, and a label by the toss of a
coin. So whatever reaches a fold from the photos that it validates shows: with persons split by photos 0.98, not 0.5.
"""

import io
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

import fastmask as fm
from fastmask.inference.teacher import make_pseudo
from fastmask.system.files import write_csv

SIDE, PHOTOS = 32, 4
WHOLE = {
    "transform": {
        "__class_fullname__": "Compose",
        "transforms": [{"__class_fullname__": "CenterCrop", "height": SIDE, "width": SIDE, "p": 1.0}],
    }
}
SETTINGS: dict[str, Any] = {
    "arch": "test_resnet",
    "pretrained": False,
    "lr": 3e-3,
    "patience": 0,
    "cache": "ram",
    "train_pipeline": WHOLE,
    "valid_pipeline": WHOLE,
    "stats": (0.5, 0.5, 0.5, 0.25, 0.25, 0.25),
}


def draw(folder: Path, persons: int) -> fm.Table:
    """The photos of the persons, and their labels by chance."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for person in range(persons):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pattern, label = np.asarray(coarse.resize((SIDE, SIDE)), np.float64), "ab"[rng.integers(2)]
        for photo in range(PHOTOS):
            noisy = pattern * rng.uniform(0.85, 1.15) + rng.normal(0, 12, (SIDE, SIDE, 3))
            name = f"{person:04}_{photo}.png"
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append((name, f"p{person:04}", label))
    write_csv(folder / "data.csv", pd.DataFrame(rows, columns=["path", "person", "label"]))
    return fm.read_csv(folder / "data.csv", heads={"label": ["a", "b"]})


def copy_photos(table: fm.Table, folder: Path) -> tuple[str, str]:
    """Two CSV of the same photos for training: encoded anew under the same persons, and copies under other names."""
    folder.mkdir()
    anew, copies = table.frame[["path", "person", "label"]].copy(), table.frame[["path", "person", "label"]].copy()
    for row, path in enumerate(table.frame["path"]):
        anew.loc[row, "path"], copies.loc[row, ["path", "person"]] = f"{row}.jpg", (f"{row}.png", f"q{row}")
        Image.open(table.photo(row)).save(folder / f"{row}.jpg", quality=90)
        shutil.copy(table.root / path, folder / f"{row}.png")
    for frame, name in ((anew, "anew.csv"), (copies, "copies.csv")):
        write_csv(folder / name, frame)
    return str(folder / "anew.csv"), str(folder / "copies.csv")


def main(work: str, persons: str = "150", epochs: str = "8") -> None:
    place = Path(work)
    table = draw(place / "photos", int(persons))
    anew, copies = copy_photos(table, place / "extra")
    warnings.simplefilter("ignore", fm.FastmaskWarning)
    print(f"{'training':34}macro-F1 by labels of chance")

    def train(name: str, **settings: Any) -> fm.Run:
        given = {**SETTINGS, "epochs": int(epochs), **({} if "folds_file" in settings else {"folds": 3}), **settings}
        run = fm.cross_validate(table, out=place / "runs" / name, log=io.StringIO(), **given)
        score = run.score().joint
        low = (score.macro_f1_interval or (0.0, 1.0))[0]
        print(f"{name:34}{score.texts[0]}{'  above chance' if low > 0.5 else ''}", flush=True)
        return run

    train("persons split", group="none")
    plain = train("persons whole")
    train("averaged weights", ema=0.9)
    train("three epochs, early stopping", top_k=3, patience=3)
    train("sampler, class weights", sampler="label", class_weight="auto")
    train("mix-up, CutMix, half-face CutMix", mixup=0.4, cutmix=1.0, half_cutmix=0.5, half_partner="any")
    train("extra photos of the same persons", extra=anew)
    train("extra copies under other names", extra=copies)
    same = {"folds_file": str(plain.path / "folds.csv")}
    make_pseudo(plain, place / "photos", place / "pseudo")
    train("pseudo-labels of its own photos", pseudo=str(place / "pseudo"), **same)
    train("teacher", teacher=str(plain.path), **same)
    tuned = train("weights of a run, then refitted", weights=str(plain.path), refit=2, **same)
    train("teacher of these weights", teacher=str(tuned.path), **same)
    copied = shutil.copy(plain.checkpoints(0)[0], place / "copied.safetensors")
    try:
        train("weights of a copied checkpoint", weights=str(copied))
    except fm.UsageError:
        print(f"{'weights of a copied checkpoint':34}refused")


if __name__ == "__main__":
    main(*sys.argv[1:])
