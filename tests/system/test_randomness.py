import pickle
import random

import numpy as np
import pytest
import torch

from fastmask.system.randomness import Counted, Stream, seeded_globals


def draws(counted, *at):
    return counted.at(*at).random(4).tolist()


def test_a_draw_depends_only_on_its_key():
    one, other = Counted(Stream.AUGMENT, seed=3, fold=1), Counted(Stream.AUGMENT, seed=3, fold=1)
    one.at(9, 9, 9).random(100)
    one.at(1, 2, 3).integers(10, dtype=np.int32)  # leaves half a word over, which must not leak into the next draw
    assert draws(one, 1, 2, 3) == draws(other, 1, 2, 3)


def test_every_part_of_the_key_changes_a_draw():
    base = Counted(Stream.AUGMENT, seed=3, fold=1)
    different = [
        draws(Counted(Stream.ORDER, 3, 1), 1, 2, 3),
        draws(Counted(Stream.AUGMENT, 4, 1), 1, 2, 3),
        draws(Counted(Stream.AUGMENT, 3, 2), 1, 2, 3),
        draws(base, 2, 2, 3),
        draws(base, 1, 3, 3),
        draws(base, 1, 2, 4),
        draws(base, 1, 2, 3),
    ]
    assert len({tuple(d) for d in different}) == len(different)


def test_the_generator_is_always_the_same_object():
    counted = Counted(Stream.STEP, 0)
    assert counted.at(0) is counted.at(5, 6)


def test_it_can_be_sent_to_a_worker():
    counted = Counted(Stream.AUGMENT, 5, 2)
    assert draws(pickle.loads(pickle.dumps(counted)), 1, 2, 3) == draws(counted, 1, 2, 3)


def test_seeds_for_other_libraries_differ_by_step():
    counted = Counted(Stream.STEP, 0)
    assert len({counted.seed_at(0, step) for step in range(100)}) == 100


def of_the_globals():
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


def test_the_global_generators_depend_on_the_seed_and_are_as_before():
    with seeded_globals(3):
        first = of_the_globals()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = of_the_globals()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with pytest.raises(ZeroDivisionError), seeded_globals(3):
        assert of_the_globals() == first
        raise ZeroDivisionError
    assert of_the_globals() == expected
    with seeded_globals(4):
        assert not set(of_the_globals()) & set(first)
