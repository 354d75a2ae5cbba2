"""Mistakes: against pandas' counts of the rows of oof.csv, and scikit-learn's log loss, photo by photo."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.blocks import QUIET, RIGHT, WRONG, Album
from fastmask.report.material import Material
from fastmask.report.sections.mistakes import losses, mistakes, plot_top_losses, prediction_lines, section
from fastmask.system.errors import UsageError
from fastmask.system.text import percent


def album_of(blocks):
    return next(block for block in blocks if isinstance(block, Album))


def texts_of(blocks):
    return [getattr(block, "text", "") for block in blocks]


def test_mistakes_of_the_joint_class_are_the_rows_that_differ(finished_run):
    oof, found = pd.read_csv(finished_run.path / "oof.csv"), mistakes(finished_run)
    assert sorted(found["path"]) == sorted(oof["path"][oof["true"] != oof["predicted"]])
    assert found["probability"].is_monotonic_decreasing
    assert (oof["path"][found["row"]].to_numpy() == found["path"].to_numpy()).all()
    row = oof.iloc[found["row"][0]]
    product = np.prod([max(row[c] for c in oof if c.startswith(f"{head}.")) for head in ("mask", "gender", "age")])
    assert found["probability"][0] == pytest.approx(product)


def test_mistakes_of_a_head_have_its_names_and_probabilities(finished_run):
    oof = pd.read_csv(finished_run.path / "oof.csv")
    labels = pd.read_csv(finished_run.path / "folds.csv", dtype=str).set_index("path")["age"]
    found = mistakes(finished_run, "age")
    classes = list(finished_run.heads["age"].classes)
    predicted = oof[[f"age.{c}" for c in classes]].set_axis(classes, axis=1).idxmax(axis=1)
    assert sorted(found["path"]) == sorted(oof["path"][predicted.to_numpy() != labels.loc[oof["path"]].to_numpy()])
    for mistake in found.head(5).itertuples():
        row = oof.iloc[mistake.row]
        assert (mistake.true, mistake.fold) == (labels[mistake.path], row["fold"])
        assert mistake.probability == pytest.approx(row[f"age.{mistake.predicted}"])
        assert mistake.probability_true == pytest.approx(row[f"age.{mistake.true}"])


def test_a_loss_is_minus_log_of_the_probability_of_the_true_class(finished_run):
    found, place = losses(finished_run, "age"), finished_run.heads.position("age")
    probabilities = finished_run.heads.split(finished_run.probabilities)[place]
    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    for row in found.head(5).itertuples():
        expected = log_loss([finished_run.true[row.row, place]], probabilities[[row.row]], labels=[0, 1, 2])
        assert row.loss == pytest.approx(expected, rel=1e-4)
    assert found["loss"].is_monotonic_decreasing
    assert len(found) == 84
    joint = losses(finished_run).set_index("row")["loss"]
    parts = [losses(finished_run, head).set_index("row")["loss"] for head in finished_run.heads.names]
    np.testing.assert_allclose(joint.sort_index(), sum(part.sort_index() for part in parts))


def test_top_losses_have_their_true_and_predicted_class(finished_run):
    figure = plot_top_losses(finished_run, 3, "mask")
    assert len(figure.axes) == 3
    texts = [text.get_text() for text in figure.texts]
    first = losses(finished_run, "mask").iloc[0]
    assert texts[0] == "Highest loss, mask: -log of the probability of the true class"
    assert texts[1].startswith(f"loss {first['loss']:.2f}")
    assert texts[2] == first["true"]
    assert texts[3].startswith(f"predicted {first['predicted']}")


def test_the_probability_of_a_top_loss_is_never_cut_off(made):
    wrong = losses(made.run).head(40).query("true != predicted")
    shares = [text.get_text() for text in plot_top_losses(made.run, 40).texts if text.get_text().startswith("with ")]
    assert shares == [f"with {percent(share)}" for share in wrong["probability"]]


@pytest.mark.parametrize("n", [0, -1, None, 3.5, "x", True, 201])
def test_an_invalid_number_of_photos_is_refused(finished_run, n):
    with pytest.raises(UsageError, match=rf"^n is {n!r}; expected a number of photos, an integer from 1 to 200\."):
        finished_run.top_losses(n)


def test_unknown_heads_missing_photos_and_missing_labels_are_refused(finished_run, make_run, labels):
    for work in (finished_run.plot_confusion, lambda head: finished_run.top_losses(3, head)):
        with pytest.raises(UsageError, match="There is no head 'nope'; .* mask, gender, age, and joint is all of them"):
            work("nope")
    with pytest.raises(UsageError, match="There is no head 'hat'; the heads are mask, gender, age"):
        mistakes(finished_run, "hat")
    with pytest.raises(UsageError, match="give --data"):
        plot_top_losses(make_run(labels, photos=False))
    with pytest.raises(UsageError, match="No photo has a label of age"):
        plot_top_losses(make_run(np.where([True, True, False], labels, -1), name="other"), head="age")


def test_the_lines_under_a_photo(make_run, labels, ages):
    run = make_run(labels, numbers={"age_value": ages})
    row = int(np.flatnonzero(((run.true != run.predicted) == [False, False, True]).all(1))[0])
    (wrong, kind), right = prediction_lines(run, row)
    age, predicted = run.heads["age"].decode(run.true[row, 2]), run.heads["age"].decode(run.predicted[row, 2])
    assert wrong.startswith(f"{age} ({ages[row]:g}) → {predicted} ")
    assert kind == WRONG
    mask, gender = (run.heads[i].decode(run.true[row, i]) for i in (0, 1))
    assert right == (f"right: {mask}, {gender}", RIGHT)


def test_a_long_name_is_shortened_under_a_photo(make_run, labels):
    long = tuple("a very long class name " * 5 + str(number) for number in range(3))
    run = make_run(labels, Heads([Head("a", long), *list(contest_heads())[1:]]))
    row = int(mistakes(run, "a")["row"][0])
    assert max(len(text) for text, _ in prediction_lines(run, row)) < 90


def test_the_section_shows_each_person_once_the_most_confident_first(made, make_run):
    album = album_of(section(made))
    expected = mistakes(made.run).drop_duplicates("person").head(24)
    shown = [next(text for text, kind in one.lines if kind == QUIET) for one in album.photos]
    assert shown == expected["path"].tolist()
    first = expected.iloc[0]
    assert f"Photo of a true {first['true']}, predicted {first['predicted']}" in album.photos[0].alt
    together = [f"all heads together {percent(share)}" for share in expected["probability"]]
    assert [one.lines[0][0] for one in album.photos] == together
    single = make_run(made.run.true[:, 2:], Heads([contest_heads()["age"]]), name="one")
    assert "all heads together" not in str(album_of(section(Material(single))).photos[0].lines)


def test_missing_and_unreadable_photos_are_counted(make_run, labels, tmp_path):
    run = make_run(labels)
    first, second = mistakes(run).drop_duplicates("person")["path"].head(2)
    (tmp_path / "made-photos" / first).write_bytes(b"no photo")
    (tmp_path / "made-photos" / second).unlink()
    blocks = section(Material(run))
    assert blocks[0].warning
    assert texts_of(blocks)[0].startswith(f"1 of the 180 photos of this run no longer exist, such as {second}.")
    assert "2 more cannot be read." in texts_of(blocks)
    assert len(album_of(blocks).photos) == 22
