"""Near copies of a plan: photos of two persons that are one picture with other bytes, for the caveat of its score.

Unlike identical files, they do not decide the folds: whether two photos are alike enough depends on rounding, and folds
must be the same on every machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmask.data.cache import PhotoMap
from fastmask.data.extra import Extra
from fastmask.data.groups import connect_tables, name_groups
from fastmask.data.photo import read_photo
from fastmask.data.table import Table
from fastmask.preparation.near_copies import recall_near_copies, remember_near_copies, search_near_copies
from fastmask.run.caveats import NEAR_COPIES, describe_extra_copies, describe_near_copies
from fastmask.system.errors import FastmaskWarning, UsageError, one_line
from fastmask.training.plan import Plan

# the photos up to which all pairs are compared: on one core 15 s for 18,900, then with their square
_MOST_PHOTOS = 60_000


def note_near_copies(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan with the near copies of its photos in its environment, and a warning if its folds separate some.

    Labelled photos of other sources are searched as well: one may be a photo that a fold validates. They are searched
    among the decoded photos, once per data set if photos are cached on the disk. Not in a leaky split, which separates
    all photos of a person.
    """
    if plan.config.group != "person" or not plan.processes.is_first:
        return plan
    # the labels of others are of models that have not seen what their fold validates; versions have persons for certain
    both = zip(plan.extras, plan.extra_digests, strict=True)
    labelled = [(extra, own) for extra, own in both if extra.soft is None and extra.origins is None]
    found = _find(plan, labelled, say)
    of_table = _paths_by_digest(plan.table, plan.digests)
    of_extra = dict(item for extra, own in reversed(labelled) for item in _paths_by_digest(extra.table, own).items())
    noted: dict[str, Any] = {"pairs": None}
    if found is not None:
        noted["pairs"] = [[of_table[one], of_table[two]] for one, two in found if one in of_table and two in of_table]
        mixed = [pair if pair[0] in of_table else pair[::-1] for pair in found]
        crossed = [(one, two) for one, two in mixed if one in of_table and two not in of_table]
        noted |= {"extra": [[of_table[one], of_extra[two]] for one, two in crossed]} if labelled else {}
    frame, extra = plan.folds_frame, plan.extra_frame
    for caveat in (describe_near_copies(noted, frame), describe_extra_copies(noted, frame, extra)):
        if caveat:
            warnings.warn(caveat, FastmaskWarning, stacklevel=2)
    return replace(plan, environment={**plan.environment, NEAR_COPIES: noted})


def _paths_by_digest(table: Table, digests: Sequence[str]) -> dict[str, str]:
    """The path of the first photo with each digest."""
    return dict(zip(reversed(digests), reversed(table.frame["path"].tolist()), strict=True))


def _find(
    plan: Plan, labelled: Sequence[tuple[Extra, Sequence[str]]], say: Callable[[str], None]
) -> list[tuple[str, str]] | None:
    """The digests of each two photos that are one picture; None if there are too many photos to search."""
    tables, folder = [plan.table, *(extra.table for extra, _ in labelled)], plan.config.cache_dir
    photos = [table.photo(row) for table in tables for row in range(len(table))]
    digests = [*plan.digests, *(digest for _, own in labelled for digest in own)]
    groups = name_groups(connect_tables(tables, digests), np.concatenate([table.persons for table in tables]))
    decoded = next((kept for kept in reversed(plan.maps) if kept.get(str(photos[0])) is not None), PhotoMap())
    shown_as = [decoded.prefix, None if plan.table.faces is None else plan.table.faces.digest()]
    try:
        found = recall_near_copies(groups, digests, folder, shown_as)
    except UsageError:
        # without a home directory there is no cache
        found = None
    if found is not None or len(photos) > _MOST_PHOTOS:
        return found
    maps = [kept for kept in plan.maps if kept.prefix == decoded.prefix]
    found = search_near_copies(groups, digests, lambda row: _read(photos[row], maps))
    if decoded.file is not None:
        try:
            remember_near_copies(groups, digests, found, folder, shown_as)
        except (OSError, UsageError) as error:
            say(f"The search for near copies is not kept: {one_line(error)}")
    return found


def _read(photo: Path, maps: Sequence[PhotoMap]) -> np.ndarray:
    """A photo as decoded in one of the maps, or else its file."""
    kept = (one.get(str(photo)) for one in maps)
    decoded = next((each for each in kept if each is not None), None)
    return read_photo(photo) if decoded is None else decoded
