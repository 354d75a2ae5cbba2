import hashlib
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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


def entry(i: int, oof: float | None = None, public: float | None = None, half: float = 0.01) -> Entry:
    low, high = (None, None) if oof is None else (oof - half, oof + half)
    return Entry(
        f"2026-01-{i + 1:02}T12:00:00+00:00",
        f"{i}.csv",
        f"{i:064x}",
        f"runs/{i}",
        decision="plain",
        oof_macro_f1=oof,
        oof_low=low,
        oof_high=high,
        public=public,
    )


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    (tmp_path / "s.csv").write_text("ImageID,ans\na.jpg,3\n")
    return tmp_path / "s.csv"


def test_what_is_noted_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "ledger.csv"
    known_little = entry(1)
    for noted in (FULL, known_little):
        note(file, noted)
    assert read_ledger(file) == [FULL, known_little]
    assert file.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [path.name for path in file.parent.iterdir()] == ["ledger.csv"]


def test_the_ledger_lies_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "b4").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "b4")
    assert ledger_of(".") == ledger_of(tmp_path / "runs" / "b4") == tmp_path / "runs" / "ledger.csv"


def test_an_entry_says_what_the_file_promises(submission: Path) -> None:
    made = entry_of(submission, Score(0.75, 0.79, 100, (0.72, 0.78), (0.77, 0.81)), run="runs/b4", tta=2)
    assert (made.oof_macro_f1, made.oof_low, made.oof_high, made.oof_accuracy) == (0.75, 0.72, 0.78, 0.79)
    # as sha256sum prints it
    assert made.sha256 == hashlib.sha256(submission.read_bytes()).hexdigest()
    assert made.date.endswith("+00:00")
    assert len(made.date) == len("2026-01-31T12:00:00+00:00")


def test_the_same_bytes_stand_once_and_keep_the_leaderboard_s_score(tmp_path: Path) -> None:
    file = tmp_path / "ledger.csv"
    again = replace(
        FULL, date="2026-02-01T12:00:00+00:00", run="runs/other", public=None, public_accuracy=None, note=""
    )
    for noted in (FULL, entry(1), again):
        note(file, noted)
    assert read_ledger(file) == [entry(1), replace(FULL, date=again.date, run="runs/other")]


def test_a_public_score_is_found_by_a_copy_under_another_name(submission: Path, tmp_path: Path) -> None:
    file = tmp_path / "ledger.csv"
    noted = entry_of(submission, run="runs/b4", decision="plain")
    note(file, noted)
    copy = tmp_path / "handed in.csv"
    copy.write_bytes(submission.read_bytes())
    scored = add_public(file, copy, 0.757, accuracy=79.476, note="third try")
    assert read_ledger(file) == [scored]
    assert scored == replace(noted, public=0.757, public_accuracy=pytest.approx(0.79476), note="third try")


def test_a_file_of_no_run_is_a_row_without_one(submission: Path, tmp_path: Path) -> None:
    add_public(tmp_path / "ledger.csv", submission, 0.8007, accuracy=0.8287)
    (row,) = read_ledger(tmp_path / "ledger.csv")
    assert (row.file, row.sha256, row.run, row.oof_macro_f1) == (str(submission), digest(submission), "", None)
    assert (row.public, row.public_accuracy) == (0.8007, 0.8287)


