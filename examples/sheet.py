"""A sheet of what training options do to photos: one PNG, a row an option.

python examples/sheet.py DATA SHEET.png [--boxes FILE] [--set crop=[200,100]]

Rows: the photos, erased, four augmentations by name, mix-up, CutMix, half-face CutMix of the same class and of any, and
with --boxes (as fastmask faces writes it) the face, its three regions and painted masks. Under a photo stands the class
of most weight of each head, with its weight where that is under 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from fastai.torch_core import TensorImage
from matplotlib.figure import Figure

import fastmask as fm
from fastmask.config import parse_sets
from fastmask.data.boxes import REGIONS, Framing, read_boxes
from fastmask.data.photo import read_photo
from fastmask.preparation.masks import LOOKS, Landmarks, paint
from fastmask.training.setup import prepare

COUNT = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "the photos": {},
    "erase 1": {"erase": 0.999},
    **{f"augment {name}": {"augment": [name]} for name in ("randaugment", "augmix", "clahe(p=1)", "grid-dropout(p=1)")},
    "mixup 1": {"mixup": 1.0},
    "cutmix 1": {"cutmix": 1.0},
    "half_cutmix 1, same": {"half_cutmix": 1.0, "half_shares": [0.3, 0.7]},
    "half_cutmix 1, any": {"half_cutmix": 1.0, "half_shares": [0.3, 0.7], "half_partner": "any"},
}
Shown = list[tuple[np.ndarray, str]]


def seen(table: fm.Table, settings: dict[str, Any]) -> Shown:
    """The first photos of a training batch as the network gets them, and their labels."""
    shared = {"arch": "test_resnet", "pretrained": False, "bs": 32}
    learn = prepare(table, fm.make_config(shared, settings)).learner(0)
    learn.dl = learn.dls.train
    learn.model.train()
    batch = learn.dls.train.one_batch()
    learn.xb, learn.yb, learn.iter, learn.training = (batch[0],), (batch[1],), 0, True
    for callback in learn.cbs.sorted("order"):
        if type(callback).__name__ in ("CountedSteps", "Mix"):
            callback.before_batch()
    photos = learn.dls.train.after_batch.decode(TensorImage(learn.xb[0])) * 255
    labels = fm.soft_labels(learn.yb[0], table.heads).numpy()
    pixels = photos.permute(0, 2, 3, 1).numpy().round().astype(np.uint8)
    return [(pixels[i], told(table.heads, labels[i])) for i in range(COUNT)]


def told(heads: fm.Heads, labels: np.ndarray) -> str:
    """A line a head."""
    lines = []
    for head, part in zip(heads, heads.split(labels), strict=True):
        best = int(part.argmax())
        share = "" if part[best] > 0.995 else f" {part[best]:.2f}"
        lines.append(f"{head.classes[best]}{share}" if part.any() else "?")
    return "\n".join(lines)


def on_faces(table: fm.Table, file: str, size: tuple[int, int]) -> Iterator[tuple[str, Shown]]:
    """The face, its regions, and masks painted on bare ones."""
    boxes = read_boxes(file)
    bare = [row for row in range(len(table)) if boxes.faces[table.frame["path"][row]] is not None]
    if "mask" in table.heads.names:
        bare = [row for row in bare if table.frame["mask"][row] == table.heads["mask"].classes[-1]]
    names = [table.frame["path"][row] for row in bare[:COUNT]]
    photos = [read_photo(table.root / name) for name in names]
    for region in REGIONS:
        # all but the face are wider than high
        framing = Framing(size if region == "face" else size[::-1], region=region)
        yield region, [(boxes.cut(p, name, framing), "") for p, name in zip(photos, names, strict=True)]
    rng = np.random.default_rng(0)
    looks = [list(LOOKS)[i % len(LOOKS)] for i in range(COUNT)]
    for how in ("wear", "incorrect"):
        painted = []
        for photo, name, look in zip(photos, names, looks, strict=False):
            face = boxes.faces[name]
            assert face is not None
            points = np.reshape(face.landmarks, (-1, 2)).tolist()
            painted.append((paint(photo, Landmarks(*map(tuple, points), face[:4]), how, look, rng), look))
        yield f"painted: {how}", painted


def main(
    data: str,
    out: Path,
    boxes: Annotated[str | None, typer.Option(help="The photos' faces with landmarks.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, such as crop=[200,100].")] = None,
) -> None:
    settings = parse_sets(set_ or [])
    table = fm.read_data(fm.make_config({"data": data}))
    rows = [(name, seen(table, {**settings, **options})) for name, options in OPTIONS.items()]
    if boxes:
        rows += list(on_faces(table, boxes, tuple(settings.get("crop", (400, 200)))))
    figure = Figure(figsize=(COUNT * 1.3, len(rows) * 2.4), layout="constrained")
    axes = figure.subplots(len(rows), COUNT, squeeze=False)
    for place, (name, shown) in zip(axes, rows, strict=True):
        place[0].set_title(name, loc="left", fontsize=9, fontweight="bold")
        for ax in place:
            ax.axis("off")
        for ax, (photo, text) in zip(place, shown, strict=False):
            ax.imshow(photo)
            ax.text(0.5, -0.02, text, transform=ax.transAxes, ha="center", va="top", fontsize=6)
    figure.savefig(out, dpi=110)
    print(out)


if __name__ == "__main__":
    typer.run(main)
