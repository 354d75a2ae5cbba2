"""Facts: what was run, its cost and its environment, from the run's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.config import Config
from fastmask.data.augment import defaults_of
from fastmask.data.pipelines import describe_view
from fastmask.data.table import TRAIN_ONLY
from fastmask.decision.rule import PLAIN
from fastmask.evaluation.cost import COST_CELLS, cost_of
from fastmask.heads import Head
from fastmask.inference.blend import Blend
from fastmask.report.blocks import Block, Facts, Table, Text
from fastmask.report.material import Material
from fastmask.run.directory import RunDirectory
from fastmask.run.files import SKIPPED
from fastmask.system.errors import UsageError
from fastmask.system.files import read_strings
from fastmask.system.text import count, join_some, percent, shorten

# settings that are shown elsewhere
_ELSEWHERE = ("data", "heads", "train_pipeline", "valid_pipeline", "arch")
_MOST = 160


def run_section(material: Material) -> list[Block]:
    """The network, photos, folds and heads; the settings that differ from the defaults; the augmentation."""
    run = material.run
    blocks: list[Block] = [Facts([*_network(run), *_decision(run), *_data(run)])]
    if run.is_ensemble:
        return blocks
    differing = settings(run.config)
    if differing:
        caption = "Settings that differ from the defaults"
        blocks.append(Table(caption, ["setting", "value", "default", "description"], differing))
    else:
        blocks.append(Text("All settings are the defaults."))
    steps = augmentation(run)
    caption = "Transforms of a training photo; validation and prediction leave out the random ones"
    return [*blocks, Table(caption, ["transform", "arguments"], steps)] if steps else blocks


def _network(run: RunDirectory) -> list[tuple[str, str]]:
    if run.is_ensemble:
        members = [member["name"] for member in run.ensemble["members"]]
        blend = Blend.of(run)
        rows = [("Ensemble", f"{blend.how} of {join_some(members)}")]
        texts = {head: each.describe(members) or "equal" for head, each in blend.mixtures.items()}
        return [*rows, ("Weights", shorten("; ".join(f"{head}: {text}" for head, text in texts.items()), _MOST))]
    body = _mapping(run.environment.get("body"))
    parameters, initial = body.get("parameters"), body.get("initial_weights")
    size = f", {parameters / 1e6:.1f} M parameters" if type(parameters) is int else ""
    rows = [("Network", f"{run.config.arch}{size}")]
    if run.soup is not None:
        kept = "; ".join(f"fold {fold}: {join_some(names)}" for fold, names in run.soup["members"].items())
        rows.append(("Soup", f"of {join_some(run.soup['runs'])}; {shorten(kept, _MOST)}"))
    if run.config.views:
        rows.append(("Views", f"scored and predicted by the mean over the photo and {join_some(run.config.views)}"))
    return [*rows, ("Initial weights", shorten(str(initial), _MOST))] if initial else rows


def _seen(run: RunDirectory) -> list[float] | None:
    """The least and the largest share of a photo that the network sees, where the run knows them."""
    seen = _mapping(run.environment.get("photos")).get("seen")
    known = isinstance(seen, list) and len(seen) == 2 and all(isinstance(share, float | int) for share in seen)
    return seen if known else None


def _versions(run: RunDirectory) -> dict[str, int]:
    """The number of photos of each other version that was trained on, by its folder."""
    versions = _mapping(_mapping(run.environment.get("photos")).get("versions"))
    return {folder: photos for folder, photos in versions.items() if type(photos) is int}


def _made_by(run: RunDirectory) -> str:
    """How the folds of a run were made."""
    never = int((run.folds["fold"] == TRAIN_ONLY).sum())
    if never:
        return f"a fixed split: {count(never, 'photo')} only trained on"
    return f"as in {run.config.folds_file}" if run.config.folds_file else f"stratified on {run.config.stratify}"


def _decision(run: RunDirectory) -> list[tuple[str, str]]:
    """How probabilities become classes, unless each head's most probable class is taken."""
    decision = run.config.decision
    return [] if decision == PLAIN else [("Decision", f"{decision}, its rule fitted on other persons")]


def _data(run: RunDirectory) -> list[tuple[str, str]]:
    config, folds = run.config, run.folds
    split = "each person in one fold"
    if config.group != "person":
        split = "persons split across folds (--group none): a leak"
    rows = [
        ("Data", f"{config.data}: {count(len(folds), 'photo')} of {count(folds['person'].nunique(), 'person')}"),
        *([] if run.is_ensemble or config.boxes else [("Input", describe_view(config, _seen(run)))]),
        ("Folds", f"{config.folds}, {split}, {_made_by(run)}"),
    ]
    rows += [(f"Head {head.name}", _head(head, run)) for head in list(run.heads)[:12]]
    if len(run.heads) > 12:
        rows.append(("More heads", join_some([head.name for head in list(run.heads)[12:]], 40)))
    versions = _versions(run)
    if versions:
        listed = "; ".join(f"{folder}: {count(photos, 'photo')}" for folder, photos in versions.items())
        rows.append(("Other versions", f"{shorten(listed, _MOST)}, only trained on, in the folds of the same photos"))
    others = 0 if run.extra is None else len(run.extra) - sum(versions.values())
    if others:
        rows.append(("Extra", f"{count(others, 'photo')} of other sources, used only for training"))
    if (run.path / SKIPPED).is_file():
        rows.append(("Left out", f"{len(read_strings(run.path / SKIPPED, ('path',))):,} photos, see {SKIPPED}"))
    return rows


