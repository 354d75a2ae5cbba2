"""The command line on what a run answers: decide, predict by a rule, ensemble, label-errors, diff, ledger."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.decision.crossfit import decide, fit_run
from fastmask.system.files import write_csv

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2
Command = Callable[..., Any]


@pytest.fixture
def submit(run_copy: Path, contest: Path, fastmask: Command) -> Command:
    """Predict eval by a run of one's own, as a submission."""

    def command(out: str, *words: Any, info: Path = contest / "eval" / "info.csv") -> Any:
        return fastmask("predict", run_copy, contest / "eval" / "images", "--submission", info, "--out", out, *words)

    return command


@pytest.fixture
def second_run(run_copy: Path, tmp_path: Path) -> Path:
    """A copy of a run whose mask answers are other ones."""
    copy = Path(shutil.copytree(run_copy, tmp_path / "second"))
    oof, run = pd.read_csv(copy / "oof.csv"), Run.load(copy)
    columns = run.heads.columns[:3]
    oof[columns] = oof[columns].to_numpy()[:, ::-1]
    oof["predicted"] = run.heads.joint(run.heads.argmax(oof[run.heads.columns].to_numpy()))
    write_csv(copy / "oof.csv", oof)
    return copy


def test_decide_prints_the_rules_side_by_side(run_copy: Path, fastmask: Command) -> None:
    answer = fastmask("decide", run_copy, "--same-person", "--plot", "reliability.png")
    assert answer.code == DONE, answer.errors
    assert answer.out == f"{decide(run_copy, same_person=True)}\n"
    assert Path("reliability.png").read_bytes().startswith(b"\x89PNG")
    assert answer.err[-1].startswith("Next: fastmask predict ")
    plain = json.loads(fastmask("decide", run_copy, "--json").out)
    assert [row["rule"] for row in plain["decisions"]] == ["plain", "calibrated", "f1"]
    assert plain["decisions"][0]["macro_f1"] == Run.load(run_copy).score().joint.macro_f1


def test_decide_refuses_what_is_no_run_and_a_picture_that_is_there(
    contest: Path, run_copy: Path, work: Path, refused: Callable[..., str]
) -> None:
    (work / "mine.png").write_text("mine")
    assert "mine.png exists" in refused(ASKED_WRONGLY, "decide", run_copy, "--plot", "mine.png")
    assert "ending in .png" in refused(ASKED_WRONGLY, "decide", run_copy, "--plot", "mine.jpg")
    assert "not a run" in refused(ASKED_WRONGLY, "decide", contest)
    (run_copy / "oof.csv").unlink()
    assert "has not finished" in refused(ASKED_WRONGLY, "decide", run_copy)


def test_predict_by_a_rule_answers_as_the_rule_does(run_copy: Path, contest: Path, fastmask: Command) -> None:
    images = contest / "eval" / "images"
    fastmask("predict", run_copy, images, "--out", "plain.csv")
    answer = fastmask("predict", run_copy, images, "--decision", "f1", "--out", "f1.csv")
    assert answer.err[0] == "Decision f1, by the run's out-of-fold predictions"
    plain, f1, run = pd.read_csv("plain.csv"), pd.read_csv("f1.csv"), Run.load(run_copy)
    rule, columns = fit_run(run, "f1"), run.heads.columns
    members = [plain[[f"{member}:{c}" for c in columns]].to_numpy() for member in ("fold0", "fold1")]
    mean = np.mean([rule.calibrated(member) for member in members], axis=0)
    assert f1[columns].to_numpy() == pytest.approx(mean, abs=1e-5)
    assert (f1["predicted"] == run.heads.joint(rule.choose(mean))).all()


