import io

import pytest

from fastmask.data.contest import read_contest
from fastmask.training.callbacks import OOFCollector
from fastmask.training.crossval import cross_validate


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, contest, small_settings, out):
    cross_validate(read_contest(contest), out=out, log=stream, **{**small_settings, "epochs": 1})
    return stream.getvalue()


def test_a_log_gets_a_line_about_the_run_and_one_an_epoch(contest, small_settings, tmp_path):
    said = shown(io.StringIO(), contest, small_settings, tmp_path / "run").splitlines()
    # whoever comes first decodes the photos
    about, *lines = [line for line in said if not line.startswith("Decoded")]
    assert about.startswith("84 photos of 12 persons; mask (wear, incorrect, none); gender (male, female); age (<30")
    assert "; test_resnet, 0.4 M parameters" in about
    assert [line.split("  ")[0] for line in lines] == ["fold 1/2 epoch 1/1", "fold 2/2 epoch 1/1"]
    assert all("macro_f1 0." in line and "valid_loss" in line for line in lines)


def test_a_terminal_gets_the_same_lines_and_a_bar(contest, small_settings, tmp_path):
    text = shown(Terminal(), contest, small_settings, tmp_path / "run")
    assert "fold 1/2 epoch 1/1  train_loss" in text
    assert "\x1b[?25h" in text.rpartition("\x1b[?25l")[2]  # the cursor is back at the end


def test_the_terminal_is_given_back_after_an_interruption(contest, small_settings, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(OOFCollector, "after_trained_epoch", interrupted)
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt):
        shown(stream, contest, small_settings, tmp_path / "run")
    assert "\x1b[?25h" in stream.getvalue().rpartition("\x1b[?25l")[2]
