"""fastmask: train, cross-validate, judge and apply classifiers of several attributes of one photo.

The public names are imported on first use, so that `import fastmask` and the command line answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Augmentation": "data.augment",
    "report_pipelines": "data.augment",
    "assign_folds": "data.folds",
    "dataloaders": "data.loaders",
    "heads_block": "data.loaders",
    "photo_block": "data.loaders",
    "PhotoDL": "data.loaders",
    "write_sample": "data.sample",
    "Table": "data.table",
    "contest_heads": "data.table",
    "read_contest": "data.table",
    "Config": "config",
    "make_config": "config",
    "read_recipe": "config",
    "DataError": "errors",
    "FastmaskError": "errors",
    "FastmaskWarning": "errors",
    "UsageError": "errors",
    "Head": "heads",
    "Heads": "heads",
    "Predictions": "inference.ensemble",
    "predict": "inference.ensemble",
    "CrossEntropyLoss": "model.losses",
    "FocalLoss": "model.losses",
    "Accuracy": "model.metrics",
    "MacroF1": "model.metrics",
    "MultiHeadNet": "model.network",
    "build_network": "model.network",
    "AdamP": "model.optim",
    "Run": "run",
    "Score": "scoring",
    "Scores": "scoring",
    "cross_validate": "training.crossval",
    "mask_learner": "training.learner",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


if TYPE_CHECKING:
    from fastmask.config import Config, make_config, read_recipe
    from fastmask.data.augment import Augmentation, report_pipelines
    from fastmask.data.folds import assign_folds
    from fastmask.data.loaders import PhotoDL, dataloaders, heads_block, photo_block
    from fastmask.data.sample import write_sample
    from fastmask.data.table import Table, contest_heads, read_contest
    from fastmask.errors import DataError, FastmaskError, FastmaskWarning, UsageError
    from fastmask.heads import Head, Heads
    from fastmask.inference.ensemble import Predictions, predict
    from fastmask.model.losses import CrossEntropyLoss, FocalLoss
    from fastmask.model.metrics import Accuracy, MacroF1
    from fastmask.model.network import MultiHeadNet, build_network
    from fastmask.model.optim import AdamP
    from fastmask.run import Run
    from fastmask.scoring import Score, Scores
    from fastmask.training.crossval import cross_validate
    from fastmask.training.learner import mask_learner
