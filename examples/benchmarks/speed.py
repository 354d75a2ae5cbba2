"""What fastmask costs beside plain fastai, timm and no framework at all, on the same photos and in turn: A B C A B C.

python examples/benchmarks/speed.py [PART ...] [--data DIR] [--rounds N] [--json FILE] [more: --help]

For Linux alone.

loader  ms a photo of one process in one thread: CenterCrop 400 x 200 and RandomBrightnessContrast as uint8 batches,
        such as a GPU is fed, and normalized as float32 batches. The floor is the same without a framework: a copy of
        each crop out of a memory map, half of them changed by a table, in shuffled order
step    ms a training step of a fit, loading and callbacks included, beside the bare step: a plain PyTorch loop over one
        batch with the same network, loss, optimizer and precision, which runs between the steps of the fit
job     s of a whole cross-validation from JPEGs to scores, with nothing decoded beforehand
memory  MB that all processes of a pass over 18,900 photos take at most, beside 1,890

Without a PART it runs loader and step. A ratio is what a row takes over what fastmask takes: the median of the rounds.
"""

import argparse
import csv
import gc
import json
import operator
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO, StringIO
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import albumentations as A
import cv2
import numpy as np
import timm
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IndexSplitter, Normalize
from fastai.metrics import AccumMetric
from fastai.vision.augment import RandTransform
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from fasttransform import Pipeline
from sklearn.metrics import f1_score
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2

from fastmask import Augmentation, FocalLoss, Table, assign_folds, cross_validate, dataloaders, read_contest
from fastmask.config import make_config
from fastmask.data.augment import REPORT_STATS
from fastmask.data.drawing import STEMS
from fastmask.data.loaders import default_workers, photo_maps, pick_device
from fastmask.data.pipelines import report_pipelines
from fastmask.data.sample import cached_sample
from fastmask.training.bench import bench
from fastmask.training.setup import prepare

try:
    import turboloader
except ImportError:
    turboloader = None

SIZE = (400, 200)
MEAN, STD = REPORT_STATS
LR, WD = 3e-4, 1e-5
OWN, FASTAI, TIMM, TURBO, FLOOR, BARE = "fastmask", "plain fastai", "timm", "turboloader", "floor", "bare step"
ROUNDS = {"loader": 9, "step": 1, "job": 1, "memory": 1}
# batches that the slow take in a turn: a turn is to be short, so that all meet the same moments of a busy machine
SHORT_TURN = 6
# an epoch of a few seconds where processes load, which take a moment to start
TILES = 8


@dataclass(frozen=True)
class Target:
    """What a ratio is to be."""

    compare: str
    bound: float

    def __str__(self) -> str:
        return f"{self.compare} {self.bound:g}"

    def met_by(self, ratio: float) -> bool:
        return bool({">=": operator.ge, "<=": operator.le}[self.compare](ratio, self.bound))


@dataclass(frozen=True)
class Row:
    """One line of a table; `ratio` None is one that was not measured."""

    what: str
    values: Mapping[str, float] = field(default_factory=dict)
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def row(what: str, values: Mapping[str, float], ratio: float, target: Target | None = None) -> Row:
    if target is None:
        return Row(what, values, ratio)
    return Row(what, values, ratio, str(target), target.met_by(ratio))


