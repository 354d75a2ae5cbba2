"""Optimizers for fastai's Learner by name, and the learning rates of their groups of parameters."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import timm.optim
import torch
from fastai.optimizer import OptimWrapper, set_item_pg
from torch.optim import Optimizer

from fastmask.model.adamp import AdamP
from fastmask.system.errors import UsageError, one_line
from fastmask.system.text import shorten_repr

# the optimizers that are not taken from timm's factory: ours, and torch's that timm leaves out
_OWN: dict[str, type[Optimizer]] = {"adamp": AdamP, "asgd": torch.optim.ASGD, "rprop": torch.optim.Rprop}
_REFUSED = {"lbfgs": "computes the loss several times per step, by a closure", "sparseadam": "takes sparse gradients"}
# arguments that are settings of their own
_SETTINGS = {"lr": "lr", "weight_decay": "wd"}
# hyper-parameters by fastai's names that an optimizer may not have; schedules set them where it has
_OPTIONAL = {"mom", "sqr_mom", "wd"}
_LOOKAHEAD = "lookahead_"
# suggested for an unknown name
_NAMED = 3
# timm's factory sets it, whatever the default of the optimizer
_MOMENTUM = 0.9
# words of an annotation -> a value of that kind
_LIKES: dict[str, Any] = {"bool": True, "float": 0.5, "int": 1, "str": "", "Tuple": (0.5, 0.5)}


def list_optimizers() -> list[str]:
    """The names of the optimizers: those of timm's factory, and torch's that it leaves out."""
    return sorted({*timm.optim.list_optimizers(), *_OWN})


def optimizer_class(name: str) -> type[Optimizer]:
    """The class of an optimizer of `list_optimizers`, or of one after the prefix lookahead_.

    Raises UsageError with the nearest names for an unknown one, and where a package or a GPU that it needs is missing.
    """
    plain = name.removeprefix(_LOOKAHEAD)
    if plain in _REFUSED:
        raise UsageError(f"Optimizer {name} {_REFUSED[plain]}, which fastmask does not do; choose another --opt.")
    if plain == "sam":
        raise UsageError(
            "SAM is taken around any optimizer, by a setting of its own: --sam 0.05, with the --opt inside."
        )
    if plain not in list_optimizers():
        near = difflib.get_close_matches(plain, list_optimizers(), n=_NAMED, cutoff=0.5) or ["adamw", "sgd", "radam"]
        raise UsageError(
            f"There is no optimizer {shorten_repr(name)}; expected adamp or one of timm's, such as {', '.join(near)}."
        )
    if plain in _OWN and name == plain:
        return _OWN[plain]
    try:
        found: Any = timm.optim.get_optimizer_class(plain, bind_defaults=False)
    except (AssertionError, ImportError, ValueError) as error:
        raise UsageError(f"Optimizer {name} cannot be used here ({one_line(error)}); choose another --opt.") from error
    return found  # type: ignore[no-any-return]


def optimizer_arguments(name: str) -> dict[str, Any]:
    """The arguments of an optimizer with their defaults, without those that are settings of their own."""
    found = {word: one.default for word, one in _parameters(name).items()}
    if name not in _OWN:
        info = timm.optim.get_optimizer_info(name.removeprefix(_LOOKAHEAD))
        found |= {**({"momentum": _MOMENTUM} if info.has_momentum else {}), **(info.defaults or {})}
    return found


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of an optimizer's constructor: that of the base class where one passes all of them on."""
    for one in optimizer_class(name).__mro__:
        found = inspect.signature(one.__init__).parameters  # type: ignore[misc]
        if "__init__" in vars(one) and all(each.kind != each.VAR_KEYWORD for each in found.values()):
            return {word: each for word, each in found.items() if word not in ("self", "params", *_SETTINGS)}
    return {}


def has_weight_decay(name: str) -> bool:
    """Whether an optimizer has a weight decay."""
    return "weight_decay" in inspect.signature(optimizer_class(name).__init__).parameters or name == "adamp"


def check_arguments(name: str, given: Mapping[str, Any]) -> None:
    """Raise UsageError for arguments that an optimizer does not take, or whose type is wrong."""
    arguments = optimizer_arguments(name)
    for word, value in given.items():
        if word in _SETTINGS:
            raise UsageError(f"opt_args has {word}, which is the setting {_SETTINGS[word]}: give --{_SETTINGS[word]}.")
        if word not in arguments:
            raise UsageError(
                f"Optimizer {name} has no argument {shorten_repr(word)}; it takes {_in_words(arguments) or 'none'}."
            )
        kinds = str(_parameters(name)[word].annotation) if arguments[word] is None else ""
        if not _is_like(value, arguments[word], kinds):
            raise UsageError(
                f"Argument {word} of optimizer {name} is {shorten_repr(value)}; expected a value such as "
                f"{_in_words({word: arguments[word]})}. It takes {_in_words(arguments)}."
            )


