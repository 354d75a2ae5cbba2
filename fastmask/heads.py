"""Heads: the attributes of a photo, and the conversions between class names, class numbers and the joint class."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmask.system import limits
from fastmask.system.errors import DataError, UsageError
from fastmask.system.text import shorten_repr

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = -1
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?")
# the code of many tables for an unknown number, and how many times the last bound it is at least
_NINES, _FAR = re.compile(r"9{3,}(\.0*)?"), 5
# the word for all heads together
JOINT = "joint"
# columns of tables and of the files made from them
RESERVED = ("path", "person", "fold", "source", "same_as", "true", "predicted", JOINT)


def _is_line(text: str) -> bool:
    """Whether a text is one line that can be printed; the joiners in it belong to emoji and to some scripts."""
    return text.replace("\u200c", "").replace("\u200d", "").isprintable()


def _class_name(value: Any) -> str:
    """The name of a class that may be given as a number, as a table has it."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _is_code(cell: str, bounds: Sequence[float]) -> bool:
    """Whether a number is negative where all bounds are positive, or is 999, 9999 … and far above them."""
    return float(cell) < 0 < bounds[0] or (bool(_NINES.fullmatch(cell)) and float(cell) > _FAR * bounds[-1])


def number_of(head: str) -> str:
    """The name of the head that learns the number behind the classes of `head`."""
    return f"{head}_number"


def bands_of(head: str) -> str:
    """The name of the head that learns finer bands of the number behind the classes of `head`."""
    return f"{head}_bands"


def band_names(bounds: Sequence[float]) -> tuple[str, ...]:
    """The names of the bands between rising bounds: (20, 30) -> "<20", "20-30", "30+"; the upper end is not in it."""
    ends = [f"{bound:g}" for bound in bounds]
    return (f"<{ends[0]}", *(f"{low}-{high}" for low, high in pairwise(ends)), f"{ends[-1]}+")


