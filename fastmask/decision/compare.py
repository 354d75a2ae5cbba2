"""Compare: results side by side on the same photos and labels, and which differences are beyond noise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastmask.decision.ledger import shortened
from fastmask.errors import DataError, UsageError
from fastmask.files import read_strings, replacing, write_csv
from fastmask.heads import JOINT, UNKNOWN, Head, Heads
from fastmask.inference.submission import ANSWER, ID
from fastmask.run import Run
from fastmask.scoring import (
    DRAWS,
    Difference,
    Drawn,
    Score,
    draw_scores,
    known_classes,
    make_target,
    thin,
    with_interval,
)
from fastmask.tables import table_lines
from fastmask.terminal import duration, in_bytes

# draws under which the ends of an interval say nothing, and over which nobody waits
LEAST_DRAWS, MOST_DRAWS = 100, 100_000
# what is called beyond noise is so in one of twenty where there is none
_LEVEL = 0.05
# of a table for a terminal: its columns, characters of a name, joint classes
_WIDTH, _NAME, _SHOWN = 100, 28, 30
_PROBABILITY = (0.0, 1 + 1e-3)


@dataclass(frozen=True)
class Cost:
    """What a run took, as far as its directory tells; None where it does not.

    `seconds` are those of the epochs of all folds, each with its validation, `photos_per_second` the training photos of
    these epochs by these seconds, `checkpoint_bytes` what the kept checkpoints of all folds weigh.
    """

    folds: int
    of_folds: int
    epochs: tuple[int, int] | None
    seconds: float | None
    photos_per_second: float | None
    parameters: int | None
    checkpoint_bytes: int
    device: str | None

    @property
    def cells(self) -> list[str]:
        """The figures as cells of a table, under `COST_CELLS`; nothing where nothing is known."""
        low, high = self.epochs or (0, 0)
        return [
            f"{self.folds} of {self.of_folds}",
            "" if self.epochs is None else f"{low}" if low == high else f"{low} to {high}",
            "" if self.seconds is None else duration(self.seconds),
            "" if self.photos_per_second is None else f"{self.photos_per_second:.1f}",
            "" if self.parameters is None else f"{self.parameters / 1e6:.1f} M",
            in_bytes(self.checkpoint_bytes) if self.checkpoint_bytes else "",
            self.device or "",
        ]


COST_CELLS = ["folds", "epochs", "training", "photos/s", "parameters", "checkpoints", "device"]


@dataclass(frozen=True)
class Against:
    """How much better a result is than the baseline; `p` and `p_holm` of a difference of macro-F1 where there is none.

    `p` is two-sided, from the draws of the paired bootstrap; `p_holm` allows for `comparisons` with one baseline (Holm
    1979).
    """

    difference: Difference
    p: float
    p_holm: float
    comparisons: int

    @property
    def verdict(self) -> str:
        """Whether the difference is beyond noise: by itself, and among all comparisons."""
        if self.difference.is_noise:
            return "within noise"
        if self.p_holm < _LEVEL:
            return "beyond noise"
        # the interval and p are of the same draws, but do not round alike
        return f"beyond noise alone, not among {self.comparisons}" if self.comparisons > 1 else "at the edge of noise"

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.difference.to_plain(), "p": self.p, "p_holm": self.p_holm, "verdict": self.verdict}


@dataclass(frozen=True)
class Result:
    """One result: its scores on the shared photos, F1 a joint class, what it cost, what to read it with.

    `against` is None of the baseline; a file of answers has no `cost`.
    """

    name: str
    path: Path
    joint: Score
    heads: dict[str, Score]
    classes: dict[str, float]
    against: Against | None = None
    cost: Cost | None = None
    caveats: Sequence[str] = ()

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            JOINT: self.joint.to_plain(),
            "heads": {name: score.to_plain() for name, score in self.heads.items()},
            "classes": self.classes,
            "against": self.against and self.against.to_plain(),
            "cost": self.cost and {**vars(self.cost), "epochs": self.cost.epochs and list(self.cost.epochs)},
            "caveats": list(self.caveats),
        }


@dataclass(frozen=True)
class Comparison:
    """Results side by side, the first one the baseline.

    `support` counts the photos of each joint class, `differences[a][b]` is how much better `b` is than `a`, `notes` say
    what to read the figures with.
    """

    results: Sequence[Result]
    photos: int
    support: dict[str, int]
    differences: dict[str, dict[str, Difference | None]]
    notes: Sequence[str] = field(default=())

    @property
    def verdicts(self) -> list[str]:
        """A sentence a comparison with the baseline."""
        baseline, *others = self.results
        return [_sentence(other, baseline) for other in others]

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = _WIDTH) -> str:
        """The results as tables that fit into `width` characters, results numbered as given."""
        blocks = [self._scores(), self._against(), self._costs(), *self._classes(width), self._told()]
        return "\n\n".join("\n".join(lines) for lines in blocks if lines)

    def _scores(self) -> list[str]:
        rows = [
            [
                f"{i} {shortened(r.name, _NAME)}",
                with_interval(r.joint.macro_f1, r.joint.macro_f1_interval),
                with_interval(r.joint.accuracy, r.joint.accuracy_interval),
            ]
            for i, r in enumerate(self.results, 1)
        ]
        return table_lines([["", "macro-F1", "accuracy"], *rows])

    def _against(self) -> list[str]:
        rows = []
        for i, result in enumerate(self.results, 1):
            if result.against is not None:
                difference, against = result.against.difference, result.against
                low, high = difference.macro_f1_interval
                rows.append(
                    [
                        f"{i} {shortened(result.name, _NAME)}",
                        f"{difference.macro_f1:+.4f} ({low:+.4f} … {high:+.4f})",
                        f"{difference.accuracy:+.4f}",
                        *([f"{against.p_holm:.3f}"] if against.comparisons > 1 else []),
                        against.verdict,
                    ]
                )
        many = ["p (Holm)"] if len(rows) > 1 else []
        return table_lines([["less 1", "macro-F1", "accuracy", *many, ""], *rows]) if rows else []

    def _costs(self) -> list[str]:
        rows = [[f"{i}", *r.cost.cells] for i, r in enumerate(self.results, 1) if r.cost is not None]
        return table_lines([["", *COST_CELLS], *rows])

    def _classes(self, width: int) -> list[list[str]]:
        """F1 by head and joint class, a column a result; as many tables as fit them."""
        common = sorted(self.support, key=lambda name: -self.support[name])[:_SHOWN]
        shown = [name for name in self.support if name in common]
        heads = [[name, "", *(f"{r.heads[name].macro_f1:.4f}" for r in self.results)] for name in self.results[0].heads]
        rows = [[n, str(self.support[n]), *(f"{r.classes[n]:.4f}" for r in self.results)] for n in shown]
        rest = [f"and {len(self.support) - len(shown)} rarer classes"] if len(shown) < len(self.support) else []
        room = width - max(len(row[0]) for row in [*heads, *rows]) - 10
        step = max(1, room // 8)
        blocks = []
        for start in range(2, 2 + len(self.results), step):
            numbers = [str(i + 1) for i in range(len(self.results))][start - 2 : start - 2 + step]
            cut = [[*row[:2], *row[start : start + step]] for row in [*heads, *rows]]
            blocks.append([*table_lines([["F1", "photos", *numbers], *cut]), *rest])
        return blocks

    def _told(self) -> list[str]:
        caveats = [f"{i} {r.name}: {text}" for i, r in enumerate(self.results, 1) for text in r.caveats]
        return [*self.notes, *caveats]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a result, every figure a column; empty where it is not known."""
        return pd.DataFrame([_row(result) for result in self.results])

    def to_csv(self, out: str | Path) -> None:
        """Write `frame`."""
        write_csv(out, self.frame)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "baseline": self.results[0].name,
            "photos": self.photos,
            "support": self.support,
            "results": [result.to_plain() for result in self.results],
            "differences": {
                a: {b: difference and difference.to_plain() for b, difference in row.items()}
                for a, row in self.differences.items()
            },
            "verdicts": self.verdicts,
            "notes": list(self.notes),
        }

    def plot(self, out: str | Path) -> None:
        """Write a PNG: macro-F1 of each with its interval, and the difference to the baseline with its own."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 1.6 + 0.4 * len(self.results)), layout="constrained")
        scores, differences = figure.subplots(1, 2, sharey=True)
        for row, result in enumerate(self.results):
            _draw(scores, row, result.joint.macro_f1, result.joint.macro_f1_interval)
            if result.against is not None:
                difference = result.against.difference
                _draw(differences, row, difference.macro_f1, difference.macro_f1_interval)
        differences.axvline(0, color="0.6", linewidth=1)
        names = [shortened(result.name) for result in self.results]
        scores.set_yticks(range(len(names)), names, parse_math=False)
        scores.invert_yaxis()
        scores.set(title="macro-F1, 95 % interval")
        differences.set_title(f"less {names[0]}, paired", parse_math=False)
        with replacing(out) as beside:
            figure.savefig(beside, format="png", dpi=110)


@dataclass(frozen=True, eq=False)
class _Answers:
    """What one result says of photos: of each head (N,) class names, and a run's labels likewise."""

    name: str
    path: Path
    photos: pd.Index
    answers: Mapping[str, np.ndarray]
    classes: Mapping[str, frozenset[str]]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    run: Run | None = None
    caveats: Sequence[str] = ()


