"""What each way of training reaches on persons that it has not seen, in the same seconds.

python examples/benchmarks/score.py DATA OUT [--weights FILE --crop 200 100 --size 200 100]   hours; resumable
python examples/benchmarks/score.py DATA OUT --short     one draw of a third of the persons, in minutes

DATA is a contest folder or a CSV, as for fastmask fit. Two fifths of its persons are a pool from which each draw holds
out one half, a fifth of all, and trains on all other persons. Each second draw holds out the other half, so that an
even number of draws holds out all persons of the pool equally often. The other three fifths are never held out:
settings are chosen on these alone (--write-tuning FILE lists them).

loop     a plain PyTorch loop of sixty lines, as a good engineer writes it in an hour; its seconds limit all others
fastai   plain fastai: one network for the joint class, aug_transforms, fine_tune on a single split, its tta
report   --recipe report with --minutes
winner   --recipe winner with --minutes, the centre in place of the face, without its refit, which takes too long
strong   --recipe strong with --minutes, and with a third of them; it chooses the cut, the size and the folds

All have the same body, weights and threads, and train on the same persons; each but fastai cross-validates them. All
but strong see the same cut of the photos, in the same size. `reported` is the macro-F1 of a method's own
out-of-fold photos (fastai: of its split), `held out` that of its answers for the persons held out. Seconds run
from reading the first photo to the end of training. With --jobs 2, two methods run side by side, with half of the
threads each, throughout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import pandas as pd
import typer

FIFTHS, TUNED = 5, 3
METHODS = ("loop", "fastai", "report", "winner", "strong", "strong in a third")
FOLDS, BATCH = 3, 32
# the best of 3e-4, 1e-3, 2e-3, 4e-3, 8e-3 on the persons that are never held out, for torch's AdamW
LOOP_LR = 4e-3


@dataclass(frozen=True)
class Task:
    """One method on one draw of persons: rows of the table to train on and to answer, and how photos are seen."""

    data: str
    table: Any
    train: np.ndarray
    held: np.ndarray
    arch: str
    weights: str | None
    crop: tuple[int, int] | None
    size: tuple[int, int]
    stats: tuple[float, ...]
    epochs: int
    out: Path
    seconds: float | None = None

    def photos(self, rows: np.ndarray) -> np.ndarray:
        """(N, height, width, 3) uint8 RGB: the centre of each photo, or all of it, scaled."""
        return np.stack([self._photo(row) for row in rows])

    def _photo(self, row: int) -> np.ndarray:
        image = cv2.imread(str(self.table.photo(row)))[..., ::-1]
        height, width = image.shape[:2]
        high, wide = self.crop or (height, width)
        top, left = (height - high) // 2, (width - wide) // 2
        part = np.ascontiguousarray(image[top : top + high, left : left + wide])
        return np.asarray(cv2.resize(part, self.size[::-1], interpolation=cv2.INTER_AREA))


@dataclass(frozen=True)
class Answer:
    """The (N,) joint classes of the rows held out, the score that a method reports, its seconds, its curve.

    The curve has the macro-F1 of the validation photos, the mean over the folds, by the seconds of all folds so far.
    """

    joint: np.ndarray
    reported: float
    seconds: float
    curve: list[tuple[float, float]]


def loop(task: Task) -> Answer:
    """Several heads, focal loss, AdamW, one-cycle, mirrored and a tenth brighter or darker, mirrored at prediction."""
    import timm
    import torch
    from safetensors.torch import load_file
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedGroupKFold
    from torch import nn

    heads, start = task.table.heads, time.perf_counter()
    sizes = list(heads.sizes)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (task.stats[:3], task.stats[3:]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    photos = torch.from_numpy(task.photos(task.train)).permute(0, 3, 1, 2)
    y = torch.from_numpy(task.table.y[task.train])
    joint = heads.joint(y.numpy())

    def batch(of: torch.Tensor) -> torch.Tensor:
        made = (of.float() / 255 - mean) / std
        return made.to(device, memory_format=torch.channels_last)

    def augment(x: torch.Tensor) -> torch.Tensor:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
        return (x.float() * (0.9 + 0.2 * torch.rand(len(x), 1, 1, 1))).clamp(0, 255)

    def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        parts = zip(logits.split(sizes, 1), labels.T, strict=True)
        each = [nn.functional.cross_entropy(part, own, reduction="none") for part, own in parts]
        return sum(((1 - (-ce).exp()) ** 2 * ce).mean() for ce in each)

    def answer(network: nn.Module, of: torch.Tensor, mirrored: bool = True) -> torch.Tensor:
        network.eval()
        with torch.no_grad():
            views = [of, of.flip(-1)][: 1 + mirrored]
            logits = [torch.cat([network(batch(part)).cpu() for part in view.split(64)]) for view in views]
        parts = [[part.softmax(1) for part in one.split(sizes, 1)] for one in logits]
        return sum(torch.cat(part, 1) for part in parts) / len(parts)

    def classes(probabilities: torch.Tensor) -> np.ndarray:
        found = torch.stack([part.argmax(1) for part in probabilities.split(sizes, 1)], 1)
        return np.asarray(heads.joint(found.numpy()))

    oof, networks, curve = torch.zeros(len(y), sum(sizes)), [], defaultdict(list)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for trained, valid in folds.split(y, joint, task.table.persons[task.train]):
        torch.manual_seed(0)
        body = timm.create_model(task.arch, num_classes=0)
        if task.weights:
            own = load_file(task.weights)
            body.load_state_dict({name: own.get(name, value) for name, value in body.state_dict().items()})
        network = nn.Sequential(body, nn.Linear(body.num_features, sum(sizes)))
        network = network.to(device, memory_format=torch.channels_last)
        optimizer, steps = torch.optim.AdamW(network.parameters(), LOOP_LR, weight_decay=1e-2), len(trained) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LOOP_LR, total_steps=steps * task.epochs)
        for epoch in range(task.epochs):
            network.train()
            order = torch.from_numpy(trained)[torch.randperm(len(trained))[: steps * BATCH]]
            for rows in order.split(BATCH):
                optimizer.zero_grad()
                loss_of(network(batch(augment(photos[rows]))), y[rows].to(device)).backward()
                optimizer.step()
                schedule.step()
            oof[valid] = answer(network, photos[valid], mirrored=epoch + 1 == task.epochs)
            curve[epoch].append(f1_score(joint[valid], classes(oof[valid]), average="macro"))
        networks.append(network)
    seconds = time.perf_counter() - start
    points = [(seconds * (epoch + 1) / task.epochs, float(np.mean(scores))) for epoch, scores in curve.items()]
    reported = float(f1_score(joint, classes(oof), average="macro"))
    held = torch.from_numpy(task.photos(task.held)).permute(0, 3, 1, 2)
    return Answer(classes(sum(answer(network, held) for network in networks)), reported, seconds, points)


def fastai(task: Task) -> Answer:
    """Plain fastai: the joint class, its own augmentation, fine_tune, tta; epochs by the seconds of a few batches."""
    # imported for the method fine_tune that it adds to Learner
    import fastai.callback.schedule  # noqa: F401
    import torch
    from fastai.callback.core import Callback, CancelFitException
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import IndexSplitter, Normalize
    from fastai.metrics import F1Score
    from fastai.torch_core import set_seed
    from fastai.vision.augment import CropPad, Resize, ResizeMethod, aug_transforms
    from fastai.vision.data import ImageBlock
    from fastai.vision.learner import vision_learner
    from fastcore.basics import noop
    from safetensors.torch import load_file

    from fastmask import assign_folds

    start, table = time.perf_counter(), task.table.select(task.train)
    joint = table.heads.joint(table.y)
    frame = pd.DataFrame({"photo": [str(table.photo(row)) for row in range(len(table))], "joint": joint})
    valid = np.flatnonzero(assign_folds(table, FIFTHS) == 0)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(range(table.heads.n_joint)))),
        get_x=lambda row: row["photo"],
        get_y=lambda row: row["joint"],
        splitter=IndexSplitter(valid),
        item_tfms=[*([CropPad(task.crop)] if task.crop else []), Resize(task.size, method=ResizeMethod.Squish)],
        batch_tfms=[*aug_transforms(size=task.size), Normalize.from_stats(task.stats[:3], task.stats[3:])],
    )
    set_seed(0)
    dls = block.dataloaders(frame, bs=BATCH, num_workers=0)

    def learner() -> Any:
        made = vision_learner(dls, task.arch, pretrained=False, metrics=F1Score(average="macro"))
        if task.weights:
            own = load_file(task.weights)
            body = made.model[0].model.state_dict()
            made.model[0].model.load_state_dict({name: own.get(name, value) for name, value in body.items()})
        made.remove_cbs([cb for cb in made.cbs if type(cb).__name__ == "ProgressCallback"])
        made.logger = noop
        return made

    class Few(Callback):
        """Ends a fit after a few batches; `seconds` of each."""

        seen, seconds = 0, 0.0

        def before_batch(self) -> None:
            self.seen += self.training
            if self.seen == 3 and not self.seconds:
                self.seconds = -time.perf_counter()
            if self.seen == 9:
                self.seconds = (self.seconds + time.perf_counter()) / 6
                raise CancelFitException

    class Curve(Callback):
        """The seconds and the validation's macro-F1 of each epoch."""

        order = 70

        def __init__(self) -> None:
            self.points: list[tuple[float, float]] = []

        def after_epoch(self) -> None:
            self.points.append((time.perf_counter() - start, float(self.recorder.values[-1][-1])))

    few = Few()
    learner().fit(9, cbs=few)
    epoch = few.seconds * (len(dls.train) + len(valid) / BATCH / 3)
    # the first epoch trains the head alone, at about a third of the cost
    epochs = max(1, round(((task.seconds or 0) - (time.perf_counter() - start)) / epoch - 1 / 3))
    learn, curve = learner(), Curve()
    learn.freeze()
    learn.fine_tune(epochs, 2e-3, cbs=curve)
    seconds = time.perf_counter() - start
    held = task.table.select(task.held)
    test = dls.test_dl(pd.DataFrame({"photo": [str(held.photo(row)) for row in range(len(held))]}))
    with torch.no_grad():
        found, _ = learn.tta(dl=test)
    return Answer(found.argmax(1).numpy(), curve.points[-1][1], seconds, curve.points)


