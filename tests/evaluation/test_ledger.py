import hashlib
import multiprocessing
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from filelock import FileLock

from fastmask.evaluation import ledger as module
from fastmask.evaluation.ledger import (
    COLUMNS,
    Entry,
    add_public,
    digest,
    entry_of,
    ledger_of,
    note,
    read_ledger,
    summary,
)
from fastmask.scoring import Score
from fastmask.system.errors import DataError, UsageError

FULL = Entry(
    date="2026-01-31T12:00:00+00:00",
    file="out/a.csv",
    sha256="a" * 64,
    run="runs/b4",
    members="fold0, fold1",
    tta=2,
    decision="f1, persons averaged",
    oof_macro_f1=0.75,
    oof_low=0.72,
    oof_high=0.78,
    oof_accuracy=0.79,
    public=0.757,
    public_accuracy=0.79476,
    note='the report\'s, "best"',
)


def entry(i, oof=None, public=None):
    low, high = (None, None) if oof is None else (oof - 0.01, oof + 0.01)
    scores = {"oof_macro_f1": oof, "oof_low": low, "oof_high": high, "public": public}
    date = f"2026-01-{i + 1:02}T12:00:00+00:00"
    return Entry(date, f"{i}.csv", f"{i:064x}", f"runs/{i}", decision="plain", **scores)


@pytest.fixture
def file(tmp_path):
    """Where a ledger is to be."""
    return tmp_path / "ledger.csv"


@pytest.fixture
def submission(tmp_path):
    (tmp_path / "s.csv").write_text("ImageID,ans\na.jpg,3\n")
    return tmp_path / "s.csv"


def test_entries_are_read_as_written_also_through_a_link(file, tmp_path):
    shared = tmp_path / "shared" / "ours.csv"
    file.symlink_to(shared)
    # characters that cannot be printed, and those beyond a cell, are not written
    odd = replace(entry(2), file="a\udcff\x1b[2J\n.csv", note="x" * 5000)
    assert (odd.file, odd.note) == ("a��[2J .csv", "x" * 4096)
    for noted in (FULL, entry(1), odd):
        note(file, noted)
    assert file.is_symlink()
    assert read_ledger(shared) == read_ledger(file) == [FULL, entry(1), odd]
    assert shared.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [path.name for path in shared.parent.iterdir()] == ["ours.csv"]


def test_the_ledger_is_next_to_the_runs(tmp_path, monkeypatch):
    (tmp_path / "runs" / "b4").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "b4")
    assert ledger_of(".") == ledger_of(tmp_path / "runs" / "b4") == tmp_path / "runs" / "ledger.csv"


def test_an_entry_has_the_score_and_the_digest_of_a_submission(submission):
    made = entry_of(submission, Score(0.75, 0.79, 100, (0.72, 0.78), (0.77, 0.81)), run="runs/b4", tta=2)
    assert (made.oof_macro_f1, made.oof_low, made.oof_high, made.oof_accuracy) == (0.75, 0.72, 0.78, 0.79)
    # as sha256sum prints it
    assert made.sha256 == hashlib.sha256(submission.read_bytes()).hexdigest()
    assert made.date.endswith("+00:00")
    assert len(made.date) == len("2026-01-31T12:00:00+00:00")


def test_the_same_bytes_have_one_row_which_keeps_the_leaderboards_score(file):
    unscored = {"public": None, "public_accuracy": None, "note": ""}
    again = replace(FULL, date="2026-02-01T12:00:00+00:00", run="runs/other", **unscored)
    for noted in (FULL, entry(1), again):
        note(file, noted)
    assert read_ledger(file) == [entry(1), replace(FULL, date=again.date, run="runs/other")]


def test_a_public_score_is_found_by_a_copy_under_another_name(submission, file, tmp_path):
    noted = entry_of(submission, run="runs/b4", decision="plain")
    note(file, noted)
    copy = tmp_path / "handed in.csv"
    copy.write_bytes(submission.read_bytes())
    scored = add_public(file, copy, 0.757, accuracy=79.476, note="third try")
    assert read_ledger(file) == [scored]
    assert scored == replace(noted, public=0.757, public_accuracy=pytest.approx(0.79476), note="third try")


