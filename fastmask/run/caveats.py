"""Caveats: why a run's score differs from that of an honest and complete cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from fastmask.data.table import TRAIN_ONLY
from fastmask.system.errors import DataError
from fastmask.system.text import count, join_plural

if TYPE_CHECKING:
    from fastmask.run.directory import RunDirectory

# in environment.json, a mapping: `pairs` are the paths of each two photos that are one picture, None if not searched,
# `extra` those of a photo and an extra photo
NEAR_COPIES = "near_copies"


def all_caveats(run: RunDirectory) -> list[str]:
    """The caveats of a run's score; usually none.

    An ensemble has those of its members, except for heads that one member has not learned and another has.
    """
    unlearned = run.heads.unlearned
    if not unlearned:
        return training_caveats(run)
    learned, scores = ("was", "its score") if len(unlearned) == 1 else ("were", "their scores")
    what = (
        f"{join_plural(unlearned, 'Head')} (weight 0) {learned} never learned: {scores} and the joint one mean nothing."
    )
    return [what, *training_caveats(run)]


def training_caveats(run: RunDirectory) -> list[str]:
    """The caveats except for those of the heads."""
    if run.is_ensemble:
        return list(run.ensemble["caveats"])
    if run.soup is not None:
        return list(run.soup["caveats"])
    trained = sorted(set(run.oof["fold"].astype(int)))
    caveats = []
    if len(trained) < run.config.folds:
        only = f"{join_plural(trained, 'fold')} {'is' if len(trained) == 1 else 'are'}"
        caveats.append(f"Of {run.config.folds} folds only {only} trained: a part of the photos.")
    never = int((run.folds["fold"] == TRAIN_ONLY).sum())
    if never:
        caveats.append(
            f"{never:,} of {count(len(run.folds), 'photo')} are only trained on: the score is of the others."
        )
    if run.start.get("chosen_weights"):
        caveats.append(
            "Folds started from weights of an epoch chosen by their own photos (--weights): this score flatters a "
            "little; compare it only with runs from the same weights."
        )
    teachers = [name for name in ("pseudo", "teacher") if getattr(run.config, name)]
    if teachers:
        caveats.append(
            f"Each fold learned from a teacher's epoch chosen by its own photos (--{', --'.join(teachers)}): "
            "this score flatters a little; compare it only with runs that did the same."
        )
    if run.config.tuned:
        caveats.append(
            "A search (tune) chose the settings by such scores: on the photos of that search this score flatters; the "
            "search's cross-fitted score does not."
        )
    if run.environment.get("proposed_fixes"):
        caveats.append(
            f"{run.environment['proposed_fixes']} corrections of labels were proposed by a model and not "
            "checked by a person: this score flatters."
        )
    noted = run.environment.get(NEAR_COPIES)
    near = (
        describe_near_copies(noted, run.folds, run.path),
        describe_extra_copies(noted, run.folds, run.extra, run.path),
    )
    caveats += filter(None, near)
    if run.is_leaky:
        caveats.append("Leaky split (--group none): this score flatters and says nothing about new people.")
    return caveats


def describe_near_copies(noted: Any, folds: pd.DataFrame, source: object = "The run") -> str:
    """The caveat of near copies that the folds of a frame like folds.csv separate; "" if there are none.

    `noted` is what environment.json has of them: None in a run of an earlier version. Raises DataError if it is
    malformed.
    """
    if noted is None:
        return ""
    pairs = _read_pairs(noted, "pairs", source)
    if pairs is None:
        return (
            f"Near copies under two persons were not searched among {count(len(folds), 'photo')}, which takes long: if "
            "there are any, this score flatters. fastmask check finds them, and the next run knows its result."
        )
    fold_of = dict(zip(folds["path"], folds["fold"], strict=True))
    apart = [(one, other) for one, other in pairs if fold_of.get(one) != fold_of.get(other)]
    if not apart:
        return ""
    one, other = apart[0]
    return (
        f"{count(len(apart), 'pair')} of persons in two folds have the same picture in different files, such as {one} "
        f"and {other}: this score flatters. fastmask check lists them; merge such persons (--fixes), or remove the "
        "copies."
    )


def describe_extra_copies(
    noted: Any, folds: pd.DataFrame, extra: pd.DataFrame | None, source: object = "The run"
) -> str:
    """The caveat of near copies between the photos of a fold and extra photos that it trains on; "" if there are none.

    `extra` is a frame like extra.csv, `noted` as for `describe_near_copies`.
    """
    # runs with no such photos have no list
    if extra is None or not noted or "extra" not in noted:
        return ""
    fold_of = dict(zip(folds["path"], folds["fold"].astype(str), strict=True))
    # of equal paths in two sources the first is that of --extra
    without = dict(zip(reversed(extra["path"].tolist()), reversed(extra["without"].tolist()), strict=True))
    pairs = _read_pairs(noted, "extra", source) or []
    never = str(TRAIN_ONLY)
    leaking = [(one, other) for one, other in pairs if fold_of.get(one) not in [never, *without.get(other, "").split()]]
    if not leaking:
        return ""
    (one, other), photos = leaking[0], {photo for _, photo in leaking}
    return (
        f"{count(len(photos), 'photo')} of --extra {'is' if len(photos) == 1 else 'are'} used to train a fold that "
        f"validates the same picture, such as {other} and {one}: this score flatters. Give both the same person in the "
        "column person, or remove the extra photos."
    )


def _read_pairs(noted: Any, name: str, source: object) -> list[list[str]] | None:
    """The pairs of paths under a name of NEAR_COPIES, or None; raises DataError for anything else."""
    pairs = noted[name] if isinstance(noted, dict) and name in noted else ""
    if pairs is not None and not (isinstance(pairs, list) and all(map(_is_pair, pairs))):
        raise DataError(f"{source} holds no list of pairs under {NEAR_COPIES} in environment.json; restore it.")
    return pairs


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(path, str) for path in value)
