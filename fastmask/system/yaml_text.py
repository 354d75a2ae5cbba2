"""YAML: read by the core schema of YAML 1.2, in which `no` is text and `010` is 10, and written for 1.1 too."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from fastmask.system import limits
from fastmask.system.text import shorten, shorten_repr

_TAG = "tag:yaml.org,2002:"
_INT = "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
# the types of values without quotes: a pattern, and the characters that it starts with
_CORE = {
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (_INT, "-+0123456789"),
    "float": (_FLOAT, "-+.0123456789"),
    "null": ("~|null|Null|NULL|", "~nN"),
    "merge": ("<<", "<"),
}
_TYPED = {f"{_TAG}{kind}" for kind in ("bool", "int", "float")}
_LONG_NUMBER = re.compile(rf"[-+]?[0-9][0-9a-fox_:]{{{limits.DIGITS},}}", re.IGNORECASE)
# where YAML does not allow tabs, but editors write them
_TAB_AFTER_KEY, _TAB_AT_END = re.compile(r"(?m)^( *[^\s#:'\"]+:)\t+"), re.compile(r"(?m)[ \t]*\t[ \t]*$")


def parse_yaml(text: str, texts: Collection[str] = (), as_text: bool = False) -> Any:
    """The plain values of YAML; keys are text, and so is what is inside `texts`, names of the outermost mapping.

    With `as_text` everything is. Raises ValueError, whose message is about a line, if it is invalid, has a key twice,
    builds objects, or expands to too many values.
    """
    import yaml

    text = _TAB_AFTER_KEY.sub(r"\1 ", _TAB_AT_END.sub("", text))
    loader = None
    try:
        _check_size(yaml.parse(text, yaml.SafeLoader))
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _read_as_text(node, texts, as_text, set())
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_describe(error, text)) from error
    finally:
        if loader is not None:
            loader.dispose()


def to_yaml(value: Any, in_ascii: bool = False) -> str:
    """Plain values as YAML text, in the order given; `in_ascii` escapes all other characters."""
    import yaml

    return str(yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=not in_ascii, width=100))


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Has the types of YAML 1.2, and none of 1.1."""

    Loader.yaml_implicit_resolvers = {}
    for kind, (pattern, starts) in _CORE.items():
        first = [*starts, *([""] if kind == "null" else [])]
        Loader.add_implicit_resolver(f"{_TAG}{kind}", re.compile(rf"(?:{pattern})\Z"), first)
    Loader.add_constructor(f"{_TAG}int", _read_int)
    return Loader


def _read_int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


@cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what is text in YAML 1.1 and a number in 1.2, too."""

    for kind in ("int", "float"):
        pattern, starts = _CORE[kind]
        Dumper.add_implicit_resolver(f"{_TAG}{kind}", re.compile(rf"(?:{pattern})\Z"), list(starts))
    return Dumper


def _read_as_text(node: Any, texts: Collection[str], as_text: bool, done: set[int]) -> None:
    """Tag keys as text, and the values of `texts`, or with `as_text` all; raises ValueError for a key in two lines."""
    if id(node) in done:
        return
    done.add(id(node))
    if node.id == "scalar":
        node.tag = f"{_TAG}str" if as_text and node.tag in _TYPED else node.tag
    elif node.id == "sequence":
        for each in node.value:
            _read_as_text(each, (), as_text, done)
    else:
        seen: set[str] = set()
        for key, value in node.value:
            if key.id == "scalar" and key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
                if key.value in seen:
                    line, name = key.start_mark.line + 1, shorten_repr(key.value, 50)
                    raise ValueError(f"line {line} has {name} a second time; remove one of the two")
                seen.add(key.value)
            _read_as_text(value, (), as_text or key.value in texts, done)


def _describe(error: Exception, text: str) -> str:
    """The first error of a YAML text, with its line."""
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    lines = text.splitlines()
    if mark is None:
        return "it is not valid YAML; expected lines such as 'name: value'"
    if context is not None and (mark.line >= len(lines) or not lines[mark.line].strip()):
        # a list or mapping without an end: name the line where it starts
        mark = context
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"line {mark.line + 1} is indented by a tab; indent by spaces"
    if "constructor for the tag" in str(error):
        return f"line {mark.line + 1} has a tag, {shorten(line.strip(), 100)!r}; expected plain values"
    shown = shorten(line.strip(), 100)
    return f"line {mark.line + 1} is not valid YAML: {shown!r}; expected lines such as 'name: value'"


def _check_size(events: Iterator[Any]) -> None:
    """Raise ValueError if YAML has too many values, with its aliases expanded."""
    sizes: dict[str, int] = {}
    # (anchor, number of values so far) of each open list or mapping
    within: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        what, anchor, size = type(event).__name__, getattr(event, "anchor", None), 1
        if what in ("SequenceStartEvent", "MappingStartEvent"):
            within.append((anchor, 1))
            if len(within) > limits.YAML_DEPTH:
                raise ValueError(f"it is nested more than {limits.YAML_DEPTH} deep")
            continue
        if what in ("SequenceEndEvent", "MappingEndEvent"):
            anchor, size = within.pop()
        elif what == "AliasEvent":
            if anchor not in sizes:
                raise ValueError(f"*{anchor} refers to nothing, or to a value that contains it")
            size = sizes[anchor]
        elif what == "ScalarEvent":
            _check_scalar(event)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, count = within[-1]
        within[-1] = (outer, count + size)
        if count + size > limits.YAML_VALUES:
            raise ValueError(f"it holds more than {limits.YAML_VALUES} values")


def _check_scalar(event: Any) -> None:
    # a lone surrogate cannot be written or printed
    event.value.encode()
    if "\0" in event.value:
        raise ValueError(f"found the character \\0 in line {event.start_mark.line + 1}")
    if event.style is None and _LONG_NUMBER.fullmatch(event.value):
        raise ValueError(f"found a number of {len(event.value)} digits in line {event.start_mark.line + 1}")
