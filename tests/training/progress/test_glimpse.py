import pytest
import torch

from fastmask.training.progress.glimpse import Glimpse


def test_on_a_cpu_the_numbers_are_there_at_once():
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    glimpse = Glimpse(weights * 2)
    assert glimpse.arrived()
    assert glimpse.wait().tolist() == [2.0, 4.0]
    assert not glimpse.value.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for():
    busy = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        busy = busy @ busy.T / 8192
    glimpse = Glimpse(busy.mean())
    assert not glimpse.arrived()
    assert glimpse.wait().item() == busy.mean().item()
    assert glimpse.arrived()
