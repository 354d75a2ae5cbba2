"""Backend: predictions by ONNX Runtime in place of PyTorch, on a CPU, with the same checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fastmask.export.options import check_packages
from fastmask.export.predict_onnx import open_model
from fastmask.inference.networks import Load, load_network
from fastmask.model.network import MultiHeadNet
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import UsageError

if TYPE_CHECKING:
    from onnx import ModelProto


class RuntimeNetwork(nn.Module):
    """(B, 3, H, W) normalised photos -> (B, classes of all heads) logits, by a session of ONNX Runtime."""

    probe = None

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session

    def forward(self, x: Tensor) -> Tensor:
        """The logarithms of the probabilities that the graph answers with."""
        parts = self.session.run(None, {self.session.get_inputs()[0].name: x.contiguous().numpy()})
        return torch.cat([torch.from_numpy(part) for part in parts], dim=1).log()


def onnx_load() -> Load:
    """A function for `load` of `fm.predict` that runs checkpoints by ONNX Runtime, on a CPU.

    Probabilities are those of PyTorch but for rounding (1e-5). A run's body is traced once, which takes about ten
    seconds; so it pays for thousands of photos. Raises UsageError if a package is missing.

    >>> load = fm.onnx_load()
    >>> fm.predict(run, photos, load=load).probabilities.shape
    (3, 8)
    """
    check_packages("ONNX Runtime")
    traces: dict[tuple[str, tuple[int, int] | None], ModelProto] = {}

    def load(run: RunDirectory, file: Path, device: torch.device, size: tuple[int, int] | None) -> MultiHeadNet:
        if device.type != "cpu":
            raise UsageError(f"ONNX Runtime predicts on a CPU here, not on {device}; leave one of the two out.")
        from fastmask.export.graph import trace, with_weights

        network = load_network(run, file, device, size)
        of = run.identity, size
        if of not in traces:
            traces[of] = trace(network, run.heads, cast(tuple[int, int], size), torch.float32)
        model = with_weights(traces[of], network).SerializeToString()
        return cast(MultiHeadNet, RuntimeNetwork(open_model(model, torch.get_num_threads())))

    return load
