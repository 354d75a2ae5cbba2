"""Compiling: whether torch.compile makes a run shorter, measured by a few steps with it and without."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from fastmask.data.loaders import pick_device
from fastmask.model.precision import check_compiler
from fastmask.system.errors import FastmaskError
from fastmask.system.text import duration
from fastmask.training.plan import Plan
from fastmask.training.rehearsal import Rehearsal, rehearse

# seconds of a run for which trying does not pay, since the first compilation takes a minute or two
_SHORT = 600.0
# the share of its time that a run must save, since estimates are rough
_SAVED = 0.1


def choose_compile(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan with its setting compile on or off; where it is auto, on if that makes the run shorter."""
    if plan.config.compile != "auto":
        return plan
    off, on = (_with(plan, value) for value in ("off", "on"))
    plain = _run_seconds(rehearse(off), plan)
    if plain < _SHORT:
        say(f"--compile auto: off, since the run takes {duration(plain)}")
        return off
    try:
        check_compiler(pick_device(plan.processes.device or plan.config.device))
    except FastmaskError as error:
        say(f"--compile auto: off: {error}")
        return off
    start = time.monotonic()
    rehearse(on)
    first = time.monotonic() - start
    # from here on torch has compiled code in its cache, as each fold will
    start = time.monotonic()
    cost = rehearse(on)
    each = time.monotonic() - start
    compiled = _run_seconds(cost, plan) + each * cost.folds
    chosen = on if compiled < plain * (1 - _SAVED) else off
    say(
        f"--compile auto: {chosen.config.compile}: the run would take {duration(compiled)} compiled, {duration(plain)} "
        f"otherwise; compiling took {duration(first)}, and takes {duration(each)} at the start of each fold"
    )
    return chosen


def _with(plan: Plan, value: str) -> Plan:
    return replace(plan, config=plan.config.model_copy(update={"compile": value}))


def _run_seconds(cost: Rehearsal, plan: Plan) -> float:
    limit = plan.config.limit_seconds
    return cost.run_seconds if limit is None else min(cost.run_seconds, limit)
