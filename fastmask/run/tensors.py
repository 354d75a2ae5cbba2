"""Tensors: the safetensors files of a fold, with the weights and the OOF probabilities of an epoch."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastmask.system.errors import DataError, one_line
from fastmask.system.files import atomic_write

# the name in the metadata of weights under which they say what they were trained on
LINEAGE = "fastmask"


def save_network(network: torch.nn.Module, path: Path, lineage: str | None = None) -> None:
    """Write a network's tensors as safetensors, in the default memory format, and the text of its lineage."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_tensors(tensors, path, **({} if lineage is None else {LINEAGE: lineage}))


def save_tensors(tensors: dict[str, Tensor], path: Path, **text: str) -> None:
    """Write tensors and optionally one named text as safetensors.

    Only one, because safetensors does not keep the order of several, and the same tensors must give the same bytes.
    Raises OSError if the disk is full.
    """
    with atomic_write(path, parents=False) as temporary:
        # safetensors would make the file unreadable for other users
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, text or None)
            temporary.chmod(mode)
        except SafetensorError as error:
            number = re.search("os error ([0-9]+)", str(error))
            if number is None:
                raise OSError(f"{path} cannot be written: {one_line(error)}") from error
            raise _system_error(int(number[1]), one_line(error), str(path)) from error


def _system_error(number: int, words: str, path: str) -> OSError:
    if os.name == "nt":
        # Windows error codes differ from C's errno
        return OSError(0, words, path, number)
    return OSError(number, os.strerror(number), path)


def checkpoint_file(folder: Path, epoch: int) -> Path:
    """The file of the weights of an epoch."""
    return folder / f"epoch{epoch:03d}.safetensors"


def oof_file(folder: Path, epoch: int) -> Path:
    """The file of the OOF probabilities of an epoch."""
    return folder / f"oof-{epoch:03d}.safetensors"


def read_oof(folder: Path, epoch: int) -> np.ndarray:
    """(photos of the fold, classes of all heads) OOF probabilities of an epoch, in the table's order."""
    path = oof_file(folder, epoch)
    try:
        with safe_open(path, framework="numpy") as file:
            probabilities: np.ndarray = file.get_tensor("probabilities")
    except (OSError, MemoryError, SafetensorError) as error:
        raise DataError(f"{path} does not hold the probabilities of epoch {epoch}: {error}.") from error
    return probabilities
