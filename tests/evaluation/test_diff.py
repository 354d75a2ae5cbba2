import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.decision.crossfit import decide
from fastmask.evaluation.diff import diff_files, expect_files, expected_change
from fastmask.evaluation.ledger import entry_of, note
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_strings


def write(file: Path, answers: dict[str, int]) -> Path:
    pd.DataFrame({"ImageID": list(answers), "ans": list(answers.values())}).to_csv(file, index=False)
    return file


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two submissions of five photos; the second in another order."""
    a = {"1.jpg": 1, "2.jpg": 1, "3.jpg": 0, "4.jpg": 17, "5.jpg": 6}
    b = {"5.jpg": 6, "4.jpg": 5, "3.jpg": 1, "2.jpg": 2, "1.jpg": 2}
    return write(tmp_path / "a.csv", a), write(tmp_path / "b.csv", b)


def test_two_submissions_compared_by_hand(files: tuple[Path, Path]) -> None:
    diff = diff_files(*files)
    assert (len(diff.photos), diff.differing) == (5, 4)
    # 17 is not worn (2), female, 60+; 5 is worn (0), female, 60+
    assert diff.by_head == {"mask": 1, "gender": 0, "age": 3}
    names = {number: diff.heads.joint_name(number) for number in (0, 1, 2, 5, 6, 17)}
    assert diff.changes.to_numpy().tolist() == [
        [names[1], names[2], 2],
        [names[0], names[1], 1],
        [names[17], names[5], 1],
    ]
    assert diff.classes.to_numpy().tolist() == [
        [names[0], 1, 0],
        [names[1], 2, 1],
        [names[2], 0, 2],
        [names[5], 0, 1],
        [names[6], 1, 1],
        [names[17], 1, 0],
    ]
    assert diff.frame["photo"].tolist() == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert diff.frame.iloc[3].tolist() == ["4.jpg", names[17], names[5]]


def test_it_is_told_in_words_and_plain_values(files: tuple[Path, Path], tmp_path: Path) -> None:
    diff = diff_files(*files)
    lines = str(diff).splitlines()
    assert lines[0] == "5 photos, 4 differ (80.0%); in mask 1, gender 0, age 3"
    assert lines[3].endswith("     2")
    assert diff.heads.joint_name(17) in lines[5]
    plain = json.loads(json.dumps(diff.to_plain()))
    assert plain["differing"] == 4
    assert plain["changes"][0]["count"] == 2
    assert plain["classes"][1] == {"class": diff.heads.joint_name(1), "a": 2, "b": 1}
    diff.to_csv(tmp_path / "d.csv")
    assert read_strings(tmp_path / "d.csv", ["photo", "a", "b"]).to_numpy().tolist() == diff.frame.to_numpy().tolist()


def test_two_that_are_the_same(files: tuple[Path, Path], tmp_path: Path) -> None:
    diff = diff_files(files[0], files[0])
    assert str(diff) == "5 photos, all the same"
    assert (len(diff.changes), len(diff.frame), diff.by_head["age"]) == (0, 0, 0)
    diff.to_csv(tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text() == "photo,a,b\n"


def test_many_changes_are_cut_in_words_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(900)]
    a, b = (dict(zip(names, rng.integers(0, 18, 900).tolist(), strict=True)) for _ in range(2))
    diff = diff_files(write(tmp_path / "a.csv", a), write(tmp_path / "b.csv", b))
    pairs = pd.Series([(a[n], b[n]) for n in names if a[n] != b[n]]).value_counts()
    assert diff.changes["count"].tolist() == pairs.tolist()
    rest = f"and {len(pairs) - 20} other changes of {pairs.iloc[20:].sum()} photos"
    assert rest in str(diff)
    assert diff.classes["a"].tolist() == np.bincount(list(a.values())).tolist()


def test_other_heads_and_predict_s_own_files(tmp_path: Path) -> None:
    heads = Heads([Head("colour", ("red", "green")), Head("size", ("small", "large"))])
    for name, classes in (("a", [0, 3]), ("b", [1, 3])):
        pd.DataFrame({"path": ["x/1.jpg", "x/2.jpg"], "predicted": classes}).to_csv(tmp_path / f"{name}.csv")
    diff = diff_files(tmp_path / "a.csv", tmp_path / "b.csv", heads)
    assert diff.frame.to_numpy().tolist() == [["1.jpg", "red small", "red large"]]
    with pytest.raises(DataError, match="column predicted: found '3', expected a class from 0 to 1"):
        diff_files(tmp_path / "a.csv", tmp_path / "b.csv", Heads([Head("colour", ("red", "green"))]))


def test_other_photos_are_named_whichever_file_lacks_them(files: tuple[Path, Path], tmp_path: Path) -> None:
    more = write(tmp_path / "more.csv", {f"{i}.jpg": 0 for i in range(1, 8)})
    for pair in ((files[0], more), (more, files[0])):
        with pytest.raises(DataError, match=r"a\.csv lacks 2 of the 7 photos of .*more\.csv, such as 6\.jpg; expected"):
            diff_files(*pair)


@pytest.fixture
def runs(finished_run: Run, run_copy: Path) -> tuple[Run, Run]:
    """A run, and one of the same photos in another order, one person fewer, with better OOF predictions."""
    file = run_copy / "oof.csv"
    oof = read_strings(file, ())
    better = np.random.default_rng(0).random(len(oof)) < 0.5
    y = finished_run.true
    for head, column in zip(finished_run.heads, y.T, strict=True):
        for i, name in enumerate(head.classes):
            oof.loc[better, f"{head.name}.{name}"] = [str(float(c == i)) for c in column[better]]
    for name, frame in (("oof.csv", oof), ("folds.csv", read_strings(run_copy / "folds.csv", ()))):
        frame[frame["person"] != oof["person"].iloc[0]].iloc[::-1].to_csv(run_copy / name, index=False)
    return finished_run, Run.load(run_copy)


def joined(run_a: Run, run_b: Run) -> pd.DataFrame:
    """True and predicted classes of the photos of both, by pandas alone."""
    frames = []
    for run in (run_a, run_b):
        joint = {"true": run.heads.joint(run.true), "predicted": run.heads.joint(run.predicted)}
        frames.append(pd.DataFrame({"path": run.oof["path"], "person": run.oof["person"], **joint}))
    return frames[0].merge(frames[1], on="path", suffixes=("_a", "_b"))


def test_the_expected_change_is_scikit_learn_s_difference(runs: tuple[Run, Run]) -> None:
    found = expected_change(*runs, draws=200)
    both = joined(*runs)
    assert (found.photos, len(both)) == (77, 77)
    f1 = [f1_score(both["true_a"], both[f"predicted_{x}"], average="macro", labels=np.unique(both["true_a"]),
                   zero_division=0) for x in "ab"]  # fmt: skip
    accuracy = [accuracy_score(both["true_a"], both[f"predicted_{x}"]) for x in "ab"]
    difference = found.difference
    assert difference is not None
    assert difference.macro_f1 == pytest.approx(f1[1] - f1[0])
    assert difference.accuracy == pytest.approx(accuracy[1] - accuracy[0])
    # whole persons are drawn: as wide as a bootstrap by pandas, and by far wider than nothing
    rng, people = np.random.default_rng(1), [rows for _, rows in both.groupby("person_a")]
    draws = [pd.concat([people[i] for i in rng.integers(0, len(people), len(people))]) for _ in range(400)]
    gains = [((d["predicted_b"] == d["true_a"]).mean() - (d["predicted_a"] == d["true_a"]).mean()) for d in draws]
    assert difference.accuracy_interval == pytest.approx(tuple(np.percentile(gains, (2.5, 97.5))), abs=0.04)
    back = expected_change(runs[1], runs[0], draws=200).difference
    assert back is not None
    assert back.macro_f1 == pytest.approx(-difference.macro_f1)


def test_it_says_of_what_it_is(runs: tuple[Run, Run]) -> None:
    found = expected_change(*runs, draws=20)
    text = str(found)
    assert text.startswith(f"Expected change of macro-F1 from A to B, by OOF: {found.difference}; accuracy +")
    assert f"of the OOF predictions of {runs[0].path} and {runs[1].path}, each photo by the one model" in text
    assert "77 photos of both" in text
    assert "under 30 persons: the intervals of differences are too narrow" in text
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["difference"]["macro_f1"] == found.difference.macro_f1
    same = expected_change(runs[0], runs[0], draws=20)
    assert same.difference.macro_f1 == 0
    assert "within noise" in str(same)


def test_each_side_is_answered_by_its_rule(run_of, draw_oof) -> None:
    run = run_of(*draw_oof(persons=60))
    found = expected_change(run, run, ("plain", "f1"))
    rows = {row.rule: row for row in decide(run).rows}
    assert found.difference == rows["f1"].gain
    assert found.runs == (str(run.path), f"{run.path} (f1)")


def test_a_run_that_is_not_what_it_was_is_told(files: tuple[Path, Path], runs: tuple[Run, Run], tmp_path: Path) -> None:
    ledger, scores = tmp_path / "ledger.csv", [run.score(draws=0).joint for run in runs]
    for file, run, score in zip(files, runs, scores, strict=True):
        note(ledger, entry_of(file, score, run=str(run.path), decision="plain"))
    assert "retrained" not in str(expect_files(*files, ledger=ledger))
    note(ledger, entry_of(files[1], replace(scores[1], macro_f1=0.9), run=str(runs[1].path), decision="plain"))
    assert f"{runs[1].path} has been retrained since." in str(expect_files(*files, ledger=ledger))


def test_a_submission_of_nobody_is_taken_for_a_plain_one_of_the_run_that_is_named(
    files: tuple[Path, Path], runs: tuple[Run, Run], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.csv"
    note(ledger, entry_of(files[0], public=0.7))
    named = (runs[0].path, runs[1].path)
    assert expect_files(*files, named, ledger).difference == expected_change(*runs).difference


def change(file: Path, column: str, row: int, cell: str) -> str:
    frame = read_strings(file, ())
    frame.iloc[row, list(frame.columns).index(column)] = cell
    frame.to_csv(file, index=False)
    return str(frame["path"].iloc[row])


def test_labels_that_differ_are_named(finished_run: Run, run_copy: Path) -> None:
    path = change(run_copy / "folds.csv", "mask", 3, "")
    was = finished_run.folds["mask"][3]
    with pytest.raises(DataError, match=f"differ in the label of {path}: mask '{was}' and ''; expected runs with"):
        expected_change(finished_run, Run.load(run_copy))


def test_runs_of_other_photos_are_told(finished_run: Run, run_copy: Path) -> None:
    for name in ("oof.csv", "folds.csv"):
        frame = read_strings(run_copy / name, ())
        frame.assign(path="other/" + frame["path"]).to_csv(run_copy / name, index=False)
    with pytest.raises(DataError, match="have no photo in common, the first has"):
        expected_change(finished_run, Run.load(run_copy))


def test_runs_of_other_classes_are_told(finished_run: Run, run_copy: Path) -> None:
    for name in ("heads.json", "folds.csv", "oof.csv"):
        text = (run_copy / name).read_text()
        (run_copy / name).write_text(text.replace("female", "woman"))
    with pytest.raises(DataError, match="gender: male, female; .* gender: male, woman; .* expected the same"):
        expected_change(finished_run, Run.load(run_copy))


def test_the_ledger_tells_the_runs(files: tuple[Path, Path], runs: tuple[Run, Run], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.csv"
    for file, run in zip(files, runs, strict=True):
        note(ledger, entry_of(file, run=str(run.path), decision="plain"))
    copy = Path(shutil.copy(files[0], tmp_path / "under another name.csv"))
    found = expect_files(copy, files[1], ledger=ledger)
    assert found.difference == expected_change(*runs).difference
    # the run has moved together with the ledger
    note(ledger, entry_of(files[1], run=f"/gone/{runs[1].path.name}", decision="plain"))
    assert expect_files(*files, ledger=ledger).difference == found.difference
    # those that are named are taken
    assert expect_files(*files, (runs[1].path, runs[0].path), ledger).difference.macro_f1 < 0


def test_without_runs_there_is_no_expectation_but_a_reason(
    files: tuple[Path, Path], runs: tuple[Run, Run], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.csv"
    found = expect_files(*files)
    assert found.difference is None
    assert str(found) == (
        f"No expectation of the score: the run of {files[0]} is unknown, there is no ledger; name the two runs "
        "by --runs."
    )
    note(ledger, entry_of(files[0], run=str(runs[0].path)))
    # a submission of somebody else
    note(ledger, entry_of(files[1], public=0.8))
    assert f"the run of {files[1]} is unknown, {ledger} has no run for it" in str(expect_files(*files, ledger=ledger))
    note(ledger, entry_of(files[1], run="runs/gone"))
    assert "runs/gone is not a run directory" in str(expect_files(*files, ledger=ledger))
    note(ledger, entry_of(files[1], run=str(runs[1].path), decision="best"))
    assert "no decision 'best'" in str(expect_files(*files, ledger=ledger))
    assert json.loads(json.dumps(found.to_plain()))["difference"] is None
    # what was asked for by name, and cannot be had, is an error
    with pytest.raises(UsageError, match="is not a run directory"):
        expect_files(*files, ("runs/gone", runs[0].path))


def test_a_run_that_has_learned_a_number_beside_its_heads_is_compared_by_the_others(run_of, draw_oof):
    probabilities, y = draw_oof(persons=30)
    years = Heads([*contest_heads(), Head("age_number", ("20", "40", "60"), spread=5.0)])
    more = np.concatenate([probabilities[::-1], np.full((210, 3), 1 / 3)], axis=1)
    plain = run_of(probabilities, y)
    wide = run_of(more, np.concatenate([y, y[:, 2:]], axis=1), "wide", heads=years)
    change = expected_change(plain, wide).difference
    expected = wide.score(draws=0).joint.macro_f1 - plain.score(draws=0).joint.macro_f1
    assert change.macro_f1 == pytest.approx(expected)
