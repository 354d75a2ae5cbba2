"""Files of answers or probabilities, blended by photo."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mode

import fastmask as fm
from fastmask.data.contest import contest_heads
from fastmask.inference.answers import AnswersFile
from fastmask.inference.column_blend import majority
from fastmask.inference.file_blend import are_files, combine_files
from fastmask.inference.predictions import Predictions
from fastmask.system.errors import DataError, UsageError

HEADS = contest_heads()
PHOTOS = [f"{i:04d}.jpg" for i in range(300)]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(name, answers, photos=None):
    photos = PHOTOS[: len(answers)] if photos is None else photos
    pd.DataFrame({"ImageID": photos, "ans": answers}).to_csv(name, index=False)
    return name


def predictions(name, seed, n=40, members=("fold0", "fold1"), order=None):
    """A CSV as `predict` writes it, of random probabilities."""
    rng = np.random.default_rng(seed)
    each = {m: np.hstack([rng.dirichlet(np.ones(size), n) for size in HEADS.sizes]) for m in members}
    made = Predictions(PHOTOS[:n], HEADS, np.mean(list(each.values()), axis=0), each)
    frame = made.frame if order is None else made.frame.iloc[order]
    frame.to_csv(name, index=False)
    return name


@pytest.fixture
def five(work):
    """Five submissions in random orders, and their (files, N) answers in the first one's."""
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 6, (5, 300))
    names = [submit("0.csv", answers[0])]
    for i, own in enumerate(answers[1:], 1):
        order = rng.permutation(300)
        names.append(submit(f"{i}.csv", own[order], np.array(PHOTOS)[order]))
    return names, answers


def test_a_vote_is_the_mode_and_of_tied_answers_that_of_the_first_file_wins(five):
    files, answers = five
    blended = combine_files(files)
    assert blended.frame["ImageID"].tolist() == PHOTOS
    tied = 0
    for photo, found in enumerate(blended.frame["ans"]):
        own = answers[:, photo].tolist()
        leaders = {answer for answer in own if own.count(answer) == mode(own).count}
        tied += len(leaders) > 1
        assert found == (mode(own).mode if len(leaders) == 1 else next(a for a in own if a in leaders))
    assert 0 < tied == blended.ties < 300
    assert f"{tied} of 300 photos decided by a tie" in str(blended)


def test_weighted_votes_are_those_of_scikit_learns_voting_classifier(five):
    from sklearn.ensemble import VotingClassifier
    from sklearn.preprocessing import FunctionTransformer, LabelEncoder

    class Answers(FunctionTransformer):
        def predict(self, x):
            return x[:, self.kw_args["column"]]

    files, answers = five
    # whose sums are never equal
    weights = [2, 1.1, 1.01, 1.001, 1.0001]
    voter = VotingClassifier([], voting="hard", weights=weights)
    voter.estimators_ = [Answers(kw_args={"column": i}) for i in range(5)]
    voter.estimators = [(str(i), one) for i, one in enumerate(voter.estimators_)]
    voter.le_ = LabelEncoder().fit(np.arange(6))
    voter.classes_ = voter.le_.classes_
    blended = combine_files(files, weights=weights)
    assert blended.frame["ans"].tolist() == voter.predict(answers.T).tolist()
    assert blended.ties == 0
    assert "weights 2, 1.1, 1.01" in str(blended)


def test_two_against_one_tie_with_its_double_weight():
    answers = np.array([[3, 1, 5], [4, 2, 5], [4, 3, 1]])
    chosen, tied = majority(answers, np.array([2.0, 1, 1]))
    assert (chosen.tolist(), tied.tolist()) == ([3, 1, 5], [True, False, False])
    chosen, tied = majority(answers, np.array([0.3, 0.1, 0.2]))
    assert (chosen.tolist(), tied.tolist()) == ([3, 1, 5], [True, False, False])
    chosen, tied = majority(answers, np.ones(3))
    assert (chosen.tolist(), tied.tolist()) == ([4, 1, 5], [False, True, False])


