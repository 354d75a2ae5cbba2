"""What fastmask makes of inputs that were tampered with: one sentence and an exit code each, or a line that says not.

python examples/benchmarks/hostile.py WORK [PART OF A CASE'S NAME ...]

For Linux alone.

Draws a small data set, trains a tiny run and makes what others are made of (an ensemble, pseudo-labels) in WORK/good
where that is not there yet, spoils a copy of them in some eighteen hundred ways, always the same, and runs the command
line on each: in a process of its own, with a time limit and a limit of memory.
"""

import csv
import hashlib
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import struct
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

# what a command would import, so that each process that is forked from this one starts at once
from fastmask.commands.main import main as command_line
from fastmask.data.boxes import COLUMNS as FACE_COLUMNS
from fastmask.data.sample import write_sample
from fastmask.evaluation.ledger import COLUMNS
from fastmask.system.files import write_yaml

SECONDS, MEMORY = 60, 2 * 10**9  # a case may take so long, and so much
FIT = "fit --data data --config settings.yaml --no-report --out out/run"
TABLE = "fit --data table.csv --images data/train/images --config settings.yaml --no-report --out out/run"
PREDICT = "predict run photos --on-bad-photo error --out out/predicted.csv"
SUBMIT = "predict run photos --on-bad-photo error --submission info.csv --out out/submission.csv"
MERGE = "merge half0 half1 --out out/merged"
SCORE = "score run"
BLENDED, SCORE_BLENDED = "predict both photos --on-bad-photo error --out out/predicted.csv", "score both"
FACES = "predict faced photos --on-bad-photo error --boxes eval.csv --out out/predicted.csv"
SOUP = "predict souped photos --soup --out out/predicted.csv"
BOXES = f"{FIT} --boxes boxes.csv"
STUDENT = f"{FIT} --pseudo labels --folds-file run/folds.csv"
TAUGHT = "fit --resume --no-report --out taught --fold 1"
EXTRA = f"{FIT} --extra extra.csv"
CLASS_WEIGHT = f"{FIT} --class-weight weights.yaml"
TUNE = "tune --data data --config settings.yaml --space space.yaml --trials 1 --out out/tuned"
TUNE_ON = "tune --resume --out tuned"
SCREEN = "screen --data data --config settings.yaml --cache-dir cache --archs test_resnet"
THEIRS = "compare run theirs.csv"
PAINT = "paint --data data --landmarks landmarks.csv --per-face wear=1 --out out/painted"
EXPORT = "export run --photos 2"
FIND = "faces photos --out out/boxes.csv"
LEDGER = "ledger show --ledger ledger.csv"
COMPARE = "score answers.csv answers.csv"
FAILED, ASKED_WRONGLY = 1, 2
Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One way to spoil the good inputs, a command that meets it there, and how it should end."""

    name: str
    spoil: Spoil
    command: str
    code: int = FAILED


def nothing(folder: Path) -> None:
    """The inputs stay good; the command is what is wrong."""


def put(file: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


# texts ---------------------------------------------------------------------------------------------------------------

LAUGHS = "\n".join(["l0: &l0 [ha]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12))])
MERGED = "\n".join(
    ["l0: &l0 {ha: 1}", *(f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" for i in range(1, 12))]
)
RUNS = "!!python/object/apply:os.system ['touch MARKER']"

# neither settings, nor pipelines, nor anything else that fastmask writes
YAMLS = {
    "object": RUNS,
    "object in a setting": f"epochs: {RUNS}",
    "module": "epochs: !!python/module:os",
    "name": "epochs: !!python/name:os.system",
    "unknown tag": "epochs: !secret 3",
    "alias bomb": LAUGHS,
    "alias bomb in a setting": LAUGHS.replace("l11: &l11", "heads: &l11"),
    "merge bomb": MERGED,
    "endless alias": "epochs: &a [*a]",
    "alias of nothing": "epochs: *a",
    "nested lists": "epochs: " + "[" * 5000,
    "closed nested lists": "epochs: " + "[" * 200 + "]" * 200,
    "nested mappings": "epochs: " + "{a: " * 5000,
    "open list": "a: [",
    "two documents": "epochs: 1\n---\nepochs: 2\n",
    "tabs": "epochs:\n\t- 1",
    "noise": bytes(range(128, 256)) * 8,
    "a NUL": b"epochs: 1\0",
    "an escaped NUL": 'arch: "test\\0resnet"',
    "half a character": 'arch: "\\ud800"',
    "UTF-16": "epochs: 1".encode("utf-16") + b"\0",
    "a list": "[1, 2]",
    "a text": "just words",
    "a date that is none": "epochs: 2020-13-45",
    "digits": "epochs: " + "9" * 5000,
    "hexadecimal digits": "epochs: 0x" + "f" * 50_000,
    "sixties": "epochs: 1" + ":59" * 5000,
    "six megabytes": "a: " + "x" * 6_000_000,
    "many values": "a: [" + "1," * 200_000 + "1]",
    "unhashable key": "{[a]: 1}",
    "a number for a key": "1: 2",
}
SETTINGS = {
    "epochs": ["0", "-1", "1.5", "many", ".nan", ".inf", "[]", "{}", "1e99", "true x"],
    "folds": ["1", "two", "-3", "1000000000"],
    "crop": ["[0, 0]", "[400]", "[1, 2, 3]", "400"],
    "resize": ["[100000, 100000]", "[-1, 5]", "[.nan, 5]"],
    "lr": ["0", "-1", ".nan", ".inf", "fast"],
    "age_bounds": ["[60, 30]", "[30]", "[.nan, 60]"],
    "seed": ["-1", "4294967296", "1.5"],
    "bs": ["0", "65537", "-1"],
    "group": ["nobody"],
    "cache": ["somewhere"],
    "stats": ["[0, 0, 0, 0, 0, 0]", "[1]", "mean"],
    "alpha": ["{age: [0, 0, 0]}", "{age: x}", "[1]", "{hat: [1, 1]}", "{age: [1]}"],
    "head_weights": ["{age: 0, mask: 0, gender: 0}", "{age: -1}", "{hat: 1}"],
    "milestones": ["[0]", "[-1]", "0.5", "[x]"],
    "device": ["gpu:x", "'cuda:99'", '"a\\0b"'],
    "monitor": ["luck"],
    "hat": ["1"],
}
TRANSFORMS = {
    "Lambda": "{__class_fullname__: Lambda, __name__: f, p: 1.0}",
    "os.system": "{__class_fullname__: os.system, command: touch MARKER}",
    "a class of the package": "{__class_fullname__: fastmask.run.directory.Run, path: x}",
    "a number for a class": "{__class_fullname__: 5}",
    "no class": "{height: 5}",
    "no transform": "5",
    "a font": "{__class_fullname__: TextImage, font_path: /etc/passwd, p: 1.0}",
    "other photos": "{__class_fullname__: FDA, reference_images: [/etc/passwd], p: 1.0}",
    "a function to read by": "{__class_fullname__: FDA, reference_images: [], read_fn: os.system, p: 1.0}",
    "a giant": "{__class_fullname__: Resize, height: 100000, width: 100000, p: 1.0}",
    "a giant by padding": "{__class_fullname__: PadIfNeeded, min_height: 100000, min_width: 100000, p: 1.0}",
    "a giant by scale": "{__class_fullname__: RandomScale, scale_limit: [500, 500], p: 1.0}",
    "words for numbers": "{__class_fullname__: Resize, height: high, width: wide, p: 1.0}",
    "a negative size": "{__class_fullname__: Resize, height: -4, width: 4, p: 1.0}",
    "no number": "{__class_fullname__: Resize, height: .nan, width: 4, p: 1.0}",
    "an unknown argument": "{__class_fullname__: HorizontalFlip, hat: 1, p: 1.0}",
    "boxes": "{__class_fullname__: BBoxSafeRandomCrop, p: 1.0}",
}
JSONS = {
    "nothing": "",
    "open": "{",
    "a number": "3",
    "null": "null",
    "a text": '"x"',
    "a list of numbers": "[1, 2]",
    "a list of nothing": "[[]]",
    "nested": "[" * 100_000,
    "digits": "9" * 5000,
    "NaN": "[NaN]",
    "half a character": '["\\ud800"]',
    "noise": bytes(range(128, 256)) * 8,
    "a YAML tag": RUNS,
}
HEADS = {
    "no classes": '[{"name": "a"}]',
    "classes in a text": '[{"name": "a", "classes": "abc"}]',
    "a number for a class": '[{"name": "a", "classes": [1, 2]}]',
    "a class twice": '[{"name": "a", "classes": ["b", "b"]}]',
    "a line break": '[{"name": "a\\n", "classes": ["b", "c"]}]',
    "a NUL": '[{"name": "a\\u0000", "classes": ["b", "c"]}]',
    "a weight in words": '[{"name": "a", "classes": ["b", "c"], "weight": "x"}]',
    "an endless weight": '[{"name": "a", "classes": ["b", "c"], "weight": 1e999}]',
    "falling bounds": '[{"name": "a", "classes": ["b", "c", "d"], "bounds": [2, 1]}]',
    "one limit": '[{"name": "a", "classes": ["b", "c"], "bounds": [2], "limits": [1]}]',
    "an argument too many": '[{"name": "a", "classes": ["b", "c"], "hat": 1}]',
    "a name of the table": '[{"name": "path", "classes": ["b", "c"]}]',
    "too many joint classes": json.dumps([{"name": f"h{i}", "classes": list("abcdefghij")} for i in range(20)]),
    "other heads": '[{"name": "a", "classes": ["b", "c"]}]',
}

# what is wrong with a file of class weights, and with what an ensemble and a folder of pseudo-labels say of themselves
CLASS_WEIGHTS = {
    "nothing": "",
    "an unknown head": "hat: [1, 1]",
    "an unknown class": "age: {70+: 4}",
    "too few": "age: [1, 1]",
    "zeros": "age: [0, 0, 0]",
    "a zero for all": "age: {<30: 0, 30-59: 0, 60+: 0}",
    "negative": "age: [1, 1, -4]",
    "NaN": "age: [1, 1, .nan]",
    "endless": "age: {60+: .inf}",
    "beyond float32": "age: [1, 1, 1.0e+300]",
    "words": "age: [a, b, c]",
    "a number": "age: 4",
    "nested": "age: {60+: {60+: 4}}",
}
# what is no space of settings to search
SPACES = {
    "nothing": "",
    "a setting alone": "lr: 0.1",
    "a setting of nothing": "lr:",
    "an unknown setting": "lrr: [0.1, 0.2]",
    "what is scored": "seed: [0, 1]",
    "the machine's": "workers: [0, 1]",
    "a start that flatters": "weights: [run, half0]",
    "an unknown word": "lr: {low: 0.1, high: 0.2, base: 10}",
    "choices and a range": "lr: {low: 0.1, high: 0.2, choices: [0.1, 0.2]}",
    "no high": "lr: {low: 0.1}",
    "falling": "lr: {low: 0.2, high: 0.1}",
    "words": "lr: {low: little, high: much}",
    "NaN": "lr: {low: .nan, high: 1}",
    "endless": "lr: {low: 0.1, high: .inf}",
    "a logarithm of 0": "wd: {low: 0, high: 1, log: true}",
    "a logarithm in steps": "lr: {low: 0.1, high: 0.4, log: true, step: 0.1}",
    "log in words": "lr: {low: 0.1, high: 0.4, log: maybe}",
    "no whole number of steps": "lr: {low: 0.1, high: 0.2, step: 0.07}",
    "steps of 0": "lr: {low: 0.1, high: 0.2, step: 0}",
    "halves of an epoch": "epochs: {low: 0.5, high: 1.5}",
    "beyond what the setting takes": "drop_rate: {low: 0, high: 2}",
    "a range of words": "sched: {low: 1, high: 2}",
    "one choice": "sched: [onecycle]",
    "a choice twice": "sched: [onecycle, onecycle]",
    "an unknown choice": "sched: [onecycle, luck]",
    "a thousand choices": f"lr: [{', '.join(str(i) for i in range(1, 1001))}]",
    "a choice that is a date": "arch: [test_resnet, 2020-01-01]",
}
# what a search says of itself in tune.yaml
SEARCHES: dict[str, tuple[bytes, bytes]] = {
    "no trials": (b"trials: 1", b"trials: 0"),
    "trials in words": (b"trials: 1", b"trials: all"),
    "an unknown pruner": (b"pruner: median", b"pruner: axe"),
    "a space of the seed": (b"  lr:", b"  seed:"),
    "an unknown setting": (b"arch: test_resnet", b"arc: test_resnet"),
    "hours": (b"arch: test_resnet", b"hours: 1"),
}
Plain = dict[str, object]
ENSEMBLES: dict[str, Callable[[Plain], object]] = {
    "an unknown blend": lambda plain: plain.update(blend="luck"),
    "a number for a blend": lambda plain: plain.update(blend=5),
    "no blend": lambda plain: plain.pop("blend"),
    "weights in a list": lambda plain: plain.update(weights=[0.5, 0.5]),
    "weights in words": lambda plain: plain["weights"].update(mask=["a", "b"]),
    "weights true": lambda plain: plain["weights"].update(mask=[True, False]),
    "weights negative": lambda plain: plain["weights"].update(mask=[-1, 2]),
    "weights NaN": lambda plain: plain["weights"].update(mask=[float("nan"), 1]),
    "weights endless": lambda plain: plain["weights"].update(mask=[float("inf"), 1]),
    "weights huge": lambda plain: plain["weights"].update(mask=[1e308, 1e308]),
    "weights of 400 digits": lambda plain: plain["weights"].update(mask=[10**99, 1]),
    "weights of zero": lambda plain: plain["weights"].update(mask=[0, 0]),
    "weights too many": lambda plain: plain["weights"].update(mask=[0.5, 0.25, 0.25]),
    "weights of a head that is none": lambda plain: plain["weights"].update(hat=[0.5, 0.5]),
    "weights of a head missing": lambda plain: plain["weights"].pop("mask"),
    "no members": lambda plain: plain.update(members=[]),
    "members in words": lambda plain: plain.update(members=["run", "twin"]),
    "one member": lambda plain: plain["members"].pop(),
    "a member twice": lambda plain: plain["members"].append(plain["members"][0]),
    "two members of one name": lambda plain: plain["members"][1].update(name=plain["members"][0]["name"]),
    "one run under two names": lambda plain: plain["members"][1].update(
        {name: plain["members"][0][name] for name in ("path", "identity", "oof")}
    ),
    "a hundred thousand members": lambda plain: plain.update(members=plain["members"] * 50_000),
    "a member without a path": lambda plain: plain["members"][1].pop("path"),
    "a number for a path": lambda plain: plain["members"][1].update(path=5),
    "a member that is not there": lambda plain: plain["members"][1].update(path="../nobody"),
    "a member of another name": lambda plain: plain["members"][1].update(path="../half1"),
    "a member that is a file": lambda plain: plain["members"][1].update(path="../run/oof.csv"),
    "a member that is no run": lambda plain: plain["members"][1].update(path="../photos"),
    "a member that is itself": lambda plain: plain["members"][1].update(path="."),
    "a member at a NUL": lambda plain: plain["members"][1].update(path="../a\0b"),
    "a member at a long path": lambda plain: plain["members"][1].update(path="x" * 6000),
    "another identity": lambda plain: plain["members"][1].update(identity="0" * 64),
    "other predictions": lambda plain: plain["members"][1].update(oof="0" * 64),
}
CAVEATS: dict[str, Callable[[Plain], object]] = {
    "caveats in a text": lambda plain: plain.update(caveats="none"),
    "caveats of numbers": lambda plain: plain.update(caveats=[1]),
    "no caveats": lambda plain: plain.pop("caveats"),
}
PSEUDOS: dict[str, Callable[[Plain], object]] = {
    "no photos": lambda plain: plain.pop("photos"),
    "a number for the photos": lambda plain: plain.update(photos=5),
    "photos that are gone": lambda plain: plain.update(photos="nobody"),
    "photos in a file": lambda plain: plain.update(photos="settings.yaml"),
    "photos at a NUL": lambda plain: plain.update(photos="a\0b"),
    "photos at a long path": lambda plain: plain.update(photos="x" * 6000),
    "no folds": lambda plain: plain.pop("folds"),
    "folds in words": lambda plain: plain.update(folds="2"),
    "a true fold": lambda plain: plain.update(folds=True),
    "one fold": lambda plain: plain.update(folds=1),
    "minus two folds": lambda plain: plain.update(folds=-2),
    "two and a half folds": lambda plain: plain.update(folds=2.5),
    "three folds": lambda plain: plain.update(folds=3),
    "thousands of folds": lambda plain: plain.update(folds=9999),
    "a billion folds": lambda plain: plain.update(folds=10**9),
    "no heads": lambda plain: plain.pop("heads"),
    "heads in a text": lambda plain: plain.update(heads="mask"),
    "a class less": lambda plain: plain["heads"][0]["classes"].pop(),
}

# tables --------------------------------------------------------------------------------------------------------------


def edited(file: str, edit: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / file).write_bytes(edit((folder / file).read_bytes()))


def told(file: str, change: Callable[[Plain], object]) -> Spoil:
    """A JSON file that says something else."""

    def spoil(folder: Path) -> None:
        plain = json.loads((folder / file).read_text())
        change(plain)
        (folder / file).write_text(json.dumps(plain))

    return spoil


def without_column(name: str) -> Callable[[bytes], bytes]:
    return lambda data: re.sub(rf"(?m)\b{name}\b".encode(), b"x", data, count=1)


TABLES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header only": lambda data: data.split(b"\n")[0] + b"\n",
    "no header": lambda data: data.split(b"\n", 1)[1],
    "noise": lambda data: bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "Latin-1": lambda data: data + "é,é\n".encode("latin-1"),
    "a NUL": lambda data: data[:-3] + b"\0" + data[-3:],
    "semicolons": lambda data: data.replace(b",", b";"),
    "an open quote": lambda data: data.replace(b"\n", b'\n"', 1),
    "a cell too many": lambda data: data + b"1," * 99 + b"1\n",
    "a cell too few": lambda data: data + b"1\n",
    "a column twice": lambda data: re.sub(rb"^([^,\n]+),([^,\n]+)", rb"\1,\1", data),
    "a long line": lambda data: data + b"x" * 2_000_000,
    "a long cell": lambda data: data + b"x" * 100_000 + b"," * data.split(b"\n")[0].count(b",") + b"\n",
    "a pickle": lambda data: pickle.dumps(Bomb()),
}
# file, a column that it needs, the command that reads it
READ_BY = [
    ("data/train/train.csv", "gender", FIT),
    ("table.csv", "path", f"{TABLE} --image-column path"),
    ("dealt.csv", "fold", f"{FIT} --folds-file dealt.csv"),
    ("fixes.csv", "column", f"{FIT} --fixes fixes.csv"),
    ("info.csv", "ImageID", SUBMIT),
    ("answers.csv", "ImageID", COMPARE),
    ("run/folds.csv", "person", SCORE),
    ("run/oof.csv", "predicted", SCORE),
    ("ledger.csv", "sha256", LEDGER),
    ("half0/fold0/history.csv", "epoch", MERGE),
    ("both/folds.csv", "person", SCORE_BLENDED),
    ("both/oof.csv", "predicted", SCORE_BLENDED),
    ("theirs.csv", "path", THEIRS),
    ("boxes.csv", "x1", BOXES),
    ("eval.csv", "x1", FACES),
    ("landmarks.csv", "nose_y", PAINT),
    ("extra.csv", "path", EXTRA),
    ("labels/labels.csv", "path", STUDENT),
    ("labels/folds.csv", "fold", STUDENT),
]


def cell(file: str, column: str, value: str) -> Spoil:
    """A cell of the last row."""

    def spoil(folder: Path) -> None:
        with (folder / file).open(newline="") as opened:
            rows = list(csv.reader(opened))
        rows[-1][rows[0].index(column)] = value
        with (folder / file).open("w", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows(rows)

    return spoil


CELLS = {
    ("data/train/train.csv", FIT): {
        "path": ["", "..", "../../run", "/etc", "a/b", "nobody", "x" * 4000, "."],
        "age": ["", "old", "-1", "151", "nan", "1e3", "9" * 400],
        "gender": ["", "robot", "Male"],
    },
    ("table.csv", TABLE): {
        "path": ["", "..", "../../train.csv", "/etc/passwd", "nobody.jpg", "x" * 4000, ".", "/dev/zero"],
        "person": [""],
    },
    ("dealt.csv", f"{FIT} --folds-file dealt.csv"): {
        "fold": ["", "-1", "x", "1.0", "99999999999", "7", "nan"],
        "path": ["", "nobody", "../x"],
    },
    ("fixes.csv", f"{FIT} --fixes fixes.csv"): {
        "column": ["", "hat", "path"],
        "value": ["robot"],
        "path": ["nobody", "../../etc/passwd"],
    },
    ("info.csv", SUBMIT): {"ImageID": ["", "../run/oof.csv", "/etc/passwd", "nobody.jpg", "x" * 4000]},
    ("answers.csv", COMPARE): {"ans": ["", "x", "18", "-1", "1.5", "9" * 19, "9" * 400]},
    ("run/folds.csv", SCORE): {"fold": ["", "x", "9", "-1", "0.5", "nan", "inf"], "mask": ["hat"], "path": ["nobody"]},
    ("run/oof.csv", SCORE): {
        "path": ["nobody", "/etc/passwd"],
        "fold": ["", "9", "1e999"],
        "true": ["99", "x", "0.5"],
        "mask.wear": ["", "nan", "inf", "x"],
    },
    ("half0/fold0/history.csv", MERGE): {"macro_f1": ["x", "1;2"]},
    ("theirs.csv", THEIRS): {"path": ["first/normal.jpg"], "mask.wear": ["", "nan", "inf", "x", "-1", "2"]},
    ("boxes.csv", BOXES): {
        "path": ["", "nobody", "../x", "x" * 4000],
        "x0": ["", "x", "nan", "inf", "1e9", "9" * 400, "300", "0x1"],
        "y1": ["", "0", "-inf", "1e999"],
        "score": ["x", "nan"],
    },
    ("eval.csv", FACES): {
        "path": ["", "nobody", "/etc/passwd"],
        "x0": ["", "left", "nan", "inf", "1e9", "500"],
        "y1": ["", "0", "1e999"],
    },
    ("landmarks.csv", PAINT): {
        "path": ["", "nobody", "../x"],
        "x0": ["", "x", "nan", "500"],
        "nose_x": ["", "x", "nan", "inf", "1e9", "-900", "900"],
        "nose_y": ["-900", "900", "0"],
        "left_eye_x": ["0", "9e5"],
    },
    ("extra.csv", EXTRA): {
        "path": ["", "..", "../run/oof.csv", "/etc/passwd", "nobody.jpg", "x" * 4000, ".", "/dev/zero", "photos/0.jpg"],
        "person": [""],
        "mask": ["hat"],
        "gender": ["Male"],
        "age": ["old", "nan", "-1", "151", "1e3", "9" * 400],
        "weight": ["x", "-1", "nan", "inf", "1e400", "1e300", "9" * 400],
    },
    ("labels/labels.csv", STUDENT): {
        "path": ["", "..", "../run/oof.csv", "/etc/passwd", "nobody.jpg", "x" * 4000, ".", "/dev/zero", "0.jpg"],
        "fold0:mask.wear": ["", "nan", "inf", "x", "-1", "2", "9" * 400],
        "fold1:age.60+": ["", "1", "0"],
    },
    ("labels/folds.csv", STUDENT): {
        "fold": ["", "x", "-2", "0.5", "nan", "99999", "7"],
    },
}

# photos --------------------------------------------------------------------------------------------------------------

PHOTO, FIRST = "photos/0.jpg", "data/train/images/first/normal.jpg"
# box, score and landmarks of a face in the middle of a drawn photo
FACE = "112,96,272,336,0.9,152,200,232,200,192,248,160,296,224,296"


def encoded(format_: str, **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 32, 3), np.uint8)).save(file, format_, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the chunks given, behind a header of 8-bit grey."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    made = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def forged(data: bytes, sizes: bytes, forgery: bytes) -> bytes:
    assert sizes in data
    return data.replace(sizes, forgery, 1)


def zeros(count: int) -> bytes:
    """So many bytes, packed."""
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(10**6)) for _ in range(count // 10**6)) + packer.flush()


BIG = 60_000
PHOTOS = {
    "PNG bomb": png(BIG, BIG, (b"IDAT", zlib.compress(bytes(10**6)))),
    "PNG under Pillow's own bound": png(17_000, 17_000, (b"IDAT", zlib.compress(bytes(10**6)))),
    "PNG text bomb": png(8, 8, (b"zTXt", b"a\0\0" + zeros(3 * 10**8))),
    "JPEG bomb": forged(encoded("JPEG"), struct.pack(">HH", 48, 32), struct.pack(">HH", BIG, BIG)),
    "JPEG under Pillow's own bound": forged(
        encoded("JPEG"), struct.pack(">HH", 48, 32), struct.pack(">HH", 17_000, 17_000)
    ),
    "WebP bomb": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\x5f\xea\0" * 2,
    "GIF bomb": forged(encoded("GIF"), struct.pack("<HH", 32, 48), struct.pack("<HH", BIG, BIG)),
    "TIFF bomb": forged(
        forged(encoded("TIFF"), struct.pack("<HHII", 256, 4, 1, 32), struct.pack("<HHII", 256, 4, 1, BIG)),
        struct.pack("<HHII", 257, 4, 1, 48),
        struct.pack("<HHII", 257, 4, 1, BIG),
    ),
    "BMP bomb": forged(encoded("BMP"), struct.pack("<ii", 32, 48), struct.pack("<ii", BIG, BIG)),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(MARKER) (w) file closefile\nshowpage\n%%EOF\n",
    "text": b"This is no photo.",
    "empty": b"",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "a bare beginning": b"\xff\xd8\xff",
    "JPEG cut short": encoded("JPEG")[:-100],
    "PNG cut short": encoded("PNG")[:-1000],
    "WebP cut short": encoded("WEBP")[:-500],
    "TIFF cut short": encoded("TIFF")[:-2000],
    "no pixels": png(0, 0, (b"IDAT", b"")),
}

# things that are no plain files --------------------------------------------------------------------------------------


def instead(file: str, make: Callable[[Path], object]) -> Spoil:
    """Something else where a file or a folder was."""

    def spoil(folder: Path) -> None:
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return spoil


def moved_and_linked(file: str) -> Spoil:
    """A file or a folder put elsewhere, and a link to it in its place."""

    def spoil(folder: Path) -> None:
        (folder / "elsewhere").mkdir()
        moved = shutil.move(folder / file, folder / "elsewhere" / Path(file).name)
        (folder / file).symlink_to(moved)

    return spoil


def socket_at(path: Path) -> None:
    import socket

    here = Path.cwd()
    # the name of a socket must be short
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)


VAST = "two gigabytes of nothing"
SPECIALS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a socket": socket_at,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nobody"),
    VAST: sparse,
}
PLACES = {
    "run/config.yaml": SCORE,
    "run/heads.json": SCORE,
    "run/folds.csv": SCORE,
    "run/oof.csv": SCORE,
    "run/pipelines.yaml": PREDICT,
    "run/fold0/epoch.safetensors": PREDICT,
    "half0/fold0/done.json": MERGE,
    "half0/fold0/history.csv": MERGE,
    "half0/fold0/oof-001.safetensors": MERGE,
    "half0/environment.json": MERGE,
    "both/ensemble.json": SCORE_BLENDED,
    "twin/oof.csv": BLENDED,
    "twin/fold0/epoch.safetensors": BLENDED,
    "labels/pseudo.json": STUDENT,
    "labels/labels.csv": STUDENT,
    "labels/folds.csv": STUDENT,
    "data/train/train.csv": FIT,
    FIRST: FIT,
    PHOTO: PREDICT,
    "table.csv": TABLE,
    "settings.yaml": FIT,
    "info.csv": SUBMIT,
    "weights.safetensors": f"{FIT} --weights weights.safetensors",
    "weights.pth": f"{FIT} --weights weights.pth",
    "theirs.csv": THEIRS,
    "boxes.csv": BOXES,
    "eval.csv": FACES,
    "landmarks.csv": PAINT,
    "extra.csv": EXTRA,
    "weights.yaml": CLASS_WEIGHT,
}
# named by the user, so what is not there was asked for wrongly
NAMED = {
    *("data/train/train.csv", "settings.yaml", "table.csv", "info.csv", "weights.safetensors", "weights.pth"),
    *("theirs.csv", "boxes.csv", "eval.csv", "landmarks.csv", "extra.csv", "weights.yaml", "labels/pseudo.json"),
}

# weights -------------------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch MARKER",)


def header(length: int, text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + data


def tensors(plain: object, data: bytes = b"") -> bytes:
    text = json.dumps(plain).encode()
    return header(len(text), text, data)


def saved(value: object, **options: object) -> bytes:
    file = BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(data: bytes) -> bytes:
    """A .pth whose tensor is hundreds of megabytes of zeros, packed."""
    file = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name.endswith("data/0"):
                with new.open(name, "w", force_zip64=True) as entry:
                    for _ in range(300):
                        entry.write(bytes(10**6))
            else:
                new.writestr(name, old.read(name))
    return file.getvalue()


def tensor_of(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "empty": b"",
    "an endless header": header(2**63, b"{}"),
    "a header beyond the file": header(10**6, b"{}"),
    "a hundred gigabytes of header": header(10**11, b"{}"),
    "no JSON": header(4, b"{{{{"),
    "nested JSON": header(100_000, b"[" * 100_000),
    "offsets outside": tensors({"a": tensor_of("F32", [4], 0, 16)}),
    "falling offsets": tensors({"a": tensor_of("F32", [4], 16, 0)}, bytes(16)),
    "overlapping": tensors({"a": tensor_of("F32", [4], 0, 16), "b": tensor_of("F32", [4], 8, 24)}, bytes(24)),
    "a hole": tensors({"a": tensor_of("F32", [4], 8, 24)}, bytes(24)),
    "a shape of 10^12": tensors({"a": tensor_of("F32", [10**6, 10**6], 0, 16)}, bytes(16)),
    "a shape that overflows": tensors({"a": tensor_of("F32", [2**32, 2**32], 0, 16)}, bytes(16)),
    "a negative shape": tensors({"a": tensor_of("F32", [-4], 0, 16)}, bytes(16)),
    "an unknown type": tensors({"a": tensor_of("F33", [4], 0, 16)}, bytes(16)),
    "another type": tensors({"a": tensor_of("F64", [4], 0, 16)}, bytes(16)),
    "a pickle": pickle.dumps(Bomb()),
    "a torch file": saved({"a": torch.zeros(2)}),
    "other tensors": tensors({"a": tensor_of("F32", [4], 0, 16)}, bytes(16)),
    "noise": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
}
PTHS: dict[str, bytes] = {
    "a pickle": pickle.dumps(Bomb()),
    "a pickle by torch": saved({"a": Bomb()}),
    "a pickle by torch, the old way": saved({"a": Bomb()}, _use_new_zipfile_serialization=False),
    "no tensors": saved({"a": 1}),
    "a list": saved([torch.zeros(2)]),
    "a sparse tensor": saved({"a": torch.zeros(9, 9).to_sparse()}),
    "an expanded tensor": saved({"a": torch.zeros(1).expand(10**6, 10**6)}),
    "a tensor without numbers": saved({"a": torch.zeros(9, device="meta")}),
    "complex numbers": saved({"a": torch.zeros(9, dtype=torch.complex64)}),
    "numbers for names": saved({1: torch.zeros(9)}),
    "a zip bomb": zipped(saved({"a": torch.zeros(9)})),
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "cut short": saved({"a": torch.zeros(999)})[:-900],
    "cut short, the old way": saved({"a": torch.zeros(999)}, _use_new_zipfile_serialization=False)[:-900],
    "noise": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    "nothing": b"",
}


def changed_tensors(file: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Spoil:
    def spoil(folder: Path) -> None:
        given = load_file(folder / file)
        save_file({name: change(name, tensor) for name, tensor in given.items()}, folder / file)

    return spoil


# what is learned from others -----------------------------------------------------------------------------------------


def gone(file: str) -> Spoil:
    return lambda folder: shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()


def last_row_twice(data: bytes) -> bytes:
    return data + data.rstrip().rsplit(b"\n", 1)[1] + b"\n"


def columns_kept(*kept: str) -> Callable[[bytes], bytes]:
    """A table with some of its columns."""

    def edit(data: bytes) -> bytes:
        rows = list(csv.DictReader(data.decode().splitlines()))
        return "\n".join([",".join(kept), *(",".join(row[name] for name in kept) for row in rows)]).encode() + b"\n"

    return edit


RUNS_OF_OTHERS: dict[str, Spoil] = {
    "a run that is gone": gone("twin"),
    "a run of other settings": edited("twin/config.yaml", lambda data: data.replace(b"\nseed: 0\n", b"\nseed: 1\n")),
    "a run of other heads": put("twin/heads.json", HEADS["other heads"]),
    "a run of other predictions": edited("twin/oof.csv", lambda data: data + b"\n"),
    "a run without predictions": gone("twin/oof.csv"),
    "a run without checkpoints": gone("twin/fold0/epoch.safetensors"),
    "a run of folds that are gone": gone("twin/fold0"),
    "a run without pipelines": gone("twin/pipelines.yaml"),
    "a run without an environment": gone("twin/environment.json"),
    "a run of broken settings": put("twin/config.yaml", YAMLS["endless alias"]),
    "a checkpoint of no numbers": changed_tensors(
        "twin/fold0/epoch.safetensors", lambda name, tensor: tensor * float("nan") if "heads" in name else tensor
    ),
    "no heads": gone("both/heads.json"),
    "other heads": put("both/heads.json", HEADS["other heads"]),
}
OTHER_PHOTOS: dict[str, Spoil] = {
    "a row twice": edited("extra.csv", last_row_twice),
    "no head": edited("extra.csv", columns_kept("path", "person", "weight")),
    "nothing but photos": edited("extra.csv", columns_kept("path")),
    "weights alone": edited("extra.csv", columns_kept("weight")),
    "photos that are gone": gone("photos"),
    "a photo that is text": put(PHOTO, PHOTOS["text"]),
    "a photo that is a bomb": put(PHOTO, PHOTOS["PNG bomb"]),
    "a photo that is a pipe": instead(PHOTO, os.mkfifo),
    # to the photo among the good inputs
    "a photo that is a link out": instead(PHOTO, lambda path: path.symlink_to(path.parents[2] / "good" / PHOTO)),
}
STUDENTS: dict[str, Spoil] = {
    "no labels": gone("labels/labels.csv"),
    "no folds": gone("labels/folds.csv"),
    "nothing of it": gone("labels/pseudo.json"),
    "a photo twice": edited("labels/labels.csv", last_row_twice),
    "a photo of two folds": edited(
        "labels/folds.csv", lambda data: last_row_twice(data)[:-2] + b"%d\n" % (data[-2] == 48)
    ),
    "probabilities that sum to 2": cell("labels/labels.csv", "fold0:mask.wear", "1"),
    "folds of another teacher": edited(
        "labels/folds.csv", lambda data: re.sub(rb"(?m),([01])$", lambda m: b",0" if m[1] == b"1" else b",1", data)
    ),
    "photos that are gone": gone("photos"),
    "a photo that is gone": gone(PHOTO),
    "a photo that is text": put(PHOTO, PHOTOS["text"]),
    "a photo that is a bomb": put(PHOTO, PHOTOS["PNG bomb"]),
    "a photo that is a pipe": instead(PHOTO, os.mkfifo),
}

# of those above: what is whole, but not what was asked for
OTHERS = {
    *("no heads", "no head", "nothing but photos", "nothing of it"),
    *("a photo of two folds", "folds of another teacher"),
}

# options -------------------------------------------------------------------------------------------------------------

LONG = "x" * 5000
OPTIONS = {
    FIT: f"""--data nobody|--data ''|--data photos|--data settings.yaml|--data info.csv|--data /dev/null|--config nobody
        |--config data|--config /dev/null/x|--recipe nobody|--recipe ../report|--epochs 0|--epochs -1|--epochs x
        |--epochs 1.5|--epochs nan|--epochs ''|--folds 1|--folds 0|--folds 99999
        |--folds x|--fold x|--fold 9|--fold -1|--fold ''|--fold 0,0,x|--bs 0|--bs 100000|--lr 0|--lr -1|--lr nan
        |--lr inf|--lr x|--wd -1|--wd nan|--sched nobody|--milestones x|--milestones 0|--milestones nan|--lr-gamma 0
        |--lr-gamma 2|--accumulate 0|--ema 1|--ema -1|--ema nan|--loss nobody|--focal-gamma -1|--focal-gamma inf
        |--monitor nobody|--patience -1|--top-k 0|--precision fp8|--cache nobody|--workers -1|--workers x
        |--device nobody|--device cuda:99|--seed -1|--seed 4294967296|--crop 0 0|--crop 0|--resize 5 5 5
        |--resize 100000 100000|--stats x|--stats 1 2|--stats 0 0 0 0 0 0|--stats nan 0 0 1 1 1|--age-bounds 60 30
        |--age-bounds nan 60|--arch nobody|--arch ''|--arch ../../x|--arch hf-hub:x/y|--drop-rate 1|--drop-rate nan
        |--drop-path -1|--weights nobody|--weights data|--hours 0|--hours -1|--minutes nan|--group nobody
        |--arch {LONG}|--recipe {LONG}|--epochs {LONG}|--device {LONG}|--stratify nobody
        |--folds-file nobody|--folds-file data|--fixes nobody|--fixes data|--heads a|--images photos
        |--image-column a|--group-column a|--set x|--set =1|--set x=1|--set epochs=[|--set epochs=2020-13-45
        |--set epochs=!!python/object:os.system|--set a.b.c.d=1|--set epochs.a=1|--nobody|--out run|--out settings.yaml
        |--out settings.yaml/run|--resume --overwrite|--resume --out nobody|--out photos --overwrite|extra words
        |--mixup -1|--mixup nan|--mixup x|--mixup 1e300|--cutmix -1|--cutmix inf|--cutmix 1e-300|--lr 1e300|--wd 1e300
        |--focal-gamma 1e300|--mix-prob 0|--mix-prob 0.5|--mix-prob 2 --mixup 1
        |--per-person 0|--per-person x=|--per-person mask.wear=1,age.60+=1|--draw-weights nobody|--mix-classes age.60+
        |--mixup 1 --mix-classes nobody|--mixup 1 --mix-partner nobody|--half-cutmix 1 --mix-partner same
        |--half-cutmix 2|--half-cutmix nan|--half-shares 0.2 0.8|--half-cutmix 1 --half-shares 0.8 0.2
        |--half-cutmix 1 --half-shares 0 1|--half-partner any|--half-cutmix 1 --half-partner nobody
        |--half-cutmix 1 --half-partner 'wear female'|--erase 1|--erase -1|--erase 0.5|--label-smoothing 1
        |--label-smoothing nan|--f1-share 2|--f1-share x|--sampler nobody|--sampler ''|--drop-ages x|--drop-ages 59-57
        |--drop-ages 0-150|--drop-ages nan-60|--set drop.hat=[[1,2]]|--set drop.mask=[[1,2]]|--set drop.age=5
        |--freeze x|--freeze 0|--freeze 99|--unfreeze 2|--freeze body --unfreeze 1|--freeze body --unfreeze 99
        |--layer-decay 0|--layer-decay 2|--layer-decay nan|--swa 1|--swa 0.9|--swa 0.5 --ema 0.9|--refit -1
        |--minutes 1 --hours 1|--order nobody|--order mask|--set order_spread=0|--save-every 0|--save-every 5h
        |--extra nobody|--extra data|--extra ''|--extra-images photos|--extra-weight 2
        |--extra extra.csv --extra-weight 0|--extra extra.csv --extra-weight nan
        |--extra extra.csv --extra-weight 1e300|--extra extra.csv --extra-images nobody
        |--extra extra.csv --extra-images settings.yaml|--pseudo nobody|--pseudo data|--pseudo ''
        |--pseudo settings.yaml|--pseudo run|--pseudo labels --pseudo-weight 0|--pseudo labels --pseudo-least 2
        |--pseudo-least 0.5|--pseudo labels --folds 3|--boxes nobody|--boxes data|--boxes ''|--margin 0.5
        |--region forehead|--boxes boxes.csv --margin -1|--boxes boxes.csv --margin nan|--boxes boxes.csv --region ear
        |--class-weight nobody|--class-weight data|--class-weight ''|--class-weight weights.yaml --set class_weight=auto
        |--weights both|--teacher nobody|--teacher data|--teacher half0|--teacher run --folds 3|--teacher-weight 0.7
        |--teacher teacher --teacher-weight 0|--teacher teacher --teacher-weight 2|--teacher teacher --seed 1
        |--teacher teacher --teacher-temperature 0|--teacher-temperature nan --teacher teacher""",
    TABLE: """--heads nobody|--heads ''|--heads mask,mask|--heads path|--images nobody|--images settings.yaml
        |--age-bounds 20 30|--stratify nobody""",
    PREDICT: """--tta 0|--tta -1|--tta x|--tta 99999999|--members nobody|--members ''|--members fold9|--bs 0|--bs x
        |--workers -1|--device nobody|--precision fp8|--submission nobody|--submission data|--out run
        |--out settings.yaml|--out settings.yaml/x|--submission info.csv --out info.csv --overwrite
        |--soup|--views x|--views ''|--views flip,flip|--views flip --tta 2|--boxes eval.csv|--boxes nobody""",
    BLENDED: """--members run|--members fold0|--tta 0|--views x|--soup|--boxes eval.csv|--bs 0|--device nobody
        |--out both/oof.csv --overwrite""",
    EXPORT: """--format nobody|--format ''|--precision fp8|--fold 9|--fold -1|--fold x|--photos 0|--photos x|--bs 0
        |--bs 99999999|--oof-photos 0|--images nobody|--images settings.yaml|--data nobody|--out run
        |--out run/model.onnx|--out settings.yaml|--out settings.yaml/x|--soup|extra""",
    "export both": "--fold 0|--soup|--precision x",
    "export faced": "--photos 4",
    FACES: "--boxes nobody|--boxes data|--boxes boxes.csv --tta 0",
    SOUP: "--tta 0|--members fold9|--views x",
    "predict faced photos --out out/x": "|--tta 1",
    "ensemble --out out/both": "|run|run run|run nobody|run photos|run settings.yaml|both run"
    "|run twin --blend luck|run twin --blend ''|run twin --nobody|nobody twin",
    "ensemble run twin": "|--out run|--out twin --overwrite|--out photos|--out photos --overwrite|--out settings.yaml"
    "|--out settings.yaml/x",
    "pseudo": "|run|run photos|nobody photos --out out/x|photos photos --out out/x|run nobody --out out/x"
    "|run run --out out/x|run photos --out run|run photos --out photos|run photos --out settings.yaml"
    "|run photos --out settings.yaml/x|half0 photos --out out/x|both photos --out out/x"
    "|run photos --out out/x --boxes eval.csv|faced photos --out out/x|faced photos --out out/x --boxes nobody"
    "|run photos --out out/x --workers -1|run photos --out out/x --device nobody",
    "screen --data data --config settings.yaml --cache-dir cache": "|--archs ''|--archs nobody"
    "|--archs test_resnet,test_resnet|--archs test_resnet,|--archs ../x",
    SCREEN: """--weights x|--weights =|--weights test_resnet=|--weights =weights.pth|--weights nobody=weights.pth
        |--weights test_resnet=nobody|--weights test_resnet=data|--weights test_resnet=/dev/null
        |--set weights=weights.pth|--weights test_resnet=weights.pth --weights test_resnet=weights.safetensors|--bs 0
        |--bs x|--folds 1|--data nobody|--out settings.yaml|--out settings.yaml/x|--oof settings.yaml
        |--oof settings.yaml/x|--device nobody|--epochs 5
        |--mixup 1|--boxes nobody|--precision fp8|--stats x|extra""",
    "compare": "|run|run run|run nobody|run photos|answers.csv answers.csv|theirs.csv info.csv|run settings.yaml/x"
    "|run twin --names a|run twin --names a,a|run twin --names a,|run twin --draws 0|run twin --draws x"
    "|run twin --draws 999999999|run twin --plot x.jpg|run twin --plot settings.yaml|run twin --out settings.yaml"
    "|run twin --out run/oof.csv --overwrite|run theirs.csv --out theirs.csv --overwrite|run twin --nobody",
    PAINT: """--per-face ''|--per-face wear|--per-face wear=-1|--per-face wear=1,wear=2|--per-face hat=1
        |--per-face none=1|--per-face wear=0|--per-face wear=101|--per-face wear=1,none=2|--per-face wear=9999999999
        |--classes a,b|--classes ''|--classes wear,incorrect,hat|--head gender|--head ''|--landmarks nobody
        |--landmarks data|--data nobody|--data settings.yaml|--out data|--out data/train|--out data/train/images/x
        |--out photos|--out settings.yaml|--out settings.yaml/x|--seed -1|--workers -1|--workers 0|--workers x|extra""",
    "paint --data data": "|--out out/x|--landmarks landmarks.csv",
    FIND: """--detector nobody|--detector ''|--out photos|--out settings.yaml|--out settings.yaml/x|--images photos
        |--image-column path|--nobody|extra""",
    "faces --out out/x": "|nobody|''|settings.yaml|/dev/null|cache|run/fold0|half0",
    "predict nobody photos --out out/x": "|--tta 1",
    "predict run nobody --out out/x": "|--tta 1",
    "predict photos photos --out out/x": "|--tta 1",
    "predict run run/fold0 --out out/x": "|--tta 1",
    "predict": "|run|run photos",
    "score": "|nobody|photos|settings.yaml|run run run|nobody answers.csv|answers.csv nobody|data answers.csv",
    "decide": "|nobody|photos|run --plot out/x.jpg|run --plot settings.yaml|run --nobody|run run",
    "bound": "|nobody|run|run --head nobody|run --head gender|run --bounds x|run --bounds nan|run --plot x",
    "label-errors": "|nobody|run --heads nobody|run --most -1|run --most x|run --out settings.yaml"
    "|run --out run/folds.csv --overwrite",
    "diff": "|info.csv|info.csv nobody|nobody info.csv|info.csv info.csv --runs nobody run|info.csv info.csv --runs run"
    "|info.csv info.csv --ledger nobody|info.csv info.csv --out info.csv --overwrite",
    "ledger": "nobody|add|plot",
    "ledger show": "--ledger nobody|--ledger data|extra",
    "ledger add": "info.csv|nobody --public 0.5|info.csv --public 75|info.csv --public nan|info.csv --public x"
    "|info.csv --public 0.5 --accuracy -1|info.csv --public 0.5 --ledger data",
    "ledger plot --ledger ledger.csv": "--out x.jpg|--out settings.yaml|--out out/x.png",
    f"{PREDICT} --decision": "nobody|''|f1 --same-person nobody",
    "check": "|nobody|photos|settings.yaml|data --out run|data --out settings.yaml|data --folds x"
    "|data --stratify nobody|data --group nobody|data --crop x y|data --out settings.yaml/x|data --nobody",
    MERGE: "--out run|--out settings.yaml|--nobody|nobody|half0|photos",
    "merge": "|run|run --out out/x|run run --out out/x|half0 --out out/x|half0 half1",
    "cache list": "--cache-dir nobody|--cache-dir settings.yaml|extra|--nobody",
    "cache clear": "--cache-dir nobody|nobody --cache-dir cache|../run --cache-dir cache|'' --cache-dir cache",
    "sample": "|run|settings.yaml|out/x --persons 0|out/x --persons -1|out/x --persons x|out/x --seed -1"
    "|out/x --persons 999999999999|out/x --seed x",
    "lr-find --data data --config settings.yaml": """--fold 9|--fold -1|--fold x|--out out/x.txt|--out settings.yaml
        |--out settings.yaml/x.png|--lr nan|--data nobody|--arch nobody""",
    "bench --data data --config settings.yaml": """--seconds nan|--seconds -1|--seconds 0|--seconds inf|--seconds x
        |--data nobody|--arch nobody|--bs 0|--device nobody""",
    "archs": "nobody*|[|--nobody",
    "nobody": "|--help me",
    "cache": "nobody",
    "cache clear --cache-dir cache": "nobody|../features",
}


# asked for rightly, but the system or a file does not have it
FAILING = {
    FIT: "|".join(
        f"--{option} {LONG}"
        for option in (
            *("data", "out", "config", "weights", "fixes", "folds-file", "extra", "pseudo", "boxes", "class-weight"),
        )
    ),
    TABLE: "--image-column nobody|--group-column nobody",
}


def option_cases() -> Iterator[Case]:
    for options, code in ((OPTIONS, ASKED_WRONGLY), (FAILING, FAILED)):
        for command, words in options.items():
            for word in (w.strip() for w in words.split("|")):
                name = command.partition(" --config")[0].partition(" --out")[0]
                yield Case(f"options: {name} {word[:40]}", nothing, f"{command} {word}", code)


# all of them ---------------------------------------------------------------------------------------------------------


def text_cases() -> Iterator[Case]:
    for name, text in YAMLS.items():
        yield Case(f"settings: {name}", put("settings.yaml", text), FIT, ASKED_WRONGLY)
        yield Case(f"config.yaml: {name}", put("run/config.yaml", text), SCORE)
        yield Case(f"pipelines.yaml: {name}", put("run/pipelines.yaml", text), PREDICT)
    for setting, values in SETTINGS.items():
        for value in values:
            line = f"\n{setting}: {value}\n".encode()
            spoil = edited("settings.yaml", lambda data, line=line: data + line)
            yield Case(f"settings: {setting} {value[:30]}", spoil, FIT, ASKED_WRONGLY)
    for name, transform in TRANSFORMS.items():
        one = f"{{transform: {{__class_fullname__: Compose, transforms: [{transform}]}}}}"
        text = f"train: {one}\nvalid: {one}\n"
        yield Case(f"pipelines.yaml: {name}", put("run/pipelines.yaml", text), PREDICT)
    for name, text in JSONS.items():
        yield Case(f"heads.json: {name}", put("run/heads.json", text), SCORE)
        yield Case(f"done.json: {name}", put("half0/fold0/done.json", text), MERGE)
        yield Case(f"environment.json: {name}", put("half0/environment.json", text), MERGE)
    for name, text in HEADS.items():
        yield Case(f"heads.json: {name}", put("run/heads.json", text), SCORE)
    yield from told_cases()


def told_cases() -> Iterator[Case]:
    """What an ensemble, a folder of pseudo-labels and a file of class weights say of themselves."""
    for name, text in JSONS.items():
        yield Case(f"ensemble.json: {name}", put("both/ensemble.json", text), SCORE_BLENDED)
        yield Case(f"pseudo.json: {name}", put("labels/pseudo.json", text), STUDENT)
    for name, change in CAVEATS.items():
        yield Case(f"ensemble.json: {name}", told("both/ensemble.json", change), SCORE_BLENDED)
    for name, change in ENSEMBLES.items():
        yield Case(f"ensemble.json: {name}", told("both/ensemble.json", change), BLENDED)
    for name, change in PSEUDOS.items():
        yield Case(f"pseudo.json: {name}", told("labels/pseudo.json", change), STUDENT)
    for name, text in HEADS.items():
        spoil = told("labels/pseudo.json", lambda plain, text=text: plain.update(heads=json.loads(text)))
        yield Case(f"pseudo.json: heads: {name}", spoil, STUDENT)
    for name, text in YAMLS.items():
        yield Case(f"class weights: {name}", put("weights.yaml", text), CLASS_WEIGHT, ASKED_WRONGLY)
    for name, text in CLASS_WEIGHTS.items():
        yield Case(f"class weights: {name}", put("weights.yaml", text), CLASS_WEIGHT, ASKED_WRONGLY)
    yield from search_cases()


def search_cases() -> Iterator[Case]:
    """A space of settings, and what a search keeps of itself."""
    for name, text in YAMLS.items():
        yield Case(f"space: {name}", put("space.yaml", text), TUNE, ASKED_WRONGLY)
        yield Case(f"tune.yaml: {name}", put("tuned/tune.yaml", text), TUNE_ON)
    for name, text in SPACES.items():
        yield Case(f"space: {name}", put("space.yaml", text), TUNE, ASKED_WRONGLY)
    for name, (old, new) in SEARCHES.items():
        yield Case(f"tune.yaml: {name}", edited("tuned/tune.yaml", lambda d, o=old, n=new: d.replace(o, n)), TUNE_ON)
    for name, data in {"noise": bytes(range(256)) * 64, "a text": b"just words", "a pickle": pickle.dumps([1])}.items():
        yield Case(f"study.db: {name}", put("tuned/study.db", data), TUNE_ON)


def table_cases() -> Iterator[Case]:
    for file, column, command in READ_BY:
        for name, edit in {**TABLES, f"no {column}": without_column(column)}.items():
            # a table that corrects or notes nothing is no mistake
            if name != "header only" or file not in ("fixes.csv", "ledger.csv"):
                yield Case(f"{file}: {name}", edited(file, edit), command)
    for (file, command), columns in CELLS.items():
        for column, values in columns.items():
            for value in values:
                yield Case(f"{file}: {column} {value[:20]!r}", cell(file, column, value), command)


def file_cases() -> Iterator[Case]:
    for name, data in PHOTOS.items():
        yield Case(f"photo: {name}", put(PHOTO, data), PREDICT)
        yield Case(f"photo of the data: {name}", put(FIRST, data), FIT)
    yield Case("check: PNG bomb", put(FIRST, PHOTOS["PNG bomb"]), "check data")
    yield Case(
        "photo: a name that is no text", lambda f: shutil.copy(f / PHOTO, os.fsencode(f) + b"/photos/\xff.jpg"), PREDICT
    )
    for name, data in SAFETENSORS.items():
        code = ASKED_WRONGLY if name == "other tensors" else FAILED
        yield Case(f"weights: {name}", put("weights.safetensors", data), f"{FIT} --weights weights.safetensors", code)
        yield Case(f"checkpoint: {name}", put("run/fold0/epoch.safetensors", data), PREDICT)
        yield Case(f"OOF: {name}", put("half0/fold0/oof-001.safetensors", data), MERGE)
    for name, data in PTHS.items():
        yield Case(f".pth: {name}", put("weights.pth", data), f"{FIT} --weights weights.pth")
    for name, change in {
        "shorter": lambda name, tensor: tensor.flatten()[:-1].clone(),
        "renamed to integers": lambda name, tensor: tensor.unsqueeze(0),
        "without numbers": lambda name, tensor: tensor * float("nan") if tensor.is_floating_point() else tensor,
    }.items():
        yield Case(f"checkpoint: tensors {name}", changed_tensors("run/fold0/epoch.safetensors", change), PREDICT)
        yield Case(f"OOF: tensors {name}", changed_tensors("half0/fold0/oof-001.safetensors", change), MERGE)
    yield from learned_cases()
    giant = edited(
        "run/config.yaml", lambda data: data.replace(b"arch: test_resnet", b"arch: eva02_enormous_patch14_clip_224")
    )
    yield Case("config.yaml: an enormous network", giant, PREDICT)
    many = edited("half0/config.yaml", lambda data: data.replace(b"\nfolds: 2\n", b"\nfolds: 1000000000\n"))
    yield Case("config.yaml: a billion folds", many, MERGE)


def learned_cases() -> Iterator[Case]:
    """Runs that something else is made of, other photos, weights to screen, checkpoints to average."""
    for what, spoils, command in (
        ("ensemble", RUNS_OF_OTHERS, BLENDED),
        ("extra", OTHER_PHOTOS, EXTRA),
        ("pseudo-labels", STUDENTS, STUDENT),
    ):
        for name, spoil in spoils.items():
            yield Case(f"{what}: {name}", spoil, command, ASKED_WRONGLY if name in OTHERS else FAILED)
    for name, data in PHOTOS.items():
        yield Case(f"photo to search: {name}", put(PHOTO, data), FIND)
        yield Case(f"photo to paint: {name}", put(FIRST, data), PAINT)
    for name, data in SAFETENSORS.items():
        code = ASKED_WRONGLY if name == "other tensors" else FAILED
        spoil, command = put("weights.safetensors", data), f"{SCREEN} --weights test_resnet=weights.safetensors"
        yield Case(f"weights to screen: {name}", spoil, command, code)
        yield Case(f"teacher.safetensors: {name}", put("taught/teacher.safetensors", data), TAUGHT)
        yield Case(f"checkpoint to average: {name}", put("souped/fold0/epoch-0.safetensors", data), SOUP)
    for name, data in PTHS.items():
        spoil, command = put("weights.pth", data), f"{SCREEN} --weights test_resnet=weights.pth"
        yield Case(f".pth to screen: {name}", spoil, command)


def place_cases() -> Iterator[Case]:
    for file, command in PLACES.items():
        # a folder may be called as if it were a photo
        for name, make in ((n, m) for n, m in SPECIALS.items() if (file, n) != (PHOTO, "a folder")):
            yield Case(f"{file}: {name}", instead(file, make), command, code_of(file, name))
    for file in [f for f in PLACES if f.startswith(("run", "half0"))]:
        yield Case(f"{file}: a link out", moved_and_linked(file), PLACES[file])
    for file, command in {
        "run/fold0": PREDICT,
        "half0/fold0": MERGE,
        "data/train/images/first": FIT,
        FIRST: FIT,
    }.items():
        yield Case(f"{file}: a link out of its folder", moved_and_linked(file), command)
    out = instead(FIRST, lambda path: path.symlink_to(path.parents[5] / "good" / FIRST))
    yield Case("table.csv: a link out", out, TABLE.replace("--images data/train/images", ""))


def code_of(file: str, what: str) -> int:
    """What a user names and is no file was asked for wrongly; what it holds failed."""
    return ASKED_WRONGLY if file == "settings.yaml" or (file in NAMED and what != VAST) else FAILED


def cases() -> list[Case]:
    return [*option_cases(), *text_cases(), *table_cases(), *file_cases(), *place_cases()]


# running -------------------------------------------------------------------------------------------------------------

PIPELINE = {
    "transform": {
        "__class_fullname__": "Compose",
        "transforms": [
            {"__class_fullname__": "CenterCrop", "height": 400, "width": 200, "p": 1.0},
            {"__class_fullname__": "Resize", "height": 32, "width": 16, "p": 1.0},
        ],
    }
}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal that ended it; what it said; the most memory it had."""

    code: int
    out: str
    said: str
    memory: int


def in_a_process(folder: Path, arguments: Sequence[str]) -> Ended:
    """Run the command line in `folder`, in a fork of this process."""
    said = [folder.parent / name for name in ("stdout", "stderr")]
    child = os.fork()
    if child == 0:
        _become(folder, arguments, said)
    _, status, used = os.wait4(child, 0)
    out, err = (file.read_text(encoding="utf-8", errors="replace") for file in said)
    return Ended(os.waitstatus_to_exitcode(status), out, err, used.ru_maxrss * 1024)


def _become(folder: Path, arguments: Sequence[str], said: Sequence[Path]) -> None:
    """The forked process, which never returns."""
    code = 70
    try:
        os.chdir(folder)
        for number, file in enumerate(said, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        signal.alarm(SECONDS)
        asked_for = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = asked_for + 2 * MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            command_line(arguments)
            code = 0
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
        except BaseException:  # noqa: BLE001 - what must not come out of it is what is looked for
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def make_good(good: Path) -> None:
    """The inputs that are spoilt: a data set and a run, unless they are there, and what commands read besides."""
    if not (good / "data").is_dir():
        write_sample(good / "data", persons=6)
    settings = {"arch": "test_resnet", "pretrained": False, "folds": 2, "epochs": 2, "bs": 16, "cache_dir": "cache"}
    write_yaml(good / "settings.yaml", {**settings, "train_pipeline": PIPELINE, "valid_pipeline": PIPELINE})
    if not (good / "run").is_dir():
        ended = in_a_process(good, FIT.replace("out/run", "run").split())
        if ended.code:
            sys.exit(f"the good run failed: {ended.said}")
    shutil.copytree(good / "run", good / "teacher")
    for half in (0, 1):
        shutil.copytree(good / "run", good / f"half{half}")
        shutil.rmtree(good / f"half{half}" / f"fold{1 - half}")
    best = next((good / "run" / "fold0").glob("epoch*"))
    best.rename(good / "run" / "fold0" / "epoch.safetensors")
    body = {name: t for name, t in load_file(good / "run" / "fold0" / "epoch.safetensors").items() if "body" in name}
    save_file(body, good / "weights.safetensors")
    torch.save(body, good / "weights.pth")
    first_of(good)
    (good / "photos").mkdir()
    eval_ = good / "data" / "eval"
    for i, photo in enumerate(sorted((eval_ / "images").iterdir())[:4]):
        Image.open(photo).convert("RGB").save(good / "photos" / f"{i}.jpg")
    (good / "ledger.csv").write_text(f"{','.join(COLUMNS)}\n2026-01-31T12:00:00+00:00,s.csv,{'0' * 64}{',' * 12}\n")
    (good / "info.csv").write_text("ImageID,ans\n" + "".join(f"{i}.jpg,0\n" for i in range(4)))
    shutil.copy(eval_ / "answers.csv", good / "answers.csv")
    with (good / "run" / "folds.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    for file, columns in (("table.csv", ["path", "person", "mask"]), ("dealt.csv", ["path", "fold"])):
        lines = [",".join(columns), *(",".join(row[c] for c in columns) for row in rows)]
        (good / file).write_text("\n".join(lines) + "\n")
    photos = [row["path"] for row in rows if row["mask"] == "none"]
    (good / "fixes.csv").write_text("path,column,value\n" + "".join(f"{p},mask,incorrect\n" for p in photos[:4]))
    make_more(good, [row["path"] for row in rows], photos)


def make_more(good: Path, photos: Sequence[str], bare: Sequence[str]) -> None:
    """What is learned from others or cut to faces: an ensemble, pseudo-labels, extra photos, boxes, class weights."""
    for copy in ("twin", "souped", "faced"):
        shutil.copytree(good / "run", good / copy)
    shutil.copy(good / "souped" / "fold0" / "epoch.safetensors", good / "souped" / "fold0" / "epoch-0.safetensors")
    config = good / "faced" / "config.yaml"
    config.write_text(config.read_text().replace("\nboxes: null\n", "\nboxes: boxes.csv\n"))
    taught = f"{FIT.replace('out/run', 'taught')} --teacher teacher --folds-file run/folds.csv --fold 0"
    for command in ("ensemble run twin --out both", "pseudo run photos --out labels", taught):
        ended = in_a_process(good, command.split())
        if ended.code:
            sys.exit(f"{command} failed: {ended.said}")
    # where the case runs, not where it was made
    told("labels/pseudo.json", lambda plain: plain.update(photos="photos"))(good)
    (good / "space.yaml").write_text("lr: {low: 0.001, high: 0.01, log: true}\n")
    ended = in_a_process(good, f"{TUNE.replace('out/tuned', 'tuned')}".split())
    if ended.code:
        sys.exit(f"tune failed: {ended.said}")
    shutil.copy(good / "run" / "oof.csv", good / "theirs.csv")
    (good / "weights.yaml").write_text("age: [1, 1, 4]\nmask: {incorrect: 2}\n")
    names = [f"{i}.jpg" for i in range(4)]
    rows = (f"photos/{name},somebody,wear,male,40,1\n" for name in names)
    (good / "extra.csv").write_text("path,person,mask,gender,age,weight\n" + "".join(rows))
    for file, paths in (("boxes.csv", photos), ("eval.csv", names), ("landmarks.csv", bare)):
        lines = (f"{path},{FACE}\n" for path in paths)
        (good / file).write_text(",".join(FACE_COLUMNS) + "\n" + "".join(lines))


def first_of(good: Path) -> None:
    """Call the first person "first", and that person's photo without a mask normal.jpg, wherever they are named."""
    folder = min((good / "data" / "train" / "images").iterdir())
    photo = next(folder.glob("normal.*"))
    for file in (p for p in good.rglob("*.csv") if "eval" not in p.parts):
        text = file.read_text().replace(f"{folder.name}/{photo.name}", f"{folder.name}/normal.jpg")
        file.write_text(text.replace(folder.name, "first"))
    Image.open(photo).convert("RGB").save(folder / "made.jpg")
    photo.unlink()
    (folder / "made.jpg").rename(folder / "normal.jpg")
    folder.rename(folder.with_name("first"))


def tree(folder: Path) -> dict[str, str]:
    """Every entry of a folder and a digest of what it holds."""
    return {str(p.relative_to(folder)): content(p) for p in sorted(folder.rglob("*")) if "cache" not in p.parts}


def content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if not path.is_file() or path.stat().st_size > 10**9:
        return f"mode {path.stat().st_mode}, {path.stat().st_size if path.is_file() else 0} bytes"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def faults(case: Case, ended: Ended, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with how a case ended; nothing where all is well."""
    last = (ended.said.strip().splitlines() or [""])[-1]
    # check puts its findings where results go; typer's own words for an option come in a frame
    sentence = (
        last.startswith("fastmask: error:")
        or (ended.code == ASKED_WRONGLY and re.search("Usage:|─ Error ─", ended.said + ended.out))
        or (case.command.startswith("check") and "error" in ended.out.lower())
    )
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    found = {
        f"exit code {ended.code}, expected {case.code}": ended.code != case.code,
        "no sentence": not sentence,
        "a traceback": "Traceback" in ended.said + ended.out,
        f"a sentence of {len(last)} characters": len(last) > 5000 and LONG not in case.command,
        f"{ended.memory / 1e9:.1f} GB": ended.memory > MEMORY,
        f"changed {', '.join(changed[:3])}": bool(changed),
        "code was run": any(name.endswith("MARKER") for name in after),
    }
    return [what for what, wrong in found.items() if wrong]


def run_case(case: Case, good: Path, folder: Path) -> tuple[Ended, list[str]]:
    shutil.copytree(good, folder, symlinks=True)
    try:
        case.spoil(folder)
        before = tree(folder)
        ended = in_a_process(folder, shlex.split(case.command))
        return ended, faults(case, ended, before, tree(folder))
    finally:
        shutil.rmtree(folder)


def main(work: str, *parts: str) -> None:
    place = Path(work).resolve()
    good = place / "good"
    good.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    # a fork has no threads but its own
    torch.set_num_threads(1)
    if not (good / "settings.yaml").is_file():
        make_good(good)
    chosen = [case for case in cases() if not parts or any(part in case.name for part in parts)]
    start, failed, sentences, most = time.perf_counter(), 0, 0, 0
    for case in chosen:
        ended, wrong = run_case(case, good, place / "case")
        last = (ended.said.strip().splitlines() or [""])[-1]
        sentences += "no sentence" not in wrong
        most = max(most, ended.memory)
        if os.environ.get("HOSTILE_SHOW"):
            print(f"{case.name} -> {ended.code} {last[:240]}", flush=True)
        if wrong:
            failed += 1
            print(f"FAILED {case.name}: {'; '.join(wrong)}: {last[:300]}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s, at most {most / 1e9:.2f} GB of memory")
    print(f"cases {len(chosen)}, sentences {sentences}, failures {failed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
