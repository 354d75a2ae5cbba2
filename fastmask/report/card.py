"""Card: the model card of a run, in the form that model hubs read: YAML before Markdown."""

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
from fastmask.report.classes import class_scores
from fastmask.report.facts import data_name
from fastmask.report.material import Material
from fastmask.report.page import text_of
from fastmask.report.summary import interval, optimistic
from fastmask.run.directory import RunDirectory
from fastmask.scoring import Score
from fastmask.system.files import to_yaml
from fastmask.system.text import count, join_some

# what a card is known by that nobody has changed since it was written
_MARK = re.compile(r"<!-- fastmask report, as written: ([0-9a-f]{64}) -->\s*\Z")
_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")
_PICTURES = {"curves": "Learning curves", "confusion-joint": "Confusion of the joint class", "classes": "F1 by class"}
# photos of a class under which a card names it
_FEW = 50


def front_matter(material: Material) -> dict[str, Any]:
    """What a hub reads of a model: its use, its body, its score; the licence is for others to say."""
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
        "model-index": [{"name": name_of_run(run), "results": _results(material)}],
    }


def _results(material: Material) -> list[dict[str, Any]]:
    scores, name = material.scores, data_name(material.run)
    how = "out of fold by a leaky split" if material.run.is_leaky else "out of fold"
    results = []
    for target in material.targets:
        score = scores.joint if target == JOINT else scores.heads[target]
        if score.n:
            results.append(
                {
                    "task": {"type": "image-classification", "name": f"Image classification, {target}"},
                    # by its configuration a hub tells the heads apart
                    "dataset": {"name": f"{name}, {how}, {target}", "type": identifier(name), "config": target},
                    "metrics": _metrics(score, how + _marked(material.run)),
                }
            )
    return results


def _metrics(score: Score, how: str) -> list[dict[str, Any]]:
    return [
        {"type": "f1", "name": f"Macro-F1, {how}", "value": round(score.macro_f1, 4)},
        {"type": "accuracy", "name": f"Accuracy, {how}", "value": round(score.accuracy, 4)},
    ]


def _marked(run: RunDirectory) -> str:
    """What goes beside a figure that is shown alone: whether the card says more of it."""
    return " (flatters: says nothing about new people)" if run.is_leaky else " (see the card)" if run.caveats else ""


def identifier(name: str) -> str:
    """A name as the identifier of a data set: lower-case letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-") or "photos"


def name_of_run(run: RunDirectory) -> str:
    """What a run is called: the name of its directory."""
    return run.path.absolute().name


def to_card(material: Material, pictures: list[str]) -> str:
    """The model card; `pictures` are the names of those beside it, of which it shows those that show nobody."""
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=markdown
    )
    made.filters.update(code=_shell, python=_python)
    run, scores = material.run, material.scores
    named = [(t, scores.joint if t == JOINT else scores.heads[t]) for t in material.targets]
    rows = [
        (t, rounded(s.macro_f1), interval(s.macro_f1_interval), rounded(s.accuracy), interval(s.accuracy_interval))
        for t, s in named
    ]
    beside = optimistic(run)
    text = made.from_string(text_of("card.md")).render(
        matter=Markup(to_yaml(front_matter(material))),
        name=name_of_run(run),
        run=run,
        heads=[(head.name, join_some(head.classes, 20)) for head in run.heads if head.name in run.heads.classified],
        data=data_name(run),
        leaky=run.is_leaky,
        photos=count(len(run.folds), "photo"),
        persons=count(run.folds["person"].nunique(), "person"),
        scored=count(len(run.oof), "photo"),
        rows=rows,
        notes=scores.notes,
        optimistic=None if beside is None else rounded(beside[0]),
        weak=_weak(material),
        pictures=[(what, Markup(f"report/{name}.png")) for name, what in _PICTURES.items() if name in pictures],
        members=join_some([member["name"] for member in run.ensemble["members"]]) if run.is_ensemble else "",
        packages=", ".join(f"{name} {version}" for name, version in run.environment.get("packages", {}).items()),
    )
    return signed(text)


def _weak(material: Material) -> list[str]:
    """In words, the classes that are told worst, or stand on few photos."""
    found = []
    for target in [t for t in material.targets if t != JOINT and material.known(t).any()][:8]:
        scores = class_scores(material.run, target)
        worst = scores.loc[scores["f1"].idxmin()]
        found.append(
            f"{target}: {worst['name']} is recognised worst, F1 {worst['f1']:.2f} on {count(worst['n'], 'photo')} of "
            f"{count(worst['persons'], 'person')}"
        )
        rare = scores[(scores["n"] < _FEW) & (scores["name"] != worst["name"])]
        found += [f"{target}: {row['name']} stands on {count(row['n'], 'photo')} only" for _, row in rare.iterrows()]
    return found


def markdown(value: Any) -> Any:
    """A value as Markdown that shows it as it is, whatever it holds; what is Markup already stays."""
    if isinstance(value, Markup) or hasattr(value, "__html__"):
        return value
    return Markup(_SPECIAL.sub(r"\\\1", escape(" ".join(str(value).split()), quote=False)))


def _shell(name: str) -> Markup:
    """A name as a word of a command of a POSIX shell, in a block of code: the card is read on any machine."""
    return Markup(quote(name).replace("`", ""))


def _python(name: str) -> Markup:
    return Markup(repr(name).replace("`", ""))


def signed(text: str) -> str:
    """A card with the mark by which it is known whether somebody has changed it since."""
    text = text.rstrip() + "\n\n"
    return f"{text}<!-- fastmask report, as written: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_edited(file: Path) -> bool:
    """Whether a card holds words of somebody's own: then it is theirs."""
    if not file.is_file():
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    mark = _MARK.search(text)
    return mark is None or hashlib.sha256(text[: mark.start()].encode()).hexdigest() != mark[1]
