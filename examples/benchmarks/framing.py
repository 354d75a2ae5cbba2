"""The score of each `--fit` on photos of mixed sizes, made from the contest's by cutting and scaling at random.

python examples/benchmarks/framing.py CONTEST OUT [--weights FILE] [--persons 150] [--epochs 4] [--seed 0]

From each photo of the first persons of each gender and age band, a rectangle of 70 to 100 % of its width and of its
height is cut out at random and made 420 to 1,600 pixels high, in an aspect that is up to a fifth wider or narrower:
photos as from several cameras, in which the face is not always in the middle. Every photo is labelled in a CSV. The
same network is trained on the same folds with each fit; contest sees the middle 400 x 200 pixels, as in the contest.

Prints macro-F1 of the joint class with its 95 % interval over persons, accuracy, the accuracy of each head, and the
comparison with contest, paired by person.
"""

import argparse
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

import fastmask as fm
from fastmask.data.photo import read_photo

FITS = ("contest", "pad", "crop", "stretch")
SIZE = (160, 128)


def choose(table: fm.Table, persons: int) -> fm.Table:
    """The photos of about as many persons, the first of each gender and age band."""
    frame = table.frame.groupby("person", sort=False).first().groupby(["gender", "age"])
    share = persons / len(set(table.persons))
    chosen = {name for _, group in frame for name in group.index[: max(3, round(share * len(group)))]}
    return table.select(np.flatnonzero(table.frame["person"].isin(chosen)))


def remake(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random part of a photo in a random size and aspect."""
    height, width = (int(side * rng.uniform(0.7, 1)) for side in photo.shape[:2])
    top, left = rng.integers(0, photo.shape[0] - height + 1), rng.integers(0, photo.shape[1] - width + 1)
    high = int(np.exp(rng.uniform(np.log(420), np.log(1600))))
    wide = max(210, int(high * width / height * np.exp(rng.uniform(-0.2, 0.2))))
    part = np.ascontiguousarray(photo[top : top + height, left : left + width])
    return np.asarray(cv2.resize(part, (wide, high), interpolation=cv2.INTER_CUBIC))


def write_photos(table: fm.Table, out: Path, seed: int) -> Path:
    """Write the photos and their CSV below `out`."""
    rng = np.random.default_rng(seed)
    for row, path in enumerate(table.frame["path"]):
        place = (out / "photos" / path).with_suffix(".jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), remake(read_photo(table.photo(row)), rng)[..., ::-1])
    paths = table.frame["path"].map(lambda path: str(Path("photos") / Path(path).with_suffix(".jpg")))
    table.frame.assign(path=paths)[["path", "person", "mask", "gender", "age"]].to_csv(out / "my.csv", index=False)
    return out / "my.csv"


def train(table: fm.Table, fit: str, options: argparse.Namespace) -> fm.Run:
    """Cross-validate a fit on the table."""
    return fm.cross_validate(
        table,
        out=options.out / "runs" / fit,
        arch=options.arch,
        weights=options.weights and str(options.weights),
        pretrained=False,
        fit=fit,
        resize=SIZE,
        stats=[0.5] * 6,
        folds=3,
        epochs=options.epochs,
        lr=1e-3,
        sched="onecycle",
        patience=0,
        seed=options.seed,
    )


def describe(fit: str, scores: fm.Scores) -> dict[str, str]:
    """A fit as a row of the table."""
    low, high = scores.joint.macro_f1_interval
    heads = {name: f"{head.accuracy:.3f}" for name, head in scores.heads.items()}
    joint = {
        "macro_f1": f"{scores.joint.macro_f1:.3f} ({low:.3f} … {high:.3f})",
        "accuracy": f"{scores.joint.accuracy:.3f}",
    }
    return {"fit": fit, **joint, **heads}


def main() -> None:
    parser = argparse.ArgumentParser(description="The score of each --fit on photos of mixed sizes.")
    parser.add_argument("contest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--persons", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = choose(fm.read_contest(options.contest), options.persons)
    table = fm.read_csv(write_photos(chosen, options.out, options.seed))
    runs = [train(table, fit, options) for fit in FITS]
    print(pd.DataFrame([describe(run.path.name, run.score()) for run in runs]).to_string(index=False))
    print(fm.compare(runs))


if __name__ == "__main__":
    main()
