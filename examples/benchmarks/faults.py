"""How many of twelve planted faults `fastmask check` finds, and what else it says that it did not say before.

python examples/benchmarks/faults.py DATA WORK [OPTIONS OF CHECK ...]

DATA is a contest folder of nine persons or more; its training part is copied to WORK, which must not exist.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from fastmask.data.contest import contest_folder
from fastmask.system.files import read_strings, write_csv

SPOILT = ("cut short", "empty", "text", "tiny", "landscape", "blank")


def persons_of(folder: Path) -> list[Path]:
    """The persons' folders, those with JPEGs only first, because only a JPEG cut short still shows a picture."""
    folders = [folder / "images" / path for path in read_strings(folder / "train.csv", ("path",))["path"]]
    return sorted(folders, key=lambda person: any(photo.suffix == ".png" for photo in person.iterdir()))


def photo(person: Path, stem: str) -> Path:
    return next(file for file in sorted(person.glob(f"{stem}.*")) if not file.name.startswith("."))


def spoil(file: Path, how: str) -> None:
    picture = Image.open(file).convert("RGB")
    if how == "cut short":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how in ("empty", "text"):
        file.write_text("" if how == "empty" else "This is no photo.\n", encoding="utf-8")
    elif how == "tiny":
        picture.resize((15, 20)).save(file)
    elif how == "landscape":
        picture.rotate(90, expand=True).save(file)
    else:
        Image.new("RGB", picture.size, (128, 128, 128)).save(file)


def plant(folder: Path) -> dict[str, tuple[str, ...]]:
    """Plant the faults in a contest's training folder: name -> what a row that reports it must hold."""
    spoilt, one, copy, two, mirror, gap, gender, age, name = persons_of(folder)[:9]
    faults = {}
    for how, stem in zip(SPOILT, ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask"), strict=True):
        file = photo(spoilt, stem)
        spoil(file, how)
        kind = {"landscape": "odd shape", "blank": "blank", "tiny": "wide"}.get(how, "unreadable")
        faults[how] = (f"{spoilt.name}/{file.name}", kind)
    source, target = photo(one, "normal"), photo(copy, "normal")
    target.unlink()
    target = shutil.copyfile(source, target.with_suffix(source.suffix))
    faults["copy"] = (f"{one.name}/{source.name}", f"{copy.name}/{target.name}", "duplicate")
    source, target = photo(two, "normal"), photo(mirror, "normal")
    target.unlink()
    target = target.with_suffix(".jpg")
    ImageOps.mirror(Image.open(source).convert("RGB")).save(target, quality=50)
    faults["mirrored copy"] = (f"{two.name}/{source.name}", f"{mirror.name}/{target.name}", "near duplicate")
    photo(gap, "mask3").unlink()
    faults["missing"] = (gap.name, "mask3")
    table = read_strings(folder / "train.csv", ("gender", "age", "path"))
    table.loc[table["path"] == gender.name, "gender"] = "robot"
    table.loc[table["path"] == age.name, "age"] = "old"
    real = table.loc[table["path"] == name.name, "age"].astype(int)
    table.loc[real.index, "age"] = (real + 1).astype(str)
    write_csv(folder / "train.csv", table)
    return {**faults, "gender": ("'robot'",), "age": ("'old'",), "folder's name": (name.name, f"{real.iloc[0]}")}


def check(folder: Path, out: Path, options: list[str]) -> pd.DataFrame:
    command = [sys.executable, "-m", "fastmask", "check", str(folder), "--out", str(out), *options]
    # it exits 1 where it finds errors, which is what it is run for
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return read_strings(out, ("level", "kind", "photo", "person", "other", "detail"))


def rows_with(found: pd.DataFrame, words: tuple[str, ...]) -> np.ndarray:
    """Which findings hold all the words."""
    return np.array([all(word in " ".join(row) for word in words) for row in found.to_numpy()], dtype=bool)


def report(faults: dict[str, tuple[str, ...]], before: pd.DataFrame, after: pd.DataFrame) -> Iterator[str]:
    """Which faults were found, then the findings that neither a fault explains nor the clean folder has."""
    hits = {name: rows_with(after, words) for name, words in faults.items()}
    for name, rows in hits.items():
        yield f"{name:14} {'found' if rows.any() else 'MISSED'}"
    yield f"found {sum(rows.any() for rows in hits.values())} of {len(faults)}"
    known = set(before["detail"])
    explained = np.any([rows_with(after, words[:1]) for words in faults.values()], axis=0)
    others = [row for row in after[~explained].itertuples() if row.detail not in known]
    yield f"{len(others)} other findings that the clean folder does not have"
    yield from (f"  {row.level} {row.kind}: {row.photo or row.person} {row.detail}" for row in others)


def main(data: str, work: str, *options: str) -> None:
    clean, folder = contest_folder(data), Path(work) / "train"
    shutil.copytree(clean, folder, copy_function=shutil.copyfile)
    faults = plant(folder)
    before = check(clean, Path(work) / "clean.csv", [*options])
    after = check(folder, Path(work) / "found.csv", [*options])
    print("\n".join(report(faults, before, after)))


if __name__ == "__main__":
    main(*sys.argv[1:])
