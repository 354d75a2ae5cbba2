"""Card: read as a model hub reads it."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from fastmask.api import Run
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.report.card import identifier, is_edited, markdown, sign_card, to_card
from fastmask.report.material import Material
from fastmask.report.sections import curves


def card_of(run):
    return ModelCard(to_card(Material(run), []))


def test_a_hub_reads_the_scores_of_each_head(written, finished_run):
    card = ModelCard(written.card.read_text(encoding="utf-8"))
    assert card.data.library_name == "fastmask"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.get("license") is None
    assert set(card.data.metrics) == {"f1", "accuracy"}
    scores = finished_run.score(0)
    expected = {
        name: {"f1": round(score.macro_f1, 4), "accuracy": round(score.accuracy, 4)}
        for name, score in {"joint": scores.joint, **scores.heads}.items()
    }
    results = {(r.dataset_name.rsplit(", ", 1)[1], r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results == {(name, kind): value for name, kinds in expected.items() for kind, value in kinds.items()}
    # a hub merges results with the same task, data set and configuration
    (model,) = card.data.to_dict()["model-index"]
    found = {r["dataset"]["config"]: {m["type"]: m["value"] for m in r["metrics"]} for r in model["results"]}
    assert found == expected
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", r["dataset"]["type"]) for r in model["results"])


@pytest.mark.parametrize(
    ("name", "plain"), [("nasty.csv", "nasty-csv"), ("Größe 2/", "grosse-2"), ("日本", "photos"), ("a--B", "a-b")]
)
def test_a_data_set_has_a_name_that_a_hub_accepts(name, plain):
    assert identifier(name) == plain


def test_a_score_of_a_leaky_split_is_marked(made, leaky, make_run, labels):
    for material, marked in ((made, False), (leaky, True)):
        results = card_of(material.run).data.eval_results
        assert all(("leaky split (flatters" in result.metric_name) == marked for result in results)
        assert all(("leaky split" in result.dataset_name) == marked for result in results)
    assert card_of(make_run(labels, only=1)).data.eval_results[0].metric_name.endswith("(see the card)")
    text = to_card(leaky, [])
    assert "- The split was leaky: the scores say nothing about new people." in text
    assert "**Leaky split (--group none)" in text


def test_it_has_the_sections_of_a_card(written, finished_run):
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
    # the user's folders are private
    assert str(finished_run.path.parent) not in text
    assert finished_run.config.data not in text


def test_classes_with_few_photos_are_limits(made, labels):
    few, text = int((labels[:, 2] == 2).sum()), to_card(made, [])
    assert f"60+ has only {few} photos" in text or "60+ has the lowest F1" in text


def test_the_base_model_is_named_if_weights_are_pretrained(make_run, labels):
    for pretrained, expected in ((True, "timm/resnet18.a1_in1k"), (False, None)):
        run = make_run(labels, name=str(pretrained), pretrained=pretrained)
        run.environment["body"] = {"tag": "resnet18.a1_in1k"}
        assert card_of(run).data.base_model == expected


@pytest.mark.parametrize(
    ("name", "classes", "row"),
    [
        ("x: [1]\N{RIGHTWARDS ARROW}", ("a|b", "`c`](http://x)", "---"), r"| a\|b, \`c\`\](http://x), --- |"),
        ('a "head"', ("\"quoted\" & 'single'", "<b>", "c"), """| a "head" | "quoted" &amp; 'single', &lt;b&gt;, c |"""),
    ],
)
def test_names_are_escaped(make_run, labels, name, classes, row):
    run = make_run(labels, Heads([Head(name, classes), *list(contest_heads())[1:]]), name="n: '#1'")
    text = to_card(Material(run), [])
    assert ModelCard(text).data.to_dict()["model-index"][0]["name"] == "n: '#1'"
    assert row in text


@pytest.mark.parametrize("text", ["", "# Mine\n", "a\n<!-- fastmask report, as written: " + "0" * 64 + " -->\n"])
def test_a_card_without_a_valid_signature_is_edited(tmp_path, text):
    file = tmp_path / "README.md"
    assert not is_edited(file)
    file.write_text(text)
    assert is_edited(file)
    file.write_text(sign_card("# Ours"))
    assert not is_edited(file)


def test_markdown_is_escaped():
    assert markdown("a*b_c <i> [d](e)\n# f $x$ `g`") == r"a\*b\_c &lt;i&gt; \[d\](e) \# f \$x\$ \`g\`"


def test_networks_that_were_refitted_predict_and_have_no_score(run_copy):
    before = to_card(Material(Run.load(run_copy)), [])
    assert "`fold*/epoch*.safetensors`" in before
    assert "--no-refit" not in before
    for fold in (0, 1):
        (run_copy / f"fold{fold}" / "refit.safetensors").write_bytes(b"")
    material = Material(Run.load(run_copy))
    assert "`fold*/refit.safetensors`" in to_card(material, [])
    assert "These are the scores of the checkpoints (`predict --no-refit`)." in to_card(material, [])
    assert "predict uses the networks that were then trained on all photos" in curves.section(material)[0].text


def test_a_head_that_was_not_learned_has_no_weak_class(make_run, labels):
    mask, gender, age = contest_heads()
    run = make_run(labels, Heads([mask, replace(gender, weight=0.0), age]))
    limits = to_card(Material(run), []).partition("## Limits")[2]
    assert "- mask: " in limits
    assert "- gender: " not in limits
