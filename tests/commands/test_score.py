"""score, decide and label-errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.api import Run
from fastmask.evaluation.decisions import decide

DONE, FAILED, INVALID = 0, 1, 2
Command = Callable[..., Any]


def test_score_of_a_run_is_that_of_its_fit(finished_run: Run, fastmask: Command) -> None:
    answer = fastmask("score", finished_run.path)
    assert (answer.code, answer.err) == (DONE, [])
    oof = pd.read_csv(finished_run.path / "oof.csv")
    expected = f1_score(oof["true"], oof["predicted"], labels=oof["true"].unique(), average="macro", zero_division=0)
    assert answer.out.splitlines()[1].split()[:2] == ["joint", f"{expected:.4f}"]
    scores = json.loads(fastmask("score", finished_run.path, "--json").out)
    written = json.loads((finished_run.path / "scores.json").read_text())
    assert scores == {name: written[name] for name in ("joint", "heads", "notes")}


@pytest.mark.parametrize("submission", [True, False], ids=["submission", "probabilities"])
def test_score_of_predictions_against_answers_is_scikit_learns(
    submission: bool, finished_run: Run, contest: Path, fastmask: Command
) -> None:
    info = ["--submission", contest / "eval" / "info.csv"] if submission else []
    fastmask("predict", finished_run.path, contest / "eval" / "images", "--out", "p.csv", *info)
    answers = contest / "eval" / "answers.csv"
    scores = json.loads(fastmask("score", "p.csv", answers, "--json").out)
    true = pd.read_csv(answers).set_index("ImageID")["ans"]
    predicted = pd.read_csv("p.csv", index_col=0)["ans" if submission else "predicted"][true.index]
    expected = f1_score(true, predicted, labels=true.unique(), average="macro", zero_division=0)
    assert scores["joint"]["macro_f1"] == pytest.approx(expected)
    assert scores["joint"]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert scores["joint"]["n"] == 28


def test_right_answers_score_1_in_any_order(contest: Path, work: Path, fastmask: Command) -> None:
    answers = contest / "eval" / "answers.csv"
    pd.read_csv(answers).iloc[::-1].to_csv("s.csv", index=False)
    scores = json.loads(fastmask("score", "s.csv", answers, "--json").out)
    assert (scores["joint"]["macro_f1"], scores["heads"]["age"]["accuracy"]) == (1, 1)


@pytest.mark.parametrize("answer", ["18", "-1", "", "1.5", "wear", "nan", "²", "99999999999999999999"])
def test_an_answer_that_is_not_a_class_is_refused(answer: str, contest: Path, work: Path, invalid: Command) -> None:
    answers = contest / "eval" / "answers.csv"
    frame = pd.read_csv(answers, dtype=str)
    frame.assign(ans=frame["ans"].where(frame.index != 4, answer)).to_csv(work / "s.csv", index=False)
    named = ["s.csv, line 6, column ans", f"found {answer!r}, expected a class from 0 to 17"]
    invalid("score", "s.csv", answers, named=named, code=FAILED)


def test_invalid_arguments_of_score(run_copy: Path, contest: Path, work: Path, invalid: Command) -> None:
    answers = contest / "eval" / "answers.csv"
    pd.read_csv(answers).iloc[2:].to_csv("few.csv", index=False)
    invalid("score", "few.csv", answers, named=["lacks 2 of the 28 photos"], code=FAILED)
    invalid("score", "nowhere", named=["nowhere"])
    invalid("score", "nowhere.csv", "nowhere.csv", named=["nowhere.csv"])
    invalid("score", "a", "b", "c", named=["3 paths"])
    (run_copy / "oof.csv").unlink()
    invalid("score", run_copy, named=["has not finished"])


@pytest.mark.parametrize("name", ["config.yaml", "heads.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "{a: 1}", '{"a": 1}', "\x00"])
def test_a_run_with_a_broken_file_is_refused_by_name(name: str, text: str, run_copy: Path, invalid: Command) -> None:
    (run_copy / name).write_text(text)
    invalid("score", run_copy, named=[str(run_copy)], code=FAILED)


def test_out_of_fold_predictions_of_other_photos_are_refused(run_copy: Path, invalid: Command) -> None:
    rows = (run_copy / "oof.csv").read_text().splitlines(keepends=True)
    (run_copy / "oof.csv").write_text("".join(rows[:20]))
    for command in ("decide", "score", "label-errors"):
        invalid(command, run_copy, named=["has 19 rows that are not the"], code=FAILED)


def test_decide_prints_the_rules_side_by_side(run_copy: Path, fastmask: Command) -> None:
    answer = fastmask("decide", run_copy, "--same-person", "--plot", "reliability.png")
    assert answer.code == DONE, answer.errors
    assert answer.out == f"{decide(run_copy, same_person=True)}\n"
    assert Path("reliability.png").read_bytes().startswith(b"\x89PNG")
    assert answer.err[-1].startswith("Next: fastmask predict ")
    plain = json.loads(fastmask("decide", run_copy, "--json").out)
    assert [row["rule"] for row in plain["decisions"]] == ["plain", "calibrated", "f1"]
    assert plain["decisions"][0]["macro_f1"] == Run.load(run_copy).score().joint.macro_f1


def test_invalid_arguments_of_decide(contest: Path, run_copy: Path, work: Path, invalid: Command) -> None:
    shutil.copy(contest / "eval" / "info.csv", work / "mine.png")
    invalid("decide", run_copy, "--plot", "mine.png", named=["mine.png exists"])
    invalid("decide", run_copy, "--plot", "mine.jpg", named=["ending in .png"])
    invalid("decide", contest, named=["not a run"])
    (run_copy / "oof.csv").unlink()
    invalid("decide", run_copy, named=["has not finished"])


def test_label_errors_are_listed_and_written_as_fixes(run_copy: Path, fastmask: Command) -> None:
    answer = fastmask("label-errors", run_copy, "--heads", "gender,mask", "--out", "suspects.csv")
    assert answer.code == DONE, answer.errors
    assert {"person", "path", "column", "value"} <= set(pd.read_csv("suspects.csv").columns)
    assert set(pd.read_csv("suspects.csv")["column"]) <= {"gender", "mask"}
    assert "no head 'shape'" in fastmask("label-errors", run_copy, "--heads", "shape").errors[0]
    answer = fastmask("label-errors", run_copy, "--out", "all.csv")
    assert any("age is not in all.csv" in line for line in answer.err)
    assert "age" not in set(pd.read_csv("all.csv")["column"])


def test_a_head_that_was_not_learned_is_not_offered(run_copy: Path, fastmask: Command) -> None:
    file = run_copy / "heads.json"
    heads = json.loads(file.read_text())
    age = next(head for head in heads if head["name"] == "age")
    age["weight"] = 0.0
    file.write_text(json.dumps(heads))
    answer = fastmask("label-errors", run_copy, "--out", "all.csv")
    assert answer.code == DONE, answer.errors
    assert not any("is not in all.csv" in line for line in answer.err)


def test_predictions_are_scored_by_a_column_per_head(
    finished_run: Run, contest: Path, work: Path, fastmask: Command, invalid: Command
) -> None:
    fastmask("predict", finished_run.path, contest / "eval" / "images", "--out", "p.csv")
    predicted = pd.read_csv("p.csv", dtype=str).set_index("path")
    mask = pd.Series(["wear", "none", "", "incorrect"] * 7, predicted.index, name="mask")
    pd.DataFrame({"image": "images/" + mask.index, "mask": mask.to_numpy()}).iloc[::-1].to_csv("my.csv", index=False)
    answer = fastmask("score", "p.csv", "my.csv", "--json")
    assert answer.code == DONE, answer.errors
    scores = json.loads(answer.out)
    known = mask[mask != ""]
    assert list(scores["heads"]) == ["mask"]
    assert scores["heads"]["mask"]["accuracy"] == pytest.approx((known == predicted["mask"][known.index]).mean())
    assert "my.csv has no labels of gender, age, which are not scored." in scores["notes"]
    # the years behind the bands, by the bounds in the names of the classes or in the run
    years = {"<30": "29", "30-59": "30", "60+": "60"}
    predicted.reset_index()[["path", "age"]].replace({"age": years}).to_csv("years.csv", index=False)
    for options in ([], ["--run", finished_run.path]):
        answer = fastmask("score", "p.csv", "years.csv", "--json", *options)
        assert json.loads(answer.out)["heads"]["age"]["accuracy"] == 1
    invalid("score", finished_run.path, "--run", finished_run.path, named=["--run goes with predictions and labels"])
