"""The benchmark of speed runs, on few photos and the smallest of networks."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastmask import read_contest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "speed.py"
TINY = ["--archs", "test_resnet", "--rounds", "1", "--seconds", "1", "--bs", "8", "--folds", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def speed():
    """The script as a module, which its processes can import too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("speed")


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    """A folder for temporary folders, in which leftovers can be found."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_loader_and_step(speed, contest, temporary, capsys):
    speed.main(["loader", "step", "--data", str(contest), *TINY, "--json", str(temporary / "speed.json")])
    parts = json.loads((temporary / "speed.json").read_text())["parts"]
    uint8, float32, step = parts[0], parts[1], parts[-1]
    for loader, bound in ((uint8, ">= 20"), (float32, ">= 8")):
        targets = {row["what"]: row["target"] for row in loader["rows"] if row["target"]}
        assert targets == {"plain fastai": bound, "floor": ">= 0.8"}
        assert all(row["values"]["ms a photo"] > 0 for row in loader["rows"] if row["ratio"] is not None)
    assert [row["what"] for row in step["rows"]] == ["test_resnet, fastmask", "test_resnet, bare step"]
    assert step["rows"][0]["values"]["ms a step"] > 0
    assert "plain fastai" in capsys.readouterr().out
    assert [left.name for left in temporary.iterdir()] == ["speed.json"]


# some classes have one person; the other jobs load in processes
@pytest.mark.slow
@pytest.mark.semaphores
@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")
def test_job(speed, contest, temporary, capsys):
    few = ["--photos", "28", "--epochs", "1"]
    speed.main(["job", "--data", str(contest), *TINY, *few, "--json", str(temporary / "speed.json")])
    rows = json.loads((temporary / "speed.json").read_text())["parts"][0]["rows"]
    assert {"fastmask", "plain fastai", "timm"} <= {row["what"] for row in rows}
    assert all(row["values"]["s"] > 0 for row in rows)
    assert "2 folds of 1 epochs over 28 photos" in capsys.readouterr().out


def test_contestants_do_the_same_work(speed, contest, temporary):
    split = speed.split_of(read_contest(contest), 8, temporary / "photos", folds=2)
    plain = speed.fastai_loaders(split.table, split.folds, split.bs)
    ours = speed.fastmask_loaders(split)
    theirs = speed.timm_loader(split.table, split.training, split.bs)
    assert plain.train.n == ours.train.n == len(theirs.dataset) == len(speed.Floor(split).photos)
    # validation is deterministic, so that pixels can be compared; theirs differ by the decoding of PIL
    (x, y), (x_plain, y_plain) = ours.valid.one_batch(), plain.valid.one_batch()
    assert np.abs(np.asarray(x) - np.asarray(x_plain)).mean() < 0.01
    assert (np.asarray(y) == np.asarray(y_plain)).all()


# 20 persons
@pytest.mark.filterwarnings("ignore:Classes with fewer persons than the 5 folds")
def test_the_photos_of_memory_are_all_different(speed, contest, temporary):
    speed.write_many(read_contest(contest), temporary / "many", 140)
    table = read_contest(temporary / "many")
    assert len(table) == 140
    assert len({table.photo(row).read_bytes() for row in range(140)}) == 140
    speed.pass_over(str(temporary / "many"), str(temporary / "cache"), "0")
    assert next((temporary / "cache").glob("*.photos")).stat().st_size == 140 * 400 * 200 * 3


def test_memory_is_that_of_a_process_and_its_children(speed):
    assert os.getpid() in speed.family(os.getppid())
    assert speed.total(os.getpid()) >= speed.anonymous(os.getpid()) * 0.9 > 10**7


def test_an_unknown_part_is_refused(speed, capsys):
    with pytest.raises(SystemExit):
        speed.main(["lodaer"])
    assert "expected some of loader, step, job, memory" in capsys.readouterr().err
