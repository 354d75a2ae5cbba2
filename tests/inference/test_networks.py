import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastmask.api import Run
from fastmask.inference.networks import average_states, checkpoints_of, load_members, load_soup
from fastmask.inference.options import NetworkOptions
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

CPU, DEFAULT = torch.device("cpu"), NetworkOptions()


def test_members_are_the_networks_of_the_checkpoints_of_each_fold(finished_run):
    members = load_members(finished_run, None, DEFAULT, CPU)
    assert list(members) == ["fold0", "fold1"] == list(checkpoints_of(finished_run, None, DEFAULT))
    for fold, (network,) in enumerate(members.values()):
        (file,) = finished_run.checkpoints(fold)
        weights = load_file(file)
        assert not network.training
        assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert list(load_members(finished_run, ["fold1"], DEFAULT, CPU)) == ["fold1"]


def test_a_fold_that_is_not_finished_predicts_nothing(run_copy):
    (run_copy / "fold1" / "done.json").unlink()
    with pytest.warns(FastmaskWarning, match="has finished 1 of 2 folds"):
        assert list(load_members(Run.load(run_copy), None, DEFAULT, CPU)) == ["fold0"]
    (run_copy / "fold0" / "done.json").unlink()
    with pytest.raises(UsageError, match="has not finished a fold yet"):
        load_members(Run.load(run_copy), None, DEFAULT, CPU)


def test_a_run_that_names_an_enormous_network_is_refused_before_it_is_built(run_copy, monkeypatch):
    config = (run_copy / "config.yaml").read_text()
    assert "arch: test_resnet\n" in config
    (run_copy / "config.yaml").write_text(config.replace("arch: test_resnet", "arch: eva02_enormous_patch14_clip_224"))
    monkeypatch.setattr("fastmask.inference.networks.build_network", pytest.fail)
    with pytest.raises(DataError, match=r"epoch00\d.safetensors is too short for the weights of eva02_enormous"):
        load_members(Run.load(run_copy), None, DEFAULT, CPU)


def test_a_soup_averages_parameters_and_statistics_and_keeps_the_first_counts():
    rows = [([1.0, 2.0], [0.5], 7), ([3.0, 6.0], [1.0], 9), ([5.0, 1.0], [3.0], 1)]
    names = ("weight", "running_var", "num_batches_tracked")
    states = [dict(zip(names, map(torch.tensor, row), strict=True)) for row in rows]
    soup = average_states(states)
    assert [tensor.tolist() for tensor in soup.values()] == [[3, 3], [1.5], 7]
    assert [tensor.dtype for tensor in soup.values()] == [torch.float32, torch.float32, torch.int64]
    # the states stay as they were
    assert states[0]["weight"].tolist() == [1, 2]


def test_a_soup_of_equal_states_has_the_same_bits():
    state = {"weight": torch.from_numpy(np.random.default_rng(0).normal(size=1000).astype(np.float32))}
    for count in (1, 2, 3, 7):
        assert torch.equal(average_states([state] * count)["weight"], state["weight"])


def test_the_network_of_a_soup_has_the_mean_of_the_checkpoints(two_checkpoints):
    files = two_checkpoints.checkpoints(0)
    network = load_soup(two_checkpoints, files, CPU)
    one, two = map(load_file, files)
    for name, tensor in network.state_dict().items():
        mean = (one[name].double() + two[name].double()) / 2 if tensor.is_floating_point() else one[name]
        torch.testing.assert_close(tensor, mean.to(tensor.dtype), rtol=0, atol=0)
    assert not network.training
    (two_checkpoints.checkpoints(1)[1]).unlink()
    assert len(checkpoints_of(two_checkpoints, None, NetworkOptions(soup=True))["fold0"]) == 2
    with pytest.raises(UsageError, match="keeps one checkpoint, so --soup has nothing to average; train with --top-k"):
        checkpoints_of(two_checkpoints, ["fold1"], NetworkOptions(soup=True))