def compare(results: Sequence[Run | str | Path], names: Sequence[str] | None = None, draws: int = DRAWS) -> Comparison:
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
    called = _names([one.path if isinstance(one, Run) else one for one in opened], names)
    first = next((i for i, one in enumerate(opened) if isinstance(one, Run)), None)
    if first is None:
        raise UsageError("None of these is a run, so nobody knows the labels; name at least one run directory.")
    judge = Run.of(opened[first])
    sides = [
        _of_run(one, name) if isinstance(one, Run) else read_answers(one, judge.heads, name)
        for one, name in zip(opened, called, strict=True)
    ]
    return _compare(sides, sides[first], judge, draws)


def _open(result: Run | str | Path) -> Run | Path:
    if isinstance(result, Run) or Path(result).is_dir():
        return Run.of(result)
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


def _of_run(run: Run, name: str) -> _Answers:
    heads = [(i, run.heads[i]) for i in run.heads.joined]
    predicted, true = run.predicted, run.true
    return _Answers(
        name,
        run.path,
        pd.Index(run.oof["path"]),
        {head.name: _named(head, predicted[:, i]) for i, head in heads},
        {head.name: frozenset(head.classes) for _, head in heads},
        {head.name: _named(head, true[:, i]) for i, head in heads},
        run,
        run.caveats,
    )


