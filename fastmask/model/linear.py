"""Linear heads: softmax regression on fixed features, for many subsets of photos at once, and OOF probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from fastmask.heads import UNKNOWN, Heads

# the largest component of a gradient at convergence, the maximum of steps, the memory of L-BFGS in steps
TOLERANCE, _MOST_STEPS, _REMEMBERED = 1e-5, 500, 10
# of a class without labels, to avoid a division by 0
_LEAST_SPREAD = 1e-3
# of the line search (Armijo)
_SUFFICIENT, _MOST_HALVINGS = 1e-4, 30
# the maximum size of a tensor (photos or features, models, classes)
_MOST_NUMBERS = 2 * 10**7
# penalties to choose from, on the weights of standardised features
PENALTIES = (0.01, 0.1, 1.0, 10.0)
# the minimum of folds to leave two out, and the penalty with fewer folds
LEAST_FOLDS, UNCHOSEN = 3, PENALTIES[1]
# the tolerance of heads that only choose a penalty, and the minimum probability in a logarithm
_ROUGH, _LEAST = 1e-4, 1e-7

Value = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LinearHeads:
    """M models of all heads: `weight` (M, features, classes of all heads), `bias` (M, classes of all heads), float64.

    `seen` (M, classes of all heads) are the classes among a model's photos; the others have probability 0. `unfinished`
    is the number of heads that did not converge within the maximum of steps.
    """

    heads: Heads
    weight: Tensor
    bias: Tensor
    seen: Tensor
    unfinished: int = 0

    def probabilities(self, model: int, features: np.ndarray) -> np.ndarray:
        """(N, features) -> (N, classes of all heads) of one model."""
        x = torch.as_tensor(features, dtype=torch.float64, device=self.weight.device)
        logits = x @ self.weight[model] + self.bias[model]
        parts = self.heads.split(logits.masked_fill(~self.seen[model], -torch.inf))
        return torch.cat([part.softmax(-1) for part in parts], dim=-1).cpu().numpy()


def fit_linear(
    features: np.ndarray,
    y: np.ndarray,
    heads: Heads,
    rows: np.ndarray,
    penalties: np.ndarray,
    device: torch.device | str = "cpu",
    tolerance: float = TOLERANCE,
    together: int | None = None,
) -> LinearHeads:
    """Fit M models of all heads at once, each on its own photos, which also standardise the features.

    Args:
        features: (N, features).
        y: (N, heads) class numbers, -1 where unknown: such a photo does not count for that head.
        rows: (M, N) bool, the photos that each model is fitted on.
        penalties: (M, heads): the loss of a head is the mean cross-entropy + penalty / 2 * the squares of its weights
            on standardised features, the bias not penalised. In scikit-learn's LogisticRegression this is C = 1 /
            (penalty * photos), or twice that for two classes, which have one row of weights there.
        tolerance: the largest component of a head's gradient at the end.
        together: models per batch, by default all; a batch takes as long as its slowest model.

    Full-batch L-BFGS (Liu and Nocedal 1989) in float64, with a separate step size for each head of each model. The
    first inverse Hessian is estimated from the covariance of all features and the shares of the classes.
    """
    x = torch.as_tensor(features, dtype=torch.float64, device=device)
    # only to improve the condition number: each model is standardised again by its own photos
    mean, scale = _moments(x, torch.ones(1, len(x), dtype=torch.float64, device=x.device))
    x = (x - mean) / scale
    spectrum = torch.linalg.eigh(x.T @ x / len(x))
    most = _MOST_NUMBERS // (max(len(x), _REMEMBERED * x.shape[1]) * heads.n_logits)
    at_once = max(1, min(together or len(rows), most))
    parts = [
        _fit(x, spectrum, torch.as_tensor(y, device=x.device), heads, *chunk, tolerance)
        for chunk in zip(
            torch.as_tensor(rows, device=x.device).split(at_once),
            torch.as_tensor(penalties, dtype=torch.float64, device=x.device).split(at_once),
            strict=True,
        )
    ]
    weights, biases, seen, unfinished = zip(*parts, strict=True)
    weight = torch.cat(weights) / scale.T
    bias = torch.cat(biases) - torch.einsum("d,mdk->mk", mean[0], weight)
    return LinearHeads(heads, weight, bias, torch.cat(seen), sum(unfinished))


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations (M, features) of (N, features) over (M, N) weights; a deviation of 0 counts as 1."""
    share = weights / weights.sum(1, keepdim=True)
    mean = share @ x
    deviation = (share @ x.square() - mean.square()).clamp(min=0).sqrt()
    # a deviation that is only rounding error would be magnified
    return mean, torch.where(deviation > 1e-6, deviation, 1.0)


