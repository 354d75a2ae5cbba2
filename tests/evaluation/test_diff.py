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
from fastmask.evaluation.decisions import decide
from fastmask.evaluation.diff import diff_files, expect_files, expected_change
from fastmask.evaluation.ledger import entry_of, note
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_strings


def write(file, answers):
    pd.DataFrame({"ImageID": list(answers), "ans": list(answers.values())}).to_csv(file, index=False)
    return file


@pytest.fixture
def files(tmp_path):
    """Two submissions of five photos; the second in another order."""
    a = {"1.jpg": 1, "2.jpg": 1, "3.jpg": 0, "4.jpg": 17, "5.jpg": 6}
    b = {"5.jpg": 6, "4.jpg": 5, "3.jpg": 1, "2.jpg": 2, "1.jpg": 2}
    return write(tmp_path / "a.csv", a), write(tmp_path / "b.csv", b)


def test_two_submissions_compared_by_hand(files, tmp_path):
    diff = diff_files(*files)
    assert (len(diff.photos), diff.differing) == (5, 4)
    # 17 is not worn (2), female, 60+; 5 is worn (0), female, 60+
    assert diff.by_head == {"mask": 1, "gender": 0, "age": 3}
    names = {number: diff.heads.joint_name(number) for number in (0, 1, 2, 5, 6, 17)}
    changes = [[names[1], names[2], 2], [names[0], names[1], 1], [names[17], names[5], 1]]
    assert diff.changes.to_numpy().tolist() == changes
    classes = {0: (1, 0), 1: (2, 1), 2: (0, 2), 5: (0, 1), 6: (1, 1), 17: (1, 0)}
    assert diff.classes.to_numpy().tolist() == [[names[number], *counts] for number, counts in classes.items()]
    assert diff.frame["photo"].tolist() == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert diff.frame.iloc[3].tolist() == ["4.jpg", names[17], names[5]]
    # as text, plain values and a table
    lines = str(diff).splitlines()
    assert lines[0] == "5 photos, 4 differ (80.0%); in mask 1, gender 0, age 3"
    assert lines[3].endswith("     2")
    assert names[17] in lines[5]
    plain = json.loads(json.dumps(diff.to_plain()))
    assert plain["differing"] == 4
    assert plain["changes"][0]["count"] == 2
    assert plain["classes"][1] == {"class": names[1], "a": 2, "b": 1}
    diff.to_csv(tmp_path / "d.csv")
    assert read_strings(tmp_path / "d.csv", ["photo", "a", "b"]).to_numpy().tolist() == diff.frame.to_numpy().tolist()