def test_persons_are_averaged_over_a_column_of_the_file_of_questions_or_over_folders(
    submit: Command, run_copy: Path, contest: Path, fastmask: Command, tmp_path: Path
) -> None:
    info = pd.read_csv(contest / "eval" / "info.csv").assign(who=np.arange(28) // 7)
    info.to_csv(tmp_path / "who.csv", index=False)
    answer = submit("s.csv", "--same-person", "who", info=tmp_path / "who.csv")
    assert answer.err[0].startswith("Decision plain, persons averaged")
    age_of = pd.read_csv("s.csv")["ans"] % 6
    assert all(len(set(age_of[info["who"] == who])) == 1 for who in range(4))
    train = contest / "train" / "images"
    fastmask("predict", run_copy, train, "--same-person", "folder", "--out", "folders.csv")
    frame = pd.read_csv("folders.csv")
    assert frame.groupby(frame["path"].str.split("/").str[0])[["gender", "age"]].nunique().to_numpy().max() == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--decision", "best"], ["'best'", "auto, plain, calibrated, f1"]),
        (["--same-person", "who"], ["info.csv", "'who'", "only ImageID and ans"]),
        (["--same-person", "ans"], ["info.csv", "'ans'"]),
        (["--same-person", "folder"], ["28 photos", "one folder"]),
    ],
)
def test_a_rule_or_a_column_that_is_not_there_is_refused(
    words: list[str], named: list[str], run_copy: Path, contest: Path, refused: Callable[..., str]
) -> None:
    info, images = contest / "eval" / "info.csv", contest / "eval" / "images"
    sentence = refused(ASKED_WRONGLY, "predict", run_copy, images, "--submission", info, "--out", "s.csv", *words)
    assert [part for part in named if part not in sentence] == []


def test_a_column_of_persons_needs_the_file_that_has_it(
    run_copy: Path, contest: Path, refused: Callable[..., str]
) -> None:
    images = contest / "eval" / "images"
    sentence = refused(ASKED_WRONGLY, "predict", run_copy, images, "--same-person", "who", "--out", "s.csv")
    assert "--submission" in sentence


def test_a_submission_is_noted_with_its_score_and_what_the_leaderboard_said_is_kept(
    submit: Command, run_copy: Path, fastmask: Command
) -> None:
    answer = submit("s.csv", "--decision", "f1")
    ledger = run_copy.parent / "ledger.csv"
    assert any(f"Noted in {ledger}: OOF macro-F1" in line for line in answer.err)
    row = pd.read_csv(ledger).iloc[0]
    f1 = next(row for row in decide(run_copy).rows if row.rule == "f1")
    assert (row["run"], row["decision"], row["tta"]) == (str(run_copy.resolve()), "f1", 1)
    assert row["oof_macro_f1"] == pytest.approx(f1.score.macro_f1)
    answer = fastmask("ledger", "add", "s.csv", "--public", 0.757, "--accuracy", 79.476, "--ledger", ledger)
    assert answer.code == DONE
    assert "0.757" in answer.out
    assert fastmask("ledger", "show", "--ledger", ledger).out == answer.out
    assert pd.read_csv(ledger).loc[0, ["public", "public_accuracy"]].tolist() == [0.757, 0.79476]
    assert fastmask("ledger", "plot", "--ledger", ledger, "--out", "ledger.png").code == DONE
    assert Path("ledger.png").read_bytes().startswith(b"\x89PNG")


def test_a_broken_ledger_is_found_before_anything_is_predicted(
    run_copy: Path, contest: Path, refused: Callable[..., str]
) -> None:
    (run_copy.parent / "ledger.csv").write_text("date,file\n1,2\n")
    info, images = contest / "eval" / "info.csv", contest / "eval" / "images"
    sentence = refused(FAILED, "predict", run_copy, images, "--submission", info, "--out", "s.csv")
    assert "ledger.csv has no column" in sentence


def test_a_submission_says_how_far_its_photos_are_from_the_runs(submit: Command) -> None:
    said = [line for line in submit("s.csv").err if "random persons of OOF" in line]
    assert len(said) == 1
    assert not [line for line in submit("t.csv", "--tta", 2).err if "random persons of OOF" in line]


