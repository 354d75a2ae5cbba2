"""Page: the sections of a report, and the one file that holds them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from fastmask.heads import JOINT
from fastmask.report.blocks import Block, Drawing, Section, Shown, rounded
from fastmask.report.material import Material
from fastmask.report.photos import to_jpeg
from fastmask.report.style import to_svg, width_of
from fastmask.report.summary import interval
from fastmask.scoring import Score
from fastmask.system.errors import FastmaskError, one_line

Make = Callable[[Material], list[Block]]
# the title of a section, and the function that makes it: what needs the networks is imported where it is made
SECTIONS = {
    "score": ("Score", "summary.section"),
    "run": ("What was run", "facts.run_section"),
    "curves": ("Learning curves", "curves.section"),
    "folds": ("Score by fold", "fold_scores.section"),
    "confusion": ("Confusion", "confusion.section"),
    "classes": ("F1 by class", "classes.section"),
    "reliability": ("Reliability", "reliability.section"),
    "numbers": ("Errors by number, such as age", "numbers.section"),
    "mistakes": ("The most confident mistakes", "top_losses.section"),
    "label-errors": ("Suspicious labels", "suspects.section"),
    "explained": ("Where the networks look", "heatmaps.section"),
    "augmented": ("Training photos as the network sees them", "augmented.section"),
    "cost": ("Cost", "facts.cost_section"),
    "environment": ("Environment", "facts.environment_section"),
}


def make_sections(material: Material, names: Iterable[str] = tuple(SECTIONS)) -> list[Section]:
    """Some sections of a report, by default all; one whose material is missing says so in a sentence."""
    return [_made(material, name, *SECTIONS[name]) for name in names]


def _made(material: Material, name: str, title: str, where: str) -> Section:
    module, function = where.split(".")
    make: Make = getattr(import_module(f"fastmask.report.{module}"), function)
    try:
        return Section(name, title, make(material))
    except FastmaskError as error:
        return Section(name, title, missing=f"{one_line(error)}.")
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        return Section(name, title, missing=f"{error.strerror or one_line(error)}{file}.")


def to_html(material: Material, sections: Sequence[Section]) -> str:
    """The page: one file that asks for nothing else, and in which names are text, whoever gave them."""
    run = material.run
    template = _environment().get_template("page.html")
    return template.render(
        name=run.path.absolute().name,
        what="Ensemble" if run.is_ensemble else run.config.arch,
        headline=headline(material),
        sections=sections,
        warned=bool(run.caveats),
        style=text_of("page.css"),
    )


def headline(material: Material) -> dict[str, str]:
    """The first figure of a page: what it is of, the figure, its interval; and the accuracy."""
    target = material.targets[0]
    score: Score = material.scores.joint if target == JOINT else material.scores.heads[target]
    split = " by a leaky split" if material.run.is_leaky else ""
    return {
        "what": f"of {'the joint class' if target == JOINT else target}, out of fold{split}",
        "macro_f1": rounded(score.macro_f1, 3),
        "macro_f1_interval": interval(score.macro_f1_interval, 3),
        "accuracy": rounded(score.accuracy, 3),
        "accuracy_interval": interval(score.accuracy_interval, 3),
    }


def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(text_of), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(drawing=_drawing, photo=_photo, numeric=_numeric)
    return made


def text_of(name: str) -> str:
    """A template of the package."""
    return files("fastmask.report.templates").joinpath(name).read_text(encoding="utf-8")


def _drawing(block: Drawing) -> dict[str, Any]:
    svg = to_svg(block.picture).encode()
    return {"uri": f"data:image/svg+xml;base64,{b64encode(svg).decode()}", "width": width_of(block.picture)}


def _photo(one: Shown) -> dict[str, Any]:
    height, width = one.image.shape[:2]
    uri = f"data:image/jpeg;base64,{b64encode(to_jpeg(one.image)).decode()}"
    return {"uri": uri, "width": width, "height": height}


def _numeric(text: str) -> bool:
    """Whether a cell is a figure, which stands to the right."""
    return bool(text) and all(c in "0123456789.,+-–<>% …\N{NO-BREAK SPACE}" for c in text)
