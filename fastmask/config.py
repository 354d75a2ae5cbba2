"""Config: every setting once, checked; recipes; the precedence of where a setting comes from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fastmask.system.errors import DataError, UsageError, one_line
from fastmask.system.files import parse_yaml, read_yaml
from fastmask.system.text import shorten_repr

# how deep --set may reach into a setting, and the errors that are reported at once
_MOST_KEYS, _MOST_SENTENCES = 20, 10
CROP_BESIDE_PIPELINES = "A crop or a resize beside train_pipeline and valid_pipeline belongs into those"
# more is a slip of the keyboard
Positive = Annotated[int, Field(ge=1, le=65536)]
Share = Annotated[float, Field(ge=0, lt=1)]
# parameters of a Beta, or 0; what lies beyond draws nothing but ends or halves, or no number
LEAST_BETA, MOST_BETA = 1e-3, 1e3
Beta = Annotated[float, Field(ge=0, le=MOST_BETA)]
# beside it a weight of 1 counts nothing, and float32 still has room
MOST_WEIGHT = 1e6
Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
PositiveWeight = Annotated[float, Field(gt=0, le=MOST_WEIGHT)]
# settings that do nothing without another
_NEEDS = {
    "unfreeze": "freeze",
    "extra_images": "extra",
    "extra_weight": "extra",
    "margin": "boxes",
    "region": "boxes",
    "pseudo_weight": "pseudo",
    "pseudo_least": "pseudo",
    "teacher_weight": "teacher",
    "teacher_temperature": "teacher",
    "half_shares": "half_cutmix",
    "half_partner": "half_cutmix",
}


# settings that say how something is trained, and nothing of what is learned from or by what it is judged
TRAINING_ALONE = frozenset(
    (
        *("extra", "extra_images", "extra_weight", "pseudo", "pseudo_weight", "pseudo_least", "drop", "sampler"),
        *("teacher", "teacher_weight", "teacher_temperature"),
        *("erase", "mixup", "cutmix", "mix_prob", "half_cutmix", "half_shares", "half_partner", "drop_rate"),
        *("drop_path", "freeze", "unfreeze", "layer_decay", "loss", "focal_gamma", "alpha", "class_weight"),
        *(
            "label_smoothing",
            "f1_share",
            "head_weights",
            "order",
            "order_spread",
            "epochs",
            "refit",
            "bs",
            "accumulate",
        ),
        *("ema", "swa", "compile", "hours", "monitor", "save_every", "tensorboard", "wandb", "mlflow"),
        *("launcher", "address", "per_fold", "fetch"),
    )
)


class Bands(BaseModel):
    """A head whose classes are bands of a number, parted by `bounds`; training may use bounds of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    classes: list[str]
    bounds: list[float]
    train_bounds: list[float] | None = None


