"""Selection: filters and pages against pandas by hand on the files of a run."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from fastmask.api import Run
from fastmask.app.selection import (
    ALL,
    LEAST_SURE,
    MARKED,
    RIGHT,
    TABLE,
    Filter,
    page_of,
    photo_answer,
    select,
)
from fastmask.data.contest import contest_heads
from fastmask.heads import JOINT, Head, Heads
from fastmask.report.sections.mistakes import answers, mistakes
from fastmask.system.errors import UsageError


@pytest.fixture(scope="module")
def by_hand(finished_run):
    """The table's labels beside what oof.csv says of the mask."""
    text = {"path": str, "person": str, "age": str}
    oof = pd.read_csv(finished_run.path / "oof.csv", dtype=text)
    labels = pd.read_csv(finished_run.path / "folds.csv", dtype=text).set_index("path")
    columns = ["mask.wear", "mask.incorrect", "mask.none"]
    said = oof[columns].set_axis(["wear", "incorrect", "none"], axis=1)
    return oof.assign(true=labels["mask"].loc[oof["path"]].to_numpy(), said=said.idxmax(axis=1), sure=said.max(axis=1))


@pytest.mark.parametrize("head", [JOINT, "mask", "age"])
def test_what_is_shown_first_are_the_mistakes(finished_run, head):
    shown = select(answers(finished_run, head), Filter())
    pd.testing.assert_frame_equal(shown.reset_index(drop=True), mistakes(finished_run, head))


def test_answers_are_those_of_the_files(finished_run, by_hand):
    found = answers(finished_run, "mask")
    assert found["true"].tolist() == by_hand["true"].tolist()
    assert found["predicted"].tolist() == by_hand["said"].tolist()
    np.testing.assert_allclose(found["probability"], by_hand["sure"])


@pytest.mark.parametrize(
    ("wanted", "query"),
    [
        (Filter(ALL, order=TABLE), "path == path"),
        (Filter(RIGHT, order=TABLE), "true == said"),
        (Filter(ALL, true="wear", order=TABLE), "true == 'wear'"),
        (Filter(ALL, predicted="none", fold=1, order=TABLE), "said == 'none' and fold == 1"),
        (Filter(true="incorrect", predicted="wear", order=TABLE), "true == 'incorrect' and said == 'wear'"),
        (Filter(ALL, least=0.35, most=0.4, order=TABLE), "0.35 <= sure <= 0.4"),
        (Filter(ALL, text=" NORMAL.jpg", order=TABLE), "path.str.endswith('normal.jpg')"),
        (Filter(ALL, fold=7, order=TABLE), "fold == 7"),
    ],
)
def test_a_filter_takes_the_rows_that_a_query_takes(finished_run, by_hand, wanted, query):
    shown = select(answers(finished_run, "mask"), wanted)
    assert shown["path"].tolist() == by_hand.query(query)["path"].tolist()


def test_the_least_sure_come_first_where_asked(finished_run, by_hand):
    shown = select(answers(finished_run, "mask"), Filter(ALL, order=LEAST_SURE))
    assert shown["probability"].is_monotonic_increasing
    assert shown["path"].iloc[0] == by_hand.sort_values("sure")["path"].iloc[0]


def test_marked_photos_are_those_that_are_named(finished_run):
    assert sorted(select(answers(finished_run), Filter(MARKED), {5, 2})["row"]) == [2, 5]


def test_a_part_of_a_name_is_no_pattern(finished_run):
    assert select(answers(finished_run), Filter(ALL, text=".*")).empty


def test_a_photo_without_a_label_is_neither_right_nor_wrong(run_copy):
    lines = (run_copy / "folds.csv").read_text().splitlines()
    columns = lines[0].split(",")
    cells = lines[1].split(",")
    cells[columns.index("mask")] = ""
    (run_copy / "folds.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    found = answers(Run.load(run_copy), "mask")
    (place,) = np.flatnonzero(found["true"] == "")
    assert np.isnan(found["probability_true"][place])
    shown = [select(found, Filter(show))["row"].tolist() for show in ("mistakes", RIGHT, ALL)]
    assert [place in rows for rows in shown] == [False, False, True]
    assert select(found, Filter(ALL, true=""))["row"].tolist() == [place]


def test_what_there_is_not_is_said(finished_run):
    with pytest.raises(UsageError, match="There is no head 'hat'"):
        answers(finished_run, "hat")
    with pytest.raises(UsageError, match="show is .none.; expected one of mistakes"):
        Filter("none")


def test_pages():
    frame = pd.DataFrame({"row": range(50)})
    assert page_of(frame, 1, 24).rows["row"].tolist() == list(range(24))
    last = page_of(frame, 3, 24)
    assert (last.rows["row"].tolist(), last.number, last.pages, last.total) == ([48, 49], 3, 3, 50)
    assert page_of(frame, 99, 24).number == 3
    assert page_of(frame, -5, 24).number == 1
    nothing = page_of(frame.iloc[:0], 2, 24)
    assert (len(nothing.rows), nothing.number, nothing.pages, nothing.total) == (0, 1, 1, 0)


def test_what_is_said_of_one_photo():
    probabilities = np.array([0.7, 0.2, 0.1, 0.4, 0.6, 0.1, 0.8, 0.1])
    found = photo_answer(contest_heads(), probabilities, np.array([0, 0, -1]))
    mask, gender, age = found.heads
    assert (mask.answer, mask.probability, mask.label, mask.is_wrong) == ("wear", 0.7, "wear", False)
    assert gender.classes == (("male", 0.4), ("female", 0.6))
    assert (gender.answer, gender.label, gender.is_wrong) == ("female", "male", True)
    assert (age.label, age.is_wrong) == ("", False)
    assert (found.joint.answer, found.joint.label) == ("wear female 30-59", "")
    assert found.joint.probability == pytest.approx(0.7 * 0.6 * 0.8)
    assert photo_answer(contest_heads(), probabilities).joint.label is None


def test_of_many_classes_the_most_probable_are_shown_in_order():
    part = np.full(20, 0.01)
    part[[3, 17]] = 0.5, 0.32
    (kind,) = photo_answer(Heads([Head("kind", tuple(f"k{i}" for i in range(20)))]), part).heads
    assert [name for name, _ in kind.classes] == ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k17"]
    assert kind.others == pytest.approx(0.12)


def test_a_distribution_has_a_number_and_an_interval():
    heads = Heads([Head("age", ("<30", "30+"), bounds=(30,)), Head("age_number", ("20", "30", "40"), spread=2)])
    _, number = photo_answer(heads, np.array([0.3, 0.7, 0.05, 0.15, 0.8])).heads
    # targets this narrow beside the distance of the numbers are one number each
    assert (number.answer, number.interval) == ("40", (30, 40))
    assert number.probability == pytest.approx(0.8, abs=1e-3)


def test_the_number_of_a_learned_target_is_its_own_at_the_ends_too():
    years = np.arange(18, 61)
    heads = Heads([Head("age", ("<30", "30+"), bounds=(30,)), Head("age_number", tuple(map(str, years)), spread=2)])
    for age in (18, 60):
        target = norm.pdf(years, age, 2)
        _, number = photo_answer(heads, np.concatenate([[0.5, 0.5], target / target.sum()])).heads
        assert (number.answer, number.interval) == (str(age), (age, age))
