"""Catalog: augmentations by name, from torchvision, timm and albumentations, and their places in a pipeline."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from inspect import Parameter, signature
from typing import Any

import albumentations as A
import numpy as np
from albumentations.augmentations.dropout.transforms import BaseDropout
from pydantic import ValidationError

from fastmask.data.augment import check_plain, from_plain, is_photo, to_plain
from fastmask.data.policies import TimmPolicy, TorchvisionPolicy, is_timm, torchvision_class
from fastmask.system.calls import read_call
from fastmask.system.errors import UsageError, one_line
from fastmask.system.text import shorten_repr

# the share of the area of a photo that a random part has, as in fastai
LEAST_SHARE = 0.35
RANDOM_CROP = "random-resized-crop"
# photos on which an augmentation is tried before training
_TRIED = 16
Maker = Callable[..., A.BasicTransform]


class Stage(IntEnum):
    """The place of a transform among the random ones; brightness and contrast are the first of COLOUR."""

    SHAPE = 0
    COLOUR = 1
    COVER = 2


@dataclass(frozen=True)
class Entry:
    """An augmentation: the class of a library, and arguments that differ from the library's defaults."""

    library: str
    transform: str
    arguments: Mapping[str, Any]


def _torchvision(transform: str) -> Entry:
    return Entry("torchvision", transform, {})


def _albumentations(transform: str, **arguments: Any) -> Entry:
    return Entry("albumentations", transform, arguments)


# a class with an argument `fill` gets the mean colour
CATALOG: Mapping[str, Entry] = {
    "randaugment": _torchvision("RandAugment"),
    "autoaugment": _torchvision("AutoAugment"),
    "trivialaugment": _torchvision("TrivialAugmentWide"),
    "augmix": _torchvision("AugMix"),
    RANDOM_CROP: _albumentations("RandomResizedCrop"),
    "flip": _albumentations("HorizontalFlip"),
    "rotate": _albumentations("Rotate", limit=15),
    "colour-jitter": _albumentations("ColorJitter", hue=0),
    "clahe": _albumentations("CLAHE"),
    "blur": _albumentations("GaussianBlur"),
    "grid-dropout": _albumentations("GridDropout"),
    "coarse-dropout": _albumentations("CoarseDropout"),
}


@dataclass(frozen=True)
class PhotoFormat:
    """The training photos as the network gets them: (height, width) and the mean colour, three bytes."""

    size: tuple[int, int]
    fill: tuple[float, ...]

    @property
    def random_part(self) -> dict[str, Any]:
        """The arguments of albumentations' RandomResizedCrop for a part of about the same shape."""
        shape = self.size[1] / self.size[0]
        ratio = (shape * 3 / 4, shape * 4 / 3)
        return {"size": self.size, "scale": (LEAST_SHARE, 1.0), "ratio": ratio, "area_for_downscale": "image"}


def make_augmentations(calls: Sequence[str], form: PhotoFormat) -> dict[Stage, list[A.BasicTransform]]:
    """The transforms of `calls`, such as rotate(limit=10), each tried, by their places.

    Raises UsageError for an unknown name, listing the nearest, or for an invalid argument, and for a name given twice.
    """
    made: dict[str, A.BasicTransform] = {}
    for call in calls:
        try:
            name, arguments = read_call(call)
        except ValueError as error:
            raise UsageError(f"Setting augment: found {call!r}, {error}.") from None
        name = resolve_name(name)
        if name in made:
            raise UsageError(f"Setting augment has {name} twice; give it once.")
        made[name] = _make(name, arguments, form)
    return {stage: [each for each in made.values() if stage_of(each) == stage] for stage in Stage}


def resolve_name(given: str) -> str:
    """The name in CATALOG, or of a class of albumentations, or timm's text, whatever its case, hyphens or spelling.

    Raises UsageError for an unknown name.
    """
    if given in CATALOG or is_timm(given):
        return given
    names = _names()
    plain = _plain(given)
    if plain in names:
        return names[plain]
    near = list(dict.fromkeys(names[each] for each in difflib.get_close_matches(plain, names, n=3)))
    hint = f"expected some of {', '.join(CATALOG)}, a class of albumentations, or timm's text, such as rand-m9-n2."
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    raise UsageError(f"Setting augment: there is no {given!r}; {hint}")


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower()).replace("colour", "color")


