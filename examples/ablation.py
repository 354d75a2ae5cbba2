"""What each thing that the contest's teams tried is worth on your photos: the report's ladder, then one option a row.

python examples/ablation.py DATA OUT --weights FILE --set crop=[200,100] --set epochs=4     all rows, resumable
python examples/ablation.py DATA OUT --row focal --row mix-up                               some of them
python examples/ablation.py DATA OUT --photos 3 ...                                         three photos a person

A fifth of the persons is held out of everything and answered by each row's models: what one fold, the mean of the folds
and views of a photo are worth shows only there. The other persons are cross-validated. Differences are paired over
persons, of the ladder to the step before, of the options to the ladder's last step. A row that is there already is not
trained again. The table is OUT/ablation.csv.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import fastmask as fm
from fastmask.config import REPORT_CROP, parse_sets
from fastmask.scoring import score, score_differences

Answers = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Row:
    """A row of the table: settings over the base, a run of another row to take, how its models answer."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    predict: dict[str, Any] = field(default_factory=dict)
    against: str | None = None
    needs: str | None = None


# as before the report's team took three heads
ONE = {"one_head": True, "stratify": "joint"}
LADDER = [
    Row("cross-entropy", {"loss": "ce", **ONE}, predict={"members": ["fold0"]}),
    Row("focal", {"top_k": 3, **ONE}, predict={"members": ["fold0"]}, against="cross-entropy"),
    Row("mean of the folds", run="focal", against="focal"),
    Row("three heads", {"top_k": 3}, against="mean of the folds"),
]
BASE = LADDER[-1].name
OPTIONS = [
    Row("flip", run=BASE, predict={"views": ["flip"]}),
    Row("flip, shift, scale", run=BASE, predict={"views": ["flip", "shift", "scale"]}),
    Row("soup", run=BASE, predict={"soup": True}),
    Row("top 1", {"top_k": 1}),
    Row("mix-up", {"mixup": 0.4}),
    Row("mix-up of 60+ only", {"mixup": 0.4, "mix_classes": ["age.60+"]}),
    Row("mix-up of 60+ with 60+", {"mixup": 0.4, "mix_classes": ["age.60+"], "mix_partner": "age.60+"}),
    Row("CutMix", {"cutmix": 1.0}),
    Row("half CutMix, same class", {"half_cutmix": 0.7, "half_shares": [0.3, 0.7]}),
    Row("half CutMix, any class", {"half_cutmix": 0.7, "half_shares": [0.3, 0.7], "half_partner": "any"}),
    Row("half CutMix of 60+ only", {"half_cutmix": 0.7, "half_shares": [0.3, 0.7], "mix_classes": ["age.60+"]}),
    Row("label smoothing", {"label_smoothing": 0.1}),
    Row("random erasing", {"erase": 0.25}),
    Row("brightness and contrast as they are", {"brightness_contrast": 0.0}),
    Row("RandAugment", {"augment": ["randaugment"]}),
    Row("TrivialAugment", {"augment": ["trivialaugment"]}),
    Row("AugMix", {"augment": ["augmix"]}),
    Row("CLAHE", {"augment": ["clahe"]}),
    Row("GridDropout", {"augment": ["grid-dropout"]}),
    Row("random resized crop", {"augment": ["random-resized-crop"]}),
    Row("soft F1, half", {"f1_share": 0.5}),
    Row("soft F1 alone", {"f1_share": 1.0}),
    Row("age by CORAL", {"per_head": {"age": {"loss": "coral"}}}),
    Row("age by cumulative link", {"per_head": {"age": {"loss": "cumulative"}}}),
    Row("hidden layer of 256 for age", {"per_head": {"age": {"hidden": 256}}}),
    Row("cross-entropy for mask", {"per_head": {"mask": {"loss": "ce"}}}),
    Row("GeM pooling for age", {"per_head": {"age": {"pool": "gem"}}}),
    Row("age routed by gender", {"per_head": {"age": {"router": "gender"}}}),
    Row("class weights", {"class_weight": "auto"}),
    Row("sampler", {"sampler": "joint"}),
    Row("60+ drawn three times as often", {"draw_weights": {"age.60+": 3}}),
    Row("one photo per person", {"per_person": 1}),
    Row("one worn photo per person", {"per_person": {"mask.wear": 1}}),
    Row("ages 27-29, 57-59 dropped", {"drop": {"age": [[27, 29], [57, 59]]}}),
    Row("age bound 58", {"age_bounds": [30, 58]}),
    Row("age as an order", {"order": "age"}),
    Row("one head", ONE),
    Row("joint head, half", {"joint_head": 0.5}),
    Row("age in six bands", {"bands": {"age": [20, 30, 40, 50, 60]}}),
    Row("age in eight bands", {"bands": {"age": [18, 25, 30, 40, 50, 55, 60]}}),
    Row("body frozen", {"freeze": "body"}),
    Row("body frozen for one epoch", {"freeze": "body", "unfreeze": 2}),
    Row("three stages frozen", {"freeze": 3}),
    Row("layer decay 0.8", {"layer_decay": 0.8}),
    Row("linear probe", {"linear_probe": True}),
    Row("batch norm frozen", {"freeze_bn": True}),
    Row("progressive resizing", {"progressive": 0.6}),
    Row("mirrored in training and prediction", {"flip": True}),
    Row("decision f1", {"decision": "f1"}),
    Row("ArcFace of the joint class", {"feature_loss": "arcface"}),
    Row("ArcFace, three centres", {"feature_loss": "arcface", "feature_args": {"centres": 3}}),
    Row("supervised contrastive", {"feature_loss": "supcon"}),
    Row("supervised contrastive by age", {"feature_loss": "supcon", "feature_head": "age"}),
    Row("AdamW", {"opt": "adamw"}),
    Row("SGD", {"opt": "sgd", "lr": 0.02}),
    Row("SAM", {"sam": 0.05}),
    Row("adaptive SAM", {"sam": 0.5, "sam_adaptive": True}),
    Row("warm restarts", {"sched": "restarts", "cycle": 0.5}),
    Row("plateau", {"sched": "plateau", "plateau_patience": 0}),
    Row("warm-up", {"sched": "cosine", "warmup": 0.25}),
    Row("gradients clipped", {"clip": 1.0}),
    Row("EMA", {"ema": 0.99}),
    Row("SWA", {"swa": 0.3}),
    Row("refit", {"refit": 1}),
    Row("pseudo-labels of the held out", {"pseudo": "pseudo"}, needs="pseudo"),
    Row("face crop", {"boxes": "boxes"}, needs="boxes"),
    Row("face crop, the centre without a face", {"boxes": "boxes", "no_face": "crop"}, needs="boxes"),
    Row("nose to chin", {"boxes": "boxes", "region": "nose-to-chin"}, needs="boxes"),
    Row("forehead", {"boxes": "boxes", "region": "forehead"}, needs="boxes"),
    Row("extra photos", {"extra": "extra"}, needs="extra"),
    Row("another version of the photos", {"images_also": "images-also"}, needs="images-also"),
    Row(
        "the mean over both versions",
        run="another version of the photos",
        predict={"images_also": "images-also"},
        needs="images-also",
    ),
]


