"""Glimpse: numbers of a GPU seen by the host without waiting for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Glimpse:
    """A tensor on its way to the host; `arrived` says whether `value` holds it yet.

    Copying it as usual waits until the GPU has done all that it was given; here the copy is one more thing that it was
    given.
    """

    def __init__(self, tensor: Tensor) -> None:
        tensor, self._copied = tensor.detach(), None
        if tensor.device.type != "cuda":
            self.value = tensor.cpu()
            return
        with torch.cuda.device(tensor.device):
            self.value = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.value.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def arrived(self) -> bool:
        """Whether the numbers are there; never waits."""
        return self._copied is None or bool(self._copied.query())

    def wait(self) -> Tensor:
        """The numbers, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self.value
