"""Policies: the augmentations of torchvision and timm as transforms of an albumentations pipeline.

Both libraries draw from the global generators; here these are seeded for each photo from the pipeline's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np
from PIL import Image

from fastmask.system.randomness import seeded_globals

# of torchvision.transforms.v2: random changes of a photo, of their own strength, that keep its size
TORCHVISION = ("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide")
# the sections of timm's texts by their beginning; timm itself skips those that it cannot read
_NUMBER = r"\d+(?:\.\d+)?"
TIMM: Mapping[str, str] = {
    "rand": rf"(?:(?:m|n|p|mstd|mmax|inc){_NUMBER}|t(?:weights|3a|3aw))",
    "augmix": rf"(?:m|w|d|a|b|mstd){_NUMBER}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), f"mstd{_NUMBER}"),
}
EXAMPLES = {
    "rand": "rand-m9-n2-mstd0.5",
    "augmix": "augmix-m3-w3-d2",
    **{name: f"{name}-mstd0.5" for name in TIMM if name not in ("rand", "augmix")},
}
Policy = Callable[[Image.Image], Image.Image]


class PolicyTransform(A.ImageOnlyTransform):
    """A transform that applies a policy: a callable of a PIL image that draws from the global generators."""

    policy: Policy

    def get_params(self) -> dict[str, Any]:
        """The seed of the global generators for this photo."""
        return {"seed": int(self.random_generator.integers(2**32))}

    def apply(self, img: np.ndarray, seed: int, **params: object) -> np.ndarray:
        """(H, W, 3) uint8 -> the same shape."""
        with seeded_globals(seed):
            # a copy, because later transforms may write to it
            return np.array(self.policy(Image.fromarray(img)))


class TorchvisionPolicy(PolicyTransform):
    """A class of torchvision.transforms.v2 by its `name`, one of TORCHVISION, with its arguments."""

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """What albumentations checks the arguments by."""

        name: str
        arguments: dict[str, Any]

    def __init__(self, name: str, arguments: dict[str, Any], p: float = 1.0) -> None:
        super().__init__(p=p)
        if name not in TORCHVISION:
            raise ValueError(f"name is {name!r}, expected one of {', '.join(TORCHVISION)}")
        self.name, self.arguments = name, arguments
        self.policy = torchvision_policy(name, arguments)


class TimmPolicy(PolicyTransform):
    """A policy by timm's text, such as `rand-m9-mstd0.5`; `fill` is the colour of empty areas.

    `shift` is timm's translate_const, the most pixels by which a photo is moved.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """What albumentations checks the arguments by."""

        text: str
        fill: list[int] | tuple[int, ...]
        shift: int

    def __init__(self, text: str, fill: Sequence[float], shift: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.text, self.fill, self.shift = text, fill, shift
        self.policy = timm_policy(text, fill, shift)


def torchvision_class(name: str) -> Any:
    """A class of torchvision.transforms.v2."""
    from torchvision.transforms import v2

    return getattr(v2, name)


def torchvision_policy(name: str, arguments: Mapping[str, Any]) -> Policy:
    """An instance of a class of torchvision.transforms.v2; the policy of its AutoAugment is a text, such as cifar10."""
    from torchvision.transforms import AutoAugmentPolicy

    policies = {"policy": AutoAugmentPolicy(arguments["policy"])} if "policy" in arguments else {}
    policy: Policy = torchvision_class(name)(**{**arguments, **policies})
    return policy


def is_timm(text: str) -> bool:
    """Whether a text begins as those of timm."""
    return text.split("-")[0] in TIMM


def timm_policy(text: str, fill: Sequence[float], shift: int) -> Policy:
    """The policy of a text as timm's `create_transform` makes it; raises ValueError for a part that timm would skip."""
    from timm.data import auto_augment

    beginning, *sections = text.split("-")
    if not is_timm(text):
        raise ValueError(f"timm has no policy {beginning!r}, expected one of {', '.join(TIMM)}")
    wrong = next((section for section in sections if not re.fullmatch(TIMM[beginning], section)), None)
    if wrong is not None:
        raise ValueError(f"timm's {beginning} has no part {wrong!r}, expected such as {EXAMPLES[beginning]}")
    makers = {"rand": auto_augment.rand_augment_transform, "augmix": auto_augment.augment_and_mix_transform}
    hparams: dict[str, Any] = {"translate_const": shift, "img_mean": tuple(fill)}
    if beginning == "augmix":
        hparams["translate_pct"] = 0.3
    policy: Policy = makers.get(beginning, auto_augment.auto_augment_transform)(text, hparams)
    return policy
