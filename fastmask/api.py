"""API: runs with predictions, report and plots as methods, and the functions that make runs, for notebooks and scripts.

The rooms before this one only use a run's directory; here their functions become methods of a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastmask.config import Config, Kind, make_config
from fastmask.data.readers import read_table
from fastmask.data.table import Table
from fastmask.heads import JOINT
from fastmask.inference import ensemble
from fastmask.inference.blend import MEAN, Weights
from fastmask.inference.teacher import open_teacher
from fastmask.run import merge
from fastmask.run.directory import RunDirectory, resume_config
from fastmask.scoring import DRAWS
from fastmask.system.errors import FastmaskWarning, UsageError, install_line, one_line
from fastmask.system.fields import shows_fields
from fastmask.training import crossval
from fastmask.training.plan import LossFunc, OptFunc

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from fastmask.evaluation.advice import Advice
    from fastmask.inference.ensemble import Blended
    from fastmask.inference.options import PredictOptions
    from fastmask.inference.predictions import Predictions
    from fastmask.inference.soup import Soup
    from fastmask.inference.sources import Images
    from fastmask.report.write import Report


class Run(RunDirectory):
    """A run directory with methods for predictions, a report and plots; a notebook shows its scores.

    >>> run = fm.Run.load(run.path)
    >>> run.trained_folds, run.probabilities.shape
    ([0, 1], (84, 8))
    >>> macro_f1 = run.score(draws=0).joint.macro_f1
    >>> run.predict(photos[0]).joint.shape
    (1,)
    """

    def predict(
        self,
        images: Images,
        options: PredictOptions | int | None = None,
        *,
        decision: str | None = None,
        **given: Any,
    ) -> Predictions:
        """Predict a photo or several: paths, folders, PIL images, arrays, bytes.

        See `fastmask.inference.predictions.predict`. The classes are those of a `decision`, by default the run's, whose
        rule is fitted on all OOF predictions. Warns of photos that were enlarged and of those that could not be
        predicted, which are in `failed` of the result.
        """
        from fastmask.evaluation.decisions import rule_of
        from fastmask.inference.failures import describe_failed
        from fastmask.inference.predictions import predict

        rule = rule_of(self, decision)
        found = predict(self, images, options, **given)
        failed = [describe_failed(found.failed, len(found))] if found.failed else []
        for message in [*found.notes, *failed]:
            warnings.warn(message, FastmaskWarning, stacklevel=2)
        return found if rule is None else found.decide(rule)

    def report(self, data: str | None = None, out: str | Path | None = None, **options: Any) -> Report:
        """Write report.html, its pictures and a model card: see `fastmask.report.write.write_report`."""
        from fastmask.report.write import write_report

        return write_report(self, data, out, **options)

    def advice(self) -> list[Advice]:
        """What would most likely raise the score, at most three: see `fastmask.evaluation.advice.advise`."""
        from fastmask.evaluation.advice import advise

        return advise(self)

    def plot_curves(self) -> Figure:
        """Losses and macro-F1 per epoch of each fold, with the saved and the scored epochs marked."""
        from fastmask.report.sections.curves import plot_curves

        return plot_curves(self)

    def plot_confusion(self, head: str = JOINT) -> Figure:
        """The confusion of a head, or of the joint class: see `fastmask.report.sections.confusion.plot_confusion`."""
        from fastmask.report.sections.confusion import plot_confusion

        return plot_confusion(self, head)

    def top_losses(self, n: int = 16, head: str = JOINT, data: str | None = None) -> Figure:
        """The photos with the highest -log of the probability of the true class: see `report.sections.mistakes`."""
        from fastmask.report.sections.mistakes import plot_top_losses

        return plot_top_losses(self, n, head, data)

    def explain(self, photo: Any, heads: str | Sequence[str] | None = None, **options: Any) -> Figure:
        """Where the networks look on a photo: see `fastmask.report.sections.heatmaps.plot_explanation`."""
        from fastmask.report.sections.heatmaps import plot_explanation

        return plot_explanation(self, photo, heads, **options)

    def _repr_html_(self) -> str:
        from fastmask.report.sections.summary import run_html

        return run_html(self)


@shows_fields(Config)
def cross_validate(
    table: Table | DataFrame | str | Path,
    config: Config | None = None,
    *,
    out: str | Path,
    fold: Sequence[int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    loss_func: LossFunc | None = None,
    opt_func: OptFunc | None = None,
    log: TextIO | None = None,
    **settings: Any,
) -> Run:
    """Train every fold of `table` and return the finished run in the directory `out`.

    `table` may also be the path of a CSV or a folder, or a pandas DataFrame; the settings `heads`, `images`,
    `image_column` and `group_column` say how it is read, see `fastmask.data.readers`.

    `settings` are those of `Config`, over `config`. Everything that can be checked is checked before the directory is
    made: settings, folds, photos, network and weights. `fold` are the folds to train; `merge_runs` joins folds that
    were trained apart. `loss_func` makes a custom loss from the heads; `opt_func` is a custom optimizer: a class
    of torch optimizers, a `functools.partial` of one, or fastai's `opt_func`. A custom body or augmentation is
    registered with timm or albumentations and named by the arch or the pipeline. `log` gets one line per epoch, or is
    a terminal and shows more; by default it is stderr, and in a notebook an output of the cell.

    `resume` continues a run that was stopped, with its settings: finished folds are kept, an unfinished one resumes
    from its last state, and on a CPU the result is bit for bit that of a run that was never stopped, unless a
    time limit cuts a fold short. Ctrl-C or SIGTERM saves a state after the current step; a second one ends at once.

    Processes of a launcher such as torchrun train each fold together (`fastmask.training.processes`). All return the
    run; only the first writes and prints.

    `launcher="ray"` trains the folds in parallel on a Ray cluster (`fastmask.launch.ray`): the one at `address`, the
    one that this process has joined with `ray.init`, or a new one on this machine.

    >>> small = dict(arch="test_resnet", pretrained=False, resize=(32, 24), epochs=1, folds=2)
    >>> run = fm.cross_validate("data", out="runs/small", **small)
    >>> run.trained_folds, run.probabilities.shape
    ([0, 1], (84, 8))
    """
    reading = {name: settings[name] for name in Config.of_kind(Kind.TABLE) if name in settings}
    wanted = make_config(config.model_dump(exclude_unset=True) if config else {}, reading)
    if resume and not isinstance(table, Table):
        wanted = resume_config(wanted, out, has_table=True)
    run = crossval.cross_validate(
        read_table(table, wanted),
        config,
        out=out,
        fold=fold,
        resume=resume,
        overwrite=overwrite,
        loss_func=loss_func,
        opt_func=opt_func,
        log=log,
        open_teacher=open_teacher,
        launch=open_launcher,
        **settings,
    )
    return Run.of(run)


@contextmanager
def open_launcher(
    config: Config, table: Table, custom: tuple[LossFunc | None, OptFunc | None], say: Callable[[str], None]
) -> Iterator[crossval.Launcher | None]:
    """A context with the launcher of the configuration; None trains the folds here, one after another."""
    if config.launcher == "local":
        yield None
        return
    try:
        from fastmask.launch.ray import join_cluster
    except ImportError as error:
        raise UsageError(
            f"--launcher ray needs the package ray ({one_line(error)}); install it with {install_line('ray')}."
        ) from error
    with join_cluster(config, table, custom, say) as launcher:
        yield launcher


def merge_runs(runs: Sequence[str | Path | RunDirectory], out: str | Path, overwrite: bool = False) -> Run:
    """Join the finished folds of `runs` into a new run at `out`: see `fastmask.run.merge.merge_runs`.

    >>> small = dict(arch="test_resnet", pretrained=False, resize=(32, 24), epochs=1, folds=2)
    >>> first = fm.cross_validate(table, out="first", fold=[0], **small)
    >>> second = fm.cross_validate(table, out="second", fold=[1], **small)
    >>> fm.merge_runs([first, second], out="merged").trained_folds
    [0, 1]
    """
    return Run.of(merge.merge_runs(runs, out, overwrite))


def blend_runs(
    runs: Sequence[str | Path | RunDirectory],
    how: str = MEAN,
    *,
    out: str | Path,
    weights: Weights | None = None,
    overwrite: bool = False,
    draws: int = DRAWS,
) -> Blended:
    """Make an ensemble of finished `runs` at `out`: see `fastmask.inference.ensemble.blend_runs`.

    >>> blended = fm.blend_runs([run, other], "vote", out="blend", draws=100)
    >>> blended.run.predict(photos).probabilities.shape
    (3, 8)
    """
    blended = ensemble.blend_runs(runs, how, out=out, weights=weights, overwrite=overwrite, draws=draws)
    return replace(blended, run=Run.of(blended.run))


def soup_runs(
    runs: Sequence[str | Path | RunDirectory],
    *,
    out: str | Path,
    overwrite: bool = False,
    draws: int = DRAWS,
    **options: Any,
) -> Soup:
    """Make a run of greedy soups of the checkpoints of `runs` at `out`: see `fastmask.inference.soup.soup_runs`.

    >>> soup = fm.soup_runs([run, other], out="soup", draws=100)
    >>> sorted(soup.members), soup.run.trained_folds
    ([0, 1], [0, 1])
    """
    from fastmask.inference import soup

    made = soup.soup_runs(runs, out=out, overwrite=overwrite, draws=draws, **options)
    return replace(made, run=Run.of(made.run))
