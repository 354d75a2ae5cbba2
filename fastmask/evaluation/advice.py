"""Advice: what would most likely raise the score of a run, by signs in its own files.

Each sign is a function of a few numbers, and finds nothing rather than guesses. They are in the order of the gain to
expect: a training that failed, pretrained weights, overfitting or too few epochs, then what concerns a part of the
photos. The only gain that is stated is one that was measured on the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm

from fastmask.config import OWN, Config, make_config, read_recipe, spell_option
from fastmask.decision.rule import F1, PLAIN, check_f1
from fastmask.evaluation.cost import cost_of
from fastmask.evaluation.decisions import cross_fit_run
from fastmask.heads import JOINT, UNKNOWN
from fastmask.run.directory import RunDirectory
from fastmask.run.oof import validated_epochs
from fastmask.scoring import Difference, make_target, score_differences, scored_classes
from fastmask.system.errors import UsageError
from fastmask.system.terminal import quote
from fastmask.system.text import count, percent

MOST = 3
# a macro-F1 at least this high leaves the training little to gain
_SOLVED = 0.95
# a head has learned something if its mean recall is this much above chance
_LEARNED = 0.05
# the last validation loss relative to the last training loss: at least this, or at most this
_OVERFIT, _UNDERFIT = 2.0, 1.3
# the highest recall of a class that is missed, and the fewest persons to learn it from
_MISSED, _FEWEST_PERSONS = 0.1, 5
# the share of the wrong photos that are wrong in one head alone, of at least so many
_LAGS, _FEWEST_WRONG = 0.6, 30
# enough for the sign of a gain
_DRAWS = 200
# mixing needs many epochs
_MIXING_EPOCHS = 10
# with these the weight decay is that of AdamW, independent of the gradients
_DECOUPLED, _DECAY = ("adamp", "adamw"), 1e-2
_BALANCING = ("alpha", "class_weight", "sampler", "draw_weights")
_REGULARISING = ("augment", "train_pipeline", "erase", "mixup", "cutmix", "half_cutmix", "label_smoothing", "drop_rate")
# augmentations that vary photos at random in many ways, and those that mirror them
_POLICY = re.compile("rand|auto|trivial|augmix|original|v0|3a", re.IGNORECASE)
_FLIP = re.compile("flip|horizontalflip", re.IGNORECASE)
# the fewest persons, or groups of them, for five folds
_FEWEST_GROUPS = 20


@dataclass(frozen=True)
class Advice:
    """What a run's files show, and what to try, as words of the command line; `settings` are those of another fit."""

    found: str
    words: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.found}: try {self.words}"


@dataclass(frozen=True)
class Curves:
    """Of one fold, a value per validated epoch: both losses, and the monitored metric, where higher is better.

    `ratio` is the last validation loss relative to the last training loss.
    """

    train: np.ndarray
    valid: np.ndarray
    metric: np.ndarray

    @property
    def ratio(self) -> float:
        return float(self.valid[-1] / max(self.train[-1], 1e-12))


# --- signs ----------------------------------------------------------------------------------------------------------


def rises(losses: np.ndarray, factor: float) -> bool:
    """Whether a loss ends at `factor` times its lowest value, or higher."""
    return bool(losses[-1] >= factor * losses.min())


def diverges(losses: np.ndarray) -> bool:
    """Whether a loss is NaN, or has risen again to about what it was after the first epoch."""
    return not np.isfinite(losses).all() or (rises(losses, 1.3) and bool(losses[-1] >= 0.8 * losses[0]))


