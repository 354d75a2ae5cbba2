"""The command line of a search."""

import json
from importlib.util import find_spec

import pytest

import fastmask.search.study as study
from fastmask.system.files import write_yaml

DONE, ASKED_WRONGLY = 0, 2


@pytest.fixture
def space(work):
    (work / "space.yaml").write_text("lr: {low: 1e-3, high: 1e-2, log: true}\n")
    return work / "space.yaml"


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


def test_tune_is_refused_before_anything_starts(contest, work, space, refused, monkeypatch):
    words = ("tune", "--data", contest, "--out", "t")
    assert "needs --space" in refused(ASKED_WRONGLY, *words)
    assert "nobody.yaml does not exist" in refused(ASKED_WRONGLY, *words, "--space", "nobody.yaml")
    space.write_text("seed: [0, 1]\n")
    assert "space.yaml: seed is no part of a search" in refused(ASKED_WRONGLY, *words, "--space", space)
    space.write_text("lr: [0.1, 0.2]\n")
    assert "no pruner 'axe'" in refused(ASKED_WRONGLY, *words, "--space", space, "--pruner", "axe")
    assert "--trials is 0" in refused(ASKED_WRONGLY, *words, "--space", space, "--trials", 0)
    assert "is not a search" in refused(ASKED_WRONGLY, "tune", "--resume", "--out", work)
    monkeypatch.setattr(study, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    assert 'pip install "fastmask[tune]"' in refused(ASKED_WRONGLY, *words, "--space", space)
