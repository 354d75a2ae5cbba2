"""Composition: what a run that is made of others says about them, an ensemble of runs or a soup of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.system import limits
from fastmask.system.errors import DataError
from fastmask.system.files import read_mapping

# what ensemble.json says of each member
_OF_MEMBER = ("name", "path", "identity", "oof")


def read_ensemble(file: Path) -> dict[str, Any]:
    """The `blend` of an ensemble, its `weights`, `members`, and the `caveats` of their scores; raises DataError."""
    plain = read_mapping(file)
    members = plain.get("members")
    whole = (
        isinstance(members, list)
        and all(isinstance(member, dict) and _are_texts([*map(member.get, _OF_MEMBER)]) for member in members)
        and isinstance(plain.get("blend"), str)
        and isinstance(plain.get("weights"), dict)
        and _are_texts(plain.get("caveats"))
    )
    if not isinstance(members, list) or not whole:
        raise DataError(f"{file} does not hold a blend, its weights, members and caveats; restore it.")
    if not 2 <= len(members) <= limits.MEMBERS:
        raise DataError(f"An ensemble is made of 2 to {limits.MEMBERS} runs; {file} names {len(members)}: restore it.")
    return plain


def read_soup(environment: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """The `runs` of a soup, its `members` per fold, and the `caveats` of its score; None for a run that is none.

    Raises DataError if `environment`, the content of `file`, has another soup.
    """
    soup: Any = environment.get("soup")
    if soup is None:
        return None
    members = soup.get("members") if isinstance(soup, dict) else None
    if not isinstance(members, dict) or not all(
        map(_are_texts, (soup.get("runs"), soup.get("caveats"), *members.values()))
    ):
        raise DataError(f"{file} does not say what soup this is; restore it.")
    return dict(soup)


def _are_texts(plain: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(plain, list) and all(isinstance(text, str) for text in plain)