@dataclass(frozen=True)
class Part:
    """A table."""

    title: str
    rows: Sequence[Row]

    def __str__(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name in row.values))
        lines = [f"{self.title}", f"{'':46}{''.join(f'{c:>12}' for c in (*columns, 'ratio', 'target', 'met'))}"]
        return "\n".join([*lines, *(self._line(row, columns) for row in self.rows)])

    def _line(self, row: Row, columns: Sequence[str]) -> str:
        if row.ratio is None:
            return f"{row.what:46}{'not installed':>12}"
        values = [f"{row.values[c]:.4g}" if c in row.values else "" for c in columns]
        met = {None: "", True: "yes", False: "NO"}[row.met]
        return f"{row.what:46}{''.join(f'{v:>12}' for v in (*values, f'{row.ratio:.2f}', row.target, met))}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A block in which torch and opencv work in `count` threads."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def in_turn(turns: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, np.ndarray]:
    """(rounds, 2) seconds and CPU seconds a photo of each; a turn returns its photos, the first of each is a warm-up.

    CPU seconds are those of all threads of this process: a loader of several threads takes more of them than seconds.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(1 + rounds):
        for name, turn in turns.items():
            start, cpu = time.perf_counter(), time.process_time()
            photos = turn()
            times[name].append(((time.perf_counter() - start) / photos, (time.process_time() - cpu) / photos))
    return {name: np.array(each[1:]) for name, each in times.items()}


def loader_part(title: str, turns: Mapping[str, Callable[[], int]], rounds: int, targets: Mapping[str, Target]) -> Part:
    times = in_turn(turns, rounds)
    rows = []
    for name, each in times.items():
        wall, cpu = 1000 * np.median(each, axis=0)
        ratio = float(np.median(each[:, 0] / times[OWN][:, 0]))
        rows.append(row(name, {"ms a photo": wall, "CPU ms": cpu}, ratio, targets.get(name)))
    if turboloader is None:
        rows.append(Row(TURBO))
    return Part(title, rows)


# ---------------------------------------------------------------------------------------------------------------------
# loader
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The photos of a table in the folds that all contestants train on; the first fold validates."""

    table: Table
    folds: np.ndarray
    augments: tuple[Augmentation, Augmentation]
    maps: Sequence[Any]
    bs: int

    @property
    def paths(self) -> list[Path]:
        return [self.table.photo(i) for i in range(len(self.table))]

    @property
    def training(self) -> np.ndarray:
        return np.flatnonzero(self.folds != 0)

    def tiled(self, times: int) -> "Split":
        """The same photos several times over."""
        rows = np.tile(np.arange(len(self.table)), times)
        return Split(self.table.select(rows), self.folds[rows], self.augments, self.maps, self.bs)


def split_of(table: Table, bs: int, cache: Path, folds: int = 5) -> Split:
    augments = tuple(Augmentation(pipeline) for pipeline in report_pipelines(SIZE))
    maps = photo_maps(table, augments, "disk", cache)
    return Split(table, assign_folds(table, folds), augments, maps, bs)


def fastmask_loaders(split: Split, workers: int = 0) -> DataLoaders:
    return dataloaders(
        split.table,
        0,
        split.folds,
        augments=split.augments,
        maps=split.maps,
        bs=split.bs,
        num_workers=workers,
        device="cpu",
    )


class AlbumentationsTransform(RandTransform):
    """As in fastai's tutorial on albumentations."""

    split_idx, order = None, 2

    def __init__(self, train: A.Compose, valid: A.Compose) -> None:
        super().__init__()
        self.train, self.valid = train, valid

    def before_call(self, b: Any, split_idx: int) -> None:
        self.augment = self.valid if split_idx else self.train

    def encodes(self, image: PILImage) -> PILImage:
        return PILImage.create(self.augment(image=np.array(image))["image"])


def without_normalizing(pipeline: A.Compose) -> A.Compose:
    return A.Compose([t for t in pipeline.transforms if not isinstance(t, A.Normalize | A.ToTensorV2)])


def fastai_loaders(
    table: Table, folds: np.ndarray, bs: int, fold: int = 0, workers: int | None = 0, device: str = "cpu"
) -> DataLoaders:
    """The usual notebook: photos by PIL, albumentations a photo, fastai's Normalize a batch; the same three heads."""
    paths, y = [table.photo(i) for i in range(len(table))], torch.as_tensor(table.train_y)
    block = DataBlock(
        blocks=(ImageBlock, TransformBlock),
        get_x=lambda i: paths[i],
        get_y=lambda i: y[i],
        splitter=IndexSplitter(np.flatnonzero(folds == fold).tolist()),
        item_tfms=AlbumentationsTransform(*map(without_normalizing, report_pipelines(SIZE))),
        batch_tfms=Normalize.from_stats(MEAN, STD, cuda=device == "cuda"),
    )
    return block.dataloaders(list(range(len(table))), bs=bs, num_workers=workers, device=torch.device(device))


