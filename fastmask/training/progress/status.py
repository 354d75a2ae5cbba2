"""Status: the progress of a fit, and the lines and tables of text that show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmask.scoring import goodness
from fastmask.system.text import duration, table_lines

# pieces of a line, each with its style for rich
Line = Sequence[tuple[str, str]]
# of the joint class: each head is in history.csv
_METRICS = {"train_loss": "train loss", "valid_loss": "valid loss", "macro_f1": "macro-F1", "accuracy": "accuracy"}
BEST = "*"
# at most as wide as most terminals, so that lines are not wrapped when a wide one is made narrower
_SHORTEST_BAR, _WIDEST = 4, 79


@dataclass(frozen=True)
class Epochs:
    """The epochs of a fold: their rows of history.csv and their seconds; `monitor` decides which is the best."""

    rows: Sequence[Mapping[str, Any]]
    seconds: Sequence[float]
    monitor: str

    @property
    def best(self) -> int | None:
        """The index of the best row, the earlier of two equals; None if all are NaN or inf."""
        values = goodness([float(row[self.monitor]) for row in self.rows], self.monitor)
        return int(values.argmax()) if np.isfinite(values).any() else None

    def table(self, last: int | None = None) -> list[Line]:
        """A header and a line for each of the `last` epochs, by default all, with the best one marked."""
        names = dict(_METRICS)
        names.setdefault(self.monitor, self.monitor)
        cells = [["epoch", *names.values(), "seconds"]]
        for place, (row, seconds) in enumerate(zip(self.rows, self.seconds, strict=True)):
            mark = BEST if place == self.best else " "
            numbers = {name: float(row[name]) for name in names}
            # of an epoch that was not validated
            values = ["" if math.isnan(value) else f"{value:{len(names[name])}.4f}" for name, value in numbers.items()]
            cells.append([f"{int(row['epoch']) + 1:3} {mark}", *values, f"{seconds:7.1f}"])
        header, *lines = table_lines(cells) or [""]
        styled = [(line, "green" if place == self.best else "") for place, line in enumerate(lines)]
        first = 0 if last is None else max(0, len(styled) - last)
        return [[piece] for piece in [(header, "bold"), *styled[first:]]]

    @property
    def verdict(self) -> str:
        """The number of epochs and the best one, in words."""
        if self.best is None:
            return f"epochs {len(self.rows)}, no best one"
        row = self.rows[self.best]
        return f"best epoch {int(row['epoch']) + 1} of {len(self.rows)}, macro-F1 {row['macro_f1']:.4f}"


def folds_table(folds: Mapping[int, Epochs], of: int) -> list[Line]:
    """A header and a line per fold: its epochs, its best one by its own photos, macro-F1 in that, seconds."""
    cells = [["fold", "epochs", "best epoch", "macro-F1", "seconds"]]
    for fold, epochs in folds.items():
        best = epochs.best
        row = None if best is None else epochs.rows[best]
        at = ["", ""] if row is None else [f"{int(row['epoch']) + 1:10}", f"{float(row['macro_f1']):8.4f}"]
        cells.append([f"{fold + 1}/{of}", f"{len(epochs.rows):6}", *at, f"{sum(epochs.seconds):7.1f}"])
    return [[(line, "" if place else "bold")] for place, line in enumerate(table_lines(cells))]


@dataclass(frozen=True)
class TimeLeft:
    """Seconds that are left of the fold and of the run; `at_most` if either may stop earlier."""

    fold: float
    run: float
    at_most: bool

    def __str__(self) -> str:
        most = "at most " if self.at_most else ""
        return f"{most}{duration(self.fold)} left of the fold, {duration(self.run)} of the run"


@dataclass(frozen=True)
class Status:
    """The progress of a fit: the fold's `title`, its epoch, the step within it, speed, loss, time left, epochs."""

    title: str
    epoch: int
    epochs: int
    training: bool
    step: int
    steps: int
    photos_per_second: float | None = None
    loss: float | None = None
    left: TimeLeft | None = None
    done: Epochs | None = None


def status_lines(status: Status, width: int, ascii_only: bool = False) -> list[Line]:
    """Three lines that fit into `width`: the progress of the epoch, its metrics, the time left."""
    return [_progress(status, width, ascii_only), _quality(status), [(str(status.left or ""), "")]]


def _progress(status: Status, width: int, ascii_only: bool) -> Line:
    front = f"{status.title}  epoch {status.epoch + 1}/{status.epochs}  "
    back = f"  {'' if status.training else 'validating '}{status.step}/{status.steps}"
    speed = status.photos_per_second
    if speed is not None and status.training:
        back += f"  {speed:,.0f} photos/s" if speed >= 10 else f"  {speed:.1f} photos/s"
    room = min(width, _WIDEST) - len(front) - len(back)
    if room < _SHORTEST_BAR:
        return [(front.rstrip(), "bold"), (back, "")]
    full, empty = "#-" if ascii_only else "━─"
    filled = room * status.step // status.steps if status.steps else 0
    return [(front, "bold"), (full * filled, "cyan"), (empty * (room - filled), "dim"), (back, "")]


def _quality(status: Status) -> Line:
    pieces = [] if status.loss is None else [(f"loss {status.loss:.4f}", "")]
    done = status.done
    if done is not None and done.rows:
        scores = [score for row in done.rows if not math.isnan(score := float(row["macro_f1"]))]
        pieces += [(f"macro-F1 {score:.4f}", "") for score in scores[-1:]]
        if done.best is not None:
            row, name = done.rows[done.best], done.monitor
            words = "" if name == "macro_f1" else f"{name} "
            pieces.append((f"best {words}{float(row[name]):.4f} in epoch {int(row['epoch']) + 1}", "green"))
    spaced = [[piece, ("  ", "")] for piece in pieces]
    return [piece for both in spaced for piece in both][:-1]


def plain_text(line: Line) -> str:
    """A line without its styles."""
    return "".join(text for text, _ in line)
