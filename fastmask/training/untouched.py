"""Untouched: training that is forgotten, so that the learner is afterwards as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fastai.learner import Learner
from torch import nn

from fastmask.data.loaders import PhotoDL


@contextmanager
def untouched(learn: Learner) -> Iterator[None]:
    """A block of training that is forgotten, however it ends: the learner is afterwards, bit for bit, as before.

    Files that it would write go to a folder that vanishes. What a callback of your own changes inside an object that
    it keeps (a list that it appends to) is not taken back.
    """
    with ExitStack() as after:
        for owner in (learn, *learn.cbs, *_metrics(learn), *learn.dls.loaders):
            after.callback(_restore_attributes, owner, dict(vars(owner)))
        for dl in learn.dls.loaders:
            if isinstance(dl, PhotoDL):
                after.callback(setattr, dl.passes, "next", dl.passes.next)
        after.callback(_restore_network, learn.model, *_network_state(learn.model))
        if learn.opt is not None:
            after.callback(learn.opt.load_state_dict, deepcopy(learn.opt.state_dict()))
        after.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        learn.path = Path(after.enter_context(TemporaryDirectory()))
        yield


def _metrics(learn: Learner) -> list[Any]:
    recorder = getattr(learn, "recorder", None)
    return [*learn.metrics, *([recorder.loss, recorder.smooth_loss] if recorder is not None else [])]


def _restore_attributes(owner: Any, before: dict[str, Any]) -> None:
    vars(owner).clear()
    vars(owner).update(before)


def _network_state(network: nn.Module) -> tuple[list[Any], list[Any], list[Any]]:
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]
    grads = [(parameter, parameter.grad) for parameter in network.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    return tensors, grads, [(module, module.training) for module in network.modules()]


def _restore_network(network: nn.Module, tensors: list[Any], grads: list[Any], modes: list[Any]) -> None:
    with torch.no_grad():
        for tensor, before in tensors:
            tensor.copy_(before)
    for parameter, grad in grads:
        parameter.grad = grad
    for module, training in modes:
        module.training = training
