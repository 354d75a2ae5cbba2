"""Summary: the score of a run with its interval, and how to read it."""

from __future__ import annotations

from html import escape
from typing import Any

from fastmask.heads import JOINT
from fastmask.report.blocks import Block, Table, Text, interval, rounded
from fastmask.report.material import Material
from fastmask.report.sections.classes import class_scores
from fastmask.run.directory import RunDirectory
from fastmask.run.files import SCORES
from fastmask.scoring import HOW_INTERVALS, Score, why_optimistic
from fastmask.system.errors import FastmaskError
from fastmask.system.text import count

# an interval at least this wide is explained if half of the classes have fewer persons than this
_WIDE, _FEW = 0.3, 30


def optimistic(run: RunDirectory) -> tuple[float, str] | None:
    """The optimistic macro-F1 of a run, and why it is optimistic; None if the run has none."""
    if not (run.path / SCORES).is_file():
        return None
    found = run.scores.get("optimistic")
    joint = found.get(JOINT) if isinstance(found, dict) else None
    value = joint.get("macro_f1") if isinstance(joint, dict) else None
    if not isinstance(value, float) or not isinstance(found, dict):
        return None
    # files of older runs have another wording
    return value, str(found.get("why", "")) if run.is_ensemble else why_optimistic(run.oof["fold"].nunique())


def section(material: Material) -> list[Block]:
    """The scores, what limits them, and the optimistic figure."""
    run = material.run
    rows = [[target, *score_cells(material.score(target))] for target in material.targets]
    caption = "Out of fold: each photo predicted by models that have not seen its person"
    if run.is_leaky:
        caption = (
            "Out of fold by a leaky split: each photo predicted by models that may have seen its person in other photos"
        )
    return [
        *(Text(note, warning=note in run.caveats) for note in material.scores.notes),
        Table(caption, ["", "macro-F1", "95 % interval", "accuracy", "95 % interval", "photos"], rows),
        *map(Text, (*_on_interval(material), *_on_optimistic(material), _on_score(run))),
    ]


def score_cells(score: Score) -> list[str]:
    """Macro-F1 and accuracy, each with its interval, and the number of photos."""
    return [
        rounded(score.macro_f1),
        interval(score.macro_f1_interval),
        rounded(score.accuracy),
        interval(score.accuracy_interval),
        f"{score.n:,}",
    ]


def _on_interval(material: Material) -> list[str]:
    """Why the first interval is very wide, if that is because classes have few persons."""
    target = material.targets[0]
    low, high = material.score(target).macro_f1_interval or (0.0, 0.0)
    if high - low < _WIDE:
        return []
    persons = sorted(class_scores(material.run, target)["persons"])
    half = persons[(len(persons) - 1) // 2]
    if half >= _FEW:
        return []
    return [
        f"The interval of {target} is very wide because half of its {len(persons)} classes have at most "
        f"{count(half, 'person')}: too few to tell a good model from a bad one."
    ]


def _on_optimistic(material: Material) -> list[str]:
    found, score = optimistic(material.run), material.scores.joint.macro_f1
    # a plain mean of runs fits no weights, so it is not optimistic
    if found is None or (material.run.is_ensemble and found[0] == score):
        return []
    value, why = found[0], found[1] or "it is chosen on these photos"
    name = "joint macro-F1" if len(material.targets) > 1 else "macro-F1"
    difference = f", {value - score:+.4f} compared with the score" if material.has_label(JOINT).any() else ""
    return [
        f"Optimistic figure: a {name} of {value:.4f}{difference}. {why[0].upper()}{why[1:]}. It is given only for "
        "comparison with figures obtained the same way."
    ]


def _on_score(run: RunDirectory) -> str:
    """How to read the score."""
    heads = run.heads.classified
    every = "both" if len(heads) == 2 else f"all {len(heads)}"
    joint = f" The joint class, one of {run.heads.n_joint:,}, is right if {every} heads are." if heads[1:] else ""
    return (
        f"The score is over {len(run.oof):,} photos of {count(len(set(run.persons)), 'person')}. Macro-F1 is the mean "
        f"F1 of all classes of labels and predictions, so a rare class counts as much as a frequent one.{joint} "
        f"{HOW_INTERVALS}"
    )


def run_html(run: RunDirectory) -> str:
    """A run in a notebook: its path, its scores from scores.json, its classes."""
    try:
        rows, caveats = _score_rows(run), run.caveats if run.is_scored else []
    except FastmaskError as error:
        # displaying a run must not raise
        return f"<p><strong>Run</strong> <code>{escape(str(run.path))}</code>: {escape(str(error))}</p>"
    cells = ["".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    head = "".join(f"<th>{name}</th>" for name in ("", "macro-F1", "95 % interval", "accuracy", "classes"))
    kind = escape("ensemble" if run.is_ensemble else run.config.arch) + ("" if rows[0][1] else ", not scored yet")
    return (
        f"<p><strong>Run</strong> <code>{escape(str(run.path))}</code>: {kind}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + "".join(f"<p>{escape(caveat)}</p>" for caveat in caveats)
    )


def _score_rows(run: RunDirectory) -> list[list[str]]:
    """Per target name, macro-F1, interval, accuracy, classes; the figures are empty before there is a score."""
    plain = run.scores if (run.path / SCORES).is_file() else {}
    heads: Any = plain.get("heads")
    heads = heads if isinstance(heads, dict) else {}
    names = run.heads.classified
    rows = [[name, *_plain_cells(heads.get(name)), ", ".join(run.heads[name].classes[:12])] for name in names[:20]]
    return rows if len(names) == 1 else [[JOINT, *_plain_cells(plain.get(JOINT)), f"{run.heads.n_joint:,}"], *rows]


def _plain_cells(plain: Any) -> list[str]:
    if not isinstance(plain, dict):
        return ["", "", ""]
    macro_f1, accuracy = (value if isinstance(value := plain.get(k), float) else None for k in ("macro_f1", "accuracy"))
    ends = plain.get("macro_f1_interval")
    valid = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, float) for end in ends)
    return [rounded(macro_f1), interval(ends if valid else None), rounded(accuracy)]
