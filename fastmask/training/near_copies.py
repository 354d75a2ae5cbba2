"""Near copies of a plan: photos of two persons that are one picture with other bytes, for the caveat of its score.

Unlike identical files, they do not decide the folds: whether two photos are alike enough depends on rounding, and folds
must be the same on every machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastmask.data.cache import PhotoMap
from fastmask.data.photo import read_photo
from fastmask.preparation.near_copies import recall_near_copies, remember_near_copies, search_near_copies
from fastmask.run.caveats import NEAR_COPIES, describe_near_copies
from fastmask.system.errors import FastmaskWarning, UsageError, one_line
from fastmask.training.plan import Plan

# the photos up to which all pairs are compared: on one core 15 s for 18,900, then with their square
_MOST_PHOTOS = 60_000


def note_near_copies(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan with the near copies of its photos in its environment, and a warning if its folds separate some.

    They are searched among the decoded photos, once per data set if photos are cached on the disk. Not in a leaky
    split, which separates all photos of a person.
    """
    if plan.config.group != "person" or not plan.processes.is_first:
        return plan
    found = _find(plan, say)
    paths = dict(zip(reversed(plan.digests), reversed(plan.table.frame["path"].tolist()), strict=True))
    noted = {"pairs": None if found is None else [[paths[one], paths[other]] for one, other in found]}
    caveat = describe_near_copies(noted, plan.folds_frame)
    if caveat:
        warnings.warn(caveat, FastmaskWarning, stacklevel=2)
    return replace(plan, environment={**plan.environment, NEAR_COPIES: noted})


def _find(plan: Plan, say: Callable[[str], None]) -> list[tuple[str, str]] | None:
    """The digests of each two photos that are one picture; None if there are too many photos to search."""
    table, folder = plan.table, plan.config.cache_dir
    photos = [table.photo(row) for row in range(len(table))]
    decoded = next((kept for kept in reversed(plan.maps) if kept.get(str(photos[0])) is not None), PhotoMap())
    shown_as = [decoded.prefix, None if table.faces is None else table.faces.digest()]
    try:
        found = recall_near_copies(table.groups, plan.digests, folder, shown_as)
    except UsageError:
        # without a home directory there is no cache
        found = None
    if found is not None or len(table) > _MOST_PHOTOS:
        return found

    def photo_of(row: int) -> np.ndarray:
        kept = decoded.get(str(photos[row]))
        return read_photo(photos[row]) if kept is None else kept

    found = search_near_copies(table.groups, plan.digests, photo_of)
    if decoded.file is not None:
        try:
            remember_near_copies(table.groups, plan.digests, found, folder, shown_as)
        except (OSError, UsageError) as error:
            say(f"The search for near copies is not kept: {one_line(error)}")
    return found
