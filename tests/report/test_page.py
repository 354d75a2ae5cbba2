"""Page: a report parsed as a browser would, of runs that have everything and of runs that lack something."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastmask.api import Run, blend_runs
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.blocks import Album, Drawing
from fastmask.report.material import Material
from fastmask.report.page import to_html
from fastmask.report.sections import SECTIONS, make_sections
from fastmask.report.write import write_report

HOSTILE = "<script>alert(1)</script>"


def sections_of(run, *names, **options):
    return {section.name: section for section in make_sections(Material(run, **options), names)}  # type: ignore[arg-type]


def missing(run, *names, **options):
    """The sections that are left out, and why."""
    return {name: one.missing for name, one in sections_of(run, *names, **options).items() if one.missing}


def html_of(run, *names):
    material = Material(run)
    return to_html(material, make_sections(material, names))


@pytest.fixture
def reported(written, tmp_path):
    """A copy of a trained run to break."""
    return Path(shutil.copytree(written.page.parent, tmp_path / "copy"))


def test_a_page_of_a_trained_run_has_everything_and_loads_nothing(written, read_page):
    assert written.missing == {}
    names = {"folds.png", "confusion-joint.png", "classes.png", "reliability.png", "explained.png", "augmented.png"}
    assert names <= {file.name for file in written.pictures}
    page = read_page(written.page)
    assert page.open == []
    assert [attrs["id"] for attrs in page.named("section")] == list(SECTIONS)
    assert {attrs["href"] for attrs in page.named("a")} == {f"#{name}" for name in SECTIONS}
    addresses = [attrs["src"] for attrs in page.named("img")]
    assert len(addresses) > 20
    assert all(address.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for address in addresses)
    assert page.named("script") == page.named("link") == page.named("iframe") == []
    html = written.page.read_text(encoding="utf-8")
    assert not any(word in html for word in ("http://", "https://", "@import", "url("))
    assert "default-src 'none'" in page.named("meta")[-1]["content"]


def test_a_page_is_accessible(written, read_page):
    page = read_page(written.page)
    assert page.named("html") == [{"lang": "en"}]
    assert all((attrs["alt"] or "").strip() for attrs in page.named("img"))
    assert {attrs.get("scope") for attrs in page.named("th")} == {"col", "row"}
    assert len(page.named("caption")) == len(page.named("table")) > 8
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")] == ["h1", *["h2"] * len(SECTIONS)]
    scrolled = [attrs for attrs in page.named("div") if attrs.get("class") == "scroll"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolled)


def test_a_page_has_the_score_and_what_was_run(written, finished_run, read_page):
    joint = finished_run.score().joint
    optimistic = finished_run.scores["optimistic"]["joint"]["macro_f1"]
    text = read_page(written.page).text
    for words in (
        f"{joint.macro_f1:.3f} macro-F1 of the joint class, out of fold",
        f"95 % interval {joint.macro_f1_interval[0]:.3f} … {joint.macro_f1_interval[1]:.3f}",
        f"Optimistic figure: a joint macro-F1 of {optimistic:.4f}",
        "folds 2 5 Folds of the cross-validation.",
        "bs 16 32",
        "CenterCrop height 400, width 200",
    ):
        assert words in text


# not every machine has a Korean font
@pytest.mark.filterwarnings("ignore:No installed font:fastmask.system.errors.FastmaskWarning")
@pytest.mark.slow
def test_names_are_escaped(make_run, labels, ages, read_page):
    classes = (HOSTILE, "한글 $x_1$ & 'quoted' \"twice\"", "w" * 300)
    heads = Heads([Head("<b>mask</b>", classes), *list(contest_heads())[1:]])
    paths = [f"<img src=x onerror=alert(1)> {i}.jpg" for i in range(len(labels))]
    report = write_report(make_run(labels, heads, name="<i>run", paths=paths, numbers={"age_value": ages}))
    page = read_page(report.page)
    assert page.named("script") == page.named("b") == page.named("i") == []
    assert all(attrs["src"].startswith("data:") for attrs in page.named("img"))
    for text in (HOSTILE, "onerror=alert(1)", "<i>run"):
        assert text in page.text
    assert "confusion-b-mask--b.png" in {file.name for file in report.pictures}
    card = report.card.read_text(encoding="utf-8").split("---", 2)[2]
    assert "<script>" not in card
    assert "&lt;script&gt;" in card


def test_photos_may_be_missing_moved_or_outside_the_data(make_run, labels, finished_run, contest_copy, run_copy):
    left = missing(make_run(labels, photos=False), "mistakes", "label-errors", "augmented", "folds")
    assert set(left) == {"mistakes", "label-errors", "augmented"}
    assert "give --data" in left["mistakes"]
    outside = make_run(labels, name="outside", paths=[f"../secret/{i}.jpg" for i in range(len(labels))])
    assert "is outside its data" in missing(outside, "mistakes")["mistakes"]
    for name, old in (("environment.json", '/images"'), ("config.yaml", f"data: {finished_run.config.data}")):
        text = (run_copy / name).read_text()
        assert old in text
        (run_copy / name).write_text(text.replace(old, '/gone"' if "images" in old else "data: nowhere"))
    run = Run.load(run_copy)
    assert "nowhere, which does not exist from here" in missing(run, "mistakes")["mistakes"]
    assert missing(run, "mistakes", data=str(contest_copy)) == {}


def test_photos_may_be_unwanted(made):
    material = Material(made.run, photos=False)
    sections = make_sections(material, ("score", "mistakes", "label-errors", "explained", "augmented"))
    score, *others = (section.missing for section in sections)
    assert score == ""
    assert set(others) == {"Photos are left out because of --no-photos."}
    html = to_html(material, sections)
    assert "jpeg" not in html
    assert html.count("Photos are left out because of --no-photos.") == len(others)


def test_an_ensemble_has_no_networks_but_may_have_photos(made, leaky, finished_run, run_copy, swap_genders, tmp_path):
    run = blend_runs([made.run, leaky.run], "oof", out=tmp_path / "both", draws=0).run
    left = missing(run, "curves", "explained", "augmented", "cost", "mistakes", "score")
    assert set(left) == {"curves", "explained", "augmented", "cost", "mistakes"}
    assert "is an ensemble, which has no models" in left["curves"]
    assert "oof of made, leaky" in html_of(run, "run", "score")
    run = blend_runs([finished_run, swap_genders(run_copy)], out=tmp_path / "trained", draws=0).run
    assert missing(run, "mistakes", "numbers") == {}


def test_a_single_head(make_run, labels):
    run = make_run(labels[:, :1], Heads([Head("colour", ("red", "green", "blue"))]))
    assert list(missing(run, "numbers", "classes", "folds")) == ["numbers"]
    assert [block.name for block in sections_of(run, "confusion")["confusion"].blocks[1:]] == ["confusion-colour"]
    assert "macro-F1 of colour, out of fold" in html_of(run, "score")


def test_one_fold_of_several(make_run, labels):
    run = make_run(labels, only=1)
    assert "only one fold" in missing(run, "folds", "reliability", "classes")["folds"]
    assert '<p class="warning">Of 3 folds only fold 1 is trained: a part of the photos.</p>' in html_of(run, "score")


@pytest.mark.parametrize("known", [0, 2])
def test_labels_of_a_single_head(make_run, labels, known):
    """There is no joint class, and each head is scored on its own photos."""
    run = make_run(np.where(np.arange(3) == known, labels, -1))
    sections = sections_of(run, "score", "confusion", "classes", "folds", "reliability", "mistakes", "label-errors")
    assert not any(section.missing for section in sections.values())
    drawings = [block.name for block in sections["confusion"].blocks if isinstance(block, Drawing)]
    assert drawings == [f"confusion-{contest_heads().names[known]}"]
    assert len(next(block for block in sections["mistakes"].blocks if isinstance(block, Album)).photos) > 5


def test_no_labels_and_labels_of_one_class(make_run, labels):
    names = ("score", "confusion", "classes", "mistakes", "reliability", "label-errors", "folds")
    left = missing(make_run(np.full_like(labels, -1)), *names)
    assert {"classes", "mistakes", "reliability"} <= set(left)
    y = labels.copy()
    y[:, 1] = 0
    assert missing(make_run(y, name="one"), "confusion", "classes", "reliability", "folds", "label-errors") == {}


def test_everything_right_and_everything_wrong(make_run, labels):
    def one_hot(shift):
        classes = zip(contest_heads().sizes, labels.T, strict=True)
        return np.concatenate([np.eye(size)[(codes + shift) % size] for size, codes in classes], axis=1)

    page = html_of(make_run(labels, probabilities=one_hot(0)), "mistakes", "label-errors", "confusion")
    assert "No photo has a wrong prediction." in page
    assert "No label is suspicious." in page
    wrong = make_run(labels, name="wrong", probabilities=one_hot(1))
    assert missing(wrong, "mistakes", "confusion", "classes", "reliability") == {}


def test_many_heads(make_run):
    rng = np.random.default_rng(0)
    heads = Heads([Head(f"attribute {i}", ("no", "yes", "perhaps")) for i in range(38)])
    run = make_run(rng.integers(0, 3, (60, 38)), heads)
    sections = sections_of(run, "run", "confusion", "classes", "folds", "mistakes")
    assert not any(section.missing for section in sections.values())
    assert sum(isinstance(block, Drawing) for block in sections["confusion"].blocks) == 7
    left = missing(make_run(rng.integers(-1, 3, (60, 38)), heads, name="partly"), "score", "mistakes", "label-errors")
    assert left == {}


def test_a_learned_number_and_a_head_without_weight(make_run, labels, ages):
    number = Head("age_number", tuple(str(n) for n in range(20, 71)), spread=2.0)
    mask, gender, age = contest_heads()
    heads = Heads([mask, gender, replace(age, weight=0.0), number])
    y = np.column_stack([labels, (ages - 20).astype(int)])
    own = {"gender": {"loss": "ce", "hidden": 64}}
    run = make_run(y, heads, numbers={"age_value": ages}, order="age", per_head=own)
    said = sections_of(run, "numbers")["numbers"].blocks[0].text
    assert "The learned number has a mean absolute error of" in said
    assert "weight 0 in the loss" in html_of(run, "run")
    assert "male, female; loss ce, hidden 64" in html_of(run, "run")
    assert missing(run, "run", "score", "reliability", "label-errors", "mistakes") == {}


@pytest.mark.parametrize(
    ("name", "content", "section", "message"),
    [
        ("fold0/history.csv", "epoch,macro_f1\n0,much\n", "curves", "found 'much', expected a number"),
        ("fold0/history.csv", "epoch,macro_f1\n,0.5\n", "curves", "a history with an epoch without a number"),
        ("fold0/done.json", "[]", "curves", "does not say which epochs the fold has kept"),
        ("scores.json", '{"folds": 5}', "curves", "does not say by which epochs each fold is scored"),
        ("pipelines.yaml", "train: 3\nvalid: 3\n", "augmented", "train_pipeline is not a pipeline"),
    ],
)
def test_a_broken_file_leaves_out_its_section(reported, name, content, section, message):
    (reported / name).write_text(content)
    assert message in missing(Run.load(reported), section)[section]
    assert missing(Run.load(reported), "score", "run", "cost", "environment") == {}


@pytest.mark.parametrize("content", ["{}", '{"body": 3, "packages": {"a": []}, "command": "x", "photos": []}'])
def test_an_environment_of_another_form_is_read_as_far_as_possible(reported, content):
    (reported / "environment.json").write_text(content)
    left = missing(Run.load(reported), "run", "cost", "environment", "mistakes")
    assert list(left) == (["environment"] if content == "{}" else [])
