"""Advice: each sign on figures made by hand, and what of it a run is told."""

import itertools
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from fastmask.api import Run
from fastmask.config import make_config
from fastmask.data.contest import contest_heads
from fastmask.evaluation import advice
from fastmask.evaluation.advice import (
    Curves,
    advise,
    decision_gain,
    diverges,
    is_at_chance,
    jumps,
    lagging_head,
    missed_class,
    overfits,
    read_curves,
    recalls,
    still_falls,
    underfits,
)
from fastmask.evaluation.decisions import decide
from fastmask.heads import Heads
from fastmask.system.files import write_csv, write_json

PHOTOS = 420
# losses of training and validation, and macro-F1, per epoch
OVERFIT = [0.86, 0.47, 0.24, 0.08], [0.71, 0.57, 0.72, 0.84], [0.15, 0.32, 0.40, 0.38]
UNDERFIT = [0.95, 0.90, 0.85, 0.80], [0.96, 0.92, 0.87, 0.82], [0.10, 0.15, 0.20, 0.25]
FINISHED = [0.95, 0.60, 0.50, 0.50], [0.96, 0.70, 0.62, 0.61], [0.10, 0.35, 0.41, 0.40]
RISEN = [0.95, 0.80, 1.50, 1.40], [0.96, 0.92, 1.60, 1.50], [0.10, 0.15, 0.02, 0.02]
STUCK = [0.95, 0.95, 0.95, 0.95], [0.96, 0.96, 0.96, 0.96], [0.02, 0.02, 0.02, 0.02]
UNSTEADY = [0.9, 0.7, 0.6, 0.5, 0.45, 0.45], [0.9, 0.7, 1.5, 0.7, 1.9, 0.6], [0.1, 0.3, 0.1, 0.3, 0.1, 0.35]
# of a run that has all that regularises
REGULAR = {"augment": ["flip", "randaugment"], "wd": 0.01, "mixup": 0.4, "label_smoothing": 0.1, "drop_rate": 0.2}


def curves(losses: Any) -> Curves:
    return Curves(*(np.array(row, dtype=float) for row in losses))


def labels() -> np.ndarray:
    """(PHOTOS, 3) labels of 60 persons, a third of whom are of each age."""
    persons = PHOTOS // 7
    gender, age = np.arange(persons) % 2, np.arange(persons) % 3
    return np.stack([np.tile([0, 0, 0, 0, 0, 1, 2], persons), gender.repeat(7), age.repeat(7)], axis=1)


def answers(y: np.ndarray, right: tuple[float, float, float], seed: int = 0) -> np.ndarray:
    """Probabilities of 0.8 of a class, which is the true one in a share `right` of the photos of each head."""
    rng, parts = np.random.default_rng(seed), []
    for i, size in enumerate(contest_heads().sizes):
        chosen = np.where(rng.random(len(y)) < right[i], y[:, i], (y[:, i] + 1) % size)
        parts.append(np.where(np.eye(size)[chosen] > 0, 0.8, 0.2 / (size - 1)))
    return np.concatenate(parts, axis=1)


@pytest.fixture
def trained(run_of: Callable[..., Run]) -> Callable[..., Run]:
    """Makes a run of two or more folds with these losses and metrics, and OOF predictions."""
    numbers = itertools.count()

    def make(losses: Any = FINISHED, right: Any = (0.9, 0.8, 0.8), y: Any = None, **settings: Any) -> Run:
        y = labels() if y is None else y
        probabilities = answers(y, right) if isinstance(right, tuple) else right
        folds = settings.pop("folds", 5)
        run = run_of(probabilities, y, f"made{next(numbers)}", folds=folds, **{"pretrained": True, **settings})
        train, valid, metric = losses
        history = pd.DataFrame({"epoch": range(len(train)), "train_loss": train, "valid_loss": valid})
        for fold in range(folds):
            write_csv(run.fold_path(fold) / "history.csv", history.assign(macro_f1=metric))
            write_csv(run.fold_path(fold) / "times.csv", history[["epoch"]].assign(seconds=9.0))
            write_json(run.fold_path(fold) / "done.json", {})
        write_json(run.path / "scores.json", {"folds": [{"joint": {"macro_f1": 0.3 + f / 10}} for f in range(folds)]})
        return Run.load(run.path)

    return make