def test_another_score_needs_overwrite(submission, file):
    # a file of no run is a row without one
    add_public(file, submission, 1 / 3)
    (row,) = read_ledger(file)
    assert (row.file, row.sha256, row.run, row.oof_macro_f1) == (str(submission), digest(submission), "", None)
    # the same score may be given again, and others added
    assert add_public(file, submission, 1 / 3, accuracy=0.5).public_accuracy == 0.5
    before = file.read_bytes()
    with pytest.raises(UsageError, match=r"ledger\.csv, column public: .*s\.csv has 0\.333333 already, not 0\.4; repl"):
        add_public(file, submission, 0.4)
    with pytest.raises(UsageError, match=r"column public_accuracy: .* has 0\.5 already, not 0\.6"):
        add_public(file, submission, 1 / 3, accuracy=60)
    assert file.read_bytes() == before
    assert add_public(file, submission, 0.4, overwrite=True).public == 0.4
    assert read_ledger(file)[0].public_accuracy == 0.5


@pytest.mark.parametrize(
    ("public", "accuracy", "message"),
    [
        (75.7, None, r"macro-F1 is 75\.7; expected a share from 0 to 1: for 75\.7 % give 0\.757"),
        (-0.1, None, r"macro-F1 is -0\.1; expected a share from 0 to 1\.$"),
        (float("nan"), None, "macro-F1 is nan"),
        (0.7, 101, "accuracy is 101; expected a share from 0 to 1, or a percentage"),
        (0.7, -1, "accuracy is -1"),
        (0.7, float("nan"), "accuracy is nan"),
    ],
)
def test_a_score_that_cannot_be_one_is_refused(submission, file, public, accuracy, message):
    with pytest.raises(UsageError, match=message):
        add_public(file, submission, public, accuracy)
    assert not file.exists()


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("public", "good", "found 'good', expected a number from 0 to 1, or nothing"),
        ("public", "-0.5", "found '-0.5', expected a number from 0 to 1"),
        ("public", "75.7", "found '75.7'"),
        ("public_accuracy", "nan", "found 'nan'"),
        ("oof_macro_f1", "0,75", "found '0,75'"),
        ("oof_low", "0.76", r"found '0\.76', expected an interval around the oof_macro_f1 of 0\.75"),
        ("oof_high", "0.74", r"found '0\.74', expected an interval around"),
        ("tta", "2.5", r"found '2\.5', expected a whole number from 1"),
        ("tta", "0", "found '0'"),
        ("date", "yesterday", "found 'yesterday', expected a date such as"),
        ("sha256", "abc", "found 'abc', expected the 64 digits"),
        ("sha256", f"{1:064x}", "found '0+1' a second time, expected each submission once"),
    ],
)
def test_an_invalid_cell_is_named_and_the_file_stays(submission, file, column, cell, message):
    note(file, entry(1))
    note(file, FULL)
    frame = pd.read_csv(file, dtype=str)
    frame.loc[1, column] = cell
    frame.to_csv(file, index=False)
    before = file.read_bytes()
    with pytest.raises(DataError, match=rf"ledger\.csv, line 3, column {column}: {message}"):
        read_ledger(file)
    for change in (lambda: note(file, entry(2)), lambda: add_public(file, submission, 0.5)):
        with pytest.raises(DataError, match="line 3"):
            change()
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["ledger.csv", "s.csv"]


def test_other_columns_are_named(file, tmp_path):
    for columns, message in ((COLUMNS[:-1], "no column 'caveats'"), ([*COLUMNS, "mine"], "an unknown column 'mine'")):
        file.write_text(",".join(columns))
        with pytest.raises(DataError, match=rf"ledger\.csv has {message}"):
            read_ledger(file)
    with pytest.raises(UsageError, match=r"b\.csv is not a file; expected a CSV with the columns date"):
        read_ledger(tmp_path / "b.csv")
    with pytest.raises(UsageError, match="is not a plain file"):
        note(tmp_path, FULL)


def note_many(file, first, count, begin):
    begin.wait(60)
    for i in range(first, first + count):
        note(file, replace(entry(0), file=f"{i}.csv", sha256=f"{i:064x}"))


