import json
from functools import partial

import fastai.optimizer
import pytest
import torch
from torch import nn

from fastmask.model.optim import list_optimizers, live_opt, named_opt
from fastmask.system.errors import UsageError
from fastmask.training.optimizer_state import check_optimizer, encode_optimizer, restore_optimizer, state_bytes

CPU = torch.device("cpu")
# of other hardware or packages, of gradients of gradients; kron compiles itself, which takes a minute
LEFT_OUT = ("bnb", "fused", "adahessian", "kron")
NAMES = [name for name in list_optimizers() if not name.startswith(LEFT_OUT)]


@pytest.mark.parametrize("name", [*NAMES, "lookahead_adamw", "lookahead_lamb"])
def test_every_optimizer_resumes_bit_for_bit(name):
    check_optimizer(live_opt(named_opt(name)), CPU)


@pytest.mark.parametrize("opt_func", [fastai.optimizer.Adam, fastai.optimizer.Lamb, torch.optim.NAdam])
def test_so_do_fastai_s_own_and_classes_of_torch(opt_func):
    check_optimizer(live_opt(opt_func), CPU)


class Forgetful(torch.optim.SGD):
    """Counts its steps outside of its state."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.steps
        return super().step(closure)


class Failing(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("no step today")


class Odd(torch.optim.SGD):
    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["what"] = object()


@pytest.mark.parametrize(
    ("opt_func", "message"),
    [
        (Forgetful, "outside its state_dict"),
        (Failing, "The optimizer fails .no step today"),
        (Odd, "its state has a object, which cannot be saved"),
        (partial(torch.optim.SGD, nesterov=True), "Nesterov momentum requires"),
        (torch.optim.LBFGS, "LBFGS doesn't support"),
    ],
)
def test_one_that_fails_or_would_not_resume_is_refused(opt_func, message):
    with pytest.raises(UsageError, match=message):
        check_optimizer(live_opt(opt_func), CPU)


class Nested(torch.optim.Optimizer):
    """A state of every form: lists, tuples, mappings by number, other dtypes, functions among the options."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "curve": lambda x: x, "dtype": torch.bfloat16})

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p] = {
                "step": 3,
                "halves": [torch.ones(2, dtype=torch.bfloat16) / 3, (torch.tensor(5), None)],
                "by number": {4: torch.arange(3), 7: "text"},
            }


def test_a_state_of_any_form_is_the_same_after_json():
    weight = nn.Parameter(torch.randn(2, 3))
    opt, other = (live_opt(Nested)([[weight]], lr=0.1) for _ in range(2))
    opt.step()
    opt.set_hyper("lr", 0.7)
    saved, tensors = encode_optimizer(opt), {}

    def plain(value):
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value
            return f"tensor {len(tensors) - 1}"
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    def whole(value):
        if isinstance(value, dict):
            return {key: whole(each) for key, each in value.items()}
        if isinstance(value, list):
            return [whole(each) for each in value]
        return tensors[value.split()[1]] if isinstance(value, str) and value.startswith("tensor ") else value

    restore_optimizer(other, whole(json.loads(json.dumps(plain(saved)))))
    (state,) = other.opt.state.values()
    assert state["step"] == 3
    halves, (number, nothing) = state["halves"]
    assert halves.dtype == torch.bfloat16
    assert torch.equal(halves, torch.ones(2, dtype=torch.bfloat16) / 3)
    assert (number.dtype, int(number), nothing) == (torch.int64, 5, None)
    assert list(state["by number"]) == [4, 7]
    assert other.hypers[0]["lr"] == 0.7
    assert callable(other.opt.param_groups[0]["curve"])


def test_the_bytes_of_a_state_are_counted():
    weight = nn.Parameter(torch.ones(10, 10))
    opt = live_opt(named_opt("adam"))([[weight]], lr=0.1)
    assert state_bytes(opt) == 0
    weight.grad = torch.ones_like(weight)
    opt.step()
    # two averages, and the number of steps
    assert state_bytes(opt) == 2 * 400 + 4
