"""Auxiliary: the heads that are learned next to those of the joint class, and their labels.

They are made of a table that has the others: the number behind a head of bands, finer bands of it, the joint class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastmask.heads import JOINT, UNKNOWN, Head, Heads, band_names, bands_of, number_of
from fastmask.system.errors import UsageError
from fastmask.system.text import join_some

# classes of a distribution over a number, of finer bands, and of a joint head
_MOST_NUMBERS, _MOST_JOINT = 300, 2000


def number_head(frame: pd.DataFrame, head: Head, spread: float) -> Head:
    """The head of the whole numbers behind a head of bands, learned as a distribution; raises UsageError for others."""
    if head.bounds is None:
        raise UsageError(f"Head {head.name} is not made of bands of a number, so no distribution can be learned.")
    numbers = frame[f"{head.name}_value"].round()
    low, high = numbers.min(), numbers.max()
    if not 1 <= high - low < _MOST_NUMBERS:
        raise UsageError(
            f"The numbers of {head.name} are {low:g} to {high:g}; expected 2 to {_MOST_NUMBERS} whole numbers, such as "
            "years, for a distribution."
        )
    return Head(number_of(head.name), tuple(str(n) for n in range(int(low), int(high) + 1)), spread=spread)


def bands_head(head: Head, bounds: Sequence[float]) -> Head:
    """The head of finer bands of a head of bands.

    Raises UsageError unless they rise, and contain and exceed the bounds that the head is trained by.
    """
    if head.bounds is None:
        raise UsageError(f"Setting bands: head {head.name} is not made of bands of a number, so it has no finer ones.")
    trained, found = head.train_bounds or head.bounds, ", ".join(f"{bound:g}" for bound in bounds)
    missing = [f"{bound:g}" for bound in trained if bound not in bounds]
    if missing or list(bounds) != sorted(set(bounds)) or not len(trained) < len(bounds) < _MOST_NUMBERS:
        raise UsageError(
            f"Setting bands: the finer bounds of {head.name} are {found}; expected rising numbers, "
            f"{', '.join(f'{bound:g}' for bound in trained)} among them, by which it is trained, and more than those."
        )
    names = band_names(bounds)
    return Head(bands_of(head.name), names, bands_of=head.name, finer_bounds=tuple(bounds))


def joint_head(heads: Heads, share: float) -> Head:
    """The head of the joint class; raises UsageError for a single head, and for too many joint classes."""
    named = join_some(heads.classified)
    if len(heads.joined) < 2:
        raise UsageError(
            f"The joint class is of two or more heads, and here is only {named}; leave out one_head and joint_head."
        )
    if heads.n_joint > _MOST_JOINT:
        raise UsageError(
            f"The heads {named} make {heads.n_joint:,} joint classes, and one head learns at most {_MOST_JOINT:,}; "
            "train the heads apart, or fewer of them."
        )
    return Head(JOINT, tuple(heads.joint_names()), joint_share=share)


def auxiliary_labels(frame: pd.DataFrame, heads: Heads) -> dict[str, np.ndarray | pd.Series]:
    """The (N,) names of the classes of each auxiliary head, "" where unknown, of a frame with the other heads.

    A number outside those of a distribution is unknown.
    """
    found: dict[str, np.ndarray | pd.Series] = {}
    for head in heads:
        source = next((other for other in heads.classified if number_of(other) == head.name), None)
        if head.spread is not None and source is not None:
            numbers = frame[f"{source}_value"].round()
            texts = numbers.map(lambda number: "" if np.isnan(number) else f"{number:.0f}")
            found[head.name] = texts.where(texts.isin(head.classes), "")
        elif head.bands_of is not None:
            numbers = np.where(frame[head.bands_of] == "", np.nan, frame[f"{head.bands_of}_value"].to_numpy(np.float64))
            codes = np.where(np.isnan(numbers), UNKNOWN, np.digitize(numbers, head.finer_bounds or ()))
            found[head.name] = head.decode_all(codes)
        elif head.joint_share is not None:
            joined = Heads([heads[name] for name in heads.classified])
            found[head.name] = head.decode_all(joined.joint(joined.encode_frame(frame)))
    return found
