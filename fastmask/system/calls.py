"""Calls: a name with arguments as text, such as `randaugment(magnitude=7)`, read without running code."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

_CALL = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
# characters of one call; Python's parser takes nested brackets without limit
_LONGEST = 1000


def split_calls(text: str) -> list[str]:
    """`flip, rotate(limit=(-5, 5))` -> ["flip", "rotate(limit=(-5, 5))"]: commas inside brackets do not separate."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return [part.strip() for part in found]


def spell_call(given: Any) -> Any:
    """{"rotate": {"limit": [-5, 5]}}, as files write a call, -> "rotate(limit=[-5, 5])"; anything else is returned."""
    if not isinstance(given, Mapping) or len(given) != 1:
        return given
    ((name, arguments),) = given.items()
    if not isinstance(arguments, Mapping):
        return given
    return f"{name}({', '.join(f'{argument}={_spell(value)}' for argument, value in arguments.items())})"


def _spell(value: Any) -> str:
    """A value as text, which may have been read as text."""
    return f"[{', '.join(map(_spell, value))}]" if isinstance(value, list | tuple) else str(value)


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a call; a name alone has none.

    Values are Python's numbers, texts, true and false, tuples, lists and mappings of these; a word is a text. Raises
    ValueError for anything else.
    """
    match = _CALL.fullmatch(text[:_LONGEST])
    if match is None or len(text) > _LONGEST:
        raise ValueError("expected a name, or a name with arguments, such as rotate(limit=10)")
    name, inside = match.groups()
    try:
        call = ast.parse(f"f({inside or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
            raise ValueError
        arguments = {str(one.arg): _value(one.value) for one in call.keywords}
        if len(arguments) < len(call.keywords):
            raise ValueError
        return name, arguments
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"expected arguments as in {name}(name=value, other=(1, 2))") from None


def _value(node: ast.expr) -> Any:
    """A literal; a word without quotes is true, false, none, or a text."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "none": None}.get(node.id.lower(), node.id)
    return ast.literal_eval(node)
