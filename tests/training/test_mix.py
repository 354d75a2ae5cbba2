from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fastmask.config import Config
from fastmask.data.contest import contest_heads
from fastmask.labels import soft_labels
from fastmask.model.losses import CrossEntropyLoss
from fastmask.system.errors import UsageError
from fastmask.training.mix import Mix, cut_mix, mix_callbacks, mix_up

HEADS = contest_heads()


def batch(n=64, size=(40, 20)):
    """Photos that differ by their value, and their labels."""
    torch.manual_seed(0)
    x = torch.arange(n).float()[:, None, None, None].expand(n, 3, *size).contiguous(memory_format=torch.channels_last)
    y = torch.stack([torch.randint(0, k, (n,)) for k in HEADS.sizes], 1)
    return x, y


def mixed(x, y, seed=1, **options):
    mix = Mix(HEADS, **options)
    mix.learn = SimpleNamespace(xb=(x,), yb=(y,))
    torch.manual_seed(seed)
    mix.before_batch()
    return mix.learn.xb[0], mix.learn.yb[0]


def test_mix_up_is_the_weighted_mean_worked_by_hand():
    x, other = torch.full((2, 3, 1, 1), 8.0), torch.full((2, 3, 1, 1), 4.0)
    made, shares = mix_up(x, other, torch.tensor([0.25, 1.0]))
    assert made[:, 0, 0, 0].tolist() == [7, 4]
    assert shares.tolist() == [0.25, 1]