def _fit(
    x: Tensor,
    spectrum: tuple[Tensor, Tensor],
    y: Tensor,
    heads: Heads,
    rows: Tensor,
    penalties: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, int]:
    mean, scale = _moments(x, rows.double())
    owner = torch.repeat_interleave(torch.arange(len(heads)), torch.tensor(heads.sizes)).to(x.device)
    known = rows[:, :, None] & (y != UNKNOWN)
    counts = known.sum(1)
    shares = (known.double() / counts[:, None].clamp(min=1)).transpose(0, 1)
    classes = torch.cat([y[:, [i]] == torch.arange(size, device=x.device) for i, size in enumerate(heads.sizes)], dim=1)
    labelled = rows.double() @ classes.double()
    seen = labelled > 0
    # the classes of a head without labels keep equal probabilities
    seen |= (counts == 0)[:, owner]

    def value(parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(features + 1, M, classes) -> losses (M, heads) and their gradient; the last row is the bias."""
        weight, bias = parameters[:-1], parameters[-1]
        scaled = weight / scale.T[:, :, None]
        logits = (x @ scaled.flatten(1)).view(len(x), *bias.shape)
        logits += bias - torch.einsum("md,dmk->mk", mean, scaled)
        logits.masked_fill_(~seen, -torch.inf)
        losses = []
        for i, (a, b) in enumerate(pairwise(heads.offsets)):
            logs = logits[..., a:b].log_softmax(-1)
            right = logs.gather(-1, y[:, i].clamp(min=0)[:, None, None].expand(-1, len(bias), 1))[..., 0]
            # the loss of a photo that is left out may be infinite
            losses.append(-torch.where(shares[..., i] > 0, shares[..., i] * right, 0.0).sum(0))
            logits[..., a:b] = (logs.exp() - classes[:, None, a:b].double()) * shares[..., i, None]
        towards = logits.sum(0)
        slope = (x.T @ logits.flatten(1)).view(*weight.shape)
        slope = (slope - mean.T[:, :, None] * towards) / scale.T[:, :, None] + penalties[:, owner] * weight
        squares = _by_head(weight.square().sum(0), owner, len(heads))
        return torch.stack(losses, dim=1) + penalties / 2 * squares, torch.cat([slope, towards[None]])

    prior = labelled / counts.clamp(min=1)[:, owner]
    spread = (prior * (1 - prior)).clamp(min=_LEAST_SPREAD)
    values, vectors = spectrum
    steep = values.clamp(min=0)[:, None, None] * spread + penalties[:, owner]

    def inverse(slope: Tensor) -> Tensor:
        """A gradient times the approximate inverse Hessian."""
        weight = (vectors.T @ slope[:-1].flatten(1)).view(*steep.shape) / steep
        return torch.cat([(vectors @ weight.flatten(1)).view(*steep.shape), (slope[-1] / spread)[None]])

    start = x.new_zeros(x.shape[1] + 1, len(rows), heads.n_logits)
    found, unfinished = _minimize(value, inverse, start, owner, len(heads), tolerance)
    weight = (found[:-1] / scale.T[:, :, None]).transpose(0, 1)
    return weight, found[-1] - torch.einsum("md,mdk->mk", mean, weight), seen, unfinished


def _by_head(columns: Tensor, owner: Tensor, heads: int) -> Tensor:
    """(M, classes of all heads) -> (M, heads) sums."""
    return columns.new_zeros(len(columns), heads).index_add_(1, owner, columns)


def _minimize(
    value: Value, inverse: Callable[[Tensor], Tensor], start: Tensor, owner: Tensor, heads: int, tolerance: float
) -> tuple[Tensor, int]:
    """Minimize (M, heads) functions of (features + 1, M, classes) parameters at once, each over its own columns."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return _by_head((a * b).sum(0), owner, heads)

    at = start
    loss, slope = value(at)
    remembered: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_REMEMBERED)
    for _ in range(_MOST_STEPS):
        active = _largest(slope, owner, heads) > tolerance
        if not active.any():
            break
        direction = -_times_inverse(slope, remembered, inverse, dot, owner)
        downhill = dot(slope, direction)
        step = active.double()
        for _ in range(_MOST_HALVINGS):
            then = at + step[:, owner] * direction
            new_loss, new_slope = value(then)
            enough = new_loss <= loss + _SUFFICIENT * step * downhill + 1e-14 * loss.abs()
            if enough.all():
                break
            step = torch.where(enough, step, step / 2)
        moved, turned = then - at, new_slope - slope
        both = dot(moved, turned)
        good = both > 1e-12 * dot(turned, turned)
        remembered.append((moved, turned, torch.where(good, 1 / both, 0.0)))
        at, loss, slope = then, new_loss, new_slope
    return at, int((_largest(slope, owner, heads) > tolerance).sum())


