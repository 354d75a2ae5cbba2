"""Page: the sections of a report as one HTML file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from fastmask.heads import JOINT
from fastmask.report.blocks import Drawing, Section, Shown, interval, rounded
from fastmask.report.material import Material
from fastmask.report.style import to_svg, width_of
from fastmask.report.thumbnails import to_uri


def to_html(material: Material, sections: Sequence[Section]) -> str:
    """The page: one file that loads nothing else; names in it are escaped."""
    run = material.run
    environment = Environment(
        loader=FunctionLoader(read_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(drawing=_drawing, photo=_photo, numeric=_is_numeric)
    return environment.get_template("page.html").render(
        name=run.path.absolute().name,
        what="Ensemble" if run.is_ensemble else run.config.arch,
        headline=headline(material),
        sections=sections,
        warned=bool(run.caveats),
        style=read_template("page.css"),
    )


def headline(material: Material) -> dict[str, str]:
    """The first figures of a page: what they are of, macro-F1, accuracy, and their intervals."""
    target = material.targets[0]
    score = material.score(target)
    split = " by a leaky split" if material.run.is_leaky else ""
    return {
        "what": f"of {'the joint class' if target == JOINT else target}, out of fold{split}",
        "macro_f1": rounded(score.macro_f1, 3),
        "macro_f1_interval": interval(score.macro_f1_interval, 3),
        "accuracy": rounded(score.accuracy, 3),
        "accuracy_interval": interval(score.accuracy_interval, 3),
    }


def read_template(name: str) -> str:
    """The text of a template of the package."""
    return files("fastmask.report.templates").joinpath(name).read_text(encoding="utf-8")


def _drawing(block: Drawing) -> dict[str, Any]:
    svg = b64encode(to_svg(block.picture).encode()).decode()
    return {"uri": f"data:image/svg+xml;base64,{svg}", "width": width_of(block.picture)}


def _photo(one: Shown) -> dict[str, Any]:
    height, width = one.image.shape[:2]
    return {"uri": to_uri(one.image), "width": width, "height": height}


def _is_numeric(text: str) -> bool:
    """Whether a cell is a figure, which is aligned to the right."""
    return bool(text) and all(c in "0123456789.,+-–<>% …\N{NO-BREAK SPACE}" for c in text)
