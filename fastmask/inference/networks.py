"""Networks: those of a run's checkpoints, ready to predict; or a soup of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fastmask.inference.soup import average_states
from fastmask.model.archs import check_arch, describe
from fastmask.model.network import MultiHeadNet, build_network
from fastmask.run.directory import RunDirectory
from fastmask.system.errors import DataError, FastmaskWarning, UsageError, one_line

# what loads a checkpoint of a run to predict photos of a size, as `load_network`
Load = Callable[[RunDirectory, Path, torch.device, "tuple[int, int] | None"], MultiHeadNet]


def load_members(
    run: RunDirectory,
    members: Sequence[str] | None,
    device: torch.device,
    size: tuple[int, int] | None = None,
    soup: bool = False,
    refit: bool = True,
    load: Load | None = None,
) -> dict[str, list[MultiHeadNet]]:
    """The networks of each member ("fold0", ...), one a checkpoint or a `soup` of them, to predict photos of `size`.

    Warns where folds are missing.
    """
    found, load = checkpoints_of(run, members, soup, refit), load or load_network
    if len(found) < run.config.folds and not members:
        warnings.warn(
            f"{run.path} has finished {len(found)} of {run.config.folds} folds; the mean is over those.",
            FastmaskWarning,
            stacklevel=3,
        )
    return {
        member: [load_soup(run, files, device, size)] if soup else [load(run, f, device, size) for f in files]
        for member, files in found.items()
    }


def checkpoints_of(
    run: RunDirectory, members: Sequence[str] | None, soup: bool = False, refit: bool = True
) -> dict[str, list[Path]]:
    """The checkpoints of each member; raises UsageError or DataError where there is nothing to predict with.

    Or, for a `soup`, nothing to average.
    """
    there = {f"fold{fold}": run.models(fold, refit and not soup) for fold in run.trained_folds}
    if not there:
        raise UsageError(f"{run.path} has not finished a fold yet, so there is nothing to predict with.")
    empty = next((m for m in members or there if m in there and not there[m]), None)
    if empty is not None:
        raise DataError(
            f"{run.path / empty} has no checkpoint (epoch*.safetensors); train the fold again, or restore it."
        )
    unknown = [m for m in members or [] if m not in there]
    if unknown:
        raise UsageError(f"{run.path} has no member {unknown[0]!r}; expected some of {', '.join(there)}.")
    found = {m: there[m] for m in members or there}
    if soup and all(len(files) == 1 for files in found.values()):
        raise UsageError(
            f"Each fold of {run.path} keeps one checkpoint, so --soup has nothing to average; train with --top-k 3, or "
            "leave it out."
        )
    return found


def load_network(
    run: RunDirectory, file: Path, device: torch.device, size: tuple[int, int] | None = None
) -> MultiHeadNet:
    """The network of a checkpoint, ready to predict photos of `size`; raises DataError where it does not fit the run.

    Bodies that are made for one size of photos, such as Swin, need `size`; it is that of the validation pipeline.
    """
    _check_long(run, file)
    network = build_network(run.config.arch, run.heads, size=size)
    _load(run, network, file)
    return network.to(device).eval()


def load_soup(
    run: RunDirectory, files: Sequence[Path], device: torch.device, size: tuple[int, int] | None = None
) -> MultiHeadNet:
    """The one network whose weights are the mean of those of checkpoints, as `load_network` makes each."""
    for file in files:
        _check_long(run, file)
    network = build_network(run.config.arch, run.heads, size=size)

    def states() -> Iterator[dict[str, Tensor]]:
        for file in files:
            # what comes out of the network is in its form, whatever form the file has
            _load(run, network, file)
            yield {name: tensor.clone() for name, tensor in network.state_dict().items()}

    network.load_state_dict(average_states(states()))
    return network.to(device).eval()


def _check_long(run: RunDirectory, file: Path) -> None:
    arch = run.config.arch
    if file.stat().st_size < _least_bytes(arch):
        # before the network takes the memory that only its name asks for
        raise DataError(f"{file} is too short for the weights of {arch}; train the fold again, or restore it.")


def _load(run: RunDirectory, network: MultiHeadNet, file: Path) -> None:
    try:
        network.load_state_dict(load_file(file))
    except Exception as error:
        raise DataError(f"{file} does not hold the weights of {run.config.arch}: {one_line(error)}.") from error


@cache
def _least_bytes(arch: str) -> int:
    """What the weights of a body take at least, at two bytes a parameter."""
    check_arch(arch)
    return 2 * (describe(arch).parameters or 0)
