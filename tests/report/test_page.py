"""Page: a report parsed as a browser would, of runs that have everything and of runs that lack it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.inference.blend import blend_runs
from fastmask.report.blocks import Album, Drawing
from fastmask.report.material import Material
from fastmask.report.page import _SECTIONS, make_sections, to_html
from fastmask.report.write import Report, write_report
from fastmask.run import Run

NAMES = [name for name, *_ in _SECTIONS]
HOSTILE = "<script>alert(1)</script>"


def missing(run: Run, **options: object) -> dict[str, str]:
    """The sections of a run that are left out, and why; the page of the others must be written."""
    material = Material(run, **options)  # type: ignore[arg-type]
    sections = make_sections(material)
    assert [section.name for section in sections] == NAMES
    assert to_html(material, sections).count("<h2") == len(NAMES)
    return {section.name: section.missing for section in sections if section.missing}


def test_a_page_of_a_trained_run_has_everything_and_asks_for_nothing(written: Report, read_page: Callable) -> None:
    assert written.missing == {}
    page = read_page(written.page)
    assert page.open == []
    assert [attrs["id"] for attrs in page.named("section")] == NAMES
    assert {attrs["href"] for attrs in page.named("a")} == {f"#{name}" for name in NAMES}
    addresses = [a.get("src") or "" for a in page.named("img")]
    assert len(addresses) > 20
    assert all(address.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for address in addresses)
    assert page.named("script") == page.named("link") == page.named("iframe") == []
    html = written.page.read_text(encoding="utf-8")
    assert not any(word in html for word in ("http://", "https://", "@import", "url("))
    assert "default-src 'none'" in page.named("meta")[-1]["content"]


def test_a_page_can_be_read_without_seeing_it(written: Report, read_page: Callable) -> None:
    page = read_page(written.page)
    assert page.named("html") == [{"lang": "en"}]
    assert all((attrs["alt"] or "").strip() for attrs in page.named("img"))
    assert {attrs.get("scope") for attrs in page.named("th")} == {"col", "row"}
    assert len(page.named("caption")) == len(page.named("table")) > 8
    assert len(page.named("h1")) == 1
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")] == ["h1", *["h2"] * len(NAMES)]
    scrolled = [attrs for attrs in page.named("div") if attrs.get("class") == "scroll"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolled)


def test_the_headline_is_the_score_with_its_interval(written: Report, finished_run: Run, read_page: Callable) -> None:
    joint = finished_run.score().joint
    text = read_page(written.page).text
    assert f"{joint.macro_f1:.3f} macro-F1 of the joint class, out of fold" in text
    assert f"95 % interval {joint.macro_f1_interval[0]:.3f} … {joint.macro_f1_interval[1]:.3f}" in text
    optimistic = finished_run.scores["optimistic"]["joint"]["macro_f1"]
    assert f"Optimistic figure: a joint macro-F1 of {optimistic:.4f}" in text


def test_names_are_text_whoever_gave_them(make_run: Callable, labels: np.ndarray, read_page: Callable) -> None:
    classes = (HOSTILE, "한글 $x_1$ & 'quoted' \"twice\"", "w" * 300)
    heads = Heads([Head("<b>mask</b>", classes), *list(contest_heads())[1:]])
    paths = [f"<img src=x onerror=alert(1)> {i}.jpg" for i in range(len(labels))]
    numbers = {"age_value": np.where(labels[:, 2] == 0, 20.0, np.where(labels[:, 2] == 1, 40.0, 70.0))}
    run = make_run(labels, heads, name="<i>run", paths=paths, numbers=numbers)
    report = write_report(run)
    page = read_page(report.page)
    assert page.named("script") == page.named("b") == page.named("i") == []
    assert all(attrs["src"].startswith("data:") for attrs in page.named("img"))
    assert HOSTILE in page.text
    assert "onerror=alert(1)" in page.text
    assert page.named("title")
    assert "<i>run" in page.text
    assert "confusion-b-mask--b.png" in {file.name for file in report.pictures}
    card = report.card.read_text(encoding="utf-8").split("---", 2)[2]
    assert "<script>" not in card
    assert "&lt;script&gt;" in card


def test_photos_that_are_gone_are_left_out(make_run: Callable, labels: np.ndarray) -> None:
    run = make_run(labels, photos=False)
    left = missing(run)
    assert {"mistakes", "label-errors"} <= set(left)
    assert "give --data" in left["mistakes"]


def test_photos_are_found_where_they_lie_now(finished_run: Run, contest_copy: Path, run_copy: Path) -> None:
    environment = (run_copy / "environment.json").read_text().replace("/images", "/gone")
    (run_copy / "environment.json").write_text(environment)
    (run_copy / "config.yaml").write_text(
        (run_copy / "config.yaml").read_text().replace(f"data: {finished_run.config.data}", "data: nowhere")
    )
    run = Run.load(run_copy)
    assert "nowhere, which is not there any more" in missing(run)["mistakes"]
    assert "mistakes" not in missing(run, data=str(contest_copy))


def test_photos_may_be_unwanted(make_run: Callable, labels: np.ndarray, read_page: Callable) -> None:
    run = make_run(labels)
    report = write_report(run, photos=False)
    page = read_page(report.page)
    assert not any("jpeg" in (attrs["src"] or "") for attrs in page.named("img"))
    assert "Photos are left out, as --no-photos asks." in page.text
    assert {file.stem for file in report.pictures} & {"mistakes", "label-errors", "explained", "augmented"} == set()


def test_an_ensemble_has_no_networks_of_its_own(make_run: Callable, labels: np.ndarray, tmp_path: Path) -> None:
    runs = [make_run(labels, name=name) for name in ("one", "other")]
    run = blend_runs(runs, "oof", out=tmp_path / "both", draws=0).run
    left = missing(run)
    assert {"curves", "explained", "augmented", "cost", "mistakes"} <= set(left)
    assert "is an ensemble, which was not trained" in left["curves"]
    text = to_html(Material(run), make_sections(Material(run)))
    assert "oof of one, other" in text


def test_a_csv_with_one_head(make_run: Callable, labels: np.ndarray, read_page: Callable) -> None:
    run = make_run(labels[:, :1], Heads([Head("colour", ("red", "green", "blue"))]))
    assert "numbers" in missing(run)
    report = write_report(run)
    assert {"confusion-colour.png", "classes.png"} <= {file.name for file in report.pictures}
    assert "macro-F1 of colour, out of fold" in read_page(report.page).text


def test_one_fold_of_several(make_run: Callable, labels: np.ndarray) -> None:
    run = make_run(labels, only=1)
    assert "one fold only" in missing(run)["folds"]
    page = to_html(Material(run), make_sections(Material(run)))
    assert "Of 3 folds only 1: a part of the photos." in page
    assert 'class="warning"' in page


@pytest.mark.parametrize("known", [0, 1, 2])
def test_labels_that_are_missing(make_run: Callable, labels: np.ndarray, known: int) -> None:
    """No photo has all labels: there is no joint class to speak of, and each head is judged by its own photos."""
    y = np.where(np.arange(3) == known, labels, -1)
    run = make_run(y)
    sections = {section.name: section for section in make_sections(Material(run))}
    drawings = [b.name for b in sections["confusion"].blocks if isinstance(b, Drawing)]
    assert drawings == [f"confusion-{contest_heads().names[known]}"]
    album = next(b for b in sections["mistakes"].blocks if isinstance(b, Album))
    assert len(album.photos) > 5


def test_no_label_at_all(make_run: Callable, labels: np.ndarray) -> None:
    left = missing(make_run(np.full_like(labels, -1)))
    assert {"confusion", "classes", "mistakes", "reliability"} <= set(left)


def test_a_head_of_which_all_photos_are_of_one_class(make_run: Callable, labels: np.ndarray) -> None:
    y = labels.copy()
    y[:, 1] = 0
    assert "confusion" not in missing(make_run(y))


def test_everything_right_and_everything_wrong(make_run: Callable, labels: np.ndarray) -> None:
    heads = contest_heads()
    right = np.concatenate([np.eye(len(h.classes))[c] for h, c in zip(heads, labels.T, strict=True)], axis=1)
    run = make_run(labels, probabilities=right)
    texts = to_html(Material(run), make_sections(Material(run)))
    assert "No photo was answered wrongly." in texts
    assert "No label is suspicious." in texts
    wrong = np.concatenate(
        [np.eye(len(h.classes))[(c + 1) % len(h.classes)] for h, c in zip(heads, labels.T, strict=True)], axis=1
    )
    assert "classes" not in missing(make_run(labels, name="wrong", probabilities=wrong))


def test_forty_heads(make_run: Callable) -> None:
    rng = np.random.default_rng(0)
    heads = Heads([Head(f"attribute {i}", ("no", "yes", "perhaps")) for i in range(38)])
    run = make_run(rng.integers(-1, 3, (60, 38)), heads)
    left = missing(run)
    assert "confusion" not in left
    y = np.abs(run.y)
    many = make_run(y, heads, name="known")
    sections = {section.name: section for section in make_sections(Material(many))}
    assert sum(isinstance(block, Drawing) for block in sections["confusion"].blocks) == 7


def test_a_number_that_was_learned_beside(make_run: Callable, labels: np.ndarray) -> None:
    ages = np.array([25.0, 45.0, 66.0])[labels[:, 2]]
    number = Head("age_number", tuple(str(n) for n in range(20, 71)), spread=2.0)
    heads, y = Heads([*contest_heads(), number]), np.column_stack([labels, (ages - 20).astype(int)])
    run = make_run(y, heads, numbers={"age_value": ages}, order="age")
    sections = {section.name: section for section in make_sections(Material(run))}
    assert any("The learned number is off by" in getattr(block, "text", "") for block in sections["numbers"].blocks)


def test_a_run_of_a_stranger_does_not_lead_elsewhere(make_run: Callable, labels: np.ndarray, tmp_path: Path) -> None:
    outside = [f"../secret/{i}.jpg" for i in range(len(labels))]
    run = make_run(labels, paths=outside)
    assert "lies outside its data" in missing(run)["mistakes"]


def test_a_broken_history_leaves_out_its_section(written: Report, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(written.page.parent, tmp_path / "copy"))
    (copy / "fold0" / "history.csv").write_text("epoch,macro_f1\n0,much\n")
    left = missing(Run.load(copy), photos=False)
    assert "found 'much', expected a number" in left["curves"]
    assert "classes" not in left


def test_the_settings_that_differ_are_told(written: Report, read_page: Callable) -> None:
    text = read_page(written.page).text
    for words in ("folds 2 5 Folds of the cross-validation.", "bs 16 32", "CenterCrop height 400, width 200"):
        assert words in text


def test_a_head_may_weigh_nothing(make_run: Callable, labels: np.ndarray) -> None:
    heads = Heads([*list(contest_heads())[:2], replace(contest_heads()[2], weight=0.0)])
    assert "run" not in missing(make_run(labels, heads))