@dataclass(frozen=True)
class Head:
    """One attribute of a photo: its name, its classes in the order of their numbers, its weight in the loss.

    `bounds` are set if the classes are bands of a number (an age in years): class i has bounds[i-1] <= number <
    bounds[i]. Training uses `train_bounds` if they are set, the score always `bounds`; a number outside `limits`, both
    included, is an error.

    Three kinds of heads are not part of the joint class, but learned next to its heads. With a `spread` the classes are
    rising whole numbers that are learned as a distribution: the target is a normal distribution with that standard
    deviation around the label. With `bands_of` the classes are finer bands of the head of that name, separated by
    `finer_bounds`, and the probabilities of that head are their sums. With a `joint_share` the classes are all joint
    classes, whose probabilities are mixed by that share with the product of the heads' own; with a share of 1 the
    heads' own are the sums of the joint ones.

    >>> age = fm.Head("age", ("<30", "30-60", "60+"), bounds=(30, 60))
    >>> age.band(np.array([18, 30, 71.5, np.nan]))
    array([ 0,  1,  2, -1])
    >>> age.encode("60+"), age.decode(0)
    (2, '<30')
    """

    name: str
    classes: tuple[str, ...]
    weight: float = 1.0
    bounds: tuple[float, ...] | None = None
    train_bounds: tuple[float, ...] | None = None
    limits: tuple[float, float] | None = None
    spread: float | None = None
    bands_of: str | None = None
    finer_bounds: tuple[float, ...] | None = None
    joint_share: float | None = None

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "classes", tuple(map(_class_name, self.classes)))
        if not self.name or len(self.classes) < 2 or len(set(self.classes)) < len(self.classes) or "" in self.classes:
            raise UsageError(
                f"Head {self.name!r} needs a name and two or more different classes, found {self.classes}."
            )
        bad = next((text for text in (self.name, *self.classes) if text != text.strip() or not _is_line(text)), None)
        if bad is not None:
            raise UsageError(f"Head {self.name!r} has a blank at an end or a line break in {bad!r}; take it out.")
        if self.name in RESERVED and self.joint_share is None:
            one = " To learn the joint class as one head, set one_head (--one-head)." if self.name == JOINT else ""
            raise UsageError(
                f"A head cannot be called {self.name!r}; {', '.join(RESERVED)} are reserved. Rename it.{one}"
            )
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"Head {self.name!r} has weight {self.weight}; expected 0 or more.")
        for field in ("bounds", "train_bounds", "finer_bounds"):
            self._check_bounds(field)
        if (self.bands_of is None) != (self.finer_bounds is None):
            raise UsageError(f"Head {self.name!r}: bands_of and finer_bounds belong together; give both or neither.")
        if self.spread is not None:
            object.__setattr__(self, "spread", float(self.spread))
            self._check_spread(float(self.spread))
        if self.joint_share is not None and (self.name != JOINT or not 0 < self.joint_share <= 1):
            raise UsageError(
                f"Head {self.name!r} has joint_share {self.joint_share}; expected above 0 to 1, of a head {JOINT!r}."
            )
        if self.limits is not None:
            limits = tuple(float(limit) for limit in self.limits)
            if len(limits) != 2 or not limits[0] <= limits[1]:
                raise UsageError(f"Head {self.name!r}: limits {limits} must be two rising numbers.")
            object.__setattr__(self, "limits", limits)

    def _check_types(self) -> None:
        given: tuple[Any, Any, Any] = self.name, self.classes, self.weight
        name, classes, weight = given
        if not isinstance(name, str):
            raise UsageError(f"A head has the name {shorten_repr(name)}; expected a text.")
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            expected = 'expected a list, such as ("small", "large")'
            raise UsageError(f"Head {name!r} has the classes {shorten_repr(classes)}; {expected}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float | np.number):
            raise UsageError(f"Head {name!r} has weight {shorten_repr(weight)}; expected 0 or more.")

    def _check_bounds(self, field: str) -> None:
        bounds = getattr(self, field)
        if bounds is None:
            return
        object.__setattr__(self, field, tuple(float(b) for b in bounds))
        rising = all(a < b for a, b in pairwise(bounds)) and all(map(math.isfinite, bounds))
        if len(bounds) != len(self.classes) - 1 or not rising:
            raise UsageError(
                f"Head {self.name!r}: {field} {tuple(bounds)} must be {len(self.classes) - 1} rising numbers, "
                f"one between each two of its {len(self.classes)} classes."
            )

    def _check_spread(self, spread: float) -> None:
        if not 0 < spread < math.inf:
            raise UsageError(f"Head {self.name!r} has spread {spread}; expected a number above 0.")
        whole = all(NUMBER.fullmatch(name) and "." not in name for name in self.classes)
        if self.bounds is not None or not whole or sorted(self.classes, key=int) != list(self.classes):
            raise UsageError(f"Head {self.name!r} is a distribution: its classes must be rising whole numbers.")

    @property
    def is_auxiliary(self) -> bool:
        """Whether the head is not part of the joint class, but learned next to its heads."""
        return not (self.spread is None and self.bands_of is None and self.joint_share is None)

    @property
    def numbers(self) -> np.ndarray:
        """(classes,) the numbers of a distribution."""
        return np.array(self.classes, dtype=np.float64)

    def encode(self, name: str) -> int:
        """The number of the class called `name`; "" is UNKNOWN (-1); raises DataError for any other name."""
        if name == "":
            return UNKNOWN
        if name not in self.classes:
            raise DataError(f"{self.name} {name!r} is not one of {', '.join(self.classes)}.")
        return self.classes.index(name)

    def encode_all(self, names: Iterable[str]) -> dict[str, int]:
        """The number of each of many names, as `encode` gives each."""
        codes = {name: code for code, name in enumerate(self.classes)}
        return {name: codes[name] if name in codes else self.encode(name) for name in names}

    def decode(self, code: int) -> str:
        """The name of class number `code`; UNKNOWN (-1) is ""."""
        return "" if code == UNKNOWN else self.classes[code]

    def decode_all(self, codes: np.ndarray) -> np.ndarray:
        """(N,) class numbers -> (N,) class names, as `decode` gives each."""
        # index -1 is the last one
        return np.array([*self.classes, ""], dtype=object)[codes]

    def read(self, cell: str) -> tuple[str, float]:
        """A cell of a table -> (class name, number): "" and NaN if unknown, NaN if the head has no bounds.

        Raises DataError for an unknown class or, if the head has bounds, for a cell that is not a number, is outside
        the limits, or without limits looks like a code for an unknown number, such as -1 or 999.
        """
        if cell == "":
            return "", float("nan")
        if self.bounds is None:
            if cell not in self.classes:
                raise DataError(f"found {cell!r}, expected one of {', '.join(self.classes)}, or nothing if unknown.")
            return cell, float("nan")
        if NUMBER.fullmatch(cell) is None:
            raise DataError(f"found {cell!r}, expected a number, from which the class of {self.name} follows.")
        if self.limits and not self.limits[0] <= float(cell) <= self.limits[1]:
            raise DataError(f"found {cell!r}, expected a number from {self.limits[0]:g} to {self.limits[1]:g}.")
        if self.limits is None and _is_code(cell, self.bounds):
            low, high = min(float(cell), 0), max(float(cell), 10 * self.bounds[-1])
            raise DataError(
                f"found {cell!r}, which looks like a code for unknown; empty the cell, or, if it is a number of "
                f"{self.name}, give the head limits next to its bounds, such as limits: [{low:g}, {high:g}]."
            )
        return self.decode(int(self.band(np.array([float(cell)]))[0])), float(cell)

    def band(self, numbers: np.ndarray, training: bool = False) -> np.ndarray:
        """(N,) numbers -> (N,) class numbers by the bounds; NaN is UNKNOWN."""
        if self.bounds is None:
            raise UsageError(f"Head {self.name!r} has no bounds, so no class follows from a number.")
        bounds = self.train_bounds if training and self.train_bounds else self.bounds
        return np.where(np.isnan(numbers), UNKNOWN, np.digitize(numbers, bounds)).astype(np.int64)


class Heads(Sequence[Head]):
    """The heads of a data set in order; splits logits and joins classes.

    The joint class is the mixed-radix number of the heads' classes, the first head the most significant: for
    (mask, gender, age) with 3, 2, 3 classes it is mask*6 + gender*3 + age. `joined` are the positions of its heads: all
    that are not auxiliary.

    >>> heads = fm.contest_heads()
    >>> heads.names, heads.sizes
    (('mask', 'gender', 'age'), (3, 2, 3))
    >>> heads.joint(np.array([[0, 1, 2], [2, 0, 0]]))
    array([ 5, 12])
    >>> heads.joint_name(5)
    'wear female 60+'
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self._heads = tuple(heads)
        if not self._heads:
            raise UsageError("At least one head is needed.")
        if len({h.name for h in self._heads}) < len(self._heads):
            raise UsageError(f"Two heads share a name: {', '.join(h.name for h in self._heads)}.")
        twice = next((c for c, times in Counter(self.columns).items() if times > 1), None)
        if twice is not None:
            raise UsageError(f"Two heads have classes that are both called {twice!r} in tables; rename one.")
        self.sizes = tuple(len(h.classes) for h in self._heads)
        self.offsets = (0, *accumulate(self.sizes))
        self.n_logits = self.offsets[-1]
        self.joined = tuple(i for i, head in enumerate(self._heads) if not head.is_auxiliary)
        if not self.joined:
            raise UsageError(f"{', '.join(self.names)}: at least one head of the joint class is needed.")
        self._joint_sizes = tuple(self.sizes[i] for i in self.joined)
        self.n_joint = math.prod(self._joint_sizes)
        if self.n_joint > limits.JOINT_CLASSES:
            raise UsageError(
                f"{len(self)} heads of {', '.join(map(str, self.sizes))} classes make more joint classes than a 64-bit "
                "number counts; train some of the heads, then the others."
            )

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._heads[self.position(key)]
        return self._heads[key]

    def __len__(self) -> int:
        return len(self._heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self._heads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Heads) and self._heads == other._heads

    def __hash__(self) -> int:
        return hash(self._heads)

    def __repr__(self) -> str:
        return "Heads(" + "; ".join(f"{h.name}: {', '.join(h.classes)}" for h in self._heads) + ")"

    @property
    def names(self) -> tuple[str, ...]:
        """The heads' names in order."""
        return tuple(h.name for h in self._heads)

    @property
    def classified(self) -> tuple[str, ...]:
        """The names of the heads of the joint class, which are scored."""
        return tuple(self._heads[i].name for i in self.joined)

    @property
    def unlearned(self) -> tuple[str, ...]:
        """The names of the heads of the joint class with weight 0: their predictions are meaningless."""
        return tuple(self._heads[i].name for i in self.joined if not self._heads[i].weight)

    @property
    def columns(self) -> list[str]:
        """The column name of each logit, such as "mask.wear"."""
        return [f"{h.name}.{c}" for h in self._heads for c in h.classes]

    @property
    def joined_columns(self) -> list[int]:
        """The columns in the logits of the heads of the joint class."""
        return [j for i in self.joined for j in range(self.offsets[i], self.offsets[i + 1])]

    @property
    def joint_head(self) -> int | None:
        """The position of the head of the joint class, if there is one."""
        return next((i for i, head in enumerate(self._heads) if head.joint_share is not None), None)

    @property
    def joint_share(self) -> float:
        """The part of a joint head in the joint probability: 0 without one, 1 if the heads' own are its sums."""
        return 0.0 if self.joint_head is None else float(self._heads[self.joint_head].joint_share or 0)

    def merges(self, position: int) -> tuple[int, np.ndarray] | None:
        """The position of the head whose classes a head merges, and the class that each of these becomes.

        None for a head with logits of its own.
        """
        head = self._heads[position]
        finer = next((i for i, other in enumerate(self._heads) if other.bands_of == head.name), None)
        if finer is not None:
            lower = np.array([-math.inf, *(self._heads[finer].finer_bounds or ())])
            return finer, head.band(lower, training=True)
        if self.joint_head is None or self.joint_share != 1 or position not in self.joined:
            return None
        return self.joint_head, self.unjoint(np.arange(self.n_joint))[:, position]

    @property
    def merged(self) -> dict[str, str]:
        """The heads without logits of their own, each with the head whose classes it merges; see `merges`."""
        found = {head.name: self.merges(i) for i, head in enumerate(self._heads)}
        return {name: self._heads[merge[0]].name for name, merge in found.items() if merge is not None}

    def position(self, name: str) -> int:
        """The index of the head called `name`; raises UsageError listing the heads if there is none."""
        if name not in self.names:
            raise UsageError(f"There is no head {name!r}; the heads are {', '.join(self.names)}.")
        return self.names.index(name)

    def encode(self, names: Sequence[str]) -> tuple[int, ...]:
        """One class name per head -> one class number per head; "" is UNKNOWN (-1)."""
        return tuple(h.encode(n) for h, n in zip(self._heads, names, strict=True))

    def encode_frame(self, frame: pd.DataFrame) -> np.ndarray:
        """A frame with a column of class names per head -> (N, heads) int64 class numbers; "" is UNKNOWN (-1)."""
        columns = [frame[head.name].map(head.encode_all(frame[head.name].unique())) for head in self._heads]
        return np.stack([column.to_numpy(np.int64) for column in columns], axis=1)

    def decode(self, codes: Sequence[int]) -> tuple[str, ...]:
        """One class number per head -> one class name per head; UNKNOWN (-1) is ""."""
        return tuple(h.decode(int(c)) for h, c in zip(self._heads, codes, strict=True))

    def split(self, logits: Any) -> list[Any]:
        """(..., n_logits) array or tensor -> a (..., classes) view per head."""
        if logits.shape[-1] != self.n_logits:
            raise ValueError(f"expected {self.n_logits} columns, one per class of {self!r}, found {logits.shape[-1]}")
        return [logits[..., a:b] for a, b in pairwise(self.offsets)]

    def joint(self, y: Any) -> Any:
        """(..., heads) class numbers -> (...) joint class; UNKNOWN if any of its heads is unknown."""
        joint, known = y[..., 0] * 0, y[..., self.joined[0]] >= 0
        for i, size in zip(self.joined, self._joint_sizes, strict=True):
            joint = joint * size + y[..., i]
            known = known & (y[..., i] >= 0)
        return joint * known - (~known) * 1

    def unjoint(self, joint: np.ndarray) -> np.ndarray:
        """(N,) joint class -> (N, heads) class numbers; UNKNOWN for other auxiliary heads, and where it is UNKNOWN."""
        joint = np.asarray(joint, dtype=np.int64)
        known = np.where(joint < 0, 0, joint)
        y = np.full((*joint.shape, len(self)), UNKNOWN, np.int64)
        y[..., self.joined] = np.stack(np.unravel_index(known, self._joint_sizes), axis=-1)
        if self.joint_head is not None:
            y[..., self.joint_head] = joint
        return np.where(joint[..., None] < 0, UNKNOWN, y)

    def joint_name(self, joint: int) -> str:
        """The name of a joint class, such as "wear female 60+"; "" for UNKNOWN."""
        codes = self.unjoint(np.array([joint]))[0]
        return " ".join(filter(None, (self._heads[i].decode(codes[i]) for i in self.joined)))

    def joint_names(self) -> list[str]:
        """The names of all joint classes in order; their number grows exponentially with the heads."""
        return [" ".join(names) for names in product(*(self._heads[i].classes for i in self.joined))]

    def joint_probabilities(self, probabilities: Any) -> Any:
        """(N, n_logits) probabilities -> (N, n_joint): the product over the heads, as if independent.

        With a joint head, its probabilities: mixed with the product by its share, alone with a share of 1.
        """
        parts = self.split(probabilities)
        own, share = None if self.joint_head is None else parts[self.joint_head], self.joint_share
        if share == 1:
            return own
        joint = parts[self.joined[0]]
        for part in (parts[i] for i in self.joined[1:]):
            joint = (joint[..., :, None] * part[..., None, :]).reshape(*joint.shape[:-1], -1)
        return joint if own is None else share * own + (1 - share) * joint

    def probabilities_for(self, head: Head, probabilities: np.ndarray) -> np.ndarray | None:
        """(N, n_logits) probabilities of these heads -> those of the classes of `head`, of another run; None without.

        Of a joint head, which these need not have, they are the joint ones; of a distribution over a number, None.
        """
        if head.joint_share is not None and head.classes == tuple(self.joint_names()):
            return np.asarray(self.joint_probabilities(probabilities))
        if head.name not in self.names or head.spread is not None:
            return None
        return self.split(probabilities)[self.position(head.name)]

    def sum_joint(self, joint: np.ndarray) -> list[np.ndarray]:
        """(..., n_joint) probabilities -> the (..., classes) sums of each head of the joint class."""
        whole, places = joint.reshape(*joint.shape[:-1], *self._joint_sizes), range(-len(self.joined), 0)
        return [whole.sum(axis=tuple(place for place in places if place != own)) for own in places]

    def choose(self, probabilities: Any) -> list[Any]:
        """(N, n_logits) probabilities, of numpy or torch -> (N,) predicted class of each head.

        It is the most probable one. With a joint head it is that of the most probable joint class, so a head's class
        may be another than its most probable one. With a joint head of share 1, or without one, logits do as well.
        """
        chosen = [part.argmax(-1) for part in self.split(probabilities)]
        if self.joint_head is not None:
            rest = chosen[self.joint_head] = self.joint_probabilities(probabilities).argmax(-1)
            for i, size in reversed(list(zip(self.joined, self._joint_sizes, strict=True))):
                chosen[i], rest = rest % size, rest // size
        return chosen

    def argmax(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, n_logits) probabilities -> (N, heads) predicted class of each head, as `choose` gives them.

        Its joint class is also the most probable one of `joint_probabilities`.
        """
        return np.stack(self.choose(probabilities), axis=-1)

    def harden(self, labels: np.ndarray) -> np.ndarray:
        """(..., n_logits) soft labels -> (..., heads) the class of highest weight; UNKNOWN if all are 0."""
        parts = self.split(labels)
        known = np.stack([part.sum(-1) > 0 for part in parts], axis=-1)
        # not `argmax`: the joint class may be unknown where some of its heads are known
        return np.where(known, np.stack([part.argmax(-1) for part in parts], axis=-1), UNKNOWN)

    def to_plain(self) -> list[dict[str, Any]]:
        """The heads as lists and plain values, for YAML and JSON."""
        return [
            {name: list(value) if isinstance(value, tuple) else value for name, value in vars(head).items()}
            for head in self._heads
        ]

    @classmethod
    def from_plain(cls, plain: Sequence[Mapping[str, Any]]) -> Heads:
        """The inverse of `to_plain`; raises UsageError for any other value."""
        if not isinstance(plain, list) or not all(map(_is_plain, plain)):
            raise UsageError("The heads are not a list of names, classes, weights and bounds.")
        return cls([Head(**head) for head in plain])


def _is_plain(head: Any) -> bool:
    """Whether a value read from a file has the form of a head."""
    if not isinstance(head, dict) or not {"name", "classes"} <= set(head) <= set(Head.__dataclass_fields__):
        return False
    numbers = [head.get(name) or [] for name in ("bounds", "train_bounds", "limits", "finer_bounds")]
    return (
        isinstance(head["name"], str)
        and isinstance(head["classes"], list)
        and all(isinstance(name, str) for name in head["classes"])
        and all(isinstance(row, list) for row in numbers)
        and all(type(n) in (int, float) for row in [*numbers, [head.get("weight", 1.0)]] for n in row)
        and all(type(head.get(name)) in (int, float, type(None)) for name in ("spread", "joint_share"))
        and isinstance(head.get("bands_of"), str | None)
    )