def _named(head: Head, codes: np.ndarray) -> np.ndarray:
    # -1 takes the last
    return np.array([*head.classes, ""], dtype=object)[codes]


def read_answers(file: str | Path, heads: Heads, name: str | None = None) -> _Answers:
    """Somebody's answers to a run's photos, from a CSV with the column path (or ImageID) as the run has it.

    Besides it has probabilities (a column HEAD.CLASS each, as in oof.csv), or joint classes (ans, or predicted), or a
    column of class names a head. Raises DataError for a cell that is none of these, a photo twice, a missing column.
    """
    file = Path(file)
    frame = read_strings(file, ())
    key = "path" if "path" in frame.columns else ID
    if key not in frame.columns:
        raise DataError(f"{file} has no column 'path' or {ID!r}; found {', '.join(frame.columns)}.")
    if frame.empty:
        raise DataError(f"{file} has no rows; expected one a photo.")
    twice = frame[key].duplicated()
    if twice.any():
        line = frame.index[twice][0]
        raise DataError(f"{file}, line {line}, column {key}: {frame[key][line]!r} stands twice; remove one row.")
    answers, notes = _answers(file, frame, heads)
    return _Answers(
        file.stem if name is None else name,
        file,
        pd.Index(frame[key]),
        answers,
        {head: frozenset(heads[head].classes) for head in answers},
        caveats=["a file: that its answers are out of fold is nobody's word but its maker's.", *notes],
    )


