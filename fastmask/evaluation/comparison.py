"""Comparison: results side by side, as text, a table, plain values and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fastmask.evaluation.cost import COST_CELLS, Cost
from fastmask.heads import JOINT
from fastmask.scoring import Difference, Score, with_ends, with_interval
from fastmask.system.files import write_csv
from fastmask.system.text import shorten_start, table_lines

# what is called beyond noise is so in one of twenty where there is none
_LEVEL = 0.05
# of a table for a terminal: its columns, characters of a name, joint classes
_WIDTH, _NAME, _SHOWN = 100, 28, 30


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
            "cost": self.cost and self.cost.to_plain(),
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
                f"{i} {shorten_start(r.name, _NAME)}",
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
                rows.append(
                    [
                        f"{i} {shorten_start(result.name, _NAME)}",
                        difference.cell,
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
        table = [["F1", "photos", *(str(i) for i in range(1, 1 + len(self.results)))], *heads, *rows]
        room = width - max(len(row[0]) for row in table) - 10
        step = max(1, room // 8)
        cuts = ([[*row[:2], *row[i : i + step]] for row in table] for i in range(2, 2 + len(self.results), step))
        return [[*table_lines(cut), *rest] for cut in cuts]

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
        from fastmask.evaluation.plots import plot_comparison

        plot_comparison(self, out)


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
        row |= with_ends(f"{before}macro_f1", score.macro_f1, score.macro_f1_interval)
        row |= with_ends(f"{before}accuracy", score.accuracy, score.accuracy_interval)
    against = result.against
    if against is not None:
        row |= with_ends("difference", against.difference.macro_f1, against.difference.macro_f1_interval)
        row |= {"accuracy_difference": against.difference.accuracy, "p": against.p, "p_holm": against.p_holm}
        row["verdict"] = against.verdict
    if result.cost is not None:
        epochs = result.cost.epochs or (None, None)
        row |= {**vars(result.cost), "epochs": epochs[1]}
    row |= {f"f1 {name}": value for name, value in result.classes.items()}
    return {**row, "caveats": " ".join(result.caveats)}
