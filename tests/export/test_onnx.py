"""Export: the file compared with `fastmask predict`, its script without torch, and what is refused."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import f1_score

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from fastmask.api import Run, blend_runs  # noqa: E402
from fastmask.data.photo import list_photos, read_photo  # noqa: E402
from fastmask.export import graph, parity, predict_onnx, selection  # noqa: E402
from fastmask.export.onnx import export_onnx  # noqa: E402
from fastmask.export.options import ExportOptions  # noqa: E402
from fastmask.export.predict_onnx import open_model  # noqa: E402
from fastmask.inference.networks import load_network  # noqa: E402
from fastmask.inference.predictions import predict  # noqa: E402
from fastmask.model.probe import ProbeWeights, StageFeatures  # noqa: E402
from fastmask.run.directory import RunDirectory  # noqa: E402
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError  # noqa: E402
from fastmask.system.files import read_json, read_yaml, write_json, write_yaml  # noqa: E402

DONE, FAILED, INVALID = 0, 1, 2
# the script in a Python that has neither torch nor fastmask
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "fastmask", "timm", "albumentations", "pandas"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# the photos of a folder as that script reads them
READ = """
import hashlib, runpy, sys
from pathlib import Path
for name in ("torch", "fastmask", "onnxruntime"):
    sys.modules[name] = None
script = runpy.run_path(sys.argv[1])
for path in script["find_photos"]([Path(sys.argv[2])])[1]:
    print(path.name, hashlib.sha256(script["read_photo"](path).tobytes()).hexdigest())
