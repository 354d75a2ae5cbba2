"""The message about steps that have become slow."""

import pytest

from fastmask.training.slow_steps import SlowSteps


def said(seconds, passes=1):
    """What is reported of steps that take so long, in passes of as many steps each."""
    clock, lines = [0.0], []
    callback = SlowSteps(lines.append, lambda: clock[0])
    each = len(seconds) // passes
    for start in range(0, len(seconds), each):
        callback.before_train()
        for step in seconds[start : start + each]:
            clock[0] += step
            callback.after_batch()
    return lines


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.1] * 200, 0),
        # a little slower, and a few slow steps
        ([0.1] * 50 + [0.3] * 100, 0),
        ([0.1] * 50 + [1.0] * 9 + [0.1] * 50, 0),
        ([0.1] * 50 + [0.5] * 100, 1),
        # said once
        ([0.1] * 50 + [0.5] * 50 + [0.1] * 50 + [0.8] * 50, 1),
        # too few to compare
        ([0.1] * 10 + [0.5] * 20, 0),
    ],
)
def test_only_steps_that_stay_many_times_slower_are_reported(seconds, expected):
    assert len(said(seconds)) == expected


def test_the_message_has_both_times():
    (line,) = said([0.1] * 50 + [0.5] * 50)
    assert line.startswith("Steps take 5 times as long as at the start of the fold (0.5 s instead of 0.1 s)")


def test_the_first_batch_of_a_pass_does_not_count():
    assert said(([5.0] + [0.1] * 2) * 100, passes=100) == []