class Config(BaseModel):
    """The settings of a run. The defaults are the report's recipe with honest folds.

    What the report leaves open has our value: 20 epochs, milestones at 0.5 and 0.75, focal gamma 2, patience 5.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # data
    data: str = Field("data", description="A contest folder, a CSV, a folder a class, or 'sample'.")
    heads: list[str] | dict[str, list[str] | Bands] | None = Field(
        None, description="Columns of the CSV, or a mapping of each to its classes in order, or to classes and bounds."
    )
    images: str | None = Field(None, description="The folder that a CSV's paths start from; by default the CSV's own.")
    image_column: str | None = Field(None, description="The CSV's column of photos.")
    group_column: str | None = Field(None, description="The CSV's column that says whose photo it is.")
    fixes: str | None = Field(None, description="A CSV of corrected labels: person or path, column, value.")
    age_bounds: tuple[float, float] = Field((30.0, 60.0), description="Age bounds to train on.")
    score_age_bounds: tuple[float, float] = Field(
        (30.0, 60.0), description="Age bounds to score by: the official ones."
    )
    folds: Annotated[int, Field(ge=2, le=9999)] = Field(5, description="Folds of the cross-validation.")
    folds_file: str | None = Field(None, description="A CSV that deals photos or persons into folds.")
    stratify: str | None = Field(None, description="A head or 'joint'; the contest's default is age.")
    group: Literal["person", "none"] = Field("person", description="Keep persons whole, or 'none' for the leaky split.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of everything that is drawn.")
    # what is trained on
    extra: str | None = Field(None, description="A CSV of photos for training alone, with any of the heads.")
    extra_images: str | None = Field(None, description="The folder that the paths of extra start from.")
    extra_weight: PositiveWeight = Field(1.0, description="What a photo of extra counts.")
    pseudo: str | None = Field(None, description="A folder of pseudo-labels, as the command pseudo makes it.")
    pseudo_weight: PositiveWeight = Field(1.0, description="What a photo of pseudo counts.")
    pseudo_least: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="A pseudo-label counts where its most probable class is at least so probable."
    )
    teacher: str | None = Field(None, description="A run or an ensemble that each fold learns from, too.")
    teacher_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Share of the teacher's probabilities in the label of a photo."
    )
    teacher_temperature: Annotated[float, Field(ge=0.1, le=100)] = Field(
        1.0, description="Temperature of the teacher's probabilities; above 1 they are less sure."
    )
    drop: dict[str, list[tuple[float, float]]] | None = Field(
        None,
        description="Numbers behind a head, such as age: [[27, 29]], whose photos are validated but not trained on.",
    )
    sampler: str | None = Field(None, description="A head or 'joint', whose classes are drawn alike in training.")
    boxes: str | None = Field(None, description="A CSV of faces, to which photos are cut first, to the size of crop.")
    margin: Annotated[float, Field(ge=0, le=10)] = Field(0.3, description="What a face's box is widened by each side.")
    region: Literal["face", "forehead", "nose-to-chin", "chin-to-neck"] = Field(
        "face", description="The part of the face."
    )
    # augmentation
    crop: tuple[Positive, Positive] = Field((400, 200), description="Height and width of the centre crop.")
    resize: tuple[Positive, Positive] | None = Field(None, description="Height and width to scale the crop to.")
    train_pipeline: dict[str, Any] | None = Field(None, description="albumentations' serialisation; the report's.")
    valid_pipeline: dict[str, Any] | None = Field(None, description="albumentations' serialisation; the report's.")
    stats: Literal["report", "pretrained"] | tuple[float, float, float, float, float, float] | None = Field(
        None, description="'report', 'pretrained', or three means and three deviations."
    )
    erase: Share = Field(0.0, description="Probability that a rectangle of a training photo is erased.")
    mixup: Beta = Field(0.0, description="Mix-up: alpha of the Beta that shares are drawn from; 0 has none.")
    cutmix: Beta = Field(0.0, description="CutMix: alpha of the Beta that areas are drawn from; 0 has none.")
    mix_prob: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Probability that a batch is mixed by mixup or cutmix."
    )
    half_cutmix: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Probability that one side of a training photo becomes a partner's."
    )
    half_shares: tuple[float, float] = Field((0.5, 0.5), description="Least and greatest share of the partner's side.")
    half_partner: str = Field("same", description="Partners: same (joint class), any, or a joint class by its name.")
    # network
    arch: str = Field("tf_efficientnet_b4", description="A timm model.")
    pretrained: bool = Field(True, description="Start from the weights of timm's hub.")
    weights: str | None = Field(None, description="Start from a file of weights, or each fold from that of a run.")
    drop_rate: Share = Field(0.0, description="Dropout before the heads.")
    drop_path: Share = Field(0.0, description="Stochastic depth of the body.")
    freeze: Literal["body"] | Positive | None = Field(
        None, description="The part of the body that does not train: body, or its first stages by their number."
    )
    unfreeze: Positive | None = Field(None, description="The epoch, from 1, from which a frozen part trains.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the learning rate of each block of the body, of that of the one above it."
    )
    # loss
    loss: Literal["focal", "ce", "own"] = Field(
        "focal", description="focal, ce (cross-entropy), or own: the loss_func of cross_validate."
    )
    focal_gamma: Annotated[float, Field(ge=0, le=100)] = Field(2.0, description="Gamma of the focal loss.")
    alpha: dict[str, list[Weight] | dict[str, Weight]] | None = Field(
        None, description="Class weights a head, such as age: [1, 1, 4], or age: {60+: 4}."
    )
    class_weight: Literal["none", "auto"] = Field(
        "none", description="none, or auto: each class of a head weighs alike, by its training photos."
    )
    label_smoothing: Share = Field(0.0, description="Share of each label that is dealt to all classes.")
    f1_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of the loss that is the batch's soft F1; 1 is soft F1 alone."
    )
    order: str | None = Field(
        None, description="A head of which the number behind its bands is learned too, as a distribution."
    )
    order_spread: Annotated[float, Field(gt=0)] = Field(2.0, description="Deviation of the targets of order.")
    head_weights: dict[str, Weight] | None = Field(None, description="Shares of the loss.")
    # optimizer and schedule
    epochs: Positive = Field(20, description="Epochs of each fold.")
    bs: Literal["auto"] | Positive = Field(32, description="Photos a batch, or auto: as many of 32 as fit into memory.")
    # times the weight decay it is still a float32
    lr: Annotated[float, Field(gt=0, le=1e30)] = Field(3e-4, description="Learning rate; the highest of one-cycle.")
    wd: Annotated[float, Field(ge=0, le=1000)] = Field(1e-5, description="Weight decay.")
    sched: Literal["multistep", "onecycle", "cosine", "constant"] = Field("multistep", description="Schedule.")
    milestones: list[Annotated[float, Field(gt=0)]] = Field([0.5, 0.75], description="Epochs, or shares under 1.")
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="Factor at each milestone.")
    accumulate: Positive = Field(1, description="Batches whose gradients make one step.")
    ema: Share = Field(0.0, description="Decay of the averaged weights that are validated and kept; 0 has none.")
    swa: Share = Field(
        0.0, description="Share of the epochs before those whose weights are averaged, such as 0.75; 0 has none."
    )
    refit: Annotated[int, Field(ge=0, le=65536)] = Field(
        0, description="Epochs on all photos at the end, at the last learning rate, for the models that predict."
    )
    # callbacks
    monitor: str = Field("macro_f1", description="The metric that stops and saves.")
    patience: Annotated[int, Field(ge=0, le=65536)] = Field(
        5, description="Epochs without a better one; 0 never stops."
    )
    top_k: Positive = Field(1, description="Checkpoints kept a fold; their probabilities are averaged.")
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="A loss that is no number ends the run, or its step is left out."
    )
    on_bad_photo: Literal["error", "skip"] = Field(
        "error", description="A photo that cannot be read ends the run, or is left out and listed."
    )
    # machine
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="What the network computes in.")
    tf32: bool = Field(True, description="TF32 where a GPU computes in fp32.")
    compile: bool = Field(False, description="Compile the network.")
    cache: Literal["auto", "disk", "ram", "off"] = Field("auto", description="Where decoded photos are kept.")
    cache_dir: str | None = Field(None, description="The folder of decoded photos that runs share.")
    hours: Annotated[float, Field(gt=0)] | None = Field(None, description="Time in which all folds are to end.")
    save_every: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}[sm]?$")] = Field(
        "60s", description="Steps, or time such as 90s or 5m, between saved states within an epoch."
    )
    tensorboard: bool = Field(False, description="Write event files of TensorBoard into the folder of each fold.")
    wandb: Annotated[str, Field(min_length=1)] | None = Field(None, description="A project of Weights & Biases.")
    mlflow: Annotated[str, Field(min_length=1)] | None = Field(None, description="An experiment of MLflow.")
    launcher: Literal["local", "ray"] = Field(
        "local", description="Folds in turn on this machine, or side by side as tasks of a Ray cluster."
    )
    address: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Ray's cluster: auto, HOST:PORT or ray://HOST:PORT; one of this machine's own without."
    )
    per_fold: dict[Literal["cpu", "gpu"], Annotated[float, Field(ge=0.01, le=1024)]] | None = Field(
        None, description="A fold's share of a node of Ray's, such as gpu=0.5,cpu=4."
    )
    fetch: bool = Field(
        False, description="Send folds' files to the run directory even where Ray's nodes see it themselves."
    )
    workers: Annotated[int, Field(ge=0, le=1024)] | None = Field(None, description="Loading processes.")
    device: Annotated[str, Field(min_length=1)] | None = Field(None, description="Such as cpu or cuda:0.")

    @field_validator("per_fold", mode="before")
    @classmethod
    def _read_shares(cls, given: Any) -> Any:
        return read_shares(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _agree(self) -> Config:
        for name in ("age_bounds", "score_age_bounds"):
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise ValueError(f"{name} must rise, found {low:g} {high:g}")
        if any(not any(row.values() if isinstance(row, dict) else row) for row in (self.alpha or {}).values()):
            raise ValueError("alpha of a head is all 0, so it learns nothing; leave the head out by head_weights")
        if self.weights is not None and self.pretrained:
            raise ValueError("weights and pretrained exclude each other: give one of the two")
        if (self.train_pipeline is None) != (self.valid_pipeline is None):
            raise ValueError("train_pipeline and valid_pipeline belong together: give both or neither")
        uncropped = (self.crop, self.resize) == (self.default("crop"), None)
        if self.train_pipeline is not None and not uncropped:
            raise ValueError(CROP_BESIDE_PIPELINES)
        if isinstance(self.stats, tuple) and min(self.stats[3:]) <= 0:
            raise ValueError(f"stats are three means and three positive deviations, found {self.stats}")
        self._agree_on_training()
        return self

    def _agree_on_training(self) -> None:
        for name, needed in _NEEDS.items():
            if getattr(self, name) != self.default(name) and not getattr(self, needed):
                raise ValueError(f"{name} does nothing without {needed}: give both or neither")
        for one, other in (
            ("ema", "swa"),
            ("alpha", "class_weight"),
            ("refit", "hours"),
            ("refit", "swa"),
            ("launcher", "hours"),
        ):
            if all(getattr(self, name) != self.default(name) for name in (one, other)):
                raise ValueError(f"{one} and {other} exclude each other: give one of the two")
        gpus = (self.per_fold or {}).get("gpu", 0.0)
        if gpus > 1:
            raise ValueError(f"per_fold gives a fold {gpus:g} GPUs, but it trains on one: give 1 or a part, as 0.5")
        for told, names in self._idle():
            idle = [name for name in names if getattr(self, name) != self.default(name)]
            if idle:
                raise ValueError(f"{idle[0]} does nothing beside {told}: leave one of the two out")
        if self.swa and self.epochs - math.ceil(self.epochs * self.swa) < 2:
            raise ValueError(f"swa {self.swa:g} of {self.epochs} epochs averages under two: give less, or more epochs")
        if self.unfreeze is not None and not 1 < self.unfreeze <= self.epochs:
            raise ValueError(f"unfreeze is epoch {self.unfreeze}; expected 2 to the last one, {self.epochs}")
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < LEAST_BETA:
                raise ValueError(
                    f"{name} is {getattr(self, name):g}; expected 0 for none, or {LEAST_BETA:g} to {MOST_BETA:g}"
                )
        if self.mix_prob != 1 and not self.mixup and not self.cutmix:
            raise ValueError("mix_prob does nothing without mixup or cutmix: give one of them")
        if self.erase and self.train_pipeline is not None:
            raise ValueError("erase beside train_pipeline belongs into that, as albumentations' Erasing")
        if not 0 < self.half_shares[0] <= self.half_shares[1] < 1:
            raise ValueError(f"half_shares are two rising shares between 0 and 1, found {self.half_shares}")
        if self.region != "face" and self.crop[0] > self.crop[1]:
            raise ValueError(
                f"region {self.region} is wider than high, and a crop of {self.crop[0]} by {self.crop[1]} would show "
                "nearly the whole face: give a wide one, such as crop 112 224"
            )
        wrong = [pair for pairs in (self.drop or {}).values() for pair in pairs if pair[0] > pair[1]]
        if wrong:
            raise ValueError(f"drop has the range {wrong[0][0]:g} to {wrong[0][1]:g}, which must rise")

    def _idle(self) -> list[tuple[str, tuple[str, ...]]]:
        """Settings, in words, beside which others come to nothing."""
        found: list[tuple[str, tuple[str, ...]]] = []
        if self.launcher == "local":
            found.append(("launcher local", ("address", "per_fold", "fetch")))
        if self.loss == "ce":
            found.append(("loss ce", ("focal_gamma",)))
        if self.f1_share == 1:
            found.append(("f1_share 1", ("loss", "focal_gamma", "alpha", "class_weight", "label_smoothing")))
        if self.freeze == "body" and self.unfreeze is None:
            found.append(("a body that is frozen to the end", ("layer_decay", "drop_path")))
        return found

    @property
    def batch(self) -> int:
        """Photos a batch; where `bs` is "auto" the most that are tried."""
        return self.default("bs") if self.bs == "auto" else self.bs

    @classmethod
    def default(cls, name: str) -> Any:
        """What a setting is where nobody says otherwise."""
        return cls.model_fields[name].default

    def to_plain(self) -> dict[str, Any]:
        """Plain values for YAML, in the order above."""
        return self.model_dump(mode="json")


def make_config(*layers: Mapping[str, Any]) -> Config:
    """The configuration from layers of settings, the later ones over the earlier.

    Raises UsageError with one sentence a mistake: the setting, what was found, what was expected, the nearest name.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if merged.get("train_pipeline") and {"crop", "resize"} & set(layer) and "train_pipeline" not in layer:
            raise UsageError(f"{CROP_BESIDE_PIPELINES}.")
        if layer.get("folds_file") is not None and "folds" not in layer:
            # the file says how many there are
            merged.pop("folds", None)
        merged = {**_merge(merged, layer), **_start_of(layer)}
    try:
        return Config(**merged)
    except pydantic.ValidationError as error:
        raise UsageError(" ".join(_sentences(error))) from None


