"""predict and ensemble: probabilities, submissions, decision rules, views."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.api import Run
from fastmask.evaluation.decisions import decide, fit_run
from fastmask.report.blocks import Facts
from fastmask.report.material import Material
from fastmask.report.sections.facts import run_section
from fastmask.run.directory import RunDirectory
from fastmask.run.oof import write_scores
from fastmask.system.files import read_yaml, write_yaml

DONE, FAILED, INVALID = 0, 1, 2
Command = Callable[..., Any]


@pytest.fixture
def images(contest: Path) -> Path:
    """The photos of eval."""
    return contest / "eval" / "images"


def test_predict_writes_probabilities_of_a_folder(finished_run: Run, images: Path, fastmask: Command) -> None:
    answer = fastmask("predict", finished_run.path, images, "--out", "new/p.csv")
    assert answer.code == DONE
    assert answer.out == "new/p.csv: 28 photos, mean of fold0, fold1, 1 view per photo\n"
    frame = pd.read_csv("new/p.csv")
    assert sorted(frame["path"]) == sorted(p.name for p in images.iterdir())
    assert frame[["mask.wear", "mask.incorrect", "mask.none"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert frame["age.60+"].to_numpy() == pytest.approx(frame[["fold0:age.60+", "fold1:age.60+"]].mean(axis=1))
    one = fastmask("predict", finished_run.path, images, "--out", "one.csv", "--members", "fold1", "--tta", 3)
    assert one.out == "one.csv: 28 photos, mean of fold1, 3 views per photo\n"


def test_predict_takes_a_csv_of_photos_and_their_folder(finished_run: Run, images: Path, fastmask: Command) -> None:
    names = sorted((p.name for p in images.iterdir()), reverse=True)[:3]
    Path("list.csv").write_text("\n".join(["path", *names]))
    assert fastmask("predict", finished_run.path, "list.csv", images, "--out", "p.csv").code == DONE
    assert list(pd.read_csv("p.csv")["path"]) == names


@pytest.mark.filterwarnings("default::fastmask.system.errors.FastmaskWarning")
def test_predictions_of_photos_that_were_trained_on_are_too_good(
    finished_run: Run, contest: Path, images: Path, work: Path, fastmask: Command
) -> None:
    (work / "photos").mkdir()
    names = finished_run.folds["path"][finished_run.folds["fold"] == 0].iloc[:3]
    for number, name in enumerate(names):
        # by their content, under any name
        shutil.copy(contest / "train" / "images" / name, work / "photos" / f"{number}{Path(name).suffix}")
    shutil.copy(next(images.iterdir()), work / "photos")
    answer = fastmask("predict", finished_run.path, "photos", "--out", "all.csv")
    (warned,) = answer.warnings
    assert warned.startswith(
        "These models were trained on 3 of the 4 photos: their predictions, and a score of them, are too good"
    )
    # only the other fold was trained on them
    assert not fastmask("predict", finished_run.path, "photos", "--out", "one.csv", "--members", "fold0").warnings
    assert not fastmask("predict", finished_run.path, images, "--out", "new.csv").warnings


def test_predict_fills_in_a_submission_in_its_order(
    finished_run: Run, submit: Command, contest: Path, images: Path, fastmask: Command
) -> None:
    fastmask("predict", finished_run.path, images, "--out", "p.csv")
    assert submit("s.csv").code == DONE
    submission = pd.read_csv("s.csv")
    assert list(submission["ImageID"]) == list(pd.read_csv(contest / "eval" / "info.csv")["ImageID"])
    predicted = pd.read_csv("p.csv").set_index("path")["predicted"]
    assert list(submission["ans"]) == list(predicted[submission["ImageID"]])


def test_predict_replaces_files_on_request_and_nothing_else(
    finished_run: Run, images: Path, work: Path, fastmask: Command, invalid: Command
) -> None:
    (work / "file").write_text("mine")
    (work / "folder").mkdir()
    command = ["predict", finished_run.path, images, "--out"]
    invalid(*command, "file", named=["file exists"])
    invalid(*command, "file/p.csv", named=["file/p.csv"])
    invalid(*command, "-", named=["none is written to stdout; name a file"])
    invalid(*command, "folder", "--overwrite", named=["folder"])
    assert fastmask(*command, "file", "--overwrite").code == DONE
    assert len(pd.read_csv("file")) == 28


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--members", "fold7"], ["fold7", "fold0, fold1"]),
        (["--members", "fold0,"], ["''"]),
        (["--tta", 0], ["tta", "0"]),
        (["--bs", 0], ["bs", "0"]),
        (["--workers", -1], ["workers", "-1"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--submission", "nowhere.csv"], ["nowhere.csv"]),
        (["--submission", "."], [". is not a file"]),
        (["--decision", "best"], ["'best'", "auto, plain, calibrated, f1"]),
        (["--views", "up"], ["no views 'up'"]),
        (["--views", "flip", "--tta", 2], ["exclude each other"]),
        (["--views", "flip", "--shift"], ["the views of the run (no --tta, no --views)"]),
        (["--tta", 2, "--shift"], ["the views of the run"]),
        (["--images-also", "nowhere", "--shift"], ["the photos alone (no --images-also)"]),
        (["--images-also", "nowhere"], ["--images-also nowhere is not a folder"]),
        (["--images-also", ""], ["--images-also has an empty name"]),
        (["--same-person", "who"], ["--submission"]),
        (["--same-person", "folder"], ["28 photos", "one folder"]),
        (["--submission", "EVAL/info.csv", "--same-person", "who"], ["info.csv", "'who'", "only ImageID and ans"]),
        (["--submission", "EVAL/info.csv", "--same-person", "ans"], ["info.csv", "'ans'"]),
        (["--submission", "mine.csv", "--same-person", "me"], ["all 28 photos"]),
    ],
)
def test_invalid_options_of_predict(
    words: list[Any], named: list[str], finished_run: Run, contest: Path, images: Path, work: Path, invalid: Command
) -> None:
    pd.read_csv(contest / "eval" / "info.csv").assign(me="me").to_csv(work / "mine.csv", index=False)
    words = [str(word).replace("EVAL", str(contest / "eval")) for word in words]
    invalid("predict", finished_run.path, images, "--out", "p.csv", *words, named=named)


def test_predict_needs_a_run_and_photos(
    finished_run: Run, contest: Path, images: Path, work: Path, invalid: Command
) -> None:
    (work / "empty").mkdir()
    for folder in ("nowhere", "empty", contest):
        invalid("predict", folder, images, "--out", "p.csv", named=[f"{folder} is not a run directory"])
    invalid("predict", finished_run.path, "nowhere", "--out", "p.csv", named=["nowhere does not exist"])
    invalid("predict", finished_run.path, "empty", "--out", "p.csv", named=["empty holds no photos"])


def test_predict_names_a_broken_photo_and_checkpoint(
    run_copy: Path, contest_copy: Path, work: Path, invalid: Command
) -> None:
    photos = contest_copy / "eval" / "images"
    command = ["predict", run_copy, photos, "--out", "p.csv", "--on-bad-photo", "error"]
    Image.new("RGB", (1, 200_000)).save(photos / "thin.png")
    invalid(*command, named=["thin.png is 200000 high"], code=FAILED)
    (photos / "thin.png").unlink()
    photo = sorted(photos.iterdir())[3]
    whole = photo.read_bytes()
    photo.write_bytes(whole[:3000])
    invalid(*command, named=[photo.name, "--on-bad-photo skip"], code=FAILED)
    invalid("predict", run_copy, photo, "--out", "p.csv", named=[photo.name], code=FAILED)
    photo.write_bytes(whole)
    checkpoint = next((run_copy / "fold1").glob("epoch*.safetensors"))
    for content in (b"", b"no weights"):
        checkpoint.write_bytes(content)
        invalid(*command, named=[checkpoint.name], code=FAILED)
    checkpoint.unlink()
    invalid(*command, named=["fold1 has no checkpoint"], code=FAILED)


@pytest.mark.filterwarnings("default::fastmask.system.errors.FastmaskWarning")
def test_photos_that_cannot_be_predicted_are_listed_next_to_the_others(
    finished_run: Run, images: Path, work: Path, fastmask: Command, invalid: Command
) -> None:
    shutil.copytree(images, work / "q")
    first, second, *others = sorted(path.name for path in images.iterdir())
    (work / "q" / first).write_bytes(b"")
    (work / "q" / second).write_text("no photo")
    Image.new("RGB", (320, 240), "pink").save(work / "q" / others[0])
    answer = fastmask("predict", finished_run.path, "q", "--out", "p.csv")
    assert answer.code == FAILED
    assert answer.out == "p.csv: 26 photos, mean of fold0, fold1, 1 view per photo\n"
    named = (
        f"2 of 28 photos could not be predicted and are listed in p.failed.csv; the first: {Path('q', first)} is empty"
    )
    assert answer.errors == [f"{named}."]
    assert answer.warnings[0].startswith(
        "1 of 28 photos is smaller than the crop, 400 high and 200 wide, and was enlarged"
    )
    assert pd.read_csv("p.csv")["path"].tolist() == others
    failed = pd.read_csv("p.failed.csv")
    assert (list(failed.columns), failed["path"].tolist()) == (["path", "reason"], [first, second])
    # the list of an earlier run does not stay
    shutil.copy(images / first, work / "q")
    shutil.copy(images / second, work / "q")
    assert fastmask("predict", finished_run.path, "q", "--out", "p.csv", "--overwrite").code == DONE
    assert sorted(file.name for file in work.iterdir()) == ["p.csv", "q"]
    # a file of the user's in its place does
    (work / "r.failed.csv").write_text("mine")
    invalid("predict", finished_run.path, images, "--out", "r.csv", named=["r.failed.csv exists"])


def test_a_submission_has_the_usual_class_for_photos_that_fail(
    run_copy: Path, contest_copy: Path, work: Path, fastmask: Command
) -> None:
    info, images = contest_copy / "eval" / "info.csv", contest_copy / "eval" / "images"
    frame = pd.read_csv(info).assign(who=np.arange(28) // 7)
    frame.to_csv(work / "who.csv", index=False)
    command = ["predict", run_copy, images, "--submission", "who.csv", "--same-person", "who", "--shift"]
    assert fastmask(*command, "--out", "whole.csv").code == DONE
    missing, damaged = frame["ImageID"][20:22]
    (images / missing).unlink()
    (images / damaged).write_bytes(b"GIF89a")
    answer = fastmask(*command, "--out", "s.csv")
    assert answer.code == FAILED
    joint = pd.read_csv(run_copy / "oof.csv")["true"]
    usual = int(joint.mode().iloc[0])
    (sentence,) = answer.errors
    assert sentence.startswith(
        "2 of 28 photos could not be predicted and are listed in s.failed.csv; in the submission they have class "
        f"{usual}, the most common in the run's labels; the first: "
    )
    failed, submission = pd.read_csv("s.failed.csv"), pd.read_csv("s.csv")
    assert failed["path"].tolist() == [missing, damaged]
    assert failed["answer"].tolist() == [usual, usual]
    assert submission["ImageID"].tolist() == frame["ImageID"].tolist()
    assert submission["ans"][20:22].tolist() == [usual, usual]
    # the photos of other persons are not averaged with them
    assert submission["ans"][:14].tolist() == pd.read_csv("whole.csv")["ans"][:14].tolist()
    assert len(pd.read_csv(run_copy.parent / "ledger.csv")) == 2


def test_predict_takes_files_and_folders(
    finished_run: Run, images: Path, work: Path, fastmask: Command, invalid: Command
) -> None:
    one, two, *_ = sorted(images.iterdir())
    for folder, photo in (("a", one), ("b", two)):
        (work / folder).mkdir()
        shutil.copy(photo, work / folder / "x.jpg")
    assert fastmask("predict", finished_run.path, images, "--out", "all.csv").code == DONE
    assert fastmask("predict", finished_run.path, "a", "b", "b/x.jpg", "--out", "more.csv").code == DONE
    whole, more = (pd.read_csv(file).set_index("path") for file in ("all.csv", "more.csv"))
    columns = finished_run.heads.columns
    names = [str(Path(*parts)) for parts in (("a", "x.jpg"), ("b", "x.jpg"), ("b", "x.jpg"))]
    assert more.index.tolist() == names
    np.testing.assert_allclose(more[columns], whole.loc[[one.name, two.name, two.name], columns], atol=1e-6)
    pd.DataFrame({"ImageID": ["x.jpg"], "ans": [0]}).to_csv("info.csv", index=False)
    command = ["predict", finished_run.path]
    Path("info.xlsx").touch()
    invalid(*command, "info.xlsx", "--out", "p.csv", named=["info.xlsx is not a photo", "or a CSV"])
    invalid(*command, "a", "b", "--submission", "info.csv", "--out", "p.csv", named=["one folder", "found 2"])
    invalid(*command, "a/x.jpg", "--submission", "info.csv", "--out", "p.csv", named=["x.jpg is not a folder"])


def test_predict_by_a_rule_decides_as_the_rule_does(run_copy: Path, images: Path, fastmask: Command) -> None:
    fastmask("predict", run_copy, images, "--out", "plain.csv")
    answer = fastmask("predict", run_copy, images, "--decision", "f1", "--out", "f1.csv")
    assert answer.err[0] == "Decision f1, by the run's out-of-fold predictions"
    plain, f1, run = pd.read_csv("plain.csv"), pd.read_csv("f1.csv"), Run.load(run_copy)
    rule, columns = fit_run(run, "f1"), run.heads.columns
    members = [plain[[f"{member}:{c}" for c in columns]].to_numpy() for member in ("fold0", "fold1")]
    mean = np.mean([rule.calibrated(member) for member in members], axis=0)
    assert f1[columns].to_numpy() == pytest.approx(mean, abs=1e-5)
    assert (f1["predicted"] == run.heads.joint(rule.choose(mean))).all()
    auto = fastmask("predict", run_copy, images, "--decision", "auto", "--out", "auto.csv")
    assert auto.err[0] == decide(run_copy).verdicts[-1]


@pytest.mark.filterwarnings("default::fastmask.system.errors.FastmaskWarning")
def test_persons_are_averaged_over_a_column_or_over_folders(
    submit: Command, run_copy: Path, contest: Path, fastmask: Command, tmp_path: Path
) -> None:
    info = pd.read_csv(contest / "eval" / "info.csv").assign(who=np.arange(28) // 7)
    info.to_csv(tmp_path / "who.csv", index=False)
    answer = submit("s.csv", "--same-person", "who", info=tmp_path / "who.csv")
    # the persons also give the shift a p
    assert [line for line in answer.err if "random persons of OOF" in line and "; p 0." in line]
    assert answer.err[0].startswith("Decision plain, persons averaged")
    age_of = pd.read_csv("s.csv")["ans"] % 6
    assert all(len(set(age_of[info["who"] == who])) == 1 for who in range(4))
    train = contest / "train" / "images"
    fastmask("predict", run_copy, train, "--same-person", "folder", "--out", "folders.csv")
    frame = pd.read_csv("folders.csv")
    assert frame.groupby(frame["path"].str.split("/").str[0])[["gender", "age"]].nunique().to_numpy().max() == 1


def test_a_run_with_a_decision_predicts_by_it_unless_another_is_given(submit: Command, run_copy: Path) -> None:
    write_yaml(run_copy / "config.yaml", {**read_yaml(run_copy / "config.yaml"), "decision": "f1"})
    write_scores(Run.load(run_copy))
    for name, words in (("own", []), ("f1", ["--decision", "f1"]), ("plain", ["--decision", "plain"])):
        assert submit(f"{name}.csv", *words).code == DONE
    own, f1, plain = (Path(f"{name}.csv").read_bytes() for name in ("own", "f1", "plain"))
    assert own == f1
    assert own != plain
    row = pd.read_csv(run_copy.parent / "ledger.csv").iloc[0]
    assert row["decision"] == "f1"
    assert row["oof_macro_f1"] == pytest.approx(Run.load(run_copy).scores["joint"]["macro_f1"])


def test_a_submission_is_noted_with_its_score_and_its_shift(submit: Command, run_copy: Path) -> None:
    answer = submit("s.csv", "--decision", "f1")
    ledger = run_copy.parent / "ledger.csv"
    assert any(f"Noted in {ledger}: OOF macro-F1" in line for line in answer.err)
    row = pd.read_csv(ledger).iloc[0]
    f1 = next(row for row in decide(run_copy).rows if row.rule == "f1")
    assert (row["run"], row["decision"], row["tta"]) == (str(run_copy.resolve()), "f1", 1)
    assert row["oof_macro_f1"] == pytest.approx(f1.score.macro_f1)
    (shifted,) = (line for line in answer.err if "random persons of OOF" in line)
    assert "so there is no p" in shifted
    viewed = submit("t.csv", "--views", "flip,shift,scale")
    assert not [line for line in viewed.err if "random persons of OOF" in line]
    assert viewed.out == "t.csv: 28 photos, mean of fold0, fold1, 8 views per photo\n"
    row = pd.read_csv(ledger).iloc[1]
    assert (row["tta"], row["note"]) == (8, "views flip,shift,scale")


def test_versions_of_the_photos_are_averaged_and_noted(
    submit: Command, run_copy: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("grey", "dark"):
        (tmp_path / name).mkdir()
        for photo in images.iterdir():
            made = Image.open(photo).convert("L").point(lambda value, by=name: value // (1 + (by == "dark")))
            made.save(tmp_path / name / f"{photo.stem}.png")
    answer = submit("v.csv", "--images-also", tmp_path / "grey", "--images-also", tmp_path / "dark")
    assert "The run's scores are of the photos themselves, not of the mean over their versions." in answer.err
    assert answer.out.endswith(f"1 view per photo, and per version in {tmp_path / 'grey'}, {tmp_path / 'dark'}\n")
    note = pd.read_csv(run_copy.parent / "ledger.csv").iloc[-1]["note"]
    assert note == f"versions {tmp_path / 'grey'},{tmp_path / 'dark'}"


def test_broken_files_are_found_before_anything_is_predicted(
    run_copy: Path, contest: Path, images: Path, invalid: Command
) -> None:
    command = ["predict", run_copy, images, "--submission", contest / "eval" / "info.csv", "--out", "s.csv"]
    ledger = run_copy.parent / "ledger.csv"
    ledger.write_text("date,file\n1,2\n")
    invalid(*command, named=["ledger.csv has no column"], code=FAILED)
    ledger.unlink()
    oof = pd.read_csv(run_copy / "oof.csv")
    oof.assign(**{"age.60+": 1e308}).to_csv(run_copy / "oof.csv", index=False)
    named = ["column age.60+: found '1e+308', expected a probability from 0 to 1"]
    invalid(*command, named=named, code=FAILED)


@pytest.mark.filterwarnings("default::fastmask.system.errors.FastmaskWarning")
def test_a_submission_is_complete_where_its_shift_cannot_be_computed(submit: Command, run_copy: Path) -> None:
    for file in (run_copy / "fold0").glob("oof*"):
        file.unlink()
    answer = submit("s.csv")
    assert answer.code == DONE
    assert "The distance of the photos from the run's cannot be computed" in answer.warnings[0]
    assert answer.out.startswith("s.csv: 28 photos")
    assert len(pd.read_csv(run_copy.parent / "ledger.csv")) == 1


def test_predict_prints_the_shift_of_photos_on_request(run_copy: Path, images: Path, fastmask: Command) -> None:
    answer = fastmask("predict", run_copy, images, "--out", "p.csv", "--shift")
    assert any(line.startswith("age.60+") for line in answer.err)


def test_equal_answers_and_a_score_that_flatters_are_reported(submit: Command, run_copy: Path) -> None:
    environment = json.loads((run_copy / "environment.json").read_text())
    (run_copy / "environment.json").write_text(json.dumps({**environment, "proposed_fixes": 2}))
    submit("a.csv")
    answer = submit("b.csv")
    assert any(line.startswith("These are the same answers as ") and "a.csv" in line for line in answer.err)
    caveat = Run.load(run_copy).caveats[0]
    assert caveat in answer.err
    assert caveat in pd.read_csv(run_copy.parent / "ledger.csv")["caveats"][0]


def test_inputs_and_files_of_a_run_are_never_replaced(
    submit: Command, run_copy: Path, images: Path, invalid: Command
) -> None:
    submit("a.csv")
    ledger = run_copy.parent / "ledger.csv"
    for out, command in (
        ("a.csv", ["diff", "a.csv", "b.csv"]),
        (run_copy / "folds.csv", ["label-errors", run_copy]),
        (run_copy / "fold0" / "history.csv", ["predict", run_copy, images]),
        (ledger, ["predict", run_copy, images]),
    ):
        invalid(*command, "--out", out, "--overwrite", named=["is not replaced"])


def test_an_ensemble_is_made_scored_and_submitted_like_a_run(
    run_copy: Path, second_run: Path, contest: Path, images: Path, fastmask: Command
) -> None:
    answer = fastmask("ensemble", run_copy, second_run, "--blend", "oof", "--out", "both", "--json")
    assert answer.code == DONE, answer.errors
    assert answer.err[-1] == "Written to both. Next: fastmask predict both IMAGES --out FILE"
    plain, run = json.loads(answer.out), Run.load("both")
    assert plain["targets"]["joint"]["macro_f1"] == run.score().joint.macro_f1
    assert list(plain["targets"]["joint"]["members"]) == ["run_copy", "second"] == list(plain["weights"]["mask"])
    info = contest / "eval" / "info.csv"
    answer = fastmask("predict", "both", images, "--submission", info, "--out", "s.csv")
    assert answer.out == "s.csv: 28 photos, oof blend of run_copy, second, 1 view per photo\n"
    assert not [line for line in answer.err if "random persons of OOF" in line]
    row = pd.read_csv("ledger.csv").iloc[0]
    assert (row["members"], row["decision"]) == ("run_copy,second", "plain")
    assert row["oof_macro_f1"] == pytest.approx(run.score().joint.macro_f1)
    fastmask("predict", run_copy, images, "--submission", info, "--out", "one.csv")
    plain = json.loads(fastmask("diff", "one.csv", "s.csv", "--runs", run_copy, "both", "--json").out)
    gain = run.score().joint.macro_f1 - Run.load(run_copy).score().joint.macro_f1
    assert plain["expected"]["difference"]["macro_f1"] == pytest.approx(gain)
    for command in ("decide", "score", "label-errors"):
        assert fastmask(command, "both").code == DONE


def test_an_ensemble_prints_each_run_next_to_it(run_copy: Path, second_run: Path, fastmask: Command) -> None:
    answer = fastmask("ensemble", run_copy, second_run, "--out", "both")
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["run", "run_copy", "second", "ensemble"]
    assert f"{Run.load('both').score().joint.macro_f1:.4f}" in lines[3]
    assert "is the best run by these same OOF predictions" in answer.out
    again = fastmask("ensemble", run_copy, second_run, "--out", "both", "--blend", "vote", "--overwrite")
    assert again.code == DONE
    assert json.loads(Path("both/ensemble.json").read_text())["blend"] == "vote"


def test_what_needs_models_of_its_own_refuses_an_ensemble(
    run_copy: Path, second_run: Path, contest: Path, images: Path, fastmask: Command, invalid: Command
) -> None:
    fastmask("ensemble", run_copy, second_run, "--out", "both")
    own = ["both is an ensemble, which has no models"]
    invalid("fit", "--resume", "--out", "both", named=own)
    invalid("merge", "both", run_copy, "--out", "m", named=own)
    invalid("ensemble", "both", run_copy, "--out", "m", named=own)
    invalid("fit", "--weights", "both", "--data", contest, "--arch", "test_resnet", named=own)
    predict = ["predict", "both", images, "--out", "p.csv"]
    invalid(*predict, "--shift", named=["name one of its runs"])
    invalid(*predict, "--members", "fold0", named=["all its runs"])
    invalid("ensemble", run_copy, second_run, "--out", "both", named=["both exists"])
    invalid("ensemble", run_copy, second_run, "--blend", "best", "--out", "m", named=["no blend 'best'"])
    shutil.rmtree(second_run)
    invalid(*predict, named=["does not exist"], code=FAILED)


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


def test_any_sample_submission_is_filled_in(run_copy: Path, contest: Path, work: Path, fastmask: Command) -> None:
    images = contest / "eval" / "images"
    fastmask("predict", run_copy, images, "--out", "all.csv")
    predicted = pd.read_csv("all.csv", dtype={"age": str}).set_index("path")
    names = list(predicted.index[::-1])
    form = pd.DataFrame({"id": [Path(name).stem for name in names], "age": "", "who": "a", "wear": 0, "mask.none": 0})
    form.loc[14:, "who"] = "b"
    form.drop(columns="who").to_csv("sample_submission.csv", index=False)
    answer = fastmask("predict", run_copy, images, "--submission", "sample_submission.csv", "--out", "s.csv")
    assert answer.code == DONE, answer.errors
    filled = pd.read_csv("s.csv", dtype={"id": str, "age": str})
    assert list(filled.columns) == ["id", "age", "wear", "mask.none"]
    assert filled["id"].tolist() == form["id"].tolist()
    assert filled["age"].tolist() == predicted["age"][names].tolist()
    for column, own in (("wear", "mask.wear"), ("mask.none", "mask.none")):
        assert filled[column].to_numpy() == pytest.approx(predicted[own][names].to_numpy(), abs=1e-6)
    assert pd.read_csv(run_copy.parent / "ledger.csv")["file"].tolist() == [str(Path("s.csv").resolve())]
    # a column of persons stays
    form.to_csv("persons.csv", index=False)
    command = ["predict", run_copy, images, "--submission", "persons.csv", "--out", "p.csv"]
    assert (
        "has the column 'who'; expected, in addition to id, columns called mask, gender, age"
        in fastmask(*command).errors[0]
    )
    assert fastmask(*command, "--same-person", "who").code == DONE
    kept = pd.read_csv("p.csv", dtype=str)
    assert kept["who"].tolist() == form["who"].tolist()
    assert kept.groupby("who")["age"].nunique().tolist() == [1, 1]


def test_averaging_over_persons_needs_a_head_that_belongs_to_them(
    run_copy: Path, contest: Path, work: Path, invalid: Command
) -> None:
    for name in ("folds.csv", "oof.csv"):
        table = pd.read_csv(run_copy / name, dtype=str)
        table.assign(person=table["path"]).to_csv(run_copy / name, index=False)
    images = contest / "eval" / "images"
    named = ["--same-person averages the heads that all photos of a person share", "have none; leave it out"]
    (work / "photos").mkdir()
    for number, photo in enumerate(sorted(images.iterdir())[:2]):
        (work / "photos" / str(number)).mkdir()
        shutil.copy(photo, work / "photos" / str(number))
    invalid("predict", run_copy, "photos", "--same-person", "folder", "--out", "p.csv", named=named)


def test_submissions_are_blended_by_vote_and_scored(
    submit: Command, run_copy: Path, second_run: Path, contest: Path, work: Path, fastmask: Command, invalid: Command
) -> None:
    for name in ("a.csv", "b.csv", "c.csv"):
        submit(name)
    frame = pd.read_csv("b.csv").iloc[::-1]
    frame.assign(ans=(frame["ans"] + 1) % 18).to_csv("b.csv", index=False)
    answer = fastmask("ensemble", "a.csv", "b.csv", "c.csv", "--out", "final.csv")
    assert answer.code == DONE, answer.errors
    assert Path("final.csv").read_text() == Path("a.csv").read_text()
    assert answer.out.splitlines()[0] == "28 photos, vote of 3 files"
    assert [line.split()[2] for line in answer.out.splitlines()[3:6]] == ["0.0", "100.0", "0.0"]
    assert answer.out.splitlines()[6] == "0 of 28 photos decided by a tie, for the first of the tied files."
    assert answer.err[-1] == "Written to final.csv. Next, if labels are known: fastmask score final.csv LABELS"
    invalid("ensemble", "a.csv", "b.csv", "--out", "final.csv", named=["final.csv exists"])
    invalid("ensemble", "a.csv", "b.csv", "--out", "a.csv", "--overwrite", named=["a.csv is an input"])
    invalid("ensemble", "a.csv", run_copy, "--out", "m", named=["a.csv is a file and", "a run"])
    invalid("ensemble", "a.csv", "none.csv", "--out", "m", named=["none.csv is not a file"])
    fitted = ["ensemble", run_copy, second_run, "--blend", "oof", "--weights", "2,1"]
    invalid(*fitted, "--out", "m", named=["oof fits its own weights", "--blend mean or vote"])
    info = contest / "eval" / "info.csv"
    invalid("ensemble", run_copy, second_run, "--submission", info, "--out", "m", named=["--submission is for CSVs"])
    invalid("ensemble", "a.csv", "b.csv", "--submission", info, "--out", "m", named=["is filled in from probabil"])
    for run, name in ((run_copy, "p.csv"), (second_run, "q.csv")):
        fastmask("predict", run, contest / "eval" / "images", "--out", name)
    answer = fastmask("ensemble", "p.csv", "q.csv", "--submission", info, "--out", "soft.csv")
    assert answer.code == DONE, answer.errors
    assert list(pd.read_csv("soft.csv")) == ["ImageID", "ans"]
    answer = fastmask("ensemble", "a.csv", "b.csv", "--weights", "1,2", "--out", "final.csv", "--overwrite", "--json")
    assert json.loads(answer.out)["weights"] == {"a.csv": 1, "b.csv": 2}
    assert pd.read_csv("final.csv")["ans"].tolist() == ((pd.read_csv("a.csv")["ans"] + 1) % 18).tolist()
    assert not list(Path().glob(".*part"))


def test_a_soup_is_made_reported_and_predicts(
    run_copy: Path, tmp_path: Path, contest: Path, fastmask: Command, invalid: Command
) -> None:
    other = shutil.copytree(run_copy, tmp_path / "other")
    answer = fastmask("soup", run_copy, other, "--out", "soup", "--json")
    assert answer.code == DONE, answer.errors
    plain = json.loads(answer.out)
    assert plain["macro_f1"] == Run.load("soup").score().joint.macro_f1
    assert [step["candidate"] for step in plain["steps"]] == ["run_copy", "other"] * 2
    assert len([line for line in answer.err if "OOF macro-F1 of the other folds with it" in line]) == 4
    assert answer.err[-1] == "Written to soup. Next: fastmask predict soup IMAGES --out FILE"
    answer = fastmask("predict", "soup", contest / "eval" / "images", "--out", "p.csv")
    assert answer.out == "p.csv: 28 photos, mean of fold0, fold1, 1 view per photo\n"
    facts = run_section(Material(RunDirectory.load("soup")))[0]
    assert isinstance(facts, Facts)
    paths, _, kept = dict(facts.rows)["Soup"].partition("; ")
    assert (paths, kept) == (f"of {run_copy}, {other}", "fold 0: run_copy, other; fold 1: run_copy, other")
    invalid("fit", "--resume", "--out", "soup", named=["soup is a soup, which is not trained"])
    invalid("soup", run_copy, other, "--out", "soup", named=["soup exists"])
    invalid("soup", run_copy, "--out", "new", named=["larger --top-k"])