class Files:
    """What timm calls a reader: an opened file and its target."""

    def __init__(self, paths: Sequence[Path], y: np.ndarray) -> None:
        self.paths, self.y = paths, y

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[BytesIO, np.ndarray]:
        return BytesIO(self.paths[i].read_bytes()), self.y[i]


def timm_loader(
    table: Table, rows: np.ndarray, bs: int, training: bool = True, prefetcher: bool = True, **options: Any
) -> Any:
    """timm's loader with timm's transforms: its random crop, held to 400 x 200 of 512 x 384 so that it scales nothing.

    Not quite the same work: the crop's place is drawn, and torchvision's ColorJitter draws about the photo's own mean.
    """
    dataset = ImageDataset("", reader=Files([table.photo(i) for i in rows], table.train_y[rows]))
    share = SIZE[0] * SIZE[1] / (512 * 384)
    return create_loader(
        dataset,
        (3, *SIZE),
        bs,
        is_training=training,
        scale=(share, share),
        ratio=(SIZE[1] / SIZE[0],) * 2,
        hflip=0,
        color_jitter=(0.1, 0.1, 0),
        color_jitter_prob=0.5,
        crop_pct=1.0,
        mean=MEAN,
        std=STD,
        use_prefetcher=prefetcher,
        **{"num_workers": 0, "device": torch.device("cpu"), **options},
    )


class Floor:
    """The same work without a framework, into memory that is kept: batches of uint8, or of float32 if `normalized`.

    As in fastmask's loader the crops lie in a memory map, brightness and contrast are a table of the 256 values, and
    normalizing is one of each channel.
    """

    def __init__(self, split: Split, normalized: bool = False) -> None:
        found = [split.maps[0].get(str(split.table.photo(i))) for i in split.training]
        self.photos = [photo for photo in found if photo is not None]
        self.rng = np.random.default_rng(0)
        self.batch = np.empty((min(split.bs, len(self.photos)), *SIZE, 3), np.uint8)
        self.floats = np.empty(self.batch.shape, np.float32) if normalized else None
        self.levels = np.arange(256, dtype=np.float32)
        self.normal = ((self.levels[:, None] / 255 - MEAN) / STD).astype(np.float32)[:, None]

    def __iter__(self) -> Iterator[tuple[np.ndarray]]:
        order, size = self.rng.permutation(len(self.photos)), len(self.batch)
        for start in range(0, len(order) - size + 1, size):
            for i, number in enumerate(order[start : start + size]):
                self.fill(self.photos[number], self.batch[i])
            yield (self.batch if self.floats is None else self.normalize(self.floats),)

    def fill(self, photo: np.ndarray, place: np.ndarray) -> None:
        if self.rng.random() < 0.5:
            place[:] = photo
            return
        contrast, brightness = self.rng.uniform(-0.1, 0.1, 2)
        table = np.clip(self.levels * (1 + contrast) + 255 * brightness, 0, 255).astype(np.uint8)
        cv2.LUT(photo, table, dst=place)

    def normalize(self, out: np.ndarray) -> np.ndarray:
        width = SIZE[1]
        cv2.LUT(self.batch.reshape(-1, width, 3), self.normal, dst=out.reshape(-1, width, 3))
        return out


def turbo_files(split: Split, folder: Path) -> tuple[str, str]:
    """The JPEGs in the two forms that turboloader reads: a TAR, and a file of decoded photos.

    Not the same photos: it reads no PNGs. In its file of decoded photos they are scaled to the size, not cropped.
    """
    tar, decoded = str(folder / "photos.tar"), str(folder / "photos.tbl")
    with tarfile.open(tar, "w") as archive:
        for i in split.training:
            path = split.table.photo(i)
            if path.suffix in (".jpg", ".jpeg"):
                archive.add(path, f"{i:06d}.jpg")
    turboloader.preprocess_to_tbl(tar, decoded, image_size=SIZE)
    return tar, decoded


