"""Graph: networks of one or more runs as one ONNX graph, from uint8 photos to each head's probabilities.

A run's body is traced once; the graph of each network is a copy of this trace with the network's weights.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxscript.optimizer
import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper
from torch import Tensor, nn

from fastmask.data.augment import Stats
from fastmask.heads import JOINT, Heads
from fastmask.inference.blend import Blend
from fastmask.model.network import MultiHeadNet
from fastmask.model.views import View, make_views
from fastmask.system.errors import FastmaskError, UsageError, one_line

# the first opset with an antialiased resize, which transformers need for their position embeddings
OPSET = 18
PHOTOS, BATCH = "photos", "batch"
_TRACED, _NETWORK = "x", "network"


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks of one run by fold. They predict the mean over folds of the mean over each fold's networks.

    `size` is the (height, width) of photos, `stats` the means and deviations to normalise them, `views` the names of
    the views that each network averages. `traces` are shared with other networks of the run.
    """

    heads: Heads
    stats: Stats
    size: tuple[int, int]
    members: Mapping[str, Sequence[MultiHeadNet]]
    views: Sequence[str] = ()
    traces: dict[torch.dtype, ModelProto] = field(default_factory=dict)

    @property
    def weighted(self) -> Iterator[tuple[MultiHeadNet, float]]:
        """Each network and its share of the mean."""
        for networks in self.members.values():
            for network in networks:
                yield network, 1 / (len(networks) * len(self.members))

    def traced(self, dtype: torch.dtype) -> ModelProto:
        """The graph of the first network with weights of the given type."""
        if dtype not in self.traces:
            network, _ = next(self.weighted)
            # a copy, since rounding is irreversible
            self.traces[dtype] = trace(copy.deepcopy(network).to(dtype), self.heads, self.size, dtype, self.views)
        return self.traces[dtype]


class _Probabilities(nn.Module):
    """(B, 3, H, W) normalised photos -> the float32 probabilities of each head, the mean over views, in PyTorch."""

    def __init__(self, network: MultiHeadNet, views: Sequence[View]) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        each = [[part.float().softmax(-1) for part in self.network.classify(view(x))] for view in self.views]
        return tuple(sum(parts[1:], parts[0]) / len(parts) for parts in zip(*each, strict=True))


def trace(
    network: MultiHeadNet, heads: Heads, size: tuple[int, int], dtype: torch.dtype, views: Sequence[str] = ()
) -> ModelProto:
    """Trace one network, with the views of these names, with torch's exporter; raises FastmaskError if it fails."""
    # a batch of two, since the exporter would treat a batch size of one as constant
    photos = torch.zeros(2, 3, *size, dtype=dtype)
    try:
        # the exporter prints its progress and deprecation warnings
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Probabilities(network, make_views(views)).eval(),
                (photos,),
                dynamo=True,
                input_names=[_TRACED],
                output_names=list(heads.names),
                dynamic_shapes={_TRACED: {0: torch.export.Dim(BATCH)}},
                opset_version=OPSET,
                verbose=False,
                # otherwise weights become constants, which `with_weights` cannot replace
                optimize=False,
            )
        assert program is not None
        return program.model_proto
    except Exception as error:
        raise FastmaskError(
            f"torch.onnx cannot export {network.tag}: {one_line(error)}; use a run of another arch."
        ) from error


def with_weights(traced: ModelProto, network: MultiHeadNet) -> ModelProto:
    """An optimised copy of a traced graph with the weights of a network."""
    made = ModelProto()
    made.CopyFrom(traced)
    weights = {f"{_NETWORK}.{name}": tensor for name, tensor in network.state_dict().items()}
    for kept in made.graph.initializer:
        if kept.name in weights:
            kept.CopyFrom(numpy_helper.from_array(_to_array(weights[kept.name], kept.data_type), kept.name))
    optimized: ModelProto = onnxscript.optimizer.optimize(made)
    # remove shapes of values that the optimizer has renamed
    del optimized.graph.value_info[:]
    return optimized


