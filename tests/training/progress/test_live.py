import io
import time
from types import SimpleNamespace

import pytest

from fastmask.config import make_config
from fastmask.training.budget import Deadline
from fastmask.training.callbacks import OOFCollector, TrainedEpochs
from fastmask.training.progress import live as live_module
from fastmask.training.progress.display import Log, Terminal
from fastmask.training.progress.live import Pace, RunProgress, Steps, steps_left_in_fold, steps_left_in_refits

HEADER = "epoch  train loss  valid loss  macro-F1  accuracy  seconds"


def test_a_log_has_a_line_about_the_run_and_one_per_epoch(train, tmp_path):
    log = io.StringIO()
    train(tmp_path / "run", log=log, epochs=1)
    # the first run of a session decodes the photos
    about, *lines = [line for line in log.getvalue().splitlines() if not line.startswith("Decoded")]
    assert about.startswith(
        "84 photos of 12 persons; photos by custom pipelines, 41\N{NO-BREAK SPACE}% of each; mask (wear,"
    )
    assert "; test_resnet, 0.4 M parameters" in about
    assert [line.split("  ")[0] for line in lines] == ["fold 1/2 epoch 1/1", "fold 2/2 epoch 1/1"]
    assert all("macro_f1 0." in line and "valid_loss" in line for line in lines)


def test_a_terminal_keeps_a_table_of_each_fold_and_one_of_the_run(terminal, train, tmp_path):
    run = train(tmp_path / "run", log=terminal)
    assert terminal.cursor_is_shown
    lines = [line for line in terminal.shown if line]
    lines = lines[lines.index(HEADER) - 1 :]
    for fold in (0, 1):
        history = run.history(fold)
        (best,) = (int(file.stem.removeprefix("epoch")) for file in run.checkpoints(fold))
        title, header, *epochs = lines[4 * fold : 4 * fold + 4]
        assert title == f"fold {fold + 1}/2: best epoch {best + 1} of 2, macro-F1 {history['macro_f1'][best]:.4f}"
        assert header == HEADER
        for epoch, words in enumerate(line.replace("*", "").split() for line in epochs):
            expected = history.loc[epoch, ["train_loss", "valid_loss", "macro_f1", "accuracy"]]
            assert words[:-1] == [str(epoch + 1), *(f"{value:.4f}" for value in expected)]
        assert [("*" in line) for line in epochs] == [epoch == best for epoch in (0, 1)]
    header, *folds = lines[8:]
    assert header == "fold  epochs  best epoch  macro-F1  seconds"
    assert [line.split()[:2] for line in folds] == [["1/2", "2"], ["2/2", "2"]]


def test_the_status_is_drawn_during_training(terminal, train, tmp_path, monkeypatch):
    drawn = []
    draw = Terminal._draw
    monkeypatch.setattr(Terminal, "_draw", lambda view, status: (drawn.append(status), draw(view, status)))
    monkeypatch.setattr(Terminal, "is_due", lambda _: True)
    monkeypatch.setattr(live_module, "_LOOK", 0.0)
    train(tmp_path / "run", log=terminal, fold=[1], bs=14, refit=1)
    training, refit = ([s for s in drawn if s.title == title] for title in ("fold 2/2", "refit of fold 2/2"))
    steps = [(s.epoch, s.training, s.step, s.steps) for s in training]
    once = [(True, 0, 3), (True, 1, 3), (True, 2, 3), (True, 3, 3), (False, 1, 3), (False, 2, 3), (False, 3, 3)]
    assert steps == [(epoch, *step) for epoch in (0, 1) for step in [*once, (False, 3, 3)]]
    assert [(s.step, s.steps) for s in refit] == [(step, 6) for step in (0, 1, 2, 3, 4, 5, 6, 6)]
    assert training[0].loss is None
    assert all(s.loss > 0 for s in training[1:])
    # in the end there are only the tables, and the line of the refit
    assert not any("photos/s" in line for line in terminal.shown)
    assert "fold 2/2: 1 epoch on all photos" in terminal.shown


