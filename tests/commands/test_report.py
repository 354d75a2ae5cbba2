"""The command report, and what fit leaves of one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from fastmask.api import Run
from fastmask.report import write
from fastmask.system.files import write_yaml

DONE, INVALID = 0, 2


@pytest.fixture
def fit(work: Path, small_settings: dict[str, Any], contest: Path) -> list[str]:
    file = work.parent / "settings.yaml"
    write_yaml(file, {**small_settings, "data": str(contest), "epochs": 1})
    return ["fit", "--config", str(file), "--out", "run"]


def test_a_fit_ends_with_a_report(
    fit: list[str], fastmask: Callable[..., Any], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "make_sections", lambda _: [])
    answer = fastmask(*fit)
    assert answer.code == DONE
    assert answer.out == f"{Run.load(work / 'run').score()}\n"
    assert answer.err[-1].startswith("Report: run/report.html: ")
    assert (work / "run" / "report.html").is_file()
    again = fastmask("report", "run")
    assert (again.code, again.out.split(": ")[0]) == (DONE, "run/report.html")
    # such a run is resumed and replaced as any other
    assert fastmask(*fit, "--resume", "--no-report").code == DONE
    assert fastmask(*fit, "--overwrite", "--no-report").code == DONE
    assert not (work / "run" / "report.html").exists()


def test_a_report_that_fails_leaves_the_run_complete(
    fit: list[str], fastmask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(write, "make_sections", fails)
    answer = fastmask(*fit)
    assert answer.code == DONE
    assert "macro-F1" in answer.out
    assert answer.warnings == [
        "The run is complete, but its report is not written (a bug); to try again: fastmask report run"
    ]


@pytest.mark.slow
def test_a_report_says_where_it_is_and_what_it_lacks(
    run_copy: Path, fastmask: Callable[..., Any], finished_run: Run
) -> None:
    environment = json.loads((run_copy / "environment.json").read_text())
    environment["photos"]["root"] = "gone"
    (run_copy / "environment.json").write_text(json.dumps(environment))
    config = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(config.replace(f"data: {finished_run.config.data}", "data: gone"))
    answer = fastmask("report", run_copy)
    assert answer.code == DONE
    assert answer.out.startswith(f"{run_copy / 'report.html'}: ")
    left = [line.split(":")[1].strip() for line in answer.err if line.startswith("Left out: ")]
    assert left == [
        *("The most confident mistakes", "Suspicious labels", "Where the networks look"),
        "Training photos as the network sees them",
    ]
    assert answer.err[-1].startswith(f"Written: {run_copy / 'report.html'}, {run_copy / 'README.md'}, ")
    (run_copy / "README.md").write_text("mine")
    answer = fastmask("report", run_copy, "--data", finished_run.config.data)
    assert [line for line in answer.err if line.startswith("Left out")] == []
    assert any("README.md was changed by hand and is kept" in line for line in answer.err)
    assert (run_copy / "README.md").read_text() == "mine"


def test_invalid_arguments_of_report(run_copy: Path, invalid: Callable[..., None], work: Path) -> None:
    invalid("report", work, named=["is not a run directory"])
    (run_copy / "oof.csv").unlink()
    invalid("report", run_copy, named=["has not finished"])
    (work / "there").mkdir()
    (work / "there" / "x").write_text("x")
    invalid("report", run_copy, "--out", "there", named=["which is not part of a report"])


@pytest.mark.parametrize("option", ["--data", "--images"])
def test_a_place_without_the_photos_is_refused(
    run_copy: Path, invalid: Callable[..., None], work: Path, option: str
) -> None:
    (work / "empty").mkdir()
    for command in ("report", "app"):
        invalid(command, run_copy, option, "nowhere", named=["nowhere is not a folder"])
        invalid(command, run_copy, option, "empty", named=["empty lacks 84 of the photos of"])


@pytest.mark.slow
def test_a_notebook_shows_each_picture_once(finished_run: Run) -> None:
    """With pyplot and without it."""
    notebook = nbformat.v4.new_notebook()
    path = finished_run.oof["path"][0]
    cells = [
        f"import fastmask as fm\nrun = fm.Run.load({str(finished_run.path)!r})\nrun",
        "run.plot_curves()",
        "run.plot_confusion('age')",
        f"run.explain({path!r}, ['mask'])",
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nrun.top_losses(2)",
        "run.plot_confusion()",
        "plt.get_fignums()",
    ]
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    shown = [[output["data"] for output in cell["outputs"] if "data" in output] for cell in notebook.cells]
    assert [len(outputs) for outputs in shown] == [1] * len(cells)
    assert "macro-F1" in shown[0][0]["text/html"]
    assert [sum("image/png" in data for data in outputs) for outputs in shown] == [0, 1, 1, 1, 1, 1, 0]
    assert shown[-1][0]["text/plain"] == "[]"