def test_cut_mix_pastes_one_rectangle_and_tells_its_area():
    torch.manual_seed(0)
    x, other = torch.zeros(200, 3, 40, 20), torch.ones(200, 3, 40, 20)
    made, areas = cut_mix(x, other, torch.full((200,), 0.25))
    torch.testing.assert_close(made[:, 0].mean((1, 2)), areas)
    for photo in made[:, 0]:
        rows, columns = photo.any(1).nonzero().flatten(), photo.any(0).nonzero().flatten()
        assert photo[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert len(rows) <= 20
        assert len(columns) <= 10
    # half of the height and of the width, where no edge cuts it
    assert areas.max().item() == 0.25


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_labels_follow_the_pixels(options):
    x, y = batch()
    x = torch.cat([x[:, :1], x[:, :1] ** 2, x[:, :1]], 1)
    own = soft_labels(y, HEADS)
    made, labels = mixed(x, y, **options)
    means, squares = made[:, 0].double().mean((1, 2)), made[:, 1].double().mean((1, 2))
    solved = 0
    for i in (i for i in range(len(x)) if abs(means[i] - i) > 0.1):
        # (1 - s) i + s j and (1 - s) i^2 + s j^2 give j and s
        j = round(((squares[i] - i**2) / (means[i] - i) - i).item())
        share = (means[i] - i) / (j - i)
        torch.testing.assert_close(labels[i], torch.lerp(own[i], own[j], share.float()), atol=1e-3, rtol=0)
        solved += 1
    assert solved > 50


def test_the_memory_format_stays():
    x, y = batch(8)
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        assert mixed(x, y, **options)[0].is_contiguous(memory_format=torch.channels_last)


def test_the_loss_of_a_mixed_batch_is_pytorchs_of_the_mixed_targets():
    x, y = batch(8)
    _, labels = mixed(x, y, mixup=1.0)
    logits = torch.randn(8, HEADS.n_logits)
    expected = sum(F.cross_entropy(a, b) for a, b in zip(HEADS.split(logits), HEADS.split(labels), strict=True))
    torch.testing.assert_close(CrossEntropyLoss(HEADS)(logits, labels), expected)


def test_what_is_unknown_for_either_is_unknown():
    x, y = batch()
    y[::2, 1] = -1
    _, labels = mixed(x, y, mixup=1.0)
    weights = torch.stack([part.sum(1) for part in HEADS.split(labels)], 1)
    assert (weights[::2, 1] == 0).all()
    assert 0 < (weights[1::2, 1] == 0).sum() < 32
    assert weights[:, [0, 2]].flatten().tolist() == pytest.approx([1.0] * 128)


def test_the_same_seed_mixes_alike_and_a_probability_leaves_batches_as_they_are():
    x, y = batch(8)
    one, same, other = (mixed(x, y, seed, mixup=1.0, cutmix=1.0) for seed in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not one[0].equal(other[0])
    whole = [mixed(x, y, seed, mixup=1.0, probability=0.3)[0].equal(x) for seed in range(200)]
    assert sum(whole) / 200 == pytest.approx(0.7, abs=0.1)
    # labels are of one kind throughout
    assert mixed(x, y, mixup=1.0, probability=0.0)[1].equal(soft_labels(y, HEADS))


def test_both_ways_are_taken_evenly():
    x, y = batch(8)
    flat = [mixed(x, y, seed, mixup=1.0, cutmix=1.0)[0][:, 0].flatten(1).std(1).max() < 1e-4 for seed in range(200)]
    assert sum(flat) / 200 == pytest.approx(0.5, abs=0.12)


def test_there_is_no_callback_where_there_is_nothing_to_mix():
    assert mix_callbacks(HEADS, Config()) == []
    assert [type(cb) for cb in mix_callbacks(HEADS, Config(cutmix=1.0))] == [Mix]
    with pytest.raises(UsageError, match="found -1, 0, 1"):
        Mix(HEADS, mixup=-1)


def changed(x, made):
    return (x != made).flatten(1).any(1)


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_only_photos_of_the_named_classes_are_mixed(options):
    x, y = batch()
    y[::7] = -1
    old, wrong = y[:, 2] == 2, (y == torch.tensor([1, 1, 2])).all(1)
    for named, expected in (["age.60+"], old), (["incorrect female 60+"], wrong), (["age.60+", "mask.wear"], None):
        chosen = old | (y[:, 0] == 0) if expected is None else expected
        found = torch.zeros(len(x), dtype=torch.bool)
        for seed in range(20):
            made, labels = mixed(x, y, seed, classes=named, **options)
            found |= changed(x, made)
            # the others keep photo and label to the bit, whatever is unknown of the partner
            assert made[~chosen].equal(x[~chosen])
            assert labels[~chosen].equal(soft_labels(y, HEADS)[~chosen])
        assert found.equal(chosen)
        # by the class of most weight, where labels are soft, in one part or in two
        soft = 0.6 * soft_labels(y, HEADS) + 0.4 * soft_labels(y.roll(1, 0), HEADS) * (y >= 0).repeat_interleave(
            torch.tensor(HEADS.sizes), 1
        )
        for given in (soft, torch.stack([0.5 * soft, 0.5 * soft], 1)):
            again, _ = mixed(x, given, 0, classes=named, **options)
            assert again.equal(mixed(x, y, 0, classes=named, **options)[0])


def partners(x, y, count=60, **options):
    """(B, B) whether a photo was mixed with another, by mix-up of photos whose partner can be solved for."""
    squares = torch.cat([x[:, :1], x[:, :1] ** 2, x[:, :1]], 1).double()
    found = torch.zeros(len(x), len(x), dtype=torch.bool)
    for seed in range(count):
        made, _ = mixed(squares, y, seed, mixup=1.0, **options)
        means, seconds = made[:, 0, 0, 0], made[:, 1, 0, 0]
        for i in (i for i in range(len(x)) if abs(means[i] - i) > 0.1):
            found[i, round(((seconds[i] - i**2) / (means[i] - i) - i).item())] = True
    return found


def test_partners_are_of_the_same_joint_class_of_a_named_one_or_any():
    x, y = batch(24)
    y[3, 1] = -1
    joint = HEADS.joint(y)
    other = ~torch.eye(24, dtype=torch.bool)
    same = partners(x, y, partner="same")
    assert same.equal((joint[:, None] == joint) & (joint != -1) & other & same)
    assert same.any()
    named = partners(x, y, partner="age.60+", classes=["age.60+"])
    old = y[:, 2] == 2
    assert named.equal(named & old & old[:, None] & other)
    assert named[old].any(1).all()
    any_ = partners(x, y, classes=["age.60+"])
    assert any_.any(1).equal(old)
    assert any_.any(0).sum() > old.sum()
    # a photo without a partner stays as it is
    y[:, 0].clamp_(max=0)
    alone, labels = mixed(x, y, mixup=1.0, partner="incorrect female 60+", classes=["mask.wear"])
    assert alone.equal(x)
    assert labels.equal(soft_labels(y, HEADS))


def test_a_class_that_there_is_not_is_refused_before_training():
    with pytest.raises(UsageError, match="There is no class 'age.old'"):
        Mix(HEADS, mixup=1.0, partner="age.old")
