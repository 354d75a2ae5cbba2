import math

import pytest

from fastmask.training.progress.status import Epochs, Status, TimeLeft, folds_table, plain_text, status_lines


def row(epoch, macro_f1, valid_loss=0.5, **more):
    return {
        "epoch": epoch,
        "train_loss": 0.25,
        "valid_loss": valid_loss,
        "macro_f1": macro_f1,
        "accuracy": 0.75,
        **more,
    }


def lines(table):
    return [plain_text(line) for line in table]


def test_the_table_of_a_fold():
    epochs = Epochs([row(0, 0.5), row(1, 0.7), row(2, 0.6)], [12.34, 9.0, 100.0], "macro_f1")
    assert lines(epochs.table()) == [
        "epoch  train loss  valid loss  macro-F1  accuracy  seconds",
        "  1        0.2500      0.5000    0.5000    0.7500     12.3",
        "  2 *      0.2500      0.5000    0.7000    0.7500      9.0",
        "  3        0.2500      0.5000    0.6000    0.7500    100.0",
    ]
    assert lines(epochs.table(last=1)) == [lines(epochs.table())[0], lines(epochs.table())[3]]
    assert lines(epochs.table(last=8)) == lines(epochs.table())
    assert len(epochs.table(last=0)) == 1
    assert epochs.verdict == "best epoch 2 of 3, macro-F1 0.7000"


@pytest.mark.parametrize(
    ("values", "monitor", "best"),
    [
        ([0.5, 0.7, 0.7], "macro_f1", 1),
        ([math.nan, 0.1], "macro_f1", 1),
        ([math.nan], "macro_f1", None),
        ([0.5, 0.2, 0.4], "valid_loss", 1),
        ([0.5, 0.9], "gloss_accuracy", 1),
    ],
)
def test_the_best_epoch_is_that_of_the_checkpoint(values, monitor, best):
    rows = [row(epoch, 0.5) | {monitor: value} for epoch, value in enumerate(values)]
    epochs = Epochs(rows, [1.0] * len(rows), monitor)
    assert epochs.best == best
    header, *table = lines(epochs.table())
    assert [place for place, line in enumerate(table) if "*" in line] == ([] if best is None else [best])
    assert ("gloss_accuracy" in header) == (monitor == "gloss_accuracy")


def test_an_epoch_without_validation_has_no_scores():
    epochs = Epochs([row(0, 0.5), row(1, math.nan, math.nan, accuracy=math.nan)], [2.0, 1.0], "macro_f1")
    assert lines(epochs.table())[2].split() == ["2", "0.2500", "1.0"]
    status = Status("fold 1/5", 2, 3, True, 1, 9, done=epochs)
    assert "macro-F1 0.5000  best 0.5000 in epoch 1" in plain_text(status_lines(status, 80)[1])


def test_the_table_of_a_run():
    done = {
        0: Epochs([row(0, 0.5), row(1, 0.25)], [10.0, 10.5], "macro_f1"),
        2: Epochs([row(0, math.nan)], [7.0], "macro_f1"),
    }
    assert lines(folds_table(done, 5)) == [
        "fold  epochs  best epoch  macro-F1  seconds",
        "1/5        2           1    0.5000     20.5",
        "3/5        1                            7.0",
    ]


DONE = Epochs([row(0, 0.5), row(1, 0.7), row(2, 0.6)], [1.0] * 3, "macro_f1")
LONG = Status("fold 10/10", 3, 100, True, 1000, 2000, 12345.6, 0.25, TimeLeft(7200, 90000, True), DONE)


@pytest.mark.parametrize("width", [200, 100, 80, 60])
def test_the_status_fits_into_a_terminal(width):
    bar, quality, left = map(plain_text, status_lines(LONG, width))
    assert all(len(line) <= min(width, 79) for line in (bar, quality, left))
    assert bar.startswith("fold 10/10  epoch 4/100  ━")
    assert bar.endswith("─  1000/2000  12,346 photos/s")
    assert bar.count("━") == pytest.approx(bar.count("─"), abs=1)
    assert quality == "loss 0.2500  macro-F1 0.6000  best 0.7000 in epoch 2"
    assert left == "at most 2.0 h left of the fold, 25.0 h of the run"


def test_without_room_there_is_no_bar():
    assert plain_text(status_lines(LONG, 40)[0]) == "fold 10/10  epoch 4/100  1000/2000  12,346 photos/s"


def test_a_terminal_without_unicode_gets_none():
    assert all(plain_text(line).isascii() for line in status_lines(LONG, 80, ascii_only=True))


def test_at_the_start_there_is_only_a_bar():
    begun = Status("fold 1/5", 0, 20, True, 0, 40)
    bar, quality, left = map(plain_text, status_lines(begun, 80))
    assert bar.endswith("─  0/40")
    assert (quality, left) == ("", "")


def test_a_validation_is_named_and_has_no_speed():
    validating = Status("fold 1/5", 0, 20, False, 3, 9, 100.0)
    assert plain_text(status_lines(validating, 80)[0]).endswith("─  validating 3/9")


def test_another_metric_to_monitor_is_named():
    done = Epochs([row(0, 0.5, age_macro_f1=0.4)], [1.0], "age_macro_f1")
    assert plain_text(status_lines(Status("fold 1/5", 1, 20, True, 0, 9, done=done), 80)[1]) == (
        "macro-F1 0.5000  best age_macro_f1 0.4000 in epoch 1"
    )
