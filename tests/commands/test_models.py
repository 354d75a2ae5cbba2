"""archs and screen."""

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

DONE, FAILED, INVALID = 0, 1, 2
Command = Callable[..., Any]


def test_archs_lists_what_matches(fastmask: Command) -> None:
    lines = fastmask("archs", "resnet1*t*").out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    (line,) = (line for line in lines if line.startswith("resnet10t "))
    # 5.4 M with a classifier of 1000 classes
    assert "4.9 M" in line
    assert "resnet10t.c3_in1k" in line
    assert fastmask("archs", "test_vit3").code == DONE
    assert "nearest" in fastmask("archs", "resnett18").errors[0]


@pytest.fixture
def options(contest: Path, small_settings: dict[str, Any], tmp_path: Path) -> list[str]:
    """Options of a screening that takes seconds."""
    file = tmp_path / "small.yaml"
    pipelines = {name: small_settings[name] for name in ("train_pipeline", "valid_pipeline")}
    file.write_text(yaml.safe_dump(pipelines))
    return ["--data", str(contest), "--config", str(file), "--folds", "3", "--no-pretrained"]


def test_screen_ranks_bodies_and_its_oof_can_be_compared(
    options: list[str], finished_run: Run, fastmask: Command
) -> None:
    words = (
        "screen",
        *options,
        "--archs",
        "test_resnet,test_vit",
        "--cache-dir",
        "kept",
        "--bs",
        16,
        "--stratify",
        "age",
    )
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
        (["--archs", "test_vit", "--oof", "oof"], ["test_vit.csv exists"]),
    ],
)
def test_invalid_options_of_screen(
    words: list[str], named: list[str], options: list[str], work: Path, invalid: Command
) -> None:
    (work / "oof").mkdir()
    (work / "oof" / "test_vit.csv").write_text("mine")
    invalid("screen", *options, *words, named=named)


def test_screen_has_no_options_of_training() -> None:
    screen = typer.main.get_command(cli.app).commands["screen"]  # type: ignore[attr-defined]
    assert {p.name for p in screen.params} & set(Config.of_kind(Kind.TRAINING)) == {"bs"}
