"""Labels: soft labels, the weight of each class of a photo, (B, classes of all heads) float.

The weights of a head sum to 1 for each photo, to another number if its label is weighted, to 0 if it is unknown. For a
teacher at a temperature they are (B, 2, classes of all heads), two parts that together are the label: the share of the
photo's own label, and that of the teacher's probabilities, which the loss compares at the temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmask.heads import UNKNOWN, Heads


def soft_labels(y: Tensor, heads: Heads) -> Tensor:
    """(B, heads) class numbers -> (B, classes of all heads) soft labels: 1 for a head's class, all 0 if unknown.

    Labels that are soft already are returned as they are.

    >>> fm.soft_labels(torch.tensor([[0, 1, -1]]), fm.contest_heads())
    tensor([[1., 0., 0., 0., 1., 0., 0., 0.]])
    """
    if y.is_floating_point():
        return y
    known = (y != UNKNOWN).float()
    parts = [
        # not F.one_hot, which waits for a GPU
        known.new_zeros(len(y), size).scatter_(1, y[:, i : i + 1].clamp(min=0), known[:, i : i + 1])
        for i, size in enumerate(heads.sizes)
    ]
    return torch.cat(parts, dim=1)


def hard_labels(labels: Tensor, heads: Heads, least: float = 0.0) -> Tensor:
    """The inverse of `soft_labels`: the class of most weight of each head, (B, heads); class numbers are returned.

    It is UNKNOWN unless it has more than a share `least` of the head's weight.
    """
    if not labels.is_floating_point():
        return labels
    parts = heads.split(join_parts(labels))
    return torch.stack([_clear(part, least) for part in parts], dim=-1)


def _clear(part: Tensor, least: float) -> Tensor:
    weight, code = part.max(-1)
    return code.where(weight > least * part.sum(-1), UNKNOWN)


def join_parts(labels: Tensor) -> Tensor:
    """(B, 2, classes of all heads) soft labels -> their sum, (B, classes of all heads); those without parts as is."""
    return labels.sum(1) if labels.dim() == 3 else labels


def mix_labels(labels: Tensor, others: Tensor, shares: Tensor, heads: Heads) -> Tensor:
    """The soft labels of photos that are mixed with others by `shares`, (B,): (1 - share) x own + share x other.

    A head that is unknown for either photo is unknown, because the remaining part would count as a whole label.
    """
    made = torch.lerp(labels, others, broadcast_photos(shares.to(labels), labels))
    parts = zip(*(heads.split(all_) for all_ in (made, labels, others)), strict=True)
    known = [
        part * broadcast_photos((a.flatten(1).sum(1) > 0) & (b.flatten(1).sum(1) > 0), part) for part, a, b in parts
    ]
    return torch.cat(known, dim=-1)


def broadcast_photos(values: Tensor, labels: Tensor) -> Tensor:
    """(B,) values in the dimensions of labels (B, ...), so that each applies to the label of its photo."""
    return values.reshape(-1, *[1] * (labels.dim() - 1))