@pytest.fixture
def lines(trained: Callable[..., Run]) -> Callable[..., list[str]]:
    """The advice on a run of `trained`, as text."""
    return lambda *given, **settings: list(map(str, trained(*given, **settings).advice()))


# --- signs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "shown"),
    [
        (overfits, {"OVERFIT"}),
        (underfits, {"UNDERFIT"}),
        (lambda one: diverges(one.train), {"RISEN"}),
        (lambda one: still_falls(one.train), {"OVERFIT", "UNDERFIT", "RISEN"}),
        (lambda one: jumps(one.valid) > 1, {"UNSTEADY"}),
    ],
)
def test_signs_of_curves(sign: Callable[[Curves], bool], shown: set[str]) -> None:
    made = {"OVERFIT", "UNDERFIT", "FINISHED", "RISEN", "STUCK", "UNSTEADY"}
    assert {name for name in made if sign(curves(globals()[name]))} == shown


def test_losses_that_cannot_be_compared_show_overfitting_by_the_rise_alone() -> None:
    apart = curves(([0.9, 0.4, 0.1], [0.9, 0.7, 0.65], [0.1, 0.2, 0.3]))
    assert overfits(apart)
    assert not overfits(apart, comparable=False)
    assert overfits(curves(OVERFIT), comparable=False)


def test_a_single_epoch_shows_nothing() -> None:
    one = curves(([0.9], [0.9], [0.1]))
    shown = [overfits(one), underfits(one), diverges(one.train), still_falls(one.train), jumps(one.valid)]
    assert not any(shown)


def test_a_training_loss_of_nan_diverges_and_noise_near_zero_does_not() -> None:
    assert diverges(np.array([0.9, np.nan]))
    assert not diverges(np.array([0.9, 0.3, 0.01, 0.02]))


def test_recalls_as_scikit_learn() -> None:
    from sklearn.metrics import recall_score

    rng = np.random.default_rng(0)
    true, predicted = rng.integers(-1, 3, 200), rng.integers(0, 3, 200)
    known = true >= 0
    expected = recall_score(true[known], predicted[known], labels=[0, 1, 2], average=None)
    np.testing.assert_allclose(recalls(predicted, true, 4)[:3], expected)
    assert np.isnan(recalls(predicted, true, 4)[3])


def test_chance_is_the_same_class_for_all_photos() -> None:
    assert is_at_chance(np.array([1, 0, 0]))
    assert is_at_chance(np.array([0.4, 0.3, 0.3, np.nan]))
    assert not is_at_chance(np.array([0.9, 0.3, 0.2]))


def test_a_missed_class_is_rare_and_has_persons_to_learn_from() -> None:
    recall, persons, share = np.array([0.9, 0.8, 0.05]), np.array([40, 30, 6]), np.array([0.5, 0.4, 0.1])
    assert missed_class(recall, persons, share) == 2
    assert missed_class(recall, np.array([40, 30, 4]), share) is None
    assert missed_class(np.array([0.9, 0.8, 0.2]), persons, share) is None
    # as frequent as the others, so that balancing changes nothing
    assert missed_class(recall, persons, np.array([0.4, 0.3, 0.3])) is None
    assert missed_class(np.array([0.9, 0.8, np.nan]), persons, share) is None


def test_the_lagging_head_is_alone_wrong_in_most_wrong_photos() -> None:
    wrong = np.zeros((100, 3), dtype=bool)
    wrong[:40, 2], wrong[30:45, 0] = True, True
    # of 45 wrong photos 30 are wrong in the last head alone
    assert lagging_head(wrong) == (2, 30 / 45)
    wrong[25:30, 1] = True
    assert lagging_head(wrong) is None
    assert lagging_head(wrong[:, 2:]) is None
    assert lagging_head(np.eye(3, dtype=bool)[[2] * 29]) is None


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_without_signs_has_no_advice(lines: Callable[..., list[str]]) -> None:
    assert lines() == []


