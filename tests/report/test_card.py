"""Card: read again as a model hub reads it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.card import identifier, is_edited, markdown, signed, to_card
from fastmask.report.material import Material
from fastmask.report.write import Report, write_report


def test_a_hub_reads_the_scores(written: Report, finished_run: Run) -> None:
    card = ModelCard(written.card.read_text(encoding="utf-8"))
    assert card.data.library_name == "fastmask"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.get("license") is None
    assert set(card.data.metrics) == {"f1", "accuracy"}
    results = {(r.dataset_name.rsplit(", ", 1)[1], r.metric_type): r.metric_value for r in card.data.eval_results}
    scores = finished_run.score(0)
    expected = {"joint": scores.joint, **scores.heads}
    for name, score in expected.items():
        assert results[name, "f1"] == round(score.macro_f1, 4)
        assert results[name, "accuracy"] == round(score.accuracy, 4)
    assert len(results) == 8


def test_each_head_is_a_result_of_its_own_after_a_round_trip(written: Report, finished_run: Run) -> None:
    plain = ModelCard(written.card.read_text(encoding="utf-8")).data.to_dict()
    # a hub merges results of one task, data set and configuration
    (model,) = plain["model-index"]
    found = {r["dataset"]["config"]: {m["type"]: m["value"] for m in r["metrics"]} for r in model["results"]}
    scores = finished_run.score(0)
    assert found == {
        name: {"f1": round(score.macro_f1, 4), "accuracy": round(score.accuracy, 4)}
        for name, score in {"joint": scores.joint, **scores.heads}.items()
    }
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", r["dataset"]["type"]) for r in model["results"])


@pytest.mark.parametrize(
    ("name", "plain"), [("nasty.csv", "nasty-csv"), ("Größe 2/", "grosse-2"), ("日本", "photos"), ("a--B", "a-b")]
)
def test_a_data_set_has_a_name_that_a_hub_takes(name: str, plain: str) -> None:
    assert identifier(name) == plain


def test_a_score_of_a_leaky_split_is_marked_in_the_header(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    honest, leaky = make_run(labels), make_run(labels, name="leaky", group="none")
    for run, marked in ((honest, False), (leaky, True)):
        results = ModelCard(to_card(Material(run), [])).data.eval_results
        assert all(("leaky split (flatters" in result.metric_name) == marked for result in results)
        assert all(("leaky split" in result.dataset_name) == marked for result in results)
    part = make_run(labels, name="part", only=1)
    assert ModelCard(to_card(Material(part), [])).data.eval_results[0].metric_name.endswith("(see the card)")


def test_it_says_what_a_card_should(written: Report, finished_run: Run) -> None:
    text = written.card.read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#") and "license" not in line]
    assert headings == [
        *("# small", "## Intended use", "## Data", "## Training", "## Evaluation", "## Limits", "## How to use")
    ]
    joint = finished_run.score().joint
    low, high = joint.macro_f1_interval
    assert f"| joint | {joint.macro_f1:.4f} | {low:.4f} … {high:.4f} |" in text
    for picture in ("curves", "confusion-joint", "classes"):
        assert f"](report/{picture}.png)" in text
        assert (written.card.parent / "report" / f"{picture}.png").is_file()
    assert "mistakes.png" not in text
    assert "fm.Run.load('small').predict(\"PHOTOS\")" in text
    # where somebody's files lie is nobody else's business
    assert str(finished_run.path.parent) not in text
    assert finished_run.config.data not in text


def test_the_body_of_a_hub_is_named(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    run = make_run(labels)
    run.environment["body"] = {"tag": "resnet18.a1_in1k"}
    assert ModelCard(to_card(Material(run), [])).data.base_model == "timm/resnet18.a1_in1k"
    other = make_run(labels, name="other", pretrained=False)
    other.environment["body"] = {"tag": "resnet18.a1_in1k"}
    assert ModelCard(to_card(Material(other), [])).data.base_model is None


def test_names_are_text_in_markdown_too(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    classes = ("a|b", "`c`](http://x)", "---")
    run = make_run(
        labels, Heads([Head("x: [1]\N{RIGHTWARDS ARROW}", classes), *list(contest_heads())[1:]]), name="n: '#1'"
    )
    text = to_card(Material(run), [])
    assert ModelCard(text).data.to_dict()["model-index"][0]["name"] == "n: '#1'"
    assert r"| a\|b, \`c\`\](http://x), --- |" in text


def test_quotes_stay_as_they_are(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    classes = ("\"quoted\" & 'single'", "<b>", "c")
    text = to_card(Material(make_run(labels, Heads([Head('a "head"', classes), *list(contest_heads())[1:]]))), [])
    assert """| a "head" | "quoted" &amp; 'single', &lt;b&gt;, c |""" in text


def test_leaky_splits_and_few_photos_are_limits(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    text = to_card(Material(make_run(labels, group="none")), [])
    assert "- The split was leaky: the scores say nothing about new people." in text
    assert "**Leaky split (--group none)" in text
    few = int((labels[:, 2] == 2).sum())
    assert f"60+ has only {few} photos" in text or "60+ has the lowest F1" in text


def test_words_of_ones_own_are_kept(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    run = make_run(labels)
    report = write_report(run, photos=False)
    assert not is_edited(report.card)
    assert not write_report(run, photos=False).kept
    text = report.card.read_text(encoding="utf-8").replace("say here which those are", "drawn people")
    report.card.write_text(text, encoding="utf-8")
    again = write_report(run, photos=False)
    assert again.kept
    assert "drawn people" in again.card.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "# Mine\n", "a\n<!-- fastmask report, as written: " + "0" * 64 + " -->\n"])
def test_what_nobody_signed_is_somebodys_own(tmp_path: Path, text: str) -> None:
    file = tmp_path / "README.md"
    assert not is_edited(file)
    file.write_text(text)
    assert is_edited(file)
    file.write_text(signed("# Ours"))
    assert not is_edited(file)


def test_what_has_a_meaning_in_markdown_is_escaped() -> None:
    assert markdown("a*b_c <i> [d](e)\n# f $x$ `g`") == r"a\*b\_c &lt;i&gt; \[d\](e) \# f \$x\$ \`g\`"
