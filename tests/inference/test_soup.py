import numpy as np
import torch
from safetensors.torch import load_file

from fastmask.inference.networks import load_soup
from fastmask.inference.soup import average_states


def test_parameters_and_statistics_are_averaged_and_counts_are_the_firsts():
    states = [
        {
            "weight": torch.tensor([1.0, 2.0]),
            "running_var": torch.tensor([0.5]),
            "num_batches_tracked": torch.tensor(7),
        },
        {
            "weight": torch.tensor([3.0, 6.0]),
            "running_var": torch.tensor([1.0]),
            "num_batches_tracked": torch.tensor(9),
        },
        {
            "weight": torch.tensor([5.0, 1.0]),
            "running_var": torch.tensor([3.0]),
            "num_batches_tracked": torch.tensor(1),
        },
    ]
    soup = average_states(states)
    assert soup["weight"].tolist() == [3, 3]
    assert soup["running_var"].tolist() == [1.5]
    assert soup["num_batches_tracked"].item() == 7
    assert [tensor.dtype for tensor in soup.values()] == [torch.float32, torch.float32, torch.int64]
    # what is given stays as it was
    assert states[0]["weight"].tolist() == [1, 2]


def test_equal_states_give_the_same_bits():
    state = {"weight": torch.from_numpy(np.random.default_rng(0).normal(size=1000).astype(np.float32))}
    for count in (1, 2, 3, 7):
        assert torch.equal(average_states([state] * count)["weight"], state["weight"])


def test_the_network_of_a_soup_has_the_mean_of_the_checkpoints(two_checkpoints):
    files = two_checkpoints.checkpoints(0)
    assert len(files) == 2
    network = load_soup(two_checkpoints, files, torch.device("cpu"))
    one, two = map(load_file, files)
    for name, tensor in network.state_dict().items():
        mean = (one[name].double() + two[name].double()) / 2 if tensor.is_floating_point() else one[name]
        torch.testing.assert_close(tensor, mean.to(tensor.dtype), rtol=0, atol=0)
    assert any((one[name] != two[name]).any() for name in one)
    assert not network.training