def test_a_training_that_failed_has_no_other_advice(lines: Callable[..., list[str]]) -> None:
    [line] = lines(RISEN, lr=0.5)
    assert line.startswith("Training loss rose from 0.8 to 1.4: try another learning rate than 0.5")
    y = labels()
    constant = answers(np.zeros_like(y), (1.0, 1.0, 1.0))
    [line, weights] = lines(STUCK, constant, pretrained=False)
    assert line.startswith("No head is better than chance, and training loss went from 0.95 to 0.95: try")
    assert weights == "The body started from random weights: try --pretrained"


def test_overfitting_is_answered_by_what_the_run_lacks(lines: Callable[..., list[str]]) -> None:
    found = "Overfitting, training loss 0.08 and validation loss 0.84, up from 0.57: try "
    # some regularisation, without which it is the recipe strong that is advised
    assert lines(OVERFIT, erase=0.2) == [f"{found}--flip --augment randaugment --wd 0.01"]
    given: dict[str, Any] = {"augment": ["HorizontalFlip(p=0.3)"], "wd": 0.01, "epochs": 12}
    # the last ones have all but what they are told to try
    wanted = [
        "--augment 'HorizontalFlip(p=0.3),randaugment'",
        "--mixup 0.4",
        "--label-smoothing 0.1",
        "--drop-rate 0.2",
    ]
    for words in wanted:
        assert lines(OVERFIT, **given) == [found + words]
        name = words.split()[0][2:].replace("-", "_")
        given[name] = REGULAR[name]
    assert lines(OVERFIT, **given) == []
    # mixing needs more epochs, and another optimizer has another scale of its weight decay
    assert lines(OVERFIT, augment=["flip", "rand-m9-n2"], opt="sgd", epochs=4) == [f"{found}--label-smoothing 0.1"]


# as they are saved with a run
@pytest.mark.parametrize("view", [{"fit": "pad", "resize": (64, 32)}, {"fit": "contest", "crop": (400, 200)}])
def test_a_recipe_for_a_run_that_has_nothing_yet(lines: Callable[..., list[str]], view: dict[str, Any]) -> None:
    assert lines(OVERFIT, **view)[0].endswith(": try --recipe strong")
    # it cuts photos without faces
    assert lines(OVERFIT, boxes="boxes.csv")[0].endswith(": try --flip --augment randaugment --wd 0.01")


def test_losses_of_which_one_is_of_the_probe_too_are_not_compared(lines: Callable[..., list[str]]) -> None:
    assert lines(UNDERFIT, epochs=4)
    assert lines(UNDERFIT, epochs=4, linear_probe=True) == []


@pytest.mark.parametrize(
    "settings",
    [{"pretrained": False}, {"augment": ["Flip(p=0.3)"]}, {"environment": {"command": ["fastmask", "fit", "--flip"]}}],
)
def test_flip_is_new_to_a_run_and_can_be_measured(settings: dict[str, Any], trained: Callable[..., Run]) -> None:
    by_default, otherwise = trained(OVERFIT, erase=0.2), trained(OVERFIT, erase=0.2, **settings)
    assert "--flip" in str(by_default.advice()[0])
    assert not any("--flip" in str(each) for each in otherwise.advice())


def test_too_few_epochs(lines: Callable[..., list[str]]) -> None:
    found = "Training and validation loss still fell at the end, at 0.8 and 0.82: try "
    assert lines(UNDERFIT, epochs=4) == [f"{found}--epochs 8"]
    # 5 folds of 4 epochs of 9 seconds are 180 of 216 or of 3,600 seconds
    assert lines(UNDERFIT, epochs=4, hours=0.06) == [f"{found}--hours 0.12"]
    assert lines(UNDERFIT, epochs=4, minutes=3.6) == [f"{found}--minutes 7.2"]
    used = "Only 5 % of --hours 1 were used, and validation loss still fell: try --epochs 16"
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines(UNDERFIT, epochs=4, hours=1)] == [used]


