"""Freeze: keeps the lower part of a body, or the statistics of its batch norm, from training."""

from __future__ import annotations

from collections.abc import Sequence

from fastai.learner import Callback
from fastai.torch_core import get_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmask.model.network import RANDOM, MultiHeadNet, stages
from fastmask.system.errors import UsageError

BODY = "body"


class Freeze(Callback):
    """Freezes a part of the body: all of it ("body"), or a number of timm's stages, counted from the input.

    A frozen part has no gradients and is in evaluation mode, so that batch norm keeps its statistics. From epoch
    `until` on, counted from 1, everything trains; None never unfreezes. After the fit, even if it fails, everything is
    trainable again.

    >>> learn = fm.mask_learner(dls, "test_resnet", pretrained=False, cbs=fm.Freeze("body", until=2))
    >>> before = [weight.clone() for weight in learn.model.body.parameters()]
    >>> with learn.no_bar(), learn.no_logging():
    ...     learn.fit(1)
    >>> all(map(torch.equal, before, learn.model.body.parameters()))
    True
    """

    # after fastai has set all layers to training mode
    order = -9
    # a learner gets its callbacks as attributes by their names, and "freeze" is a method of it
    name = "freeze_part"

    def __init__(self, part: str | int, until: int | None = None) -> None:
        self.part, self.until = part, until
        self._frozen: list[nn.Parameter] = []

    def before_fit(self) -> None:
        self._frozen = frozen_part(get_model(self.learn.model), self.part)

    def before_train(self) -> None:
        freezes = self.until is None or self.learn.epoch + 1 < self.until
        self._require_grad(not freezes)
        if freezes:
            evaluate_frozen(get_model(self.learn.model), self._frozen)

    def after_fit(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Make everything trainable; `ResumableLearner.fit` calls it after an interruption, too."""
        self._require_grad(True)

    def _require_grad(self, wanted: bool) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(wanted)


class FreezeBatchNorm(Callback):
    """Batch norm normalizes by the statistics of the weights that training starts from, as in validation.

    Its scales and shifts are trained. So the features are at first those of the pretrained body, also in a small batch.
    A network that starts from random weights has no such statistics, and is trained as without.
    """

    # after fastai has set all layers to training mode
    order = Freeze.order

    def before_train(self) -> None:
        network = get_model(self.learn.model)
        if getattr(network, "initial_weights", RANDOM) != RANDOM:
            evaluate_batch_norm(network)


def evaluate_batch_norm(network: nn.Module) -> None:
    """Set all batch norms to evaluation mode."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def evaluate_frozen(network: nn.Module, frozen: Sequence[nn.Parameter]) -> None:
    """Set the modules with frozen parameters only to evaluation mode."""
    ids = {id(parameter) for parameter in frozen}
    for module in network.modules():
        within = [id(parameter) for parameter in module.parameters()]
        if within and ids.issuperset(within):
            module.eval()


def frozen_part(network: nn.Module, part: str | int) -> list[nn.Parameter]:
    """The parameters of the "body" or of a number of stages; raises UsageError if there are fewer."""
    if not isinstance(network, MultiHeadNet):
        raise UsageError("Only the body of a network of build_network can be frozen by its stages.")
    groups = stages(network.body)
    if part == BODY:
        return list(network.body.parameters())
    if not isinstance(part, int) or not 0 < part <= len(groups):
        raise UsageError(f"Setting freeze is {part}; expected body, or 1 to {len(groups)}, the stages of this body.")
    return [parameter for group in groups[:part] for parameter in group]
