"""Write: the report of a run on disk: the page, its pictures, the model card."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from fastmask.report.blocks import Album, Drawing, Section
from fastmask.report.card import is_edited, to_card
from fastmask.report.material import Material
from fastmask.report.page import to_html
from fastmask.report.sections import make_sections
from fastmask.report.style import missing_letters, to_png
from fastmask.report.thumbnails import plot_sheet
from fastmask.run.directory import RunDirectory
from fastmask.run.files import CARD, PAGE, PICTURES
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError
from fastmask.system.files import atomic_write, check_parent, real, write_text
from fastmask.system.lock import lock_run
from fastmask.system.text import in_bytes

# letters that a warning shows
_LETTERS = 8


@dataclass(frozen=True)
class Report:
    """A written report: its `page`, `card` and `pictures`.

    `missing` has the title of each section that was left out, and why; `gone` the photos that no longer exist; `kept`
    says that the card was edited by the user and not replaced.

    >>> report = fm.write_report(run, out="report", photos=False)
    >>> report.page.name, report.card.name, len(report.pictures) > 0
    ('report.html', 'README.md', True)
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
    """Write report.html, README.md (a model card) and the folder report with pictures to the run directory, or `out`.

    `data` or `images` says where the photos are now if they have moved; without `photos` none is shown. A section that
    cannot be made is left out, with the reason. The run's own report is replaced, one in another folder only with
    `overwrite`; a card that the user has edited is kept. Raises UsageError for an unfinished run and, before anything
    is written, if no photo is where `data` or `images` says.

    >>> report = fm.write_report(run, out="report", photos=False)
    >>> report.page.name, report.page.is_file()
    ('report.html', True)
    """
    run = RunDirectory.of(run)
    folder = run.path if out is None else Path(out)
    if out is not None:
        check_folder(folder, overwrite)
    material = Material(run, data, photos, images)
    # a wrong --data must not replace a good page by one without photos
    gone = _missing_photos(material)
    # raises for an unfinished run before the work starts
    material.score(material.targets[0])
    sections = make_sections(material)
    pictures = draw_pictures(sections)
    page = to_html(material, sections)
    card = to_card(material, list(pictures))
    kept = is_edited(folder / CARD)
    # fails while another process trains or replaces the run
    with lock_run(run.path) if out is None else nullcontext():
        written = _write_pictures(folder, pictures, parents=out is not None)
        if not kept:
            write_text(folder / CARD, card, parents=False)
        write_text(folder / PAGE, page, parents=False)
    missing = {section.title: section.missing for section in sections if section.missing}
    return Report(folder / PAGE, folder / CARD, written, missing, kept, gone)


def _missing_photos(material: Material) -> list[str]:
    """The photos that no longer exist; none if their folder is unknown, which the sections report."""
    try:
        return material.missing_photos
    except (FastmaskError, OSError):
        if material.photos and (material.data is not None or material.images is not None):
            raise
        return []


def draw_pictures(sections: Sequence[Section]) -> dict[str, bytes]:
    """The plots, and photos as sheets, of sections as PNGs by name; warns about letters that no font has."""
    found, missing = {}, set()
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Drawing):
            picture = block.picture
        elif isinstance(block, Album) and block.photos:
            picture = plot_sheet(block.photos, block.columns)
        else:
            continue
        found[block.name] = to_png(picture)
        missing.update(missing_letters(picture))
        # the page uses the layout computed for the PNG
        picture.set_layout_engine("none")
    if missing:
        _warn_of_letters(sorted(missing))
    return found


def _warn_of_letters(letters: Sequence[str]) -> None:
    more = f" and {len(letters) - _LETTERS} more" if len(letters) > _LETTERS else ""
    warnings.warn(
        f"No installed font has the letters {' '.join(letters[:_LETTERS])}{more}: they are empty boxes in the PNGs of "
        "the report. Install a font that has them, such as Noto Sans CJK.",
        FastmaskWarning,
        stacklevel=4,
    )


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise UsageError unless a folder is new or empty, or holds only a report and `overwrite` is set."""
    place = real(folder)
    check_parent(place)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{folder} is a file; name a folder with --out.")
    names = {entry.name for entry in place.iterdir()} if place.exists() else set()
    foreign = sorted(names - {PAGE, CARD, PICTURES})
    if foreign:
        raise UsageError(f"{folder} contains {foreign[0]}, which is not part of a report; name another --out.")
    if names and not overwrite:
        raise UsageError(f"{folder} exists; name another folder with --out, or replace it with --overwrite.")


def _write_pictures(folder: Path, pictures: Mapping[str, bytes], parents: bool) -> list[Path]:
    place = folder / PICTURES
    place.mkdir(exist_ok=True, parents=parents)
    written = [place / f"{name}.png" for name in pictures]
    for file, content in zip(written, pictures.values(), strict=True):
        with atomic_write(file, parents=False) as beside:
            beside.write_bytes(content)
    # pictures of the previous report, and partial files of a killed process
    for old in (*place.glob("*.png"), *place.glob(".*.part")):
        if old not in written and old.is_file():
            old.unlink()
    return written
