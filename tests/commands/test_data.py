"""check and sample."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

DONE, FAILED, INVALID = 0, 1, 2
Command = Callable[..., Any]


def test_check_finds_nothing_in_the_sample(contest: Path, fastmask: Command, invalid: Command) -> None:
    answer = fastmask("check", contest, "--folds", 2)
    assert (answer.code, answer.out) == (DONE, "Nothing wrong found.\n")
    invalid("check", "nowhere", named=["nowhere is not a contest folder"])


def test_check_says_all_at_once_and_exits_1(contest_copy: Path, fastmask: Command, invalid: Command) -> None:
    person = min((contest_copy / "train" / "images").glob("0*"))
    (person / "normal.jpg").write_bytes(b"")
    (person / "mask1.jpg").unlink()
    answer = fastmask("check", contest_copy, "--folds", 2, "--out", "found.csv")
    assert (answer.code, answer.errors) == (FAILED, [])
    assert pd.read_csv("found.csv")["kind"].tolist() == ["missing photos", "unreadable"]
    assert "unreadable" in answer.out
    invalid("check", contest_copy, "--out", "found.csv", named=["found.csv exists"])
    assert fastmask("check", contest_copy, "--crop", 600, 200, "--out", "found.csv", "--overwrite").code == FAILED


def test_sample_writes_a_folder_that_fit_can_read(fastmask: Command, work: Path) -> None:
    answer = fastmask("sample", "drawn", "--persons", 6, "--seed", 1)
    assert (answer.code, answer.err) == (DONE, [])
    assert answer.out.startswith(f"{work / 'drawn'}: 42 photos of 6 persons in train")
    assert len(pd.read_csv(work / "drawn" / "train" / "train.csv")) == 6


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["full"], ["full", "not an empty folder"]),
        (["full/file"], ["full/file", "not an empty folder"]),
        (["new", "--persons", 2], ["6 persons", "2"]),
        (["new", "--seed", -1], ["-1"]),
    ],
)
def test_invalid_samples_are_refused(words: list[Any], named: list[str], work: Path, invalid: Command) -> None:
    (work / "full").mkdir()
    (work / "full" / "file").write_text("mine")
    invalid("sample", *words, named=named)


@pytest.mark.filterwarnings("always::fastmask.system.errors.FastmaskWarning")
def test_check_and_fit_say_what_is_no_head_and_which_labels_are_spelled_in_two_ways(
    contest: Path, fastmask: Command, small: list[str], work: Path
) -> None:
    photos = sorted(path.relative_to(contest).as_posix() for path in (contest / "train" / "images").rglob("*.jpg"))[:24]
    rows = "".join(
        f"{p.upper()},{i // 2},{['RED', 'red', 'blue'][i % 3]},2021-08-2{i % 3}\n" for i, p in enumerate(photos)
    )
    (work / "my.csv").write_text(f"Image;Person;colour;taken\n{rows.replace(',', ';')}")
    settings = "--images", contest, "--folds", 2
    for words in (["check", "my.csv", *settings], [*small, "--data", "my.csv", *settings, "--out", "r", "--dry-run"]):
        said = " ".join(fastmask(*words).err)
        assert "The heads of my.csv are colour; not taken (dates); --heads names the columns to take." in said
        assert "my.csv, column colour: 'RED' (8), 'red' (8) are 2 classes; if they are one" in said
