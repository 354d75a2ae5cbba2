import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.fixes import apply_fixes
from fastmask.evaluation.label_errors import (
    class_thresholds,
    confident_joint,
    find_label_errors,
    rank_errors,
    summary,
    to_fixes,
)
from fastmask.heads import Heads
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.files import write_csv


@pytest.fixture
def made(run_of):
    """Makes a run of 120 persons of three photos, whose OOF predictions are right, with probabilities of 0.85 to 0.95.

    Then labels and probabilities of rows {(first, last, column): value} are changed.
    """
    heads, every = contest_heads(), np.arange(120).repeat(3)
    y = np.stack([np.tile([1, 0, 2], 120), every % 2, every % 3], axis=1)
    sure = np.random.default_rng(0).uniform(0.85, 0.95, (360, 1))
    parts = [np.where(np.eye(n)[y[:, i]] > 0, sure, (1 - sure) / (n - 1)) for i, n in enumerate(heads.sizes)]
    probabilities, numbers = np.concatenate(parts, axis=1), itertools.count()

    def make(labels, changed=()):
        given, p = y.copy(), pd.DataFrame(probabilities, columns=heads.columns)
        for (first, last, head), name in labels.items():
            given[first : last + 1, heads.position(head)] = heads[head].encode(name)
        for (first, last, column), value in dict(changed).items():
            p.loc[first:last, column] = value
        return run_of(p.to_numpy(), given, f"made{next(numbers)}", persons=every, folds=2)

    return make


def test_by_hand():
    """As by cleanlab 2.9, which rounds the joint: `get_confident_thresholds`, `compute_confident_joint`."""
    first = np.array([0.9, 0.8, 0.5, 0.1, 0.1, 0.2, 0.55])
    probabilities, y = np.stack([first, 1 - first], axis=1), np.array([0, 0, 0, 0, 1, 1, 1])
    # the means of 0.9, 0.8, 0.5, 0.1 and of 0.9, 0.8, 0.45
    np.testing.assert_allclose(class_thresholds(probabilities, y), [0.575, 2.15 / 3])
    # of four labelled 0 two are confidently 0 and one is confidently 1, of three labelled 1 two are confidently so
    np.testing.assert_allclose(confident_joint(probabilities, y), [[8 / 3, 4 / 3], [0, 3]])
    # 4/3 are one; the last photo is contradicted as well, but it is less suspicious
    assert rank_errors(probabilities, y).tolist() == [3]
    # were it predicted more surely than the mean of those labelled 0, there would be 4/3 + 1 errors
    probabilities[6] = 0.6, 0.4
    assert rank_errors(probabilities, y).tolist() == [3, 6]


def test_planted_errors_come_first():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=3000)
    logits = rng.normal(size=(3000, 3)) + 5 * np.eye(3)[y]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    planted = rng.choice(3000, 60, replace=False)
    labels = y.copy()
    labels[planted] = (y[planted] + rng.integers(1, 3, 60)) % 3
    found = rank_errors(probabilities, labels)
    assert np.isin(found[:50], planted).all()
    assert np.isin(planted, found).mean() > 0.95
    assert 54 <= len(found) <= 66


def test_a_class_of_one_label_or_none():
    probabilities = np.array([[0.7, 0.26, 0.04, 0.0]] * 20 + [[0.26, 0.7, 0.04, 0.0]] * 20 + [[0.6, 0.39, 0.01, 0.0]])
    y = np.repeat([0, 1, 2], [20, 20, 1])
    # not 0.01, which would make all others confidently of class 2
    np.testing.assert_allclose(class_thresholds(probabilities, y), [0.7, 0.7, 0.25, np.inf])
    assert rank_errors(probabilities, y).tolist() == []
    probabilities[40] = 0.8, 0.1, 0.1, 0.0
    joint = confident_joint(probabilities, y)
    np.testing.assert_allclose(joint.sum(axis=1), [20, 20, 1, 0])
    # one confident prediction next to the one right label that each class has at least: half an error
    assert joint[2].tolist() == [0.5, 0, 0.5, 0]


def test_a_photo_and_a_whole_person(made):
    run = made({(3, 5, "gender"): "male", (7, 7, "mask"): "none"})
    photo, person = sorted(find_label_errors(run), key=lambda error: error.whole)
    assert (photo.head, photo.person, photo.paths, photo.whole) == ("mask", "p0002", ("00007.jpg",), False)
    assert (photo.label, photo.suggested, photo.value, photo.of) == ("none", "wear", "wear", 360)
    assert (person.head, person.person, person.whole) == ("gender", "p0001", True)
    assert person.paths == ("00003.jpg", "00004.jpg", "00005.jpg")
    assert (person.label, person.suggested, person.of) == ("male", "female", 120)
    assert person.self_confidence < 0.1 < 0.9 < person.probability
    assert [error.head for error in find_label_errors(run, heads=["mask"])] == ["mask"]
    with pytest.raises(UsageError, match="There is no head 'hat'; the heads are mask, gender, age"):
        find_label_errors(run, heads=["hat"])


def test_unknown_labels_are_left_out(made):
    run = made({(0, 0, "mask"): "", (3, 4, "gender"): "male", (5, 5, "gender"): ""})
    [error] = find_label_errors(run)
    # the third photo of the person stays unknown
    assert (error.head, error.whole) == ("gender", False)
    assert to_fixes([error])["path"].tolist() == ["00003.jpg", "00004.jpg"]
    assert find_label_errors(made({(0, 359, "mask"): ""})) == []


