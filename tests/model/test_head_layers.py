"""Head layers: classes that merge those of another head have the sums of its probabilities."""

from __future__ import annotations

import torch

from fastmask.heads import JOINT, Head, Heads
from fastmask.model.head_layers import build_head_layers, layer_order
from fastmask.model.losses import FocalLoss

MASK, GENDER = Head("mask", ("wear", "none")), Head("gender", ("male", "female"))
AGE = Head("age", ("young", "middle", "old"), bounds=(30.0, 60.0))
JOINED = Heads([MASK, GENDER])
ONE = Heads([MASK, GENDER, Head(JOINT, tuple(JOINED.joint_names()), joint_share=1.0)])
BANDED = Heads([AGE, Head("age_bands", ("a", "b", "c", "d"), bands_of="age", finer_bounds=(20.0, 30.0, 60.0))])


def classify(heads: Heads, features: torch.Tensor) -> list[torch.Tensor]:
    """The probabilities of each head from its layer."""
    layers, logits = build_head_layers(heads, features.shape[1]), {}
    for position in layer_order(heads):
        logits[position] = layers[position](features, logits)
    return [logits[position].softmax(-1) for position in range(len(heads))]


def test_heads_of_a_joint_head_are_the_sums_of_its_probabilities():
    mask, gender, joint = classify(ONE, torch.randn(5, 7))
    table = joint.reshape(5, 2, 2)
    torch.testing.assert_close(mask, table.sum(2))
    torch.testing.assert_close(gender, table.sum(1))


def test_a_head_with_finer_bands_has_the_sums_of_theirs():
    age, bands = classify(BANDED, torch.randn(5, 7))
    torch.testing.assert_close(age, torch.stack([bands[:, :2].sum(1), bands[:, 2], bands[:, 3]], 1))


def test_a_joint_head_next_to_the_others_leaves_them_their_own_layers():
    beside = Heads([MASK, GENDER, Head(JOINT, tuple(JOINED.joint_names()), joint_share=0.5)])
    assert [beside.merges(position) for position in range(3)] == [None, None, None]
    assert beside.joined == (0, 1)
    assert beside.joint_head == 2


def test_merged_heads_have_no_loss_of_their_own():
    logits, y = torch.randn(6, ONE.n_logits), torch.tensor([[0, 1, 1], [1, 1, 3], [0, 0, 0]] * 2)
    joint = torch.nn.functional.cross_entropy(logits[:, 4:], y[:, 2])
    torch.testing.assert_close(FocalLoss(ONE, gamma=0.0)(logits, y), joint)


def test_heads_with_bands_and_a_joint_head_are_read_back():
    for heads in (ONE, BANDED):
        assert Heads.from_plain(heads.to_plain()) == heads
