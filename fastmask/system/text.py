"""Text: values formatted for messages and tables."""

from __future__ import annotations

from collections.abc import Sequence

# shown for a missing value
NOTHING = "–"


def shorten(text: str, most: int = 200) -> str:
    """The beginning of a text of more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shorten_repr(value: object, most: int = 200) -> str:
    """The beginning of a value's `repr`."""
    return shorten(repr(value), most)


def shorten_start(text: str, most: int = 32) -> str:
    """The end of a text of more than `most` characters, because paths differ in their ends."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def shorten_middle(text: str, most: int) -> str:
    """The beginning and the end of a text of more than `most` characters, because names may differ in either."""
    if len(text) <= most:
        return text
    end = (most - 1) // 3
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def join_some(names: Sequence[object], most: int = 8) -> str:
    """`a, b, c`: the first `most` names, and the number of the others."""
    shown = ", ".join(map(str, names[:most]))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def join_plural(names: Sequence[object], word: str) -> str:
    """`person a` or `persons a, b`: the first five names, and the number of the others."""
    return f"{word}{'' if len(names) == 1 else 's'} {join_some(names, 5)}"


def count(n: int, word: str) -> str:
    """`1 photo`, `2 photos`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def percent(share: float, digits: int = 0) -> str:
    """A share in percent; 0 % and 100 % only if it is exactly that."""
    if share != share:
        return NOTHING
    step = 10**-digits
    number = f"{100 * share:.{digits}f}"
    if 0 < share < step / 200:
        number = f"<{step:g}"
    elif 1 - step / 200 <= share < 1:
        number = f">{100 - step:g}"
    # no line break before the sign
    return f"{number}\N{NO-BREAK SPACE}%"


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it, with three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        # 999.5 would be rounded to four digits
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB" if count >= 99.5 else f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first a header, as lines with aligned columns; no lines for a header alone.

    Columns without any text are left out.
    """
    if len(rows) < 2:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]