def check_value(name: str, value: Any) -> None:
    """Raise UsageError where a setting cannot have a value, whatever the others are."""
    try:
        Config(**{name: value})
    except pydantic.ValidationError as error:
        own = [one for one in error.errors() if one["loc"]]
        if own:
            raise UsageError(_sentence(name, own)) from None


def _start_of(layer: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer's weights say of the hub's, and the other way round: the later layer wins over both."""
    if layer.get("weights") is not None and "pretrained" not in layer:
        return {"pretrained": False}
    return {"weights": None} if layer.get("pretrained") and "weights" not in layer else {}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        # a mapping of heads is a whole: one below it would add heads that nobody asked for
        inside = both.get(key) if key != "heads" else None
        both[key] = _merge(inside, value) if isinstance(inside, dict) and isinstance(value, Mapping) else value
    return both


def _sentences(error: pydantic.ValidationError) -> list[str]:
    by_setting: dict[str, list[Any]] = {}
    for one in error.errors():
        by_setting.setdefault(str(one["loc"][0]) if one["loc"] else "", []).append(one)
    return [_sentence(name, errors) for name, errors in islice(by_setting.items(), _MOST_SENTENCES)]


def _sentence(name: str, errors: Sequence[Any]) -> str:
    one = errors[0]
    if not name:
        return f"{one['msg'].removeprefix('Value error, ')}."
    if one["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Config.model_fields, n=1)
        return f"There is no setting {shorten_repr(name)}" + (f"; did you mean {near[0]!r}?" if near else ".")
    if len(errors) > 1 or one["type"] == "string_pattern_mismatch":
        # a setting of several forms fails once a form
        described = str(Config.model_fields[name].description).removesuffix(".")
        return f"Setting {name}: expected {described[0].lower()}{described[1:]}; found {shorten_repr(one['input'])}."
    told = one["msg"].removeprefix("Value error, ")
    return f"Setting {name}: {told[0].lower()}{told[1:]}, found {shorten_repr(one['input'])}."


def read_shares(text: str) -> dict[str, float]:
    """`gpu=0.5,cpu=4` -> {"gpu": 0.5, "cpu": 4}; raises ValueError for anything else, and for one twice."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    try:
        shares = {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        raise ValueError("expected shares such as gpu=0.5,cpu=4") from None
    if len(shares) < len(pairs):
        raise ValueError("expected each of cpu and gpu once")
    return shares


def recipes() -> list[str]:
    """The names that --recipe finds."""
    return sorted(f.name.removesuffix(".yaml") for f in files("fastmask.recipes").iterdir() if f.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe; raises UsageError naming the recipes there are."""
    if name not in recipes():
        raise UsageError(f"There is no recipe {name!r}; expected one of {', '.join(recipes())}.")
    return read_settings(Path(str(files("fastmask.recipes").joinpath(f"{name}.yaml"))))


def read_settings(file: str | Path) -> dict[str, Any]:
    """The settings of a YAML file; raises UsageError where it is missing or not a mapping."""
    return {key.replace("-", "_"): value for key, value in read_mapping(file, "settings", "epochs: 20").items()}


def read_class_weights(file: str | Path) -> dict[str, Any]:
    """The class weights of a YAML file, by head; raises UsageError where it is missing, empty or not a mapping."""
    example = "age: [1, 1, 4]"
    weights = read_mapping(file, "class weights", example)
    if not weights:
        raise UsageError(f"{file} holds no class weights; expected lines such as {example!r}.")
    return weights


def read_mapping(file: str | Path, what: str, example: str) -> dict[str, Any]:
    """What a YAML file says of each name; nothing of an empty one. Raises UsageError where it is no such file."""
    if not Path(file).is_file():
        raise UsageError(f"{file} does not exist; expected a YAML file of {what}.")
    try:
        plain = read_yaml(file)
    except DataError as error:
        raise UsageError(str(error)) from error
    plain = {} if plain is None else plain
    if not isinstance(plain, dict):
        raise UsageError(f"{file} holds {type(plain).__name__}; expected lines such as {example!r}.")
    return {str(key): value for key, value in plain.items()}


def parse_sets(pairs: Sequence[str]) -> dict[str, Any]:
    """`a.b=c` pairs of --set as nested settings; the value is read as YAML."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        keys = path.replace("-", "_").split(".")
        if not equals or not path or len(keys) > _MOST_KEYS:
            raise UsageError(f"--set {shorten_repr(pair)} is not of the form name=value, such as focal_gamma=1.5.")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise UsageError(f"--set {shorten_repr(pair)}: {one_line(error)}.") from error
        for key in reversed(keys):
            value = {key: value}
        settings = _merge(settings, value)
    return settings
