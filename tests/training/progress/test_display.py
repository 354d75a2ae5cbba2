import io
import sys
from types import SimpleNamespace

import pytest

from fastmask.training.progress import display as display_module
from fastmask.training.progress.display import Log, Notebook, pick_display
from fastmask.training.progress.status import Epochs, Status

ROWS = [
    {"epoch": epoch, "train_loss": 0.5, "valid_loss": 0.5, "macro_f1": epoch / 100, "accuracy": 0.5}
    for epoch in range(20)
]


def status(epoch, step=5):
    done = Epochs(ROWS[:epoch], [1.0] * epoch, "macro_f1")
    return Status("fold 1/2", epoch, 20, True, step, 10, 100.0, 0.25, None, done)


def test_a_terminal_shows_the_last_epochs_and_the_status(terminal):
    view = pick_display(terminal)
    view.begin()
    view.show(status(2))
    view.show(status(10))
    *table, bar, quality, _ = terminal.shown
    assert [line[:5].rstrip() for line in table if line] == [
        "epoch",
        *(f"{epoch:3}" + " *" * (epoch == 10) for epoch in range(3, 11)),
    ]
    assert bar.startswith("fold 1/2  epoch 11/20  ━")
    assert quality == "loss 0.2500  macro-F1 0.0900  best 0.0900 in epoch 10"


def test_messages_stay_above_and_tables_below(terminal):
    view = pick_display(terminal)
    view.say("before")
    view.begin()
    view.show(status(1))
    view.say("[in] between, and it is a good deal longer than eighty columns, so that it is wrapped into the next line")
    view.show(status(2))
    view.end("fold 1/2: done", status(3).done.table())
    view.summary([[("a table", "")]])
    lines = [line for line in terminal.shown if line]
    assert lines[0] == "before"
    assert lines[1].startswith("[in] between")
    assert lines[2:4] == ["fold 1/2: done", "epoch  train loss  valid loss  macro-F1  accuracy  seconds"]
    assert [line[:3] for line in lines[4:]] == ["  1", "  2", "  3", "a t"]
    assert terminal.cursor_is_shown


@pytest.mark.parametrize("height", [1, 4, 12])
def test_a_low_terminal_has_room_for_the_status(terminal, monkeypatch, height):
    monkeypatch.setenv("LINES", str(height))
    view = pick_display(terminal)
    view.begin()
    for step in range(3):
        view.show(status(20, step))
    assert len(terminal.shown) <= height
    view.end("", [])
    assert not any(terminal.shown)


def test_frames_take_a_small_fraction_of_the_time(terminal, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    view = pick_display(terminal)
    monkeypatch.setattr(view, "_draw", lambda _: now.__setitem__(0, now[0] + 0.01))
    assert view.is_due()
    view.show(status(1))
    now[0] += 1.9
    assert not view.is_due()
    now[0] += 0.2
    assert view.is_due()


def test_a_closed_terminal_is_ignored(terminal):
    view = pick_display(terminal)
    view.begin()

    def gone(_):
        raise OSError(5, "Input/output error")

    terminal.write = gone
    view.show(status(1))
    view.say("unread")
    view.end("fold 1/2", status(1).done.table())


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_gets_lines(terminal, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    assert type(pick_display(terminal)) is Log


def test_without_colours(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    view = pick_display(terminal)
    view.begin()
    view.show(status(2))
    view.end("", [])
    assert "\x1b[3" not in terminal.getvalue()
    assert "━" in terminal.getvalue()


def test_warnings_and_prints_of_others_go_above(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal)
    view = pick_display(None)
    view.begin()
    view.show(status(1))
    print("a warning", file=sys.stderr)
    view.show(status(1))
    view.end("", [])
    assert [line for line in terminal.shown if line] == ["a warning"]
    assert sys.stderr is terminal


def test_a_stream_that_is_no_terminal_gets_lines():
    stream = io.StringIO()
    view = pick_display(stream)
    view.begin()
    assert not view.is_due()
    view.show(status(1))
    view.epoch("an epoch")
    view.end("fold", status(1).done.table())
    view.summary([[("a table", "")]])
    assert stream.getvalue() == "an epoch\n"


class Handle:
    """A stand-in for the output of a cell."""

    def __init__(self, data):
        self.data = data

    def update(self, data, raw):
        assert raw
        self.data = data


def test_a_notebook_has_one_output_which_ends_as_a_table_of_folds(monkeypatch):
    shown = []

    def display(data, raw, display_id):
        assert raw
        assert display_id
        shown.append(Handle(data))
        return shown[-1]

    kernel = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    assert type(pick_display(io.StringIO())) is Log
    view = pick_display(None)
    assert type(view) is Notebook
    for fold in (1, 2):
        view.begin()
        view.show(status(9))
        text = shown[0].data["text/plain"].split("\n")
        assert text[: fold - 1] == ["fold <1>"] * (fold - 1)
        assert len(text) == fold - 1 + 1 + 8 + 3
        view.end(f"fold <{fold}>", status(9).done.table())
    view.summary([[("folds & all", "")]])
    assert len(shown) == 1
    assert shown[0].data == {"text/plain": "folds & all", "text/html": "<pre>folds &amp; all</pre>"}