@dataclass(frozen=True)
class Study:
    """The photos and what all rows share."""

    data: str
    out: Path
    settings: dict[str, Any]
    files: dict[str, str]
    photos: int | None = None

    def tables(self, row: Row) -> tuple[fm.Table, fm.Table]:
        """The table to cross-validate and the one that is held out, by the row's bounds of age."""
        bounds = {"age_bounds": row.settings["age_bounds"]} if "age_bounds" in row.settings else {}
        table = fm.read_data(fm.make_config({"data": self.data, **bounds}))
        # dealt by the official bounds, so that every row has the same persons
        held = fm.assign_folds(fm.read_data(fm.make_config({"data": self.data})), 5, "age", seed=1) == 0
        kept = np.ones(len(table), bool) if self.photos is None else few_of_each(table, self.photos)
        rows, rest = (table.select(np.flatnonzero(which & kept)) for which in (~held, held))
        return rows, rest

    def run(self, row: Row) -> fm.Run:
        """The row's run, trained now or before."""
        if row.run is not None:
            return self.run(next(other for other in (*LADDER, *OPTIONS) if other.name == row.run))
        path = self.out / row.name.replace(" ", "-").replace(",", "")
        rows, _ = self.tables(row)
        settings = {
            name: self.files.get(row.needs or "", value) if value == row.needs else value
            for name, value in row.settings.items()
        }
        if row.needs == "extra":
            settings |= {
                "extra": str(self.extra_without_held_out()),
                "extra_images": str(Path(self.files["extra"]).parent),
            }
        if row.needs == "pseudo":
            base = self.run(next(other for other in LADDER if other.name == BASE))
            settings |= {"pseudo": str(self.pseudo(base)), "folds_file": str(base.path / "folds.csv")}
        if "region" in row.settings:
            settings |= self.on_their_side()
        given = {**self.settings, "stratify": "age", **settings}
        if "folds_file" in given:
            given.pop("folds", None)
        return fm.cross_validate(rows, out=path, resume=path.exists(), **given)

    def on_their_side(self) -> dict[str, Any]:
        """The crop and the resize with height and width exchanged, for regions, which are wider than high."""
        config = fm.make_config(self.settings)
        return {"crop": (config.crop or REPORT_CROP)[::-1], "resize": config.resize and config.resize[::-1]}

    def extra_without_held_out(self) -> Path:
        """The extra photos but for those of persons that are held out."""
        _, held = self.tables(LADDER[-1])
        frame, file = pd.read_csv(self.files["extra"], dtype=str), self.out / "extra.csv"
        if "person" in frame:
            frame = frame[~frame["person"].isin(set(held.persons))]
        frame.to_csv(file, index=False)
        return file

    def pseudo(self, teacher: fm.Run) -> Path:
        """The teacher's labels of the photos that are held out."""
        folder = self.out / "pseudo"
        if not (folder / "pseudo.json").exists():
            _, held = self.tables(LADDER[-1])
            place = self.out / "held-out"
            place.mkdir(exist_ok=True)
            for row, path in enumerate(held.frame["path"]):
                (place / path).parent.mkdir(exist_ok=True, parents=True)
                if not (place / path).exists():
                    try:
                        (place / path).symlink_to(held.photo(row).absolute())
                    except OSError:
                        # Windows lets few users make links
                        shutil.copyfile(held.photo(row), place / path)
            fm.make_pseudo(teacher, place, folder)
        return folder

    def answers(self, row: Row) -> tuple[Answers, Answers, np.ndarray, np.ndarray, float]:
        """(said, true) joint classes out of fold and held out, the persons of both, seconds of training."""
        run, (_, held) = self.run(row), self.tables(row)
        photos = [held.photo(i) for i in range(len(held))]
        boxes = {"boxes": self.named_boxes(held)} if run.config.boxes else {}
        views = {name: self.files[row.needs] if value == row.needs else value for name, value in row.predict.items()}
        said = run.predict(photos, **boxes, **views)
        seconds = sum(pd.read_csv(file)["seconds"].sum() for file in run.path.glob("fold*/times.csv"))
        oof = np.asarray(run.heads.joint(run.predicted)), np.asarray(run.heads.joint(run.true))
        return oof, (said.joint, np.asarray(held.heads.joint(held.y))), run.persons, held.persons, float(seconds)

    def named_boxes(self, held: fm.Table) -> Path:
        """The boxes under the paths by which the photos that are held out are asked for."""
        frame = pd.read_csv(self.files["boxes"], dtype=str)
        file = self.out / "held-out-boxes.csv"
        frame.assign(path=[str(held.root / path) for path in frame["path"]]).to_csv(file, index=False)
        return file


