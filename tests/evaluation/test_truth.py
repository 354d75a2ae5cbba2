import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fastmask.evaluation.truth import score_files
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, UsageError

NAMES = [f"{i:040x}.jpg" for i in range(60)]


def write(file, answers, names=NAMES):
    pd.DataFrame({"ImageID": names, "ans": answers}).to_csv(file, index=False)
    return file


def test_scores_of_files_are_those_of_scikit_learn_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 18, 60), rng.integers(0, 18, 60)
    order = rng.permutation(60)
    answers = write(tmp_path / "answers.csv", true)
    scores = score_files(write(tmp_path / "sub.csv", guess[order], np.array(NAMES)[order]), answers)
    expected = f1_score(true, guess, labels=np.unique(true), average="macro", zero_division=0)
    assert scores.joint.macro_f1 == pytest.approx(expected)
    assert scores.heads["age"].accuracy == pytest.approx(accuracy_score(true % 3, guess % 3))
    assert scores.heads["gender"].accuracy == pytest.approx(accuracy_score(true // 3 % 2, guess // 3 % 2))
    assert scores.heads["mask"].accuracy == pytest.approx(accuracy_score(true // 6, guess // 6))
    assert "too narrow" in scores.notes[0]


def test_answers_with_persons_give_wider_intervals(tmp_path):
    true = np.repeat(np.arange(12) % 6, 5)
    guess = np.repeat(np.where(np.arange(12) % 3 == 0, 0, np.arange(12) % 6), 5)
    plain, persons = write(tmp_path / "a.csv", true), tmp_path / "p.csv"
    pd.read_csv(plain).assign(person=np.repeat(np.arange(12), 5)).to_csv(persons, index=False)
    submission = write(tmp_path / "s.csv", guess)
    widths = [np.ptp(score_files(submission, file).joint.accuracy_interval) for file in (plain, persons)]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(
    ("answers", "names", "message"),
    [
        ([18] * 60, NAMES, r"line 2, column ans: found '18', expected a class from 0 to 17"),
        (["x"] * 60, NAMES, "found 'x'"),
        ([0] * 59, NAMES[:59], "lacks 1 of the 60 photos"),
        ([0] * 61, [*NAMES, NAMES[0]], "line 62, column ImageID: .* is duplicated"),
    ],
)
def test_files_that_cannot_be_scored_are_named(tmp_path, answers, names, message):
    with pytest.raises(DataError, match=message):
        score_files(write(tmp_path / "s.csv", answers, names), write(tmp_path / "a.csv", 0))


PREDICTIONS = (
    "path,predicted,colour,size,colour.blue,colour.green,colour.red,size.large,size.small,fold0:colour.red\n"
    "a/1.jpg,5,red,small,0.1,0.2,0.7,0.2,0.8,0.7\n"
    "a/2.jpg,2,green,large,0.1,0.6,0.3,0.9,0.1,0.2\n"
    "b/1.jpg,0,blue,large,0.5,0.3,0.2,0.6,0.4,0.3\n"
    "b/3.jpg,4,red,large,0.0,0.4,0.6,0.6,0.4,0.1\n"
    "b/4.jpg,4,red,large,0.0,0.4,0.6,0.6,0.4,0.1\n"
)
# in another order, one photo that is not predicted, one label unknown
LABELS = (
    "image,person,size,colour,note\n"
    "img/b/3.jpg,p2,large,green,x\n"
    "img/b/1.jpg,p2,small,blue,y\n"
    "img/a/2.jpg,p1,,green,z\n"
    "img/a/1.jpg,p1,small,red,\n"
    "img/c/9.jpg,p3,small,red,\n"
)


@pytest.fixture
def files(tmp_path):
    return save(tmp_path / "p.csv", PREDICTIONS), save(tmp_path / "my.csv", LABELS)


def save(file, text):
    file.write_text(text)
    return file


def test_predictions_of_any_heads_are_scored_by_a_column_per_head(files):
    scores = score_files(*files)
    assert list(scores.heads) == ["colour", "size"]
    # by hand: colours red/red, green/green, blue/blue, red/green: F1 2/3, 2/3, 1
    assert scores.heads["colour"].macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert (scores.heads["colour"].accuracy, scores.heads["colour"].n) == (0.75, 4)
    # sizes small/small, large/small, large/large: F1 of large 2/3, of small 2/3
    assert scores.heads["size"].macro_f1 == pytest.approx(2 / 3)
    assert (scores.heads["size"].accuracy, scores.heads["size"].n) == (pytest.approx(2 / 3), 3)
    true, guess = ["green large", "blue small", "red small"], ["red large", "blue large", "red small"]
    assert scores.joint.macro_f1 == pytest.approx(f1_score(true, guess, average="macro", zero_division=0))
    assert (scores.joint.n, scores.joint.accuracy) == (3, pytest.approx(1 / 3))


def test_data_frames_are_scored_like_their_files(files):
    frames = [pd.read_csv(file) for file in files]
    scores, expected = score_files(*frames), score_files(*files)
    assert (scores.joint, scores.heads) == (expected.joint, expected.heads)
    frames[1].loc[1, "colour"] = "pink"
    with pytest.raises(DataError, match="^labels, line 3, column colour: found 'pink'"):
        score_files(*frames)


def test_photos_of_one_side_alone_are_left_out_and_named(files):
    predictions, labels = files
    notes = score_files(predictions, labels).notes
    assert f"1 of the 5 predictions have no answer in {labels} and are left out." in notes
    missing = f"1 of the 5 photos of {labels} have no prediction in {predictions} and are left out"
    assert f"{missing}, such as img/c/9.jpg." in notes
    assert "1 of 4 photos lack a label and are left out of the joint score." in notes
    assert not any("too narrow" in note for note in notes)


@pytest.mark.parametrize("name", ["{}", "{}.jpg", "C:\\x\\{}.JPG", "/q/r/{}.jpg"])
def test_photos_are_matched_however_the_labels_write_them(tmp_path, name):
    predictions = save(tmp_path / "p.csv", "path,predicted,kind,kind.no,kind.yes\n1.jpg,0,no,1,0\n2.jpg,1,yes,0,1\n")
    labels = save(tmp_path / "my.csv", f"kind,file\nyes,{name.format(2)}\nno,{name.format(1)}\n")
    assert score_files(predictions, labels).joint.accuracy == 1
    # a submission without endings, for labels with them
    submission = save(tmp_path / "s.csv", "id,kind\n1,no\n2,yes\n")
    assert score_files(submission, labels).joint.accuracy == 1


def test_bands_are_scored_by_names_or_by_numbers(tmp_path):
    text = "path,predicted,age,age.<30,age.30-59,age.60+\n1.jpg,0,<30,1,0,0\n2.jpg,1,30-59,0,1,0\n3.jpg,1,30-59,0,1,0\n"
    predictions = save(tmp_path / "p.csv", text)
    for cells in (("29.9", "30", "60"), ("<30", "30-59", "60+")):
        rows = "".join(f"{i}.jpg,{cell}\n" for i, cell in enumerate(cells, 1))
        score = score_files(predictions, save(tmp_path / "my.csv", f"path,age\n{rows}")).heads["age"]
        assert score.macro_f1 == pytest.approx(f1_score([0, 1, 2], [0, 1, 1], average="macro", zero_division=0))


def test_bands_with_other_names_need_the_heads_of_the_run(tmp_path):
    predictions = save(tmp_path / "p.csv", "path,predicted,age,age.young,age.old\n1.jpg,0,young,1,0\n2.jpg,1,old,0,1\n")
    labels = save(tmp_path / "my.csv", "path,age\n1.jpg,20\n2.jpg,35\n")
    with pytest.raises(
        DataError, match="line 2, column age: found '20', expected one of young, old.*name the run with --run"
    ):
        score_files(predictions, labels)
    heads = Heads([Head("age", ("young", "old"), bounds=(30.0,))])
    assert score_files(predictions, labels, heads).joint.accuracy == 1


def test_one_head_is_scored_by_the_column_of_its_classes_whatever_its_name(tmp_path):
    predictions = save(
        tmp_path / "p.csv", "path,predicted,class,class.cat,class.dog\n1.jpg,0,cat,1,0\n2.jpg,1,dog,0,1\n"
    )
    labels = save(tmp_path / "my.csv", "image,label,owner\n1.jpg,cat,ann\n2.jpg,cat,bob\n")
    scores = score_files(predictions, labels)
    assert (scores.heads["class"].accuracy, scores.heads["class"].macro_f1) == (0.5, pytest.approx((2 / 3 + 0) / 2))
    assert f"The labels of class are those of label in {labels}." in scores.notes


def test_predictions_of_a_folder_per_class_are_scored_by_the_folders(tmp_path):
    for photo in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"):
        (tmp_path / "pets" / photo).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / photo).write_bytes(b"")
    rows = "cat/1.jpg,0,cat,1,0\ncat/2.jpg,1,dog,0,1\ndog/1.jpg,1,dog,0,1\ndog/2.jpg,1,dog,0,1\n"
    predictions = save(tmp_path / "p.csv", f"path,predicted,class,class.cat,class.dog\n{rows}")
    score = score_files(predictions, tmp_path / "pets").joint
    assert score.macro_f1 == pytest.approx(f1_score([0, 0, 1, 1], [0, 1, 1, 1], average="macro"))
    assert score.accuracy == 0.75


@pytest.mark.parametrize("header", ["id,cat,dog", "id,kind.cat,kind.dog"])
def test_a_submission_of_probabilities_is_scored(tmp_path, header):
    submission = save(tmp_path / "s.csv", f"{header}\n1,0.2,0.8\n2,0.9,0.1\n")
    assert score_files(submission, save(tmp_path / "my.csv", "path,kind\n1.jpg,cat\n2.jpg,cat\n")).joint.accuracy == 0.5


def test_one_hot_labels_are_those_of_one_head(tmp_path):
    labels = save(tmp_path / "my.csv", "id,cat,dog\n1,1,0\n2,0,1\n3,,\n")
    for text in ("id,kind\n1,cat\n2,cat\n3,cat\n", "id,cat,dog\n1,0.9,0.1\n2,0.6,0.4\n3,0.6,0.4\n"):
        scores = score_files(save(tmp_path / "s.csv", text), labels)
        assert (scores.joint.n, scores.joint.accuracy) == (2, 0.5)
    save(tmp_path / "my.csv", "id,cat,dog\n1,1,1\n2,0,1\n3,,\n")
    with pytest.raises(DataError, match="line 2, column cat, dog: found 1, 1, expected one 1 and otherwise 0"):
        score_files(tmp_path / "s.csv", labels)


def test_the_oof_predictions_of_a_run_are_scored_like_the_run(three):
    run = three[0]
    scores, own = score_files(run.path / "oof.csv", run.path / "folds.csv"), run.score()
    assert (scores.joint, scores.heads) == (own.joint, own.heads)


def test_a_distribution_over_a_number_is_not_scored(tmp_path):
    columns = "path,predicted,age,age_number,age.<30,age.30+,age_number.29,age_number.30,age_number.31"
    predictions = save(tmp_path / "p.csv", f"{columns}\n1.jpg,0,<30,29,1,0,1,0,0\n2.jpg,1,30+,30,0,1,0,1,0\n")
    scores = score_files(predictions, save(tmp_path / "my.csv", "path,age\n1.jpg,20\n2.jpg,30\n"))
    assert (list(scores.heads), scores.joint.accuracy) == (["age"], 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            "path,colour\na/1.jpg,pink\n",
            "my.csv, line 2, column colour: found 'pink', expected one of blue, green, red",
        ),
        (
            "path,colour\nx.jpg,red\n",
            "no column with photos of .*p.csv, such as a/1.jpg; found path .x.jpg., colour .red",
        ),
        ("path,shape\na/1.jpg,round\n", "has no labels of colour, size; found path, shape, expected a column per head"),
        ("path,colour\na/1.jpg,red\na/1.jpg,red\n", "line 3, column path: 'a/1.jpg' is duplicated"),
        ("path,colour\nx/a/1.jpg,red\ny/a/1.jpg,red\n", "has 2 photos that may be a/1.jpg"),
        ("path,colour\n1.jpg,red\n", "1.jpg may be a/1.jpg or b/1.jpg"),
        ("path,colour,person\na/1.jpg,red,\n", "line 2, column person: found ''"),
    ],
)
def test_labels_that_cannot_be_used_are_named(files, labels, message):
    with pytest.raises(DataError, match=message):
        score_files(files[0], save(files[1], labels))


def test_labels_or_a_run_in_place_of_predictions_are_refused(files, tmp_path):
    with pytest.raises(UsageError, match="my.csv has no predictions, .*p.csv has; name the predictions first"):
        score_files(*reversed(files))
    with pytest.raises(UsageError, match="expected the CSV of its predictions: fastmask predict RUN IMAGES --out FILE"):
        score_files(tmp_path, files[1])
