"""Write: a run's report on the disk: the page, its pictures, the model card."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from fastmask.report.blocks import Album, Drawing, Section
from fastmask.report.card import is_edited, to_card
from fastmask.report.material import Material
from fastmask.report.page import make_sections, to_html
from fastmask.report.photos import plot_sheet
from fastmask.report.style import missing_letters, to_png
from fastmask.run.directory import CARD, PAGE, PICTURES, RunDirectory
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError
from fastmask.system.files import check_parent, real, replacing, write_text
from fastmask.system.lock import held
from fastmask.system.text import in_bytes

# letters that a warning shows
_LETTERS = 8


@dataclass(frozen=True)
class Report:
    """A report that was written: its `page`, its `card`, its `pictures`.

    `missing` says of each section that was left out why, `gone` which photos are not there any more; `kept` whether the
    card is somebody's own and stayed.
    """

    page: Path
    card: Path
    pictures: Sequence[Path]
    missing: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False
    gone: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.page}: {in_bytes(self.page.stat().st_size)}"


def write_report(
    run: RunDirectory | str | Path,
    data: str | None = None,
    out: str | Path | None = None,
    *,
    images: str | None = None,
    photos: bool = True,
    overwrite: bool = False,
) -> Report:
    """Write report.html, README.md (a model card) and the folder report of pictures into a run's directory, or `out`.

    `data` or `images` says where the photos lie, where they have moved; without `photos` none is shown. Only those
    photos are read that are shown. What a run lacks is left out with a sentence. The run's own report is written over,
    another folder's with `overwrite`; a card that somebody has changed stays as it is. Raises UsageError for a run that
    has not finished, and, before anything is written, where no photo lies where they are said to.
    """
    run = RunDirectory.of(run)
    folder = run.path if out is None else Path(out)
    if out is not None:
        check_folder(folder, overwrite)
    material = Material(run, data, photos, images)
    # a good page is not to be replaced by one without photos for a slip of the pen
    gone = _gone(material)
    # before the work: a run without scores has nothing to report
    scored = material.scores
    assert scored is not None
    sections = make_sections(material)
    pictures = pictures_of(sections)
    page = to_html(material, sections)
    card = to_card(material, list(pictures))
    kept = is_edited(folder / CARD)
    # one who trains on, or replaces the run, is not written into
    with held(run.path) if out is None else nullcontext():
        written = _write_pictures(folder, pictures, parents=out is not None)
        if not kept:
            write_text(folder / CARD, card, parents=False)
        write_text(folder / PAGE, page, parents=False)
    missing = {section.title: section.missing for section in sections if section.missing}
    return Report(folder / PAGE, folder / CARD, written, missing, kept, gone)


def _gone(material: Material) -> list[str]:
    """The photos that are not there any more, as far as it is known where they should be."""
    try:
        return material.gone
    except (FastmaskError, OSError):
        if material.photos and (material.data is not None or material.images is not None):
            raise
        # the sections that need them say so
        return []


def pictures_of(sections: Sequence[Section]) -> dict[str, bytes]:
    """The pictures of sections as PNGs by their names: drawings, and photos as sheets.

    Warns once where they hold letters that no font has.
    """
    found, boxes = {}, set()
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Drawing):
            picture = block.picture
        elif isinstance(block, Album) and block.photos:
            picture = plot_sheet(block.photos, block.columns)
        else:
            continue
        found[block.name] = to_png(picture)
        boxes.update(missing_letters(picture))
        # it has its places now, and the page takes it as it is
        picture.set_layout_engine("none")
    if boxes:
        _warn_of_boxes(sorted(boxes))
    return found


def _warn_of_boxes(letters: Sequence[str]) -> None:
    more = f" and {len(letters) - _LETTERS} more" if len(letters) > _LETTERS else ""
    warnings.warn(
        f"No font that pictures are drawn with has {' '.join(letters[:_LETTERS])}{more}: in the PNGs of the report "
        "these are empty boxes. Install one that has them, such as Noto Sans CJK.",
        FastmaskWarning,
        stacklevel=4,
    )


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise UsageError where a report cannot be written to a folder: only to a new or empty one, or over a report."""
    place = real(folder)
    check_parent(place)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{folder} is a file; name a folder with --out.")
    names = {entry.name for entry in place.iterdir()} if place.exists() else set()
    foreign = sorted(names - {PAGE, CARD, PICTURES})
    if foreign:
        raise UsageError(f"{folder} holds {foreign[0]}, which is no part of a report; name another --out.")
    if names and not overwrite:
        raise UsageError(f"{folder} exists; name another folder with --out, or replace it with --overwrite.")


def _write_pictures(folder: Path, pictures: Mapping[str, bytes], parents: bool) -> list[Path]:
    place = folder / PICTURES
    place.mkdir(exist_ok=True, parents=parents)
    written = []
    for name, content in pictures.items():
        with replacing(place / f"{name}.png", parents=False) as beside:
            beside.write_bytes(content)
        written.append(place / f"{name}.png")
    # those of a report before, which this one has not, and what one that was killed left
    for old in (*place.glob("*.png"), *place.glob(".*.part")):
        if old not in written and old.is_file():
            old.unlink()
    return written
