"""ONNX graph: networks of one or more runs as one graph, from uint8 photos to each head's probabilities.

A run's body is traced once; the graph of each of its networks is that trace with the network's own weights in it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper
from torch import Tensor, nn

from fastmask.data.augment import Stats
from fastmask.heads import Heads
from fastmask.inference.blend import TIE, VOTE, Blend
from fastmask.model.network import MultiHeadNet
from fastmask.system.errors import FastmaskError, UsageError, one_line

# of ONNX: the first with an antialiased resize, which transformers scale their position embeddings by
OPSET = 18
PHOTOS, BATCH = "photos", "batch"
_TRACED, _NETWORK = "x", "network"


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks of one run, by fold: what they answer is the mean over folds of the mean over a fold's networks.

    `size` is the (height, width) of the photos they take, `stats` how these are normalised.
    """

    heads: Heads
    stats: Stats
    size: tuple[int, int]
    members: Mapping[str, Sequence[MultiHeadNet]]

    @property
    def weighted(self) -> Iterator[tuple[MultiHeadNet, float]]:
        """Each network and its share of the mean."""
        for networks in self.members.values():
            for network in networks:
                yield network, 1 / (len(networks) * len(self.members))

    @property
    def nbytes(self) -> int:
        """What the weights take."""
        return sum(t.nbytes for network, _ in self.weighted for t in network.state_dict().values())

    def of(self, members: Mapping[str, Sequence[MultiHeadNet]]) -> Networks:
        """Other networks of the same run, with what is traced already."""
        made = Networks(self.heads, self.stats, self.size, members)
        made.__dict__.update({name: self.__dict__[name] for name in ("full", "half") if name in self.__dict__})
        return made

    @cached_property
    def full(self) -> ModelProto:
        """The graph of the first network, in float32."""
        return self._traced(torch.float32)

    @cached_property
    def half(self) -> ModelProto:
        """The graph of the first network, its weights and sums in float16."""
        return self._traced(torch.float16)

    def _traced(self, dtype: torch.dtype) -> ModelProto:
        network, _ = next(self.weighted)
        # a copy, since what is rounded stays so
        return trace(copy.deepcopy(network).to(dtype), self.heads, self.size, dtype)


class _Probabilities(nn.Module):
    """(B, 3, H, W) normalised photos -> the probabilities of each head, float32.

    As `MultiHeadNet` and `FocalLoss.activation`, but for the one tensor of logits and fastai's classes.
    """

    def __init__(self, network: MultiHeadNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.network.body(x)
        return tuple(head(features).float().softmax(-1) for head in self.network.heads)


def trace(network: MultiHeadNet, heads: Heads, size: tuple[int, int], dtype: torch.dtype) -> ModelProto:
    """The graph of one network as torch's exporter writes it; raises FastmaskError where that cannot."""
    # two: of one photo the exporter would take the batch for a number that never changes
    photos = torch.zeros(2, 3, *size, dtype=dtype)
    try:
        # the exporter talks of its own work and of what is to change in torch
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Probabilities(network).eval(),
                (photos,),
                dynamo=True,
                input_names=[_TRACED],
                output_names=list(heads.names),
                dynamic_shapes={_TRACED: {0: torch.export.Dim(BATCH)}},
                opset_version=OPSET,
                verbose=False,
                # it would melt weights together, and others are to take their places
                optimize=False,
            )
        assert program is not None
        return program.model_proto
    except Exception as error:
        raise FastmaskError(
            f"torch.onnx cannot export {network.tag}: {one_line(error)}; take a run of another arch."
        ) from error


def with_weights(traced: ModelProto, network: MultiHeadNet) -> ModelProto:
    """A traced graph with the weights of a network in place of its own, and what follows from them worked out."""
    made = ModelProto()
    made.CopyFrom(traced)
    weights = {f"{_NETWORK}.{name}": tensor for name, tensor in network.state_dict().items()}
    for kept in made.graph.initializer:
        if kept.name in weights:
            kept.CopyFrom(numpy_helper.from_array(_as(weights[kept.name], kept.data_type), kept.name))
    optimized: ModelProto = onnxscript.optimizer.optimize(made)
    # shapes that the exporter worked out for its own names
    del optimized.graph.value_info[:]
    return optimized


def _as(tensor: Tensor, kind: int) -> np.ndarray:
    """A tensor in the numbers of an initializer; what is too large for float16 becomes its largest."""
    dtype, array = helper.tensor_dtype_to_np_dtype(kind), tensor.numpy(force=True)
    if dtype == np.float16:
        array = array.clip(np.finfo(np.float16).min, np.finfo(np.float16).max)
    return np.ascontiguousarray(array.astype(dtype))


