"""Study: Optuna's record of a search (SQLite), which several processes may share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmask.search.spec import SPEC, STUDY, SearchSpec
from fastmask.search.trials import COMPLETE, FAILED, PRUNED, REFUSED, RUNNING, TrialResult
from fastmask.system.errors import DataError, UsageError, install_line, one_line
from fastmask.system.lock import lock_file, lock_run
from fastmask.system.randomness import Counted, Stream

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

# seconds to wait for another process that takes a trial or writes results
PATIENCE = 120.0
_NAME = "tune"
_INTERVAL, _SECONDS, _PHOTOS = "interval", "seconds", "photos"


def check_optuna() -> None:
    """Raise UsageError if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise UsageError(f"A search needs the package optuna; install it with {install_line('tune')}.")


@contextmanager
def silence_optuna() -> Iterator[None]:
    """A context in which Optuna logs only errors."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@dataclass(frozen=True)
class Study:
    """The study of a search, and its storage."""

    search: SearchSpec
    study: optuna.Study
    storage: optuna.storages.RDBStorage

    def locked(self) -> AbstractContextManager[Path]:
        """A context in which no other process takes a trial or writes results."""
        return lock_file(self.search.out / SPEC, PATIENCE)

    def take(self, claim: ExitStack) -> Trial | None:
        """Take a trial to train, locked until `claim` is closed: one that a process left unfinished, or a new one.

        Returns None if the search has all its trials. To be called when `locked`.
        """
        from optuna.trial import Trial, TrialState

        for left in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            # locked: another process is training it
            with suppress(UsageError):
                claim.enter_context(lock_run(self._claim(left.number)))
                place = self.storage.get_study_id_from_name(_NAME)
                return Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(place, left.number))
        if len(self.study.get_trials(deepcopy=False)) >= self.search.trials:
            return None
        trial = self.study.ask()
        claim.enter_context(lock_run(self._claim(trial.number)))
        return trial

    def _claim(self, number: int) -> Path:
        """The lock of a whole trial; the lock of its run is held only during training."""
        return self.search.path(number).with_suffix(".trial")

    def propose(self, trial: Trial) -> dict[str, Any]:
        """Propose the settings of a trial; those that it already has are kept.

        By TPE (Bergstra et al. 2011), with random numbers by (seed, trial, place in the space), so that the proposals
        do not depend on a killed process; running trials count as bad, so that no two are equal. To be called when
        `locked`.
        """
        import optuna

        drawn, params = Counted(Stream.SEARCH, self.search.config.seed), {}
        for place, dimension in enumerate(self.search.space):
            seed = drawn.seed_at(trial.number, place) % 2**32
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)
            params[dimension.name] = dimension.suggest(trial)
        return params

    def is_worth_more(self, trial: Trial, step: int, score: float) -> bool:
        """Whether to train another fold of a trial; `score` is of its folds up to number `step`."""
        if step not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(score, step)
        return not trial.should_prune()

    def complete(self, trial: Trial, macro_f1: float, interval: list[float] | None, seconds: float) -> None:
        """Record the score of a trial."""
        trial.set_user_attr(_INTERVAL, interval)
        trial.set_user_attr(_SECONDS, seconds)
        self.study.tell(trial.number, macro_f1)

    def end(self, trial: Trial, state: str, why: str = "", seconds: float | None = None) -> None:
        """Record that a trial has no score, which the sampler counts as bad: pruned, refused or failed."""
        from optuna.trial import TrialState

        if state != PRUNED:
            trial.set_user_attr(state, why)
        trial.set_user_attr(_SECONDS, seconds)
        self.study.tell(trial.number, state=TrialState.PRUNED)

    def check_photos(self, digest: str | None) -> None:
        """Raise DataError if the photos are not those of the earlier trials."""
        if self.study.user_attrs.get(_PHOTOS, digest) != digest:
            raise DataError(
                f"The photos have changed since {self.search.out} was started, and the scores of trials must be "
                "comparable; put them back, or start a new search with another --out."
            )
        self.study.set_user_attr(_PHOTOS, digest)

    @property
    def trials(self) -> list[TrialResult]:
        """The state and the results of each trial."""
        return [self._result(one) for one in self.study.get_trials(deepcopy=False)]

    def _result(self, one: FrozenTrial) -> TrialResult:
        from optuna.trial import TrialState

        state = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED}.get(one.state, RUNNING)
        if state == PRUNED:
            state = next((word for word in (REFUSED, FAILED) if word in one.user_attrs), PRUNED)
        folds, interval = one.intermediate_values, one.user_attrs.get(_INTERVAL)
        return TrialResult(
            number=one.number,
            state=state,
            settings=self.search.space.values_of(one.params),
            path=self.search.path(one.number),
            macro_f1=one.value if state == COMPLETE else None,
            interval=(interval[0], interval[1]) if state == COMPLETE and interval else None,
            folds=len(folds),
            fold_macro_f1=folds[max(folds)] if folds else None,
            seconds=one.user_attrs.get(_SECONDS),
            why=str(one.user_attrs.get(state, "")),
        )

    def importance(self) -> dict[str, float]:
        """The share of the variance between complete trials that each setting explains (fANOVA, Hutter et al. 2014).

        In descending order; empty if all scores are equal.
        """
        import optuna

        scores = {one.macro_f1 for one in self.trials if one.macro_f1 is not None}
        if len(scores) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def open_study(search: SearchSpec) -> Study:
    """The study in a search's folder, created if missing; raises DataError for a file that is not a study."""
    import optuna

    file = search.out / STUDY
    pruner = optuna.pruners.MedianPruner() if search.pruner == "median" else optuna.pruners.NopPruner()
    with lock_file(search.out / SPEC, PATIENCE):
        try:
            timeout = {"connect_args": {"timeout": PATIENCE}}
            storage = optuna.storages.RDBStorage(f"sqlite:///{file.absolute()}", engine_kwargs=timeout)
            study = optuna.create_study(
                storage=storage, study_name=_NAME, direction="maximize", pruner=pruner, load_if_exists=True
            )
            made = Study(search, study, storage)
            # raises for invalid content
            _ = made.trials
        except Exception as error:
            # an error of SQLAlchemy, Alembic or Optuna
            why = one_line(error)
            raise DataError(f"{file} cannot be opened as the study of a search ({why}); restore it.") from error
    return made
