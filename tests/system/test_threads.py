"""The number of threads: as given, as OMP_NUM_THREADS says, or as is fastest."""

import pytest
import torch

from fastmask.system import threads
from fastmask.system.threads import free_threads, pick_threads


@pytest.fixture(autouse=True)
def four(monkeypatch):
    """A process with four threads, of which the user has said nothing."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # idle; another program on one of two cores; a machine that is full; within noise
        ({4: 1.0, 2: 1.5, 1: 2.5}, 4),
        ({4: 8.0, 2: 1.5, 1: 2.5}, 2),
        ({4: 8.0, 2: 6.0, 1: 2.5}, 1),
        ({4: 1.2, 2: 1.0, 1: 2.0}, 4),
    ],
)
def test_fewer_threads_are_taken_if_they_are_clearly_faster(monkeypatch, seconds, expected):
    monkeypatch.setattr(threads, "_step_seconds", lambda count, most: seconds[count])
    said = []
    with free_threads(None, said.append):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4
    assert bool(said) == (expected < 4)
    if said:
        assert said[0].startswith(
            f"{expected} of 4 threads are faster now, perhaps next to another program (--threads 4"
        )


def test_a_busy_moment_changes_nothing(monkeypatch):
    given = iter([1.0, 2.0, 8.0, 3.0, 2.5])
    monkeypatch.setattr(threads, "_step_seconds", lambda count, most: next(given))
    assert pick_threads(4) == 4


def test_given_threads_and_those_of_the_environment_are_not_measured(monkeypatch):
    monkeypatch.setattr(threads, "_step_seconds", None)
    said = []
    with free_threads(3, said.append):
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with free_threads(None, said.append):
        assert torch.get_num_threads() == 4
    assert said == []
    assert pick_threads(1) == 1


def test_measuring_changes_no_random_state():
    state = torch.get_rng_state()
    pick_threads(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_are_restored_after_an_error():
    with pytest.raises(ValueError, match="inside"), free_threads(2):
        raise ValueError("inside")
    assert torch.get_num_threads() == 4