def turbo_cropped(tar: str, bs: int) -> Iterator[tuple[np.ndarray]]:
    """uint8 batches by turboloader: it decodes, crops and jitters (always, not half of the photos) in two threads."""
    crop = turboloader.CenterCrop(SIZE[1], SIZE[0])
    jitter = turboloader.ColorJitter(brightness=0.1, contrast=0.1)
    options = {"num_workers": 2, "shuffle": True, "drop_last": True}
    with turboloader.DataLoader(tar, bs, transform=turboloader.Compose([crop, jitter]), **options) as loader:
        for samples in loader:
            yield (np.stack([sample["image"] for sample in samples]),)


def turbo_decoded(decoded: str, bs: int) -> Any:
    """float32 batches by turboloader out of a memory map, channels-last; it cannot change brightness and contrast."""
    return turboloader.TblRawImageLoader(decoded, bs, mean=MEAN, std=STD, drop_last=True, channels_last=True)


def walk(batches: Iterable[Any], dtype: str, limit: int | None = None) -> Callable[[], int]:
    """A turn: one pass over `batches`, or its first `limit`, which are as they should be."""

    def turn() -> int:
        photos = 0
        for batch in islice(batches, limit):
            x = batch[0]
            photos += len(x)
        # some are channels-last
        if sorted(x.shape[1:]) != sorted((3, *SIZE)) or str(x.dtype).rpartition(".")[2] != dtype:
            raise AssertionError(f"batches are {x.dtype} {tuple(x.shape)}")
        return photos

    return turn


class Again:
    """An iterable that calls `make` for each pass."""

    def __init__(self, make: Callable[..., Iterable[Any]], *arguments: Any) -> None:
        self.make, self.arguments = make, arguments

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make(*self.arguments))


def as_bytes(dl: Any) -> Any:
    """A fastai loader without its batch transforms: what it would send to a GPU."""
    made = dl.new()
    made.after_batch = Pipeline([])
    return made


def bytes_turns(split: Split, turbo: tuple[str, str] | None, workers: int = 0) -> dict[str, Callable[[], int]]:
    plain = fastai_loaders(split.table, split.folds, split.bs, workers=workers)
    theirs = timm_loader(split.table, split.training, split.bs, num_workers=workers)
    # where processes load, a pass is to be a whole one: they would be started for a few batches
    limit = None if workers else SHORT_TURN
    turns = {
        OWN: walk(as_bytes(fastmask_loaders(split, workers).train), "uint8"),
        FASTAI: walk(as_bytes(plain.train), "uint8", limit),
        TIMM: walk(theirs.loader, "uint8", limit),
    }
    if turbo is not None:
        turns[f"{TURBO}, JPEGs from a TAR"] = walk(Again(turbo_cropped, turbo[0], split.bs), "uint8", limit)
    return turns if workers else {**turns, FLOOR: walk(Floor(split), "uint8")}


def float_turns(split: Split, turbo: tuple[str, str] | None) -> dict[str, Callable[[], int]]:
    plain = fastai_loaders(split.table, split.folds, split.bs)
    theirs = timm_loader(split.table, split.training, split.bs, prefetcher=False)
    turns = {
        OWN: walk(fastmask_loaders(split).train, "float32"),
        FASTAI: walk(plain.train, "float32", SHORT_TURN),
        TIMM: walk(theirs, "float32", SHORT_TURN),
    }
    if turbo is not None:
        turns[f"{TURBO}, decoded, no augmentation"] = walk(turbo_decoded(turbo[1], split.bs), "float32")
    return {**turns, FLOOR: walk(Floor(split, normalized=True), "float32")}


def loader(table: Table, options: argparse.Namespace, folder: Path) -> Iterator[Part]:
    split, floor = split_of(table, options.bs, folder / "photos", options.folds), Target(">=", 0.8)
    turbo = None if turboloader is None else turbo_files(split, folder)
    as_uint8 = {FASTAI: Target(">=", 20), FLOOR: floor}
    as_float = {FASTAI: Target(">=", 8), FLOOR: floor}
    # as in a process that loads; with more, small operations wait for each other on a busy machine, tenfold in timm
    with threads(1):
        yield loader_part("loader, uint8 batches", bytes_turns(split, turbo), options.rounds, as_uint8)
        yield loader_part("loader, float32 batches", float_turns(split, turbo), options.rounds, as_float)
    if options.workers:
        turns = bytes_turns(split.tiled(TILES), None, options.workers)
        yield loader_part(f"loader, uint8 batches, {options.workers} processes", turns, options.rounds, {})


