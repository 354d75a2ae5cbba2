"""Marks: what is written is read by pandas and by apply_fixes; no mark is lost."""

import shutil
import subprocess
import sys
import threading

import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.app.marks import Mark, add_mark, check_marks, marks_on, place_of, read_marks, remove_mark
from fastmask.data.contest import read_contest
from fastmask.data.fixes import apply_fixes
from fastmask.system.errors import DataError, UsageError


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


@pytest.fixture(scope="module")
def persons(table):
    """The first two persons."""
    return list(dict.fromkeys(table.persons))[:2]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "fixes.csv"


def rows_of(file):
    return pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")


def test_marks_of_a_photo_and_of_a_person_are_fixes(table, persons, file):
    (one, two), path = persons, table.frame["path"][3]
    assert add_mark(file, Mark(one, path, "mask", "none", "wear"), table) is None
    assert add_mark(file, Mark(two, "", "age", "61", "25"), table) is None
    assert file.read_text() == f"person,path,column,value,label\n,{path},mask,none,wear\n{two},,age,61,25\n"
    fixed = apply_fixes(table, file).frame
    assert fixed["mask"][3] == "none"
    assert (fixed.loc[fixed["person"] == two, "age"] == "60+").all()
    changed = fixed[["mask", "gender", "age"]].ne(table.frame[["mask", "gender", "age"]]).to_numpy().sum()
    assert changed <= 1 + 7


def test_a_mark_is_replaced_by_one_with_the_same_target_and_removed(table, persons, file):
    one, two = persons
    add_mark(file, Mark(one, "", "gender", "male"), table)
    add_mark(file, Mark(two, "", "gender", "male"), table)
    before = add_mark(file, Mark(one, "", "gender", ""), table)
    assert before is not None
    assert (before.value, before.line) == ("male", 2)
    assert [mark.value for mark in read_marks(file)] == ["", "male"]
    assert remove_mark(file, (one, "", "gender"), table).value == ""
    assert [mark.person for mark in read_marks(file)] == [two]
    with pytest.raises(UsageError, match="not in .* any more"):
        remove_mark(file, (one, "", "gender"), table)
    remove_mark(file, (two, "", "gender"), table)
    assert read_marks(file) == []
    assert apply_fixes(table, file).frame.equals(table.frame)
    add_mark(file, Mark(one, "", "gender", "male"), table)
    assert len(read_marks(file)) == 1


def test_a_table_of_the_user_is_kept_and_extended(table, persons, file):
    (one, two), path = persons, table.frame["path"][10]
    file.write_text(f'note,value,column,person\n"looked, twice",female,gender,{one}\nmoved,{one},person,{two}\n')
    add_mark(file, Mark(two, path, "mask", "wear", "none"), table)
    assert file.read_text().splitlines()[0] == "note,value,column,person,path"
    assert [list(row.values()) for row in rows_of(file)] == [
        ["looked, twice", "female", "gender", one, ""],
        ["moved", one, "person", two, ""],
        ["", "wear", "mask", "", path],
    ]


def test_a_proposal_that_the_user_confirms_is_no_proposal_any_more(table, persons, file):
    columns = "person,path,column,value,label,suggested,probability,proposed"
    file.write_text(f"{columns}\n{persons[0]},,gender,male,female,male,0.9,oof\n")
    assert read_marks(file)[0].proposed
    add_mark(file, Mark(persons[0], "", "gender", "male", "female"), table)
    (row,) = rows_of(file)
    assert (row["proposed"], row["probability"], row["value"]) == ("", "0.9", "male")
    assert apply_fixes(table, file).proposed == 0


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_mark_is_found_however_its_path_is_written(table, file, prefix):
    path = table.frame["path"][3]
    file.write_text(f"path,column,value\n{prefix or f'{table.root.absolute()}/'}{path},mask,none\n")
    (mark,) = read_marks(file, table)
    assert mark.path == path
    assert add_mark(file, Mark("", path, "mask", "wear"), table) == mark


