"""Options of `predict`, shared by the API and the command line; importing them does not load torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fastmask.config import (
    DEVICE,
    DEVICE_DEFAULT,
    THREADS,
    THREADS_DEFAULT,
    WORKERS,
    WORKERS_DEFAULT,
    Config,
    Positive,
    Threads,
    drop_none,
)
from fastmask.model.views import VIEWS, View, flip, make_views, plain
from fastmask.system.errors import UsageError
from fastmask.system.fields import make_model, option_field

# one pass over the photos: the number of the training augmentation's pass, or None for the validation transform, and
# the views of each batch
Walk = tuple[int | None, Sequence[View]]
_VIEWS = ", ".join(f"{name} ({view.help})" for name, view in VIEWS.items())


class Options(BaseModel):
    """The options of a function: an unknown name or a wrong value raises UsageError."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("device", mode="before", check_fields=False)
    @classmethod
    def _name_device(cls, device: object) -> str | None:
        """A `torch.device` is taken by its name."""
        return None if device is None else str(device)

    @classmethod
    def of(cls, options: Self | None, given: Mapping[str, Any]) -> Self:
        """Return `options`, updated by those `given` by name."""
        if options is not None and not isinstance(options, cls):
            raise UsageError(f"Found {options!r} in place of {cls.__name__}; give an option by its name.")
        return make_model(cls, {**(options.model_dump(exclude_unset=True) if options else {}), **given})


class PhotoOptions(Options):
    """How photos are read."""

    boxes: Path | None = option_field(None, "The photos' faces, written by fastmask faces, for a run with --boxes.")
    # the folder that the paths of listed photos and of `boxes` are relative to
    root: Path | None = None
    on_bad_photo: Literal["skip", "error"] = option_field(
        "skip", "If a photo cannot be predicted: skip it and list it, or error before any is."
    )
    workers: Annotated[int, Field(ge=0, le=1024)] | None = option_field(None, WORKERS, note=WORKERS_DEFAULT)
    device: str | None = option_field(None, DEVICE, note=DEVICE_DEFAULT)


class NetworkOptions(Options):
    """Which networks of a run, or of each run of an ensemble, predict."""

    soup: bool = option_field(False, "Average the weights of a fold's checkpoints (--top-k).", words="--soup")
    refit: bool = option_field(True, "For a run with --refit: predict by its final networks, or its checkpoints.")


class SoupOptions(Options):
    """How the photos that judge a soup are found, read and predicted."""

    data: str | None = option_field(None, "The runs' data, or the folder of its photos, if they have moved.")
    bs: Positive = option_field(64, "Photos per batch.")
    workers: Annotated[int, Field(ge=0, le=1024)] | None = option_field(None, WORKERS, note=WORKERS_DEFAULT)
    device: str | None = option_field(None, DEVICE, note=DEVICE_DEFAULT)


class PredictOptions(NetworkOptions, PhotoOptions):
    """What `predict` averages, and how it reads photos and computes."""

    tta: Positive | None = option_field(
        None, "Views per photo: itself, its mirror image, training augmentations.", note="the run's --views"
    )
    views: Annotated[tuple[str, ...], BeforeValidator(drop_none)] | None = option_field(
        None, f"Instead of --tta, views in addition to the photo: some of {_VIEWS}; or none.", note="the run's"
    )
    images_also: tuple[str, ...] = option_field(
        (), "Folders of other versions of the photos: the mean of the predictions of all is taken."
    )
    members: tuple[str, ...] | None = option_field(None, "Folds to average, such as fold0,fold2.", note="all")
    bs: Positive = option_field(64, "Photos per batch.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option_field(
        "auto", "auto, fp32, bf16 or fp16.", note="auto: the run's; fp32 on a CPU"
    )
    threads: Threads | None = option_field(None, THREADS, note=THREADS_DEFAULT)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.views and (self.tta or 1) > 1:
            raise UsageError("--tta and --views exclude each other: both select the views to average.")
        make_views(self.views or ())
        return self

    @classmethod
    def of(cls, options: Self | int | None, given: Mapping[str, Any]) -> Self:
        """As `Options.of`; a number is that of the views, `tta`."""
        if isinstance(options, int):
            return super().of(None, {"tta": options, **given})
        return super().of(options, given)

    def of_run(self, config: Config) -> Self:
        """The options with the views of a run's settings, if they name none themselves."""
        if self.tta is not None or self.views is not None:
            return self
        return self.model_copy(update={"views": tuple(config.views)})

    @property
    def walks(self) -> list[Walk]:
        """The passes over the photos that are averaged.

        `tta` counts the photo, its mirror image, then passes of the training augmentation, every second one mirrored.
        """
        tta, both = self.tta or 1, [plain, flip]
        walks: list[Walk] = [(None, make_views(self.views) if self.views else both[:tta])]
        walks.extend((number, [both[number % 2]]) for number in range(tta - 2))
        return walks

    @property
    def n_views(self) -> int:
        """The number of views per photo that are averaged."""
        return sum(len(views) for _, views in self.walks)
