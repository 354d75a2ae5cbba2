"""Interpretation: fastai's ClassificationInterpretation of one head, or of the joint class."""

from __future__ import annotations

import numpy as np
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastcore.foundation import L

from fastmask.data.loaders import EncodeHeads
from fastmask.errors import UsageError
from fastmask.heads import UNKNOWN
from fastmask.scoring import JOINT
from fastmask.training.learner import heads_of
from fastmask.training.view import LogLoss, OneTarget, TargetView, labels_of, loader


def interpretation(learn: Learner, head: str = JOINT, dl: TfmdDL | None = None) -> ClassificationInterpretation:
    """fastai's ClassificationInterpretation of one head, or of the joint class, on the photos of `dl`.

    `dl` is the validation loader by default; its photos are seen by the validation augmentation. Photos whose label is
    unknown are left out. The joint class has the classes that the truth or the predictions have. A photo's loss is
    -log of the probability of its true class. Raises UsageError if no photo has the label.
    """
    heads = heads_of(learn.dls)
    dl = learn.dls.valid if dl is None else dl
    y = np.array([codes.tolist() for codes in labels_of(dl, heads)], np.int64).reshape(-1, len(heads))
    true = heads.joint(y) if head == JOINT else y[:, heads.position(head)]
    rows = np.flatnonzero(true != UNKNOWN).tolist()
    if not rows:
        raise UsageError(f"No photo of this loader has a known {head} class, so there is nothing to interpret.")
    items = L(dl.dataset.items)[rows]
    classes = np.arange(len(heads[head].classes)) if head != JOINT else joint_classes(learn, dl, items, true[rows])
    target = OneTarget(heads, head, classes)
    made = loader(dl, items, target)
    view = Learner(
        DataLoaders(made, made, path=learn.path, device=made.device),
        TargetView(learn.model, learn.loss_func, target.columns),
        loss_func=LogLoss(),
        path=learn.path,
    )
    if not hasattr(learn, "progress"):
        view.remove_cbs(ProgressCallback)
    found: ClassificationInterpretation = ClassificationInterpretation.from_learner(view, dl=made)
    return found


def joint_classes(learn: Learner, dl: TfmdDL, items: L, true: np.ndarray) -> np.ndarray:
    """The joint classes that these photos have or are taken for, rising: with many heads, all would be too many."""
    heads = heads_of(learn.dls)
    probabilities, _ = learn.get_preds(dl=loader(dl, items, EncodeHeads(heads)))
    return np.union1d(true, heads.joint(heads.argmax(probabilities.numpy())))
