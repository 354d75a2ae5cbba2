"""Compare: results side by side on the same photos and labels, and which differences are beyond noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from fastmask.evaluation.answers_file import Answers, read_answers
from fastmask.evaluation.comparison import Against, Comparison, Result
from fastmask.evaluation.cost import cost_of
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.run.directory import RunDirectory
from fastmask.scoring import DRAWS, Difference, Drawn, draw_scores, known_classes, make_target, thin
from fastmask.system.errors import DataError, UsageError

# draws under which the ends of an interval say nothing, and over which nobody waits
LEAST_DRAWS, MOST_DRAWS = 100, 100_000


def compare(
    results: Sequence[RunDirectory | str | Path], names: Sequence[str] | None = None, draws: int = DRAWS
) -> Comparison:
    """Score results on the photos that all have, by the labels of the first run among them, the first the baseline.

    A result is a run, or a CSV of somebody's answers to the run's photos: see `read_answers`. `names` are what to call
    them, by default the names of their directories or files. Intervals are of `draws` of persons; differences are
    paired, both scored on the same draws. The macro-F1 is over the classes of the first run's table. Heads that some
    lack are left out of all. Raises UsageError where none is a run, DataError where they share no head or no labelled
    photo.
    """
    if len(results) < 2:
        raise UsageError(f"compare takes two results or more; found {len(results)}.")
    if not LEAST_DRAWS <= draws <= MOST_DRAWS:
        raise UsageError(f"--draws is {draws}; expected {LEAST_DRAWS} to {MOST_DRAWS}.")
    opened = [_open(result) for result in results]
    called = _names([one.path if isinstance(one, RunDirectory) else one for one in opened], names)
    first = next((i for i, one in enumerate(opened) if isinstance(one, RunDirectory)), None)
    if first is None:
        raise UsageError("None of these is a run, so nobody knows the labels; name at least one run directory.")
    judge = RunDirectory.of(opened[first])
    sides = [
        _of_run(one, name) if isinstance(one, RunDirectory) else read_answers(one, judge.heads, name)
        for one, name in zip(opened, called, strict=True)
    ]
    return _compare(sides, sides[first], judge, draws)


def _open(result: RunDirectory | str | Path) -> RunDirectory | Path:
    if isinstance(result, RunDirectory) or Path(result).is_dir():
        return RunDirectory.of(result)
    if not Path(result).is_file():
        raise UsageError(f"{result} does not exist; expected a run directory, or a CSV of answers.")
    return Path(result)


def _names(paths: Sequence[Path], given: Sequence[str] | None) -> list[str]:
    """What to call results: as given; else the name of a directory, a file's without its ending, where that tells."""
    twice = next((path for i, path in enumerate(paths) if path.absolute() in [p.absolute() for p in paths[:i]]), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; name each result once.")
    if given is not None:
        if len(given) != len(paths) or len(set(given)) < len(given) or not all(given):
            raise UsageError(f"--names {','.join(given)}: expected {len(paths)} different names, one a result.")
        return list(given)
    short = [path.stem if path.is_file() else path.absolute().name for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def _of_run(run: RunDirectory, name: str) -> Answers:
    heads = [(i, run.heads[i]) for i in run.heads.joined]
    predicted, true = run.predicted, run.true
    return Answers(
        name,
        run.path,
        pd.Index(run.oof["path"]),
        {head.name: head.decode_all(predicted[:, i]) for i, head in heads},
        {head.name: frozenset(head.classes) for _, head in heads},
        {head.name: head.decode_all(true[:, i]) for i, head in heads},
        run,
        run.caveats,
    )


def _compare(sides: Sequence[Answers], first: Answers, judge: RunDirectory, draws: int) -> Comparison:
    heads, lost = _shared_heads(sides, judge)
    photos = _shared_photos(sides, first)
    owners = first.photos.get_indexer(photos)
    # by the labels of the one, so that all are judged alike
    y = _encoded(heads, first.labels, owners)
    persons, whole = judge.persons[owners], judge.y[:, [judge.heads.position(name) for name in heads.names]]
    true = heads.joint(y)
    if (true == UNKNOWN).all():
        raise DataError(f"None of the {len(photos)} shared photos has a label of all heads in {judge.path}.")
    answered = [_encoded(heads, side.answers, side.photos.get_indexer(photos)) for side in sides]
    drawn = _drawn(heads, answered, y, whole, persons, draws)
    classes = {heads.joint_name(number): number for number in known_classes(heads.joint(whole))}
    notes = [
        *_coverage(sides, photos),
        *lost,
        *_relabelled(sides, first, photos, heads),
        *([f"{n} of {len(true)} photos lack a label, left out."] if (n := int((true == UNKNOWN).sum())) else []),
        *thin(true, persons),
        *_chance(len(sides) - 1),
    ]
    return Comparison(
        _results(sides, drawn, list(classes)),
        len(photos),
        {name: int((true == number).sum()) for name, number in classes.items()},
        _matrix([side.name for side in sides], [each[JOINT] for each in drawn]),
        notes,
    )


def _encoded(heads: Heads, names: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """(rows, heads) class numbers of class names a head."""
    return heads.encode_frame(pd.DataFrame({name: names[name][rows] for name in heads.names}))


def _drawn(
    heads: Heads, answered: Sequence[np.ndarray], y: np.ndarray, whole: np.ndarray, persons: np.ndarray, draws: int
) -> list[dict[str, Drawn]]:
    """Of each result the joint class and each head, all in the same draws of persons."""
    names = (JOINT, *heads.names)
    targets = [make_target(heads, answers, y, name, whole) for answers in answered for name in names]
    drawn = iter(draw_scores(targets, persons, draws))
    return [{name: next(drawn) for name in names} for _ in answered]


def _results(sides: Sequence[Answers], drawn: Sequence[Mapping[str, Drawn]], classes: Sequence[str]) -> list[Result]:
    against = [None, *_against([each[JOINT] for each in drawn])]
    return [
        Result(
            side.name,
            side.path,
            each[JOINT].score(),
            {name: one.score() for name, one in each.items() if name != JOINT},
            dict(zip(classes, each[JOINT].each[0].tolist(), strict=True)),
            beside,
            None if side.run is None else cost_of(side.run),
            side.caveats,
        )
        for side, each, beside in zip(sides, drawn, against, strict=True)
    ]


def _shared_heads(sides: Sequence[Answers], judge: RunDirectory) -> tuple[Heads, list[str]]:
    """The heads that all have with the same classes, as the judging run has them, and what is left out."""
    own = {name: frozenset(judge.heads[name].classes) for name in judge.heads.classified}
    shared = [n for n, classes in own.items() if all(side.classes.get(n) == classes for side in sides)]
    if not shared:
        having = "; ".join(f"{side.name}: {', '.join(side.classes)}" for side in sides)
        raise DataError(f"These results have no head with the same classes in common ({having}).")
    every = dict.fromkeys(name for side in sides for name in side.classes)
    lost = [name for name in every if name not in shared]
    said = f"Compared on {', '.join(shared)} alone: not all have {', '.join(lost)} with the same classes."
    return Heads([judge.heads[name] for name in shared]), [said] if lost else []


def _shared_photos(sides: Sequence[Answers], first: Answers) -> pd.Index:
    """The photos that all have, in the order of the run that judges."""
    photos = first.photos
    for side in sides:
        kept = photos[photos.isin(side.photos)]
        if not len(kept):
            raise DataError(
                f"{side.path} shares no photo with the results before it, such as {photos[0]!r}; it has "
                f"{side.photos[0]!r}: expected results on the same photos."
            )
        photos = kept
    return photos


def _coverage(sides: Sequence[Answers], photos: pd.Index) -> list[str]:
    more = [side for side in sides if len(side.photos) > len(photos)]
    if not more:
        return []
    having = ", ".join(f"{side.name} {len(side.photos)}" for side in more)
    return [f"Scored on the {len(photos)} photos that all have; of more are: {having}."]


def _relabelled(sides: Sequence[Answers], first: Answers, photos: pd.Index, heads: Heads) -> list[str]:
    own = _encoded(heads, first.labels, first.photos.get_indexer(photos))
    said = []
    for side in sides:
        if side.labels and side is not first:
            count = int((_encoded(heads, side.labels, side.photos.get_indexer(photos)) != own).any(axis=1).sum())
            if count:
                said.append(
                    f"{side.name} has other labels than {first.name} for {count} photos; all are scored by the labels "
                    f"of {first.name}."
                )
    return said


def _chance(comparisons: int) -> list[str]:
    if comparisons < 2:
        return []
    return [
        f"Of {comparisons} comparisons with one baseline, one in twenty looks beyond noise by chance: p (Holm) allows "
        "for that."
    ]


def _against(joints: Sequence[Drawn]) -> list[Against]:
    """Each later result against the first."""
    baseline, *others = joints
    each = [two_sided_p(_macro_draws(other) - _macro_draws(baseline)) for other in others]
    adjusted = holm(each)
    return [
        Against(other.less(baseline), p, p_holm, len(others))
        for other, p, p_holm in zip(others, each, adjusted, strict=True)
    ]


def _macro_draws(drawn: Drawn) -> np.ndarray:
    return np.concatenate([macro for macro, _ in drawn.draws])


def two_sided_p(differences: np.ndarray) -> float:
    """How likely a bootstrap's (draws,) differences make one at least as far from 0 where there is none, about.

    Twice the smaller share of draws on either side of 0, both with the draw that was observed; so it is never 0, and
    under 0.05 where the 95 % interval of percentiles leaves 0 out.
    """
    least = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (least + 1) / (len(differences) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted so that, whatever the comparisons have in common, one in twenty families errs at 0.05.

    Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate([(len(p) - rank) * p[i] for rank, i in enumerate(order)]).clip(max=1)
    return [float(stepped[rank]) for rank in np.argsort(order)]


def _matrix(names: Sequence[str], joints: Sequence[Drawn]) -> dict[str, dict[str, Difference | None]]:
    found: dict[str, dict[str, Difference | None]] = {a: dict.fromkeys(names) for a in names}
    for (a, one), (b, other) in combinations(zip(names, joints, strict=True), 2):
        found[a][b], found[b][a] = other.less(one), one.less(other)
    return found
