"""Caveats: why a run's score differs from that of an honest and complete cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmask.system.text import join_plural

if TYPE_CHECKING:
    from fastmask.run.directory import RunDirectory


def all_caveats(run: RunDirectory) -> list[str]:
    """The caveats of a run's score; usually none.

    An ensemble has those of its members, except for heads that one member has not learned and another has.
    """
    unlearned = run.heads.unlearned
    if not unlearned:
        return training_caveats(run)
    what = f"{', '.join(unlearned)} (weight 0) was never learned: its score and the joint one mean nothing."
    return [what, *training_caveats(run)]


def training_caveats(run: RunDirectory) -> list[str]:
    """The caveats except for those of the heads."""
    if run.is_ensemble:
        return list(run.ensemble["caveats"])
    trained = sorted(set(run.oof["fold"].astype(int)))
    caveats = []
    if len(trained) < run.config.folds:
        only = f"{join_plural(trained, 'fold')} {'is' if len(trained) == 1 else 'are'}"
        caveats.append(f"Of {run.config.folds} folds only {only} trained: a part of the photos.")
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
    if run.environment.get("proposed_fixes"):
        caveats.append(
            f"{run.environment['proposed_fixes']} corrections of labels were proposed by a model and not "
            "checked by a person: this score flatters."
        )
    if run.is_leaky:
        caveats.append("Leaky split (--group none): this score flatters and says nothing about new people.")
    return caveats
