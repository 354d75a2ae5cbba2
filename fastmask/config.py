"""Config: every setting once, checked; recipes; the precedence of where a setting comes from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Flag, auto
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pydantic
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fastmask.system.annotations import has_text
from fastmask.system.calls import spell_call, split_calls
from fastmask.system.errors import DataError, UsageError, one_line
from fastmask.system.fields import describe, describe_errors, make_model, option_field, option_name, read_value
from fastmask.system.files import read_yaml
from fastmask.system.other_names import OTHER_NAMES
from fastmask.system.setting_text import (
    check_plain,
    join_names,
    plain_arch,
    read_arguments,
    read_bands,
    read_counts,
    read_options,
    read_ranges,
    read_shares,
)
from fastmask.system.text import shorten_repr
from fastmask.system.yaml_text import parse_yaml

# keys of one --set
_MOST_KEYS = 20
# the report's, in pixels of the contest's photos, which are 512 high and 384 wide
REPORT_CROP = (400, 200)
# the report's probability of another brightness and contrast
REPORT_BRIGHTNESS_CONTRAST = 0.5
# the settings that limit the time of a run, and their seconds
TIME_LIMITS = {"hours": 3600.0, "minutes": 60.0}
# settings that make pipelines
CROPS = ("fit", "crop", "crop_pct", "resize", "auto_resize")
CROP_OUTSIDE_PIPELINES = (
    f"{', '.join(CROPS)} have no effect with train_pipeline and valid_pipeline: put them into those"
)
# settings of earlier layers that a setting of a later layer removes, since it does the same in another way
_REMOVES = {
    "alpha": ("class_weight",),
    "class_weight": ("alpha",),
    "crop": ("fit", "crop_pct", "auto_resize"),
    "boxes": ("fit", "crop_pct", "auto_resize"),
    "resize": ("auto_resize",),
    "auto_resize": ("crop", "resize"),
}
# larger numbers are typing errors
Positive = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=0, le=65536)]
# more would crash torch
MOST_THREADS = 1024
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
# parameters of a Beta, or 0; beyond these, samples are only 0, 1 or 0.5, or NaN
LEAST_BETA, MOST_BETA = 1e-3, 1e3
Beta = Annotated[float, Field(ge=0, le=MOST_BETA)]
# next to it a weight of 1 is negligible, and float32 does not overflow
MOST_WEIGHT = 1e6
Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
PositiveWeight = Annotated[float, Field(gt=0, le=MOST_WEIGHT)]
# how a photo gets the size of the network's input
Fit = Literal["pad", "crop", "stretch", "contest"]
PAD, CROP, STRETCH, CONTEST = get_args(Fit)
# the loss of a head, those of which need classes in order, and how a head pools the body's feature map
HeadLossName = Literal["focal", "ce", "coral", "cumulative"]
ORDINAL = ("coral", "cumulative")
Pool = Literal["avg", "max", "avgmax", "catavgmax", "gem"]
Gamma = Annotated[float, Field(ge=0, le=100)]
# the options of a head that are of its loss; the others are of its layer
LOSS_OPTIONS = ("loss", "gamma", "label_smoothing", "f1_share")
# the loss or the optimizer that is passed to cross_validate
OWN = "own"
# the panels of `fastmask fit --help`, in its order
PANELS = DATA, AUGMENT, NETWORK, TRAINING, RUN = "Data", "Augmentation", "Network", "Training", "Run"


class Kind(Flag):
    """What a setting is about. Every list of settings in the package is `Config.of_kind` of some of these."""

    NONE = 0
    TABLE = auto()  # how the table of photos is read
    PATH = auto()  # a file or a folder: its content is compared, not its name
    SCORED = auto()  # decides, next to the table, what is scored
    FLATTERING = auto()  # makes the score too good
    TRAINING = auto()  # how a network is trained; without effect on frozen features
    FOCAL = auto()  # a parameter of the focal loss
    MACHINE = auto()  # where to work, how fast, and where to report; without effect on the result
    NUMERICS = auto()  # how the network computes: changes the last digits of the result
    FAULT = auto()  # what to do on a fault
    RESTATED = auto()  # not taken from the run on --resume: has to be given again
    LAUNCHING = auto()  # which machines train the folds
    UNSCORED = auto()  # trains after the run is scored
    LAYERS = auto()  # decides which layers there are next to the body


def read_draw_weights(text: str) -> str | dict[str, Any]:
    """The mapping in a YAML file, or the name of a column; raises UsageError for a file that holds no mapping."""
    if not text.lower().endswith((".yaml", ".yml")):
        return text
    return _read_filled(text, "draw weights", "age.60+: 3")


def drop_none(value: Any) -> Any:
    """The names of a list, of which none is the word for no name."""
    return [] if value in ("none", ["none"], ("none",)) else value


# numbers by classes of heads, such as age.60+, or joint classes
ByClass = BeforeValidator(join_names)
# what is passed to a function of a library
Arguments = Annotated[dict[str, Any], AfterValidator(check_plain)]
# settings -> the schedules that have them
_OF_SCHEDULES = {
    "milestones": ["multistep"],
    "lr_gamma": ["multistep", "plateau"],
    "cycle": ["restarts"],
    "cycle_mult": ["restarts"],
    "poly_power": ["poly"],
    "plateau_patience": ["plateau"],
    # onecycle warms up by itself
    "warmup": ["multistep", "cosine", "restarts", "poly", "plateau", "constant"],
}


def check_stats(means: Sequence[float], deviations: Sequence[float]) -> None:
    """Raise ValueError unless means and deviations of channels can be those of pixels from 0 to 1."""
    found = " ".join(f"{value:g}" for value in (*means, *deviations))
    if min(deviations) <= 0:
        raise ValueError(f"stats must be three means and three positive deviations, found {found}")
    if max(*means, *deviations) > 1:
        raise ValueError(
            f"stats are of pixels from 0 to 1, found {found}: if these are of pixels from 0 to 255, divide by 255"
        )


def _in(panel: str, shared: Kind = Kind.NONE) -> Callable[..., Any]:
    """`option_field` for the fields of a panel, which share a kind."""
    return lambda default, text, kind=Kind.NONE, **option: option_field(default, text, panel, kind | shared, **option)


in_data, in_network, in_run = _in(DATA), _in(NETWORK), _in(RUN)
in_augment, in_training = _in(AUGMENT, Kind.TRAINING), _in(TRAINING, Kind.TRAINING)
# pairs of settings of which a run has one
_EXCLUSIVE = (
    ("ema", "swa"),
    ("alpha", "class_weight"),
    ("one_head", "joint_head"),
    ("one_head", "bands"),
    ("refit", "swa"),
    ("hours", "minutes"),
    ("resize", "auto_resize"),
    *(("launcher", limit) for limit in TIME_LIMITS),
)
# settings that have no effect with train_pipeline, and what to add to it for them
_IN_PIPELINES = {
    "erase": "albumentations' Erasing",
    "brightness_contrast": "RandomBrightnessContrast",
    "augment": "its transforms",
    "flip": "HorizontalFlip",
}
# settings that only have an effect with launcher ray
_LAUNCHING = Kind.MACHINE | Kind.RESTATED | Kind.LAUNCHING | Kind.TRAINING
# the help of options that several commands have, next to their defaults
WORKERS, WORKERS_DEFAULT = "Loader processes.", "0 on a CPU or on Windows, else up to 8"
DEVICE, DEVICE_DEFAULT = "cpu, cuda:0.", "the GPU if there is one"
THREADS, THREADS_DEFAULT = "Threads on a CPU.", "all, or fewer if they are faster next to busy programs"


class Bands(BaseModel):
    """A head with bands of a number as classes, separated by `bounds`; training may use other bounds.

    `limits` are the least and the greatest number that a table may have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    classes: list[str]
    bounds: list[float]
    train_bounds: list[float] | None = None
    limits: tuple[float, float] | None = None