# ---------------------------------------------------------------------------------------------------------------------
# step
# ---------------------------------------------------------------------------------------------------------------------


def step(table: Table, options: argparse.Namespace, folder: Path) -> Iterator[Part]:
    target = Target(">=", 0.97 if torch.cuda.is_available() else 0.98)
    photos = table.select(np.tile(np.arange(len(table)), TILES)) if torch.cuda.is_available() else table
    rows = []
    for arch in options.archs or ("tf_efficientnet_lite0", "tf_efficientnet_b0"):
        settings = {"arch": arch, "bs": options.bs, "folds": options.folds, "cache_dir": str(folder / "photos")}
        measured = bench(prepare(photos, make_config({**settings, "pretrained": False})), options.seconds)
        gc.collect()
        rows.append(row(f"{arch}, {OWN}", {"ms a step": 1000 * measured.train}, 1.0))
        rows.append(row(f"{arch}, {BARE}", {"ms a step": 1000 * measured.bare}, measured.efficiency, target))
    yield Part(f"step, batches of {options.bs}", rows)


# ---------------------------------------------------------------------------------------------------------------------
# job
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A cross-validation, to be done by each from the files on."""

    table: Table
    arch: str
    bs: int
    folds: int
    epochs: int

    @property
    def dealt(self) -> np.ndarray:
        return assign_folds(self.table, self.folds)

    @property
    def true(self) -> np.ndarray:
        return self.table.heads.joint(self.table.y)

    def joint(self, logits: torch.Tensor) -> np.ndarray:
        heads = self.table.heads
        return heads.joint(torch.stack([part.argmax(-1) for part in heads.split(logits)], dim=-1).cpu().numpy())


def fastmask_job(job: Job, folder: Path) -> None:
    """Besides it checks all photos, keeps checkpoints and out-of-fold probabilities, and scores with intervals."""
    settings = {"arch": job.arch, "bs": job.bs, "folds": job.folds, "epochs": job.epochs, "patience": 0}
    cache = str(folder / "cache")
    cross_validate(job.table, out=folder / "run", log=StringIO(), pretrained=False, cache_dir=cache, **settings)


def fastai_job(job: Job, folder: Path, half: bool = False) -> None:
    """fastai's learner of a timm body with its own head, optimizer (Adam) and memory format, and fastai's workers."""
    heads = job.table.heads

    def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
        return float((job.joint(logits) == heads.joint(y.cpu().numpy())).mean())

    def macro_f1(logits: torch.Tensor, y: torch.Tensor) -> float:
        return float(f1_score(heads.joint(y.numpy()), job.joint(logits), average="macro"))

    for fold in range(job.folds):
        dls = fastai_loaders(job.table, job.dealt, job.bs, fold, None, pick_device().type)
        learn = vision_learner(
            dls,
            job.arch,
            n_out=heads.n_logits,
            pretrained=False,
            loss_func=FocalLoss(heads),
            lr=LR,
            metrics=[accuracy, AccumMetric(macro_f1, flatten=False)],
        )
        learn = learn.to_fp16() if half else learn
        with learn.no_bar(), learn.no_logging():
            learn.fit(job.epochs)


def timm_job(job: Job, folder: Path, half: bool = False) -> None:
    """A plain loop over timm's network, loader and AdamP, with a validation an epoch."""
    device = pick_device()
    loaders = {"device": device, "num_workers": default_workers(device), "pin_memory": device.type == "cuda"}
    for fold in range(job.folds):
        train, valid = (np.flatnonzero(chosen) for chosen in (job.dealt != fold, job.dealt == fold))
        network = timm.create_model(job.arch, num_classes=job.table.heads.n_logits).to(device)
        loss, optimizer = FocalLoss(job.table.heads), create_optimizer_v2(network, "adamp", lr=LR, weight_decay=WD)
        batches = timm_loader(job.table, train, min(job.bs, len(train)), **loaders)
        judged = timm_loader(job.table, valid, job.bs, training=False, **loaders)
        for _ in range(job.epochs):
            network.train()
            for x, y in batches:
                with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
                    value = loss(network(x), y)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            network.eval()
            with torch.inference_mode():
                answers = [job.joint(network(x)) for x, _ in judged]
            f1_score(job.true[valid], np.concatenate(answers), average="macro")


