"""Write: where a report goes, what it replaces, and that the run stays as it is."""

import string
from multiprocessing import get_context

import pytest

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report import style, write
from fastmask.report.sections import make_sections
from fastmask.report.write import write_report
from fastmask.run.directory import check_free
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.lock import lock_run


@pytest.fixture
def run(make_run, labels):
    return make_run(labels)


@pytest.fixture
def few_sections(monkeypatch):
    """Reports with a plot and an album, to be fast."""
    monkeypatch.setattr(write, "make_sections", lambda material: make_sections(material, ("folds", "mistakes")))


@pytest.mark.usefixtures("few_sections")
def test_a_report_is_in_the_run_which_stays_as_it_is(run, snapshot):
    before, score = snapshot(run.path), str(run.score(50))
    report = write_report(run)
    after = snapshot(run.path)
    assert {name: after[name] for name in before} == before
    pictures = {f"report/{file.name}" for file in report.pictures}
    assert set(after) - set(before) == {"report.html", "README.md", "report", *pictures}
    assert {file.name for file in report.pictures} == {"folds.png", "mistakes.png"}
    assert str(report) == f"{run.path / 'report.html'}: {report.page.stat().st_size / 1000:.3g} kB"
    assert str(Run.load(run.path).score(50)) == score
    write_report(Run.load(run.path))
    assert snapshot(run.path) == after


@pytest.mark.slow
def test_the_same_run_gives_the_same_report(run, snapshot):
    write_report(run)
    before = snapshot(run.path)
    write_report(Run.load(run.path))
    assert snapshot(run.path) == before


@pytest.mark.usefixtures("few_sections")
def test_a_wrong_place_of_the_photos_leaves_the_report_as_it_is(run, tmp_path, snapshot):
    write_report(run)
    before = snapshot(run.path)
    for place in ({"data": str(tmp_path / "nowhere")}, {"images": str(tmp_path / "nowhere")}, {"data": str(tmp_path)}):
        with pytest.raises(UsageError, match=r"is not a folder|lacks 180 of the photos"):
            write_report(run, **place)
    assert snapshot(run.path) == before
    photos = (tmp_path / "made-photos").rename(tmp_path / "moved")
    assert write_report(run, str(photos)).pictures != []
    assert (run.path / "report" / "mistakes.png").is_file()


@pytest.mark.usefixtures("few_sections")
def test_old_pictures_are_deleted_and_an_edited_card_is_kept(run):
    report = write_report(run)
    assert (run.path / "report" / "mistakes.png").is_file()
    (run.path / "report" / ".old.png.12.part").write_bytes(b"half")
    assert not write_report(run, photos=False).kept
    left = {path.name for path in (run.path / "report").iterdir()}
    assert "mistakes.png" not in left
    assert not [name for name in left if name.endswith(".part")]
    text = report.card.read_text(encoding="utf-8").replace("say here which those are", "drawn people")
    report.card.write_text(text, encoding="utf-8")
    assert write_report(run, photos=False).kept
    assert "drawn people" in report.card.read_text(encoding="utf-8")


def test_letters_that_no_font_has_are_reported_once(make_run, labels, monkeypatch):
    # the same letters on every machine
    monkeypatch.setattr(style, "_has_letter", lambda letter: letter in string.printable + "…→≤✓✗")
    confusion = ("confusion", "classes")
    monkeypatch.setattr(write, "make_sections", lambda material: make_sections(material, confusion))
    heads = Heads([Head("größe", ("日本", "b", "c")), *list(contest_heads())[1:]])
    with pytest.warns(FastmaskWarning) as found:
        write_report(make_run(labels, heads), photos=False)
    (said,) = [str(w.message) for w in found if "No installed font" in str(w.message)]
    assert said.startswith("No installed font has the letters ß ö 日 本: they are empty boxes")


@pytest.mark.usefixtures("few_sections")
def test_it_may_be_in_another_folder(run, tmp_path, snapshot):
    before = snapshot(run.path)
    report = write_report(run, out=tmp_path / "a" / "b", photos=False)
    assert snapshot(run.path) == before
    assert report.page == tmp_path / "a" / "b" / "report.html"
    with pytest.raises(UsageError, match=r"exists; name another folder with --out, or replace it with --overwrite"):
        write_report(run, out=report.page.parent, photos=False)
    write_report(run, out=report.page.parent, photos=False, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_a_report_is_replaced(run, tmp_path, overwrite):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    for out, message in (
        (tmp_path / "thesis", r"contains thesis\.tex, which is not part of a report"),
        (tmp_path / "thesis" / "thesis.tex", "is a file"),
        (run.path, r"contains config\.yaml"),
    ):
        with pytest.raises(UsageError, match=message):
            write_report(run, out=out, overwrite=overwrite)


def test_an_unfinished_run_has_no_report(run):
    (run.path / "oof.csv").unlink()
    with pytest.raises(UsageError, match=r"has no oof\.csv: the run has not finished"):
        write_report(run.path)
    assert not (run.path / "report.html").exists()


@pytest.mark.semaphores
@pytest.mark.usefixtures("few_sections")
def test_a_run_that_another_process_writes_to_is_left_alone(run):
    context = get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold():
        with lock_run(run.path):
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


@pytest.mark.slow
def test_a_run_with_a_report_may_be_replaced_but_not_with_foreign_files(written):
    check_free(written.page.parent, overwrite=True)
    thesis = written.page.parent / "report" / "thesis.tex"
    thesis.write_text("x")
    try:
        with pytest.raises(UsageError, match=r"it holds report/thesis\.tex"):
            check_free(written.page.parent, overwrite=True)
    finally:
        thesis.unlink()
