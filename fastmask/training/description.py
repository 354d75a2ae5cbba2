"""Description: what a plan does, in one line."""

from __future__ import annotations

from collections.abc import Iterator

from fastmask.data.groups import describe_conflicts, describe_joined
from fastmask.data.pipelines import describe_view
from fastmask.data.table import TRAIN_ONLY
from fastmask.data.training_set import dropped_rows
from fastmask.heads import Head
from fastmask.system.text import count, join_some
from fastmask.training.additional import describe_extras
from fastmask.training.effective_config import describe_split
from fastmask.training.plan import Plan
from fastmask.training.processes import ALONE


def describe_plan(plan: Plan) -> str:
    """The photos, the heads, the network and the folds of a plan."""
    parts = (*_describe_photos(plan), *_describe_input(plan), *_describe_training(plan))
    return "; ".join(filter(None, parts))


def _describe_photos(plan: Plan) -> Iterator[str]:
    """Which photos are trained on and validated."""
    table, config = plan.table, plan.config
    without = f", {len(plan.skipped):,} left out" if plan.skipped else ""
    yield f"{count(len(table), 'photo')} of {count(len(set(table.persons)), 'person')}{without}"
    dropped = int(dropped_rows(table, config.drop).sum())
    yield f"{dropped} of them not trained on" if dropped else ""
    yield f"{_describe_epochs(plan)} per epoch" if config.per_person else ""
    yield describe_split(table, config)
    yield describe_joined(table.persons, table.groups)
    yield describe_conflicts(table, plan.digests) if plan.digests else ""
    yield from describe_extras(plan.extras)


def _describe_epochs(plan: Plan) -> str:
    """How many photos the epochs of the folds have."""
    counts = sorted({plan.training_set(fold).photos_per_epoch for fold in range(plan.config.folds)})
    return f"{counts[0]:,} to {count(counts[-1], 'photo')}" if counts[1:] else count(counts[0], "photo")


def _describe_input(plan: Plan) -> Iterator[str]:
    """What the network sees of a photo, and the labels that it learns."""
    config, faces = plan.config, plan.table.faces
    yield f"soft labels of {config.teacher}" if plan.teacher else ""
    if faces:
        yield f"cut to the {config.region}, {faces.describe_faceless()}"
    else:
        yield describe_view(config, plan.environment["photos"].get("seen"))
    for head in plan.table.heads:
        yield _describe_head(plan, head)


def _describe_head(plan: Plan, head: Head) -> str:
    options = (plan.config.per_head or {}).get(head.name)
    return f"{head.name} ({join_some(head.classes)}{f'; {options}' if options else ''})"


def _describe_training(plan: Plan) -> Iterator[str]:
    """The network, the folds, and where they are trained."""
    config, body = plan.config, plan.environment["body"]
    yield f"{config.arch}, {body['parameters'] / 1e6:.1f} M parameters, weights {body['initial_weights']}"
    yield (
        f"scored and predicted by the mean over the photo and its views {join_some(config.views)}"
        if config.views
        else ""
    )
    yield f"classes by the decision {config.decision}" if config.is_set("decision") else ""
    never = int((plan.folds == TRAIN_ONLY).sum())
    in_none = f" ({count(never, 'photo')} in none, to train on only)" if never else ""
    precision = "" if config.precision == "fp32" else f" in {config.precision}"
    several = "" if plan.processes == ALONE else f", {plan.processes.count} processes together"
    folds = f"{count(config.folds, 'fold')}{in_none} of {count(config.epochs, 'epoch')}"
    yield f"{folds} on {plan.environment['device']}{precision}{several}"
