"""Optimizer state: the state of any optimizer as plain values and tensors, and back bit for bit.

torch's own `load_state_dict` casts averages to the dtype of their weights, and loses their memory format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fastcore.foundation import L
from torch import Tensor, nn

from fastmask.model.optim import check_steps
from fastmask.system.errors import UsageError, one_line

# the only keys of mappings that stand for a value that is no mapping with texts as keys
_TENSOR, _TUPLE, _PAIRS, _DTYPE = "(tensor)", "(tuple)", "(pairs)", "(dtype)"
# steps before and after the state is saved in a trial, and their learning rate
_STEPS, _LR = 2, 1e-2


def encode_optimizer(optimizer: Any) -> dict[str, Any]:
    """The state of a fastai optimizer, or of the torch optimizer in one: lists, mappings, plain values, tensors.

    Options of groups that cannot be saved, such as functions, are left out; other such values raise TypeError.
    """
    saved = dict(optimizer.state_dict())
    device = optimizer.param_lists[0][0].device
    options = "param_groups" if "param_groups" in saved else "hypers"
    groups = [{k: v for k, v in group.items() if _is_plain(v, device)} for group in saved[options]]
    return {
        key: _encode(groups if key == options else list(value) if isinstance(value, L) else value, device)
        for key, value in saved.items()
        if key != "state"
    } | {"state": {str(number): _encode(each, device) for number, each in _numbered(saved["state"])}}


def restore_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Restore what `encode_optimizer` returned, with every dtype, memory format and place as it was."""
    device = optimizer.param_lists[0][0].device
    restored = {key: _decode(value, device) for key, value in saved.items() if key != "state"}
    state = {_number(key): _decode(value, device) for key, value in saved["state"].items()}
    if "param_groups" not in restored:
        optimizer.load_state_dict({**restored, "state": list(state.values())})
        return
    now = optimizer.state_dict()["param_groups"]
    groups = [{**group, **each} for group, each in zip(now, restored["param_groups"], strict=True)]
    optimizer.load_state_dict({**restored, "param_groups": groups, "state": state})
    for number, each in optimizer.state_dict()["state"].items():
        # the mapping itself, not a copy
        each.update(state[number])


def _numbered(state: Any) -> list[tuple[Any, Any]]:
    return list(state.items() if isinstance(state, Mapping) else enumerate(state))


def _number(key: str) -> Any:
    return int(key) if key.isdecimal() else key


def _is_plain(value: Any, device: torch.device) -> bool:
    try:
        _encode(value, device)
    except TypeError:
        return False
    return True


def _encode(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return _encode_tensor(value, device)
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(each, device) for each in value]}
    if isinstance(value, list):
        return [_encode(each, device) for each in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _encode(each, device) for key, each in value.items()}
        return {_PAIRS: [[_encode(key, device), _encode(each, device)] for key, each in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"its state has a {type(value).__name__}, which cannot be saved")


def _encode_tensor(tensor: Tensor, device: torch.device) -> Any:
    """A tensor with the order of its dimensions in memory, and whether it is apart from the weights, on the host."""
    tensor = tensor.detach()
    strides = list(tensor.stride())
    order = sorted(range(tensor.ndim), key=lambda dim: (-strides[dim], dim))
    return {_TENSOR: tensor, "shape": list(tensor.shape), "order": order, "host": tensor.device != device}


def _decode(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_decode(each, device) for each in value]
    if not isinstance(value, Mapping):
        return value
    if _TENSOR in value:
        return _decode_tensor(value, device)
    if _TUPLE in value:
        return tuple(_decode(each, device) for each in value[_TUPLE])
    if _DTYPE in value:
        return getattr(torch, value[_DTYPE])
    if _PAIRS in value:
        return {_decode(key, device): _decode(each, device) for key, each in value[_PAIRS]}
    return {key: _decode(each, device) for key, each in value.items()}


def _decode_tensor(value: Mapping[str, Any], device: torch.device) -> Tensor:
    tensor, order = value[_TENSOR], value["order"]
    if list(tensor.shape) != value["shape"] or sorted(order) != list(range(tensor.ndim)):
        raise ValueError(f"a tensor of the optimizer is {tuple(tensor.shape)}, expected {tuple(value['shape'])}")
    inverse = [order.index(dim) for dim in range(tensor.ndim)]
    moved: Tensor = tensor if value["host"] else tensor.to(device)
    return moved.permute(order).contiguous().permute(inverse)


def state_bytes(optimizer: Any) -> int:
    """The bytes of the tensors of an optimizer's state."""
    found, total = [encode_optimizer(optimizer)["state"]], 0
    while found:
        value = found.pop()
        total += value.nbytes if isinstance(value, Tensor) else 0
        found += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return total


def check_optimizer(opt_func: Callable[..., Any], device: torch.device) -> None:
    """Raise UsageError for fastai's `opt_func` of an optimizer that fails, or that would not resume bit for bit.

    It is tried on a few small weights: some steps, then more of them with its state saved and restored.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            whole, resumed = (_trial(opt_func, device, resumes) for resumes in (False, True))
    except UsageError:
        raise
    except Exception as error:
        # whatever the code of an optimizer raises
        raise UsageError(f"The optimizer fails ({one_line(error)}); choose another, or other opt_args.") from error
    if not all(map(torch.equal, whole, resumed)):
        raise UsageError(
            "The optimizer keeps something outside its state_dict, so that training would not resume exactly; choose "
            "another one."
        )


def _trial(opt_func: Callable[..., Any], device: torch.device, resumes: bool) -> list[Tensor]:
    """The weights after a few steps, with a new optimizer in their middle that resumes from the state of the first."""
    torch.manual_seed(0)
    shapes: Sequence[tuple[int, ...]] = ((4, 2, 3, 3), (4, 4), (4,))
    weights = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    weights[0].data = weights[0].data.to(memory_format=torch.channels_last)
    optimizer = opt_func([[weights[0]], weights[1:]], lr=_LR)
    check_steps(optimizer)
    for number in range(2 * _STEPS):
        if number == _STEPS and resumes:
            saved = encode_optimizer(optimizer)
            optimizer = opt_func([[weights[0]], weights[1:]], lr=_LR)
            restore_optimizer(optimizer, saved)
        torch.manual_seed(number)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return [weight.detach() for weight in weights]
