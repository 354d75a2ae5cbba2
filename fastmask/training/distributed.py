"""Distributed: fastai's distributed training of a fold by several processes.

Imported only where a launcher has started several: fastai's own module fails without Accelerate, which the base install
does not have.
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

    fastai's own loader deals photos in another order, pads them where they do not come out even, and works on GPUs
    alone; `PhotoDL` deals each batch. The loss of the whole batch is the one that a single process computes, also where
    it is no mean over photos (soft F1, labels that are unknown), so its gradients are added up, not averaged.
    """

    def __init__(self, processes: Processes, device: torch.device, unused: bool = False) -> None:
        self.processes = processes
        on_cpu = device.type == "cpu"
        # a body that is frozen for a while has no gradients to wait for
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=unused)]
        # the precision is that of the settings, whatever the launcher says
        super().__init__(sync_bn=not on_cpu, cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)

    def before_fit(self) -> None:
        if self.sync_bn:
            # torch's own converter, which fastai takes, loses the activation of timm's layers
            self.learn.model = convert_sync_batchnorm(self.learn.model)
        self.learn.model = self.accelerator.prepare_model(self.learn.model)

    def before_train(self) -> None:
        """Nothing: the loaders know their share."""

    before_validate = before_train

    def after_pred(self) -> None:
        learn = self.learn
        dl = learn.dl
        photos = dl.photos_in(learn.iter) if isinstance(dl, PhotoDL) else len(learn.pred) * self.processes.count
        whole = list(self._gather(learn.pred.detach()))
        # the others' are numbers here; each process has the gradient of its own
        whole[self.processes.number] = learn.pred
        learn.pred = torch.cat(whole)[:photos]
        learn.yb = tuple(torch.cat(self._gather(y))[:photos] for y in learn.yb)

    def _gather(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Each process's own, of the same shape."""
        found: Tensor = self.accelerator.gather(tensor.as_subclass(Tensor).contiguous())
        return found.chunk(self.processes.count)

    def before_backward(self) -> None:
        # DDP divides by the number of processes
        self.learn.loss_grad = self.learn.loss_grad * self.processes.count

    def after_fit(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Take the network out again, which `ResumableLearner.fit` asks for after an interruption, too."""
        if isinstance(self.learn.model, nn.parallel.DistributedDataParallel):
            self.learn.model = self.learn.model.module
