"""What a GPU shows of fastmask, in one command of at most nine minutes, without a network.

python examples/benchmarks/gpu.py [--json FILE]

It runs the tests that need a GPU (tests/training/test_gpu.py: fp16 with its scaler, killed and resumed; bf16; TF32;
batches that arrive whole; channels-last; no step that waits for the GPU; AdamP; NCCL; ONNX Runtime where its package
for GPUs is installed), and then times, on drawn photos:

step   training, loading included, beside a plain PyTorch loop on one batch (aim: at least 0.97 of its speed); loading
       alone beside that step (aim: at least twice as fast); the GPU's memory at its peak
adamp  a step of AdamP beside that of the `adamp` package (aim: 10 times as fast)
job    a whole cross-validation beside plain fastai's (aim: 5 times as fast)

The last line counts the aims that were missed, after their names; if there are any, or a test failed, the exit code is
1.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import torch
import typer

import fastmask as fm
from fastmask.data.sample import cached_sample
from fastmask.training.bench import bench
from fastmask.training.rehearsal import free_memory
from fastmask.training.setup import prepare

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests" / "training" / "test_gpu.py"
LIMIT = 540
ARCHS, PRECISIONS, BATCH, SECONDS, COPIES = ("tf_efficientnet_lite0", "tf_efficientnet_b4"), ("fp32", "bf16"), 64, 10, 8
# a small job, whose fixed costs count against fastmask
JOB = ("--archs", "tf_efficientnet_b4", "--folds", "2", "--epochs", "2", "--rounds", "1", "--photos", "840")
Row = dict[str, Any]


def row(what: str, value: float | str, aim: float | None = None) -> Row:
    met = "" if aim is None or isinstance(value, str) else value >= aim
    return {"what": what, "found": value, "at least": "" if aim is None else aim, "met": met}


def run(command: list[str | Path], end: float) -> str:
    """What a command prints until `end`; raises CalledProcessError or TimeoutExpired."""
    words = [sys.executable, "-W", "ignore", *map(str, command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            said, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
        except BaseException:
            # with the processes that it has started
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return said


def tests(end: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        options = ["-o", "addopts=", "--import-mode=importlib", "-q", f"--junitxml={file}", TESTS]
        with suppress(subprocess.CalledProcessError):
            # the file says what failed
            run(["-m", "pytest", *options], end)
        cases = list(ElementTree.parse(file).iter("testcase"))
        yield row("tests that ran or were skipped", len(cases), 1)
        for case in cases:
            name = case.attrib["name"].removeprefix("test_").replace("_", " ")
            skipped = case.find("skipped")
            if skipped is not None:
                yield row(name, f"skipped: {skipped.attrib['message']}")
            else:
                yield row(name, float(case.find("failure") is None and case.find("error") is None), 1)


def step(end: float) -> Iterator[Row]:
    table = fm.read_contest(cached_sample(log=print) / "train")
    photos = table.select(np.tile(np.arange(len(table)), COPIES))
    for arch, precision in product(ARCHS, PRECISIONS):
        if time.monotonic() > end:
            raise subprocess.TimeoutExpired("step", LIMIT)
        free_memory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        config = fm.make_config({"arch": arch, "pretrained": False, "precision": precision, "bs": BATCH})
        found = bench(prepare(photos, config), SECONDS)
        what = f"{arch}, {precision}, batches of {BATCH}"
        yield row(f"{what}: training beside the bare step", found.efficiency, 0.97)
        yield row(f"{what}: loading beside the step", found.train / found.load, 2)
        yield row(f"{what}: photos a second", found.bs / found.train)
        yield row(f"{what}: GB of the GPU", found.rehearsal.device_memory / 1e9)


def adamp(end: float) -> Iterator[Row]:
    said = run([HERE / "adamp_step.py", ARCHS[-1]], end)
    for name, aim in (("adamp package", 10), ("timm AdamP", None), ("torch AdamW fused", None)):
        ratio = re.search(rf"^{name} .* ([0-9.]+)x$", said, re.MULTILINE)
        yield row(f"a step of {name} over one of fastmask's AdamP", float(ratio[1]) if ratio else "not found", aim)


def job(end: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        run([HERE / "speed.py", "job", *JOB, "--json", file], end)
        for part in json.loads(file.read_text())["parts"]:
            for each in part["rows"]:
                aim = 5 if each["what"] == "plain fastai" else None
                yield row(f"{part['title']}: {each['what']} over fastmask", each["ratio"], aim)


PARTS = {"tests": tests, "step": step, "adamp": adamp, "job": job}


def measure(limit: float = LIMIT) -> list[Row]:
    """The rows of all parts; a part that fails, or that the time does not suffice for, says so and is not met."""
    end, rows = time.monotonic() + limit, []
    for name, part in PARTS.items():
        try:
            rows += part(end)
        except (subprocess.SubprocessError, OSError, ElementTree.ParseError, RuntimeError, fm.FastmaskError) as error:
            rows.append(row(f"{name}: {type(error).__name__}: {error}", 0.0, 1))
    return rows


def main(json_: Annotated[Path | None, typer.Option("--json", help="A file to write the table to.")] = None) -> None:
    warnings.simplefilter("ignore")
    if not torch.cuda.is_available():
        print("There is no GPU here that torch can use (torch.cuda.is_available() is False).", file=sys.stderr)
        raise typer.Exit(2)
    start = time.monotonic()
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "fastmask": fm.__version__}
    rows = measure()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))
    if json_ is not None:
        json_.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    missed = [each["what"] for each in rows if each["met"] is False]
    print(*(f"missed: {what}" for what in missed), sep="\n")
    print(f"{len(missed)} of {len(rows)} rows miss their aim, {time.monotonic() - start:.0f} s")
    raise typer.Exit(bool(missed))


if __name__ == "__main__":
    typer.run(main)