class _Graph:
    """A graph that grows, node by node."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node with one output, which it names."""
        output = output or f"fastmask/{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        """The name of a constant."""
        name = f"fastmask/constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def mean(self, values: Sequence[str], weights: Sequence[float]) -> str:
        """The sum of values times weights."""
        if len(values) == 1 and weights[0] == 1:
            return values[0]
        shares = [self.constant(np.array(weight, np.float32)) for weight in weights]
        parts = [self.add("Mul", pair) for pair in zip(values, shares, strict=True)]
        return self.add("Sum", parts)

    def embed(self, model: ModelProto, prefix: str, x: str) -> None:
        """Put a whole graph in, its names behind a prefix, its input from `x`."""
        graph = compose.add_prefix_graph(model.graph, prefix)
        self.add("Identity", [x], f"{prefix}{_TRACED}")
        self.nodes.extend(graph.node)
        self.initializers.extend(graph.initializer)


def build(
    heads: Heads,
    runs: Mapping[str, Networks],
    blend: Blend | None = None,
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """The model of one run's networks, or of those of several runs, blended head by head.

    Its input is (batch, height, width, 3) uint8 RGB; an output, of the name of each head, its (batch, classes) float32
    probabilities. Raises UsageError where a head has the name of the input.
    """
    if PHOTOS in heads.names:
        raise UsageError(f"A head is called {PHOTOS!r}, as the file's input is; rename it and train again.")
    graph = _Graph()
    pixels = graph.add("Cast", [PHOTOS], to=TensorProto.FLOAT)
    each: list[dict[str, str]] = []
    versions: dict[str, int] = {}
    functions: dict[tuple[str, str], onnx.FunctionProto] = {}
    ir = 0
    for number, networks in enumerate(runs.values()):
        x = _normalized(graph, pixels, networks.stats, half)
        answered: dict[str, list[str]] = {name: [] for name in networks.heads.names}
        shares: list[float] = []
        for place, (network, share) in enumerate(networks.weighted):
            model, prefix = with_weights(networks.half if half else networks.full, network), f"run{number}/{place}/"
            graph.embed(model, prefix, x)
            shares.append(share)
            for name in answered:
                answered[name].append(f"{prefix}{name}")
            versions.update({one.domain: max(one.version, versions.get(one.domain, 0)) for one in model.opset_import})
            functions.update({(one.domain, one.name): one for one in model.functions})
            ir = max(ir, model.ir_version)
        each.append({name: graph.mean(values, shares) for name, values in answered.items()})
    for head in heads:
        graph.add("Identity", [_blended(graph, heads, head.name, each, blend)], head.name)
    size = next(iter(runs.values())).size
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "fastmask",
            [helper.make_tensor_value_info(PHOTOS, TensorProto.UINT8, [BATCH, *size, 3])],
            [helper.make_tensor_value_info(h.name, TensorProto.FLOAT, [BATCH, len(h.classes)]) for h in heads],
            graph.initializers,
        ),
        producer_name="fastmask",
        ir_version=ir,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
        functions=list(functions.values()),
    )
    helper.set_model_props(made, dict(metadata or {}))
    return made


def _normalized(graph: _Graph, pixels: str, stats: Stats, half: bool) -> str:
    """(B, H, W, 3) from 0 to 255 -> (B, 3, H, W), as `NormalizeBatch` does it."""
    mean, std = (np.array(values, np.float32) * 255 for values in stats)
    centred = graph.add("Sub", [pixels, graph.constant(mean)])
    scaled = graph.add("Div", [centred, graph.constant(std)])
    x = graph.add("Transpose", [scaled], perm=[0, 3, 1, 2])
    return graph.add("Cast", [x], to=TensorProto.FLOAT16) if half else x


def _blended(graph: _Graph, heads: Heads, name: str, each: Sequence[Mapping[str, str]], blend: Blend | None) -> str:
    """The probabilities of one head, of all runs; as `Blend.mix`."""
    if blend is None:
        return each[0][name]
    there = np.flatnonzero(blend.weights[name]).tolist()
    parts = [each[i][name] for i in there]
    if blend.how != VOTE or heads[name].spread is not None:
        return graph.mean(parts, [float(blend.weights[name][i]) for i in there])
    depth = graph.constant(np.array(len(heads[name].classes), np.int64))
    values = graph.constant(np.array([0, 1], np.float32))
    first = [graph.add("ArgMax", [part], axis=-1, keepdims=0) for part in parts]
    votes = [graph.add("OneHot", [one, depth, values], axis=-1) for one in first]
    share = 1 / (len(parts) * (1 + TIE))
    return graph.mean([*votes, *parts], [share] * len(votes) + [share * TIE] * len(parts))
