"""Interpretation: fastai's ClassificationInterpretation of one head, or of the joint class.

fastai interprets one target, so `OneTarget` and `TargetView` present labels and logits as those of one classification.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders, Datasets, TfmdDL, TfmdLists
from fastai.data.transforms import Category, CategoryMap
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.torch_core import TensorCategory
from fastcore.foundation import L
from fasttransform import DisplayedTransform
from torch import Tensor, nn

from fastmask.data.photo_dl import PhotoDL
from fastmask.data.transforms import EncodeHeads
from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.scoring import target_of
from fastmask.system.errors import UsageError
from fastmask.training.learner import heads_of


def interpretation(learn: Learner, head: str = JOINT, dl: TfmdDL | None = None) -> ClassificationInterpretation:
    """fastai's ClassificationInterpretation of one head, or of the joint class, on the photos of `dl`.

    `dl` is the validation loader by default; its photos are augmented as in validation. Photos with an unknown label
    are left out. The joint class has the classes that occur in labels or predictions. A photo's loss is -log of the
    probability of its true class. Raises UsageError if no photo has the label.

    >>> found = fm.interpretation(learn, "gender")
    >>> list(found.vocab), found.confusion_matrix().shape
    (['male', 'female'], (2, 2))
    """
    heads = heads_of(learn.dls)
    dl = learn.dls.valid if dl is None else dl
    y = np.array([classes_of(codes, heads) for codes in labels_of(dl, heads)], np.int64).reshape(-1, len(heads))
    true = target_of(heads, y, head)
    rows = np.flatnonzero(true != UNKNOWN).tolist()
    if not rows:
        raise UsageError(f"No photo of this loader has a known {head} class, so there is nothing to interpret.")
    items = L(dl.dataset.items)[rows]
    classes = np.arange(len(heads[head].classes)) if head != JOINT else joint_classes(learn, dl, items, true[rows])
    target = OneTarget(heads, head, classes)
    made = make_loader(dl, items, target)
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
    """The joint classes in the labels or predictions of these photos, sorted; all of many heads would be too many."""
    heads = heads_of(learn.dls)
    probabilities, _ = learn.get_preds(dl=make_loader(dl, items, EncodeHeads(heads)))
    return np.union1d(true, heads.joint(heads.argmax(probabilities.numpy())))


def labels_of(dl: TfmdDL, heads: Heads) -> TfmdLists:
    """The part of a loader's data set with the class numbers of `heads`; raises UsageError if there is none."""
    for part in getattr(dl.dataset, "tls", []):
        if any(isinstance(transform, EncodeHeads) and transform.heads == heads for transform in part.tfms.fs):
            return part
    raise UsageError(f"The photos of this loader have no labels of {', '.join(heads.names)}; give one of dataloaders.")


def classes_of(labels: Tensor, heads: Heads) -> np.ndarray:
    """(heads,) class numbers of a photo's labels; of soft ones the classes of most weight."""
    plain = labels.numpy()
    return heads.harden(plain) if plain.dtype.kind == "f" else plain


def make_loader(dl: TfmdDL, items: L, target: DisplayedTransform) -> TfmdDL:
    """A loader of `items` as in validation, with `target` for their labels.

    `dl.new` would keep the type of the labels, and count the passes as those of `dl`.
    """
    lists = [
        TfmdLists(
            items,
            [target if isinstance(transform, EncodeHeads) else transform for transform in part.tfms.fs],
            do_setup=False,
            split_idx=1,
            types=part.types,
        )
        for part in dl.dataset.tls
    ]
    made = Datasets(tls=lists)
    transforms = {"after_item": dl.after_item, "before_batch": dl.before_batch, "after_batch": dl.after_batch}
    options: dict[str, Any] = {"bs": dl.bs, "num_workers": dl.fake_l.num_workers, "device": dl.device, **transforms}
    if isinstance(dl, PhotoDL):
        return PhotoDL(
            made, augments=dl.augments, seed=dl.seed, fold=dl.fold, faces=dl.faces, do_setup=False, **options
        )
    return TfmdDL(made, do_setup=False, **options)


class OneTarget(DisplayedTransform):
    """Class numbers or names, one per head -> the index in `classes` of one head's class, or of the joint class.

    `columns` (classes, heads) are the columns of the logits that make up each of `classes`.
    """

    def __init__(self, heads: Heads, target: str, classes: np.ndarray) -> None:
        self.every, self.target, self.classes = EncodeHeads(heads), target, classes.tolist()
        if target == JOINT:
            codes = heads.unjoint(classes)
            names = [heads.joint_name(c) for c in self.classes]
            self.columns = (codes + np.array(heads.offsets[:-1]))[:, heads.joined]
        else:
            i = heads.position(target)
            names, self.columns = heads[i].classes, classes[:, None] + heads.offsets[i]
        self.vocab = CategoryMap(list(names), sort=False)

    def encodes(self, y: np.ndarray | list) -> TensorCategory:  # type: ignore[type-arg] # plum dispatches on it
        heads = self.every.heads
        codes = classes_of(self.every.encodes(y), heads)
        code = heads.joint(codes) if self.target == JOINT else codes[heads.position(self.target)]
        return TensorCategory(self.classes.index(int(code)))

    def decodes(self, y: TensorCategory) -> Category:
        return Category(self.vocab[int(y)])


class TargetView(nn.Module):
    """(B, 3, H, W) -> (B, classes) log-probabilities of the classes that `columns` of a network's logits make up."""

    def __init__(self, network: nn.Module, loss_func: Any, columns: np.ndarray) -> None:
        super().__init__()
        self.network, self.loss_func = network, loss_func
        self.columns: Tensor
        self.register_buffer("columns", torch.from_numpy(columns))

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.loss_func.activation(self.network(x))
        tiny = torch.finfo(probabilities.dtype).tiny
        return probabilities.clamp(min=tiny).log()[:, self.columns].sum(-1)


class LogLoss(nn.NLLLoss):
    """The mean over the photos of -log of the true class's probability, from (B, classes) log-probabilities."""

    activation = staticmethod(torch.exp)

    def decodes(self, probabilities: Tensor) -> Tensor:
        """(B, classes) probabilities -> (B,) indices in the vocabulary."""
        return probabilities.argmax(-1)