def few_of_each(table: fm.Table, most: int) -> np.ndarray:
    """(N,) which photos to keep for at most so many a person: first one of each joint class, then the second ones."""
    frame = table.frame
    nth = frame.groupby(["person", *table.heads.names]).cumcount()
    place = nth.sort_values(kind="stable").groupby(frame["person"]).cumcount()
    return np.asarray(place.sort_index() < most)


def row_of(study: Study, row: Row, against: Row | None) -> dict[str, Any]:
    """The figures of a row, and its differences to another."""
    oof, held, persons, others, seconds = study.answers(row)
    made: dict[str, Any] = {"row": row.name, "against": against.name if against else ""}
    them = study.answers(against) if against else None
    for name, (said, true), groups, theirs in (
        ("oof", oof, persons, them and them[0]),
        ("held_out", held, others, them and them[1]),
    ):
        found = score(said, true, draws=0)
        made |= {name: round(found.macro_f1, 4), f"{name}_accuracy": round(found.accuracy, 4)}
        if theirs is not None:
            (difference,) = score_differences([(theirs[0], true, None), (said, true, None)], groups)
            made[f"{name}_less"] = str(difference)
    return {**made, "seconds": round(seconds)}


def main(
    data: str,
    out: Path,
    row: Annotated[list[str] | None, typer.Option(help="Only these rows; may be repeated.")] = None,
    arch: str = "tf_efficientnet_lite0",
    weights: Annotated[str | None, typer.Option(help="The body's weights; random without.")] = None,
    boxes: Annotated[str | None, typer.Option(help="The photos' faces, for the rows that need them.")] = None,
    extra: Annotated[str | None, typer.Option(help="Extra photos, for the row that needs them.")] = None,
    images_also: Annotated[str | None, typer.Option(help="Another version of the photos, for its row.")] = None,
    photos: Annotated[int | None, typer.Option(help="Most photos of a person, to be done sooner.", min=1)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of all rows, such as epochs=4.")] = None,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    start: dict[str, Any] = {"weights": weights} if weights else {"pretrained": False}
    given = {"boxes": boxes, "extra": extra, "images-also": images_also}
    files = {name: file for name, file in given.items() if file} | {"pseudo": ""}
    study = Study(data, out, {"arch": arch, **start, "patience": 0, **parse_sets(set_ or [])}, files, photos)
    every = [*LADDER, *OPTIONS]
    by_name = {one.name: one for one in every}
    chosen = [by_name[name] for name in row or by_name]
    made = []
    for one in chosen:
        if one.needs is not None and one.needs not in files:
            print(f"{one.name}: needs --{one.needs}")
            continue
        against = one.against or (BASE if one in OPTIONS else None)
        made.append(row_of(study, one, by_name[against] if against else None))
        pd.DataFrame(made).to_csv(out / "ablation.csv", index=False)
        print(" | ".join(f"{name} {value}" for name, value in made[-1].items()), flush=True)


if __name__ == "__main__":
    typer.run(main)
