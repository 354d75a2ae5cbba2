import socket
import warnings
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file

from fastmask.data.contest import contest_heads
from fastmask.model.network import build_network
from fastmask.model.weights import load_body, read_weights
from fastmask.system.errors import DataError, FastmaskError, FastmaskWarning, UsageError

HEADS = contest_heads()


@pytest.mark.parametrize("broken", [("timm.create_model", OSError), ("socket.getaddrinfo", socket.gaierror)])
def test_without_the_hub_the_error_names_both_alternatives(monkeypatch, broken):
    # finds the options for the photo size, which are cached
    build_network("test_resnet", HEADS)

    def no_hub(*args, **kwargs):
        raise broken[1]("no network")

    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    monkeypatch.setattr("fastmask.model.weights.getproxies", dict)
    monkeypatch.setattr(broken[0], no_hub)
    with pytest.raises(FastmaskError, match=r"no network.*--weights, or .* with --no-pretrained"):
        build_network("test_resnet", HEADS, pretrained=True)


def saved(tmp_path, change=lambda tensors: tensors, suffix=".safetensors"):
    """A file of a body's weights with its classifier, as timm's hub has them."""
    torch.manual_seed(1)
    tensors = change(dict(timm.create_model("test_resnet").state_dict()))
    file = tmp_path / f"weights{suffix}"
    save_file({k: v.contiguous() for k, v in tensors.items()}, file) if suffix == ".safetensors" else torch.save(
        tensors, file
    )
    return file, tensors


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "body."])
def test_a_body_s_weights_are_matched_by_name(tmp_path, suffix, prefix):
    file, tensors = saved(tmp_path, lambda t: {prefix + k: v for k, v in t.items()}, suffix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = build_network("test_resnet", HEADS, weights=file)
    own = network.body.state_dict()
    assert all(torch.equal(own[name], tensors[prefix + name]) for name in own)


def test_tensors_without_a_match_are_counted_in_a_warning(tmp_path):
    file, _ = saved(tmp_path, lambda t: {k: v for k, v in t.items() if not k.startswith("layer4")})
    body = timm.create_model("test_resnet", num_classes=0)
    with pytest.warns(FastmaskWarning, match=r"fits \d+ of the body's \d+ tensors; the others, such as layer4"):
        matched, total = load_body(body, file)
    assert total / 2 <= matched < total == len(body.state_dict())


def test_weights_of_another_arch_are_refused_with_the_count(tmp_path):
    file, _ = saved(tmp_path)
    with pytest.raises(UsageError, match=r"fits \d+ of the body's \d+ tensors .* at least half"):
        build_network("mobilenetv3_small_050", HEADS, weights=file)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"layer": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="cannot|read safely"):
        build_network("test_resnet", HEADS, weights=tmp_path / "evil.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 64, b"PK\x03\x04 cut"])
def test_a_file_without_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is not a weights file"):
        build_network("test_resnet", HEADS, weights=tmp_path / name)


def test_a_missing_file_and_one_without_tensors_are_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        build_network("test_resnet", HEADS, weights=tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds list"):
        build_network("test_resnet", HEADS, weights=tmp_path / "list.pth")


def weights_of(arch, tmp_path):
    """A file of the weights of timm's model for its default photo size."""
    tensors = {name: tensor.contiguous() for name, tensor in timm.create_model(arch).state_dict().items()}
    save_file(tensors, tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors", tensors


def test_a_transformer_s_weights_load_for_photos_of_any_size(tmp_path):
    file, tensors = weights_of("test_vit", tmp_path)
    network = build_network("test_vit", HEADS, weights=file, size=(400, 200))
    count = len(network.body.state_dict())
    assert network.initial_weights == f"{file}: {count} of {count} tensors"
    assert torch.equal(network.body.pos_embed, tensors["pos_embed"])
    network.body.pos_embed.data[:] = 0
    x = torch.randn(1, 3, 400, 200)
    flat = network.eval()(x)
    network.body.pos_embed.data[:] = tensors["pos_embed"]
    assert not torch.equal(network(x), flat)


def test_position_embeddings_of_another_size_are_resampled(tmp_path):
    """A table of shifts that is 1 for no shift and falls evenly to the sides does so at any size."""
    file, tensors = weights_of("test_coatnet", tmp_path)
    name = "stages.2.blocks.0.attn.rel_pos.relative_position_bias_table"
    hill = 1 - torch.linspace(-1, 1, 19).abs()
    tensors[name] = (hill[:, None] * hill).reshape(-1, 1).repeat(1, tensors[name].shape[1]).contiguous()
    save_file(tensors, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FastmaskWarning)
        network = build_network("test_coatnet", HEADS, weights=file, size=(384, 192))
    own = network.body.state_dict()[name][:, 0].reshape(47, 23)
    assert tensors[name].shape[0] == 19**2
    assert own.argmax() == 23 * 23 + 11
    assert own[23, 11] == pytest.approx(1)
    torch.testing.assert_close(own, own.flip(0).flip(1), atol=1e-5, rtol=0)


def test_tensors_that_cannot_be_resampled_stay_random_with_a_warning(tmp_path):
    file, _ = weights_of("pit_ti_224", tmp_path)
    with pytest.warns(FastmaskWarning, match="the others, such as pos_embed, stay random"):
        build_network("pit_ti_224", HEADS, weights=file, size=(400, 200))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(9, 9).to_sparse()}, "something other than a dense tensor of numbers at 'a'"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "something other than a dense tensor of numbers at 'a'"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "something other than a dense tensor of numbers at 'a'"),
        ({"a": torch.zeros(2, device="meta")}, "something other than a dense tensor of numbers at 'a'"),
        ({1: torch.zeros(2)}, "something other than a dense tensor of numbers at 1"),
    ],
)
def test_tensors_that_no_body_has_are_refused(tmp_path, tensors, message):
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(DataError, match=message):
        read_weights(tmp_path / "a.pth")


def test_a_file_that_decompresses_to_more_than_its_size_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pth")
    assert read_weights(tmp_path / "plain.pth")["a"].shape == (10**6,)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain:
        entries = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    assert (tmp_path / "packed.pth").stat().st_size < 20_000
    assert torch.load(tmp_path / "packed.pth", weights_only=True)["a"].shape == (10**6,)
    with pytest.raises(DataError, match="it unpacks to 40.* bytes, which torch.save never does"):
        read_weights(tmp_path / "packed.pth")


def test_a_hub_that_does_not_answer_is_given_up_after_seconds(monkeypatch):
    """An address that accepts no connection, as behind a firewall."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_: found)
    monkeypatch.setattr("fastmask.model.weights.getproxies", dict)
    with pytest.raises(FastmaskError, match="cannot be downloaded .*refused.*not in its cache .*hub; name a file"):
        build_network("test_resnet", HEADS, pretrained=True)
