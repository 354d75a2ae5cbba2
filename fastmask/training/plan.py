"""Plan: everything that a cross-validation does, and the loaders and learner of each fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastcore.basics import noop
from torch import nn

from fastmask.config import Config
from fastmask.data.augment import build_augmentations
from fastmask.data.cache import PhotoMap
from fastmask.data.extra import Extra
from fastmask.data.halves import Halves
from fastmask.data.loaders import dataloaders
from fastmask.data.pipelines import effective_pipelines
from fastmask.data.seen import Hashes, hash_names
from fastmask.data.table import SAME_AS, Table
from fastmask.data.training_set import (
    TrainingSet,
    class_weights,
    draw_weights,
    dropped_rows,
    training_set,
)
from fastmask.data.versions import join_cuts
from fastmask.heads import Heads
from fastmask.model.optim import live_opt, named_opt
from fastmask.model.probe import ProbeWeights
from fastmask.run.directory import RunDirectory
from fastmask.run.lineage import Lineage, lineage_of
from fastmask.system.errors import UsageError
from fastmask.training.build import (
    build_initial_network,
    build_loss,
    resolve_stats,
)
from fastmask.training.feature_loss import AddFeatureLoss
from fastmask.training.freeze import Freeze, FreezeBatchNorm
from fastmask.training.learner import mask_learner
from fastmask.training.linear_probe import MOST_PHOTOS, fit_probe
from fastmask.training.mix import mix_callbacks
from fastmask.training.processes import ALONE, Processes
from fastmask.training.progressive import Progressive
from fastmask.training.sam import SAM

LossFunc = Callable[[Heads], nn.Module]
# makes the optimizer: see `fastmask.model.optim.live_opt`
OptFunc = Callable[..., Any]


class Teacher(Protocol):
    """The run that the students of a plan learn from; implemented by `fastmask.inference.teacher`."""

    def digest(self) -> str:
        """SHA-256 of its networks and of their blend."""

    def mix(self, own: np.ndarray, predicted: np.ndarray, heads: Heads) -> np.ndarray:
        """Soft labels of (N, classes of `heads`) labels and the teacher's probabilities; see `fastmask.labels`."""

    def lineage(self, fold: int) -> Lineage:
        """What its models of a fold have seen."""

    def predict(self, plan: Plan, say: Callable[[str], None]) -> np.ndarray:
        """(folds + 1, N, classes of its heads) probabilities of the plan's photos: of each fold's models, of all."""

    def load_predictions(self, run: RunDirectory, plan: Plan, say: Callable[[str], None]) -> np.ndarray:
        """The probabilities of `predict`, saved in the run; computed first if missing."""


