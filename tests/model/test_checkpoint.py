"""What people call weights: the tensors are found, or one sentence says what the file is."""

import argparse
import pathlib
import sys
import types
from collections import deque

import numpy as np
import pytest
import timm
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from safetensors.torch import save_file

from fastmask.model.checkpoint import read_states
from fastmask.model.weights import load_body
from fastmask.run.lineage import weights_file
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(1)
    return timm.create_model("test_efficientnet").state_dict()


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded(file):
    """The tensors of a body with a file's weights."""
    body = timm.create_model("test_efficientnet", num_classes=0)
    load_body(body, file)
    return body.state_dict()


def saved(content, tmp_path, name="a.pth", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


LAYOUTS = {
    "tutorial": lambda t: {"model_state_dict": t, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "any key": lambda t: {"epoch": 3, "weights_v2": t},
    "twice": lambda t: {"checkpoint": {"net": prefixed("encoder.net.", t)}},
    "a pair": lambda t: (t, {"lr": 0.1}),
    "sequential": lambda t: prefixed("0.", t),
    "old, without counts of batches": lambda t: {n: each for n, each in t.items() if "num_batches" not in n},
    "no dot": lambda t: prefixed("net_", t),
    "lightning": lambda t: {"state_dict": prefixed("model.backbone.", t), "pytorch-lightning_version": "2.5"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("error::fastmask.system.errors.FastmaskWarning")
def test_tensors_are_found_at_any_key_and_behind_any_prefix(tmp_path, tensors, layout):
    own = loaded(saved(LAYOUTS[layout](tensors), tmp_path))
    assert all(torch.equal(own[name], tensors[name]) for name in own)


def module_of(name, **classes):
    """A module of another library that is not installed where the file is read."""
    module = types.ModuleType(name)
    for key, made in classes.items():
        made.__module__, made.__qualname__ = name, key
        setattr(module, key, made)
    return module


def history(self):
    self.log, self.least = deque([np.float64(3)], maxlen=5), np.arange(3)


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_of_other_tools_in_the_file_are_left_unmade(tmp_path, tensors, zipped, monkeypatch):
    made = []
    settings = type("AttributeDict", (dict,), {"__setstate__": lambda *_: made.append("dict")})
    buffer = type("Buffer", (), {"__init__": history, "__setstate__": lambda *_: made.append("buffer")})
    monkeypatch.setitem(sys.modules, "absent", module_of("absent", AttributeDict=settings, Buffer=buffer))
    content = {
        "state_dict": tensors,
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs")),
        "hyper_parameters": settings(lr=1, best=np.float32(0.5)),
        "message_hub": {"log": buffer()},
    }
    file = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    own = loaded(file)
    assert torch.equal(own["conv_stem.weight"], tensors["conv_stem.weight"])
    assert made == []


def test_a_learner_that_fastai_saved_with_its_optimizer_is_read(tmp_path, tensors):
    network = timm.create_model("test_efficientnet")
    network.load_state_dict(tensors)
    photos = DataLoaders.from_dsets([(torch.ones(3), 0)], [(torch.ones(3), 0)], bs=1)
    learn = Learner(photos, network, loss_func=torch.nn.CrossEntropyLoss())
    learn.create_opt()
    own = loaded(learn.save(tmp_path / "fastai", with_opt=True))
    assert all(torch.equal(own[name], tensors[name]) for name in own)


@pytest.mark.parametrize(
    ("layout", "taken"),
    [
        (lambda a, b: {"state_dict": b, "state_dict_ema": a}, "state_dict_ema"),
        (lambda a, b: {"student": prefixed("module.", b), "teacher": a}, "teacher"),
        (lambda a, b: {**prefixed("encoder_q.", a), **prefixed("encoder_k.", b)}, "encoder_q"),
        (lambda a, b: {"model": b, "train_state": {"model_ema": a}}, "train_state.model_ema"),
    ],
)
def test_of_several_weights_the_averaged_or_the_first_are_used_and_named(tmp_path, tensors, layout, taken):
    others = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with pytest.warns(FastmaskWarning, match=rf"has such weights at .*; {taken} is used"):
        own = loaded(saved(layout(tensors, others), tmp_path))
    assert torch.equal(own["conv_stem.weight"], tensors["conv_stem.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_those_rounded(tmp_path, tensors, dtype):
    own = loaded(saved({name: tensor.to(dtype) for name, tensor in tensors.items()}, tmp_path))
    assert own["conv_stem.weight"].dtype == torch.float32
    assert torch.equal(own["conv_stem.weight"], tensors["conv_stem.weight"].to(dtype).float())


def test_a_stem_for_grey_photos_gives_the_same_for_a_grey_photo(tmp_path):
    grey = timm.create_model("test_efficientnet", in_chans=1, num_classes=0).eval()
    body = timm.create_model("test_efficientnet", num_classes=0).eval()
    with pytest.warns(FastmaskWarning, match="is for grey photos; conv_stem.weight is spread over three channels"):
        load_body(body, saved(grey.state_dict(), tmp_path))
    photo = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(body(photo.expand(-1, 3, -1, -1)), grey(photo))


def test_names_of_a_model_s_authors_are_converted_by_timm(tmp_path):
    """ConvNeXt's own repository writes downsample_layers.0 for timm's stem."""
    made = timm.create_model("test_convnext").state_dict()
    names = {"stem.0": "downsample_layers.0.0", "stem.1": "downsample_layers.0.1", "head.norm": "norm"}
    theirs = {}
    for name, tensor in made.items():
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            name = f"downsample_layers.{parts[1]}.{'.'.join(parts[3:])}"
        elif parts[0] == "stages":
            inner = ".".join(parts[4:]).replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
            name = f"stages.{parts[1]}.{parts[3]}.{inner}"
        for ours, other in names.items():
            name = name.replace(f"{ours}.", f"{other}.") if name.startswith(f"{ours}.") else name
        theirs[name] = tensor
    body = timm.create_model("test_convnext", num_classes=0)
    matched, total = load_body(body, saved({"model": theirs}, tmp_path))
    assert matched == total
    assert torch.equal(body.state_dict()["stem.0.weight"], made["stem.0.weight"])


class Whole(torch.nn.Module):
    """A model that runs code when it is unpickled."""

    def __setstate__(self, state):
        raise SystemExit("code ran")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [lambda m: m, lambda m: {"model": m, "epoch": 3}])
def test_a_whole_model_gets_a_sentence_of_ours(tmp_path, zipped, nested):
    file = saved(nested(Whole()), tmp_path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"a whole model .*Whole.*torch\.save\(model\.state_dict\(\), FILE\)") as raised:
        read_states(file)
    assert "\x1b" not in str(raised.value)
    assert "weights_only" not in str(raised.value)


class Evil:
    def __reduce__(self):
        return (eval, ("print(1)",))


def test_a_file_that_would_run_code_is_refused_beside_good_tensors(tmp_path, tensors):
    with pytest.raises(DataError, match=r"it holds \w+\.eval, which could run code"):
        read_states(saved({"state_dict": tensors, "extra": Evil()}, tmp_path))


def test_a_dictionary_that_contains_itself_is_read_once(tmp_path):
    content = {"a": torch.ones(2), "list": []}
    content["self"] = content
    content["list"].append(content)
    assert list(read_states(saved(content, tmp_path))) == [""]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        ("a.pth", b"\n<!DOCTYPE html><html></html>", "it is a web page"),
        ("a.pth", b"", "it is empty"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "it is a file of Keras"),
        ("a.onnx", b"\x08\x08\x12\x07pytorch", "it is a file of ONNX"),
        ("model.safetensors.index.json", b'{"metadata": {}}', "it is JSON"),
        ("a.pth.gz", b"\x1f\x8b\x08\x00", "it is a compressed archive; unpack it"),
        ("a.pth", b"\x80\x02}q\x00.", "it is cut off, damaged, or in another format"),
    ],
)
def test_other_files_get_a_sentence_that_says_what_they_are(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is not a weights file that can be read safely: .*{why}"):
        read_states(tmp_path / name)


def test_archives_of_other_tools_get_a_sentence(tmp_path):
    np.savez(tmp_path / "vit.npz", kernel=np.zeros(3))
    (tmp_path / "vit.npz").rename(tmp_path / "vit.pth")
    with pytest.raises(DataError, match="it is a file of NumPy"):
        read_states(tmp_path / "vit.pth")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "traced.pt"))
    with pytest.raises(DataError, match="it is an archive of TorchScript"):
        read_states(tmp_path / "traced.pt")


def test_a_cut_file_is_refused_and_safetensors_are_told_by_content(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "model.bin").write_bytes(content)
    assert read_states(tmp_path / "model.bin")[""].keys() == tensors.keys()
    (tmp_path / "a.safetensors").write_bytes(content[:5000])
    with pytest.raises(DataError, match="it is cut off"):
        read_states(tmp_path / "a.safetensors")


def test_weights_of_another_library_are_refused(tmp_path):
    names = ["vit.embeddings.cls_token", "vit.encoder.layer.0.attention.attention.query.weight"]
    file = saved({name: torch.ones(2) for name in names}, tmp_path)
    with pytest.raises(UsageError, match=r"fits 0 of .* such as vit.embeddings.cls_token; .* in timm's names"):
        loaded(file)


def test_a_folder_and_an_address_are_refused_with_what_to_give(tmp_path):
    with pytest.raises(UsageError, match="is a folder; expected a weights file"):
        read_states(tmp_path)
    with pytest.raises(UsageError, match="does not exist; .*; download it first"):
        read_states("https://example.org/a.pth")
    (tmp_path / "config.yaml").touch()
    (tmp_path / "fold0").mkdir()
    with pytest.raises(UsageError, match=f"is not a run directory; .*, such as --weights {tmp_path}[.]"):
        weights_file(str(tmp_path / "fold0"), 0)
    hub = tmp_path / "fold0" / "snapshot"
    hub.mkdir()
    (hub / "model.safetensors").touch()
    with pytest.raises(UsageError, match=f"such as --weights {hub / 'model.safetensors'}"):
        weights_file(str(hub), 0)