@pytest.mark.slow
@pytest.mark.semaphores
def test_processes_that_write_at_once_lose_nothing(file):
    processes = multiprocessing.get_context("spawn")
    begin = processes.Barrier(3)
    jobs = [processes.Process(target=note_many, args=(str(file), 20 * i, 20, begin)) for i in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    noted = [row.file for row in read_ledger(file)]
    assert sorted(noted, key=lambda name: int(name[:-4])) == [f"{i}.csv" for i in range(60)]
    # those of each process are in its order
    assert [name for name in noted if int(name[:-4]) < 20] == [f"{i}.csv" for i in range(20)]
    assert [path.name for path in file.parent.iterdir()] == ["ledger.csv"]


@pytest.mark.slow
def test_a_write_that_is_killed_leaves_the_old_file(file):
    note(file, FULL)
    before = file.read_bytes()
    code = f"""
import os, signal
from fastmask.evaluation.ledger import Entry, note
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
note({str(file)!r}, Entry("2026-01-31", "b.csv", "b" * 64))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert file.read_bytes() == before
    # its lock, now free, and a partial file
    assert {path.suffix for path in file.parent.iterdir()} == {".csv", ".lock", ".part"}
    note(file, entry(1))
    assert read_ledger(file) == [FULL, entry(1)]
    assert [path.name for path in file.parent.iterdir()] == ["ledger.csv"]


def test_a_ledger_that_is_locked_for_long_is_an_error(file, monkeypatch):
    monkeypatch.setattr(module, "_WAIT", 0.1)
    message = "has been written by another process for 0 s; end it, or wait"
    with FileLock(file.parent / ".ledger.csv.lock"), pytest.raises(UsageError, match=message):
        note(file, FULL)


# OOF in ranks 1 2 3 4, public in ranks 1 3 2 4: Spearman's 1 - 6 * (1 + 1) / (4 * 15) = 0.8
FOUR = [entry(0, 0.70, 0.70), entry(1, 0.71, 0.74), entry(2, 0.72, 0.71), entry(3, 0.73, 0.75)]


def test_the_summary_shows_how_oof_and_leaderboard_agree():
    rows = [*reversed(FOUR), replace(entry(9, public=0.8007), run="", decision=""), entry(8, 0.7)]
    lines = summary(rows).splitlines()
    assert lines[0].split("  ")[0] == "date"
    # the newest last
    assert [line.split("  ")[1] for line in lines[1:7]] == ["0.csv", "1.csv", "2.csv", "3.csv", "8.csv", "9.csv"]
    assert lines[1] == "2026-01-01 12:00  0.csv  runs/0  plain     0.7000 (0.6900 … 0.7100)  0.7000  +0.0000"
    assert lines[5].endswith("0.7000 (0.6900 … 0.7100)")
    assert lines[6].split() == ["2026-01-10", "12:00", "9.csv", "0.8007"]
    # (0 + 0.03 - 0.01 + 0.02) / 4
    assert lines[8] == (
        "4 submissions have both: public - OOF is +0.0100 on average; Spearman's rank correlation of the two is +0.80."
    )
    assert lines[9] == "Of 4 public scores 2 lie in OOF's 95 % interval, 0 below, 2 above."


def test_a_summary_of_few_equal_or_long_entries():
    assert summary([]) == "The ledger has no submissions."
    assert len(summary(FOUR[:2]).splitlines()) == 3
    assert "there is no rank correlation" in summary([replace(row, public=0.7) for row in FOUR])
    assert "interval" not in summary([replace(row, oof_low=None, oof_high=None) for row in FOUR])
    assert "…" + "x" * 25 + "/7.csv" in summary([replace(entry(7), file="x" * 100 + "/7.csv")])


def test_a_score_that_flatters_is_marked_and_left_out():
    rows = [entry(i, 0.7 + i / 100, 0.6 + i / 50) for i in range(3)]
    leaky = replace(entry(4, 0.95, 0.5), caveats="Leaky split.", note="mine")
    text = summary([*rows, leaky])
    assert summary(rows).splitlines()[-2:] == text.splitlines()[-2:]
    assert "0.9500 (0.9400 … 0.9600) !" in text
    assert "4.csv: Leaky split." in text
    assert "4.csv: mine" in text
