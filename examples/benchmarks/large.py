"""How time and memory grow with the number of photos, all but training: tables of drawn rows and very small JPEGs.

python examples/benchmarks/large.py [PHOTOS ...] [--json FILE]      10,000, 100,000 and 1,000,000 photos by default

Seven photos of 24 x 16 pixels of each person, no two with the same bytes, are written to a temporary folder (4 GB for
1,000,000). Each part runs in a process of its own, which has read the table before:

table      the CSV, every row checked, every photo looked for
folds      five folds of persons
digests    SHA-256 of every photo; `again` is with those that are remembered
map        every photo decoded into the cache; `again` is opening it
run        a run of drawn out-of-fold predictions written
score      the run's predictions read, and scored with intervals for the joint class and each head
report     the report of that run, without photos

For each part the seconds, the microseconds a photo, and the largest memory of its process. `growth` is the seconds over
those of the row before, for ten times as many photos 10 if they grow linearly. For Linux alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pandas as pd
import typer

SIZES = (10_000, 100_000, 1_000_000)
PHOTOS_A_PERSON, HEIGHT, WIDTH, FOLDS = 7, 24, 16, 5
# files of a folder
FOLDER = 1000


def write_data(folder: Path, photos: int) -> None:
    """A CSV of drawn rows and their JPEGs; a number follows each JPEG's end, so that no two have the same bytes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, HEIGHT, WIDTH, 3), np.uint8)
    jpegs = [cv2.imencode(".jpg", one)[1].tobytes() for one in noise]
    paths = [f"photos/{i // FOLDER:04d}/{i:07d}.jpg" for i in range(photos)]
    for start in range(0, photos, FOLDER):
        (folder / paths[start]).parent.mkdir(parents=True)
        for i, path in enumerate(paths[start : start + FOLDER], start):
            (folder / path).write_bytes(jpegs[i % len(jpegs)] + str(i).encode())
    person = np.arange(photos) // PHOTOS_A_PERSON
    persons = person[-1] + 1
    columns = {
        "path": paths,
        "person": person,
        "mask": np.resize(["wear"] * 5 + ["incorrect", "none"], photos),
        "gender": rng.choice(["male", "female"], persons)[person],
        "age": rng.choice(["young", "middle", "old"], persons, p=(0.5, 0.4, 0.1))[person],
    }
    pd.DataFrame(columns).to_csv(folder / "photos.csv", index=False)


def read_table(folder: Path):
    import fastmask as fm

    return fm.read_csv(folder / "photos.csv", heads=["mask", "gender", "age"])


def write_run(folder: Path) -> None:
    """A run without networks: folds, and out-of-fold predictions of which about 0.8 are right."""
    import fastmask as fm
    from fastmask.run.directory import RunDirectory
    from fastmask.run.files import OOF
    from fastmask.run.oof import oof_table
    from fastmask.system.files import write_csv

    table = read_table(folder)
    config = fm.make_config({"data": str(folder / "photos.csv"), "arch": "test_resnet", "folds": FOLDS})
    frame = table.frame.assign(fold=fm.assign_folds(table, FOLDS))
    columns = ["path", "person", *table.heads.names, "fold"]
    run = RunDirectory.create(
        folder / "run", config, table.heads, pipelines=None, folds=frame[columns], environment={}, overwrite=True
    )
    rng, parts = np.random.default_rng(0), []
    for size, y in zip(table.heads.sizes, table.y.T, strict=True):
        logits = rng.normal(size=(len(table), size)) + 2.2 * np.eye(size)[y]
        parts.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    probabilities = np.concatenate(parts, axis=1).astype(np.float32)
    oof = oof_table(table.heads, frame, probabilities, table.y, table.heads.argmax(probabilities))
    write_csv(run.path / OOF, oof.reset_index(drop=True))


def table(folder: Path) -> list[Callable[[], object]]:
    return [lambda: read_table(folder)]


def folds(folder: Path) -> list[Callable[[], object]]:
    import fastmask as fm

    read = read_table(folder)
    return [lambda: fm.assign_folds(read, FOLDS)]


def digests(folder: Path) -> list[Callable[[], object]]:
    from fastmask.data.digests import digest_photos

    read = read_table(folder)
    paths = [read.photo(row) for row in range(len(read))]
    return [lambda: digest_photos(paths)] * 2


def map_photos(folder: Path) -> list[Callable[[], object]]:
    from fastmask.data.augment import Prefix
    from fastmask.data.cache import photo_map
    from fastmask.data.digests import digest_photos

    read = read_table(folder)
    paths = [read.photo(row) for row in range(len(read))]
    known = digest_photos(paths)
    return [lambda: photo_map(paths, known, Prefix(), cache="disk")] * 2


def run(folder: Path) -> list[Callable[[], object]]:
    return [lambda: write_run(folder)]


def score(folder: Path) -> list[Callable[[], object]]:
    import fastmask as fm

    return [lambda: fm.Run.load(folder / "run").score()]


def report(folder: Path) -> list[Callable[[], object]]:
    import fastmask as fm

    return [lambda: fm.write_report(folder / "run", photos=False)]


PARTS: dict[str, Callable[[Path], list[Callable[[], object]]]] = {
    "table": table,
    "folds": folds,
    "digests": digests,
    "map": map_photos,
    "run": run,
    "score": score,
    "report": report,
}


def run_part(name: str, folder: Path) -> list[float]:
    """The seconds of each call of a part, and the MB of this process at its peak."""
    taken = []
    for call in PARTS[name](folder):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    # ru_maxrss would be at least that of the process that started this one
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return [*taken, int(peak[1]) / 1024 if peak else float("nan")]


def measure(photos: int) -> list[dict[str, object]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="fastmask-large-") as place:
        write_data(Path(place), photos)
        # digests of files that were written lately are not remembered
        time.sleep(5)
        for name in PARTS:
            env = {**os.environ, "XDG_CACHE_HOME": f"{place}/cache"}
            command = [sys.executable, __file__, "--part", name, place]
            done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
            *taken, most = json.loads(done.stdout.splitlines()[-1])
            for i, seconds in enumerate(taken):
                what = f"{name} again" if i else name
                rows.append({"part": what, "photos": photos, "seconds": seconds, "MB": most})
    return rows


def main(
    photos: Annotated[list[int] | None, typer.Argument(help="Numbers of photos, ascending.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="A file to write the table to.")] = None,
    part: Annotated[tuple[str, Path] | None, typer.Option(hidden=True)] = None,
) -> None:
    if part is not None:
        warnings.simplefilter("ignore")
        print(json.dumps(run_part(*part)))
        return
    made: list[dict[str, object]] = []
    for count in photos or SIZES:
        made += measure(count)
        print(f"{count} photos measured", flush=True)
    frame = pd.DataFrame(made).sort_values(["part", "photos"], kind="stable")
    frame["us a photo"] = frame["seconds"] / frame["photos"] * 1e6
    frame["growth"] = frame["seconds"] / frame.groupby("part")["seconds"].shift()
    print(frame.round({"seconds": 2, "MB": 0, "us a photo": 1, "growth": 1}).to_string(index=False, na_rep=""))
    if json_ is not None:
        json_.write_text(frame.to_json(orient="records", indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
