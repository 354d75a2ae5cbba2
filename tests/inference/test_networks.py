import pytest
import torch
from safetensors.torch import load_file

from fastmask.api import Run
from fastmask.inference.networks import checkpoints_of, load_members
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

CPU = torch.device("cpu")


def test_members_are_the_networks_of_the_checkpoints_of_each_fold(finished_run):
    members = load_members(finished_run, None, CPU)
    assert list(members) == ["fold0", "fold1"] == list(checkpoints_of(finished_run, None))
    for fold, (network,) in enumerate(members.values()):
        (file,) = finished_run.checkpoints(fold)
        weights = load_file(file)
        assert not network.training
        assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert list(load_members(finished_run, ["fold1"], CPU)) == ["fold1"]


def test_a_fold_that_is_not_finished_predicts_nothing(run_copy):
    (run_copy / "fold1" / "done.json").unlink()
    with pytest.warns(FastmaskWarning, match="has finished 1 of 2 folds"):
        assert list(load_members(Run.load(run_copy), None, CPU)) == ["fold0"]
    (run_copy / "fold0" / "done.json").unlink()
    with pytest.raises(UsageError, match="has not finished a fold yet"):
        load_members(Run.load(run_copy), None, CPU)


def test_a_run_that_names_an_enormous_network_is_refused_before_it_is_built(run_copy, monkeypatch):
    config = (run_copy / "config.yaml").read_text()
    assert "arch: test_resnet\n" in config
    (run_copy / "config.yaml").write_text(config.replace("arch: test_resnet", "arch: eva02_enormous_patch14_clip_224"))
    monkeypatch.setattr("fastmask.inference.networks.build_network", pytest.fail)
    with pytest.raises(DataError, match=r"epoch00\d.safetensors is too short for the weights of eva02_enormous"):
        load_members(Run.load(run_copy), None, CPU)
