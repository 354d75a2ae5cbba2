"""What the tests of training share: a table, and functions that train small runs on it, or only plan them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_learners import TINIEST, flat_learner, small_dls

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.table import Table
from fastmask.training.plan import Plan
from fastmask.training.setup import prepare


@pytest.fixture(scope="session")
def table(contest: Path) -> Table:
    """The photos of `contest`: 84 of 12 persons."""
    return read_contest(contest)


@pytest.fixture(scope="session")
def train(table: Table, small_settings: dict[str, Any]) -> Callable[..., Run]:
    """A function that trains a run into a folder, with `small_settings`, others, and more callbacks of its folds."""

    def run(out, table=table, cbs=(), log=None, **settings):
        settings = _over(small_settings, settings)
        learner = Plan.learner
        with pytest.MonkeyPatch.context() as patch:
            if cbs:
                patch.setattr(Plan, "learner", lambda plan, fold, own=(): learner(plan, fold, [*own, *cbs]))
            return cross_validate(table, out=out, log=log or io.StringIO(), **settings)

    return run


def _over(small_settings: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`small_settings` and others; weights and folds that are given replace what they exclude."""
    excluded = {"weights": "pretrained", "folds_file": "folds"}
    without = {other for name, other in excluded.items() if settings.get(name) is not None}
    return {name: value for name, value in small_settings.items() if name not in without} | settings


@pytest.fixture(scope="session")
def plan_of(table: Table, small_settings: dict[str, Any]) -> Callable[..., Plan]:
    """A function that prepares the plan of a run, with `small_settings` and others."""

    def plan(table=table, loss_func=None, chosen=None, opt_func=None, **settings):
        return prepare(table, make_config(_over(small_settings, settings)), loss_func, chosen=chosen, opt_func=opt_func)

    return plan


@pytest.fixture(scope="session")
def make(table: Table) -> Callable[..., Any]:
    """A function that makes a learner of a few linear layers, with 42 photos of 16 x 8 pixels to train on."""
    return lambda *cbs, bs=8, **options: flat_learner(small_dls(table, augments=(TINIEST,) * 2, bs=bs), *cbs, **options)
