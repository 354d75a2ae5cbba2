"""compare, diff and ledger."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.evaluation.comparison import compare
from fastmask.evaluation.decisions import decide
from fastmask.heads import Head, Heads

DONE, FAILED, INVALID = 0, 1, 2
Command = Callable[..., Any]


def test_compare_prints_results_side_by_side(
    finished_run: Run, run_copy: Path, fastmask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = fastmask(
        "compare", finished_run.path, run_copy, "--names", "first,second", "--out", "c.csv", "--plot", "c.png"
    )
    assert answer.code == DONE, answer.errors
    assert answer.out == f"{compare([finished_run, run_copy], ['first', 'second'])}\n"
    assert pd.read_csv("c.csv")["name"].tolist() == ["first", "second"]
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    plain = json.loads(fastmask("compare", finished_run.path, run_copy, "--draws", 200, "--json").out)
    assert plain["results"][0]["joint"]["macro_f1"] == finished_run.score(draws=0).joint.macro_f1
    assert plain["results"][1]["against"]["p"] == 1


def test_compare_fits_its_tables_into_the_terminal(
    finished_run: Run, run_copy: Path, fastmask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    narrow = fastmask("compare", finished_run.path, run_copy).out
    assert narrow == compare([finished_run, run_copy]).text(60) + "\n"


def test_invalid_arguments_of_compare(finished_run: Run, run_copy: Path, work: Path, invalid: Command) -> None:
    (work / "mine.csv").write_text("mine")
    runs = (finished_run.path, run_copy)
    invalid("compare", *runs, "--out", "mine.csv", named=["mine.csv exists"])
    invalid("compare", *runs, "--plot", "c.jpg", named=["ending in .png"])
    invalid("compare", run_copy, named=["two or more results"])
    invalid("compare", run_copy, work, named=["not a run"])
    invalid("compare", run_copy, "mine.csv", named=["mine.csv has no rows"], code=FAILED)
    (run_copy / "oof.csv").unlink()
    invalid("compare", *runs, named=["has not finished"])


def test_compare_never_writes_over_what_it_reads(finished_run: Run, work: Path, invalid: Command) -> None:
    finished_run.oof.to_csv(work / "theirs.csv", index=False)
    words = ("compare", finished_run.path, "theirs.csv", "--out", "theirs.csv", "--overwrite")
    invalid(*words, named=["is an input"])


def test_diff_says_where_two_submissions_differ_and_what_to_expect(
    submit: Command, run_copy: Path, fastmask: Command
) -> None:
    submit("a.csv")
    submit("b.csv", "--decision", "f1")
    a, b = (pd.read_csv(name)["ans"] for name in ("a.csv", "b.csv"))
    ledger = run_copy.parent / "ledger.csv"
    answer = fastmask("diff", "a.csv", "b.csv", "--ledger", ledger, "--json", "--out", "differing.csv")
    assert answer.code == DONE, answer.errors
    plain = json.loads(answer.out)
    assert plain["differing"] == int((a != b).sum()) == len(pd.read_csv("differing.csv"))
    rows = decide(run_copy).rows
    assert plain["expected"]["difference"]["macro_f1"] == pytest.approx(rows[2].score.macro_f1 - rows[0].score.macro_f1)
    assert "No expectation" in fastmask("diff", "a.csv", "b.csv").out


def test_diff_reads_the_heads_of_its_runs(run_of: Command, fastmask: Command, work: Path) -> None:
    heads = Heads([Head("colour", ("red", "green")), Head("size", ("small", "large"))])
    y = np.random.default_rng(0).integers(0, 2, (70, 2))
    run = run_of(np.full((70, 4), 0.5), y, heads=heads)
    for name, number in (("a.csv", 0), ("b.csv", 3)):
        (work / name).write_text(f"path,predicted,colour.red,size.small\n1.jpg,{number},0.5,0.5\n")
    answer = fastmask("diff", "a.csv", "b.csv", "--runs", f"{run.path}", f"{run.path}")
    assert answer.code == DONE, answer.errors
    assert "in colour 1, size 1" in answer.out
    assert fastmask("diff", "a.csv", "b.csv").code == FAILED


def test_what_the_leaderboard_said_of_a_submission_is_kept(
    submit: Command, run_copy: Path, fastmask: Command, invalid: Command, work: Path
) -> None:
    submit("s.csv")
    ledger = run_copy.parent / "ledger.csv"
    answer = fastmask("ledger", "add", "s.csv", "--public", 0.757, "--accuracy", 79.476, "--ledger", ledger)
    assert answer.code == DONE
    assert "0.757" in answer.out
    assert fastmask("ledger", "show", "--ledger", ledger).out == answer.out
    assert pd.read_csv(ledger).loc[0, ["public", "public_accuracy"]].tolist() == [0.757, 0.79476]
    assert fastmask("ledger", "plot", "--ledger", ledger, "--out", "ledger.png").code == DONE
    assert Path("ledger.png").read_bytes().startswith(b"\x89PNG")
    (work / "probabilities.csv").write_text("path,predicted\na.jpg,3\n")
    invalid(
        "ledger",
        "add",
        "probabilities.csv",
        "--public",
        0.5,
        named=["probabilities.csv holds probabilities"],
        code=FAILED,
    )