def test_another_score_needs_overwrite(submission: Path, tmp_path: Path) -> None:
    file = tmp_path / "ledger.csv"
    add_public(file, submission, 1 / 3)
    # what is there may be said again, and added to
    add_public(file, submission, 1 / 3, accuracy=0.5)
    before = file.read_bytes()
    with pytest.raises(UsageError, match=r"ledger\.csv, column public: .*s\.csv has 0\.333333 already, not 0\.4; repl"):
        add_public(file, submission, 0.4)
    with pytest.raises(UsageError, match="column public_accuracy: .* has 0.5 already, not 0.6"):
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
def test_a_score_that_cannot_be_one_is_refused(
    submission: Path, tmp_path: Path, public: float, accuracy: float | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        add_public(tmp_path / "ledger.csv", submission, public, accuracy)
    assert not (tmp_path / "ledger.csv").exists()


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
def test_a_damaged_cell_is_named_and_the_file_stays(
    submission: Path, tmp_path: Path, column: str, cell: str, message: str
) -> None:
    file = tmp_path / "ledger.csv"
    note(file, entry(1))
    note(file, FULL)
    rows = [line.split(",") for line in file.read_text().splitlines()]
    # the cells before the last do not hold commas, but for these two
    cells = dict(zip(COLUMNS, [*rows[2][:4], "m", rows[2][6], "f1", *rows[2][9:15], "n", ""], strict=True)) | {
        column: cell
    }
    head, first = file.read_text().splitlines()[:2]
    file.write_text("\n".join([head, first, ",".join(f'"{c}"' for c in cells.values())]) + "\n")
    before = file.read_bytes()
    with pytest.raises(DataError, match=rf"ledger\.csv, line 3, column {column}: {message}"):
        read_ledger(file)
    for change in (lambda: note(file, entry(2)), lambda: add_public(file, submission, 0.5)):
        with pytest.raises(DataError, match="line 3"):
            change()
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.csv", "s.csv"]


def test_other_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(COLUMNS[:-1]))
    with pytest.raises(DataError, match=r"a\.csv has no column 'caveats'"):
        read_ledger(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(",".join([*COLUMNS, "mine"]))
    with pytest.raises(DataError, match=r"a\.csv has a column 'mine', which is none of a ledger"):
        read_ledger(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"b\.csv is not a file; expected a CSV with the columns date"):
        read_ledger(tmp_path / "b.csv")
    with pytest.raises(UsageError, match="is not a plain file"):
        note(tmp_path, FULL)


def test_names_that_cannot_be_printed_do_not_damage_it(tmp_path: Path) -> None:
    note(tmp_path / "ledger.csv", replace(FULL, file="a\udcff\x1b[2J\n.csv", note="x" * 5000))
    (row,) = read_ledger(tmp_path / "ledger.csv")
    assert (row.file, row.note) == ("a��[2J .csv", "x" * 4096)


def test_a_link_to_a_shared_ledger_stays_one(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "ledger.csv").symlink_to(tmp_path / "shared" / "ours.csv")
    note(tmp_path / "ledger.csv", FULL)
    assert (tmp_path / "ledger.csv").is_symlink()
    assert read_ledger(tmp_path / "shared" / "ours.csv") == [FULL]


def note_many(file: str, first: int, count: int, begin: "multiprocessing.synchronize.Barrier") -> None:
    begin.wait(60)
    for i in range(first, first + count):
        note(file, Entry("2026-01-31T12:00:00+00:00", f"{i}.csv", f"{i:064x}"))


@pytest.mark.semaphores
def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    begin = processes.Barrier(3)
    jobs = [
        processes.Process(target=note_many, args=(str(tmp_path / "ledger.csv"), 20 * i, 20, begin)) for i in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    noted = [row.file for row in read_ledger(tmp_path / "ledger.csv")]
    assert sorted(noted, key=lambda name: int(name[:-4])) == [f"{i}.csv" for i in range(60)]
    # each process's own stand in its order
    assert [name for name in noted if int(name[:-4]) < 20] == [f"{i}.csv" for i in range(20)]
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.csv"]


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "ledger.csv"
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
    # its lock, which nobody holds now, and what it wrote beside
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".lock", ".part"}
    note(file, entry(1))
    assert read_ledger(file) == [FULL, entry(1)]
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.csv"]


def test_one_that_holds_it_for_long_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT", 0.1)
    with (
        FileLock(tmp_path / ".ledger.csv.lock"),
        pytest.raises(UsageError, match="has been written by another process for 0 s; end it, or wait"),
    ):
        note(tmp_path / "ledger.csv", FULL)


# OOF in ranks 1 2 3 4, public in ranks 1 3 2 4: Spearman's 1 - 6 * (1 + 1) / (4 * 15) = 0.8
FOUR = [entry(0, 0.70, 0.70), entry(1, 0.71, 0.74), entry(2, 0.72, 0.71), entry(3, 0.73, 0.75)]


def test_the_summary_says_how_oof_and_leaderboard_agree() -> None:
    rows = [*reversed(FOUR), replace(entry(9, public=0.8007), run="", decision=""), entry(8, 0.7)]
    lines = summary(rows).splitlines()
    assert lines[0].split("  ")[0] == "date"
    # the newest last
    assert [line.split("  ")[1] for line in lines[1:7]] == ["0.csv", "1.csv", "2.csv", "3.csv", "8.csv", "9.csv"]
    assert lines[1] == ("2026-01-01 12:00  0.csv  runs/0  plain     0.7000 (0.6900 … 0.7100)  0.7000  +0.0000")
    assert lines[5].endswith("0.7000 (0.6900 … 0.7100)")
    assert lines[6].split() == ["2026-01-10", "12:00", "9.csv", "0.8007"]
    # (0 + 0.03 - 0.01 + 0.02) / 4
    assert lines[8] == (
        "4 submissions have both: public - OOF is +0.0100 on average; Spearman's rank correlation of the two is +0.80."
    )
    assert lines[9] == "Of 4 public scores 2 lie in OOF's 95 % interval, 0 below, 2 above."


def test_a_summary_of_few_or_equal_scores_says_no_more_than_it_can() -> None:
    assert summary([]) == "The ledger has no submissions."
    assert len(summary(FOUR[:2]).splitlines()) == 3
    assert "there is no rank correlation" in summary([replace(row, public=0.7) for row in FOUR])
    without = [replace(row, oof_low=None, oof_high=None) for row in FOUR]
    assert "interval" not in summary(without)


def test_long_names_keep_their_end() -> None:
    assert "…" + "x" * 25 + "/7.csv" in summary([replace(entry(7), file="x" * 100 + "/7.csv")])


def test_a_score_that_flatters_is_marked_and_counts_for_nothing() -> None:
    rows = [entry(i, 0.7 + i / 100, 0.6 + i / 50) for i in range(3)]
    leaky = replace(entry(4, 0.95, 0.5), caveats="Leaky split.", note="mine")
    text = summary([*rows, leaky])
    assert summary(rows).splitlines()[-2:] == text.splitlines()[-2:]
    assert "0.9500 (0.9400 … 0.9600) !" in text
    assert "4.csv: Leaky split." in text
    assert "4.csv: mine" in text
