"""Every example runs."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import fastmask as fm

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = ["arch=test_resnet", "epochs=1", "folds=2", "resize=[32, 16]"]


@pytest.fixture
def example(monkeypatch):
    """Runs an example as the command line does."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


@pytest.mark.slow
def test_leak(example, contest, tmp_path, capsys):
    example("leak.py", contest, tmp_path / "leak", *TINY)
    whole, split = capsys.readouterr().out.splitlines()[1:]
    assert whole.startswith("persons whole    macro-F1 0.")
    assert split.startswith("persons split    macro-F1 0.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_heads", "generation"),
        ("own_augmentation", "torch.Size([32, 3, 512, 384])"),
        ("own_loss", "age"),
        ("own_body", "1 photo predicted"),
    ],
)
def test_custom_parts(name, said, example, contest, tmp_path, capsys):
    example(f"{name}.py", contest, tmp_path / "run", *(pair for pair in TINY if not pair.startswith("arch")))
    out = capsys.readouterr().out
    assert "macro-F1" in out
    assert said in out


def test_picture(example, finished_run, tmp_path):
    example("picture.py", finished_run.path, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size[0] > 800


@pytest.mark.slow
def test_start(example, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    with pytest.raises(SystemExit, match="0"):
        example("benchmarks/start.py", 1, "--photos", 140)
    out = capsys.readouterr().out
    assert "times an empty typer program" in out
    assert "a fit of 140 photos takes " in out


@pytest.mark.slow
def test_threads(loaded, capsys):
    loaded("benchmarks/threads").main(["test_resnet"], 1, 0.1)
    assert re.search(r"busy: chosen [0-9.]+ times idle.*\n.*five [0-9.]+ times", capsys.readouterr().out)


@pytest.mark.slow
def test_bodies(example, capsys):
    example("benchmarks/bodies.py", 2, "test_resnet", "test_vit")
    assert {"test_resnet", "test_vit"} <= set(capsys.readouterr().out.split())


@pytest.mark.slow
def test_faults(example, contest, tmp_path, capsys):
    example("benchmarks/faults.py", contest, tmp_path / "work")
    assert "found 12 of 12" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "left"),
    [
        # a batch, the finder's curve, results, a confusion matrix
        ("first_run", 4, "submission.csv"),
        # a confusion matrix, where the network looks
        ("own_data", 2, "runs/own/scores.json"),
        # curves, two confusion matrices, the highest losses, where the network looks
        ("reading_a_run", 5, "runs/read/scores.json"),
    ],
)
def test_notebook(name, count, left, tmp_path):
    source = (EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "persons=80" in source
    source = source.replace("persons=80", "persons=30").replace("epochs=6", "epochs=2")
    notebook = nbformat.reads(source, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == count
    assert (tmp_path / left).is_file()


@pytest.mark.parametrize("name", ["first_run", "own_data", "reading_a_run"])
def test_the_saved_notebook_is_an_executed_one(name):
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


# twelve persons are few for five folds
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")
def test_adamp_step(example, contest, monkeypatch, capsys):
    monkeypatch.setattr("fastmask.data.sample.cached_sample", lambda **_: contest)
    example("benchmarks/adamp_step.py", "test_resnet")
    out = capsys.readouterr().out
    assert float(re.search(r"after 50 steps: (\S+)", out)[1]) <= 1e-5
    assert float(re.search(r"channel by channel (\S+?),", out)[1]) > 1


@pytest.mark.slow
def test_coverage(example, capsys):
    example("benchmarks/coverage.py", 20, "accuracy 0.95")
    out = capsys.readouterr().out
    covered = {
        (method, part): float(percent)
        for method, part, percent in re.findall(r"(\w+) +(joint|head) +accuracy +(\S+)%", out)
    }
    # with 10 persons the percentiles often say 1 … 1
    assert covered["fastmask", "joint"] >= 85
    assert covered["percentile", "joint"] < 70


@pytest.mark.slow
def test_chance(example, tmp_path, capsys):
    example("benchmarks/chance.py", tmp_path / "work", 24, 2)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 13
    assert rows[0].startswith("persons split ")
    assert rows[-1].split()[-1] == "refused"


@pytest.mark.slow
def test_strata(example, capsys):
    example("benchmarks/strata.py", 2, 60)
    rows = [re.split(r"  +", row.strip()) for row in capsys.readouterr().out.splitlines()[1:-1]]
    gap = {(data, strata): float(mean.split(",")[0]) for _, data, strata, mean, *_ in rows}
    assert gap["contest", "joint"] <= 1 < gap["contest", "one head"]
    heads = {(data, strata): float(spread.rstrip("%")) for _, data, strata, _, spread, _ in rows}
    assert heads["sources", "joint"] < heads["sources", "combined"]


@pytest.mark.slow
def test_decisions(example, capsys):
    example("benchmarks/decisions.py", 1)
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:3] == ["persons", "plain", "f1"]
    # of ways fitted on 2,700 persons, that to decide for macro-F1 beats the most probable class
    assert float(rows[3].split()[2]) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # few persons
def test_score(example, tmp_path, capsys):
    """Each way of training answers the same persons, whom nothing was trained on; a second time nothing is trained."""
    fm.write_sample(tmp_path / "drawn", 60)
    small = (
        "--crop",
        400,
        200,
        "--size",
        64,
        32,
        "--arch",
        "test_resnet",
        "--epochs",
        1,
        "--draws",
        1,
        "--seconds",
        75,
    )
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            example("benchmarks/score.py", tmp_path / "drawn" / "train", tmp_path / "out", *small)
        rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 7
    found = pd.read_csv(tmp_path / "out" / "score.csv")
    assert found["method"].tolist() == ["loop", "fastai", "report", "winner", "strong", "strong in a third"]
    assert found["held out"].between(0, 1).all()
    assert (found["seconds"][2:] <= 90).all()
    held = [pd.read_csv(file)["photo"].tolist() for file in (tmp_path / "out" / "draw0").glob("*/answers.csv")]
    assert len(held) == 6
    assert all(each == held[0] for each in held)
    trained = pd.read_csv(tmp_path / "out" / "draw0" / "strong" / "run" / "folds.csv")["path"]
    assert not set(trained) & set(held[0])
    assert len(trained) + len(held[0]) == 420
    assert Image.open(tmp_path / "out" / "score.png").size[0] > 800


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # twelve persons are few
def test_parts(example, contest, tmp_path, capsys):
    """A row beside the recipe itself; a second time nothing is trained."""
    tiny = ("--arch", "test_resnet", "--folds", 2, "--seeds", 2, "--set", "epochs=1", "--set", "resize=[32,16]")
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            example("benchmarks/parts.py", contest, tmp_path / "out", "--row", "strong", "--row", "focal loss", *tiny)
        lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["row strong", "row focal loss"]
    found = pd.read_csv(tmp_path / "out" / "parts.csv")
    assert found["macro-F1"].between(0, 1).all()
    assert found["minus strong"].notna().tolist() == [False, True]
    # chance is log 3 + log 2 + log 3
    assert found["log loss"].between(1, 6).all()
    runs = [fm.Run.load(tmp_path / "out" / name) for name in ("strong-0", "focal-loss-0", "strong-1")]
    assert [run.config.seed for run in runs] == [0, 0, 1]
    assert (runs[0].folds["fold"] == runs[1].folds["fold"]).all()


@pytest.mark.slow
def test_other_photos(example, monkeypatch, tmp_path):
    """Two data sets that are read with their heads."""
    example("benchmarks/other_photos.py", tmp_path)
    for name, heads in (("digits", ["left", "right", "ink"]), ("shapes", ["shape", "pattern", "size"])):
        table = fm.read_csv(tmp_path / name / "photos.csv", heads=heads)
        assert len(table) >= 700
        assert set(table.heads.names) == set(heads)


@pytest.fixture
def loaded(monkeypatch):
    """Imports an example's module."""

    def load(name):
        file = EXAMPLES / f"{name}.py"
        monkeypatch.syspath_prepend(file.parent)
        return importlib.import_module(file.stem)

    return load


@pytest.mark.slow
def test_gpu(loaded, monkeypatch):
    """On a CPU its tests are skipped; all else is measured there, with the smallest of networks."""
    gpu = loaded("benchmarks/gpu")
    monkeypatch.setattr(gpu, "ARCHS", ("test_resnet",))
    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(gpu, "SECONDS", 0.5)
    monkeypatch.setattr(gpu, "COPIES", 1)
    monkeypatch.setattr(gpu, "BATCH", 8)
    # test_speed.py has the job
    monkeypatch.setattr(gpu, "PARTS", {name: part for name, part in gpu.PARTS.items() if name != "job"})
    rows = {each["what"]: each for each in gpu.measure(600)}
    # a test's is 1
    aims = {what: each for what, each in rows.items() if each["at least"] not in ("", 1)}
    assert [each["at least"] for each in aims.values()] == [0.97, 2, 10]
    assert all(each["found"] > 0.1 for each in aims.values())
    if not torch.cuda.is_available():
        skipped = [what for what, each in rows.items() if str(each["found"]).startswith("skipped: needs a GPU")]
        assert len(skipped) > 15


@pytest.mark.slow
def test_large(example, tmp_path, capsys):
    """Each part is measured."""
    with pytest.raises(SystemExit, match="0"):
        example("benchmarks/large.py", 1400, "--json", tmp_path / "large.json")
    found = pd.read_json(tmp_path / "large.json")
    parts = ["digests", "digests again", "folds", "map", "map again", "report", "run", "score", "table"]
    assert found["part"].tolist() == parts
    assert (found["seconds"] > 0).all()
    assert found["MB"].between(50, 2000).all()


@pytest.mark.slow
def test_planted(example, contest, run_copy, tmp_path, capsys):
    example("benchmarks/planted.py", "--plant", contest, tmp_path / "planted.csv")
    assert "planted.csv: 2 wrong labels" in capsys.readouterr().out
    example("benchmarks/planted.py", run_copy, tmp_path / "planted.csv")
    assert capsys.readouterr().out.splitlines()[-1].startswith("all heads")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")  # twelve persons are few
def test_ablation(example, contest, tmp_path, capsys):
    """A step of the ladder, an option and one that only answers otherwise; a second time nothing is trained."""
    settings = [part for pair in (*TINY[1:], "bs=16") for part in ("--set", pair)]
    arguments = [contest, tmp_path / "out", "--arch", "test_resnet", *settings]
    rows = ["focal", "mean of the folds", "three heads", "mix-up", "flip"]
    chosen = [part for name in rows for part in ("--row", name)]
    for _ in range(2):
        with pytest.raises(SystemExit) as done:
            example("ablation.py", *arguments, *chosen)
        assert done.value.code == 0
    err = capsys.readouterr().err
    assert err.count("fold 1/2 epoch 1/1") == len({"cross-entropy", "focal", "three heads", "mix-up"})
    table = pd.read_csv(tmp_path / "out" / "ablation.csv")
    assert table["row"].tolist() == rows
    by_row = table.set_index("row")
    # the same models out of fold; held out they answer together
    assert by_row["oof"]["mean of the folds"] == by_row["oof"]["focal"]
    run = fm.Run.load(tmp_path / "out" / "three-heads")
    assert by_row["oof"]["three heads"] == pytest.approx(run.score(draws=0).joint.macro_f1, abs=1e-4)
    # persons that are held out are in no fold
    persons = set(run.folds["person"])
    assert len(persons) + len(set(fm.read_contest(contest).persons) - persons) == 12
    assert len(persons) < 12


@pytest.mark.slow
def test_load(example, finished_run, contest, tmp_path, capsys):
    """The server answers all clients, each as predict_onnx.py, beside photos that are broken or too large."""
    exported = fm.export_onnx(finished_run, tmp_path / "model.onnx")
    words = ("--requests", 60, "--threads", 1)
    example("benchmarks/load.py", exported.model, contest / "eval" / "images", *words)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["clients", "requests", "held", "lost", "wrong"]
    assert [row.split()[:5] for row in rows] == [[str(n), "60", "60", "0", "0"] for n in (1, 8, 32, 128)]