def recipe(task: Task, name: str, share: float = 1.0) -> Answer:
    """`fastmask fit --recipe` with --minutes, and predict, both as they are."""
    import fastmask as fm

    start = time.perf_counter()
    own: dict[str, Any] = {"boxes": None, "drop": None, "refit": 0} if name == "winner" else {}
    if "age" not in task.table.heads.names:
        own |= {"age_bounds": (30, 60), "stratify": "joint"}
    config = fm.make_config(fm.read_recipe(name), own)
    # the bounds of age that a recipe trains on are read with the table
    table = fm.read_data(fm.make_config({"data": task.data, "age_bounds": config.age_bounds}))
    rows = np.flatnonzero(table.frame["path"].isin(task.table.frame["path"].iloc[task.train]))
    # a recipe that chooses how photos are cut and scaled does so, and with the time limit the folds
    chosen = {} if config.auto_resize else {"crop": task.crop, "resize": task.size, "folds": FOLDS}
    given = {"weights": task.weights, **chosen}
    run = fm.cross_validate(
        table.select(rows),
        config,
        out=task.out / "run",
        overwrite=True,
        log=StringIO(),
        arch=task.arch,
        pretrained=False,
        **{name: value for name, value in given.items() if value is not None},
        stats=task.stats,
        minutes=(task.seconds or 60) * share / 60,
    )
    seconds = time.perf_counter() - start
    predicted = run.predict([task.table.photo(row) for row in task.held])
    return Answer(predicted.joint, float(run.score().joint.macro_f1), seconds, curve_of(run, seconds))


