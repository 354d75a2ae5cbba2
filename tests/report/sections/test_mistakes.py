"""Losses: against scikit-learn's log loss, photo by photo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.blocks import QUIET, RIGHT, WRONG, Album, Text
from fastmask.report.material import Material
from fastmask.report.sections.mistakes import losses, mistakes, plot_top_losses, prediction_lines, section
from fastmask.system.errors import UsageError
from fastmask.system.text import percent


def test_a_loss_is_minus_log_of_the_true_classes_probability(finished_run: Run) -> None:
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


def test_top_losses_are_shown_with_true_and_predicted(finished_run: Run) -> None:
    figure = plot_top_losses(finished_run, 3, "mask")
    assert len(figure.axes) == 3
    texts = [text.get_text() for text in figure.texts]
    first = losses(finished_run, "mask").iloc[0]
    assert texts[0] == "Highest loss, mask: -log of the probability of the true class"
    assert texts[1].startswith(f"loss {first['loss']:.2f}")
    assert texts[2] == first["true"]
    assert texts[3].startswith(f"predicted {first['predicted']}")


def test_top_losses_without_photos_or_labels_say_so(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    with pytest.raises(UsageError, match="give --data"):
        plot_top_losses(make_run(labels, photos=False))
    with pytest.raises(UsageError, match="No photo has a label of age"):
        plot_top_losses(make_run(np.where([True, True, False], labels, -1), name="other"), head="age")


def test_lines_tell_what_is_wrong_and_what_is_right(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    ages = np.array([25.0, 45.0, 66.0])[labels[:, 2]]
    run = make_run(labels, numbers={"age_value": ages})
    row = int(np.flatnonzero(((run.true != run.predicted) == [False, False, True]).all(1))[0])
    (wrong, kind), right = prediction_lines(run, row)
    age, said = run.heads["age"].decode(run.true[row, 2]), run.heads["age"].decode(run.predicted[row, 2])
    assert wrong.startswith(f"{age} ({ages[row]:g}), predicted {said} ")
    assert kind == WRONG
    mask, gender = (run.heads[i].decode(run.true[row, i]) for i in (0, 1))
    assert right == (f"right: {mask}, {gender}", RIGHT)


def test_the_section_shows_each_person_once_the_surest_first(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    run = make_run(labels)
    album = next(block for block in section(Material(run)) if isinstance(block, Album))
    expected = mistakes(run).drop_duplicates("person").head(24)
    shown = [next(text for text, kind in one.lines if kind == QUIET) for one in album.photos]
    assert shown == expected["path"].tolist()
    first = expected.iloc[0]
    assert f"Photo of a true {first['true']}, predicted {first['predicted']}" in album.photos[0].alt


@pytest.mark.parametrize("n", [0, -1, None, 3.5, "x", True, 201])
def test_a_number_of_photos_that_is_none_is_told(finished_run: Run, n: Any) -> None:
    with pytest.raises(UsageError, match=rf"^n is {n!r}; expected a number of photos, an integer from 1 to 200\."):
        finished_run.top_losses(n)


def test_joint_is_among_what_there_is(finished_run: Run) -> None:
    for ask in (lambda: finished_run.top_losses(3, "nope"), lambda: finished_run.plot_confusion("nope")):
        with pytest.raises(UsageError, match="There is no head 'nope'; .* mask, gender, age, and joint is all of them"):
            ask()


def test_how_sure_an_answer_was_is_never_cut_off(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    run = make_run(labels)
    figure = plot_top_losses(run, 40)
    wrong = losses(run).head(40).query("true != predicted")
    texts = [text.get_text() for text in figure.texts]
    shares = [text for text in texts if text.startswith("with ")]
    assert shares == [f"with {percent(share)}" for share in wrong["probability"]]


def test_photos_that_are_gone_are_told(make_run: Callable[..., Run], labels: np.ndarray, tmp_path: Path) -> None:
    run = make_run(labels)
    path = mistakes(run)["path"][0]
    (tmp_path / "made-photos" / path).unlink()
    said = section(Material(run))[0]
    assert isinstance(said, Text)
    assert said.warning
    assert said.text.startswith(f"1 of the 180 photos of this run no longer exist, such as {path}.")


def test_mistakes_show_what_they_are_sorted_by(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    run = make_run(labels)
    *_, album = section(Material(run))
    found = mistakes(run).drop_duplicates("person")["probability"].head(len(album.photos))
    assert [one.lines[0][0] for one in album.photos] == [f"all heads together {percent(share)}" for share in found]
    one = make_run(labels[:, 2:], Heads([contest_heads()["age"]]), name="one")
    assert "all heads together" not in str(section(Material(one))[-1].photos[0].lines)


def test_a_long_name_is_short_under_a_photo(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    long = tuple("a very long class name " * 5 + str(number) for number in range(3))
    heads = Heads([Head("a", long), *list(contest_heads())[1:]])
    run = make_run(labels, heads)
    row = int(mistakes(run, "a")["row"][0])
    assert max(len(text) for text, _ in prediction_lines(run, row)) < 90


def test_photos_that_cannot_be_read_are_counted(
    make_run: Callable[..., Run], labels: np.ndarray, tmp_path: Path
) -> None:
    run = make_run(labels)
    path = mistakes(run)["path"][0]
    (tmp_path / "made-photos" / path).write_bytes(b"no photo")
    blocks = section(Material(run))
    assert "1 more cannot be read." in [getattr(block, "text", "") for block in blocks]
    assert len(next(block for block in blocks if isinstance(block, Album)).photos) == 23


def read(run: Run, name: str) -> pd.DataFrame:
    return pd.read_csv(run.path / name, dtype={"age": str, "path": str, "person": str})


def test_mistakes_of_the_joint_class_are_the_rows_that_differ(finished_run: Run) -> None:
    oof, found = read(finished_run, "oof.csv"), mistakes(finished_run)
    wrong = oof[oof["true"] != oof["predicted"]]
    assert sorted(found["path"]) == sorted(wrong["path"])
    assert found["probability"].is_monotonic_decreasing
    assert (oof["path"][found["row"]].to_numpy() == found["path"].to_numpy()).all()
    row = oof.iloc[found["row"][0]]
    product = np.prod([max(row[c] for c in oof if c.startswith(f"{head}.")) for head in ("mask", "gender", "age")])
    assert found["probability"][0] == pytest.approx(product)


def test_mistakes_of_a_head_have_its_names_and_probabilities(finished_run: Run) -> None:
    oof, labels = read(finished_run, "oof.csv"), read(finished_run, "folds.csv").set_index("path")
    found = mistakes(finished_run, "age")
    classes = finished_run.heads["age"].classes
    said = oof[[f"age.{c}" for c in classes]].set_axis(list(classes), axis=1).idxmax(axis=1)
    true = labels["age"].loc[oof["path"]].to_numpy()
    assert sorted(found["path"]) == sorted(oof["path"][said.to_numpy() != true])
    for mistake in found.head(5).itertuples():
        assert mistake.true == labels["age"][mistake.path]
        assert mistake.probability == pytest.approx(oof[f"age.{mistake.predicted}"][mistake.row])
        assert mistake.probability_true == pytest.approx(oof[f"age.{mistake.true}"][mistake.row])
        assert mistake.fold == oof["fold"][mistake.row]


def test_a_head_that_there_is_not_is_refused(finished_run: Run) -> None:
    with pytest.raises(UsageError, match="There is no head 'hat'; the heads are mask, gender, age"):
        mistakes(finished_run, "hat")