def _answers(file: Path, frame: pd.DataFrame, heads: Heads) -> tuple[dict[str, np.ndarray], list[str]]:
    """The class names of each head that a file answers, and what is to be said of them."""
    known = [heads[name] for name in heads.classified]
    likely = {head.name: _most_likely(file, frame, head) for head in known if _has_probabilities(file, frame, head)}
    joint = next((column for column in (ANSWER, "predicted") if column in frame.columns), None)
    if likely:
        notes = []
        # a file of fewer heads counts its joint classes otherwise
        if joint is not None and len(likely) == len(known):
            other = pd.DataFrame(_of_joint(file, frame, joint, heads)).ne(pd.DataFrame(likely)).any(axis=1).sum()
            if other:
                notes = [f"{other} cells of its column {joint} are not the most probable class, and are not judged."]
        return likely, notes
    if joint is not None:
        return _of_joint(file, frame, joint, heads), []
    named = [head for head in known if head.name in frame.columns]
    if not named:
        expected = f"{heads.columns[0]} and the other classes, or {ANSWER}, or {', '.join(heads.classified)}"
        raise DataError(f"{file} has no answers; found {', '.join(frame.columns)}, expected {expected}.")
    for head in named:
        wrong = ~frame[head.name].isin(head.classes)
        if wrong.any():
            line = frame.index[wrong][0]
            raise DataError(
                f"{file}, line {line}, column {head.name}: found {frame[head.name][line]!r}, expected one of "
                f"{', '.join(head.classes)}."
            )
    return {head.name: frame[head.name].to_numpy(dtype=object) for head in named}, []


def _has_probabilities(file: Path, frame: pd.DataFrame, head: Head) -> bool:
    columns = [f"{head.name}.{c}" for c in head.classes]
    missing = [column for column in columns if column not in frame.columns]
    if 0 < len(missing) < len(columns):
        raise DataError(f"{file} has no column {missing[0]!r} beside those of the other classes of {head.name}.")
    return not missing


def _most_likely(file: Path, frame: pd.DataFrame, head: Head) -> np.ndarray:
    columns = [f"{head.name}.{c}" for c in head.classes]
    numbers = frame[columns].apply(pd.to_numeric, errors="coerce")
    for column in columns:
        wrong = ~numbers[column].between(*_PROBABILITY)
        if wrong.any():
            line = frame.index[wrong][0]
            raise DataError(
                f"{file}, line {line}, column {column}: found {frame[column][line]!r}, expected a probability from 0 "
                "to 1."
            )
    return _named(head, numbers.to_numpy(np.float64).argmax(axis=1))


def _of_joint(file: Path, frame: pd.DataFrame, column: str, heads: Heads) -> dict[str, np.ndarray]:
    for line, text in frame[column].items():
        if re.fullmatch("[0-9]{1,19}", text) is None or int(text) >= heads.n_joint:
            raise DataError(
                f"{file}, line {line}, column {column}: found {text!r}, expected a class from 0 to {heads.n_joint - 1}."
            )
    codes = heads.unjoint(frame[column].astype(np.int64).to_numpy())
    return {heads[i].name: _named(heads[i], codes[:, i]) for i in heads.joined}


def _compare(sides: Sequence[_Answers], first: _Answers, judge: Run, draws: int) -> Comparison:
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


def _results(sides: Sequence[_Answers], drawn: Sequence[Mapping[str, Drawn]], classes: Sequence[str]) -> list[Result]:
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


def _shared_heads(sides: Sequence[_Answers], judge: Run) -> tuple[Heads, list[str]]:
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


def _shared_photos(sides: Sequence[_Answers], first: _Answers) -> pd.Index:
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