def _largest(slope: Tensor, owner: Tensor, heads: int) -> Tensor:
    """(features + 1, M, classes) -> (M, heads): the largest component of each problem's gradient."""
    columns = slope.abs().amax(0)
    return torch.stack([columns[:, owner == head].amax(1) for head in range(heads)], dim=1)


def _times_inverse(
    slope: Tensor,
    remembered: deque[tuple[Tensor, Tensor, Tensor]],
    inverse: Callable[[Tensor], Tensor],
    dot: Callable[[Tensor, Tensor], Tensor],
    owner: Tensor,
) -> Tensor:
    """The gradients times the inverse Hessians, corrected by the last steps (the two-loop recursion of L-BFGS)."""
    found, kept = slope, []
    for moved, turned, rho in reversed(remembered):
        share = rho * dot(moved, found)
        kept.append(share)
        found = found - share[:, owner] * turned
    found = inverse(found)
    for (moved, turned, rho), share in zip(remembered, reversed(kept), strict=True):
        found = found + (share - rho * dot(turned, found))[:, owner] * moved
    return found


def oof_of_features(
    features: np.ndarray, y: np.ndarray, heads: Heads, folds: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray, int]:
    """(N, classes of all heads) out-of-fold probabilities of linear heads, (folds, heads) penalties, unfinished fits.

    Photos of no fold are fitted on by all, and have NaN.

    A fold's heads are fitted on the photos of the other folds. Their penalty is the one of `PENALTIES` with the lowest
    cross-entropy on the fold's two neighbours, by models that were fitted without the neighbour and the fold, so no
    label of a fold affects its predictions. With fewer than three folds the penalty is `UNCHOSEN`.
    """
    count = int(folds.max()) + 1
    penalties, unfinished = np.full((count, len(heads)), UNCHOSEN), 0
    if count >= LEAST_FOLDS:
        penalties, unfinished = _choose_penalties(features, y, heads, folds, device)
    rows = np.stack([folds != fold for fold in range(count)])
    fitted = fit_linear(features, y, heads, rows, penalties, device)
    probabilities = np.full((len(y), heads.n_logits), np.nan)
    for fold in range(count):
        probabilities[folds == fold] = fitted.probabilities(fold, features[folds == fold])
    return probabilities, penalties, unfinished + fitted.unfinished


def _choose_penalties(
    features: np.ndarray, y: np.ndarray, heads: Heads, folds: np.ndarray, device: torch.device | str
) -> tuple[np.ndarray, int]:
    """(folds, heads) penalties: see `oof_of_features`. Folds form a ring, and each model leaves out two neighbours."""
    count = int(folds.max()) + 1
    edges = [(fold, (fold + 1) % count) for fold in range(count)]
    rows = np.tile([~np.isin(folds, edge) for edge in edges], (len(PENALTIES), 1))
    grid = np.tile(np.repeat(PENALTIES, count)[:, None], len(heads))
    # one penalty at a time, since weak penalties converge slowly
    fitted = fit_linear(features, y, heads, rows, grid, device, _ROUGH, together=count)
    losses = np.zeros((count, len(PENALTIES), len(heads)))
    for model, (tried, (one, other)) in enumerate(product(range(len(PENALTIES)), edges)):
        for judged, chooser in ((one, other), (other, one)):
            here = folds == judged
            losses[chooser, tried] += _cross_entropies(heads, fitted.probabilities(model, features[here]), y[here])
    return np.array(PENALTIES)[losses.argmin(axis=1)], fitted.unfinished


def _cross_entropies(heads: Heads, probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(heads,) sums over the labelled photos."""
    known = [labels != UNKNOWN for labels in y.T]
    parts = zip(heads.split(probabilities), y.T, known, strict=True)
    return np.array([-np.log(part[rows, labels[rows]].clip(_LEAST)).sum() for part, labels, rows in parts])