def test_an_interruption_restores_the_terminal(terminal, train, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(OOFCollector, "after_trained_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", log=terminal, epochs=1)
    assert terminal.cursor_is_shown
    lines = [line for line in terminal.shown if line]
    assert lines[-1].startswith("Interrupted. To resume: fastmask fit --resume")
    assert any(line.startswith("fold 1/2, stopped after 1 of 1 epochs: best epoch 1 of 1") for line in lines)


def test_a_resumed_fold_shows_its_earlier_epochs(terminal, train, tmp_path, monkeypatch):
    settings = {"epochs": 3, "save_every": "1", "fold": [0]}
    after = OOFCollector.after_trained_epoch

    def interrupted(collector):
        if collector.learn.epoch == 2:
            raise KeyboardInterrupt
        after(collector)

    monkeypatch.setattr(OOFCollector, "after_trained_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", **settings)
    monkeypatch.undo()
    monkeypatch.setenv("TERM", "xterm")
    first = []
    monkeypatch.setattr(Terminal, "_draw", lambda _, status: first.append(status))
    run = train(tmp_path / "run", log=terminal, resume=True, **settings)
    assert (first[0].epoch, first[0].training, first[0].step, len(first[0].done.rows)) == (2, True, 2, 2)
    table = terminal.shown[terminal.shown.index(HEADER) + 1 :][:3]
    assert [line.split()[0] for line in table] == ["1", "2", "3"]
    assert f"{run.history(0)['macro_f1'][0]:.4f}" in table[0]


class Learn:
    """A stand-in for a learner in a fit of three epochs of ten steps and four of validation."""

    def __init__(self, epoch=1, training=True):
        self.epoch, self.n_epoch, self.training, self.iter, self.n_iter = epoch, 3, training, 4, 10
        self.dls = SimpleNamespace(train=range(10), valid=range(4))
        self.recorder = SimpleNamespace(smooth_loss=SimpleNamespace(count=0))


class View(Log):
    """Keeps the status of a fold."""

    is_live = True

    def is_due(self):
        return True

    def show(self, status):
        self.status = status


def left(learn, folds=2, refits=0, end=None, deadline=None, **settings):
    """The time left after the fifth step; a step takes two seconds, one of validation one second."""
    view = View(io.StringIO())
    config = make_config({"folds": 5, "epochs": 3, "patience": 0, **settings})
    run = RunProgress(view, config, folds, refits, end)
    callback = run.fold(0, SimpleNamespace(rows=[], times=[]), deadline)
    callback.learn, learn.yb = learn, [range(8)]
    run.pace.step(True, 2.0, 8)
    run.pace.step(False, 1.0, 8)
    callback._show(5)
    assert view.status.photos_per_second == 4
    return view.status.left


def test_the_time_left_is_that_of_the_steps_left():
    # 5 steps of training and 4 of validation, a whole epoch; then another fold of three
    found = left(Learn())
    assert (found.fold, found.run, found.at_most) == (14 + 24, 14 + 24 + 3 * 24, False)
    found = left(Learn(epoch=2, training=False), folds=1)
    # the fifth of four is the end
    assert found.fold == found.run <= 0


def test_fewer_validations_take_less_time():
    # of three epochs the second and the third are validated; of the second 5 steps and 4 of validation are left
    assert left(Learn(), folds=2, validate_every=2).run == 14 + 24 + (3 * 20 + 2 * 4)
    assert left(Learn(epoch=0), folds=1, validate_every=2).fold == 10 + 2 * 24


def test_refits_are_part_of_the_run():
    # on all photos: 10 steps on four folds are 12.5 on five
    assert left(Learn(), folds=1, refits=2, refit=4).run == 38 + 2 * 4 * 12.5 * 2


@pytest.mark.parametrize(
    ("patience", "epoch", "folds", "expected"),
    [(2, 1, 1, True), (2, 2, 1, False), (2, 2, 2, True), (3, 1, 2, False), (0, 1, 2, False)],
)
def test_a_fold_may_stop_earlier(patience, epoch, folds, expected):
    assert left(Learn(epoch=epoch), folds=folds, patience=patience).at_most == expected


def test_hours_limit_the_time_left():
    now = time.monotonic()
    found = left(Learn(), end=now + 60, deadline=Deadline(now + 20, 1))
    assert found.fold == pytest.approx(20, abs=1)
    assert found.run == pytest.approx(60, abs=1)


def test_a_loss_that_has_not_arrived_is_not_waited_for(monkeypatch):
    copies = []

    class Slow:
        def __init__(self, value):
            self.value, self.here = value, False
            copies.append(self)

        def is_complete(self):
            return self.here

    monkeypatch.setattr(live_module, "AsyncCopy", Slow)
    view = View(io.StringIO())
    callback = RunProgress(view, make_config({}), 1, 0).fold(0, SimpleNamespace(rows=[], times=[]))
    callback.learn = Learn()
    callback.learn.recorder.smooth_loss = SimpleNamespace(count=3, value=0.5)
    for loss in (None, 0.5):
        for _ in range(3):
            callback._show(5)
            assert view.status.loss == loss
        copies[0].here = True
    # a second has not passed
    assert len(copies) == 1


def test_a_log_costs_nothing_in_a_step():
    callback = RunProgress(Log(io.StringIO()), make_config({}), 1, 0).fold(0, None)
    # there is no learner
    for _ in range(3):
        callback.after_batch()
    assert callback._pace.seconds(Steps(1, 0)) is None


def test_a_fold_resumes_without_its_state():
    assert live_module.FoldProgress.optional
    assert not TrainedEpochs.optional


def test_before_the_first_step_there_is_no_pace():
    assert Pace().seconds(Steps(1, 1)) is None
    assert Pace().photos_per_second is None


def test_the_pace_is_the_mean_of_each_kind_of_step():
    pace = Pace()
    for _ in range(10):
        pace.step(True, 2.0, 32)
        pace.step(False, 0.5, 32)
    assert pace.seconds(Steps(100, 10)) == pytest.approx(205)
    assert pace.photos_per_second == pytest.approx(16)


def test_a_validation_that_was_not_timed_takes_a_third_of_a_training_step():
    pace = Pace()
    pace.step(True, 3.0, 8)
    assert pace.seconds(Steps(2, 5)) == pytest.approx(11)


def test_later_steps_count_more():
    # a machine that slows down: 300 steps of 1 s, then 300 of 2 s; 0.99^300 is 5 %
    pace = Pace()
    for seconds in (1.0, 2.0):
        for _ in range(300):
            pace.step(True, seconds, 1)
    assert pace.step_seconds(True) == pytest.approx(2 - 0.99**300 / (1 + 0.99**300), abs=1e-6)


def test_a_fold_has_the_rest_of_the_epoch_and_whole_epochs_left():
    epoch = Steps(40, 10)
    assert steps_left_in_fold(epoch, Steps(15, 0), epochs_after=2) == Steps(25 + 80, 30)
    assert steps_left_in_fold(epoch, Steps(40, 4), epochs_after=0) == Steps(0, 6)


def test_a_refit_is_on_all_folds_and_has_no_validation():
    # 40 steps on four folds of five are 50 on all
    assert steps_left_in_refits(Steps(40, 10), epochs=6, folds=5) == Steps(300, 0)
