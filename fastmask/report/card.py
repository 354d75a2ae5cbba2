"""Card: the model card of a run as model hubs read it: Markdown with a YAML header."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from html import escape
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fastmask.heads import JOINT
from fastmask.report.blocks import rounded
from fastmask.report.material import Material
from fastmask.report.page import read_template
from fastmask.report.sections.classes import class_scores
from fastmask.report.sections.facts import data_name
from fastmask.report.sections.summary import optimistic, score_cells
from fastmask.run.directory import RunDirectory
from fastmask.scoring import HOW_INTERVALS, Score
from fastmask.system.text import count, join_some
from fastmask.system.yaml_text import to_yaml

# the signature of a card; it does not match once the card has been edited
_SIGNATURE = re.compile(r"<!-- fastmask report, as written: ([0-9a-f]{64}) -->\s*\Z")
_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")
_PICTURES = {"curves": "Learning curves", "confusion-joint": "Confusion of the joint class", "classes": "F1 by class"}
# a class with fewer photos than this is listed as a limit
_FEW = 50


def front_matter(material: Material) -> dict[str, Any]:
    """The metadata that a hub reads: task, base model, scores; the license is left to the user."""
    run = material.run
    body = run.environment.get("body")
    tag = body.get("tag") if isinstance(body, dict) else None
    from_hub = run.config.pretrained and not run.is_ensemble and isinstance(tag, str)
    return {
        "library_name": "fastmask",
        "pipeline_tag": "image-classification",
        **({"base_model": f"timm/{tag}"} if from_hub else {}),
        "tags": ["image-classification", "multi-task", "fastai", "timm"],
        "metrics": ["f1", "accuracy"],
        "model-index": [{"name": run.path.absolute().name, "results": _results(material)}],
    }


def _results(material: Material) -> list[dict[str, Any]]:
    name = data_name(material.run)
    how = "out of fold by a leaky split" if material.run.is_leaky else "out of fold"
    results = []
    for target in material.targets:
        score = material.score(target)
        if score.n:
            results.append(
                {
                    "task": {"type": "image-classification", "name": f"Image classification, {target}"},
                    # a hub distinguishes the heads by `config`
                    "dataset": {"name": f"{name}, {how}, {target}", "type": identifier(name), "config": target},
                    "metrics": _metrics(score, how + _remark(material.run)),
                }
            )
    return results


def _metrics(score: Score, how: str) -> list[dict[str, Any]]:
    return [
        {"type": "f1", "name": f"Macro-F1, {how}", "value": round(score.macro_f1, 4)},
        {"type": "accuracy", "name": f"Accuracy, {how}", "value": round(score.accuracy, 4)},
    ]


def _remark(run: RunDirectory) -> str:
    """A remark for a figure that is shown without the card."""
    return " (flatters: says nothing about new people)" if run.is_leaky else " (see the card)" if run.caveats else ""


def identifier(name: str) -> str:
    """A name as the id of a data set: lower-case letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-") or "photos"


def to_card(material: Material, pictures: list[str]) -> str:
    """The model card, with the `pictures` of the report that show no photos."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=markdown
    )
    # names in code blocks, which have no escapes
    environment.filters.update(
        code=lambda name: Markup(quote(name).replace("`", "")), python=lambda name: Markup(repr(name).replace("`", ""))
    )
    run, flattering = material.run, optimistic(material.run)
    text = environment.from_string(read_template("card.md")).render(
        matter=Markup(to_yaml(front_matter(material))),
        name=run.path.absolute().name,
        run=run,
        heads=[(head.name, join_some(head.classes, 20)) for head in run.heads if head.name in run.heads.classified],
        data=data_name(run),
        leaky=run.is_leaky,
        photos=count(len(run.folds), "photo"),
        persons=count(run.folds["person"].nunique(), "person"),
        scored=count(len(run.oof), "photo"),
        how_intervals=HOW_INTERVALS,
        rows=[(target, *score_cells(material.score(target))[:4]) for target in material.targets],
        notes=material.scores.notes,
        optimistic=None if flattering is None else rounded(flattering[0]),
        weak=_weak_classes(material),
        pictures=[(what, Markup(f"report/{name}.png")) for name, what in _PICTURES.items() if name in pictures],
        views=join_some(run.config.views),
        members=join_some([member["name"] for member in run.ensemble["members"]]) if run.is_ensemble else "",
        packages=", ".join(f"{name} {version}" for name, version in run.environment.get("packages", {}).items()),
    )
    return sign_card(text)


def _weak_classes(material: Material) -> list[str]:
    """A sentence on the class of each learned head with the lowest F1, and on those with few photos."""
    found, skipped = [], (JOINT, *material.run.heads.unlearned)
    for head in [head for head in material.targets if head not in skipped and material.has_label(head).any()][:8]:
        scores = class_scores(material.run, head)
        worst = scores.loc[scores["f1"].idxmin()]
        found.append(
            f"{head}: {worst['name']} has the lowest F1, {worst['f1']:.2f}, on {count(worst['n'], 'photo')} of "
            f"{count(worst['persons'], 'person')}"
        )
        rare = scores[(scores["n"] < _FEW) & (scores["name"] != worst["name"])]
        found += [f"{head}: {row['name']} has only {count(row['n'], 'photo')}" for _, row in rare.iterrows()]
    return found


def markdown(value: Any) -> Any:
    """A value as Markdown that shows it literally; Markup is left as it is."""
    if isinstance(value, Markup) or hasattr(value, "__html__"):
        return value
    return Markup(_SPECIAL.sub(r"\\\1", escape(" ".join(str(value).split()), quote=False)))


def sign_card(text: str) -> str:
    """A card with a signature, by which `is_edited` detects changes."""
    text = text.rstrip() + "\n\n"
    return f"{text}<!-- fastmask report, as written: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_edited(file: Path) -> bool:
    """Whether a card exists and has been edited since fastmask wrote it."""
    if not file.is_file():
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    signature = _SIGNATURE.search(text)
    return signature is None or hashlib.sha256(text[: signature.start()].encode()).hexdigest() != signature[1]