class HeadOptions(BaseModel):
    """The loss and the layer of one head; None is the setting of all heads.

    coral and cumulative take the order of the classes for theirs, and have a layer of one score and rising thresholds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    NOUN: ClassVar[str] = "option"

    loss: HeadLossName | None = option_field(None, "The loss.")
    gamma: Gamma | None = option_field(None, "Gamma of the focal loss.")
    label_smoothing: Share | None = option_field(None, "Share of each label to spread over all classes.")
    f1_share: Probability | None = option_field(None, "Share of the batch's soft F1 in the loss.")
    hidden: Positive | None = option_field(None, "Units of a hidden layer.")
    drop_rate: Share | None = option_field(None, "Dropout before the layer, and after its hidden one.")
    pool: Pool | None = option_field(None, "Pooling of the body's feature map.")
    router: Text | None = option_field(None, "A head with a layer for each of its classes.")

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: Callable[[HeadOptions], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.model_dump().items())


class Config(BaseModel):
    """The settings of a run. The defaults are the report's recipe with honest folds.

    Where the report gives no value, ours is used: 20 epochs, milestones at 0.5 and 0.75, focal gamma 2, patience 5.

    >>> config = fm.Config(epochs=3, folds=4)
    >>> config.epochs, config.folds, config.arch
    (3, 4, 'tf_efficientnet_b4')
    >>> config.is_set("bs"), config.bs
    (False, 32)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
    NOUN: ClassVar[str] = "setting"
    # what other tools call a setting
    OTHER_NAMES: ClassVar[Mapping[str, str]] = OTHER_NAMES

    # data
    data: str = in_data(
        "data", "Contest folder, CSV, a folder per class, or 'sample'.", Kind.TABLE | Kind.PATH, common=True
    )
    heads: list[str] | dict[str, list[str] | Bands] | None = in_data(
        None,
        "Columns to learn, such as colour,shape; in a file also their classes and bounds.",
        Kind.TABLE,
        note="found",
    )
    images: str | None = in_data(
        None, "The folder that the CSV's paths are relative to.", Kind.TABLE | Kind.PATH, note="the CSV's"
    )
    image_column: str | None = in_data(None, "The CSV's column of photos.", Kind.TABLE, note="path, or found")
    group_column: str | None = in_data(None, "The CSV's column that identifies persons.", Kind.TABLE, note="person")
    fixes: str | None = in_data(
        None, "A CSV of corrected labels: person or path, column, value.", Kind.TABLE | Kind.PATH
    )
    trust_links: str | None = in_data(
        None, "A folder that photos and folders of --data may be links to.", Kind.TABLE | Kind.PATH
    )
    age_bounds: tuple[float, float] = in_data((30.0, 60.0), "Age bounds to train on.", Kind.TABLE)
    score_age_bounds: tuple[float, float] = option_field(
        (30.0, 60.0), "Age bounds to score by: the official ones.", kind=Kind.TABLE
    )
    folds: Annotated[int, Field(ge=1, le=9999)] = in_data(5, "Folds of the cross-validation.", Kind.SCORED, common=True)
    folds_file: str | None = in_data(
        None, "A CSV that assigns photos or persons to folds; -1 is for training only.", Kind.PATH | Kind.SCORED
    )
    stratify: str = in_data(
        "joint", "The head to stratify folds on, or joint: all heads and their combinations.", Kind.SCORED
    )
    group: Literal["person", "none"] = in_data(
        "person", "person keeps each person in one fold; none is the leaky split.", Kind.SCORED
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = in_data(0, "Seed of all randomness.", Kind.SCORED)
    tuned: bool = option_field(
        False, "Whether these settings were chosen by their score; tune sets it.", kind=Kind.MACHINE
    )
    # training data
    extra: str | None = in_data(
        None, "A CSV of photos for training only, with labels of any heads.", Kind.PATH | Kind.TRAINING
    )
    extra_images: str | None = in_data(
        None,
        "The folder of the relative paths of --extra.",
        Kind.PATH | Kind.TRAINING,
        needs=("extra",),
        note="the CSV's",
    )
    extra_weight: PositiveWeight = in_data(
        1.0, "Loss weight of the photos of --extra.", Kind.TRAINING, needs=("extra",)
    )
    images_also: Annotated[list[Text], Field(min_length=1)] | None = in_data(
        None,
        "Folders of other versions of the photos to train on as well, such as without the background.",
        Kind.PATH | Kind.TRAINING,
    )
    pseudo: str | None = in_data(
        None, "A folder of pseudo-labels, written by fastmask pseudo.", Kind.PATH | Kind.TRAINING | Kind.FLATTERING
    )
    pseudo_weight: PositiveWeight = in_data(1.0, "Loss weight of photos of --pseudo.", Kind.TRAINING, needs=("pseudo",))
    pseudo_least: Probability = in_data(
        0.0, "Use a pseudo-label only if its probability is at least this.", Kind.TRAINING, needs=("pseudo",)
    )
    teacher: str | None = in_data(
        None,
        "A run or an ensemble; its models of a fold teach the same fold.",
        Kind.PATH | Kind.TRAINING | Kind.FLATTERING,
    )
    teacher_weight: Factor = in_data(0.5, "Share of the teacher in each label.", Kind.TRAINING, needs=("teacher",))
    teacher_temperature: Annotated[float, Field(ge=0.1, le=100)] = in_data(
        1.0,
        "Temperature at which the teacher's and the student's probabilities are compared.",
        Kind.TRAINING | Kind.FOCAL,
        needs=("teacher",),
    )
    drop: dict[str, list[tuple[float, float]]] | None = in_data(
        None,
        "Ages to validate but not to train on, such as 27-29,57-59; in a file age: [[27, 29], [57, 59]].",
        Kind.TRAINING,
        words="--drop-ages",
        read=read_ranges,
    )
    sampler: str | None = in_data(
        None, "A head, or joint, with classes to sample equally often.", Kind.TRAINING, note="as in the data"
    )
    per_person: Annotated[Positive | dict[str, Positive] | None, ByClass] = in_data(
        None,
        "Random photos of each person per epoch: a number, or one per class, such as mask.wear=1.",
        Kind.TRAINING,
        note="all",
        read=read_counts,
    )
    draw_weights: Annotated[Text | dict[str, PositiveWeight] | None, ByClass] = in_data(
        None,
        "Weights by which photos are drawn: a column of the CSV, or a YAML file of classes: age.60+: 3.",
        Kind.TRAINING,
        note="equal",
        read=read_draw_weights,
    )
    boxes: str | None = in_data(
        None, "A CSV of faces, written by fastmask faces: photos are cut to them, to the size of --crop.", Kind.PATH
    )
    margin: Annotated[float, Field(ge=0, le=10)] = in_data(
        0.3, "Widening of a face's box on each side.", needs=("boxes",)
    )
    region: Literal["face", "forehead", "nose-to-chin", "chin-to-neck"] = in_data(
        "face", "Part of the face: face, forehead, nose-to-chin or chin-to-neck.", needs=("boxes",)
    )
    no_face: Literal["whole", "crop"] = in_data(
        "whole", "A photo without a face: whole, or crop, its centre of the size of --crop.", needs=("boxes",)
    )
    # augmentation
    fit: Fit | None = in_data(
        None,
        "How a photo gets the network's size: pad (whole, aspect kept), crop (its middle, in training random parts), "
        "stretch, or contest (the pixels of --crop).",
        common=True,
        note="pad; contest for the contest's photos and with --crop or --boxes",
    )
    crop: tuple[Positive, Positive] | None = in_data(
        None,
        "Height and width of the centre crop, in pixels of the photo, or one number for a square.",
        note="400 200 for the contest's photos",
    )
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] = in_data(
        1.0, "Share of the scaled photo's height and width that is kept, its middle; timm's crop_pct."
    )
    resize: tuple[Positive, Positive] | None = in_data(
        None,
        "Height and width of the network's photos, or one number for a square.",
        common=True,
        note="the crop's, or with another --fit timm's",
    )
    auto_resize: bool = in_data(
        False,
        "Choose --resize by the photos: their median aspect, and as many pixels as timm's size, or with a time limit "
        "as many as let three epochs fit (with linear_probe two or one).",
    )
    train_pipeline: dict[str, Any] | None = option_field(
        None, "The training augmentation as albumentations serializes it.", note="the report's"
    )
    valid_pipeline: dict[str, Any] | None = option_field(
        None, "The validation transform as albumentations serializes it.", note="the report's"
    )
    stats: Literal["report", "pretrained"] | tuple[float, float, float, float, float, float] | None = in_data(
        None, "'report', 'pretrained', or three means and three standard deviations.", note="report"
    )
    augment: list[Text] | None = in_augment(
        None,
        "Further augmentations of training photos, such as randaugment,grid-dropout(ratio=0.3): by name, a class of "
        "albumentations, or timm's text, such as rand-m9-n2.",
        note="none",
    )
    flip: bool = in_augment(
        False,
        "Mirror training photos at random, and average predictions with the mirror image, unless mirroring changes "
        "labels, such as of left and right, which is measured.",
    )
    brightness_contrast: Probability = in_augment(
        REPORT_BRIGHTNESS_CONTRAST,
        "Probability of changing brightness and contrast of a training photo by up to a tenth; 0 is off.",
    )
    erase: Share = in_augment(0.0, "Probability of erasing a rectangle of a training photo.")
    mixup: Beta = in_augment(0.0, "Mix-up: alpha of the Beta distribution of shares, such as 0.4; 0 is off.")
    cutmix: Beta = in_augment(0.0, "CutMix: alpha of the Beta distribution of areas, such as 1; 0 is off.")
    mix_prob: Factor = in_augment(1.0, "Probability that --mixup or --cutmix mixes a batch.", needs=("mixup", "cutmix"))
    mix_classes: list[str] | None = in_augment(
        None,
        "Mix only photos of these classes, such as age.60+,mask.incorrect.",
        needs=("mixup", "cutmix", "half_cutmix"),
        note="all",
    )
    mix_partner: str = in_augment(
        "any",
        "Partners of --mixup and --cutmix in the batch: any, same (joint class), or a class such as age.60+.",
        needs=("mixup", "cutmix"),
    )
    half_cutmix: Probability = in_augment(0.0, "Probability of replacing one side of a training photo by a partner's.")
    half_shares: tuple[float, float] = in_augment(
        (0.5, 0.5), "Minimum and maximum share of the partner's side.", needs=("half_cutmix",)
    )
    half_partner: str = in_augment(
        "same", "Partners: same (joint class), any, or a class such as age.60+.", needs=("half_cutmix",)
    )
    # network
    arch: Annotated[str, AfterValidator(plain_arch)] = in_network("tf_efficientnet_b4", "A timm model.", common=True)
    pretrained: bool = in_network(True, "Start from pretrained weights of timm's hub.", common=True)
    weights: str | None = in_network(
        None, "Weights to start from: a file (safetensors, .pth), or a run.", Kind.PATH | Kind.FLATTERING, common=True
    )
    drop_rate: Share = in_network(0.0, "Dropout before the heads.", Kind.TRAINING)
    drop_path: Share = in_network(0.0, "Stochastic depth of the body.", Kind.TRAINING)
    freeze: Literal["body"] | Positive | None = in_network(
        None, "Part of the body to freeze: body, or the number of its first stages.", Kind.TRAINING
    )
    unfreeze: Positive | None = in_network(
        None, "Epoch, from 1, in which the frozen part starts to train.", Kind.TRAINING, needs=("freeze",), note="never"
    )
    freeze_bn: bool = in_network(
        False, "Keep batch norm's statistics of the pretrained weights, also in training.", Kind.TRAINING
    )
    linear_probe: bool = in_network(
        False, "Average predictions with a linear model on features of the pretrained body.", Kind.TRAINING
    )
    layer_decay: Factor = in_network(
        1.0, "Factor of the learning rate from each block of the body to the one below, such as 0.8.", Kind.TRAINING
    )
    # heads
    one_head: bool = in_network(
        False, "Learn the joint class of all heads as one head, whose sums are theirs.", Kind.TRAINING
    )
    joint_head: Share = in_network(
        0.0, "Also learn the joint class as a head, with this share of the joint probability.", Kind.TRAINING
    )
    bands: dict[str, list[float]] | None = in_network(
        None,
        "Finer bands to learn a head of bands by, merged for the score, such as age=20,30,40,50,60.",
        Kind.TRAINING,
        read=read_bands,
    )
    # loss
    loss: Literal["focal", "ce", "own"] = in_training(
        "focal", "focal or ce (cross-entropy); own is the loss_func of cross_validate."
    )
    focal_gamma: Gamma = in_training(2.0, "Gamma of the focal loss.", Kind.FOCAL)
    alpha: dict[str, list[Weight] | dict[str, Weight]] | None = option_field(
        None, "Class weights per head, such as age: [1, 1, 4], or age: {60+: 4}.", kind=Kind.TRAINING | Kind.FOCAL
    )
    class_weight: Literal["none", "auto"] = in_training(
        "none", "none, auto (classes weigh the same in total), or a YAML file of age: [1, 1, 4].", Kind.FOCAL
    )
    label_smoothing: Share = in_training(0.0, "Share of each label to spread over all classes.", Kind.FOCAL)
    f1_share: Probability = in_training(0.0, "Share of the batch's soft F1 in the loss; 1 is soft F1 only.", Kind.FOCAL)
    order: str | None = in_training(None, "Also learn the number behind a head, such as age, as a distribution.")
    order_spread: Annotated[float, Field(gt=0)] = option_field(
        2.0, "Standard deviation of the targets of order.", kind=Kind.TRAINING
    )
    head_weights: dict[str, Weight] | None = option_field(None, "Weight of each head in the loss.", kind=Kind.TRAINING)
    per_head: dict[str, HeadOptions] | None = in_training(
        None,
        "Loss and layer of single heads: loss, gamma, label_smoothing, f1_share, hidden, drop_rate, pool, router; such "
        "as age.loss=coral,age.hidden=256.",
        Kind.LAYERS,
        read=read_options,
    )
    feature_loss: Literal["arcface", "supcon"] | None = in_training(
        None,
        "Loss on the pooled features, added to that of the heads: arcface, or supcon (supervised contrastive).",
        Kind.LAYERS,
    )
    feature_weight: PositiveWeight = in_training(0.1, "Weight of --feature-loss.", needs=("feature_loss",))
    feature_head: str = in_training(
        "joint", "The head, or joint, with the classes of --feature-loss.", Kind.LAYERS, needs=("feature_loss",)
    )
    feature_args: Arguments | None = in_training(
        None,
        "An argument of --feature-loss: margin, scale or centres of arcface, temperature of supcon; may be repeated.",
        Kind.LAYERS,
        words="--feature-arg",
        needs=("feature_loss",),
        read=read_arguments,
        repeats=True,
        note="the loss's",
    )
    # optimizer and schedule
    epochs: Positive = in_training(20, "Epochs per fold.", common=True)
    bs: Literal["auto"] | Positive = in_training(
        32, "Photos per batch, or auto: as many as fit into memory, at most 32.", common=True
    )
    # times the weight decay it still fits into float32
    lr: Annotated[float, Field(gt=0, le=1e30)] = in_training(3e-4, "Learning rate; maximum of one-cycle.", common=True)
    wd: Annotated[float, Field(ge=0, le=1000)] = in_training(1e-5, "Weight decay.")
    opt: Annotated[str, Field(min_length=1), AfterValidator(str.lower)] = in_training(
        "adamp",
        "Optimizer: adamp, or one of timm's factory (adamw, sgd, lion); own is the opt_func of cross_validate.",
        common=True,
    )
    opt_args: Arguments | None = in_training(
        None,
        "An argument of the optimizer, such as momentum=0.8 or betas=0.9,0.95; may be repeated.",
        words="--opt-arg",
        read=read_arguments,
        repeats=True,
        note="the optimizer's",
    )
    sched: Literal["multistep", "onecycle", "cosine", "restarts", "poly", "plateau", "constant"] = in_training(
        "multistep",
        "Schedule: multistep, onecycle, cosine, restarts (cosines), poly, plateau (falls if --monitor does not "
        "improve) or constant.",
    )
    warmup: Annotated[float, Field(ge=0, le=65536)] = in_training(
        0.0, "Epochs, or a share below 1 of the training, in which the learning rate rises from a thousandth."
    )
    milestones: list[Annotated[float, Field(gt=0)]] = in_training(
        [0.5, 0.75], "Milestones of multistep: epochs, or shares below 1."
    )
    lr_gamma: Factor = in_training(0.5, "Factor of the learning rate at each milestone, or on a plateau.")
    cycle: Annotated[float, Field(gt=0, le=65536)] = in_training(
        0.25, "First cycle of restarts: epochs, or a share below 1 of the training after the warm-up."
    )
    cycle_mult: Annotated[float, Field(ge=1, le=100)] = in_training(
        1.0, "Length of each cycle of restarts relative to the one before."
    )
    poly_power: Annotated[float, Field(gt=0, le=100)] = in_training(1.0, "Power of poly; 1 is a straight line.")
    plateau_patience: Count = in_training(
        2, "Epochs without improvement that plateau waits; one more lowers the learning rate."
    )
    sam: Annotated[float, Field(ge=0, le=100)] = in_training(
        0.0, "SAM: distance of the weights at which gradients are computed, such as 0.05; 0 is off."
    )
    sam_adaptive: bool = in_training(
        False, "Adaptive SAM: the distance is relative to each weight, such as --sam 0.5.", needs=("sam",)
    )
    clip: Annotated[float, Field(ge=0, le=MOST_WEIGHT)] = in_training(
        0.0, "Largest norm of all gradients of a step, such as 1; larger ones are scaled down; 0 is off."
    )
    progressive: Factor = in_training(
        1.0,
        "Share of the photos' height and width at which training begins, such as 0.6; they grow to their full size.",
    )
    accumulate: Positive = in_training(1, "Batches of --bs photos per optimizer step.")
    ema: Share = in_training(
        0.0, "Decay of the averaged weights that are validated and saved, such as 0.999; 0 is off."
    )
    swa: Share = in_training(0.0, "Average the weights of the epochs after this share of them, such as 0.75; 0 is off.")
    refit: Count = in_training(
        0, "Final epochs on all photos, at the last learning rate, for the models that predict.", Kind.UNSCORED
    )
    # callbacks
    views: Annotated[list[Text], BeforeValidator(drop_none)] = in_training(
        [], "Views to average with each photo in validation and prediction: some of flip, shift, scale; or none."
    )
    decision: Literal["plain", "calibrated", "f1"] = in_training(
        "plain",
        "How probabilities become the classes that are scored and predicted: plain, calibrated or f1, see fastmask "
        "decide.",
    )
    monitor: str = in_training("macro_f1", "The metric for early stopping and checkpoints.")
    patience: Count = in_training(5, "Epochs without improvement before a fold stops; 0 never stops.")
    top_k: Positive = in_training(1, "Checkpoints kept per fold; their probabilities are averaged.")
    validate_every: Positive = in_training(
        1, "Epochs between validations; the last one is always validated, and --patience counts validated ones."
    )
    on_nan: Literal["stop", "skip"] = in_training(
        "stop", "If the loss is NaN or inf: stop, or skip the step.", Kind.FAULT
    )
    on_bad_photo: Literal["error", "skip"] = option_field(
        "error",
        "If a photo is missing or cannot be read: error, or skip it and list it.",
        TRAINING,
        Kind.SCORED | Kind.FAULT,
        common=True,
    )
    # machine
    precision: Literal["auto", "fp32", "bf16", "fp16"] = in_run(
        "auto", "auto, fp32, bf16 or fp16.", Kind.NUMERICS, note="auto: bf16 or fp16 on a GPU, fp32 on a CPU"
    )
    tf32: bool = in_run(True, "Use TF32 where a GPU computes in fp32.", Kind.NUMERICS)
    compile: Literal["auto", "on", "off"] = in_run(
        "off", "Compile the network: on, off, or auto: if that makes the run shorter.", Kind.NUMERICS | Kind.TRAINING
    )
    cache: Literal["auto", "disk", "ram", "off"] = in_run(
        "auto", "Where to keep decoded photos: auto, disk, ram or off.", Kind.MACHINE
    )
    cache_dir: str | None = in_run(
        None, "The folder of decoded photos, shared by runs.", Kind.MACHINE | Kind.PATH, note="the user's cache"
    )
    hours: Annotated[float, Field(gt=0)] | None = in_training(
        None, "Time limit: trains as many epochs as fit, at most --epochs.", Kind.MACHINE | Kind.RESTATED, common=True
    )
    minutes: Annotated[float, Field(gt=0)] | None = in_training(
        None, "The time limit in minutes instead of --hours.", Kind.MACHINE | Kind.RESTATED, common=True
    )
    save_every: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}[sm]?$")] = in_run(
        "60s", "Steps (500) or time (90s, 5m) between states saved for --resume.", Kind.MACHINE | Kind.TRAINING
    )
    tensorboard: bool = in_run(False, "Write TensorBoard event files to folds' folders.", Kind.MACHINE | Kind.TRAINING)
    wandb: Text | None = in_run(
        None, "A Weights & Biases project to log to, a run per fold.", Kind.MACHINE | Kind.TRAINING
    )
    mlflow: Text | None = in_run(None, "An MLflow experiment to log to, a run per fold.", Kind.MACHINE | Kind.TRAINING)
    launcher: Literal["local", "ray"] = in_run(
        "local", "local trains folds one after the other on this machine, ray in parallel on a Ray cluster.", _LAUNCHING
    )
    address: Text | None = in_run(
        None, "Ray's cluster: auto, HOST:PORT or ray://HOST:PORT.", _LAUNCHING, note="a new one on this machine"
    )
    per_fold: dict[Literal["cpu", "gpu"], Annotated[float, Field(ge=0.01, le=1024)]] | None = in_run(
        None,
        "Each fold's share of a Ray node, such as gpu=0.5,cpu=4.",
        _LAUNCHING,
        note="a GPU, or torch's cores",
        read=read_shares,
    )
    fetch: bool = in_run(False, "Send the folds' files to --out even if Ray's nodes can write there.", _LAUNCHING)
    workers: Annotated[int, Field(ge=0, le=1024)] | None = in_run(None, WORKERS, Kind.MACHINE, note=WORKERS_DEFAULT)
    device: Text | None = in_run(None, DEVICE, Kind.MACHINE, note=DEVICE_DEFAULT)
    threads: Threads | None = in_run(None, THREADS, Kind.NUMERICS, note=THREADS_DEFAULT)

    @field_validator("augment", mode="before")
    @classmethod
    def _split_calls(cls, value: Any) -> Any:
        """Commas inside the brackets of a call do not separate, also where YAML has split at them."""
        texts = list(map(spell_call, value)) if isinstance(value, list | tuple) else [value]
        is_text = bool(texts) and all(isinstance(text, str) for text in texts)
        return split_calls(", ".join(texts)) if is_text else value

    @field_validator("*", mode="before")
    @classmethod
    def _expand_home(cls, value: Any, field: ValidationInfo) -> Any:
        """`~` in a path is the home directory."""
        kind = describe(cls, str(field.field_name)).kind
        return change_paths(value, os.path.expanduser) if kind and kind & Kind.PATH else value

    @field_validator("per_head", mode="before")
    @classmethod
    def _read_options(cls, value: Any) -> Any:
        """Each mistake in the options of a head is one sentence that names it."""
        if not isinstance(value, Mapping):
            return value
        return {name: _make_options(str(name), given) for name, given in value.items()}

    @model_validator(mode="after")
    def _agree(self) -> Config:
        self._agree_on_effects()
        self._agree_on_data()
        self._agree_on_augmentation()
        self._agree_on_loss()
        self._agree_on_schedule()
        self._agree_on_machine()
        return self

    def _agree_on_effects(self) -> None:
        """Settings that have no effect without another, exclude another, or have no effect with a value of another."""
        for name in filter(self.is_set, type(self).model_fields):
            needs = describe(Config, name).needs
            if needs and not any(getattr(self, needed) for needed in needs):
                mend = "give one of them" if needs[1:] else "give both or neither"
                raise ValueError(f"{name} has no effect without {' or '.join(needs)}: {mend}")
        if self.weights is not None and self.pretrained:
            raise ValueError("weights and pretrained exclude each other: give one of the two")
        for one, other in _EXCLUSIVE:
            if self.is_set(one) and self.is_set(other):
                raise ValueError(f"{one} and {other} exclude each other: give one of the two")
        for cause, names in self._idle():
            idle = next(filter(self.is_set, names), None)
            if idle is not None:
                raise ValueError(f"{idle} has no effect with {cause}: leave one of the two out")

    def _agree_on_data(self) -> None:
        for name in ("age_bounds", "score_age_bounds"):
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise ValueError(f"{name} must rise, found {low:g} {high:g}")
        folders = list(map(os.path.abspath, self.images_also or ()))
        twice = next((folder for folder in folders if folders.count(folder) > 1), None)
        if twice is not None:
            raise ValueError(f"images_also has {twice} twice: name each folder once")
        wrong = [pair for pairs in (self.drop or {}).values() for pair in pairs if pair[0] > pair[1]]
        if wrong:
            raise ValueError(f"drop has the range {wrong[0][0]:g} to {wrong[0][1]:g}, which must rise")
        height, width = self.crop or REPORT_CROP
        if self.region != "face" and height > width:
            raise ValueError(
                f"region {self.region} is wider than high, and a crop of {height} by {width} would show "
                "nearly the whole face: give a wide one, such as crop 112 224"
            )

    def _agree_on_augmentation(self) -> None:
        if (self.train_pipeline is None) != (self.valid_pipeline is None):
            raise ValueError("train_pipeline and valid_pipeline belong together: give both or neither")
        if self.train_pipeline is not None and any(map(self.is_set, CROPS)):
            raise ValueError(CROP_OUTSIDE_PIPELINES)
        for name, what in _IN_PIPELINES.items():
            if self.is_set(name) and self.train_pipeline is not None:
                raise ValueError(f"{name} has no effect with train_pipeline: add {what} to that")
        if isinstance(self.stats, tuple):
            check_stats(self.stats[:3], self.stats[3:])
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < LEAST_BETA:
                raise ValueError(
                    f"{name} is {getattr(self, name):g}; expected 0 for none, or {LEAST_BETA:g} to {MOST_BETA:g}"
                )
        if self.mix_classes == []:
            raise ValueError("mix_classes is empty: name a class, or leave it out to mix all")
        if not 0 < self.half_shares[0] <= self.half_shares[1] < 1:
            raise ValueError(f"half_shares must be two rising shares between 0 and 1, found {self.half_shares}")

    def _agree_on_loss(self) -> None:
        if any(not any(row.values() if isinstance(row, dict) else row) for row in (self.alpha or {}).values()):
            raise ValueError("alpha of a head is all 0, so it learns nothing; leave the head out with head_weights")
        for name, options in (self.per_head or {}).items():
            self._agree_on_head(name, options)

    def _agree_on_head(self, name: str, options: HeadOptions) -> None:
        loss = options.loss or self.loss
        share = self.f1_share if options.f1_share is None else options.f1_share
        if loss != "focal" and options.gamma is not None:
            raise ValueError(f"per_head {name}.gamma has no effect with loss {loss}: leave one of the two out")
        idle = [each for each in ("loss", "gamma", "label_smoothing") if getattr(options, each) is not None]
        # whose layer remains
        idle = [each for each in idle if each != "loss" or loss not in ORDINAL]
        if share == 1 and idle:
            raise ValueError(f"per_head {name}.{idle[0]} has no effect with f1_share 1: leave one of the two out")
        if options.pool is not None and self.compile != "off":
            raise ValueError(f"compile has no effect with per_head {name}.pool: leave one of the two out")

    def _agree_on_schedule(self) -> None:
        if self.swa and self.epochs - math.ceil(self.epochs * self.swa) < 2:
            raise ValueError(f"swa {self.swa:g} of {self.epochs} epochs averages under two: give less, or more epochs")
        if self.unfreeze is not None and not 1 < self.unfreeze <= self.epochs:
            raise ValueError(f"unfreeze is epoch {self.unfreeze}; expected 2 to the last one, {self.epochs}")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup takes {self.warmup:g} of {self.epochs} epochs: give less, or more epochs")
        left = self.epochs * (1 - self.warmup) if self.warmup < 1 else self.epochs - self.warmup
        if self.sched == "restarts" and self.cycle >= max(left, 1):
            raise ValueError(
                f"cycle takes all {left:g} epochs, so that there is no restart: give less, or sched cosine"
            )
        if self.sched == "plateau" and self.patience and self.plateau_patience + 1 >= self.patience:
            raise ValueError(
                f"plateau_patience {self.plateau_patience} lowers the rate after {self.plateau_patience + 1} epochs "
                f"without improvement, but patience {self.patience} stops the fold by then: give a lower one, or a "
                "higher patience"
            )
        if self.sched == "plateau" and self.validate_every > 1:
            raise ValueError(
                f"sched plateau needs each epoch validated, but validate_every is {self.validate_every}: give 1, or "
                "another sched"
            )
        if self.sched == "onecycle" and "momentum" in (self.opt_args or {}):
            raise ValueError(
                "opt_args momentum has no effect with sched onecycle, which sets it: leave one of them out"
            )

    def _agree_on_machine(self) -> None:
        gpus = (self.per_fold or {}).get("gpu", 0.0)
        if gpus > 1:
            raise ValueError(
                f"per_fold gives each fold {gpus:g} GPUs, but a fold trains on one: give 1 or less, such as 0.5"
            )

    def _idle(self) -> list[tuple[str, list[str]]]:
        """Settings, in words, each with the settings that have no effect with it."""
        found: list[tuple[str, list[str]]] = []
        if self.launcher == "local":
            found.append(("launcher local", [name for name in self.of_kind(Kind.LAUNCHING) if name != "launcher"]))
        if self.fit not in (None, CONTEST):
            found.append((f"fit {self.fit}", ["crop", "boxes"]))
        if self.fit == CONTEST or (self.fit is None and (self.crop or self.boxes)):
            found.append((f"fit {CONTEST}", ["crop_pct", "auto_resize"]))
        for name, scheds in _OF_SCHEDULES.items():
            if self.sched not in scheds:
                found.append((f"sched {self.sched}", [name]))
        if self.opt == OWN:
            found.append(("opt own", ["opt_args"]))
        own = (self.per_head or {}).values()
        if self.loss == "ce" and not any(options.loss == "focal" and options.gamma is None for options in own):
            found.append(("loss ce", ["focal_gamma"]))
        if self.f1_share == 1 and all(options.f1_share in (None, 1) for options in own):
            found.append(("f1_share 1", ["loss", *(name for name in self.of_kind(Kind.FOCAL) if name != "f1_share")]))
        if self.feature_loss == "supcon" and self.step_photos == 1:
            # it compares the photos of a step
            found.append(("one photo per step", ["feature_loss"]))
        if self.freeze == "body" and self.unfreeze is None:
            found.append(
                ("a body that is frozen to the end", ["layer_decay", "drop_path", "freeze_bn", "feature_loss"])
            )
        return found

    @property
    def batch(self) -> int:
        """Photos per batch; the largest that is tried if `bs` is "auto"."""
        return self.default("bs") if self.bs == "auto" else self.bs

    @property
    def step_photos(self) -> int:
        """Photos per optimizer step."""
        return self.batch * self.accumulate

    @property
    def validations(self) -> int:
        """How often a fold is validated, if it does not stop early."""
        return math.ceil(self.epochs / self.validate_every)

    @property
    def starts_pretrained(self) -> bool:
        """Whether the body starts from trained weights, not from random ones."""
        return self.pretrained or self.weights is not None

    @property
    def has_probe(self) -> bool:
        """Whether predictions are averaged with those of a linear probe; there is none of random weights."""
        return self.linear_probe and self.starts_pretrained

    @property
    def time_limit(self) -> str | None:
        """The setting that limits the time of the run, one of TIME_LIMITS; None without a limit."""
        return next((name for name in TIME_LIMITS if getattr(self, name) is not None), None)

    @property
    def limit_seconds(self) -> float | None:
        """The time limit in seconds; None without one."""
        name = self.time_limit
        return None if name is None else getattr(self, name) * TIME_LIMITS[name]

    @classmethod
    def default(cls, name: str) -> Any:
        """The default value of a setting."""
        return cls.model_fields[name].default

    def is_set(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        return bool(getattr(self, name) != self.default(name))

    @classmethod
    def of_kind(cls, kind: Kind) -> list[str]:
        """The settings of any of these kinds, in the order of the fields."""
        return [name for name in cls.model_fields if (describe(cls, name).kind or Kind.NONE) & kind]

    @classmethod
    def texts(cls) -> list[str]:
        """The settings that hold text, such as classes called 1.0 or yes, so that YAML must not read it as values."""
        return [name for name, field in cls.model_fields.items() if has_text(field.annotation)]

    def to_plain(self) -> dict[str, Any]:
        """Plain values for YAML, in the order above."""
        return self.model_dump(mode="json")


def _make_options(head: str, given: Any) -> HeadOptions:
    """The options of a head; raises UsageError."""
    if isinstance(given, HeadOptions):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(f"Setting per_head.{head}: found {shorten_repr(given)}, expected options such as loss: coral.")
    try:
        return make_model(HeadOptions, given)
    except UsageError as error:
        raise UsageError(f"Setting per_head.{head}: {error}") from None


def make_config(*layers: Mapping[str, Any]) -> Config:
    """The configuration from layers of settings, the later ones over the earlier.

    Raises UsageError: see `make`.

    >>> config = fm.make_config(fm.read_recipe("report"), {"epochs": 3})
    >>> config.epochs, config.age_bounds
    (3, (30.0, 58.0))
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if merged.get("train_pipeline") and set(CROPS) & set(layer) and "train_pipeline" not in layer:
            raise UsageError(f"{CROP_OUTSIDE_PIPELINES}.")
        if layer.get("folds_file") is not None and "folds" not in layer:
            # the file says how many there are
            merged.pop("folds", None)
        if layer.get("opt") not in (None, merged.get("opt", Config.default("opt"))):
            # arguments of another optimizer
            merged.pop("opt_args", None)
        removed = {earlier for name in _REMOVES if layer.get(name) for earlier in _REMOVES[name]}
        removed |= {"crop_pct", "auto_resize"} if layer.get("fit") == CONTEST else set()
        merged = {name: value for name, value in merged.items() if name not in removed}
        off = {name for name, value in layer.items() if not value}
        merged = {name: value for name, value in merged.items() if not _is_off(name, off, {**merged, **layer})}
        merged = {**_merge(merged, layer), **_start_of(layer), **_limit_of(layer)}
    return make_model(Config, merged)


def _is_off(name: str, off: Collection[str], settings: Mapping[str, Any]) -> bool:
    """Whether a setting has no effect any more, since what it needs was turned off."""
    needs = describe(Config, name).needs if name in Config.model_fields else ()
    return any(one in off for one in needs) and not any(settings.get(one) for one in needs)


def check_value(name: str, value: Any) -> None:
    """Raise UsageError if a value of a setting is invalid, regardless of the other settings."""
    try:
        Config(**{name: read_value(Config, name, value)})
    except pydantic.ValidationError as error:
        own = [one for one in error.errors() if one["loc"]]
        if own:
            raise UsageError(describe_errors(Config, name, own, value)) from None


def change_paths(value: Any, change: Callable[[str], str]) -> Any:
    """The value of a setting of paths, one or several, each changed; other values as they are."""
    if isinstance(value, list):
        return [change_paths(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def spell_option(name: str, value: Any) -> list[str]:
    """The words of the command line that set a setting to a value."""
    option, _, negative = option_name(Config, name).partition("/")
    if isinstance(value, bool):
        return [option if value else negative]
    if isinstance(value, dict):
        value = ",".join(f"{key}={number:g}" for key, number in value.items())
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return [option, f"{value:g}" if isinstance(value, float) else str(value)]


def _start_of(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The value that resets weights or pretrained, if a layer sets the other one."""
    if layer.get("weights") is not None and "pretrained" not in layer:
        return {"pretrained": False}
    return {"weights": None} if layer.get("pretrained") and "weights" not in layer else {}


def _limit_of(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The values that reset the other settings of the time limit, if a layer sets one of them."""
    limited = any(layer.get(name) is not None for name in TIME_LIMITS)
    return {name: None for name in TIME_LIMITS if limited and name not in layer}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        # heads are not merged: that would add heads of the layer below
        inside = both.get(key) if key != "heads" else None
        both[key] = _merge(inside, value) if isinstance(inside, dict) and isinstance(value, Mapping) else value
    return both


def list_recipes() -> list[str]:
    """The names of the recipes."""
    return sorted(f.name.removesuffix(".yaml") for f in files("fastmask.recipes").iterdir() if f.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe; raises UsageError listing the recipes for an unknown name.

    >>> settings = fm.read_recipe("report")
    >>> settings["arch"], settings["age_bounds"]
    ('tf_efficientnet_b4', [30, 58])
    """
    if name not in list_recipes():
        raise UsageError(f"There is no recipe {name!r}; expected one of {', '.join(list_recipes())}.")
    return read_settings(Path(str(files("fastmask.recipes").joinpath(f"{name}.yaml"))))


def recipe_of(config: Config, name: str) -> str:
    """` of recipe NAME`, to follow a setting in a message, if a recipe sets it to the same value; else ""."""
    for recipe in list_recipes():
        settings = read_recipe(recipe)
        if name in settings and getattr(make_config(settings), name) == getattr(config, name):
            return f" of recipe {recipe}"
    return ""


def read_settings(file: str | Path) -> dict[str, Any]:
    """The settings of a YAML file; raises UsageError where it is missing or not a mapping."""
    texts = [spelled for name in Config.texts() for spelled in (name, name.replace("_", "-"))]
    plain = read_mapping(file, "settings", "epochs: 20", texts)
    return {key.replace("-", "_"): value for key, value in plain.items()}


def read_class_weights(file: str | Path) -> dict[str, Any]:
    """The class weights of a YAML file, by head; raises UsageError where it is missing, empty or not a mapping."""
    return _read_filled(file, "class weights", "age: [1, 1, 4]")


def _read_filled(file: str | Path, what: str, example: str) -> dict[str, Any]:
    """As `read_mapping`; an empty file is an error, too."""
    mapping = read_mapping(file, what, example)
    if not mapping:
        raise UsageError(f"{file} holds no {what}; expected lines such as {example!r}.")
    return mapping


def read_mapping(file: str | Path, what: str, example: str, texts: Collection[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, empty for an empty file; raises UsageError for any other content.

    What is inside `texts` is read as text, see `parse_yaml`.
    """
    if not Path(file).is_file():
        raise UsageError(f"{file} does not exist; expected a YAML file of {what}.")
    try:
        plain = read_yaml(file, texts)
    except DataError as error:
        raise UsageError(str(error)) from error
    plain = {} if plain is None else plain
    if not isinstance(plain, dict):
        raise UsageError(f"{file} holds {shorten_repr(plain, 50)}; expected lines such as {example!r}.")
    return plain


def parse_sets(pairs: Sequence[str]) -> dict[str, Any]:
    """`a.b=c` pairs of --set as nested settings; the value is read as YAML."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        keys = path.strip().replace("-", "_").split(".")
        if not equals or not path or len(keys) > _MOST_KEYS:
            raise UsageError(f"--set {shorten_repr(pair)} is not of the form name=value, such as focal_gamma=1.5.")
        try:
            value = parse_yaml(text, as_text=keys[0] in Config.texts())
        except ValueError as error:
            raise UsageError(f"--set {shorten_repr(pair)}: {one_line(error)}.") from error
        for key in reversed(keys):
            value = {key: value}
        settings = _merge(settings, value)
    return settings
