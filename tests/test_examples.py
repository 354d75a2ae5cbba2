"""Every example runs."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = ["arch=test_resnet", "epochs=1", "folds=2", "resize=[32, 16]"]


@pytest.fixture
def example(monkeypatch):
    """Runs an example as the command line does."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_leak(example, contest, tmp_path, capsys):
    example("leak.py", contest, tmp_path / "leak", *TINY)
    whole, split = capsys.readouterr().out.splitlines()[1:]
    assert whole.startswith("persons whole    macro-F1 0.")
    assert split.startswith("persons split    macro-F1 0.")


def test_picture(example, finished_run, tmp_path):
    example("picture.py", finished_run.path, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size[0] > 800


def test_start(example, capsys):
    example("benchmarks/start.py", 1)
    assert "times an empty typer program" in capsys.readouterr().out
