"""Write: where a report goes, what it replaces, and that a run stays one."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report import style
from fastmask.report.write import Report, write_report
from fastmask.run.files import check_free
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.lock import held


@pytest.fixture
def run(make_run: Callable[..., Run], labels: np.ndarray) -> Run:
    return make_run(labels)


def test_a_report_lies_in_the_run_and_the_run_is_as_before(
    run: Run, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    before = snapshot(run.path)
    report = write_report(run, photos=False)
    after = snapshot(run.path)
    assert {name: after[name] for name in before} == before
    pictures = {f"report/{file.name}" for file in report.pictures}
    assert set(after) - set(before) == {"report.html", "README.md", "report", *pictures}
    assert {"folds.png", "confusion-joint.png", "classes.png", "reliability.png"} <= {p.name for p in report.pictures}
    assert str(report) == f"{run.path / 'report.html'}: {report.page.stat().st_size / 1000:.3g} kB"
    assert str(Run.load(run.path).score(50)) == str(run.score(50))


def test_the_same_run_gives_the_same_report(run: Run, snapshot: Callable[[Path], dict[str, Any]]) -> None:
    write_report(run)
    before = snapshot(run.path)
    write_report(Run.load(run.path))
    assert snapshot(run.path) == before


def test_a_good_page_stays_where_a_wrong_place_is_named(
    run: Run, tmp_path: Path, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    write_report(run)
    before = snapshot(run.path)
    for place in ({"data": str(tmp_path / "nowhere")}, {"images": str(tmp_path / "nowhere")}, {"data": str(tmp_path)}):
        with pytest.raises(UsageError, match=r"is not a folder|lacks 180 of the photos"):
            write_report(run, **place)
    assert snapshot(run.path) == before
    photos = (tmp_path / "made-photos").rename(tmp_path / "moved")
    assert write_report(run, str(photos)).pictures != []
    assert (run.path / "report" / "mistakes.png").is_file()


def test_pictures_of_a_report_before_go(run: Run) -> None:
    write_report(run)
    assert (run.path / "report" / "mistakes.png").is_file()
    (run.path / "report" / ".old.png.12.part").write_bytes(b"half")
    write_report(run, photos=False)
    left = {path.name for path in (run.path / "report").iterdir()}
    assert "mistakes.png" not in left
    assert not [name for name in left if name.endswith(".part")]


def test_letters_that_no_font_has_are_said_once(
    make_run: Callable[..., Run], labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whatever fonts this machine has
    monkeypatch.setattr(style, "_letters", lambda: frozenset(map(ord, string.printable + "…→≤✓✗")))
    heads = Heads([Head("größe", ("日本", "b", "c")), *list(contest_heads())[1:]])
    run = make_run(labels, heads)
    with pytest.warns(FastmaskWarning) as found:
        write_report(run, photos=False)
    (told,) = [str(w.message) for w in found if "No installed font" in str(w.message)]
    assert told.startswith("No installed font has the letters ß ö 日 本: they are empty boxes")


def test_it_may_go_elsewhere(run: Run, tmp_path: Path, snapshot: Callable[[Path], dict[str, Any]]) -> None:
    before = snapshot(run.path)
    report = write_report(run, out=tmp_path / "a" / "b", photos=False)
    assert snapshot(run.path) == before
    assert report.page == tmp_path / "a" / "b" / "report.html"
    with pytest.raises(UsageError, match=r"exists; name another folder with --out, or replace it with --overwrite"):
        write_report(run, out=report.page.parent, photos=False)
    write_report(run, out=report.page.parent, photos=False, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_report_is_never_written_over(run: Run, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"contains thesis\.tex, which is not part of a report"):
        write_report(run, out=tmp_path / "thesis", overwrite=overwrite)
    with pytest.raises(UsageError, match="is a file"):
        write_report(run, out=tmp_path / "thesis" / "thesis.tex", overwrite=overwrite)
    with pytest.raises(UsageError, match=r"contains config\.yaml"):
        write_report(run, out=run.path, overwrite=overwrite)


def test_a_run_that_has_not_finished_has_no_report(run: Run) -> None:
    (run.path / "oof.csv").unlink()
    with pytest.raises(UsageError, match=r"has no oof\.csv: the run has not finished"):
        write_report(run.path)
    assert not (run.path / "report.html").exists()


@pytest.mark.semaphores
def test_a_run_that_somebody_writes_to_is_left_alone(run: Run) -> None:
    from multiprocessing import get_context

    context = get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold() -> None:
        with held(run.path):
            ready.set()
            done.wait(60)

    process = context.Process(target=hold)
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(UsageError, match="is being written by"):
            write_report(run, photos=False)
    finally:
        done.set()
        process.join()
    assert not (run.path / "report.html").exists()


def test_a_reported_run_may_be_replaced_but_not_what_somebody_put_beside(written: Report) -> None:
    check_free(written.page.parent, overwrite=True)
    thesis = written.page.parent / "report" / "thesis.tex"
    thesis.write_text("x")
    try:
        with pytest.raises(UsageError, match=r"it holds report/thesis\.tex"):
            check_free(written.page.parent, overwrite=True)
    finally:
        thesis.unlink()