def test_diff_says_where_two_submissions_differ_and_what_to_expect(
    submit: Command, run_copy: Path, fastmask: Command
) -> None:
    submit("a.csv")
    submit("b.csv", "--decision", "f1")
    a, b = (pd.read_csv(name)["ans"] for name in ("a.csv", "b.csv"))
    ledger = run_copy.parent / "ledger.csv"
    answer = fastmask("diff", "a.csv", "b.csv", "--ledger", ledger, "--json", "--out", "differing.csv")
    assert answer.code == DONE, answer.errors
    told = json.loads(answer.out)
    assert told["differing"] == int((a != b).sum()) == len(pd.read_csv("differing.csv"))
    rows = decide(run_copy).rows
    assert told["expected"]["difference"]["macro_f1"] == pytest.approx(rows[2].score.macro_f1 - rows[0].score.macro_f1)
    assert "No expectation" in fastmask("diff", "a.csv", "b.csv").out


def test_label_errors_are_listed_and_written_as_fixes(run_copy: Path, contest: Path, fastmask: Command) -> None:
    answer = fastmask("label-errors", run_copy, "--heads", "gender,mask", "--out", "suspects.csv")
    assert answer.code == DONE, answer.errors
    assert {"person", "path", "column", "value"} <= set(pd.read_csv("suspects.csv").columns)
    assert set(pd.read_csv("suspects.csv")["column"]) <= {"gender", "mask"}
    assert "no head 'shape'" in fastmask("label-errors", run_copy, "--heads", "shape").errors[0]


def test_nothing_is_written_where_the_out_of_fold_predictions_are_broken(
    run_copy: Path, contest: Path, refused: Callable[..., str]
) -> None:
    oof = pd.read_csv(run_copy / "oof.csv")
    oof.assign(**{"age.60+": 1e308}).to_csv(run_copy / "oof.csv", index=False)
    info, images = contest / "eval" / "info.csv", contest / "eval" / "images"
    sentence = refused(FAILED, "predict", run_copy, images, "--submission", info, "--out", "s.csv")
    assert "column age.60+: found '1e+308', expected a probability from 0 to 1" in sentence


@pytest.mark.filterwarnings("default::fastmask.system.errors.FastmaskWarning")
def test_a_submission_is_whole_where_its_shift_cannot_be_told(submit: Command, run_copy: Path) -> None:
    for file in (run_copy / "fold0").glob("oof*"):
        file.unlink()
    answer = submit("s.csv")
    assert answer.code == DONE
    assert "The distance of the photos from the run's cannot be computed" in answer.warnings[0]
    assert answer.out.startswith("s.csv: 28 photos")
    assert len(pd.read_csv(run_copy.parent / "ledger.csv")) == 1


def test_predict_says_how_far_photos_are_from_the_runs_where_that_is_asked_for(
    run_copy: Path, contest: Path, fastmask: Command
) -> None:
    images = contest / "eval" / "images"
    answer = fastmask("predict", run_copy, images, "--out", "p.csv", "--shift")
    assert any(line.startswith("age.60+") for line in answer.err)
    refused = fastmask("predict", run_copy, images, "--out", "q.csv", "--shift", "--tta", 2)
    assert (refused.code, "one view" in refused.errors[0]) == (ASKED_WRONGLY, True)


def test_a_number_behind_a_head_has_no_label_errors(run_copy: Path, fastmask: Command) -> None:
    answer = fastmask("label-errors", run_copy, "--out", "suspects.csv")
    assert any("age is not in suspects.csv" in line for line in answer.err)
    assert "age" not in set(pd.read_csv("suspects.csv")["column"])


