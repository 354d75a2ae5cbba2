"""Summary: the score of a run with its interval, and what must be known to believe it."""

from __future__ import annotations

from html import escape
from typing import Any

from fastmask.heads import JOINT
from fastmask.report.blocks import Block, Table, Text, rounded
from fastmask.report.classes import class_scores
from fastmask.report.material import Material
from fastmask.run.directory import SCORES, RunDirectory
from fastmask.scoring import Score, why_optimistic
from fastmask.system.errors import FastmaskError
from fastmask.system.text import NOTHING, count

# the width of an interval that is to be explained, and the persons a class under which they explain it
_WIDE, _FEW = 0.3, 30
_COLUMNS = ["", "macro-F1", "95 % interval", "accuracy", "95 % interval", "photos"]


def interval(ends: Any, digits: int = 4) -> str:
    """Both ends of an interval in words; None where there is none."""
    return f"{ends[0]:.{digits}f} … {ends[1]:.{digits}f}" if ends else NOTHING


def optimistic(run: RunDirectory) -> tuple[float, str] | None:
    """The flattering macro-F1 beside the score, and why it flatters; None where the run keeps none."""
    if not (run.path / SCORES).is_file():
        return None
    found = run.scores.get("optimistic")
    joint = found.get(JOINT) if isinstance(found, dict) else None
    value = joint.get("macro_f1") if isinstance(joint, dict) else None
    if not isinstance(value, float) or not isinstance(found, dict):
        return None
    # of a run the file may be older than the words
    return value, str(found.get("why", "")) if run.is_ensemble else why_optimistic(run.oof["fold"].nunique())


def section(material: Material) -> list[Block]:
    """The scores, what flatters them, and the optimistic figure beside."""
    run, scores = material.run, material.scores
    blocks: list[Block] = [Text(note, warning=note in run.caveats) for note in scores.notes]
    named = [(name, scores.joint if name == JOINT else scores.heads[name]) for name in material.targets]
    rows = [[name, *_figures(score)] for name, score in named]
    blocks.append(Table(_caption(run), _COLUMNS, rows))
    blocks += [Text(said) for said in (*_wide(material), *_optimistic(material), _explained(run))]
    return blocks


def _caption(run: RunDirectory) -> str:
    if run.is_leaky:
        return "Out of fold by a leaky split: each photo judged by models that may have seen its person in other photos"
    return "Out of fold: each photo judged by models that have not seen its person"


def _wide(material: Material) -> list[str]:
    """Why the first interval is very wide, where it is that few persons stand behind its classes."""
    target = material.targets[0]
    score = material.scores.joint if target == JOINT else material.scores.heads[target]
    low, high = score.macro_f1_interval or (0.0, 0.0)
    if high - low < _WIDE:
        return []
    persons = sorted(class_scores(material.run, target)["persons"])
    half = persons[(len(persons) - 1) // 2]
    if half >= _FEW:
        return []
    return [
        f"The interval of {target} is very wide because half of its {len(persons)} classes stand on no more than "
        f"{count(half, 'person')}: so few cannot tell a good model from a bad one."
    ]


def _optimistic(material: Material) -> list[str]:
    beside = optimistic(material.run)
    if beside is None:
        return []
    value, why = beside
    if material.run.is_ensemble and value == material.scores.joint.macro_f1:
        # a plain mean has no weights to fit
        return []
    what = "joint macro-F1" if len(material.targets) > 1 else "macro-F1"
    more = f", {value - material.scores.joint.macro_f1:+.4f} beside the score" if material.known(JOINT).any() else ""
    why = why or "it is chosen on these photos"
    return [
        f"Optimistic figure: a {what} of {value:.4f}{more}. {why[0].upper()}{why[1:]}. It is here only to be compared "
        "with figures that others got that way."
    ]


def _explained(run: RunDirectory) -> str:
    """How the score is to be read."""
    heads = run.heads.classified
    every = "both" if len(heads) == 2 else f"all {len(heads)}"
    joint = f" The joint class, one of {run.heads.n_joint:,}, is right where {every} heads are." if heads[1:] else ""
    return (
        f"The score is of {len(run.oof):,} photos of {count(len(set(run.persons)), 'person')}. Macro-F1 is the mean F1 "
        f"of the classes that the data has, so a rare class counts as much as a frequent one.{joint} Intervals are by "
        "bootstrap over persons."
    )


def _figures(score: Score) -> list[str]:
    return [
        rounded(score.macro_f1),
        interval(score.macro_f1_interval),
        rounded(score.accuracy),
        interval(score.accuracy_interval),
        f"{score.n:,}",
    ]


def run_html(run: RunDirectory) -> str:
    """A run in a notebook: its score as scores.json has it, its heads, where it lies."""
    try:
        rows, caveats = _kept(run), run.caveats if run.is_scored else []
    except FastmaskError as error:
        # what is wrong with a file is no reason for a traceback where nobody asked for anything
        return f"<p><strong>Run</strong> <code>{escape(str(run.path))}</code>: {escape(str(error))}</p>"
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    names = "".join(f"<th>{escape(name)}</th>" for name in ("", "macro-F1", "95 % interval", "accuracy", "classes"))
    what = "ensemble" if run.is_ensemble else run.config.arch
    told = f"<p><strong>Run</strong> <code>{escape(str(run.path))}</code>: {escape(what)}"
    state = "" if rows[0][1] else ", not scored yet"
    notes = "".join(f"<p>{escape(caveat)}</p>" for caveat in caveats)
    return f"{told}{state}</p><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _kept(run: RunDirectory) -> list[list[str]]:
    """A row the joint class and a head: name, macro-F1, interval, accuracy, classes; empty before there is a score."""
    plain = run.scores if (run.path / SCORES).is_file() else {}
    heads = plain.get("heads")
    rows = [[JOINT, *_cells(plain.get(JOINT)), f"{run.heads.n_joint:,}"]]
    for name in run.heads.classified[:20]:
        of = heads.get(name) if isinstance(heads, dict) else None
        rows.append([name, *_cells(of), ", ".join(run.heads[name].classes[:12])])
    return rows if len(run.heads.classified) > 1 else rows[1:]


def _cells(plain: Any) -> list[str]:
    if not isinstance(plain, dict):
        return ["", "", ""]
    ends = plain.get("macro_f1_interval")
    good = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, float) for end in ends)
    figures = [rounded(v) if isinstance(v := plain.get(name), float) else NOTHING for name in ("macro_f1", "accuracy")]
    return [figures[0], interval(ends if good else None), figures[1]]