def contestants() -> dict[str, Callable[[Job, Path], None]]:
    jobs = {OWN: fastmask_job, FASTAI: fastai_job, TIMM: timm_job}
    if torch.cuda.is_available():
        jobs[f"{FASTAI}, to_fp16"] = partial(fastai_job, half=True)
        jobs[f"{TIMM}, bf16"] = partial(timm_job, half=True)
    return jobs


def seconds_of(name: str, job: Job) -> float:
    """What one contestant takes, imports left out."""
    with tempfile.TemporaryDirectory(prefix="fastmask-speed-") as folder:
        start = time.perf_counter()
        contestants()[name](job, Path(folder))
        return time.perf_counter() - start


def apart(name: str, arch: str, options: argparse.Namespace) -> float:
    """`seconds_of` in a process of its own, since fastmask changes how a process keeps its memory."""
    numbers = {"photos": options.photos, "bs": options.bs, "folds": options.folds, "epochs": options.epochs}
    given = {"data": options.data, "threads": options.threads, "archs": arch, **numbers}
    arguments = [word for key, value in given.items() if value is not None for word in (f"--{key}", str(value))]
    command = [sys.executable, __file__, "job", *arguments, "--contestant", name]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def job_target(arch: str) -> Target | None:
    bounds = {"tf_efficientnet_b4": 5} if torch.cuda.is_available() else {"tf_efficientnet_b4": 3}
    if not torch.cuda.is_available():
        bounds["tf_efficientnet_b0"] = 1.2
    return Target(">=", bounds[arch]) if arch in bounds else None


def job(table: Table, options: argparse.Namespace, folder: Path) -> Iterator[Part]:
    for arch in options.archs or ("tf_efficientnet_b0",):
        seconds: dict[str, list[float]] = {name: [] for name in contestants()}
        for _ in range(options.rounds):
            for name, each in seconds.items():
                each.append(apart(name, arch, options))
        rows = []
        for name, each in seconds.items():
            ratio = median(a / b for a, b in zip(each, seconds[OWN], strict=True))
            rows.append(row(name, {"s": median(each)}, ratio, job_target(arch) if name == FASTAI else None))
        yield Part(f"job, {arch}, {options.folds} folds of {options.epochs} epochs over {len(table)} photos", rows)


# ---------------------------------------------------------------------------------------------------------------------
# memory
# ---------------------------------------------------------------------------------------------------------------------


def write_many(table: Table, folder: Path, photos: int) -> None:
    """A contest folder of `photos` JPEGs, no two of which have the same bytes: a number follows the JPEG's end."""
    jpegs = [path for path in map(table.photo, range(len(table))) if path.suffix in (".jpg", ".jpeg")]
    contents = [path.read_bytes() for path in jpegs]
    rows = []
    for number in range(photos // len(STEMS)):
        gender, age = ("male", "female")[number % 2], (25, 45, 60)[number % 3]
        rows.append((f"{number:06d}", gender, "Asian", age, f"{number:06d}_{gender}_Asian_{age}"))
        person = folder / "images" / rows[-1][-1]
        person.mkdir(parents=True)
        for i, stem in enumerate(STEMS, start=number * len(STEMS)):
            (person / f"{stem}.jpg").write_bytes(contents[i % len(contents)] + str(i).encode())
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "gender", "race", "age", "path"), *rows])


