import pytest

from fastmask.training.progress.pace import Pace, Steps, left_of_fold, left_of_refits


def test_before_the_first_step_nothing_is_known():
    assert Pace().seconds(Steps(1, 1)) is None
    assert Pace().photos_per_second is None


def test_steps_of_both_kinds_take_what_they_took():
    pace = Pace()
    for _ in range(10):
        pace.step(True, 2.0, 32)
        pace.step(False, 0.5, 32)
    assert pace.seconds(Steps(100, 10)) == pytest.approx(205)
    assert pace.photos_per_second == pytest.approx(16)


def test_a_validation_that_nobody_has_seen_takes_a_third_of_a_training_step():
    pace = Pace()
    pace.step(True, 3.0, 8)
    assert pace.seconds(Steps(2, 5)) == pytest.approx(11)


def test_later_steps_count_more():
    # a machine that becomes busy: 300 steps of 1 s, then 300 of 2 s; 0.99^300 is 5 %
    pace = Pace()
    for seconds in (1.0, 2.0):
        for _ in range(300):
            pace.step(True, seconds, 1)
    assert pace.step_seconds(True) == pytest.approx(2 - 0.99**300 / (1 + 0.99**300), abs=1e-6)


def test_what_is_left_is_the_rest_of_the_epoch_and_whole_epochs():
    epoch = Steps(40, 10)
    assert left_of_fold(epoch, Steps(15, 0), epochs_after=2) == Steps(25 + 80, 30)
    assert left_of_fold(epoch, Steps(40, 4), epochs_after=0) == Steps(0, 6)


def test_a_refit_is_on_all_folds_and_validates_nobody():
    # 40 steps on four folds of five are 50 on all
    assert left_of_refits(Steps(40, 10), epochs=6, folds=5) == Steps(300, 0)
