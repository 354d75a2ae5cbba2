"""Distributed: fastai's distributed training of a fold by several processes.

Imported only if a launcher has started several: fastai's module needs Accelerate, which the base install does not have.
"""

from __future__ import annotations

import torch
from accelerate.utils import DistributedDataParallelKwargs
from fastai.distributed import DistributedTrainer
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from fastmask.data.photo_dl import PhotoDL
from fastmask.training.processes import Processes


class WholeBatchTrainer(DistributedTrainer):
    """fastai's distributed training, in which the loss and the metrics see the whole batch.

    fastai's loader changes the order of the photos, pads uneven batches, and works only on GPUs; here `PhotoDL` splits
    each batch. The loss of the whole batch is that of a single process, even if it is not a mean over photos (soft F1,
    unknown labels), so gradients are summed, not averaged.
    """

    # as in `step.Precision`
    computes = True

    def __init__(self, processes: Processes, device: torch.device, unused: bool = False) -> None:
        self.processes = processes
        on_cpu = device.type == "cpu"
        # a frozen body has no gradients to wait for
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=unused)]
        # precision is set by the settings, not by the launcher
        super().__init__(sync_bn=not on_cpu, cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)

    def before_fit(self) -> None:
        if self.sync_bn:
            # torch's converter, which fastai uses, drops the activation of timm's layers
            self.learn.model = convert_sync_batchnorm(self.learn.model)
        self.learn.model = self.accelerator.prepare_model(self.learn.model)

    def before_train(self) -> None:
        """Nothing: the loaders split the batches."""

    before_validate = before_train

    def after_pred(self) -> None:
        learn = self.learn
        dl = learn.dl
        photos = dl.photos_in(learn.iter) if isinstance(dl, PhotoDL) else len(learn.pred) * self.processes.count
        whole = list(self._gather(learn.pred.detach()))
        # gathered tensors have no gradient, so each process inserts its own
        whole[self.processes.number] = learn.pred
        learn.pred = torch.cat(whole)[:photos]
        learn.yb = tuple(torch.cat(self._gather(y))[:photos] for y in learn.yb)

    def _gather(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensors of all processes, which have the same shape."""
        found: Tensor = self.accelerator.gather(tensor.as_subclass(Tensor).contiguous())
        return found.chunk(self.processes.count)

    def before_backward(self) -> None:
        # DDP divides by the number of processes
        self.learn.loss_grad = self.learn.loss_grad * self.processes.count

    def after_fit(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Unwrap the network; `ResumableLearner.fit` calls it after an interruption, too."""
        if isinstance(self.learn.model, nn.parallel.DistributedDataParallel):
            self.learn.model = self.learn.model.module