def test_contradicting_rows_are_refused(table, persons, file):
    one, path = persons[0], table.frame["path"][0]
    add_mark(file, Mark(one, path, "gender", "male"), table)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="line 2, already corrects gender of one of these photos"):
        add_mark(file, Mark(one, "", "gender", "female"), table)
    assert file.read_bytes() == before
    remove_mark(file, ("", path, "gender"), table)
    add_mark(file, Mark(one, "", "gender", "male"), table)
    with pytest.raises(UsageError, match=f"line 2, already corrects gender of all photos of {one}"):
        add_mark(file, Mark(one, path, "gender", "female"), table)
    add_mark(file, Mark(one, path, "mask", "none"), table)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (("nobody", "", "gender", "male"), r"fixes.csv, line 2, column person: no photo .* matches 'nobody'"),
        (("", "nowhere.jpg", "mask", "none"), "column path: no photo"),
        (("FIRST", "", "gender", "man"), "column value: found 'man', expected one of male, female"),
        (("FIRST", "", "age", "old"), "column value: found 'old', expected a number"),
        (("FIRST", "", "age", "1e9"), "column value: found '1e9', expected a number"),
        (("FIRST", "", "hat", "yes"), "column column: found 'hat'"),
    ],
)
def test_a_mark_that_fit_would_refuse_is_not_written(table, persons, file, mark, message):
    with pytest.raises(DataError, match=message):
        add_mark(file, Mark(*(part.replace("FIRST", persons[0]) for part in mark)), table)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "column,value\ngender,male\n", 'column,value,person\n"a'])
def test_another_file_stays_as_it_is(table, file, text):
    file.write_text(text)
    for work in (lambda: read_marks(file), lambda: add_mark(file, Mark("a", "", "gender", "male"), table)):
        with pytest.raises(DataError, match=r"fixes.csv"):
            work()
    assert file.read_text() == text


def test_a_broken_row_is_reported_before_the_page_opens(table, file):
    check_marks(file, table)
    file.write_text("person,column,value\nnobody,gender,male\n")
    with pytest.raises(DataError, match="line 2, column person"):
        check_marks(file, table)


def test_marks_on_a_photo():
    marks = [Mark("a", "", "gender", "male"), Mark("", "a/1.jpg", "mask", "none"), Mark("b", "", "gender", "male")]
    assert marks_on(marks, "a", "a/1.jpg") == {"gender": marks[0], "mask": marks[1]}
    assert marks_on(marks, "a", "a/2.jpg") == {"gender": marks[0]}
    assert marks_on(marks, "c", "c/1.jpg") == {}


WRITE = """
import sys, threading
from pathlib import Path
from fastmask.app.marks import Mark, add_mark
from fastmask.data.contest import read_contest

table, file = read_contest(sys.argv[1]), Path(sys.argv[2])
def write(paths):
    for path in paths:
        add_mark(file, Mark("", path, "age", "61"), table)
threads = [threading.Thread(target=write, args=(sys.argv[i::2],)) for i in (3, 4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.mark.slow
def test_no_mark_is_lost_between_processes_and_threads(table, file, contest):
    paths = table.frame["path"].tolist()[:48]
    command = [sys.executable, "-W", "ignore", "-c", WRITE, str(contest), str(file)]
    for process in [subprocess.Popen([*command, *half]) for half in (paths[:24], paths[24:])]:
        assert process.wait() == 0
    assert sorted(mark.path for mark in read_marks(file)) == sorted(paths)
    assert (apply_fixes(table, file).frame["age"][:48] == "60+").all()
    assert [path.name for path in file.parent.iterdir()] == ["fixes.csv"]


def test_no_mark_is_lost_between_threads(table, file):
    paths = table.frame["path"].tolist()[:8]
    work = [(file, Mark("", path, "age", "61"), table) for path in paths]
    threads = [threading.Thread(target=add_mark, args=arguments) for arguments in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(mark.path for mark in read_marks(file)) == sorted(paths)


def test_a_link_to_a_table_stays_one(table, persons, tmp_path):
    (tmp_path / "shared.csv").write_text("person,column,value\n")
    (tmp_path / "fixes.csv").symlink_to("shared.csv")
    add_mark(tmp_path / "fixes.csv", Mark(persons[0], "", "gender", "male"), table)
    assert (tmp_path / "fixes.csv").is_symlink()
    assert len(read_marks(tmp_path / "shared.csv")) == 1


def test_marks_go_to_the_fix_table_of_the_run_or_next_to_the_run(finished_run, run_copy):
    assert place_of(finished_run) == finished_run.path.parent / "fixes.csv"
    own = run_copy.parent / "own.csv"
    config = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(config.replace("fixes: null", f"fixes: {own}"))
    assert place_of(Run.load(run_copy)) == run_copy.parent / "fixes.csv"
    own.write_text("person,column,value\n")
    assert place_of(Run.load(run_copy)) == own


def test_marks_never_go_into_a_run(finished_run, run_copy):
    shutil.copy(run_copy / "oof.csv", run_copy.parent / "ledger.csv")
    for file, message in (
        (finished_run.path / "fixes.csv", "is in the run directory"),
        (run_copy / "oof.csv", "part of a run"),
        (run_copy.parent, "not a plain file"),
        (run_copy.parent / "ledger.csv", "ledger"),
    ):
        with pytest.raises(UsageError, match=message):
            place_of(finished_run, file)
