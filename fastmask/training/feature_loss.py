"""Feature loss: a loss on the pooled features, added to that of the logits in each training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastai.callback.fp16 import MixedPrecision
from fastai.learner import Callback
from fastai.torch_core import get_model
from torch import Tensor

from fastmask.heads import JOINT, Heads
from fastmask.labels import hard_labels


class AddFeatureLoss(Callback):
    """Adds `weight` times the network's `feature_loss` by the classes of `target`, a head or "joint".

    In training the network returns its features next to the logits, and this callback takes them off. The class of a
    photo with a soft label is the one with more than half of it; without one it is unknown. Each of several `processes`
    that train together computes the loss of the whole batch.
    """

    # after `WholeBatchTrainer`, whose import needs an extra, has gathered what the networks return
    order, run_valid = MixedPrecision.order + 2, False
    # SAM's second pass has it, too
    computes = True
    _hooks: Sequence[Any] = ()

    def __init__(self, heads: Heads, weight: float, target: str = JOINT, processes: int = 1) -> None:
        self.heads, self.weight, self.target, self.processes = heads, weight, target, processes

    def before_fit(self) -> None:
        # each process has the whole gradient of the loss's own weights, and these are added up
        weights = get_model(self.learn.model).feature_loss.parameters() if self.processes > 1 else ()
        self._hooks = [weight.register_hook(self._share) for weight in weights]

    def after_fit(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()

    def _share(self, gradient: Tensor) -> Tensor:
        return gradient / self.processes

    def after_pred(self) -> None:
        pred = self.learn.pred
        self.learn.pred, self._features = pred[:, : self.heads.n_logits], pred[:, self.heads.n_logits :]

    def after_loss(self) -> None:
        y = clear_classes(self.learn.yb[0].as_subclass(Tensor), self.heads, self.target)
        extra = get_model(self.learn.model).feature_loss(self._features.as_subclass(Tensor), y)
        self.learn.loss_grad = self.learn.loss_grad + self.weight * extra
        self.learn.loss = self.learn.loss_grad.clone()


def clear_classes(y: Tensor, heads: Heads, target: str) -> Tensor:
    """(B,) classes of a head, or joint classes, of labels of any kind; see `fastmask.labels`.

    A soft label has the class with more than half of its weight, else -1; one in two parts, that of the photo's own.
    """
    known = hard_labels(y[:, 0] if y.dim() == 3 else y, heads, least=0.5)
    classes: Tensor = heads.joint(known) if target == JOINT else known[:, heads.position(target)]
    return classes
