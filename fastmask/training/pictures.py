"""Pictures: fastai's show_results and plot_top_losses for photos with several heads.

Both dispatch on types, and the function that was registered last is used. fastai's for images with any target raises
(fastai 2.8), so these are registered after it.
"""

from __future__ import annotations

from typing import Any

import fastai.vision.learner  # noqa: F401 - registers fastai's own
from fastai.data.core import show_results
from fastai.interpret import plot_top_losses
from fastai.torch_core import TensorImage
from fastai.vision.data import get_grid

from fastmask.data.transforms import TensorHeads


@show_results.dispatch  # type: ignore[untyped-decorator] # plum is untyped here
def _show_results(
    x: TensorImage,
    y: TensorHeads,
    samples: Any,
    outs: Any,
    ctxs: Any = None,
    max_n: int = 9,
    nrows: int | None = None,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Photos under their true and their predicted classes, green where all are right."""
    n = min(len(samples), max_n)
    axes = list(
        ctxs or get_grid(n, nrows=nrows, ncols=ncols, figsize=figsize, title="Actual/Prediction", layout="constrained")
    )[:n]
    for ax, sample, out in zip(axes, samples, outs, strict=False):
        sample[0].show(ctx=ax, **kwargs)
        ax.set_title(f"{sample[1]}\n{out[0]}", color="green" if sample[1] == out[0] else "red")
    return axes


@plot_top_losses.dispatch  # type: ignore[untyped-decorator]
def _plot_top_losses(
    x: TensorImage,
    y: TensorHeads,
    samples: Any,
    outs: Any,
    raws: Any,
    losses: Any,
    nrows: int | None = None,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    **kwargs: Any,
) -> None:
    """Photos under their predicted and their true classes and their loss."""
    axes = get_grid(
        len(samples), nrows=nrows, ncols=ncols, figsize=figsize, title="Prediction/Actual/Loss", layout="constrained"
    )
    for ax, sample, out, loss in zip(axes, samples, outs, losses, strict=True):
        sample[0].show(ctx=ax, **kwargs)
        ax.set_title(f"{out[0]}\n{sample[1]}\n{float(loss):.2f}")
