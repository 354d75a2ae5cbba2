"""Additional photos that a plan trains on: those of other sources, and other versions of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fastmask.config import Config
from fastmask.data.extra import Extra, read_extra
from fastmask.data.missing import MissingPhotos
from fastmask.data.pseudo import read_pseudo
from fastmask.data.readers import column_of_weights
from fastmask.data.seen import Validation
from fastmask.data.table import Table
from fastmask.data.training_set import dropped_rows
from fastmask.data.versions import cut_extra, read_versions
from fastmask.system.errors import UsageError
from fastmask.system.text import count
from fastmask.training.build import make_framing
from fastmask.training.decoding import find_readable
from fastmask.training.plan import Plan, Teacher

# paths of photos that are left out, and why
Skipped = list[tuple[str, str]]
# opens the teacher of a configuration and checks it; passed by the caller, since training cannot import inference
OpenTeacher = Callable[[Config, Validation], Teacher]


def read_extras(config: Config, table: Table, validation: Validation) -> tuple[list[Extra], Skipped]:
    """The photos of other sources that a configuration trains on, without those that it drops.

    Also the paths of those that are skipped because they cannot be read, with what is wrong with them.
    """
    extras, missing = [], MissingPhotos()
    if config.extra is not None:
        extras.append(
            read_extra(
                config.extra,
                table.heads,
                config.extra_images,
                config.extra_weight,
                config.group_column,
                missing.note,
                column_of_weights(config),
            )
        )
    if config.pseudo is not None:
        pseudo = read_pseudo(config.pseudo, missing.note)
        pseudo.check_unseen(validation)
        extras.append(pseudo.extra(table.heads, config.pseudo_weight, config.pseudo_least))
    skipped = missing.left_out(config.on_bad_photo == "skip", sum(map(len, extras)))
    if config.boxes is not None:
        cuts = [extra.table.cut_to_faces(config.boxes, make_framing(config)) for extra in extras]
        extras = [replace(extra, table=cut) for extra, cut in zip(extras, cuts, strict=True)]
    extras = [extra.select(~dropped_rows(extra.table, config.drop)) for extra in extras]
    if config.on_bad_photo == "skip":
        for place, extra in enumerate(extras):
            rows, unreadable = find_readable(extra.table)
            extras[place] = extra.select(np.isin(np.arange(len(extra)), rows))
            skipped += unreadable
    return extras, skipped


def find_other_versions(
    table: Table, config: Config, digests: Sequence[str], say: Callable[[str], None]
) -> tuple[list[Extra], list[list[str]], Skipped]:
    """The other versions of a table's photos, also of those that are only validated, and their digests.

    Also the paths of those that are skipped because they cannot be read. `digests` are those of the table's photos.
    Raises UsageError for a folder of copies of these.
    """
    extras: list[Extra] = []
    own: list[list[str]] = []
    skipped: Skipped = []
    for found, extra in read_versions(table, config):
        if found.lacking or found.stray:
            say(str(found))
        if config.on_bad_photo == "skip":
            rows, unreadable = find_readable(extra.table)
            extra = extra.select(np.isin(np.arange(len(extra)), rows))
            skipped += [(str(found.root / path), fault) for path, fault in unreadable]
        extras.append(cut_extra(extra, table, config))
        own.append(extra.digests())
        if own[-1] == [digests[row] for row in extra.origin_rows]:
            raise UsageError(
                f"--images-also {found.folder} holds the same photos as the data, byte by byte, which are no other "
                "version; leave it out."
            )
    return extras, own, skipped


def count_versions(config: Config, extras: Sequence[Extra]) -> dict[str, dict[str, int]]:
    """For environment.json: the number of photos of each other version, by its folder; nothing without versions."""
    counts = [len(extra) for extra in extras if extra.origins is not None]
    return {"versions": dict(zip(config.images_also or (), counts, strict=True))} if counts else {}


def describe_extras(extras: Sequence[Extra]) -> Iterator[str]:
    """How many photos of other sources are trained on."""
    versions = [extra for extra in extras if extra.origins is not None]
    if versions:
        photos = ", ".join(count(len(extra), "photo") for extra in versions)
        yield f"{count(len(versions), 'other version')} to train on ({photos}), in the folds of the same photos"
    extras = [extra for extra in extras if extra.origins is None]
    if extras:
        useful = sum(int(extra.useful.sum()) for extra in extras)
        useless = sum(map(len, extras)) - useful
        apart = sum(int(extra.excluded.any(axis=1).sum()) for extra in extras)
        without = f" ({useless} without labels left out)" if useless else ""
        yield f"{useful} extra photos to train on{without}, {apart} of them not in every fold"


def add_versions(plan: Plan, say: Callable[[str], None]) -> Plan:
    """The plan with the other versions of all its photos."""
    versions, own, skipped = find_other_versions(plan.table, plan.config, plan.digests, say)
    return replace(plan, extras=versions, extra_digests=own, skipped=[*plan.skipped, *skipped])


def validation_of(plan: Plan, chosen: Sequence[int] | None) -> Validation:
    """What the folds of a plan with versions validate."""
    pairs = [(each.origin_rows, own) for each, own in zip(plan.extras, plan.extra_digests, strict=True)]
    return Validation(plan.table, plan.folds, plan.digests, plan.config.group, chosen, pairs)


def add_sources(plan: Plan, validation: Validation, open_teacher: OpenTeacher | None) -> Plan:
    """The plan with photos of other sources, its teacher and the digests of all photos.

    The teacher must not have seen a photo that a fold validates.
    """
    config, table = plan.config, plan.table
    versions, of_versions = [], []
    for version, digests in zip(plan.extras, plan.extra_digests, strict=True):
        kept = ~dropped_rows(version.table, config.drop)
        versions.append(version.select(kept))
        of_versions.append([digest for digest, keep in zip(digests, kept, strict=True) if keep])
    extras, skipped = read_extras(config, table, validation)
    if config.teacher is not None and open_teacher is None:
        raise UsageError("The setting teacher needs fastmask.api.cross_validate, or open_teacher passed to prepare.")
    teacher = open_teacher(config, validation) if open_teacher and config.teacher is not None else None
    for faces in (extra.table.faces for extra in extras):
        # one loader reads the photos of all sources
        table = table if faces is None or table.faces is None else replace(table, faces=table.faces.join(faces))
    own = [*of_versions, *(extra.digests() for extra in extras)]
    skipped = [*plan.skipped, *skipped]
    plan = replace(plan, table=table, extras=[*versions, *extras], extra_digests=own, skipped=skipped, teacher=teacher)
    return exclude_validated(plan)


def exclude_validated(plan: Plan) -> Plan:
    """The plan with each photo of another source excluded from the folds that validate the same photo or person."""
    pairs = list(zip(plan.extras, plan.extra_digests, strict=True))
    versions = [(extra.table, own) for extra, own in pairs if extra.origins is not None]
    extras = [extra.exclude_validated(plan.table, plan.folds, plan.digests, own, versions) for extra, own in pairs]
    return replace(plan, extras=extras)


def digest_extras(plan: Plan) -> str:
    """SHA-256 of the photos of each other source, and of the folds that they are excluded from."""
    return "".join(extra.digest(each) for extra, each in zip(plan.extras, plan.extra_digests, strict=True))
