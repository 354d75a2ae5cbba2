"""Checkpoint: the tensors in a weights file of any tool, read without running code in it."""

from __future__ import annotations

import io
import pickletools
import sys
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from fastmask.system.errors import DataError, UsageError

SAVE = "torch.save(model.state_dict(), FILE)"
_OTHER_TOOL = f"it is a file of {{}}; where it was made, load it into its model in torch and save that with {SAVE}"
# the first bytes of files that are taken for weights
_BEGINNINGS = {
    (b"version https://git-lfs",): "it is a pointer of Git LFS instead of the file itself; run git lfs pull",
    (b"<",): "it is a web page instead of the file behind it; download the file itself",
    (b"{",): "it is JSON; name a file of tensors, such as one that it lists",
    (b"\x89HDF",): _OTHER_TOOL.format("Keras"),
    (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf"): "it is a compressed archive; unpack it and name the file in it",
}
_TOOLS = {
    ".onnx": "ONNX",
    ".tflite": "TensorFlow Lite",
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".msgpack": "Flax",
    ".gguf": "llama.cpp",
}
_DAMAGED = "it is cut off, damaged, or in another format; download or copy it again, or save it with " + SAVE
# Python's modules and functions that a checkpoint's settings need; others could run code
_HARMLESS = {"_codecs", "argparse", "collections", "datetime", "functools", "pathlib", "types"}
_HARMLESS |= {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bytearray", "getattr", "set")}
_PYTHON = sys.stdlib_module_names | {"__builtin__", "copy_reg", "exceptions"}


class _Unloaded:
    """An empty object in place of one of any class, or of the result of any function."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


class _UnloadedDict(_Unloaded):
    """The same for subclasses of dict, which torch fills itself."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _UnloadedList(_Unloaded):
    """The same for a deque and subclasses of list."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


def read_states(file: str | Path) -> dict[str, dict[Any, Tensor]]:
    """All dictionaries of tensors in a weights file, by the keys that lead to them, such as "model" or "ema.module".

    The key of a file that is one dictionary of tensors is "". Values other than tensors are ignored. Raises UsageError
    where there is no file, DataError if it cannot be read or holds no tensors. Nothing in the file can run code.
    """
    path = check_file(file)
    content = _load_safetensors(path) if _is_safetensors(path) else _load_torch(path)
    states = dict(_find_states(content))
    if not states:
        raise DataError(
            f"{path} holds {type(content).__name__} without tensors; expected a dictionary of tensors: {SAVE}."
        )
    return states


def check_file(file: str | Path) -> Path:
    """The path of a weights file; raises UsageError if there is none, DataError for a file of another kind."""
    path = Path(file)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected a weights file (.safetensors or .pth).")
    if not path.is_file():
        url = "://" in str(file) or str(file).startswith(("hf-hub:", "hf_hub:"))
        known = "; download it first" if url else ""
        raise UsageError(f"{file} does not exist; expected a weights file (.safetensors or .pth){known}.")
    kind = _other_kind(path)
    if kind:
        raise _unsafe(path, kind)
    return path


def check_dense(path: str | Path, tensors: Mapping[Any, Tensor]) -> None:
    """Raise DataError for a tensor that no body has: sparse, complex, without data, or larger than its data."""
    odd = next((name for name, tensor in tensors.items() if not isinstance(name, str) or not _is_dense(tensor)), None)
    if odd is not None:
        raise DataError(f"{path} holds something other than a dense tensor of numbers at {odd!r}.")


def _unsafe(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not a weights file that can be read safely: {why}.")


def _other_kind(path: Path) -> str | None:
    """What a file is that holds no tensors of torch, with what to do about it; None if it may hold some."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return f"{error.strerror}"
    if not head:
        return "it is empty; download or copy it again"
    if path.suffix.lower() in _TOOLS:
        return _OTHER_TOOL.format(_TOOLS[path.suffix.lower()])
    if zipfile.is_zipfile(path):
        return _other_archive(path)
    return next((kind for start, kind in _BEGINNINGS.items() if head.lstrip().startswith(start)), None)


def _other_archive(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = {Path(name).name for name in archive.namelist()}
    if "constants.pkl" in names:
        return f"it is an archive of TorchScript, which holds code; where it was made, save its tensors with {SAVE}"
    if any(name.endswith(".npy") for name in names):
        return _OTHER_TOOL.format("NumPy")
    return None if "data.pkl" in names else "it is an archive of other files; unpack it and name the file in it"


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except Exception as error:
        # safetensors documents no list of what it raises for corrupt or forged bytes
        raise _unsafe(path, _DAMAGED) from error


def _load_torch(path: Path) -> Any:
    """The content of a .pth, in which objects of classes that torch does not know to be safe are not made."""
    named: list[str] = []
    try:
        named = _globals_of(path)
        harmful = next(filter(_is_harmful, named), None)
        if harmful is not None:
            raise _unsafe(path, f"it holds {harmful}, which could run code")
        with safe_globals([(_stand_in(name), name) for name in named]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:
        # torch documents no list of what it raises for corrupt or forged bytes
        raise _unsafe(path, _describe_objects(named) or _DAMAGED) from error
    if not any(_find_states(content)) and _describe_objects(named):
        raise _unsafe(path, _describe_objects(named))
    return content


def _globals_of(path: Path) -> list[str]:
    """The classes and functions that the pickles of a .pth name, in their order, without unpickling them."""
    if zipfile.is_zipfile(path):
        _check_unpacked(path)
        with zipfile.ZipFile(path) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
        streams: list[IO[bytes]] = [io.BytesIO(pickled) for pickled in pickles]
    else:
        # before torch 1.6: a magic number, a version, the system, the content
        streams = [io.BytesIO(path.read_bytes())] * 4
    found = [arg for each in streams for code, arg, _ in pickletools.genops(each) if code.name == "GLOBAL"]
    return list(dict.fromkeys(str(name).replace(" ", ".") for name in found))


def _stand_in(name: str) -> type:
    kind = name.split(".")[-1].lower()
    return _UnloadedDict if kind.endswith("dict") else _UnloadedList if kind.endswith(("list", "deque")) else _Unloaded


def _describe_objects(named: Sequence[str]) -> str:
    """The first object in a file that is not part of tensors, with what to save instead; nothing if all are."""
    parts = ("torch._utils.", "torch.storage", "collections.")
    first = next((n for n in named if not n.startswith(parts) and not n.endswith("Storage")), None)
    if first is None:
        return ""
    return (
        f"it holds a whole model or other objects ({first}), whose code would have to run; where it was made, save "
        f"its tensors alone with {SAVE}"
    )


def _is_harmful(name: str) -> bool:
    """Whether a global is one of Python's own that no settings need."""
    module = name.split(".")[0]
    return module in _PYTHON and not {module, name} & _HARMLESS


def _check_unpacked(path: Path) -> None:
    """Raise DataError for an archive that decompresses to more than its size."""
    with zipfile.ZipFile(path) as entries:
        unpacked = sum(entry.file_size for entry in entries.infolist())
    if unpacked > path.stat().st_size:
        raise _unsafe(path, f"it unpacks to {unpacked} bytes, which torch.save never does")


def _find_states(content: Any) -> Iterator[tuple[str, dict[Any, Tensor]]]:
    """The dictionaries of tensors in nested dictionaries and lists, the outer ones first."""
    # a file can hold a dictionary that contains itself
    queue, seen = deque([("", content)]), set()
    while queue:
        place, value = queue.popleft()
        if id(value) in seen or not isinstance(value, Mapping | list | tuple):
            continue
        seen.add(id(value))
        named = value if isinstance(value, Mapping) else dict(enumerate(value))
        tensors = {name: each for name, each in named.items() if isinstance(each, Tensor)}
        if isinstance(value, Mapping) and tensors:
            yield place, tensors
        queue.extend((f"{place}.{name}" if place else str(name), each) for name, each in named.items())


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor stores a number for each of its elements, so that it takes no more memory than its file."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.nbytes <= tensor.untyped_storage().nbytes()