def test_epochs_without_validation_are_left_out(trained: Callable[..., Run]) -> None:
    sparse = [[0.9, *OVERFIT[0]], [np.nan, *OVERFIT[1]], [np.nan, *OVERFIT[2]]]
    [one, *_] = read_curves(trained(sparse, validate_every=2))
    assert [row.tolist() for row in (one.train, one.valid, one.metric)] == list(map(list, OVERFIT))


def test_an_unsteady_validation_loss(lines: Callable[..., list[str]]) -> None:
    found = "Validation loss doubled from one epoch to the next 10 times in 5 folds: try --lr 0.003"
    assert lines(UNSTEADY, lr=0.009) == [found]


def test_few_folds_of_a_run_that_overfits(lines: Callable[..., list[str]]) -> None:
    line = lines(OVERFIT, folds=2, **REGULAR)[0].replace("\N{NO-BREAK SPACE}", " ")
    assert line == "Each fold trains on only 50 % of the persons, and their macro-F1 are 0.300 to 0.400: try --folds 5"
    assert lines(OVERFIT, folds=2, folds_file="folds.csv", **REGULAR) == []


def test_a_rare_class_that_is_missed(lines: Callable[..., list[str]]) -> None:
    y = labels()
    # six persons of 60 and older, and all photos predicted as younger
    y[:, 2] = np.where(np.arange(PHOTOS) < 42, 2, y[:, 2] % 2)
    p = answers(y, (0.9, 0.8, 0.9))
    p[y[:, 2] == 2, 5:] = 0.7, 0.2, 0.1
    found = "Of age.60+, 42 photos of 6 persons, 0 % are recognised: try "
    given = [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines(FINISHED, p, y)]
    assert found + "--class-weight auto" in given
    balanced = lines(FINISHED, p, y, sampler="joint")
    assert found + "--f1-share 0.5" in [line.replace("\N{NO-BREAK SPACE}", " ") for line in balanced]
    assert not any("age.60+" in line for line in lines(FINISHED, p, y, sampler="joint", f1_share=0.2))
    assert not any("--class-weight" in line for line in lines(FINISHED, p, y, alpha={"age": [1, 1, 4]}))


def test_a_head_that_lags(trained: Callable[..., Run]) -> None:
    run = trained(FINISHED, (0.98, 0.98, 0.6))
    [found] = run.advice()
    assert found.words == "--set head_weights.age=2"
    assert "wrong photos are wrong in age alone" in found.found
    folds = pd.read_csv(run.path / "folds.csv", dtype=str)
    write_csv(run.path / "folds.csv", folds.assign(age_value="30"))
    assert [each.words for each in Run.load(run.path).advice()] == ["--order age"]
    weighted = Heads([replace(head, weight=2.0 if head.name == "age" else 1.0) for head in contest_heads()])
    assert trained(FINISHED, (0.98, 0.98, 0.6), heads=weighted).advice() == []


@pytest.fixture
def undecided(trained: Callable[..., Run]) -> Run:
    """A run that finds 30-59 a little more probable than 60+ for the photos of 60+, and for no others."""
    y = labels()
    y[:, 2] = np.where(np.arange(PHOTOS) < 126, 2, y[:, 2] % 2)
    p = answers(y, (0.95, 0.95, 0.95))
    p[y[:, 2] == 2, 5:] = 0.05, 0.5, 0.45
    return trained(FINISHED, p, y)


def test_the_gain_of_the_decision_is_that_of_decide(undecided: Run) -> None:
    [expected] = [row.gain for row in decide(undecided).rows if row.rule == "f1"]
    found = decision_gain(undecided)
    assert found is not None
    assert expected is not None
    assert found.macro_f1 == pytest.approx(expected.macro_f1)
    first = undecided.advice()[0].found
    assert first.startswith(f"The decision f1, cross-fitted, changes macro-F1 by {expected.macro_f1:+.4f} (+")