def _coverage(sides: Sequence[_Answers], photos: pd.Index) -> list[str]:
    more = [side for side in sides if len(side.photos) > len(photos)]
    if not more:
        return []
    having = ", ".join(f"{side.name} {len(side.photos)}" for side in more)
    return [f"Scored on the {len(photos)} photos that all have; of more are: {having}."]


def _relabelled(sides: Sequence[_Answers], first: _Answers, photos: pd.Index, heads: Heads) -> list[str]:
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


def cost_of(run: Run) -> Cost:
    """What the directory of a run tells of its cost; a file that is missing or says nothing leaves a None."""
    folds = run.trained_folds
    times = [_seconds(run, fold) for fold in folds]
    body = run.environment.get("body")
    parameters = body.get("parameters") if isinstance(body, dict) else None
    device = run.environment.get("device")
    epochs = [len(each) for each in times if each is not None]
    known = bool(times) and len(epochs) == len(times)
    seconds = sum(sum(each) for each in times if each is not None) if known else 0.0
    trained = sum(_trained_photos(run, fold) * len(each or ()) for fold, each in zip(folds, times, strict=True))
    return Cost(
        len(folds),
        run.config.folds,
        (min(epochs), max(epochs)) if known else None,
        seconds or None,
        trained / seconds if seconds and trained else None,
        parameters if type(parameters) is int else None,
        sum(file.stat().st_size for fold in folds for file in run.checkpoints(fold)),
        device if isinstance(device, str) else None,
    )


def _seconds(run: Run, fold: int) -> list[float] | None:
    """The seconds of each epoch of a fold."""
    file = run.fold_path(fold) / "times.csv"
    if not file.is_file():
        return None
    seconds = pd.to_numeric(read_strings(file, ["epoch", "seconds"])["seconds"], errors="coerce")
    return seconds.tolist() if len(seconds) and (np.isfinite(seconds) & (seconds >= 0)).all() else None


def _trained_photos(run: Run, fold: int) -> int:
    """The photos of an epoch's batches, of which the last, incomplete one is left out; 0 where nobody kept it."""
    photos = 0 if run.config.drop else len(run.seen_by(fold))
    bs = max(1, min(run.config.batch, photos))
    return photos // bs * bs


def _sentence(result: Result, baseline: Result) -> str:
    assert result.against is not None
    difference, verdict = result.against.difference, result.against.verdict
    low, high = difference.macro_f1_interval
    if difference.macro_f1 < 0:
        low, high = -high, -low
    how = "better" if difference.macro_f1 >= 0 else "worse"
    by = f"{abs(difference.macro_f1):.4f}, 95 % {low:.4f} … {high:.4f}"
    return f"{result.name} is {how} than {baseline.name} by {by}: {verdict}."


def _row(result: Result) -> dict[str, Any]:
    """A result as a row of a table."""
    row: dict[str, Any] = {"name": result.name, "path": str(result.path), "photos": result.joint.n}
    for name, score in ((None, result.joint), *result.heads.items()):
        before = f"{name}_" if name else ""
        row |= _with_ends(f"{before}macro_f1", score.macro_f1, score.macro_f1_interval)
        row |= _with_ends(f"{before}accuracy", score.accuracy, score.accuracy_interval)
    against = result.against
    if against is not None:
        row |= _with_ends("difference", against.difference.macro_f1, against.difference.macro_f1_interval)
        row |= {"accuracy_difference": against.difference.accuracy, "p": against.p, "p_holm": against.p_holm}
        row["verdict"] = against.verdict
    if result.cost is not None:
        epochs = result.cost.epochs or (None, None)
        row |= {**vars(result.cost), "epochs": epochs[1]}
    row |= {f"f1 {name}": value for name, value in result.classes.items()}
    return {**row, "caveats": " ".join(result.caveats)}


def _with_ends(name: str, value: float, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _draw(axes: Any, row: int, value: float, interval: tuple[float, float] | None) -> None:
    low, high = interval or (value, value)
    axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", capsize=3, color="C0")