@cache
def _names() -> dict[str, str]:
    """Names by their letters: those of CATALOG and of its classes, and albumentations' classes."""
    classes = {_plain(name): name for name in dir(A) if _is_for_photos(getattr(A, name))}
    own = {_plain(entry.transform): name for name, entry in CATALOG.items()}
    return {**classes, **own, **{_plain(name): name for name in CATALOG}}


def _is_for_photos(made: Any) -> bool:
    kinds = (A.ImageOnlyTransform, A.DualTransform)
    return isinstance(made, type) and issubclass(made, kinds) and made not in (*kinds, A.Normalize)


def _make(name: str, given: Mapping[str, Any], form: PhotoFormat) -> A.BasicTransform:
    """A transform by its resolved name, with the arguments given by the user, which is tried."""
    made, allowed, arguments = _compile(name, given, form)
    wrong = next((argument for argument in given if argument not in allowed), None)
    if wrong is not None:
        near = difflib.get_close_matches(wrong, allowed, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(allowed)}."
        raise UsageError(f"Setting augment: {name} has no argument {wrong!r}; {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            transform = made(**arguments)
            if not transform.p:
                raise ValueError("p is 0, so it changes nothing")
            check_plain(to_plain(transform))
            from_plain(to_plain(A.Compose([transform])))
            _try(made(**{**arguments, "p": 1.0}), form.size)
    except Exception as error:
        raise UsageError(f"Setting augment: {name} cannot be used like this: {_describe(error)}.") from error
    return transform


def _describe(error: Exception) -> str:
    """What is wrong with an argument, without the rest of pydantic's message."""
    cause = error.__cause__ or error.__context__
    if not isinstance(cause, ValidationError):
        return one_line(error)
    first = cause.errors()[0]
    return f"{first['loc'][0]} is {shorten_repr(first['input'])}, and {first['msg'][:1].lower()}{first['msg'][1:]}"


def _compile(name: str, given: Mapping[str, Any], form: PhotoFormat) -> tuple[Maker, list[str], dict[str, Any]]:
    """What makes a transform, the arguments that a user may give, and all arguments."""
    entry = CATALOG.get(name, Entry("albumentations", name, {}))
    if name not in CATALOG and is_timm(name):
        return TimmPolicy, ["p"], {"text": name, "fill": form.fill, "shift": int(min(form.size) * 0.45), **given}
    if entry.library == "torchvision":
        chance = {"p": given["p"]} if "p" in given else {}
        inside = {"fill": form.fill, **{key: value for key, value in given.items() if key != "p"}}
        allowed = [*_parameters(torchvision_class(entry.transform)), "p"]
        return TorchvisionPolicy, allowed, {"name": entry.transform, "arguments": inside, **chance}
    made = getattr(A, entry.transform)
    allowed = _parameters(made)
    own = {"fill": form.fill} if "fill" in allowed else {}
    if name == RANDOM_CROP:
        allowed.remove("p")
        own = form.random_part
    return made, allowed, {**own, **entry.arguments, **given}


def _parameters(made: Maker) -> list[str]:
    return [name for name, one in signature(made).parameters.items() if one.kind != Parameter.VAR_KEYWORD]


def _try(transform: A.BasicTransform, size: tuple[int, int]) -> None:
    """Raise an exception if the transform fails on photos of `size`, changes their size or type, or nothing at all."""
    pipeline = A.Compose([transform], seed=0)
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    same = True
    for _ in range(_TRIED):
        made = pipeline(image=photo)["image"]
        if not is_photo(made) or made.shape != photo.shape:
            raise ValueError(f"it makes {made.dtype} {made.shape} of a photo, expected uint8 {photo.shape}")
        same = same and np.array_equal(made, photo)
    if same:
        raise ValueError("it changes nothing, so give it more, or leave it out")


def stage_of(transform: A.BasicTransform) -> Stage:
    """The place of a transform: what moves pixels, then what changes their colours, then what covers them."""
    if isinstance(transform, BaseDropout):
        return Stage.COVER
    return Stage.SHAPE if isinstance(transform, A.DualTransform) else Stage.COLOUR
