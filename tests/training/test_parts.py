"""A batch norm cannot train on one value per channel, which a part of one photo has if the features are 1 x 1."""

import itertools

import pytest
import torch

from fastmask.data.photo_dl import Share
from fastmask.system.errors import UsageError
from fastmask.training.parts import smallest_part
from fastmask.training.rehearsal import smaller_batches

# the last features of test_resnet are 1 x 1 for such photos
ONE_PIXEL = {"crop": (400, 200), "resize": (16, 8), "train_pipeline": None, "valid_pipeline": None}


def test_the_smallest_part_is_that_of_the_batches_that_are_dealt():
    """Against batches of a DataLoader, divided by `Share` and by torch's tensor_split."""
    for photos, bs, accumulate, processes in itertools.product((1, 5, 13, 26), (1, 2, 4, 32), (1, 3, 5), (1, 2, 3)):
        size = min(bs, photos)
        step = min(size * accumulate, photos)
        batches = torch.utils.data.DataLoader(range(photos), batch_size=step, drop_last=True)
        shares = [Share(n, processes).part(batch) for batch in batches for n in range(processes)]
        most = -(-step // size)
        parts = [len(part) for x in shares for part in torch.tensor(x).tensor_split(min(most, len(x)))]
        assert smallest_part(photos, bs, accumulate, processes) == min(parts)


def test_parts_by_hand():
    # 5 photos in parts of at most 2: 2, 2, 1
    assert smallest_part(5, bs=2, accumulate=4) == 1
    # a last batch of one is dropped
    assert smallest_part(13, bs=12) == 12
    assert smallest_part(100, bs=8, processes=8) == 1


@pytest.mark.parametrize(
    ("settings", "bs"), [({"bs": 1}, 2), ({"bs": 1, "accumulate": 2}, 2), ({"bs": 1, "freeze": 1}, 2)]
)
def test_a_part_of_one_photo_is_refused_before_the_training(plan_of, settings, bs):
    message = rf"test_resnet cannot train on one photo at once, .* with --bs 1 that happens; take --bs {bs}, or"
    with pytest.raises(UsageError, match=message):
        plan_of(**ONE_PIXEL, **settings)


@pytest.mark.parametrize("settings", [{"bs": 2}, {"bs": 1, "freeze": "body"}, {"bs": 1, "arch": "test_vit"}])
def test_what_can_train_does(plan_of, settings):
    learn = plan_of(**{**ONE_PIXEL, "epochs": 1, **settings}).learner(0)
    learn.fit(1)
    assert torch.stack(learn.recorder.losses).isfinite().all()


def test_the_size_that_is_named_trains_and_the_smaller_one_does_not(plan_of):
    plan = plan_of(**ONE_PIXEL, bs=2)
    assert [each.config.bs for each in smaller_batches(plan)] == [2]
    network = plan.learner(0).model.train()
    network(torch.zeros(2, 3, 16, 8))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.zeros(1, 3, 16, 8))