def test_a_decision_that_a_run_has_is_not_advised(undecided: Run) -> None:
    run = Run(undecided.path, make_config(undecided.config.model_dump(), {"decision": "f1"}), undecided.heads)
    assert not any("decision" in str(each) for each in run.advice())


def test_a_decision_that_loses_is_advised_against(undecided: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gain = decision_gain(undecided)
    assert gain is not None
    low, high = gain.macro_f1_interval
    opposite = replace(gain, macro_f1=-gain.macro_f1, macro_f1_interval=(-high, -low))
    monkeypatch.setattr(advice, "decision_gain", lambda run: opposite)
    run = Run(undecided.path, make_config(undecided.config.model_dump(), {"decision": "f1"}), undecided.heads)
    line = str(run.advice()[0])
    assert line.startswith("The decision f1, cross-fitted, changes macro-F1 by -")
    assert line.endswith("IMAGES --decision plain --out FILE")


def test_an_ensemble_is_only_told_of_its_predictions(trained: Callable[..., Run]) -> None:
    run = trained(OVERFIT, pretrained=False)
    write_json(run.path / "ensemble.json", {"blend": "mean", "weights": None, "members": [], "caveats": []})
    assert advise(run.path) == []


# --- options --------------------------------------------------------------------------------------------------------

RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "nothing": (OVERFIT, {"pretrained": False}),
    "pipelines": (OVERFIT, {"train_pipeline": {"a": 1}, "valid_pipeline": {"a": 1}, "folds": 2}),
    "decayed": (OVERFIT, {"wd": 0.01, "augment": ["flip", "rotate(limit=(-5, 5), p=1)"]}),
    "soft F1 alone": (OVERFIT, {"f1_share": 1, "augment": ["flip", "autoaugment"], "wd": 0.1, "epochs": 4}),
    "weights": (OVERFIT, {"weights": "a.pth", "pretrained": False, **REGULAR, "drop_rate": 0.0}),
    "cross-entropy": (UNDERFIT, {"loss": "ce", "sched": "restarts"}),
    "hours": (UNDERFIT, {"hours": 0.2}),
    "swa": (UNDERFIT, {"swa": 0.75, "epochs": 40, "warmup": 3}),
    "unsteady": (UNSTEADY, {"head_weights": {"age": 0.5}, "class_weight": "auto"}),
    "one head": (OVERFIT, {"one_head": True}),
    "alpha": (FINISHED, {"alpha": {"age": [1, 1, 4]}}),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_is_advised_exists_and_goes_together_with_the_run(
    name: str, trained: Callable[..., Run], fastmask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, settings = RUNS[name]
    y = labels()
    y[:, 2] = np.where(np.arange(PHOTOS) < 42, 2, y[:, 2] % 2)
    p = answers(y, (0.97, 0.97, 0.6))
    p[y[:, 2] == 2, 5:] = 0.7, 0.2, 0.1
    run = trained(losses, p, y, **settings)
    given = advise(run, most=99)
    assert given
    assert given[: advice.MOST] == run.advice()
    own = run.path / "config.yaml"
    for one in given:
        if not one.settings:
            continue
        # a recipe is below the settings of a file, and is taken in its place
        words = shlex.split(one.words)
        answer = fastmask("fit", *([] if words[0] == "--recipe" else ["--config", own]), *words, "--print-config")
        assert (answer.code, answer.errors) == (0, []), one
        if words[0] == "--recipe":
            assert yaml.safe_load(answer.out) == make_config(one.settings).to_plain()
            continue
        assert yaml.safe_load(answer.out) == make_config(run.config.model_dump(), one.settings).to_plain()
        # nothing that the run has already
        assert yaml.safe_load(answer.out) != run.config.to_plain()


def test_a_command_that_is_advised_exists(undecided: Run, fastmask: Callable[..., Any]) -> None:
    [(_, command, run, *rest)] = [one.words.split() for one in undecided.advice() if one.words.startswith("fastmask ")]
    assert (command, run) == ("predict", str(undecided.path))
    shown = fastmask(command, "--help").out
    assert [word for word in rest if word[:2] == "--" and word not in shown] == []
