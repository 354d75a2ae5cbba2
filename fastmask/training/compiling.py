"""Compiling: whether torch.compile makes a run shorter, measured by a few steps with it and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastmask.data.loaders import pick_device
from fastmask.model.precision import check_compiler
from fastmask.system.errors import FastmaskError, one_line
from fastmask.system.text import duration
from fastmask.training.plan import Plan
from fastmask.training.rehearsal import Rehearsal, free_memory, rehearse

# seconds of a run for which trying does not pay, since the first compilation takes a minute or two
_SHORT = 600.0
# the share of its time that a run must save, since estimates are rough
_SAVED = 0.1


def choose_compile(plan: Plan, folds: Sequence[int] | None = None, say: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan with its setting compile on or off; where it is auto, on if that makes a run of `folds` shorter."""
    if plan.config.compile != "auto":
        return plan
    off, on = (replace(plan, config=plan.config.model_copy(update={"compile": value})) for value in ("off", "on"))
    plain, plain_trial = _try(off, folds)
    length = min(plain.run_seconds, plan.config.limit_seconds or plain.run_seconds)
    if length < _SHORT:
        say(f"--compile auto: off, since the run takes {duration(length)}")
        return off
    try:
        check_compiler(pick_device(plan.processes.device or plan.config.device))
        _, first_trial = _try(on, folds)
        # torch has the compiled code in its cache now, as for each fold
        compiled, trial = _try(on, folds)
    except (RuntimeError, MemoryError, OSError, FastmaskError) as error:
        say(f"--compile auto: off: {one_line(error)}")
        return off
    first, each = (max(0.0, one - plain_trial) for one in (first_trial, trial))
    # a refit has a network of its own
    seconds = compiled.run_seconds + each * compiled.folds * (1 + bool(compiled.refit))
    chosen = on if seconds < plain.run_seconds * (1 - _SAVED) else off
    say(
        f"--compile auto: {chosen.config.compile}: the run would take {duration(seconds)} compiled, "
        f"{duration(plain.run_seconds)} otherwise; compiling took {duration(first)}, and takes {duration(each)} at the "
        "start of each fold"
    )
    return chosen


def _try(plan: Plan, folds: Sequence[int] | None) -> tuple[Rehearsal, float]:
    """The rehearsal of a plan, and the seconds that it took."""
    start = time.monotonic()
    cost = rehearse(plan, folds)
    seconds = time.monotonic() - start
    free_memory()
    return cost, seconds
