"""Trial: the prediction and explanation of a single photo by networks that stay loaded."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from fastmask.data.augment import CHANGE
from fastmask.data.boxes import boxes_frame
from fastmask.data.decode import PhotoError
from fastmask.data.formats import SUFFIXES
from fastmask.data.photo import decode_photo
from fastmask.decision.rule import Rule
from fastmask.evaluation.decisions import rule_of
from fastmask.heads import JOINT, Heads
from fastmask.inference.blend import Blend
from fastmask.inference.members import open_members
from fastmask.inference.networks import load_network
from fastmask.inference.predictions import Predictions, predict
from fastmask.model.network import MultiHeadNet
from fastmask.preparation.faces import find_face, load_detector
from fastmask.report.gradcam import Explanation, class_of, explain
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError, FastmaskError, PhotoSizeError, UnreadableError, UsageError, one_line
from fastmask.system.files import write_csv

# bytes of a photo; those of the largest cameras are smaller
MOST_BYTES = 25 * 2**20
_DETECTOR = "mtcnn"
NO_FACE = "No face was found, so the photo was not cut to one."
_ENLARGED = "The photo is smaller than the run's crop and was enlarged."


class Trial:
    """Predictions of single photos; networks are loaded on first use and kept.

    For a run that was trained with --boxes the face is detected first. Calls are processed one at a time.
    """

    def __init__(self, run: RunDirectory, device: str | None = None) -> None:
        self.run, self.device = run, device
        self._networks: dict[tuple[Path, torch.device], tuple[tuple[int, int] | None, MultiHeadNet]] = {}
        self._detect: Any = None
        self._turn = threading.Lock()

    def answer(self, photo: str | Path, name: str | None = None) -> tuple[Predictions, str]:
        """The prediction of a photo by `predict`, and a remark or ""; `name` is the photo's name in errors."""
        with self._turn, self._handed_over(Path(photo), name) as (place, options, remark):
            predictions = predict(self.run, [place], device=self.device, load=self._load, **options)
        if self._rule is not None:
            predictions = predictions.decide(self._rule)
        remarks = [*filter(None, [remark]), *(_ENLARGED for _ in predictions.notes)]
        return predictions, " ".join(remarks)

    def explain(
        self, photo: str | Path, head: str = JOINT, label: str | None = None, name: str | None = None
    ) -> Explanation:
        """Where the networks of all folds look in a photo: the mean of their maps, and of their probabilities.

        For the class `label` of `head`, by default the predicted one. Raises UsageError for an ensemble, and without a
        feature map.
        """
        self.run.check_trained()
        with self._turn, self._handed_over(Path(photo), name) as (place, options, _):
            if label is None:
                predictions = predict(self.run, [place], device=self.device, load=self._load, **options)
                label, _ = class_of(self.run.heads, head, predictions.probabilities[0])
            folds = [
                self._explain([place], head, label, fold=fold, refit=True, **options) for fold in self.run.trained_folds
            ]
        return _mean(self.run.heads, folds)

    def explain_own(
        self, photo: Path, fold: int, head: str = JOINT, label: str | None = None, **options: Any
    ) -> Explanation:
        """Where the checkpoints of one fold look in a photo of the run's own data."""
        with self._turn:
            return self._explain([photo], head, label, fold=fold, **options)

    def _explain(self, photos: Sequence[Path], head: str, label: str | None, **options: Any) -> Explanation:
        (made,) = explain(self.run, photos, head, label, device=self.device, load=self._load, **options)
        return made

    def _load(
        self, run: RunDirectory, file: Path, device: torch.device, size: tuple[int, int] | None = None
    ) -> MultiHeadNet:
        there = self._networks.get((file, device))
        # some bodies are built for one size, and a pipeline may keep the size of a photo
        if there is None or there[0] != size:
            there = self._networks[file, device] = (size, load_network(run, file, device, size))
        return there[1]

    @cached_property
    def _rule(self) -> Rule | None:
        """The rule of the run's decision, fitted on its OOF predictions."""
        return rule_of(self.run)

    @property
    def _framed(self) -> bool:
        """Whether the run, or a run of the ensemble, needs the box of the face."""
        if not self.run.is_ensemble:
            return self.run.config.boxes is not None
        return any(run.config.boxes for run in open_members(self.run, Blend.of(self.run)).values())

    @contextmanager
    def _handed_over(self, photo: Path, name: str | None) -> Iterator[tuple[Path, dict[str, Any], str]]:
        """A temporary copy of a readable photo, further options for `predict`, and a remark."""
        name = name or photo.name
        image = check_photo(photo, name)
        # a fixed name for the table of boxes, because the user's may be anything
        with TemporaryDirectory(prefix="fastmask-", ignore_cleanup_errors=True) as folder:
            place = Path(folder) / f"photo{photo.suffix.lower() if photo.suffix.lower() in SUFFIXES else ''}"
            shutil.copyfile(photo, place)
            try:
                yield place, *self._cut(place, image)
            except FastmaskError as error:
                # the temporary path means nothing to the user
                message = str(error).replace(str(place), name)
                # the user of the page cannot change the run's crop
                message = (
                    message.replace(CHANGE, "choose a larger photo.") if isinstance(error, PhotoSizeError) else message
                )
                raise type(error)(message) from error

    def _cut(self, place: Path, image: np.ndarray) -> tuple[dict[str, Any], str]:
        if not self._framed:
            return {}, ""
        try:
            self._detect = self._detect or load_detector(_DETECTOR)()
        except UsageError as error:
            raise UsageError(f"{self.run.path} was trained on faces, so the face must be detected. {error}") from error
        face = find_face(image, self._detect)
        boxes = place.with_name("boxes.csv")
        write_csv(boxes, boxes_frame([place.name], [face]))
        return {"boxes": boxes, "root": place.parent}, "" if face else NO_FACE


def check_photo(photo: Path, name: str) -> np.ndarray:
    """A photo of the user, (height, width, 3) uint8; raises UnreadableError with its `name`."""
    size = photo.stat().st_size
    if size == 0:
        raise UnreadableError(f"{name} is empty; choose another photo.")
    if size > MOST_BYTES:
        raise UnreadableError(f"{name} is larger than {MOST_BYTES >> 20} MB; save it with fewer pixels.")
    try:
        return decode_photo(photo.read_bytes())
    except PhotoError as error:
        raise UnreadableError(f"{name} {error}.") from error
    except Exception as error:
        # decoders may raise any error
        raise UnreadableError(f"{name} is damaged or truncated ({one_line(error)}); choose another photo.") from error


def _mean(heads: Heads, folds: Sequence[Explanation]) -> Explanation:
    if not folds:
        raise DataError("No fold has finished, so there is nothing to explain.")
    heat = np.mean([each.heat for each in folds], axis=0)
    probabilities = np.mean([each.probabilities for each in folds], axis=0)
    prediction, chance = class_of(heads, folds[0].head, probabilities)
    return replace(
        folds[0],
        heat=heat / max(float(heat.max()), np.finfo(heat.dtype).tiny),
        probability=float(np.mean([each.probability for each in folds])),
        probabilities=probabilities,
        prediction=prediction,
        prediction_probability=chance,
        by=f"the mean of {len(folds)} folds",
    )
