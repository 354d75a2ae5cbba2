"""The command line on what to choose: compare, screen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
import yaml

from fastmask.api import Run
from fastmask.commands import main as cli
from fastmask.config import Config, Kind
from fastmask.evaluation.comparison import compare

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2
Command = Callable[..., Any]


def test_compare_prints_results_side_by_side(
    finished_run: Run, run_copy: Path, fastmask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = fastmask(
        "compare", finished_run.path, run_copy, "--names", "first,second", "--out", "c.csv", "--plot", "c.png"
    )
    assert answer.code == DONE, answer.errors
    assert answer.out == f"{compare([finished_run, run_copy], ['first', 'second'])}\n"
    assert pd.read_csv("c.csv")["name"].tolist() == ["first", "second"]
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    plain = json.loads(fastmask("compare", finished_run.path, run_copy, "--draws", 200, "--json").out)
    assert plain["results"][0]["joint"]["macro_f1"] == finished_run.score(draws=0).joint.macro_f1
    assert plain["results"][1]["against"]["p"] == 1


def test_compare_fits_its_tables_into_the_terminal(
    finished_run: Run, run_copy: Path, fastmask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    narrow = fastmask("compare", finished_run.path, run_copy).out
    assert narrow == compare([finished_run, run_copy]).text(60) + "\n"


def test_compare_refuses_what_is_asked_wrongly_and_leaves_files_alone(
    finished_run: Run, run_copy: Path, work: Path, refused: Callable[..., str]
) -> None:
    (work / "mine.csv").write_text("mine")
    runs = (finished_run.path, run_copy)
    assert "mine.csv exists" in refused(ASKED_WRONGLY, "compare", *runs, "--out", "mine.csv")
    assert "ending in .png" in refused(ASKED_WRONGLY, "compare", *runs, "--plot", "c.jpg")
    assert "two results or more" in refused(ASKED_WRONGLY, "compare", run_copy)
    assert "not a run" in refused(ASKED_WRONGLY, "compare", run_copy, work)
    assert "no column 'path'" in refused(FAILED, "compare", run_copy, "mine.csv")
    (run_copy / "oof.csv").unlink()
    assert "has not finished" in refused(ASKED_WRONGLY, "compare", *runs)


def test_compare_never_writes_over_what_it_reads(finished_run: Run, work: Path, refused: Callable[..., str]) -> None:
    finished_run.oof.to_csv(work / "theirs.csv", index=False)
    words = ("compare", finished_run.path, "theirs.csv", "--out", "theirs.csv", "--overwrite")
    assert "is an input" in refused(ASKED_WRONGLY, *words)


@pytest.fixture
def small(contest: Path, small_settings: dict[str, Any], tmp_path: Path) -> list[str]:
    """Options of a screening on little."""
    file = tmp_path / "small.yaml"
    pipelines = {name: small_settings[name] for name in ("train_pipeline", "valid_pipeline")}
    file.write_text(yaml.safe_dump(pipelines))
    return ["--data", str(contest), "--config", str(file), "--folds", "3", "--no-pretrained"]


def test_screen_ranks_bodies_and_its_oof_can_be_compared(
    small: list[str], finished_run: Run, fastmask: Command
) -> None:
    words = ("screen", *small, "--archs", "test_resnet,test_vit", "--cache-dir", "kept", "--bs", 16)
    answer = fastmask(*words, "--out", "s.csv", "--oof", "oof")
    assert answer.code == DONE, answer.errors
    frame = pd.read_csv("s.csv")
    assert answer.out.splitlines()[1].split()[:2] == ["1", frame["arch"].iloc[0]]
    assert set(frame["arch"]) == {"test_resnet", "test_vit"}
    assert any(line.startswith("test_vit: features in ") for line in answer.err)
    plain = json.loads(fastmask(*words, "--json").out)
    assert [row["arch"] for row in plain["ranking"]] == frame["arch"].tolist()
    assert [row["kept"] for row in plain["ranking"]] == [True, True]
    assert plain["ranking"][0]["joint"]["macro_f1"] == pytest.approx(frame["macro_f1"].iloc[0])
    beside = json.loads(fastmask("compare", finished_run.path, "oof/test_vit.csv", "--json").out)
    vit = frame[frame["arch"] == "test_vit"].iloc[0]
    assert beside["results"][1]["joint"]["macro_f1"] == pytest.approx(vit["macro_f1"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--archs", "resnet1000"], ["no arch 'resnet1000'", "resnet101"]),
        (["--archs", "test_vit,"], ["--archs test_vit,", "different names"]),
        (["--archs", "test_vit", "--weights", "x.pth"], ["--weights x.pth", "ARCH=FILE"]),
        (["--archs", "test_vit", "--weights", "test_vit=x.pth"], ["x.pth does not exist"]),
        (["--archs", "test_vit", "--weights", "test_vit=x", "--weights", "test_vit=y"], ["test_vit=y: test_vit has x"]),
        (["--archs", "test_vit", "--weights", "resnet18=x.pth"], ["'resnet18' is not in --archs"]),
        (["--archs", "test_vit", "--folds", "99"], ["only 12 persons"]),
        (["--archs", "test_vit", "--device", "abacus"], ["'abacus'"]),
    ],
)
def test_screen_asked_wrongly_is_refused(
    words: list[str], named: list[str], small: list[str], refused: Callable[..., str]
) -> None:
    sentence = refused(ASKED_WRONGLY, "screen", *small, *words)
    assert [part for part in named if part not in sentence] == []


def test_screen_leaves_files_alone(small: list[str], work: Path, refused: Callable[..., str]) -> None:
    (work / "oof").mkdir()
    (work / "oof" / "test_vit.csv").write_text("mine")
    sentence = refused(ASKED_WRONGLY, "screen", *small, "--archs", "test_vit", "--oof", "oof")
    assert "test_vit.csv exists" in sentence


def test_screen_offers_no_option_of_training_alone() -> None:
    screen = typer.main.get_command(cli.app).commands["screen"]  # type: ignore[attr-defined]
    assert {p.name for p in screen.params} & set(Config.of_kind(Kind.TRAINING)) == {"bs"}