def test_a_column_that_puts_all_photos_under_one_person_is_refused(
    run_copy: Path, contest: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    pd.read_csv(contest / "eval" / "info.csv").assign(who="me").to_csv(tmp_path / "who.csv", index=False)
    words = ["--submission", tmp_path / "who.csv", "--same-person", "who", "--out", "s.csv"]
    assert "all 28 photos" in refused(ASKED_WRONGLY, "predict", run_copy, contest / "eval" / "images", *words)


def test_what_is_read_and_what_a_run_is_made_of_are_never_written_over(
    submit: Command, run_copy: Path, contest: Path, refused: Callable[..., str]
) -> None:
    submit("a.csv")
    ledger, images = run_copy.parent / "ledger.csv", contest / "eval" / "images"
    for out, command in (
        ("a.csv", ["diff", "a.csv", "b.csv"]),
        (run_copy / "folds.csv", ["label-errors", run_copy]),
        (run_copy / "fold0" / "history.csv", ["predict", run_copy, images]),
        (ledger, ["predict", run_copy, images]),
    ):
        assert "is not replaced" in refused(ASKED_WRONGLY, *command, "--out", out, "--overwrite")


def test_auto_says_what_it_takes_and_why(submit: Command, run_copy: Path) -> None:
    answer = submit("s.csv", "--decision", "auto")
    assert answer.err[0] == decide(run_copy).verdicts[-1]


def test_the_same_answers_again_and_a_score_that_flatters_are_told(submit: Command, run_copy: Path) -> None:
    environment = json.loads((run_copy / "environment.json").read_text())
    (run_copy / "environment.json").write_text(json.dumps({**environment, "proposed_fixes": 2}))
    submit("a.csv")
    answer = submit("b.csv")
    assert any(line.startswith("These are the same answers as ") and "a.csv" in line for line in answer.err)
    assert any("a model's own" in line for line in answer.err)
    assert "a model's own" in pd.read_csv(run_copy.parent / "ledger.csv")["caveats"][0]


def test_what_is_no_submission_is_not_kept(work: Path, refused: Callable[..., str]) -> None:
    (work / "probabilities.csv").write_text("path,predicted\na.jpg,3\n")
    assert "no column 'ImageID'" in refused(FAILED, "ledger", "add", "probabilities.csv", "--public", 0.5)


def test_out_of_fold_predictions_of_other_photos_are_not_believed(run_copy: Path, refused: Callable[..., str]) -> None:
    rows = (run_copy / "oof.csv").read_text().splitlines(keepends=True)
    (run_copy / "oof.csv").write_text("".join(rows[:20]))
    for command in ("decide", "score", "label-errors"):
        assert "has 19 rows that are not the" in refused(FAILED, command, run_copy)


def test_an_ensemble_is_made_scored_and_handed_in_like_a_run(
    run_copy: Path, second_run: Path, contest: Path, fastmask: Command
) -> None:
    answer = fastmask("ensemble", run_copy, second_run, "--blend", "oof", "--out", "both", "--json")
    assert answer.code == DONE, answer.errors
    assert answer.err[-1] == "Written to both. Next: fastmask predict both IMAGES --out FILE"
    told, run = json.loads(answer.out), Run.load("both")
    assert told["targets"]["joint"]["macro_f1"] == run.score().joint.macro_f1
    assert list(told["targets"]["joint"]["members"]) == ["run_copy", "second"] == list(told["weights"]["mask"])
    images, info = contest / "eval" / "images", contest / "eval" / "info.csv"
    answer = fastmask("predict", "both", images, "--submission", info, "--out", "s.csv")
    assert answer.out == "s.csv: 28 photos, oof blend of run_copy, second, 1 view per photo\n"
    assert not [line for line in answer.err if "random persons of OOF" in line]
    row = pd.read_csv("ledger.csv").iloc[0]
    assert (row["members"], row["decision"]) == ("run_copy,second", "plain")
    assert row["oof_macro_f1"] == pytest.approx(run.score().joint.macro_f1)
    fastmask("predict", run_copy, images, "--submission", info, "--out", "one.csv")
    told = json.loads(fastmask("diff", "one.csv", "s.csv", "--runs", run_copy, "both", "--json").out)
    gain = run.score().joint.macro_f1 - Run.load(run_copy).score().joint.macro_f1
    assert told["expected"]["difference"]["macro_f1"] == pytest.approx(gain)
    for command in ("decide", "score", "label-errors"):
        assert fastmask(command, "both").code == DONE


def test_an_ensemble_prints_each_run_beside_it(run_copy: Path, second_run: Path, fastmask: Command) -> None:
    answer = fastmask("ensemble", run_copy, second_run, "--out", "both")
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["run", "run_copy", "second", "ensemble"]
    assert f"{Run.load('both').score().joint.macro_f1:.4f}" in lines[3]
    assert "is the best run by these same OOF predictions" in answer.out
    again = fastmask("ensemble", run_copy, second_run, "--out", "both", "--blend", "vote", "--overwrite")
    assert again.code == DONE
    assert json.loads(Path("both/ensemble.json").read_text())["blend"] == "vote"


def test_what_needs_models_of_its_own_refuses_an_ensemble(
    run_copy: Path, second_run: Path, contest: Path, fastmask: Command, refused: Callable[..., str]
) -> None:
    fastmask("ensemble", run_copy, second_run, "--out", "both")
    own = "both is an ensemble, which was not trained and has no models of its own"
    assert own in refused(ASKED_WRONGLY, "fit", "--resume", "--out", "both")
    assert own in refused(ASKED_WRONGLY, "merge", "both", run_copy, "--out", "m")
    assert own in refused(ASKED_WRONGLY, "ensemble", "both", run_copy, "--out", "m")
    assert own in refused(ASKED_WRONGLY, "fit", "--weights", "both", "--data", contest, "--arch", "test_resnet")
    images = contest / "eval" / "images"
    assert "name one of its runs" in refused(ASKED_WRONGLY, "predict", "both", images, "--out", "p.csv", "--shift")
    assert "all its runs" in refused(ASKED_WRONGLY, "predict", "both", images, "--out", "p.csv", "--members", "fold0")
    assert "both exists" in refused(ASKED_WRONGLY, "ensemble", run_copy, second_run, "--out", "both")
    assert "no blend 'best'" in refused(
        ASKED_WRONGLY, "ensemble", run_copy, second_run, "--blend", "best", "--out", "m"
    )
    shutil.rmtree(second_run)
    assert "is not there" in refused(FAILED, "predict", "both", images, "--out", "p.csv")


def test_views_are_predicted_and_noted(submit: Command, run_copy: Path, contest: Path, fastmask: Command) -> None:
    answer = submit("s.csv", "--views", "flip,shift,scale")
    assert answer.out == "s.csv: 28 photos, mean of fold0, fold1, 8 views per photo\n"
    row = pd.read_csv(run_copy.parent / "ledger.csv").iloc[0]
    assert (row["tta"], row["note"]) == (8, "views flip,shift,scale")
    images = contest / "eval" / "images"
    for words, named in (
        (["--views", "up"], "no views 'up'"),
        (["--views", "flip", "--tta", 2], "exclude each other"),
        (["--views", "flip", "--shift"], "one view per photo (no --tta, no --views)"),
    ):
        answer = fastmask("predict", run_copy, images, "--out", "p.csv", *words)
        assert (answer.code, named in answer.errors[0]) == (ASKED_WRONGLY, True)


def test_a_soup_says_that_it_has_no_score(submit: Command, run_copy: Path) -> None:
    assert "keeps one checkpoint" in submit("s.csv", "--soup").errors[0]
    for fold in (0, 1):
        (file,) = Run.load(run_copy).checkpoints(fold)
        shutil.copy(file, file.with_name("epoch009.safetensors"))
    answer = submit("s.csv", "--soup")
    assert answer.code == DONE, answer.errors
    assert any("These models (a soup) have no out-of-fold predictions" in line for line in answer.err)
    row = pd.read_csv(run_copy.parent / "ledger.csv").iloc[0]
    assert (row["note"], np.isnan(row["oof_macro_f1"])) == ("a soup", True)
