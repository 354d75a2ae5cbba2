import pytest
import torch
import torch.nn.functional as F

from fastmask.heads import Head, Heads
from fastmask.labels import hard_labels, join_parts, mix_labels, soft_labels

HEADS = Heads([Head("shape", ("round", "square", "long")), Head("colour", ("red", "blue"))])


def test_class_numbers_become_one_hot_and_unknown_ones_0():
    y = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    soft = soft_labels(y, HEADS)
    assert soft[0].tolist() == [*F.one_hot(torch.tensor(0), 3), *F.one_hot(torch.tensor(1), 2)]
    assert soft[1].tolist() == [0, 0, 1, 0, 0]
    assert soft[2].tolist() == [0] * 5
    assert soft_labels(soft, HEADS) is soft


def test_an_invalid_class_number_raises():
    with pytest.raises(RuntimeError):
        soft_labels(torch.tensor([[3, 0]]), HEADS)


def test_a_mixture_worked_by_hand():
    own, other = soft_labels(torch.tensor([[0, 1], [1, 0]]), HEADS), soft_labels(torch.tensor([[2, 1], [1, 1]]), HEADS)
    made = mix_labels(own, other, torch.tensor([0.25, 0.0]), HEADS)
    assert made.tolist() == [[0.75, 0, 0.25, 0, 1], [0, 1, 0, 1, 0]]


def test_a_head_that_is_unknown_for_either_is_unknown():
    own, other = (
        soft_labels(torch.tensor([[0, -1], [0, 1]]), HEADS),
        soft_labels(torch.tensor([[-1, 1], [2, 1]]), HEADS),
    )
    made = mix_labels(own, other, torch.tensor([0.5, 0.5]), HEADS)
    assert made.tolist() == [[0] * 5, [0.5, 0, 0.5, 0, 1]]


def test_weights_are_mixed_with_the_classes():
    own, other = torch.tensor([[2.0, 0, 0, 0, 0]]), torch.tensor([[0, 0.5, 0, 0, 0]])
    assert mix_labels(own, other, torch.tensor([0.5]), HEADS).tolist() == [[1, 0.25, 0, 0, 0]]


def test_two_parts_are_mixed_each_and_unknown_together():
    own = torch.tensor([[[0.5, 0, 0, 0, 0], [0.5, 0, 0, 0, 0]], [[0.0] * 5, [0.25, 0.75, 0, 0, 1]]])
    other = own.flip(0)
    made = mix_labels(own, other, torch.tensor([0.25, 0.5]), HEADS)
    assert made[0].tolist() == [[0.375, 0, 0, 0, 0], [0.4375, 0.1875, 0, 0, 0]]
    assert join_parts(made).equal(mix_labels(join_parts(own), join_parts(other), torch.tensor([0.25, 0.5]), HEADS))
    assert join_parts(own[0]).equal(own[0])


def test_soft_labels_become_the_class_of_most_weight():
    y = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    assert hard_labels(y, HEADS) is y
    soft = soft_labels(y, HEADS)
    assert hard_labels(soft, HEADS).equal(y)
    assert hard_labels(soft, HEADS).tolist() == HEADS.harden(soft.numpy()).tolist()
    assert hard_labels(torch.stack([0.2 * soft, 0.4 * soft], 1), HEADS).equal(y)
    assert hard_labels(torch.tensor([[0.2, 0.5, 0.3, 0.9, 0.1]]), HEADS).tolist() == [[1, 0]]
