"""Networks: loaded from a run's checkpoints, or with the mean of their weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmask.inference.options import NetworkOptions
from fastmask.model.archs import check_arch, describe_arch
from fastmask.model.feature_losses import feature_loss_of
from fastmask.model.network import MultiHeadNet, build_network
from fastmask.model.probe import PROBE, ProbeWeights, StageFeatures
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError, FastmaskWarning, UsageError, one_line

# a function like `load_network`
Load = Callable[[RunDirectory, Path, torch.device, "tuple[int, int] | None"], MultiHeadNet]


def load_members(
    run: RunDirectory,
    members: Sequence[str] | None,
    options: NetworkOptions,
    device: torch.device,
    size: tuple[int, int] | None = None,
    load: Load | None = None,
) -> dict[str, list[MultiHeadNet]]:
    """Load the networks of each member ("fold0", ...) for photos of `size`: one per checkpoint, or one soup.

    Linear probes on equal bodies share one. Warns if folds are missing.
    """
    found, load = checkpoints_of(run, members, options), load or load_network
    if len(found) < run.config.folds and not members:
        warnings.warn(
            f"{run.path} has finished {len(found)} of {run.config.folds} folds; the mean is over those.",
            FastmaskWarning,
            stacklevel=3,
        )
    networks = {
        member: [load_soup(run, files, device, size)] if options.soup else [load(run, f, device, size) for f in files]
        for member, files in found.items()
    }
    _share_bodies([network for each in networks.values() for network in each])
    return networks


def _share_bodies(networks: Iterable[MultiHeadNet]) -> None:
    """Let linear probes with equal frozen bodies have the same one, which then sees a batch once for all of them."""
    different: list[StageFeatures] = []
    for network in networks:
        if network.probe is not None:
            own = network.probe.features
            network.probe.features = next((one for one in different if _are_equal(one, own)), own)
            if network.probe.features is own:
                different.append(own)


def _are_equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(a.device == b.device and torch.equal(a, b) for a, b in pairs)


def checkpoints_of(run: RunDirectory, members: Sequence[str] | None, options: NetworkOptions) -> dict[str, list[Path]]:
    """The checkpoints of the members, by default all; raises UsageError or DataError if there are too few."""
    folds = {f"fold{fold}": run.models(fold, options.refit and not options.soup) for fold in run.trained_folds}
    if not folds:
        raise UsageError(f"{run.path} has not finished a fold yet, so there is nothing to predict with.")
    members = members or list(folds)
    unknown = next((member for member in members if member not in folds), None)
    if unknown is not None:
        raise UsageError(f"{run.path} has no member {unknown!r}; expected some of {', '.join(folds)}.")
    found = {member: folds[member] for member in members}
    empty = next((member for member, files in found.items() if not files), None)
    if empty is not None:
        raise DataError(
            f"{run.path / empty} has no checkpoint (epoch*.safetensors); train the fold again, or restore it."
        )
    if options.soup and all(len(files) == 1 for files in found.values()):
        raise UsageError(
            f"Each fold of {run.path} keeps one checkpoint, so --soup has nothing to average; train with --top-k 3, or "
            "leave it out."
        )
    return found


def load_network(
    run: RunDirectory, file: Path, device: torch.device, size: tuple[int, int] | None = None
) -> MultiHeadNet:
    """Load the network of a checkpoint for photos of `size`; raises DataError if it does not fit the run.

    Bodies that are built for one size of photos, such as Swin, need `size`: that of the validation pipeline.
    """
    _check_long(run, file)
    tensors = _read(run, file)
    network = _build(run, file, tensors, size)
    _load(run, network, file, tensors)
    return network.to(device).eval()


def load_soup(
    run: RunDirectory, files: Sequence[Path], device: torch.device, size: tuple[int, int] | None = None
) -> MultiHeadNet:
    """Load the network with the mean weights of several checkpoints: a uniform soup (Wortsman et al. 2022)."""
    for file in files:
        _check_long(run, file)
    network = _build(run, files[0], _read(run, files[0]), size)

    def states() -> Iterator[dict[str, Tensor]]:
        for file in files:
            # the network converts each tensor to its own type
            _load(run, network, file, _read(run, file))
            yield {name: tensor.clone() for name, tensor in network.state_dict().items()}

    network.load_state_dict(average_states(states()))
    return network.to(device).eval()


def average_states(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average the tensors of each name in float64; integers, such as counts, are those of the first state.

    The states have the same names and shapes; only one at a time is in memory.
    """
    first: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    count = 0
    for count, state in enumerate(states, start=1):  # noqa: B007
        first = first or dict(state)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                sums[name] = sums.get(name, 0) + tensor.to(torch.float64)
    return {name: (sums[name] / count).to(tensor.dtype) if name in sums else tensor for name, tensor in first.items()}


def _build(run: RunDirectory, file: Path, tensors: Mapping[str, Tensor], size: tuple[int, int] | None) -> MultiHeadNet:
    """A network of a run for photos of `size`, with random weights, and the linear probe of a checkpoint's tensors."""
    config, heads = run.config, run.heads
    loss = feature_loss_of(config, heads)
    network = build_network(config.arch, heads, size=size, per_head=config.per_head, feature_loss=loss)
    if config.has_probe:
        try:
            network.add_probe(heads, ProbeWeights(tensors[f"{PROBE}.weight"], tensors[f"{PROBE}.bias"]))
        except KeyError as error:
            raise _unfit(run, file, error) from error
    return network


def _check_long(run: RunDirectory, file: Path) -> None:
    arch = run.config.arch
    if file.stat().st_size < _least_bytes(arch):
        # checked before the network is built, since a forged config.yaml may name an enormous one
        raise DataError(f"{file} is too short for the weights of {arch}; train the fold again, or restore it.")


def _load(run: RunDirectory, network: MultiHeadNet, file: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(tensors)
    except Exception as error:
        raise _unfit(run, file, error) from error


def _read(run: RunDirectory, file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:
        raise _unfit(run, file, error) from error


def _unfit(run: RunDirectory, file: Path, error: Exception) -> DataError:
    return DataError(f"{file} does not hold the weights of {run.config.arch}: {one_line(error)}.")


@cache
def _least_bytes(arch: str) -> int:
    """The minimum size of a file of a body's weights: two bytes per parameter."""
    check_arch(arch)
    return 2 * (describe_arch(arch).parameters or 0)