def still_falls(losses: np.ndarray) -> bool:
    """Whether a loss has fallen by at least 3 % in the last quarter of its epochs."""
    before = losses[: -max(1, len(losses) // 4)]
    return bool(len(before) and losses[-1] <= 0.97 * before[-1])


def jumps(losses: np.ndarray) -> int:
    """The epochs in which a loss is at least twice that of the epoch before."""
    return int((losses[1:] >= 2 * losses[:-1]).sum())


def overfits(one: Curves, comparable: bool = True) -> bool:
    """Whether validation loss is far above training loss, or rises while training loss falls.

    The two losses of some settings are not `comparable`; then only the second counts.
    """
    apart = one.valid[-1] > one.train[-1] and rises(one.valid, 1.1) and one.train.argmin() > one.valid.argmin()
    return bool(apart or (comparable and one.ratio >= _OVERFIT))


def underfits(one: Curves, comparable: bool = True) -> bool:
    """Whether both losses are about equal and still fall, and the last epoch is the best.

    The two losses of some settings are not `comparable`; then neither is known.
    """
    lowest = comparable and not rises(one.valid, 1.02)
    return bool(lowest and one.ratio <= _UNDERFIT and still_falls(one.train) and one.metric[-1] == one.metric.max())


def recalls(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """(N,) class numbers -> (classes,) the recall of each; NaN without a photo of it."""
    known = true != UNKNOWN
    n = np.bincount(true[known], minlength=classes)
    hits = np.bincount(true[known & (predicted == true)], minlength=classes)
    return np.divide(hits, n, out=np.full(classes, np.nan), where=n > 0)


def is_at_chance(recall: np.ndarray) -> bool:
    """Whether the mean recall is about that of always the same class."""
    there = recall[np.isfinite(recall)]
    return len(there) < 2 or bool(there.mean() < 1 / len(there) + _LEARNED)


def missed_class(recall: np.ndarray, persons: np.ndarray, share: np.ndarray) -> int | None:
    """The rare class with the lowest recall, if that is near 0; (classes,) recalls, persons and shares of the photos.

    Of fewer than five persons no class is learned, whatever is done.
    """
    rare = share < 0.5 / max(1, int(np.isfinite(recall).sum()))
    missed = rare & (persons >= _FEWEST_PERSONS) & (np.nan_to_num(recall, nan=1.0) <= _MISSED)
    return int(np.where(missed, recall, np.inf).argmin()) if missed.any() else None


def lagging_head(wrong: np.ndarray) -> tuple[int, float] | None:
    """(N, heads) whether each head is wrong -> the head that alone spoils most wrong photos, and their share."""
    spoilt = wrong[wrong.any(axis=1)]
    if wrong.shape[1] < 2 or len(spoilt) < _FEWEST_WRONG:
        return None
    shares = (spoilt & (spoilt.sum(axis=1) == 1)[:, None]).mean(axis=0)
    head = int(shares.argmax())
    return (head, float(shares[head])) if shares[head] >= _LAGS else None


# --- advice ---------------------------------------------------------------------------------------------------------


def advise(run: RunDirectory | str | Path, most: int = MOST) -> list[Advice]:
    """What would most likely raise the score of a finished run, the most likely first, at most three.

    Usually there is less, or nothing. Of an ensemble or a soup, which was not trained, only the decision is judged.
    """
    run = RunDirectory.of(run)
    return list(islice(filter(None, _advise(run)), most))


def _advise(run: RunDirectory) -> Iterator[Advice | None]:
    """In their order; those that are not asked for are not computed."""
    made_of_others = run.is_ensemble or run.soup is not None
    curves = [] if made_of_others or _is_solved(run) else read_curves(run)
    overfit = _most(overfits(one, _is_comparable(run.config)) for one in curves)
    if curves:
        failed = _on_failure(run, curves)
        yield failed
        yield _on_weights(run)
        if failed:
            return
        yield _on_overfitting(run, curves) if overfit else _on_length(run, curves)
    yield _on_decision(run)
    if curves:
        yield _on_jumps(run, curves)
        yield _on_classes(run)
        yield _on_heads(run)
    if overfit:
        yield _on_folds(run)


def read_curves(run: RunDirectory) -> list[Curves]:
    """The curves of each trained fold."""
    found = []
    for fold in run.trained_folds:
        history, curve = run.history(fold), run.curve(fold)
        validated = validated_epochs(curve)
        train, valid = (history[name].to_numpy(np.float64)[validated] for name in ("train_loss", "valid_loss"))
        found.append(Curves(train, valid, curve[validated]))
    return found


def _most(flags: Iterable[bool]) -> bool:
    """Whether at least two thirds of the folds show a sign."""
    given = list(flags)
    return bool(given) and 3 * sum(given) >= 2 * len(given)


def _is_solved(run: RunDirectory) -> bool:
    return run.score(draws=0).joint.macro_f1 >= _SOLVED


def _is_comparable(config: Config) -> bool:
    """Whether training and validation loss are the same figure.

    A soft F1 is one of a batch, or of all photos; the predictions of a linear probe only count in validation.
    """
    own = (config.per_head or {}).values()
    shares = config.f1_share, *(options.f1_share for options in own)
    return config.loss != OWN and not config.has_probe and not any(shares)


def _learned(run: RunDirectory) -> list[str]:
    return [name for name in run.heads.classified if name not in run.heads.unlearned]


def _recalls(run: RunDirectory, name: str) -> np.ndarray:
    i = run.heads.position(name)
    return recalls(run.predicted[:, i], run.true[:, i], len(run.heads[name].classes))


def _to_try(run: RunDirectory, found: str, settings: Mapping[str, Any], words: str = "") -> Advice | None:
    """The advice of settings; None if they do not go together with those of the run."""
    try:
        make_config(run.config.model_dump(), settings)
    except UsageError:
        return None
    spelled = (quote(word) for name, value in settings.items() for word in _spell(name, value))
    return Advice(found, words or " ".join(spelled), settings)


def _spell(name: str, value: Any) -> list[str]:
    if name != "head_weights":
        return spell_option(name, value)
    return [word for head, weight in value.items() for word in ("--set", f"{name}.{head}={weight:g}")]


def _on_failure(run: RunDirectory, curves: Sequence[Curves]) -> Advice | None:
    """A training that diverged, or learned nothing: most likely the learning rate."""
    words = f"another learning rate than {run.config.lr:g}, as fastmask lr-find suggests"
    risen = next((one.train for one in curves if diverges(one.train)), None)
    if risen is not None:
        return Advice(f"Training loss rose from {np.nanmin(risen):.3g} to {risen[-1]:.3g}", words)
    flat = _most(len(one.train) > 1 and one.train[-1] > 0.8 * one.train[0] for one in curves)
    if not flat or not all(is_at_chance(_recalls(run, name)) for name in _learned(run)):
        return None
    first, last = (_median(one.train[i] for one in curves) for i in (0, -1))
    return Advice(f"No head is better than chance, and training loss went from {first:.3g} to {last:.3g}", words)


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _on_weights(run: RunDirectory) -> Advice | None:
    config = run.config
    if config.starts_pretrained or not timm.is_model_pretrained(config.arch):
        return None
    return _to_try(run, "The body started from random weights", {"pretrained": True})


def _on_overfitting(run: RunDirectory, curves: Sequence[Curves]) -> Advice | None:
    train, valid = _median(one.train[-1] for one in curves), _median(one.valid[-1] for one in curves)
    lowest = _median(one.valid.min() for one in curves)
    risen = f", up from {lowest:.2g}" if valid >= 1.1 * lowest else ""
    found = f"Overfitting, training loss {train:.2g} and validation loss {valid:.2g}{risen}"
    return next(filter(None, (_to_try(run, found, *remedy) for remedy in _regularise(run))), None)


def _regularise(run: RunDirectory) -> Iterator[tuple[dict[str, Any], str]]:
    """What regularises and the run lacks, in the order of what helps most, as settings and, if needed, their words."""
    config, given = run.config, run.config.augment or []
    decay = {"wd": _DECAY} if config.wd < _DECAY / 10 and config.opt in _DECOUPLED else {}
    if decay and not any(map(config.is_set, _REGULARISING)):
        yield read_recipe("strong"), "--recipe strong"
    augment = {} if any(map(_POLICY.match, given)) else {"augment": [*given, "randaugment"]}
    both = {**({"flip": True} if _may_flip(run) else {}), **augment}
    if both:
        yield {**both, **decay}, ""
    if decay:
        yield decay, ""
    if not (config.mixup or config.cutmix or config.half_cutmix) and config.epochs >= _MIXING_EPOCHS:
        yield {"mixup": 0.4}, ""
    if not config.label_smoothing and config.loss != OWN:
        yield {"label_smoothing": 0.1}, ""
    if not config.drop_rate:
        yield {"drop_rate": 0.2}, ""


def _may_flip(run: RunDirectory) -> bool:
    """Whether --flip is new to a run: no photos are mirrored, and it was not given and refused.

    It measures by the initial weights whether mirroring changes labels, and random ones do not tell.
    """
    config, command = run.config, run.environment.get("command")
    mirrored = config.flip or any(map(_FLIP.match, config.augment or []))
    given = isinstance(command, list) and "--flip" in command
    return not (mirrored or given) and config.starts_pretrained


def _on_length(run: RunDirectory, curves: Sequence[Curves]) -> Advice | None:
    """Too few epochs, or time that is left."""
    config, used = run.config, _used_time(run)
    given: float = getattr(config, config.time_limit) if config.time_limit else 0.0
    if used and used < 0.5 and _most(0 < one.valid.argmin() == len(one.valid) - 1 for one in curves):
        found = f"Only {percent(used)} of --{config.time_limit} {given:g} were used, and validation loss still fell"
        return _to_try(run, found, {"epochs": int(config.epochs * min(0.9 / used, 4))})
    if not _most(underfits(one, _is_comparable(run.config)) for one in curves):
        return None
    train, valid = _median(one.train[-1] for one in curves), _median(one.valid[-1] for one in curves)
    found = f"Training and validation loss still fell at the end, at {train:.3g} and {valid:.3g}"
    more = {config.time_limit: 2 * given} if config.time_limit else {"epochs": 2 * config.epochs}
    return _to_try(run, found, more)


def _used_time(run: RunDirectory) -> float | None:
    """The share of the time limit that the epochs took; None if unknown."""
    limit = run.config.limit_seconds
    seconds = cost_of(run).seconds if limit else None
    return seconds / limit if seconds and limit else None


def _on_decision(run: RunDirectory) -> Advice | None:
    """The decision f1, or plain in its place, if the cross-fitted gain of f1 is beyond noise."""
    gain, decided = decision_gain(run), run.config.decision == F1
    if gain is None or gain.is_noise or (gain.macro_f1 > 0) == decided:
        return None
    words = f"fastmask predict {quote(str(run.path))} IMAGES --decision {PLAIN if decided else F1} --out FILE"
    return Advice(f"The decision {F1}, cross-fitted, changes macro-F1 by {gain.cell}", words)


def decision_gain(run: RunDirectory, draws: int = _DRAWS) -> Difference | None:
    """The gain in macro-F1 of the decision f1, fitted on other persons than it is scored on; None if it has none."""
    try:
        check_f1(run.heads, run.true)
        answers = cross_fit_run(run, F1)[1]
    except UsageError:
        return None
    plain = run.heads.argmax(run.probabilities)
    classes = scored_classes(run.heads, [plain, answers], run.true, run.y)
    targets = [make_target(run.heads, y, run.true, JOINT, classes) for y in (plain, answers)]
    return score_differences(targets, run.groups, draws)[0]


def _on_jumps(run: RunDirectory, curves: Sequence[Curves]) -> Advice | None:
    """A learning rate that is too high for steady progress."""
    times = [jumps(one.valid) for one in curves]
    if not _most(n >= 2 for n in times):
        return None
    found = f"Validation loss doubled from one epoch to the next {sum(times)} times in {count(len(times), 'fold')}"
    return _to_try(run, found, {"lr": float(f"{run.config.lr / 3:.1g}")})


def _on_classes(run: RunDirectory) -> Advice | None:
    """A rare class that is hardly ever recognised."""
    config = run.config
    settings: dict[str, Any] = {} if config.f1_share else {"f1_share": 0.5}
    if not any(map(config.is_set, _BALANCING)):
        settings = {"class_weight": "auto"}
    for name in _learned(run) if settings and config.loss != OWN else ():
        classes, true = run.heads[name].classes, run.true[:, run.heads.position(name)]
        n = np.array([(true == code).sum() for code in range(len(classes))])
        persons = np.array([len(set(run.persons[true == code])) for code in range(len(classes))])
        code = missed_class(_recalls(run, name), persons, n / max(1, n.sum()))
        if code is not None:
            photos = f"{count(int(n[code]), 'photo')} of {count(int(persons[code]), 'person')}"
            found = f"Of {name}.{classes[code]}, {photos}, {percent(_recalls(run, name)[code])} are recognised"
            return _to_try(run, found, settings)
    return None


def _on_heads(run: RunDirectory) -> Advice | None:
    """A head that is alone wrong in most wrong photos."""
    names = _learned(run)
    positions = [run.heads.position(name) for name in names]
    predicted, true = run.predicted[:, positions], run.true[:, positions]
    wrong = (predicted != true)[(true != UNKNOWN).all(axis=1)]
    lagging = None if run.config.one_head else lagging_head(wrong)
    if lagging is None:
        return None
    head, photos = run.heads[names[lagging[0]]], count(int(wrong.any(axis=1).sum()), "wrong photo")
    found = f"{percent(lagging[1])} of {photos} are wrong in {head.name} alone"
    if head.bounds and f"{head.name}_value" in run.folds and run.config.order is None:
        return _to_try(run, found, {"order": head.name})
    if head.weight > min(run.heads[name].weight for name in names):
        return None
    return _to_try(run, found, {"head_weights": {head.name: 2 * head.weight}})


def _on_folds(run: RunDirectory) -> Advice | None:
    """Folds that train on few of the persons, where more of them would help."""
    config = run.config
    fixed = config.folds_file or config.teacher or config.pseudo or config.weights or config.time_limit
    if fixed or not 2 <= config.folds <= 3 or len(set(run.groups)) < _FEWEST_GROUPS:
        return None
    values = [fold[JOINT]["macro_f1"] for fold in run.scores["folds"]]
    spread = f", and their macro-F1 are {min(values):.3f} to {max(values):.3f}" if all(values) else ""
    found = f"Each fold trains on only {percent(1 - 1 / config.folds)} of the persons{spread}"
    return _to_try(run, found, {"folds": 5})
