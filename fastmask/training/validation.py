"""Validation: by the mean of the predictions of several views of each photo, as `predict` averages them."""

from __future__ import annotations

from collections.abc import Sequence

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from torch import Tensor

from fastmask.heads import Heads
from fastmask.model.views import average_views, make_views


class MeanOfViews(Callback):
    """Validates by the mean over the photo and its views of `names`: of their probabilities, as logits.

    So the loss, the metrics and the OOF predictions of an epoch are of this mean, and so is what chooses a checkpoint.
    """

    # before `WholeBatchTrainer` gathers the predictions of all processes, in the precision of the batch
    order, run_train = MixedPrecision.order - 1, False

    def __init__(self, heads: Heads, names: Sequence[str]) -> None:
        self.heads = heads
        # the photo itself is predicted already
        _, *self._views = make_views(names)

    def after_pred(self) -> None:
        learn = self.learn
        (x,) = learn.xb
        photos = x.as_subclass(Tensor)
        each = [learn.pred, *(learn.model(view(photos)) for view in self._views)]
        learn.pred = average_views([one.as_subclass(Tensor) for one in each], self.heads)