"""


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """A body is traced once for all tests, as it takes seconds: the weights are put in anew each time."""
    kept = {}
    trace = graph.trace

    def once(network, heads, size, dtype, views):
        key = (network.tag, network.probe is None, heads, size, dtype, tuple(views))
        if key not in kept:
            kept[key] = trace(network, heads, size, dtype, views)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", once)
        # the speed itself is not tested
        patch.setattr(parity, "_TURNS", 1)
        patch.setattr(parity, "_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def made(finished_run, tmp_path_factory):
    return export_onnx(finished_run, tmp_path_factory.mktemp("made"), photos=12)


@pytest.fixture(scope="module")
def photos(contest):
    return sorted((contest / "eval" / "images").iterdir())


def run_python(code, *words):
    command = [sys.executable, "-I", "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def script(capsys):
    """The script, run in this process: exit code, stdout, stderr."""

    def command(*words):
        code = predict_onnx.main(list(map(str, words)))
        return code, *capsys.readouterr()

    return command


@pytest.mark.slow
def test_the_file_of_a_run_with_views_answers_with_their_mean(run_copy, photos, tmp_path):
    write_yaml(run_copy / "config.yaml", {**read_yaml(run_copy / "config.yaml"), "views": ["flip", "shift", "scale"]})
    made = export_onnx(run_copy, tmp_path / "made", photos=12)
    assert "mean over the photo and its views flip, shift, scale" in str(made)
    session = open_model(made.model.read_bytes(), 1)
    answers = parity.predict_by_script(session, photos, 8)
    each = [predict(run_copy, photos, views=views).probabilities for views in (["flip", "shift", "scale"], [])]
    np.testing.assert_allclose(answers, each[0], atol=1e-4)
    assert abs(answers - each[1]).max() > 1e-3


@pytest.mark.slow
def test_the_file_of_a_run_with_a_linear_probe_answers_as_predict(run_copy, photos, tmp_path):
    plain = predict(run_copy, photos).probabilities
    run = RunDirectory.load(run_copy)
    for file in run_copy.glob("fold*/epoch*.safetensors"):
        network = load_network(run, file, torch.device("cpu"))
        sizes = sum(run.heads.sizes), StageFeatures(network.body)(torch.zeros(1, 3, 64, 32)).shape[1]
        network.add_probe(run.heads, ProbeWeights(torch.randn(sizes), torch.randn(sizes[0])))
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
    config = read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {**config, "linear_probe": True, "weights": "body"})
    made = export_onnx(run_copy, tmp_path / "made", photos=12)
    answers = parity.predict_by_script(open_model(made.model.read_bytes(), 1), photos, 8)
    probed = predict(run_copy, photos).probabilities
    np.testing.assert_allclose(answers, probed, atol=1e-4)
    assert abs(probed - plain).max() > 1e-3


@pytest.mark.slow
def test_the_script_predicts_what_predict_does_without_torch_or_fastmask(made, finished_run, contest, fastmask):
    images = contest / "eval" / "images"
    done = run_python(WITHOUT_TORCH, made.script, made.model, images, "--out", "theirs.csv", "--bs", 5)
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


@pytest.fixture
def formats(photos, tmp_path):
    """A folder of photos in unusual formats."""
    image, turned, folder = Image.open(photos[0]), Image.Exif(), tmp_path / "formats"
    folder.mkdir()
    turned[0x0112] = 6
    deep = np.asarray(image.convert("L"), np.uint16) * 257
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=turned, quality=95)
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("L").save(folder / "grey.webp")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray((deep / 65535).astype(np.float32)).save(folder / "float.tif")
    image.save(folder / "phone.jfif", "MPO", save_all=True, append_images=[image.rotate(180)])
    plain = (folder / "turned.jpg").read_bytes()
    (folder / "junk.jpe").write_bytes(plain[:20] + b"\0\0" + plain[20:])
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


def test_any_photo_is_read_as_fastmask_reads_it(made, finished_run, formats, script):
    (formats / "left.heic").write_bytes(b"")
    (formats / "out").write_bytes(b"")
    code, out, err = script(made.model, formats)
    rows = list(csv.DictReader(out.splitlines()))
    with pytest.warns(FastmaskWarning) as warned:
        wanted = finished_run.predict(formats)
    assert err == f"predict_onnx: warning: {warned[0].message}\n"
    assert "2 files are left out (1 .heic, 1 without an ending)" in err
    assert (code, len(rows), [row["path"] for row in rows]) == (0, 8, wanted.names)
    got = np.array([[float(row[column]) for column in finished_run.heads.columns] for row in rows])
    np.testing.assert_allclose(got, wanted.probabilities, atol=1e-4)


def test_the_exported_script_reads_photos_without_fastmask(made, formats):
    done = run_python(READ, made.script, formats)
    assert done.stderr == ""
    wanted = {path.name: hashlib.sha256(read_photo(path)).hexdigest() for path in list_photos(formats)}
    assert dict(line.split() for line in done.stdout.splitlines()) == wanted


def test_the_file_describes_itself(made, finished_run):
    model = onnx.load(made.model)
    onnx.checker.check_model(model)
    kept = {one.key: one.value for one in model.metadata_props}
    assert (kept["run"], kept["identity"], kept["precision"]) == ("small", finished_run.identity, "fp32")
    plain = {"spread": None, "joint_share": None}
    heads = [{"name": head.name, "classes": list(head.classes), **plain} for head in finished_run.heads]
    assert json.loads(kept["heads"]) == heads
    assert json.loads(kept["joint"]) == ["mask", "gender", "age"]
    assert json.loads(kept["size"]) == [64, 32]
    assert [step["do"] for step in json.loads(kept["steps"])] == ["enlarge", "center_crop", "resize"]
    assert json.loads(kept["members"]) == {"small": ["fold0", "fold1"]}
    outputs = [(o.name, o.type.tensor_type.shape.dim[1].dim_value) for o in model.graph.output]
    assert outputs == [("mask", 3), ("gender", 2), ("age", 3)]
    assert (made.nbytes, made.networks) == (made.model.stat().st_size, 2)


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_has_any_number_of_photos(made, count):
    batch = np.random.default_rng(0).integers(0, 256, (count, 64, 32, 3), np.uint8)
    outputs = open_model(made.model).run(None, {"photos": batch})
    assert [out.shape for out in outputs] == [(count, 3), (count, 2), (count, 3)]
    np.testing.assert_allclose([out.sum(1) for out in outputs], 1, atol=1e-5)


def test_the_command_writes_a_fold_next_to_the_run_and_reports_its_checks(run_copy, photos, fastmask, work):
    words = ("export", run_copy, "--fold", 1, "--photos", 8, "--bs", 4)
    answer = fastmask(*words)
    assert answer.code == DONE, answer.errors
    folder = run_copy.with_name("run_copy-onnx")
    assert sorted(file.name for file in folder.iterdir()) == ["model-fold1.onnx", "predict_onnx.py"]
    for part in ("1 network(s) in fp32", "on 8 photos (allowed 1e-04)", "PyTorch"):
        assert part in answer.out
    assert answer.err[-1].startswith("Next, without torch: python ")
    assert "model-fold1.onnx exists" in fastmask(*words).errors[0]
    again = fastmask(*words, "--overwrite", "--json", "--images", photos[0].parent)
    plain = json.loads(again.out)
    assert plain["parity"]["difference"] < 1e-4
    assert plain["photos_a_second"]["onnx"] > 0
    want = Run.load(run_copy).predict(photos[:6], members=["fold1"]).probabilities
    np.testing.assert_allclose(
        parity.predict_by_script(open_model(folder / "model-fold1.onnx"), photos[:6], 4), want, atol=1e-4
    )


@pytest.mark.slow
def test_half_precision_reports_its_effect_on_the_oof_macro_f1(run_copy, fastmask):
    answer = fastmask("export", run_copy, "--precision", "fp16", "--photos", 8, "--json")
    assert answer.code == DONE, answer.errors
    reported, run = json.loads(answer.out)["oof_macro_f1"], Run.load(run_copy)
    root, true = Path(run.environment["photos"]["root"]), run.heads.joint(run.true)
    codes = {name: np.full(len(true), -1) for name in ("fp32", "fp16")}
    for fold in (0, 1):
        here = np.flatnonzero(run.oof["fold"] == fold)
        files = [root / path for path in run.oof["path"].iloc[here]]
        codes["fp32"][here] = run.predict(files, members=[f"fold{fold}"]).joint
        half = export_onnx(run, precision="fp16", photos=1, oof_photos=1, fold=fold, overwrite=True)
        codes["fp16"][here] = run.heads.joint(
            run.heads.argmax(parity.predict_by_script(open_model(half.model), files, 16))
        )
    scores = {
        name: f1_score(true, each, average="macro", labels=np.unique(true), zero_division=0)
        for name, each in codes.items()
    }
    assert (reported["photos"], reported["of"], reported["folds"]) == (84, 84, [0, 1])
    assert {name: reported[name] for name in scores} == pytest.approx(scores)
    assert reported["change"] == pytest.approx(scores["fp16"] - scores["fp32"])


def test_nothing_is_written_where_the_file_predicts_otherwise(run_copy, refused, monkeypatch):
    with_weights = graph.with_weights

    def broken(traced, network):
        for head in network.heads:
            head.weight.data *= 1.05
        return with_weights(traced, network)

    monkeypatch.setattr(graph, "with_weights", broken)
    sentence = refused(FAILED, "export", run_copy, "--photos", 4)
    assert "from PyTorch's, more than 0.0001; nothing is written" in sentence


def test_nan_is_a_difference(monkeypatch, finished_run):
    monkeypatch.setattr(parity, "_predict_by_torch", lambda *given: np.full((1, 8), 0.5))
    monkeypatch.setattr(parity, "predict_by_script", lambda *given: np.full((1, 8), np.nan))
    chosen = selection.select(finished_run, ExportOptions())
    with pytest.raises(FastmaskError, match="differs by inf from PyTorch's"):
        parity.measure_difference(None, chosen, [Path("a.jpg")])
    half = selection.select(finished_run, ExportOptions(precision="fp16"))
    with pytest.raises(FastmaskError, match="nothing is written. ONNX Runtime computes fp16 wrongly here, or .* fp32"):
        parity.measure_difference(None, half, [Path("a.jpg")])


@pytest.mark.slow
def test_moved_photos_can_be_given(run_copy, contest, tmp_path):
    environment, config = read_json(run_copy / "environment.json"), read_yaml(run_copy / "config.yaml")
    environment["photos"]["root"] = config["data"] = str(tmp_path / "gone")
    write_json(run_copy / "environment.json", environment)
    write_yaml(run_copy / "config.yaml", config)
    with pytest.raises(UsageError, match=r"no photos to check the file on \(.*gone.*\); name some by --images DIR"):
        export_onnx(run_copy)
    images = contest / "eval" / "images"
    with pytest.warns(FastmaskWarning, match="The effect of fp16 on the OOF macro-F1 is unknown"):
        made = export_onnx(run_copy, precision="fp16", images=images, photos=4)
    assert made.rounded is None
    assert export_onnx(run_copy, data=str(contest), photos=4).photos == 4


def test_what_cannot_be_exported_is_refused_before_any_work(run_copy, refused, monkeypatch, tmp_path):
    def refuse(*words):
        return refused(INVALID, "export", run_copy, *words)

    monkeypatch.setattr(graph, "trace", pytest.fail)
    assert "found 'torchscript', expected onnx" in refuse("--format", "torchscript")
    assert "found 'int8', expected fp32 or fp16" in refuse("--precision", "int8")
    assert "no member 'fold7'" in refuse("--fold", 7)
    assert "Option photos: " in refuse("--photos", 0)
    assert "nothing to average" in refuse("--soup")
    assert "--oof-photos needs --precision fp16" in refuse("--oof-photos", 9)
    assert "is in the run, where only a run's own files belong" in refuse("--out", run_copy / "a.onnx")
    (tmp_path / "predict_onnx.py").write_text("mine")
    assert "predict_onnx.py exists" in refuse("--out", tmp_path / "a.onnx")
    pipelines, config = read_yaml(run_copy / "pipelines.yaml"), read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {**config, "boxes": "boxes.csv"})
    assert "trained on faces (--boxes)" in refuse()
    write_yaml(run_copy / "config.yaml", config)
    monkeypatch.setattr(selection, "_MOST_BYTES", 1000)
    assert "an ONNX file holds at most 2 GB" in refuse()
    flip = {"__class_fullname__": "HorizontalFlip", "p": 1.0}
    pipelines["valid"]["transform"]["transforms"].insert(0, flip)
    write_yaml(run_copy / "pipelines.yaml", pipelines)
    assert "has HorizontalFlip(p=1.0)" in refuse()
    monkeypatch.setattr("fastmask.export.options.find_spec", lambda name: None)
    assert 'pip install "fastmask[onnx]"' in refuse()


@pytest.mark.slow
def test_an_ensemble_of_runs_is_one_file(finished_run, other_run, contest, tmp_path):
    blend_runs([finished_run, other_run], "vote", out=tmp_path / "both", draws=0)
    made = export_onnx(tmp_path / "both", images=contest / "eval" / "images", photos=10)
    assert made.networks == 4
    assert made.difference < 1e-4
    with pytest.raises(UsageError, match="is an ensemble and has no folds of its own"):
        export_onnx(tmp_path / "both", fold=0)


def test_runs_that_crop_differently_are_not_one_file(finished_run, run_copy, tmp_path):
    pipelines = read_yaml(run_copy / "pipelines.yaml")
    pipelines["valid"]["transform"]["transforms"][0]["height"] = 380
    write_yaml(run_copy / "pipelines.yaml", pipelines)
    blend_runs([finished_run, run_copy], out=tmp_path / "apart", draws=0)
    with pytest.raises(UsageError, match="crop or scale photos differently"):
        export_onnx(tmp_path / "apart")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is not an image that can be read"),
        (b"<html>", "is a web page, perhaps of a failed download, not a photo"),
        (b"\xff\xd8\xff\xe0 no JPEG", "is not a photo that can be read"),
        (None, "is not a file; expected a photo there"),
    ],
)
def test_a_bad_photo_is_one_sentence_of_the_script(made, work, content, named, photos, script):
    bad, out, listed = work / "bad.jpg", work / "out.csv", work / "out.failed.csv"
    if content is not None:
        bad.write_bytes(content)
    code, _, err = script(made.model, bad, "--out", out)
    assert (code, len(err.splitlines()), list(work.glob("out*"))) == (1, 1, [])
    assert "does not exist" in err if content is None else "None of the 1 photos can be predicted: " in err
    code, _, err = script(made.model, photos[0], bad, bad, "--out", out, "--on-bad-photo", "error")
    assert (code, len(err.splitlines()), list(work.glob("out*"))) == (1, 1, [])
    assert err.startswith(f"predict_onnx: error: {bad} {named}")
    assert "1 more of 3 photos cannot be predicted" in err
    code, _, err = script(made.model, photos[0], bad, photos[1], "--out", out)
    assert (code, len(err.splitlines())) == (1, 1)
    assert f"1 of 3 photos could not be predicted and is listed in {listed}; the first: {bad} {named}" in err
    assert pd.read_csv(out)["path"].tolist() == [str(photos[0]), str(photos[1])]
    assert pd.read_csv(listed)["path"].tolist() == [str(bad)]
    code, printed, err = script(made.model, photos[0], bad)
    assert (code, len(printed.splitlines()), len(err.splitlines())) == (1, 2, 1)
    assert script(made.model, photos[0], "--out", out, "--overwrite")[0] == 0
    assert not listed.exists()
    listed.write_text("mine")
    assert "exists, and photos that fail" in script(made.model, photos[0], "--out", out, "--overwrite")[2]


def test_the_script_enlarges_small_photos_as_predict_does(made, finished_run, tmp_path, script):
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    for name, photo in (("a", pixels), ("b", pixels[:, :100]), ("c", pixels[:1, :1])):
        (tmp_path / name).mkdir()
        Image.fromarray(photo).save(tmp_path / name / "x.png")
    code, out, _ = script(made.model, *(tmp_path / name for name in "abc"))
    rows = list(csv.DictReader(out.splitlines()))
    # names in several folders stay apart
    assert (code, [row["path"] for row in rows]) == (0, [str(tmp_path / name / "x.png") for name in "abc"])
    wanted = predict(finished_run, tmp_path)
    got = np.array([[float(row[column]) for column in finished_run.heads.columns] for row in rows])
    np.testing.assert_allclose(got, wanted.probabilities, atol=1e-4)
    assert wanted.notes[0].startswith("3 of 3 photos are smaller than the crop")


def test_files_of_earlier_versions_list_the_photos_that_they_do_not_enlarge(made, photos, work, script):
    model = onnx.load(made.model)
    steps = next(one for one in model.metadata_props if one.key == "steps")
    steps.value = json.dumps([step for step in json.loads(steps.value) if step["do"] != "enlarge"])
    onnx.save(model, work / "old.onnx")
    Image.new("RGB", (320, 240)).save(work / "small.png")
    code, _, err = script(work / "old.onnx", photos[0], work / "small.png", "--out", work / "out.csv")
    assert code == 1
    assert "small.png is 240 high and 320 wide; the model crops 400 x 200 out of it" in err
    assert len(pd.read_csv(work / "out.csv")) == 1


def test_the_script_overwrites_only_with_overwrite(made, work, photos, script):
    out = work / "out.csv"
    out.write_text("mine")
    err = script(made.model, photos[0], "--out", out)[2]
    assert err == f"predict_onnx: error: {out} exists; name another file, or replace it with --overwrite.\n"
    assert out.read_text() == "mine"
    assert script(made.model, photos[0], "--out", out, "--overwrite")[0] == 0
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["path", str(photos[0])]
    for place, named in ((work, "is a folder"), (work / "gone" / "out.csv", "is not a folder")):
        code, _, err = script(made.model, photos[0], "--out", place)
        assert (code, len(err.splitlines()), named in err) == (1, 1, True)


def test_the_script_refuses_other_files(work, photos, made, script):
    (work / "other.onnx").write_bytes(b"no model")
    model = onnx.load(made.model)
    del model.metadata_props[:]
    onnx.save(model, work / "bare.onnx")
    for name, named in (("other", "cannot be opened"), ("gone", "is not a file"), ("bare", "version of fastmask")):
        code, _, err = script(work / f"{name}.onnx", photos[0])
        assert (code, len(err.splitlines()), named in err) == (1, 1, True), err
