"""How long the first moments take: of a command, of an import, and of a fit up to its first training step.

python examples/benchmarks/start.py [RUNS]                     --help beside an empty typer program, and the import
python examples/benchmarks/start.py [RUNS] --photos 18900      also a fit of so many drawn photos, with all decoded

The seconds of a fit are those until the state after the first training step is on the disk, of a small network; beside
the imports of torch, timm and fastai alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

EMPTY = "import typer\napp = typer.Typer()\n@app.command()\ndef hello(): ...\napp()\n"
IMPORTS = "import torch, timm, fastai.vision.all"
SETTINGS = "--arch test_resnet --no-pretrained --folds 2 --epochs 1 --crop 400 200 --resize 32 16 --save-every 1"


def seconds(command: list[str]) -> float:
    # some locales cannot encode rich's frames
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    start = time.perf_counter()
    subprocess.run(command, env=env, check=True, capture_output=True)
    return time.perf_counter() - start


def first_step(data: Path, out: Path, cache: Path) -> float:
    """The seconds from the start of a fit until its first state is written; then it is killed."""
    env, start = {**os.environ, "XDG_CACHE_HOME": str(cache)}, time.perf_counter()
    command = [sys.executable, "-m", "fastmask", "fit", *SETTINGS.split(), "--data", str(data), "--out", str(out)]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            # the state of a fold is removed at its end
            while not any(out.glob("fold0/state.safetensors")) and not any(out.glob("fold0/done.json")):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} failed")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()


def fit(photos: int, runs: int) -> dict[str, float]:
    """Median seconds until the first step, and of the imports, in turn; the first fit is told apart."""
    from speed import write_many

    import fastmask as fm
    from fastmask.data.sample import cached_sample

    times = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="fastmask-start-") as folder:
        data = Path(folder) / "train"
        write_many(fm.read_contest(cached_sample(log=print) / "train"), data, photos)
        # digests of files that were written lately are not remembered
        time.sleep(5)
        cache = Path(folder) / "cache"
        first = first_step(data, Path(folder) / "first", cache)
        for run in range(runs):
            times["imports"].append(seconds([sys.executable, "-c", IMPORTS]))
            times["fit"].append(first_step(data, Path(folder) / f"run{run}", cache))
    return {"first fit": first, **{name: median(each) for name, each in times.items()}}


def main(
    runs: Annotated[int, typer.Argument()] = 15,
    photos: Annotated[int | None, typer.Option(help="Also time a fit of so many photos.")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "empty typer --help": [sys.executable, str(empty), "--help"],
            "fastmask --help": [sys.executable, "-m", "fastmask", "--help"],
            "import fastmask": [sys.executable, "-c", "import fastmask"],
        }
        times = {name: [] for name in commands}
        for _ in range(runs + 1):
            for name, command in commands.items():
                times[name].append(seconds(command))
    middle = {name: median(each[1:]) for name, each in times.items()}  # the first warms the disk's cache
    for name, value in middle.items():
        print(f"{name:20} {value:.3f} s")
    ratio = middle["fastmask --help"] / middle["empty typer --help"]
    print(f"fastmask --help takes {ratio:.2f} times an empty typer program")
    if photos is not None:
        found = fit(photos, runs)
        for name, value in found.items():
            print(f"{name:20} {value:.2f} s")
        print(
            f"a fit of {photos} photos takes {found['fit'] / found['imports']:.2f} times the imports to its first step"
        )


if __name__ == "__main__":
    typer.run(main)