def curve_of(run: Any, seconds: float) -> list[tuple[float, float]]:
    """The mean macro-F1 of the folds' validated epochs, by the share of the seconds that each epoch ends at."""
    histories = [run.history(fold).set_index("epoch")["macro_f1"] for fold in range(run.config.folds)]
    epochs = min(map(len, histories))
    scores = pd.concat(histories, axis=1).iloc[:epochs].mean(axis=1).dropna()
    return [(seconds * (epoch + 1) / epochs, float(score)) for epoch, score in scores.items()]


RUN: dict[str, Callable[[Task], Answer]] = {
    "loop": loop,
    "fastai": fastai,
    "report": partial(recipe, name="report"),
    "winner": partial(recipe, name="winner"),
    "strong": partial(recipe, name="strong"),
    "strong in a third": partial(recipe, name="strong", share=1 / 3),
}


def strata_of(table: Any) -> pd.Series:
    """The classes of each person in the heads that are of a person, such as gender and age."""
    from fastmask.decision.persons import shared_heads

    own = list(shared_heads(table.heads, table.y, table.persons))
    return table.frame.groupby("person", sort=False)[own].first().agg(" ".join, axis=1)


def deal(strata: pd.Series, parts: int, seed: int) -> np.ndarray:
    """The part of each person, dealt stratum by stratum."""
    rng, found, dealt = np.random.default_rng(seed), np.empty(len(strata), np.int64), 0
    for stratum in sorted(set(strata)):
        rows = np.flatnonzero(strata == stratum).tolist()
        rng.shuffle(rows)
        for row in rows:
            found[row], dealt = dealt % parts, dealt + 1
    return found