def pass_over(folder: str, cache: str, workers: str) -> None:
    """What a process of its own does: a pass over the photos of `folder`; without `workers` it decodes them only."""
    split = split_of(read_contest(folder), 32, Path(cache))
    if workers:
        for dl in fastmask_loaders(split, int(workers)):
            for _ in dl:
                pass


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # the name, in brackets, may hold anything
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def anonymous(pid: int) -> int:
    """Bytes of a process that lie in no file; of a page that several share each has its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def total(pid: int) -> int:
    """`anonymous` of a process and those that it started; one that ends meanwhile counts nothing."""
    found = 0
    for one in family(pid):
        with suppress(OSError, StopIteration):
            found += anonymous(one)
    return found


def peak(*arguments: str) -> int:
    """The most bytes that a process of its own and its loading processes had at once."""
    most = 0
    with subprocess.Popen([sys.executable, __file__, "--pass-over", *arguments]) as process:
        while process.poll() is None:
            most = max(most, total(process.pid))
            time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"the pass over {arguments[0]} failed")
    return most


def memory(table: Table, options: argparse.Namespace, folder: Path) -> Iterator[Part]:
    sizes, rows = sorted(options.sizes), []
    peaks: dict[tuple[int, int], int] = {}
    for photos in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            photos_at, cache = Path(place) / "train", str(Path(place) / "cache")
            write_many(table, photos_at, photos)
            peak(str(photos_at), cache, "")
            for workers in (0, 2):
                peaks[workers, photos] = peak(str(photos_at), cache, str(workers))
    for workers in (0, 2):
        first = peaks[workers, sizes[0]]
        for photos in sizes:
            target = Target("<=", 1.2) if photos == sizes[-1] else None
            most = peaks[workers, photos]
            rows.append(row(f"{photos} photos, {workers} processes", {"MB": most / 1e6}, most / first, target))
    yield Part("memory of a pass at its peak; the ratio is to the fewest photos", rows)


# ---------------------------------------------------------------------------------------------------------------------


PARTS = {"loader": loader, "step": step, "job": job, "memory": memory}


def machine(table: Table, threads: int) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "threads": threads,
        "torch": torch.__version__,
        "photos": len(table),
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", help="a contest folder; drawn photos by default")
    parser.add_argument("--rounds", type=int, help="turns of each in loader and job")
    parser.add_argument("--seconds", type=float, default=40, help="how long to measure a network in step")
    parser.add_argument("--json", type=Path, help="a file to write the tables to")
    parser.add_argument("--archs", nargs="+", help="networks of step and job")
    parser.add_argument("--photos", type=int, help="only the first of them")
    parser.add_argument("--bs", type=int, default=32, help="photos a batch")
    parser.add_argument("--folds", type=int, default=5, help="folds; all but the first train in loader and step")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a fold of a job")
    parser.add_argument("--sizes", type=int, nargs=2, default=(1890, 18900), help="photos of memory")
    parser.add_argument("--workers", type=int, default=default_workers(pick_device()), help="processes of loader")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch in step and job")
    parser.add_argument("--pass-over", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts = options.parts or ["loader", "step"]
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]}; expected some of {', '.join(PARTS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    if options.pass_over:
        pass_over(*options.pass_over)
        return
    table = read_contest(options.data or cached_sample(log=print))
    table = table if options.photos is None else table.select(np.arange(options.photos))
    if options.contestant:
        with threads(options.threads):
            print(seconds_of(options.contestant, Job(table, *options.archs, options.bs, options.folds, options.epochs)))
        return
    about, parts = machine(table, options.threads), []
    print("{device}, {threads} threads, torch {torch}, {photos} photos".format(**about))
    for name in options.parts:
        with tempfile.TemporaryDirectory(prefix="fastmask-speed-") as folder, threads(options.threads):
            each = argparse.Namespace(**{**vars(options), "rounds": options.rounds or ROUNDS[name]})
            for part in PARTS[name](table, each, Path(folder)):
                print(f"\n{part}", flush=True)
                parts.append(part)
    if options.json:
        options.json.write_text(json.dumps({**about, "parts": [asdict(part) for part in parts]}, indent=2) + "\n")


if __name__ == "__main__":
    # ended from outside it is to leave no temporary folder either
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