@dataclass(frozen=True)
class Plan:
    """What a cross-validation does, checked: the effective configuration, table, folds and pipelines.

    `skipped` are the photos that are left out, and why; `extras` are photos of other sources to train on as well;
    `digests` are the SHA-256 of the table's photos, `extra_digests` of those of each source; `processes` train a fold
    together. `soft_labels` are (folds + 1, photos, ...), those of each fold and of the refit on all photos; None means
    the labels of the table, also with a `teacher` that has not predicted yet. `features` (rows, features) of
    `probed_rows` by fold are what linear probes are fitted to; none without probes.
    """

    config: Config
    table: Table
    folds: np.ndarray
    pipelines: dict[str, Any]
    environment: dict[str, Any]
    loss_func: LossFunc | None = None
    opt_func: OptFunc | None = None
    size: tuple[int, int] | None = None
    maps: Sequence[PhotoMap] = ()
    digests: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    extras: Sequence[Extra] = ()
    extra_digests: Sequence[Sequence[str]] = ()
    processes: Processes = ALONE
    teacher: Teacher | None = None
    soft_labels: np.ndarray | None = None
    features: Mapping[int, np.ndarray] = field(default_factory=dict)

    def with_config(self, config: Config) -> Plan:
        """The plan with another configuration, and the pipelines that follow from it."""
        return replace(self, config=config, pipelines=effective_pipelines(config, resolve_stats(config)))

    @property
    def folds_frame(self) -> pd.DataFrame:
        """The content of folds.csv: one row per photo with its path, person, a column per head, fold.

        Where persons share identical photos, same_as is the first of them; a column of draw weights keeps its name.
        """
        heads = self.table.heads
        numbers = [f"{h.name}_value" for h in heads if h.bounds]
        frame = self.table.frame
        joined = [SAME_AS] if SAME_AS in frame else []
        weights = [self.config.draw_weights] if isinstance(self.config.draw_weights, str) else []
        return frame[["path", "person", *joined, *heads.names, *numbers, *weights]].assign(fold=self.folds)

    @property
    def extra_frame(self) -> pd.DataFrame | None:
        """The content of extra.csv; None without photos of other sources."""
        return pd.concat([extra.frame() for extra in self.extras]) if self.extras else None

    def check_folds(self, chosen: Sequence[int] | None) -> list[int]:
        """The folds to train, by default all; raises UsageError for an unknown one."""
        every = range(self.config.folds)
        wrong = ["to train"] if chosen is not None and not len(chosen) else [f for f in chosen or [] if f not in every]
        if wrong:
            raise UsageError(f"There is no fold {wrong[0]}; expected some of {', '.join(map(str, every))}.")
        return sorted(set(every if chosen is None else chosen))

    def loaders(self, fold: int, whole: bool = False) -> DataLoaders:
        """The loaders that train on all folds but `fold`, or with `whole` on all photos, and validate `fold`."""
        config, heads, train = self.config, self.table.heads, self.training_set(fold, whole)
        halves = None
        if config.half_cutmix:
            classes = train.classes(heads)
            options = config.half_shares, config.half_partner, config.mix_classes or ()
            halves = Halves(classes, heads, config.half_cutmix, *options)
        versions = [extra.table.faces for extra in self.extras if extra.origins is not None]
        return dataloaders(
            replace(self.table, faces=join_cuts(self.table.faces, versions)),
            fold,
            self.folds,
            augments=build_augmentations(self.pipelines),
            bs=config.batch,
            seed=config.seed,
            num_workers=config.workers,
            device=self.processes.device or config.device,
            maps=self.maps,
            substitute=self.size if config.on_bad_photo == "skip" else None,
            train=train,
            halves=halves,
            share=self.processes.share,
        )

    def learner(self, fold: int, cbs: Sequence[Any] = (), whole: bool = False) -> Learner:
        """A new learner for all folds but `fold`, or with `whole` for all photos; it prints nothing."""
        self.check_folds([fold])
        config, dls = self.config, self.loaders(fold, whole)
        network = build_initial_network(config, self.table.heads, fold, self.size)
        if self.features:
            network.add_probe(self.table.heads, self.fit_probe(fold))
        learn = mask_learner(
            dls,
            network,
            loss_func=self.loss(fold),
            opt_func=self.opt_func or named_opt(config.opt, **(config.opt_args or {})),
            lr=config.lr,
            wd=config.wd,
            precision=config.precision,
            accumulate=config.accumulate,
            ema=config.ema,
            swa=config.swa,
            layer_decay=config.layer_decay,
            views=config.views,
            cbs=[*self._callbacks(dls.device, whole), *cbs],
        )
        if config.compile == "on":
            # in place, so that the names of the tensors stay; the body alone, which may compute a batch in parts
            learn.model.body.compile()
        # fastai's progress bar and its logger print to stdout, which is for results
        learn.remove_cbs(ProgressCallback)
        learn.logger = noop
        return learn

    @property
    def probed_rows(self) -> np.ndarray:
        """The rows of some photos of the table, in order, which linear probes are fitted to."""
        return self.table.sample_rows(MOST_PHOTOS, self.config.seed)

    def fit_probe(self, fold: int) -> ProbeWeights:
        """The linear probe of a fold, fitted to those of `probed_rows` that it trains on."""
        rows = self.probed_rows
        own = self.trained_rows(fold)[rows]
        return fit_probe(self.features[fold][own], self.table.select(rows[own]), self.config.seed)

    def _callbacks(self, device: torch.device, whole: bool) -> Iterator[Callback]:
        """The callbacks of the settings of training, and for several processes."""
        config, heads, processes = self.config, self.table.heads, self.processes
        yield from mix_callbacks(heads, config)
        if config.feature_loss:
            yield AddFeatureLoss(heads, config.feature_weight, config.feature_head, processes.count)
        if config.freeze is not None:
            # a part that was frozen for the first epochs is not frozen in a refit
            yield Freeze(config.freeze, 1 if whole and config.unfreeze else config.unfreeze)
        if config.freeze_bn:
            yield FreezeBatchNorm()
        if config.progressive < 1 and not whole:
            yield Progressive(config.progressive)
        if config.sam:
            yield SAM(config.sam, config.sam_adaptive)
        if config.clip:
            yield GradientClip(config.clip)
        if processes.count > 1:
            # it needs Accelerate, which the base install does not have
            from fastmask.training.distributed import WholeBatchTrainer

            yield WholeBatchTrainer(processes, device, unused=config.freeze is not None)

    def opt_func_of_groups(self) -> OptFunc:
        """fastai's `opt_func`: the custom one, or that of the configuration."""
        return live_opt(self.opt_func or named_opt(self.config.opt, **(self.config.opt_args or {})))

    def optimizer(self, network: nn.Module) -> Any:
        """The optimizer of all weights of a network, in one group."""
        made = self.opt_func_of_groups()([list(network.parameters())], lr=self.config.lr)
        made.set_hyper("wd", self.config.wd)
        return made

    def training_set(self, fold: int, whole: bool = False) -> TrainingSet:
        """The photos that a fold trains on, or with `whole` all photos, for its refit."""
        heads, config = self.table.heads, self.config
        rows = self.trained_rows(fold, whole)
        made = training_set(self.table, rows)
        if self.soft_labels is not None:
            made = replace(made, labels=self.soft_labels[-1 if whole else fold][rows])
        for extra in self.extras:
            more = extra.training_set(fold, whole)
            if self.soft_labels is not None and extra.origins is not None:
                # a version has the labels of its photo
                origins = extra.origin_rows[extra.trained_rows(fold, whole)]
                more = replace(more, labels=self.soft_labels[-1 if whole else fold][origins])
            made = made.join(more, heads)
        weights: Any = config.draw_weights
        if isinstance(weights, str):
            others = [extra.draw_weights(fold, weights, whole) for extra in self.extras]
            weights = np.concatenate([draw_weights(self.table, weights)[rows], *others])
        return made.sample(heads, config.sampler, config.per_person, weights)

    def trained_rows(self, fold: int, whole: bool = False) -> np.ndarray:
        """(N,) whether a fold, or with `whole` its refit, trains on a photo of the table."""
        rows: np.ndarray = (whole | (self.folds != fold)) & ~dropped_rows(self.table, self.config.drop)
        return rows

    def count_trained(self, chosen: Sequence[int] | None = None) -> list[int]:
        """The photos per epoch of each of the chosen folds, and of each of their refits."""
        fits = (False, True) if self.config.refit else (False,)
        return [self.training_set(fold, whole).photos_per_epoch for whole in fits for fold in self.check_folds(chosen)]

    def lineage(self, fold: int, whole: bool = False) -> Lineage:
        """The photos and persons that a fold, or with `whole` its refit, is trained on and its epoch is chosen by.

        They include those of the weights that it starts from, and of the models that it learns from.
        """
        seen = _hash_rows(self.table, self.digests, self.trained_rows(fold, whole))
        for extra, digests in zip(self.extras, self.extra_digests, strict=True):
            rows = extra.trained_rows(fold, whole)
            seen = seen.union(_hash_rows(extra.table, digests, rows), *extra.seen[fold : fold + 1])
        chosen = _hash_rows(self.table, self.digests, self.folds == fold)
        made = Lineage(seen, chosen).join(lineage_of(self.config.weights, fold))
        if self.teacher is not None:
            # a refit learns from all of them
            for number in range(self.config.folds) if whole else [fold]:
                made = made.join(self.teacher.lineage(number))
        return made

    def soften_labels(self, predicted: np.ndarray) -> Plan:
        """The plan with labels mixed with the teacher's probabilities, see `Teacher.load_predictions`."""
        if self.teacher is None:
            return self
        own = training_set(self.table, np.full(len(self.table), True)).soft(self.table.heads)
        return replace(
            self, soft_labels=np.stack([self.teacher.mix(own, each, self.table.heads) for each in predicted])
        )

    def loss(self, fold: int = 0) -> nn.Module:
        """The loss of a fold: the custom one, or that of the configuration."""
        heads = self.table.heads
        if self.loss_func is not None:
            return self.loss_func(heads)
        if self.config.class_weight != "auto":
            return build_loss(self.config, heads)
        train = self.training_set(fold)
        often = 1.0 if train.sampler is None else train.sampler.expected()[:, None]
        return build_loss(self.config, heads, class_weights(train.soft(heads) * often, heads))


def _hash_rows(table: Table, digests: Sequence[str], rows: np.ndarray) -> Hashes:
    """Hashes of the photos and the persons of some rows, (N,) bool."""
    return hash_names(photos=np.array(digests, object)[rows], persons=table.persons[rows])