def is_pooled(strata: pd.Series) -> np.ndarray:
    """Whether some draw may hold out a person, see `TUNED`."""
    return deal(strata, FIFTHS, 20261130) >= TUNED


def draw_held(table: Any, draw: int) -> np.ndarray:
    """(N,) whether a draw holds out a photo: those of half of the persons that nothing is tuned on."""
    strata = strata_of(table)
    pool = strata[is_pooled(strata)]
    return np.isin(table.persons, pool.index[deal(pool, 2, draw // 2) == draw % 2])


@dataclass(frozen=True)
class Study:
    """All tasks of a table, each in a process of its own, and their results as files below `out`."""

    data: str
    table: Any
    out: Path
    options: dict[str, Any]
    draws: int
    jobs: int
    seconds: float | None
    methods: list[str]
    words: list[str]

    def folder(self, method: str, draw: int) -> Path:
        return self.out / f"draw{draw}" / method.replace(" ", "-")

    def train_all(self) -> None:
        """Run what has no result yet, first the loops, whose seconds limit all others."""
        with ThreadPoolExecutor(self.jobs) as pool:
            for wave in (("loop",), [method for method in self.methods if method != "loop"]):
                left = [(m, d) for d, m in product(range(self.draws), wave) if not self._file(m, d).exists()]
                list(pool.map(lambda pair: self._in_process(*pair), left))

    def _file(self, method: str, draw: int) -> Path:
        return self.folder(method, draw) / "result.json"

    def _in_process(self, method: str, draw: int) -> None:
        threads = str(max(1, len(os.sched_getaffinity(0)) // self.jobs))
        command = [sys.executable, __file__, *self.words, "--run", f"{method}:{draw}"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": threads})
        found = self.result(method, draw)
        print(f"draw {draw} {method}: reports {found['reported']:.3f}, {found['seconds']:.0f} s", flush=True)

    def train(self, method: str, draw: int) -> None:
        """Run one method in this process, and write its result."""
        held = draw_held(self.table, draw)
        seconds = None if method == "loop" else self.seconds or float(self.result("loop", draw)["seconds"])
        folder = self.folder(method, draw)
        folder.mkdir(parents=True, exist_ok=True)
        rows = np.flatnonzero(~held), np.flatnonzero(held)
        answer = RUN[method](Task(self.data, self.table, *rows, **self.options, out=folder, seconds=seconds))
        pd.DataFrame({"photo": self.table.frame["path"].to_numpy()[rows[1]], "joint": answer.joint}).to_csv(
            folder / "answers.csv", index=False
        )
        plain = {"reported": answer.reported, "seconds": answer.seconds, "curve": answer.curve}
        self._file(method, draw).write_text(json.dumps(plain))

    def result(self, method: str, draw: int) -> dict[str, Any]:
        return dict(json.loads(self._file(method, draw).read_text()))

    def answers(self, method: str, draw: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The predicted and the true joint class, and the person, of each photo that a draw holds out."""
        held = self.table.select(np.flatnonzero(draw_held(self.table, draw)))
        answers = pd.read_csv(self.folder(method, draw) / "answers.csv")["joint"].to_numpy()
        return answers, np.asarray(held.heads.joint(held.y)), held.persons

    def all_answers(self, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The answers of all draws; a person of two draws counts in both."""
        parts = [self.answers(method, draw) for draw in range(self.draws)]
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))  # type: ignore[return-value]


def table_of_scores(study: Study) -> pd.DataFrame:
    """A row per method: the scores, means over draws, and its differences, paired over persons."""
    from fastmask.scoring import score, score_differences

    rows = []
    for method in study.methods:
        results = [study.result(method, draw) for draw in range(study.draws)]
        each = [score(*study.answers(method, draw)[:2], draws=0) for draw in range(study.draws)]
        answers, true, persons = study.all_answers(method)
        row = {
            "method": method,
            "reported": np.mean([one["reported"] for one in results]),
            "held out": np.mean([one.macro_f1 for one in each]),
            "accuracy": np.mean([one.accuracy for one in each]),
            "draws": " ".join(f"{one.macro_f1:.3f}" for one in each),
            "seconds": np.mean([one["seconds"] for one in results]),
        }
        for other in ("loop", "report"):
            if method != other and other in study.methods:
                theirs, *_ = study.all_answers(other)
                (less,) = score_differences([(theirs, true, None), (answers, true, None)], persons)
                row[f"minus {other}"] = str(less)
        rows.append(row)
    return pd.DataFrame(rows)


def plot(study: Study, file: Path) -> None:
    """Macro-F1 over seconds: lines of the validation photos of the first draw, dots of the persons of all held out."""
    from matplotlib.figure import Figure

    from fastmask.scoring import score

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for method in study.methods:
        (line,) = axes.plot(*zip(*study.result(method, 0)["curve"], strict=True), ".-", label=method)
        for draw in range(study.draws):
            found = score(*study.answers(method, draw)[:2], draws=0)
            axes.plot(study.result(method, draw)["seconds"], found.macro_f1, "o", color=line.get_color(), alpha=0.6)
    axes.set(xlabel="seconds of training", ylabel="macro-F1 (large dots: persons held out, each draw)")
    axes.legend()
    figure.savefig(file, dpi=150)


def main(
    data: str,
    out: Path,
    weights: Annotated[str | None, typer.Option(help="The body's weights; random without.")] = None,
    arch: str = "tf_efficientnet_lite0",
    crop: Annotated[tuple[int, int] | None, typer.Option(help="The centre to cut out; else the whole photo.")] = None,
    size: Annotated[tuple[int, int], typer.Option(help="The size of the network's photos.")] = (128, 128),
    stats: Annotated[float, typer.Option(help="Mean and deviation that the weights expect.")] = 0.5,
    epochs: Annotated[int, typer.Option(help="Epochs of the loop.")] = 4,
    draws: int = 4,
    jobs: Annotated[int, typer.Option(help="Methods side by side.")] = 1,
    seconds: Annotated[float | None, typer.Option(help="Of each method but the loop; by default the loop's.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(METHODS)}.")] = None,
    short: Annotated[bool, typer.Option("--short", help="One draw of a third of the persons, small.")] = False,
    write_tuning: Annotated[Path | None, typer.Option(help="Only write the persons that are never held out.")] = None,
    run: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    import fastmask as fm

    warnings.simplefilter("ignore")
    table = fm.read_data(fm.make_config({"data": data}))
    if write_tuning is not None:
        strata = strata_of(table)
        pd.DataFrame({"person": strata.index[~is_pooled(strata)]}).to_csv(write_tuning, index=False)
        return
    if short:
        strata = strata_of(table)
        table = table.select(np.flatnonzero(np.isin(table.persons, strata.index[deal(strata, 3, 0) == 0])))
        draws = 1
    options = {"arch": arch, "weights": weights, "crop": crop, "size": size, "stats": (stats,) * 6, "epochs": epochs}
    words = sys.argv[1:]
    study = Study(data, table, out, options, draws, jobs, seconds, method or list(METHODS), words)
    if run is not None:
        name, number = run.rsplit(":", 1)
        study.train(name, int(number))
        return
    study.train_all()
    made = table_of_scores(study)
    made.round(3).to_csv(out / "score.csv", index=False)
    plot(study, out / "score.png")
    print(made.round(3).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
