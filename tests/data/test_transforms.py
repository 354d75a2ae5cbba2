import torch
from fastai.torch_core import TensorImage, to_device

from fastmask.data.augment import REPORT_STATS
from fastmask.data.transforms import NormalizeBatch, TensorPhotos


def test_normalising_can_be_undone():
    x = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    normalize = NormalizeBatch(*REPORT_STATS)
    torch.testing.assert_close(torch.Tensor(normalize.decode(normalize(TensorImage(x)))), x / 255)


def test_normalising_in_the_table_is_normalising_in_floats():
    normalize = NormalizeBatch(*REPORT_STATS)
    photos = torch.randint(0, 256, (3, 40, 20, 3), dtype=torch.uint8)
    fast = normalize(TensorImage(photos.permute(0, 3, 1, 2)))
    slow = normalize(TensorImage(photos.permute(0, 3, 1, 2).contiguous()))
    assert torch.equal(torch.Tensor(fast), torch.Tensor(slow))
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert (fast.dtype, type(fast)) == (torch.float32, TensorImage)


def test_pinned_memory_goes_to_the_device_without_waiting(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: asked.append(kwargs) or self)
    x = TensorPhotos(torch.zeros(1, 3, 2, 2))
    to_device(x, "cpu")
    monkeypatch.setattr(TensorPhotos, "is_pinned", lambda self: True)
    to_device((x,), "cpu")
    assert asked == [{"non_blocking": False}, {"non_blocking": True}]