def _to_array(tensor: Tensor, kind: int) -> np.ndarray:
    """A tensor in the data type of an initializer, clipped to the range of float16."""
    dtype, array = helper.tensor_dtype_to_np_dtype(kind), tensor.numpy(force=True)
    if dtype == np.float16:
        array = array.clip(np.finfo(np.float16).min, np.finfo(np.float16).max)
    return np.ascontiguousarray(array.astype(dtype))


class _Graph:
    """A graph that is built node by node; it has the `Operations` of mixtures, whose values are names."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.opsets: dict[str, int] = {}
        self.functions: dict[tuple[str, str], FunctionProto] = {}
        self.ir_version = 0

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        output = output or f"fastmask/{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        """Add a constant, and return its name."""
        name = f"fastmask/constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def mean(self, values: Sequence[str], weights: Sequence[float]) -> str:
        """Add the sum of values times weights, and return its name."""
        if len(values) == 1 and weights[0] == 1:
            return values[0]
        shares = [self.constant(np.array(weight, np.float32)) for weight in weights]
        parts = [self.add("Mul", pair) for pair in zip(values, shares, strict=True)]
        return self.add("Sum", parts)

    def one_hot(self, value: str, classes: int) -> str:
        """Add a vector with 1 for the highest value, and return its name."""
        first = self.add("ArgMax", [value], axis=-1, keepdims=0)
        depth, values = self.constant(np.array(classes, np.int64)), self.constant(np.array([0, 1], np.float32))
        return self.add("OneHot", [first, depth, values], axis=-1)

    def log(self, value: str, least: float) -> str:
        """Add the logarithm of values, or of `least` where they are smaller, and return its name."""
        return self.add("Log", [self.add("Max", [value, self.constant(np.array(least, np.float32))])])

    def linear(self, values: Sequence[str], coefficients: np.ndarray, intercepts: np.ndarray) -> str:
        """Add the sum of values times matrices, plus intercepts, and return its name."""
        matrices = [self.constant(each.astype(np.float32)) for each in coefficients]
        parts = [self.add("MatMul", pair) for pair in zip(values, matrices, strict=True)]
        return self.add("Sum", [*parts, self.constant(intercepts.astype(np.float32))])

    def softmax(self, value: str) -> str:
        """Add the softmax over classes, and return its name."""
        return self.add("Softmax", [value], axis=-1)

    def embed(self, model: ModelProto, prefix: str, x: str) -> None:
        """Add a whole graph with a prefix before its names and `x` as its input."""
        graph = compose.add_prefix_graph(model.graph, prefix)
        self.add("Identity", [x], f"{prefix}{_TRACED}")
        self.nodes.extend(graph.node)
        self.initializers.extend(graph.initializer)
        self.opsets.update({o.domain: max(o.version, self.opsets.get(o.domain, 0)) for o in model.opset_import})
        self.functions.update({(one.domain, one.name): one for one in model.functions})
        self.ir_version = max(self.ir_version, model.ir_version)

    def to_model(self, heads: Heads, size: tuple[int, int]) -> ModelProto:
        """The model of the graph, with outputs named by heads."""
        photos = helper.make_tensor_value_info(PHOTOS, TensorProto.UINT8, [BATCH, *size, 3])
        outputs = [helper.make_tensor_value_info(h.name, TensorProto.FLOAT, [BATCH, len(h.classes)]) for h in heads]
        return helper.make_model(
            helper.make_graph(self.nodes, "fastmask", [photos], outputs, self.initializers),
            producer_name="fastmask",
            ir_version=self.ir_version,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self.opsets.items()],
            functions=list(self.functions.values()),
        )


def build(
    heads: Heads,
    runs: Mapping[str, Networks],
    blend: Blend | None = None,
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """Build the model of the networks of one run, or of several runs blended per head.

    Its input is (batch, height, width, 3) uint8 RGB; it has an output per head, (batch, classes) float32 probabilities.
    Raises UsageError if a head has the input's name.
    """
    if PHOTOS in heads.names:
        raise UsageError(f"A head is called {PHOTOS!r}, as the file's input is; rename it and train again.")
    graph = _Graph()
    pixels = graph.add("Cast", [PHOTOS], to=TensorProto.FLOAT)
    each: list[dict[str, str]] = []
    for number, networks in enumerate(runs.values()):
        x = _add_normalization(graph, pixels, networks.stats, half)
        traced = networks.traced(torch.float16 if half else torch.float32)
        prefixes, shares = [], []
        for place, (network, share) in enumerate(networks.weighted):
            prefixes.append(f"run{number}/{place}/")
            shares.append(share)
            graph.embed(with_weights(traced, network), prefixes[-1], x)
        names = networks.heads.names
        each.append({name: graph.mean([f"{prefix}{name}" for prefix in prefixes], shares) for name in names})
        if blend is not None and heads.joint_head is not None:
            each[-1][JOINT] = _add_joint(graph, networks.heads, each[-1])
    blended = heads.names if blend is None else tuple(blend.mixtures)
    made_of = {name: _add_blend(graph, heads, name, each, blend) for name in blended}
    if blend is not None and heads.joint_head is not None:
        made_of |= _add_sums(graph, heads, made_of[JOINT])
    for name, value in made_of.items():
        graph.add("Identity", [value], name)
    made = graph.to_model(heads, next(iter(runs.values())).size)
    helper.set_model_props(made, dict(metadata or {}))
    return made


def _add_normalization(graph: _Graph, pixels: str, stats: Stats, half: bool) -> str:
    """(B, H, W, 3) from 0 to 255 -> (B, 3, H, W), as by `NormalizeBatch`."""
    mean, std = (np.array(values, np.float32) * 255 for values in stats)
    centred = graph.add("Sub", [pixels, graph.constant(mean)])
    scaled = graph.add("Div", [centred, graph.constant(std)])
    x = graph.add("Transpose", [scaled], perm=[0, 3, 1, 2])
    return graph.add("Cast", [x], to=TensorProto.FLOAT16) if half else x


def _add_joint(graph: _Graph, heads: Heads, each: Mapping[str, str]) -> str:
    """The joint probabilities of one run, as by `Heads.joint_probabilities`."""
    own, share = each.get(JOINT), heads.joint_share
    if own is not None and share == 1:
        return own
    joint, *rest = (each[name] for name in heads.classified)
    flat = graph.constant(np.array([0, -1], np.int64))
    column, row = (graph.constant(np.array([axis], np.int64)) for axis in (2, 1))
    for part in rest:
        pair = [graph.add("Unsqueeze", [joint, column]), graph.add("Unsqueeze", [part, row])]
        joint = graph.add("Reshape", [graph.add("Mul", pair), flat])
    return joint if own is None else graph.mean([own, joint], [share, 1 - share])


def _add_sums(graph: _Graph, heads: Heads, joint: str) -> dict[str, str]:
    """The probabilities of each head of the joint class, as by `Heads.sum_joint`."""
    sizes = [heads.sizes[i] for i in heads.joined]
    whole = graph.add("Reshape", [joint, graph.constant(np.array([-1, *sizes], np.int64))])
    found = {}
    for place, name in enumerate(heads.classified):
        others = np.array([axis + 1 for axis in range(len(sizes)) if axis != place], np.int64)
        found[name] = graph.add("ReduceSum", [whole, graph.constant(others)], keepdims=0)
    return found


def _add_blend(graph: _Graph, heads: Heads, name: str, each: Sequence[Mapping[str, str]], blend: Blend | None) -> str:
    """The probabilities of one head, blended as by `Blend.mix`."""
    if blend is None:
        return each[0][name]
    mixture = blend.mixtures[name]
    return mixture.mix(graph, [each[i][name] for i in mixture.members], len(heads[name].classes))
