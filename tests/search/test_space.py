import json
import math

import pytest

from fastmask.config import Config, Kind
from fastmask.search.space import OUTSIDE, Choices, Range, Space, parse_space, read_space
from fastmask.system.errors import UsageError
from fastmask.system.files import write_yaml
from fastmask.system.yaml_text import parse_yaml

YAML = """
lr: {low: 1e-4, high: 0.01, log: true}
epochs: {low: 2, high: 10, step: 4}
mixup: [0, 4e-1]
sched: {choices: [onecycle, cosine]}
pretrained: [true, false]
bs: [auto, 16]
focal-gamma: {low: 0, high: 2, step: 0.5}
head_weights: [null, {age: 2}]
"""


class Asked:
    """A trial that takes the last value of each, and remembers what it was asked."""

    def __init__(self):
        self.asked = {}

    def suggest_float(self, name, low, high, *, step, log):
        self.asked[name] = (low, high, step, log)
        return high

    suggest_int = suggest_float

    def suggest_categorical(self, name, choices):
        self.asked[name] = choices
        return choices[-1]


def test_a_space_is_read_and_proposes_settings(tmp_path):
    (tmp_path / "space.yaml").write_text(YAML)
    space = read_space(tmp_path / "space.yaml")
    trial = Asked()
    assert {one.name: one.suggest(trial) for one in space} == {
        "lr": 0.01,
        "epochs": 10,
        "mixup": 0.4,
        "sched": "cosine",
        "pretrained": False,
        "bs": 16,
        "focal_gamma": 2.0,
        "head_weights": {"age": 2},
    }
    assert trial.asked["lr"] == (0.0001, 0.01, None, True)
    assert trial.asked["epochs"] == (2, 10, 4, False)
    assert trial.asked["focal_gamma"] == (0.0, 2.0, 0.5, False)
    # a study stores texts
    assert [json.loads(text) for text in trial.asked["head_weights"]] == [None, {"age": 2}]
    stored = {"head_weights": json.dumps({"age": 2}), "lr": 0.003}
    assert space.values_of(stored) == {"lr": 0.003, "head_weights": {"age": 2}}


def test_whole_numbers_stay_whole():
    made = parse_space({"epochs": {"low": 2.0, "high": 8}, "bs": {"low": 8, "high": 16}})
    assert all(type(end) is int for one in made for end in (one.low, one.high))
    assert [one.suggest(Asked()) for one in made] == [8, 16]


def test_a_space_that_is_written_is_read_as_the_same(tmp_path):
    space = parse_space(parse_yaml(YAML))
    write_yaml(tmp_path / "again.yaml", space.to_plain())
    assert read_space(tmp_path / "again.yaml") == space
    assert space != Space((Range("lr", 0.1, 0.2), Choices("sched", ("onecycle", "cosine"))))


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({}, "holds no settings; expected lines such as 'lr: {low: 0.0001, high: 0.01, log: true}'"),
        ({"lrr": [1, 2]}, "There is no setting 'lrr'; did you mean 'lr'"),
        ({"seed": [0, 1]}, "seed cannot be searched, because it decides what is scored"),
        ({"folds-file": ["a", "b"]}, "folds_file cannot be searched, because it decides what is scored"),
        ({"device": ["cpu", "cuda:0"]}, "device cannot be searched, because it belongs to the machine"),
        ({"weights": ["a", "b"]}, "makes the scores of some trials too good"),
        ({"refit": [0, 2]}, "trains after the score is computed"),
        ({"lr": 0.1}, "lr is 0.1; expected low and high, or choices"),
        ({"lr": {}}, "lr is {}; expected low and high, or choices"),
        ({"lr": {"low": 0.1}}, "lr has no high"),
        ({"lr": {"low": 0.1, "high": 0.2, "base": 2}}, "lr has 'base'; expected low, high, log and step"),
        ({"lr": {"low": 0.1, "choices": [0.1, 0.2]}}, "lr has choices and low"),
        ({"lr": {"low": 0.2, "high": 0.1}}, "lr goes from low 0.2 to high 0.1; expected low below high"),
        ({"lr": {"low": "little", "high": 1}}, "lr has low 'little'; expected a number"),
        ({"lr": {"low": True, "high": 2}}, "lr has low True; expected a number"),
        ({"lr": {"low": math.nan, "high": 1}}, "lr has low nan; expected a number"),
        ({"epochs": {"low": 0.5, "high": 2}}, "epochs has low 0.5; expected a whole number"),
        ({"wd": {"low": 0, "high": 1, "log": True}}, "wd has log from low 0; a logarithmic range starts above 0"),
        ({"wd": {"low": 1, "high": 2, "log": True, "step": 1}}, "wd has log with step"),
        ({"wd": {"low": 1, "high": 2, "log": "yes"}}, "wd has log 'yes'; expected true or false"),
        ({"wd": {"low": 0, "high": 1, "step": 0.3}}, "is not a multiple of step 0.3"),
        ({"lr": {"low": 0, "high": 1}}, "Setting lr: found 0.0, expected a number above 0"),
        ({"drop_rate": {"low": 0, "high": 1}}, "Setting drop_rate: found 1.0, expected a number from 0 and below 1"),
        ({"sched": {"low": 1, "high": 2}}, "sched is not a number"),
        ({"sched": ["onecycle"]}, "expected a list of 2 to 100"),
        ({"sched": ["onecycle", "luck"]}, "Setting sched"),
        ({"lr": [0.1, "1e-1"]}, "lr has the choice 0.1 twice"),
        ({"unfreeze": [None, None]}, "has the choice None twice"),
    ],
)
def test_what_no_space_has_is_refused(plain, words):
    with pytest.raises(UsageError) as caught:
        parse_space(plain)
    assert words in str(caught.value)
    assert str(caught.value)[-1] in ".?"


@pytest.mark.parametrize("name", Config.model_fields)
def test_what_may_be_searched_follows_from_the_kind_of_a_setting(name):
    fixed = Kind.TABLE | Kind.SCORED | Kind.FLATTERING | Kind.MACHINE | Kind.NUMERICS | Kind.FAULT | Kind.UNSCORED
    assert (name in OUTSIDE) == (name in Config.of_kind(fixed))
    if name in OUTSIDE:
        with pytest.raises(UsageError, match=f"{name} cannot be searched, because it"):
            parse_space({name: [0, 1]})


def test_where_and_how_fast_to_train_cannot_be_searched():
    assert {"launcher", "address", "per_fold", "fetch", "cache", "workers", "device", "seed"} < set(OUTSIDE)
    assert not {"lr", "arch", "crop", "loss", "half_cutmix", "monitor", "extra", "boxes"} & set(OUTSIDE)
