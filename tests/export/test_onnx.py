"""Export: the file beside `fastmask predict`, its script without torch, and what is refused."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import f1_score

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from fastmask.api import Run  # noqa: E402
from fastmask.export import graph as onnx_graph  # noqa: E402
from fastmask.export import onnx as exporting  # noqa: E402
from fastmask.export.onnx import export_onnx  # noqa: E402
from fastmask.export.predict_onnx import open_model  # noqa: E402
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError  # noqa: E402
from fastmask.system.files import read_yaml, write_yaml  # noqa: E402

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2
# the script in a Python that has neither
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "fastmask", "timm", "albumentations", "pandas"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Any:
    """A body is traced once for all tests, as it takes seconds: the weights are put in anew each time."""
    kept: dict[Any, Any] = {}
    trace = onnx_graph.trace

    def once(network: Any, heads: Any, size: Any, dtype: Any) -> Any:
        key = (network.tag, heads, size, dtype)
        if key not in kept:
            kept[key] = trace(network, heads, size, dtype)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "trace", once)
        # what the machine is worth is no test's business
        patch.setattr(exporting, "_TURNS", 1)
        patch.setattr(exporting, "_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def made(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return export_onnx(finished_run, tmp_path_factory.mktemp("made"), photos=12)


def predicted_by(script: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", WITHOUT_TORCH, str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_says_what_predict_says_without_torch_or_fastmask(
    made: Any, finished_run: Run, contest: Path, fastmask: Callable[..., Any]
) -> None:
    images = contest / "eval" / "images"
    done = predicted_by(made.script, made.model, images, "--out", "theirs.csv", "--bs", 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert fastmask("predict", finished_run.path, images, "--out", "ours.csv").code == DONE
    ours, theirs = pd.read_csv("ours.csv"), pd.read_csv("theirs.csv")
    # all but the columns of each fold
    assert list(theirs.columns) == [column for column in ours.columns if ":" not in column]
    texts = ["path", "predicted", "mask", "gender", "age"]
    pd.testing.assert_frame_equal(theirs[texts], ours[texts])
    columns = finished_run.heads.columns
    np.testing.assert_allclose(theirs[columns], ours[columns], atol=1e-4)
    assert made.difference < 1e-4


def test_any_photo_is_read_as_fastmask_reads_it(
    made: Any, finished_run: Run, contest: Path, tmp_path: Path, work: Path
) -> None:
    image = Image.open(next(iter(sorted((contest / "eval" / "images").iterdir()))))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("L").save(tmp_path / "grey.webp")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    photos = sorted(path for path in tmp_path.iterdir() if path.suffix in (".jpg", ".png", ".webp"))
    photos = [path for path in photos if not path.name.startswith(".")]
    done = predicted_by(made.script, made.model, *photos)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    wanted = finished_run.predict(photos)
    assert [row["path"] for row in rows] == list(map(str, photos))
    got = np.array([[float(row[column]) for column in finished_run.heads.columns] for row in rows])
    np.testing.assert_allclose(got, wanted.probabilities, atol=1e-4)


def test_the_file_says_what_it_is(made: Any, finished_run: Run) -> None:
    model = onnx.load(made.model)
    onnx.checker.check_model(model)
    kept = {one.key: one.value for one in model.metadata_props}
    assert (kept["run"], kept["identity"], kept["precision"]) == ("small", finished_run.identity, "fp32")
    assert [head["name"] for head in json.loads(kept["heads"])] == ["mask", "gender", "age"]
    assert json.loads(kept["heads"])[2]["classes"] == list(finished_run.heads["age"].classes)
    assert json.loads(kept["joint"]) == ["mask", "gender", "age"]
    assert json.loads(kept["size"]) == [64, 32]
    assert [step["do"] for step in json.loads(kept["steps"])] == ["center_crop", "resize"]
    assert json.loads(kept["members"]) == {"small": ["fold0", "fold1"]}
    assert [(o.name, o.type.tensor_type.shape.dim[1].dim_value) for o in model.graph.output] == [
        ("mask", 3),
        ("gender", 2),
        ("age", 3),
    ]
    assert made.nbytes == made.model.stat().st_size
    assert made.networks == 2


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_has_any_number_of_photos(made: Any, count: int) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (count, 64, 32, 3), np.uint8)
    outputs = open_model(made.model).run(None, {"photos": batch})
    assert [out.shape for out in outputs] == [(count, 3), (count, 2), (count, 3)]
    np.testing.assert_allclose([out.sum(1) for out in outputs], 1, atol=1e-5)


def test_the_command_writes_a_fold_beside_the_run_and_says_what_it_found(
    run_copy: Path, contest: Path, fastmask: Callable[..., Any], work: Path
) -> None:
    words = ("export", run_copy, "--fold", 1, "--photos", 8, "--bs", 4)
    answer = fastmask(*words)
    assert answer.code == DONE, answer.errors
    folder = run_copy.with_name("run_copy-onnx")
    assert sorted(file.name for file in folder.iterdir()) == ["model-fold1.onnx", "predict_onnx.py"]
    assert "1 network(s) in fp32" in answer.out
    assert "on 8 photos (allowed 1e-04)" in answer.out
    assert "PyTorch" in answer.out
    assert answer.err[-1].startswith("Next, without torch: python ")
    assert "model-fold1.onnx exists" in fastmask(*words).errors[0]
    again = fastmask(*words, "--overwrite", "--json", "--images", contest / "eval" / "images")
    plain = json.loads(again.out)
    assert plain["parity"]["difference"] < 1e-4
    assert plain["photos_a_second"]["onnx"] > 0
    photos = sorted((contest / "eval" / "images").iterdir())[:6]
    outputs = open_model(folder / "model-fold1.onnx")
    want = Run.load(run_copy).predict(photos, members=["fold1"]).probabilities
    np.testing.assert_allclose(exporting.asked(outputs, photos, 4), want, atol=1e-4)


def test_half_precision_says_what_it_changes_of_the_oof_macro_f1(run_copy: Path, fastmask: Callable[..., Any]) -> None:
    answer = fastmask("export", run_copy, "--precision", "fp16", "--photos", 8, "--json")
    assert answer.code == DONE, answer.errors
    told, run = json.loads(answer.out)["oof_macro_f1"], Run.load(run_copy)
    root, true = Path(run.environment["photos"]["root"]), run.heads.joint(run.true)
    scores = {}
    for name in ("fp32", "fp16"):
        codes = np.full(len(true), -1)
        for fold in (0, 1):
            here = np.flatnonzero(run.oof["fold"] == fold)
            photos = [root / path for path in run.oof["path"].iloc[here]]
            if name == "fp32":
                codes[here] = run.predict(photos, members=[f"fold{fold}"]).joint
            else:
                fastmask("export", run_copy, "--precision", "fp16", "--photos", 1, "--oof-photos", 1, "--fold", fold)
                model = open_model(run_copy.with_name("run_copy-onnx") / f"model-fold{fold}-fp16.onnx")
                codes[here] = run.heads.joint(run.heads.argmax(exporting.asked(model, photos, 16)))
        scores[name] = f1_score(true, codes, average="macro", labels=np.unique(true), zero_division=0)
    assert (told["photos"], told["of"], told["folds"]) == (84, 84, [0, 1])
    assert told["fp32"] == pytest.approx(scores["fp32"])
    assert told["fp16"] == pytest.approx(scores["fp16"])
    assert told["change"] == pytest.approx(scores["fp16"] - scores["fp32"])


def test_nothing_is_written_where_the_file_answers_otherwise(
    run_copy: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_weights = onnx_graph.with_weights

    def broken(traced: Any, network: Any) -> Any:
        for head in network.heads:
            head.weight.data *= 1.05
        return with_weights(traced, network)

    monkeypatch.setattr(onnx_graph, "with_weights", broken)
    sentence = refused(FAILED, "export", run_copy, "--photos", 4)
    assert "from PyTorch's, more than 0.0001; nothing is written" in sentence


def test_photos_that_are_gone_are_asked_for(run_copy: Path, contest: Path, tmp_path: Path) -> None:
    environment = json.loads((run_copy / "environment.json").read_text())
    environment["photos"]["root"] = str(tmp_path / "gone")
    (run_copy / "environment.json").write_text(json.dumps(environment))
    config = read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {**config, "data": str(tmp_path / "gone")})
    with pytest.raises(UsageError, match=r"no photos to check the file on \(.*gone.*\); name some by --images DIR"):
        export_onnx(run_copy)
    images = contest / "eval" / "images"
    with pytest.warns(FastmaskWarning, match="What fp16 changes of the OOF macro-F1 is not known"):
        made = export_onnx(run_copy, precision="fp16", images=images, photos=4)
    assert made.rounded is None
    assert export_onnx(run_copy, data=str(contest), photos=4).photos == 4


def test_what_cannot_be_exported_is_refused_before_any_work(
    run_copy: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx_graph, "trace", pytest.fail)
    assert "no format 'torchscript'" in refused(ASKED_WRONGLY, "export", run_copy, "--format", "torchscript")
    assert "no precision 'int8'" in refused(ASKED_WRONGLY, "export", run_copy, "--precision", "int8")
    assert "no member 'fold7'" in refused(ASKED_WRONGLY, "export", run_copy, "--fold", 7)
    assert "--photos is 0" in refused(ASKED_WRONGLY, "export", run_copy, "--photos", 0)
    assert "nothing to average" in refused(ASKED_WRONGLY, "export", run_copy, "--soup")
    assert "lies in the run" in refused(ASKED_WRONGLY, "export", run_copy, "--out", run_copy / "onnx")
    (tmp_path / "predict_onnx.py").write_text("mine")
    assert "predict_onnx.py exists" in refused(ASKED_WRONGLY, "export", run_copy, "--out", tmp_path / "a.onnx")
    pipelines, config = read_yaml(run_copy / "pipelines.yaml"), read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {**config, "boxes": "boxes.csv"})
    assert "trained on faces (--boxes)" in refused(ASKED_WRONGLY, "export", run_copy)
    write_yaml(run_copy / "config.yaml", config)
    monkeypatch.setattr(exporting, "_MOST_BYTES", 1000)
    assert "an ONNX file holds at most 2 GB" in refused(ASKED_WRONGLY, "export", run_copy)
    flip = {"__class_fullname__": "HorizontalFlip", "p": 1.0}
    pipelines["valid"]["transform"]["transforms"].insert(0, flip)
    write_yaml(run_copy / "pipelines.yaml", pipelines)
    assert "has HorizontalFlip(p=1.0)" in refused(ASKED_WRONGLY, "export", run_copy)
    monkeypatch.setattr("fastmask.export.result.find_spec", lambda name: None)
    assert 'pip install "fastmask[onnx]"' in refused(ASKED_WRONGLY, "export", run_copy)


def test_an_ensemble_of_runs_is_one_file(run_copy: Path, contest: Path, tmp_path: Path) -> None:
    from fastmask.api import blend_runs

    other = Path(shutil.copytree(run_copy, tmp_path / "other"))
    for fold in ("fold0", "fold1"):
        shutil.rmtree(other / fold)
    for fold, swapped in ((0, 1), (1, 0)):
        shutil.copytree(run_copy / f"fold{fold}", other / f"fold{fold}")
        checkpoint = next((other / f"fold{fold}").glob("epoch*.safetensors"))
        shutil.copy(next((run_copy / f"fold{swapped}").glob("epoch*.safetensors")), checkpoint)
    blend_runs([run_copy, other], "vote", out=tmp_path / "both")
    made = export_onnx(tmp_path / "both", images=contest / "eval" / "images", photos=10)
    assert made.networks == 4
    assert made.difference < 1e-4
    with pytest.raises(UsageError, match="is an ensemble and has no folds of its own"):
        export_onnx(tmp_path / "both", fold=0)
    write_other = read_yaml(other / "pipelines.yaml")
    write_other["valid"]["transform"]["transforms"][0]["height"] = 380
    write_yaml(other / "pipelines.yaml", write_other)
    blend_runs([run_copy, other], out=tmp_path / "apart")
    with pytest.raises(UsageError, match="crop or scale photos differently"):
        export_onnx(tmp_path / "apart")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is not a photo that can be read"),
        (b"\xff\xd8\xff\xe0 no JPEG", "is not a photo that can be read"),
        (None, "does not exist"),
    ],
)
def test_a_bad_photo_is_one_sentence_of_the_script(
    made: Any, work: Path, content: bytes | None, named: str, contest: Path
) -> None:
    if content is not None:
        (work / "bad.jpg").write_bytes(content)
    good = next((contest / "eval" / "images").iterdir())
    done = predicted_by(made.script, made.model, good, work / "bad.jpg", "--out", work / "out.csv")
    assert done.returncode == 1
    assert done.stderr.startswith("predict_onnx: error: ")
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(work.glob("*out.csv*"))


def test_the_script_replaces_nothing_unasked(made: Any, work: Path, contest: Path) -> None:
    photo, out = next((contest / "eval" / "images").iterdir()), work / "out.csv"
    out.write_text("mine")
    done = predicted_by(made.script, made.model, photo, "--out", out)
    assert done.stderr == f"predict_onnx: error: {out} exists; name another file, or replace it with --overwrite.\n"
    assert out.read_text() == "mine"
    assert predicted_by(made.script, made.model, photo, "--out", out, "--overwrite").returncode == 0
    assert out.read_text().startswith("path,")
    for place in (work, work / "gone" / "out.csv"):
        done = predicted_by(made.script, made.model, photo, "--out", place)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "is a folder" in done.stderr or "is not a folder" in done.stderr


def test_the_script_refuses_what_is_no_export(work: Path, contest: Path, made: Any) -> None:
    (work / "other.onnx").write_bytes(b"no model")
    photo = next((contest / "eval" / "images").iterdir())
    for model in (work / "other.onnx", work / "gone.onnx"):
        done = predicted_by(made.script, model, photo)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    model = onnx.load(made.model)
    del model.metadata_props[:]
    onnx.save(model, work / "bare.onnx")
    assert "was not written by a fastmask" in predicted_by(made.script, work / "bare.onnx", photo).stderr


def test_answers_that_are_no_numbers_are_never_written(monkeypatch: pytest.MonkeyPatch, finished_run: Run) -> None:
    wanted = SimpleNamespace(probabilities=np.full((1, 8), 0.5))
    monkeypatch.setattr(exporting, "predict", lambda *given, **options: wanted)
    monkeypatch.setattr(exporting, "asked", lambda *given: np.full((1, 8), np.nan))
    chosen = exporting._choose(finished_run, None, False, True)
    with pytest.raises(FastmaskError, match="is inf from PyTorch's"):
        exporting._difference(None, chosen, [Path("a.jpg")], 1, 1e-4)
