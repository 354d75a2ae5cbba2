"""The command line of a search."""

import json
from importlib.util import find_spec

import pytest
import typer

import fastmask.search.spec as spec
import fastmask.search.study as study
from fastmask.commands import main as cli
from fastmask.config import Config, Kind
from fastmask.system.files import write_yaml

DONE, INVALID = 0, 2


@pytest.fixture
def space(work):
    (work / "space.yaml").write_text("lr: {low: 1e-3, high: 1e-2, log: true}\n")
    return work / "space.yaml"


@pytest.mark.slow
def test_tune_prints_the_trials_and_nothing_else(contest, small_settings, work, space, fastmask):
    write_yaml(work / "base.yaml", {**small_settings, "epochs": 1, "data": str(contest)})
    answer = fastmask("tune", "--config", "base.yaml", "--space", space, "--out", "t", "--trials", 1)
    assert answer.code == DONE, answer.errors
    assert answer.out.startswith("trial  macro-F1")
    assert "1 trials: 1 complete." in answer.out
    assert answer.err[-1].endswith("Next: fastmask fit --config t/best.yaml --out runs/t")
    again = fastmask("tune", "--resume", "--out", "t", "--json")
    assert again.code == DONE, again.errors
    plain = json.loads(again.out)
    assert plain["best"] == 0
    assert plain["settings"]["lr"] == plain["trials"][0]["lr"]


def test_tune_is_refused_before_anything_starts(contest, work, space, invalid, monkeypatch):
    words = ("tune", "--data", contest, "--out", "t")
    invalid(*words, named=["needs --space"])
    invalid(*words, "--space", "nowhere.yaml", named=["nowhere.yaml does not exist"])
    space.write_text("seed: [0, 1]\n")
    invalid(*words, "--space", space, named=["space.yaml: seed cannot be searched"])
    space.write_text("lr: [0.1, 0.2]\n")
    invalid(*words, "--space", space, "--pruner", "axe", named=["no pruner 'axe'"])
    invalid(*words, "--space", space, "--trials", 0, named=["--trials is 0"])
    invalid("tune", "--resume", "--out", work, named=["is not a search"])
    monkeypatch.setattr(study, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    invalid(*words, "--space", space, named=['pip install "fastmask[tune]"'])


def test_tune_has_no_option_of_what_a_search_refuses():
    options = {parameter.name for parameter in typer.main.get_command(cli.app).commands["tune"].params}
    refused = set(Config.of_kind(Kind.RESTATED | Kind.UNSCORED))
    # its own limit of time
    assert options & refused == {"hours"}
    assert set(spec._NO_BASE) <= refused