def test_photos_of_a_person_are_judged_together_but_for_contradicting_labels(made):
    # one photo alone looks like a man; the others outvote it
    assert find_label_errors(made({}, {(3, 3, "gender.male"): 0.99, (3, 3, "gender.female"): 0.01})) == []
    [error] = find_label_errors(made({(4, 4, "gender"): "male"}))
    assert (error.paths, error.suggested, error.whole, error.of) == (("00004.jpg",), "female", False, 121)


def test_a_head_that_is_often_wrong_is_less_suspicious(made):
    """The answers are as sure in both heads, but those of gender contradict the label of one person in ten."""
    run = made({(7, 7, "mask"): "none", **{(i, i + 2, "gender"): "male" for i in range(3, 360, 30)}})
    first, *others = find_label_errors(run)
    assert first.head == "mask"
    assert {error.head for error in others} == {"gender"}
    assert others[0].self_confidence > 2 * first.self_confidence


def test_bands_of_a_number_are_fixed_to_unknown(made):
    run = made({(0, 2, "age"): "60+"}, {(0, 2, "age.30-59"): 0.01, (0, 2, "age.60+"): 0.01})
    fixes = to_fixes(find_label_errors(run))
    [row] = fixes.to_dict("records")
    assert (row["person"], row["path"], row["column"], row["value"]) == ("p0000", "", "age", "")
    assert (row["label"], row["suggested"], row["proposed"]) == ("60+", "<30", "oof")
    assert row["probability"] > 0.9
    assert "age: many of those near a bound are correct" in summary(find_label_errors(run))


def test_the_table_fixes_those_labels_only(contest, run_copy, tmp_path):
    """The OOF prediction is sure of other labels: the last person's gender and age, and one photo's mask."""
    table, heads = read_contest(contest), Run.load(run_copy).heads
    oof = pd.read_csv(run_copy / "oof.csv")
    truth = table.y.copy()
    last, photo = table.frame["person"] == table.frame["person"].iloc[-1], 10
    truth[last, 1] = 1 - truth[last, 1]
    truth[last, 2] = (truth[last, 2] + 1) % 3
    truth[photo, 0] = (truth[photo, 0] + 1) % 3
    sure = np.concatenate([np.eye(n)[truth[:, i]] for i, n in enumerate(heads.sizes)], axis=1)
    assert oof["path"].tolist() == table.frame["path"].tolist()
    write_csv(run_copy / "oof.csv", oof.assign(**dict(zip(heads.columns, (0.01 + 0.98 * sure).T, strict=True))))
    write_csv(tmp_path / "fixes.csv", to_fixes(find_label_errors(Run.load(run_copy))))
    with pytest.warns(FastmaskWarning, match="3 corrections of .* are proposed by a model"):
        fixed = apply_fixes(table, tmp_path / "fixes.csv")
    # the age is unknown until it is written into the table
    truth[last, 2] = -1
    np.testing.assert_array_equal(fixed.y, truth)


def test_labels_are_those_of_the_training(run_of):
    """With bounds 30 and 57 in training, a network that has learned its labels calls a 58 60+: no wrong label."""
    heads, ages = contest_heads((30, 57)), np.tile([20.0, 45.0, 58.0, 65.0], 30).repeat(2)
    official = np.stack([np.zeros(240, int), np.zeros(240, int), np.digitize(ages, (30, 60))], axis=1)
    learned = np.digitize(ages, (30, 57))
    # the labels of two persons contradict what the network sees: a 58 that looks 20, a 45 that looks over 57
    seen = learned.copy()
    seen[4:6], seen[10:12] = 0, 2
    sure = [np.full((240, 3), 0.1), np.full((240, 2), 0.2), np.full((240, 3), 0.1)]
    for part, codes in zip(sure, (official[:, 0], official[:, 1], seen), strict=True):
        part[np.arange(240), codes] = 0.8
    sure[2][[4, 5, 10, 11]] *= 0.5
    sure[2][[4, 5, 10, 11], seen[[4, 5, 10, 11]]] = 0.9
    run = run_of(np.concatenate(sure, axis=1), official, heads=heads, persons=np.arange(120).repeat(2), folds=2)
    write_csv(run.path / "folds.csv", run.folds.assign(age_value=ages))
    found = find_label_errors(Run.load(run.path))
    assert {(error.person, error.label, error.suggested) for error in found} == {
        ("p0002", "60+", "<30"),
        ("p0005", "30-59", "60+"),
    }


def test_a_head_that_was_not_learned_has_no_suspicious_labels(run_of):
    mask, gender, age = contest_heads()
    rng = np.random.default_rng(0)
    y = np.stack([rng.integers(n, size=300) for n in (3, 2, 3)], axis=1)
    noise = np.concatenate([rng.dirichlet(np.ones(n), 300) for n in (3, 2, 3)], axis=1)
    run = run_of(noise, y, heads=Heads([mask, replace(gender, weight=0.0), age]), persons=np.arange(300))
    assert {error.head for error in find_label_errors(run)} == {"mask", "age"}
    with pytest.raises(UsageError, match="gender was not learned"):
        find_label_errors(run, ["gender"])


def test_summary(made):
    labels = {(i, i + 2, "gender"): "male" for i in (3, 9, 15)}
    errors = find_label_errors(made({**labels, (7, 7, "mask"): "none"}))
    text = summary(errors, most=2, width=60)
    assert "mask          1 of     360 labels suspicious" in text
    assert "gender        3 of     120 labels suspicious" in text
    assert "  00007.jpg  none 0.00" in text
    assert text.count("-> female 0.9") == 2
    assert "... and 1 more" in text
    assert max(map(len, text.splitlines())) <= 60
    assert summary([]) == "No suspicious labels found."