def _in_words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_spell(default)}" for name, default in arguments.items())


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_spell, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_like(value: Any, default: Any, kinds: str = "") -> bool:
    """Whether a value can replace a default of an argument; if that is None, by the `kinds` of its annotation."""
    if default is None:
        likes = [like for kind, like in _LIKES.items() if re.search(rf"\b{kind}\b", kinds)]
        return value is None or not kinds or any(_is_like(value, like) for like in likes)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, tuple):
        whole = isinstance(value, list | tuple) and len(value) == len(default)
        return whole and all(map(_is_like, value, default))
    return isinstance(value, type(default))


def named_opt(name: str = "adamp", **arguments: Any) -> Callable[..., Optimizer]:
    """A function of groups of parameters and a learning rate that makes an optimizer.

    Weight decay applies to every weight, which timm's factory filters only where it is given a whole network. Raises
    UsageError for an unknown name and for arguments that the optimizer does not take.
    """
    check_arguments(name, arguments)
    given: dict[str, Any] = {
        word: tuple(value) if isinstance(value, list) else value for word, value in arguments.items()
    }
    if name in _OWN:
        return partial(_OWN[name], **given)
    return partial(timm.optim.create_optimizer_v2, opt=name, **given)


class GroupHypers(dict[str, Any]):
    """The hyper-parameters of one group by fastai's names; changes are written to the optimizer."""

    def __init__(self, values: dict[str, Any], group: dict[str, Any], names: dict[str, str]) -> None:
        super().__init__(values)
        self.group, self.names = group, names

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        set_item_pg(self.group, self.names[name], value)


class LiveOptim(OptimWrapper):
    """fastai's wrapper of a torch optimizer, with writable `hypers`.

    fastai's own optimizers have them, and its ReduceLROnPlateau writes to them, which has no effect on the wrapper. A
    learning rate that is set for all groups at once is multiplied by the `lr_scales`, one per group, if given.
    """

    def __init__(self, *args: Any, lr_scales: Sequence[float] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lr_scales = tuple(lr_scales)
        if self.lr_scales:
            self.set_hyper("lr", self.opt.defaults["lr"])

    def set_hyper(self, k: str, v: Any) -> None:
        """Set a hyper-parameter, to one value or one per group; momentum and weight decay only where there are any."""
        if k == "lr" and self.lr_scales and isinstance(v, int | float):
            v = [v * scale for scale in self.lr_scales]
        if k in self.bwd_map or k not in _OPTIONAL:
            super().set_hyper(k, v)

    def _set_hyper(self, k: str, v: Sequence[Any]) -> None:
        # Muon has a momentum, and betas for the parameters that it leaves to AdamW
        names = [name for name, its in self.fwd_map.items() if its == k] or [self.bwd_map[k]]
        for group, value in zip(self.opt.param_groups, v, strict=True):
            for name in names:
                set_item_pg(group, name, value)

    @property
    def hypers(self) -> list[GroupHypers]:
        """A dictionary per group."""
        groups = self.opt.param_groups
        return [GroupHypers(*pair, self.bwd_map) for pair in zip(super().hypers, groups, strict=True)]


def live_opt(opt_func: str | Callable[..., Any] = "adamp", lr_scales: Sequence[float] = ()) -> Callable[..., Any]:
    """fastai's `opt_func` of an optimizer, with the `lr_scales` of `LiveOptim`.

    `opt_func` is a name of `list_optimizers`, the result of `named_opt`, a class of torch optimizers, a
    `functools.partial` of one, or an `opt_func` as fastai has them.
    """
    make = named_opt(opt_func) if isinstance(opt_func, str) else opt_func
    return partial(_make_live, make=make, lr_scales=tuple(lr_scales))


def _make_live(
    params: Any, lr: float, make: Callable[..., Any], lr_scales: Sequence[float] = (), **options: Any
) -> Any:
    if _takes_groups(make):
        return LiveOptim(params, opt=make, lr=lr, lr_scales=lr_scales, **options)
    made = make(params, lr=lr, **options)
    if isinstance(made, Optimizer):
        return LiveOptim(opt=made, lr_scales=lr_scales)
    if not lr_scales:
        return made
    if not isinstance(made, OptimWrapper):
        raise UsageError("layer_decay needs a torch optimizer, and this opt_func makes one of fastai's own.")
    return LiveOptim(opt=made.opt, lr_scales=lr_scales)


def _takes_groups(make: Any) -> bool:
    """Whether a function takes torch's groups of parameters, where fastai passes lists."""
    while isinstance(make, partial):
        make = make.func
    return make is timm.optim.create_optimizer_v2 or (isinstance(make, type) and issubclass(make, Optimizer))


def check_steps(optimizer: Any) -> None:
    """Raise UsageError for an optimizer that cannot be stepped as fastai steps it: once after a backward pass."""
    inner = optimizer.opt if isinstance(optimizer, OptimWrapper) else optimizer
    for why in _flaws(inner):
        raise UsageError(f"{type(inner).__name__} {why}, which fastmask does not do; choose another optimizer.")


def _flaws(optimizer: Any) -> Iterator[str]:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        yield "computes the loss several times per step, by a closure"
    if getattr(optimizer, "is_second_order", False):
        yield "needs gradients of gradients"
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        yield "has a mode for training and one for validation"
