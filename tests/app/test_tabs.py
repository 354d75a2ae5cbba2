"""Tabs: the handlers of the page, called as Gradio calls them, against the files of the run."""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from fastmask.app.viewer import open_viewer
from fastmask.data.contest import read_contest
from fastmask.data.fixes import apply_fixes
from fastmask.system.errors import UsageError

gr = pytest.importorskip("gradio")

from fastmask.app.page import build  # noqa: E402
from fastmask.app.tabs import PERSON, THIS, Browser, with_notice  # noqa: E402

ANY = ["joint", "mistakes", "*", "*", "*", "surest", 0, 100, ""]
Words = Callable[[str], str]


@pytest.fixture
def browser(viewer):
    return Browser(viewer)


def browse(browser, changed, number=1):
    """The rows of a page, and where it is."""
    tiles, _, _, where, _ = browser.browse(*(changed.get(i, value) for i, value in enumerate(ANY)), number, None)
    return [int(found) for found in re.findall(r'data-row="(\d+)"', tiles)], where


def test_mistakes_are_shown_in_pages(browser, finished_run, words):
    wrong = set(np.flatnonzero(finished_run.oof["true"] != finished_run.oof["predicted"]))
    seen: list[int] = []
    for number in range(1, -(-len(wrong) // 24) + 1):
        rows, where = browse(browser, {}, number)
        assert len(rows) <= 24
        assert words(where).startswith(f"{len(seen) + 1} to {len(seen) + len(rows)} of {len(wrong)}")
        seen += rows
    assert sorted(seen) == sorted(wrong)
    assert browse(browser, {}, 10**6)[0] == rows


def test_filters_are_applied(browser, finished_run, words):
    oof = finished_run.oof
    rows, where = browse(browser, {1: "all", 4: "1", 5: "table"})
    assert rows == np.flatnonzero(oof["fold"] == 1)[:24].tolist()
    assert f"of {(oof['fold'] == 1).sum()} page" in words(where)
    name = finished_run.heads.joint_name(oof["predicted"][0])
    assert browse(browser, {1: "all", 5: "table", 3: f"={name}"})[0] == np.flatnonzero(
        oof["predicted"] == oof["predicted"][0])[:24].tolist()  # fmt: skip
    rows, where = browse(browser, {1: "all", 8: "nobody of that name"})
    assert (rows, words(where)) == ([], "0 photos page 1 of 1")


def test_a_label_is_marked_shown_and_the_mark_removed(browser, contest, words):
    table, file, oof = read_contest(contest), browser.viewer.file, browser.viewer.run.oof
    path, person = oof["path"][3], oof["person"][3]
    own = table.frame.loc[table.frame["path"] == path].iloc[0]
    other = next(name for name in ("wear", "none") if name != own["mask"])
    *_, said = browser.write(3, "mask", other, None, False, THIS)
    assert words(said) == f"Written to {file}: mask of {path} is {other}."
    *_, said = browser.write(3, "age", None, 61, False, PERSON)
    assert words(said).endswith(f"age of all photos of {person} is 61 (60+).")
    fixed = apply_fixes(table, file).frame
    assert fixed.loc[fixed["path"] == path, "mask"].tolist() == [other]
    assert (fixed.loc[fixed["person"] == person, "age"] == "60+").all()
    assert f"Marked mask: {own['mask']} → {other}" in words(browser.show(3, "mask")[1])
    assert browse(browser, {0: "mask", 1: "marked"})[0] == [3]
    assert len(browse(browser, {1: "marked"})[0]) == 7
    assert browser.viewer.marks().count("<tr>") == 3
    *_, said = browser.remove(3, "mask")
    assert words(said) == f"Removed: mask: {own['mask']} → {other} of {path}."
    browser.remove(3, "age")
    assert apply_fixes(table, file).frame.equals(table.frame)
    with pytest.raises(UsageError, match="age of this photo is not marked"):
        browser.remove(3, "age")


def test_a_second_number_replaces_the_first(browser):
    oof = browser.viewer.run.oof
    for given, whole in ((61, THIS), (62, THIS), (63, PERSON)):
        for number in (given, given + 7):
            _, right, back, *_, said = browser.write(3, "age", None, number, False, whole)
            assert "Written to" in said
            assert (right.value, right.visible, back.value) == (None, False, number)
        marks = pd.read_csv(browser.viewer.file, dtype=str, keep_default_na=False)
        assert marks["value"].tolist() == [str(given + 7)]
        expected = [oof["path"][3], ""] if whole == THIS else ["", oof["person"][3]]
        assert marks[["path", "person"]].iloc[0].tolist() == expected
        *_, said = browser.remove(3, "age")
        assert "Removed: age" in said
        assert browser.show(3, "age")[6].value is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("mask", None, None, False), "Choose the correct label of mask first, or unknown"),
        (("age", None, None, False), "Choose the correct label of age first"),
        (("age", None, 451, False), "The correct label of age: found '451', expected a number from 0 to 150"),
        (("age", None, 1e20, False), r"The correct label of age: found '1e\+20', expected a number"),
    ],
)
def test_an_invalid_mark_is_not_written(browser, given, message):
    with pytest.raises(UsageError, match=message):
        browser.write(3, *given, THIS)
    assert not browser.viewer.file.exists()


def test_the_label_itself_is_not_a_correction(browser):
    run = browser.viewer.run
    label = run.folds.set_index("path")["gender"][run.oof["path"][3]]
    with pytest.raises(UsageError, match=f"The label of gender is already {label}"):
        browser.write(3, "gender", label, None, False, THIS)


def test_errors_are_shown_in_the_notice():
    def fails(error):
        raise error

    first, notice = with_notice(2, fails)(UsageError("It is <wrong>."))
    assert first == gr.skip()
    assert notice == '<p class="fm-notice fm-bad" role="alert">It is &lt;wrong&gt;.</p>'
    assert "No space left: fixes.csv." in with_notice(1, fails)(OSError(28, "No space left", "fixes.csv"))
    assert with_notice(2, fails, None)(UsageError("x")) == [gr.skip()] * 2


def test_the_page_has_its_tabs_and_api(viewer, run_copy):
    page = build(viewer)
    names = {function.api_name for function in page.fns.values() if function.api_visibility == "public"}
    assert names == {"answer", "explain", "browse", "show", "mark", "take_back", "marks"}
    (run_copy / "oof.csv").unlink()
    without = build(open_viewer(run_copy))
    assert {function.api_name for function in without.fns.values()} >= {"answer", "explain"}
    assert "has no oof.csv: the run has not finished." in str(without.get_config_file()["components"])