def _head(head: Head, run: RunDirectory) -> str:
    known = int((run.folds[head.name] != "").sum())
    labels = "" if known == len(run.folds) else f"; {known:,} photos have the label"
    if head.spread is not None:
        return f"a number from {head.classes[0]} to {head.classes[-1]}, learned as a distribution{labels}"
    bounds = f"; bounds {', '.join(f'{bound:g}' for bound in head.bounds)}" if head.bounds else ""
    if head.bounds and head.train_bounds and head.train_bounds != head.bounds:
        bounds += f", in training {', '.join(f'{bound:g}' for bound in head.train_bounds)}"
    if head.joint_share is not None:
        mixed = f", {percent(head.joint_share)} of the joint probability" if head.joint_share < 1 else ""
        return f"{len(head.classes):,} joint classes{mixed}{labels}"
    if head.name in run.heads.merged:
        bounds += f"; the sums of {run.heads.merged[head.name]}"
    weight = "" if head.weight == 1 else f"; weight {head.weight:g} in the loss"
    own = (run.config.per_head or {}).get(head.name)
    return f"{join_some(head.classes, 12)}{bounds}{weight}{f'; {own}' if own else ''}{labels}"


def settings(config: Config) -> list[list[str]]:
    """The settings that differ from the defaults: name, value, default, description."""
    here, default = config.to_plain(), Config().to_plain()
    return [
        [name, _value(value), _value(default[name]), str(Config.model_fields[name].description)]
        for name, value in here.items()
        if value != default[name] and name not in _ELSEWHERE
    ]


def _value(value: Any) -> str:
    return shorten(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), _MOST)


def augmentation(run: RunDirectory) -> list[list[str]]:
    """Name and arguments of each transform of the training pipeline."""
    steps = _mapping(_mapping(run.pipelines["train"]).get("transform")).get("transforms")
    if not isinstance(steps, list):
        return []
    return [[_short_name(step), _arguments(step)] for step in steps if isinstance(step, dict)]


def _short_name(step: Mapping[str, Any]) -> str:
    """The class of a transform, without the module of one that is not albumentations' own."""
    return str(step.get("__class_fullname__")).rpartition(".")[2]


def _arguments(step: Mapping[str, Any]) -> str:
    """The probability of a transform, and its arguments that differ from the defaults."""
    default = defaults_of(str(step.get("__class_fullname__")))
    given = {n: v for n, v in step.items() if n not in ("__class_fullname__", "p") and not _same(v, default.get(n))}
    chance = [] if step.get("p") == 1 else [f"with probability {_value(step.get('p'))}"]
    return shorten(", ".join([*chance, *(f"{name} {_value(value)}" for name, value in given.items())]), _MOST)


def _same(value: Any, other: Any) -> bool:
    return bool(value == (list(other) if isinstance(other, tuple) else other))


def cost_section(material: Material) -> list[Block]:
    """The cost of the run."""
    run = material.run
    if run.is_ensemble:
        raise UsageError("An ensemble was not trained; the cost of its runs is in their own reports.")
    cells = cost_of(run).cells
    return [Facts([(name, cell) for name, cell in zip(COST_CELLS, cells, strict=True) if cell])]


def environment_section(material: Material) -> list[Block]:
    """Versions, device, command, commit."""
    environment = material.run.environment
    names = {"time": "Started", "python": "Python", "platform": "Platform", "device": "Device", "threads": "Threads"}
    rows = [(word, str(environment[name])) for name, word in names.items() if environment.get(name) is not None]
    packages = _mapping(environment.get("packages"))
    if packages:
        rows.append(("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
    command = environment.get("command")
    if isinstance(command, list):
        rows.append(("Command", shorten(" ".join(map(str, command)), 4 * _MOST)))
    if environment.get("git_commit"):
        rows.append(("Git commit", str(environment["git_commit"])))
    if not rows:
        raise UsageError("The run has no record of its environment.")
    return [Facts(rows)]


def data_name(run: RunDirectory) -> str:
    """The name of the data, without its folder."""
    return Path(run.config.data).absolute().name or run.config.data


def _mapping(value: Any) -> Mapping[str, Any]:
    """A mapping from a file, or an empty one if the file has something else."""
    return value if isinstance(value, dict) else {}