def test_the_agreement_of_a_pair_is_its_share_of_equal_answers(five):
    files, answers = five
    agreement = combine_files(files).agreement
    assert len(agreement) == 10
    for pair in agreement:
        a, b = (answers[files.index(name)] for name in (pair.a, pair.b))
        assert pair.equal == np.mean(a == b)
        assert pair.parts["gender"] == np.mean(a // 3 % 2 == b // 3 % 2)


def test_probabilities_are_averaged_and_the_classes_follow(work):
    order = np.random.default_rng(9).permutation(40)
    files = [predictions("a.csv", 1), predictions("b.csv", 2, order=order), predictions("c.csv", 3)]
    frames = [pd.read_csv(file).set_index("path").loc[PHOTOS[:40]] for file in files]
    blended = fm.blend_files(files, weights=[2, 1, 1])
    assert list(blended.columns) == list(pd.read_csv("a.csv").columns)
    for column in (*HEADS.columns, "fold1:age.60+"):
        expected = np.average([frame[column] for frame in frames], axis=0, weights=[2, 1, 1])
        np.testing.assert_allclose(blended[column], expected, atol=1e-12)
    y = HEADS.argmax(blended[HEADS.columns].to_numpy())
    assert blended["predicted"].tolist() == HEADS.joint(y).tolist()
    assert blended["age"].tolist() == HEADS["age"].decode_all(y[:, 2]).tolist()


def test_a_vote_of_probabilities_is_per_head_and_its_shares_have_the_winner_as_most_probable(work):
    files = [predictions(f"{i}.csv", i) for i in range(4)]
    y = np.array([HEADS.argmax(pd.read_csv(file)[HEADS.columns].to_numpy()) for file in files])
    blended = combine_files(files, "vote")
    frame = blended.frame
    tied = np.zeros(40, bool)
    for i, head in enumerate(HEADS):
        chosen, ties = majority(y[..., i], np.ones(4))
        tied |= ties
        columns = [f"{head.name}.{name}" for name in head.classes]
        np.testing.assert_allclose(frame[columns].sum(axis=1), 1)
        assert frame[columns].to_numpy().argmax(axis=1).tolist() == chosen.tolist()
        assert frame[head.name].tolist() == head.decode_all(chosen).tolist()
        shares = np.stack([(y[..., i] == c).mean(axis=0) for c in range(len(head.classes))], axis=1)
        np.testing.assert_allclose(frame[columns], shares, atol=1.1e-3)
    assert blended.ties == tied.sum() > 0


def test_classes_that_a_rule_decided_are_voted_on_and_ignored_by_the_mean(work):
    files = [predictions(f"{i}.csv", i) for i in range(2)]
    frame = pd.read_csv(files[0])
    other = {"<30": "60+", "30-59": "60+", "60+": "<30"}
    frame["age"] = frame["age"].map(other)
    frame.to_csv(files[0], index=False)
    assert combine_files(files, "vote").frame["age"].tolist() == frame["age"].tolist()
    blended = combine_files(files)
    assert "0.csv: 40 answers of age are not the most probable class" in blended.notes[0]


def test_members_that_only_some_files_have_are_left_out(work):
    files = [predictions("a.csv", 1, members=("fold0", "fold1", "fold2")), predictions("b.csv", 2, members=("fold0",))]
    blended = combine_files(files)
    assert [name for name in blended.frame if ":" in name] == [f"fold0:{name}" for name in HEADS.columns]
    assert "16 columns of members of a.csv left out" in str(blended)


def test_other_forms_of_submissions_vote_on_names_and_average_a_probability(work):
    for name, texts in {"a": "x,cat,0.9,p\ny,dog,0.5,q\n", "b": "y,cat,0.1,q\nx,cat,0.3,p\n"}.items():
        Path(f"{name}.csv").write_text(f"id,animal,sleepy,kept\n{texts}")
    frame = fm.blend_files(["a.csv", "b.csv"])
    assert frame.to_dict("list") == {
        "id": ["x", "y"],
        "animal": ["cat", "dog"],
        "sleepy": pytest.approx([0.6, 0.3]),
        "kept": ["p", "q"],
    }
    Path("c.csv").write_text("id,wear,off\nx,0.9,0.1\ny,0.2,0.8\n")
    Path("d.csv").write_text("id,wear,off\nx,0.5,0.5\ny,0.4,0.6\n")
    frame = fm.blend_files([pd.read_csv("c.csv"), "d.csv"])
    assert frame["wear"].tolist() == pytest.approx([0.7, 0.3])


def test_a_distribution_over_a_number_is_averaged_and_its_answer_the_median(work):
    for i, numbers in enumerate(((31, 70), (33, 20), (60, 21))):
        shares = [0.2 * i, 0.5]
        frame = pd.DataFrame({"path": ["x", "y"], "predicted": 0, "age": "<30", "age_number": numbers})
        frame = frame.assign(**{"age.<30": 0.9, "age.30+": 0.1, "age_number.20": shares, "age_number.21": 0.5})
        frame.to_csv(f"{i}.csv", index=False)
    frame = fm.blend_files([f"{i}.csv" for i in range(3)])
    assert frame["age_number"].tolist() == ["33", "21"]
    assert frame["age_number.20"].tolist() == pytest.approx([0.2, 0.5])


def test_finer_bands_are_averaged_and_a_joint_head_is_refused(work):
    heads = pd.DataFrame({"path": ["x"], "predicted": 0, "age": "<30", "age_bands": "<20"})
    heads = heads.assign(**{"age.<30": 0.8, "age.30+": 0.2, "age_bands.30+": 0.2})
    heads.assign(**{"age_bands.<20": 0.5, "age_bands.20-30": 0.3}).to_csv("a.csv", index=False)
    heads.assign(**{"age_bands.<20": 0.1, "age_bands.20-30": 0.7}).to_csv("b.csv", index=False)
    frame = fm.blend_files(["a.csv", "b.csv"])
    assert frame["age_bands"].tolist() == ["20-30"]
    assert frame["age_bands.20-30"].tolist() == pytest.approx([0.5])
    for name in ("a.csv", "b.csv"):
        pd.read_csv(name).assign(**{"joint.a": 1, "joint.b": 0}).to_csv(name, index=False)
    with pytest.raises(UsageError, match="a.csv is of a run with a joint head"):
        fm.blend_files(["a.csv", "b.csv"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ImageID,ans\na,1\n", ["b.csv lacks 1 of the 2 photos of a.csv, such as b (line 3)"]),
        ("ImageID,ans\na,1\nb,2\nc,3\n", ["a.csv lacks 1 of the 3 photos of b.csv, such as c (line 4)"]),
        ("ImageID,ans\na,1\nb,2\nb,3\n", ["b.csv, line 4, column ImageID: 'b' is duplicated"]),
        ("ImageID,ans\na,1\nb,18\n", ["b.csv, line 3, column ans: found '18', expected a class from 0 to 17"]),
        ("ImageID,ans\na,1\nb,\n", ["b.csv, line 3, column ans: found ''"]),
        ("ImageID,answer\na,1\nb,2\n", ["b.csv has no column 'ans'"]),
        ("ImageID,ans,more\na,1,1\nb,2,2\n", ["b.csv has the column 'more', which a.csv lacks"]),
        ("path,age.<30,age.30+\na,1,0\nb,1,0\n", ["b.csv has probabilities and a.csv has none"]),
        ("ImageID,ans\n", ["b.csv has no rows"]),
        ("", ["b.csv is empty"]),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(work, text, named):
    submit("a.csv", [1, 2], ["a", "b"])
    Path("b.csv").write_text(text)
    with pytest.raises(DataError) as error:
        combine_files(["a.csv", "b.csv"])
    assert [part for part in named if part not in str(error.value)] == []
    assert str(error.value).count("\n") == 0


def test_answers_next_to_probabilities_are_refused(work):
    Path("a.csv").write_text("id,target\nx,0.25\ny,1\n")
    Path("b.csv").write_text("id,target\nx,0\ny,1\n")
    with pytest.raises(DataError, match=r"b.csv, column target: found '0', expected a probability such as 0.25 in a"):
        fm.blend_files(["a.csv", "b.csv"])
    with pytest.raises(UsageError, match=r"column target has probabilities, which are blended by mean"):
        fm.blend_files(["a.csv", predictions_of("a.csv", "c.csv")], "vote")


def predictions_of(source, name):
    Path(name).write_text(Path(source).read_text())
    return name


def test_invalid_arguments_are_refused(work):
    files = [submit("a.csv", [1, 2]), submit("b.csv", [1, 3])]
    for wrong, sentence in (
        ({"files": ["a.csv", "./a.csv"]}, "named twice"),
        ({"files": ["a.csv"]}, "2 to 100 files; found 1"),
        ({"files": files, "weights": [1]}, "The weights are 1; expected 2 numbers above 0, one per file"),
        ({"files": files, "weights": [1, 0]}, "weights are 1, 0; expected 2 numbers above 0"),
        ({"files": files, "weights": ["a", "b"]}, r"The weights are \['a', 'b'\]; expected 2 numbers, one per file"),
        ({"files": files, "weights": 2}, "The weights are 2; expected 2 numbers, one per file"),
        ({"files": files, "weights": [1, float("nan")]}, "weights are 1, nan; expected 2"),
        ({"files": files, "how": "oof"}, "found 'oof', which needs runs"),
        ({"files": files, "how": "mean"}, "have no mean"),
    ):
        with pytest.raises(UsageError, match=sentence):
            fm.blend_files(**wrong)


def test_runs_and_files_are_told_apart(work):
    submit("a.csv", [1])
    Path("run").mkdir()
    assert are_files([Path("a.csv"), Path("missing.csv")])
    assert not are_files([Path("run"), Path("missing")])
    with pytest.raises(UsageError, match=r"a.csv is a file and run a run"):
        are_files([Path("run"), Path("a.csv")])


def test_probabilities_of_other_versions_of_photos_fill_in_a_submission(work):
    predictions("a.csv", 0)
    frame = pd.read_csv(predictions("b.csv", 1), dtype=str)
    # the photos without background have another ending
    frame.assign(path=frame["path"].str.replace(".jpg", ".png")).iloc[::-1].to_csv("b.csv", index=False)
    submit("info.csv", [0] * 40, PHOTOS[:40][::-1])
    blended = combine_files(["a.csv", "b.csv"], weights=[2, 1]).frame
    out = AnswersFile.read(blended).to_submission("info.csv", work / "out.csv")
    found = pd.read_csv(out)
    assert found["ImageID"].tolist() == PHOTOS[:40][::-1]
    a, b = (pd.read_csv(name).sort_values("path") for name in ("a.csv", "b.csv"))
    classes = [np.zeros(40, int)]
    for head in HEADS:
        columns = [f"{head.name}.{name}" for name in head.classes]
        mean = 2 * a[columns].to_numpy() + b[columns].to_numpy()
        classes.append(classes[-1] * len(columns) + mean.argmax(axis=1))
    assert found["ans"].tolist()[::-1] == classes[-1].tolist()


def test_two_photos_that_differ_in_their_ending_stay_two(work):
    names = ["1.jpg", "1.png"]
    for name in ("a.csv", "b.csv"):
        submit(name, [1, 2], names)
    assert fm.blend_files(["a.csv", "b.csv"])["ans"].tolist() == [1, 2]
    submit("c.csv", [1, 2], ["1.jpg", "2.jpg"])
    with pytest.raises(DataError, match=r"lacks 1 of the 2 photos of a.csv, such as 1.png"):
        fm.blend_files(["a.csv", "c.csv"])


def test_a_submission_is_not_filled_in_from_answers(five):
    files, _ = five
    with pytest.raises(UsageError, match="filled in from probabilities, as predict writes them without --submission"):
        AnswersFile.read(fm.blend_files(files)).to_submission("0.csv", "out.csv")


def test_what_is_no_file_is_refused():
    with pytest.raises(UsageError, match="file 1 is None; expected a CSV or a DataFrame"):
        fm.blend_files([None, pd.DataFrame()])
