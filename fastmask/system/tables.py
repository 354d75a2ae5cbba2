"""Tables: rows of cells as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first a header, as lines with their cells below each other; nothing of a header alone.

    Columns without a word are left out.
    """
    if len(rows) < 2:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]