def test_two_equal_submissions(files, tmp_path):
    diff = diff_files(files[0], files[0])
    assert str(diff) == "5 photos, all the same"
    assert (len(diff.changes), len(diff.frame), diff.by_head["age"]) == (0, 0, 0)
    diff.to_csv(tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text() == "photo,a,b\n"


def test_of_many_changes_the_text_has_the_commonest(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(900)]
    a, b = (dict(zip(names, rng.integers(0, 18, 900).tolist(), strict=True)) for _ in range(2))
    diff = diff_files(write(tmp_path / "a.csv", a), write(tmp_path / "b.csv", b))
    pairs = pd.Series([(a[n], b[n]) for n in names if a[n] != b[n]]).value_counts()
    assert diff.changes["count"].tolist() == pairs.tolist()
    assert f"and {len(pairs) - 20} other changes of {pairs.iloc[20:].sum()} photos" in str(diff)
    assert diff.classes["a"].tolist() == np.bincount(list(a.values())).tolist()


def test_other_heads_and_files_of_predict(tmp_path):
    heads = Heads([Head("colour", ("red", "green")), Head("size", ("small", "large"))])
    for name, classes in (("a", [0, 3]), ("b", [1, 3])):
        pd.DataFrame({"path": ["x/1.jpg", "x/2.jpg"], "predicted": classes}).to_csv(tmp_path / f"{name}.csv")
    diff = diff_files(tmp_path / "a.csv", tmp_path / "b.csv", heads)
    assert diff.frame.to_numpy().tolist() == [["1.jpg", "red small", "red large"]]
    with pytest.raises(DataError, match="column predicted: found '3', expected a class from 0 to 1"):
        diff_files(tmp_path / "a.csv", tmp_path / "b.csv", Heads([Head("colour", ("red", "green"))]))


def test_a_file_of_predict_with_other_heads_is_not_read_as_the_contest_s(tmp_path):
    """Its joint class 3 is green and large, not that of the contest."""
    columns = "path,predicted,colour,size,colour.red,colour.green,size.small,size.large,fold0:colour.red"
    (tmp_path / "a.csv").write_text(f"{columns}\n1.jpg,3,green,large,0.1,0.9,0.2,0.8,0.1\n")
    (tmp_path / "b.csv").write_text(f"{columns}\n1.jpg,2,green,small,0.1,0.9,0.7,0.3,0.1\n")
    diff = diff_files(tmp_path / "a.csv", tmp_path / "b.csv")
    assert diff.frame.to_numpy().tolist() == [["1.jpg", "green large", "green small"]]
    assert diff.by_head == {"colour": 0, "size": 1}
    with pytest.raises(DataError, match="has predictions of colour, size; expected those of mask, gender, age"):
        diff_files(tmp_path / "a.csv", tmp_path / "a.csv", contest_heads())


def test_submissions_of_class_names_or_probabilities(tmp_path):
    for name, text in (("a", "id,label\n1,cat\n2,dog\n"), ("b", "id,label\n2,dog\n1,dog\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    diff = diff_files(tmp_path / "a.csv", tmp_path / "b.csv")
    assert (diff.by_head, diff.frame.to_numpy().tolist()) == ({"label": 1}, [["1", "cat", "dog"]])
    for name, text in (("a", "id,cat,dog\n1,0.9,0.1\n2,0.2,0.8\n"), ("b", "id,cat,dog\n1,0.8,0.2\n2,0.6,0.4\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    assert diff_files(tmp_path / "a.csv", tmp_path / "b.csv").frame.to_numpy().tolist() == [["2", "dog", "cat"]]
    (tmp_path / "c.csv").write_text("id,label\n1,cat\n")
    with pytest.raises(DataError, match=r"c\.csv, column label: found only cat, expected two or more classes"):
        diff_files(tmp_path / "c.csv", tmp_path / "c.csv")


def test_other_classes_of_a_head_are_refused(tmp_path):
    for name, other in (("a", "green"), ("b", "blue")):
        (tmp_path / f"{name}.csv").write_text(f"path,predicted,colour,colour.red,colour.{other}\n1.jpg,0,red,1,0\n")
    with pytest.raises(DataError, match=r"b\.csv has Heads\(colour: red, blue\); expected Heads\(colour: red, green\)"):
        diff_files(tmp_path / "a.csv", tmp_path / "b.csv")


def test_missing_photos_are_named_whichever_file_lacks_them(files, tmp_path):
    more = write(tmp_path / "more.csv", {f"{i}.jpg": 0 for i in range(1, 8)})
    for pair in ((files[0], more), (more, files[0])):
        with pytest.raises(DataError, match=r"a\.csv lacks 2 of the 7 photos of .*more\.csv, such as 6\.jpg; expected"):
            diff_files(*pair)


@pytest.fixture
def runs(run_of, draw_oof, better_than):
    """A run, and one of the same photos in another order, one person fewer, with better OOF predictions."""
    probabilities, y = draw_oof(persons=12)
    better = run_of(better_than(probabilities, y, 0.5), y, "better")
    for name in ("oof.csv", "folds.csv"):
        read_strings(better.path / name, ()).iloc[:6:-1].to_csv(better.path / name, index=False)
    return run_of(probabilities, y, "base"), Run.load(better.path)


def test_the_expected_change_is_scikit_learns_difference(runs):
    found = expected_change(*runs, draws=200)
    frames = [run.oof.set_index("path") for run in runs]
    both = frames[0].join(frames[1]["predicted"].rename("predicted_b"), how="inner")
    assert (found.photos, len(both)) == (77, 77)
    true, answers, difference = both["true"], (both["predicted"], both["predicted_b"]), found.difference
    options = {"average": "macro", "labels": np.unique(frames[0]["true"]), "zero_division": 0}
    f1 = [f1_score(true, each, **options) for each in answers]
    accuracy = [accuracy_score(true, each) for each in answers]
    assert difference.macro_f1 == pytest.approx(f1[1] - f1[0])
    assert difference.accuracy == pytest.approx(accuracy[1] - accuracy[0])
    # whole persons are drawn: wider than a bootstrap by pandas, which is too narrow with 11 persons
    right = (answers[1] == true).astype(float) - (answers[0] == true)
    people, rng = right.groupby(both["person"]).mean().to_numpy(), np.random.default_rng(1)
    gains = people[rng.integers(0, len(people), (4000, len(people)))].mean(1)
    plain, (low, high) = np.percentile(gains, (2.5, 97.5)), difference.accuracy_interval
    assert low < plain[0] < plain[1] < high
    assert high - low < 2 * np.ptp(plain)
    back = expected_change(runs[1], runs[0], draws=200).difference
    assert (back.accuracy, back.macro_f1) == (-difference.accuracy, pytest.approx(-difference.macro_f1))
    assert expected_change(runs[0], runs[0], draws=20).difference.macro_f1 == 0


def test_an_expectation_names_its_runs_and_its_limits(runs):
    found = expected_change(*runs, draws=20)
    text = str(found)
    assert text.startswith(f"Expected change of macro-F1 from A to B, by OOF: {found.difference}; accuracy +")
    assert f"of the OOF predictions of {runs[0].path} and {runs[1].path}, each photo by the one model" in text
    assert "77 photos of both" in text
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["difference"]["macro_f1"] == found.difference.macro_f1
    assert "within noise" in str(expected_change(runs[0], runs[0], draws=20))


def test_each_side_is_answered_by_its_rule(run_of, draw_oof):
    run = run_of(*draw_oof(persons=60))
    found = expected_change(run, run, ("plain", "f1"))
    rows = {row.rule: row for row in decide(run).rows}
    assert found.difference == rows["f1"].gain
    assert found.runs == (str(run.path), f"{run.path} (f1)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace(",none,", ",,", 1), r"differ in the label of \d+\.jpg: mask 'none' and ''; expected"),
        (lambda t: t.replace(".jpg", ".png"), "have no photo in common, the first has"),
        (lambda t: t.replace("female", "woman"), "gender: male, female; .* gender: male, woman; .* expected the same"),
    ],
)
def test_runs_of_other_labels_photos_or_classes_are_refused(runs, change, message):
    for name in ("heads.json", "folds.csv", "oof.csv"):
        file = runs[1].path / name
        file.write_text(change(file.read_text()))
    with pytest.raises(DataError, match=message):
        expected_change(runs[0], Run.load(runs[1].path))


def test_the_ledger_has_the_runs(files, runs, tmp_path):
    ledger, scores = tmp_path / "ledger.csv", [run.score(draws=0).joint for run in runs]
    for file, run, score in zip(files, runs, scores, strict=True):
        note(ledger, entry_of(file, score, run=str(run.path), decision="plain"))
    copy = Path(shutil.copy(files[0], tmp_path / "under another name.csv"))
    found = expect_files(copy, files[1], ledger=ledger)
    assert found.difference == expected_change(*runs).difference
    assert "retrained" not in str(found)
    note(ledger, entry_of(files[1], replace(scores[1], macro_f1=0.9), run=str(runs[1].path), decision="plain"))
    assert f"{runs[1].path} has been retrained since." in str(expect_files(*files, ledger=ledger))
    # the run has moved together with the ledger
    note(ledger, entry_of(files[1], run=f"/gone/{runs[1].path.name}", decision="plain"))
    assert expect_files(*files, ledger=ledger).difference == found.difference
    # runs that are given are taken, the submissions for plain ones
    assert expect_files(*files, (runs[1].path, runs[0].path), ledger).difference.macro_f1 < 0
    note(ledger, entry_of(files[0], public=0.7))
    assert expect_files(*files, (runs[0].path, runs[1].path), ledger).difference == found.difference


def test_without_runs_there_is_no_expectation_but_a_reason(files, runs, tmp_path):
    ledger, run = tmp_path / "ledger.csv", str(runs[1].path)
    found = expect_files(*files)
    assert found.difference is json.loads(json.dumps(found.to_plain()))["difference"] is None
    assert str(found) == (
        f"No expectation of the score: the run of {files[0]} is unknown, there is no ledger; name the two runs by "
        "--runs."
    )
    note(ledger, entry_of(files[0], run=str(runs[0].path)))
    for known, message in (
        ({"public": 0.8}, f"the run of {files[1]} is unknown, {ledger} has no run for it"),
        ({"run": "runs/gone"}, "runs/gone is not a run directory"),
        ({"run": run, "decision": "best"}, "no decision 'best'"),
    ):
        note(ledger, entry_of(files[1], **known))
        assert message in str(expect_files(*files, ledger=ledger))
    # of runs that are given it is an error
    with pytest.raises(UsageError, match="is not a run directory"):
        expect_files(*files, ("runs/gone", runs[0].path))


def test_a_distribution_over_a_number_is_no_part_of_the_change(run_of, draw_oof):
    probabilities, y = draw_oof(persons=30)
    years = Heads([*contest_heads(), Head("age_number", ("20", "40", "60"), spread=5.0)])
    more = np.concatenate([probabilities[::-1], np.full((210, 3), 1 / 3)], axis=1)
    plain = run_of(probabilities, y)
    wide = run_of(more, np.concatenate([y, y[:, 2:]], axis=1), "wide", heads=years)
    expected = wide.score(draws=0).joint.macro_f1 - plain.score(draws=0).joint.macro_f1
    assert expected_change(plain, wide).difference.macro_f1 == pytest.approx(expected)
