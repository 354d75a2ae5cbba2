import math
from copy import deepcopy
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from fastmask.config import HeadLossName, HeadOptions
from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.labels import soft_labels
from fastmask.model.losses import HEAD_LOSSES, CrossEntropyLoss, FocalLoss, coral, focal, soft_f1
from fastmask.system.errors import UsageError

HEADS = contest_heads()
ONE = Heads([Head("one", ("a", "b", "c"))])


def batch(n=16, seed=0, unknown=0.0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, HEADS.n_logits, generator=g).mul(2).requires_grad_()
    y = torch.stack([torch.randint(0, k, (n,), generator=g) for k in HEADS.sizes], dim=1)
    return logits, y.masked_fill(torch.rand(n, len(HEADS), generator=g) < unknown, -1)


def reference(logits, y, weights=(None, None, None), **options):
    """The sum over heads of PyTorch's own cross-entropy."""
    parts = zip(HEADS.split(logits), y.T, weights, strict=True)
    return sum(F.cross_entropy(part, row, weight=w, ignore_index=-1, **options) for part, row, w in parts)


ALPHA = [[1.0, 2.0, 3.0], None, [0.5, 1.0, 4.0]]
WEIGHTS = [None if row is None else torch.tensor(row) for row in ALPHA]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("loss", [CrossEntropyLoss, lambda *a, **k: FocalLoss(*a, gamma=0, **k)])
def test_gamma_0_is_the_cross_entropy_of_pytorch(loss, alpha, options, reduction):
    logits, y = batch(unknown=0.3)
    found = loss(HEADS, alpha=alpha, reduction=reduction, **options)(logits, y)
    expected = reference(logits, y, WEIGHTS if alpha else (None,) * 3, reduction=reduction, **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_case_worked_by_hand():
    # softmax of (log 2, log 1, log 1) is (1/2, 1/4, 1/4)
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [math.log(2), 0.0, 0.0]])
    y = torch.tensor([[0], [1]])
    by_hand = [0.5**2 * math.log(2), 0.75**2 * math.log(4)]
    torch.testing.assert_close(FocalLoss(ONE, gamma=2, reduction="none")(logits, y), torch.tensor(by_hand))
    torch.testing.assert_close(FocalLoss(ONE, gamma=2)(logits, y), torch.tensor(sum(by_hand) / 2))
    weighted = FocalLoss(ONE, gamma=2, alpha=[[1.0, 3.0, 1.0]])(logits, y)
    torch.testing.assert_close(weighted, torch.tensor((by_hand[0] + 3 * by_hand[1]) / 4))


def test_head_weights_weigh_heads():
    heads = Heads([Head("a", ("0", "1"), weight=2.0), Head("b", ("0", "1"), weight=0.5)])
    logits, y = torch.randn(4, 4), torch.tensor([[0, 1]] * 4)
    a, b = (F.cross_entropy(logits[:, s], y[:, i]) for i, s in enumerate((slice(0, 2), slice(2, 4))))
    torch.testing.assert_close(CrossEntropyLoss(heads)(logits, y), 2 * a + 0.5 * b)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_an_unknown_label_removes_the_photo_from_its_head(gamma):
    logits, y = batch(unknown=0.4)
    expected = sum(
        FocalLoss(Heads([h]), gamma)(p[y[:, i] >= 0], y[y[:, i] >= 0, i : i + 1])
        for i, (h, p) in enumerate(zip(HEADS, HEADS.split(logits), strict=True))
    )
    torch.testing.assert_close(FocalLoss(HEADS, gamma)(logits, y), expected)


def test_a_head_without_a_label_adds_exactly_nothing_and_keeps_a_gradient():
    logits, y = batch()
    y[:, 1] = -1
    loss = FocalLoss(HEADS)
    gender_free = FocalLoss(Heads([HEADS["mask"], HEADS["age"]]))
    both = torch.cat([HEADS.split(logits)[0], HEADS.split(logits)[2]], dim=1)
    assert loss(logits, y) == gender_free(both, y[:, [0, 2]])
    y[:] = -1
    nothing = loss(logits, y)
    assert nothing == 0
    nothing.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_certain_prediction_has_a_finite_gradient(gamma):
    logits = torch.tensor([[200.0, -200, 0], [-200, 200, 0]], requires_grad=True)
    loss = FocalLoss(ONE, gamma)(logits, torch.tensor([[0], [0]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_gradients_equal_finite_differences():
    logits = torch.randn(5, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, -1, 1])

    def loss(x):
        return focal(x.to(torch.float32), soft_labels(y[:, None], ONE)).sum().double()

    x = logits.clone().requires_grad_()
    loss(x).backward()
    for i, j in ((0, 0), (1, 2), (3, 1)):
        step = torch.zeros_like(logits)
        step[i, j] = 1e-2
        assert x.grad[i, j].item() == pytest.approx(
            ((loss(logits + step) - loss(logits - step)) / 2e-2).item(), abs=1e-3
        )


def test_fastai_finds_probabilities_and_classes():
    logits, _ = batch()
    loss = FocalLoss(HEADS)
    probabilities = loss.activation(logits)
    torch.testing.assert_close(probabilities[:, 3:5], logits[:, 3:5].softmax(1))
    assert loss.decodes(probabilities).equal(loss.decodes(logits))
    assert loss.decodes(logits)[:, 2].equal(logits[:, 5:].argmax(1))


def test_invalid_arguments_are_refused():
    with pytest.raises(UsageError, match="gamma is -1"):
        FocalLoss(HEADS, gamma=-1)
    with pytest.raises(UsageError, match="temperature is 0"):
        FocalLoss(HEADS, temperature=0)
    with pytest.raises(UsageError, match="of head age has 2 numbers for 3 classes"):
        FocalLoss(HEADS, alpha=[None, None, [1.0, 2.0]])


YEARS = Heads([Head("age", ("young", "old")), Head("age_number", tuple(map(str, range(18, 61))), spread=2.0)])


def test_a_number_has_the_kl_divergence_from_a_normal_distribution_around_it():
    logits, y = torch.randn(6, 45, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 0], [1, 42]] * 3)
    normal = torch.distributions.Normal(y[:, 1:].double(), 2.0).log_prob(torch.arange(43)).exp()
    target = normal / normal.sum(1, keepdim=True)
    log_p = logits[:, 2:].double().log_softmax(1)
    each = torch.distributions.kl_divergence(
        torch.distributions.Categorical(target), torch.distributions.Categorical(logits=log_p)
    )
    bands = F.cross_entropy(logits[:, :2], y[:, 0], reduction="none")
    loss = CrossEntropyLoss(YEARS, reduction="none")
    torch.testing.assert_close(loss(logits, y), bands + each.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(CrossEntropyLoss(YEARS)(logits, y), (bands + each.float()).mean(), rtol=1e-4, atol=1e-5)


def test_the_nearer_a_number_the_less_it_costs():
    cost = [CrossEntropyLoss(YEARS)(torch.eye(45)[None, 2 + said] * 9, torch.tensor([[-1, 20]])) for said in range(43)]
    assert torch.stack(cost).argmin() == 20
    assert cost[21] < cost[24] < cost[35]


def test_an_unknown_number_has_loss_0_and_takes_no_alpha():
    logits = torch.randn(4, 45, requires_grad=True)
    loss = FocalLoss(YEARS)(logits, torch.full((4, 2), -1))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()
    with pytest.raises(UsageError, match="age_number is a distribution"):
        FocalLoss(YEARS, alpha=[None, [1.0] * 43])


def test_states_of_earlier_versions_are_loaded():
    loss = FocalLoss(YEARS, alpha=[[1.0, 2.0], None])
    alpha, targets = torch.tensor([3.0, 4.0]), torch.rand(43, 43)
    loss.load_state_dict({"alpha0": alpha, "targets1": targets})
    assert loss.losses[0].alpha.equal(alpha)
    assert loss.losses[1].targets.equal(targets)
    # as a part of another module, and copied
    both = torch.nn.ModuleList([deepcopy(loss)])
    both.load_state_dict({"0.alpha0": alpha + 1, "0.targets1": targets})
    assert both[0].losses[0].alpha.equal(alpha + 1)


def test_losses_of_learners_that_earlier_versions_exported_are_loaded():
    loss = FocalLoss(YEARS, alpha=[[1.0, 2.0], None], label_smoothing=0.1, f1_share=0.5)
    state = {name: value for name, value in vars(loss).items() if name != "_load_state_dict_pre_hooks"}
    state |= {"label_smoothing": 0.1, "f1_share": 0.5, "_modules": {}}
    state["_buffers"] = {"alpha0": torch.tensor([1.0, 2.0]), "alpha1": None, "targets1": torch.zeros(43, 43)}
    loaded = FocalLoss.__new__(FocalLoss)
    loaded.__setstate__(state)
    logits, y = torch.randn(6, 45), torch.tensor([[0, 1], [1, 2], [1, 40], [0, -1], [-1, 7], [0, 0]])
    assert loaded(logits, y) == loss(logits, y)
    loaded.load_state_dict({"alpha0": torch.ones(2), "targets1": torch.rand(43, 43)})


def soft(y, weight=1.0):
    """One-hot rows by PyTorch's own function, 0 where unknown."""
    return torch.cat(
        [F.one_hot(y[:, i].clamp(min=0), k) * (y[:, i : i + 1] >= 0) * weight for i, k in enumerate(HEADS.sizes)], 1
    ).float()


def test_class_numbers_are_soft_labels_with_one_class():
    logits, y = batch(unknown=0.3)
    assert soft_labels(y, HEADS).equal(soft(y))
    for gamma in (0, 2):
        assert FocalLoss(HEADS, gamma)(logits, soft(y)) == FocalLoss(HEADS, gamma)(logits, y)


def mixed_labels(y, share=0.7):
    return (1 - share) * soft(y) + share * soft(y.roll(1, 0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_soft_labels_give_the_cross_entropy_of_pytorch(alpha, smoothing):
    """PyTorch's sum, over the photos as there, or with alpha over the alphas of the labels as for class numbers."""
    logits, y = batch()
    labels = mixed_labels(y)
    expected = 0
    for p, q, w in zip(HEADS.split(logits), HEADS.split(labels), WEIGHTS if alpha else [None] * 3, strict=True):
        cost = F.cross_entropy(p, q, weight=w, label_smoothing=smoothing, reduction="sum")
        expected += cost / (len(q) if w is None else (q * w).sum())
    found = CrossEntropyLoss(HEADS, alpha, label_smoothing=smoothing)(logits, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def minimize(loss, labels, steps=600):
    """The probabilities of free logits at the minimum of their loss."""
    logits = torch.zeros(len(labels), labels.shape[-1], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(-1)


SOFT = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.2, 0.3], [1 / 3, 1 / 3, 1 / 3], [0.45, 0.05, 0.0]])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [None, [1.0, 3.0, 0.5]])
def test_the_minimum_is_at_the_soft_label(gamma, alpha):
    """With alpha at label x alpha, where PyTorch's weighted cross-entropy has its minimum."""
    expected = SOFT * torch.tensor(alpha or [1.0] * 3)
    expected = expected / expected.sum(1, keepdim=True)
    loss = FocalLoss(ONE, gamma, alpha and [alpha], "none")
    found = minimize(lambda *both: loss(*both).sum(), SOFT)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    lowest = loss(expected.clamp(min=1e-30).log(), SOFT)
    for other in torch.randn(200, *SOFT.shape, generator=torch.Generator().manual_seed(1)) * 3:
        assert (loss(other, SOFT) > lowest).all()


def test_a_factor_for_each_class_has_its_minimum_elsewhere():
    """The figure in the docstring of `focal`: why the factor is one for all classes."""
    p = torch.linspace(0.5, 0.999, 5000, dtype=torch.float64)
    each = -0.9 * (1 - p) ** 2 * p.log() - 0.1 * p**2 * (1 - p).log()
    assert p[each.argmin()].item() == pytest.approx(0.69, abs=0.005)
    two = Heads([Head("two", ("yes", "no"))])
    logits = torch.stack([p, 1 - p], 1).log()
    ours = FocalLoss(two, 2, reduction="none")(logits, torch.tensor([[0.9, 0.1]]).expand(5000, 2))
    assert p[ours.argmin()].item() == pytest.approx(0.9, abs=0.001)


def test_focal_losses_of_soft_labels_worked_by_hand():
    # p is (1/2, 1/4, 1/4), half the sum of |q - p| 0.4 and 0.25
    p = torch.tensor([[0.5, 0.25, 0.25]])
    for q, variation in (([0.9, 0.1, 0.0], 0.4), ([0.25, 0.5, 0.25], 0.25)):
        cost = -sum(a * math.log(b) for a, b in zip(q, p[0].tolist(), strict=True))
        found = FocalLoss(ONE, gamma=2)(p.log(), torch.tensor([q]))
        assert found.item() == pytest.approx(variation**2 * cost, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
def test_two_classes_have_the_quality_focal_loss(gamma):
    """Li et al. 2020, equation 4: |y - s|^gamma of the binary cross-entropy of a probability s and a label y."""
    two = Heads([Head("two", ("no", "yes"))])
    g = torch.Generator().manual_seed(0)
    y, logits = torch.rand(64, generator=g), torch.randn(64, 2, generator=g)
    s = logits.softmax(1)[:, 1]
    expected = (y - s).abs() ** gamma * F.binary_cross_entropy(s, y, reduction="none")
    found = FocalLoss(two, gamma, reduction="none")(logits, torch.stack([1 - y, y], 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_at_the_soft_label_are_finite(gamma):
    labels = torch.cat([SOFT, torch.zeros(1, 3)])
    logits = labels.clamp(min=1e-30).log().requires_grad_()
    loss = FocalLoss(ONE, gamma)(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad[-1] == 0).all()
    # below 1 the loss has a cusp at the label, as the root of a distance has
    if gamma != 0.5:
        torch.testing.assert_close(logits.grad, torch.zeros(5, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.7])
@pytest.mark.parametrize("alpha", [None, [1.0, 3.0, 0.5]])
def test_class_numbers_have_the_focal_loss_of_lin_bit_for_bit(gamma, alpha):
    g = torch.Generator().manual_seed(5)
    y, start = torch.randint(0, 3, (500,), generator=g), torch.randn(500, 3, generator=g) * 8
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    found = FocalLoss(ONE, gamma, alpha and [alpha], "sum")(ours, y[:, None])
    log_p = theirs.log_softmax(1).gather(1, y[:, None]).squeeze(1)
    each = -((-torch.expm1(log_p)).clamp(min=1e-12) ** gamma) * log_p
    expected = (each if alpha is None else torch.tensor(alpha)[y] * each).sum()
    assert found == expected
    found.backward()
    expected.backward()
    assert ours.grad.equal(theirs.grad)


def test_a_label_of_half_the_weight_counts_half_in_the_mean():
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [math.log(2), 0.0, 0.0]])
    labels = torch.tensor([[1.0, 0, 0], [0, 0.5, 0]])
    expected = (math.log(2) + 0.5 * math.log(4)) / 1.5
    torch.testing.assert_close(CrossEntropyLoss(ONE)(logits, labels), torch.tensor(expected))


def test_label_smoothing_does_not_apply_to_unknown_labels_and_distributions():
    logits, y = batch(unknown=0.4)
    each = CrossEntropyLoss(HEADS, reduction="none", label_smoothing=0.1)(logits, torch.full_like(y, -1))
    assert (each == 0).all()
    logits, y = torch.randn(6, 45), torch.tensor([[-1, 3], [-1, 42]] * 3)
    assert CrossEntropyLoss(YEARS, label_smoothing=0.3)(logits, y) == CrossEntropyLoss(YEARS)(logits, y)


def test_soft_f1_of_certain_predictions_is_1_minus_macro_f1():
    g = torch.Generator().manual_seed(1)
    said, true = torch.randint(0, 3, (50,), generator=g), torch.randint(0, 3, (50,), generator=g)
    found = soft_f1(F.one_hot(said, 3) * 100.0, F.one_hot(true, 3).float())
    assert found.item() == pytest.approx(1 - f1_score(true, said, average="macro"), abs=1e-6)
    # a class that the batch's labels lack is not counted, wrong answers of it are
    true = true.clamp(max=1)
    found = soft_f1(F.one_hot(said, 3) * 100.0, F.one_hot(true, 3).float())
    assert found.item() == pytest.approx(1 - f1_score(true, said, average="macro", labels=[0, 1]), abs=1e-6)


def test_soft_f1_leaves_out_unknown_labels_and_a_head_without_any():
    logits, y = batch(unknown=0.4)
    known = y[:, 0] >= 0
    torch.testing.assert_close(soft_f1(logits[:, :3], soft(y)[:, :3]), soft_f1(logits[known, :3], soft(y)[known, :3]))
    nothing = FocalLoss(HEADS, f1_share=1.0)(logits, torch.full_like(y, -1))
    assert nothing == 0
    nothing.backward()
    assert (logits.grad == 0).all()


def test_the_share_of_soft_f1_mixes_it_with_the_focal_loss():
    logits, y = batch()
    f1 = sum(soft_f1(p, t) for p, t in zip(HEADS.split(logits), HEADS.split(soft(y)), strict=True))
    torch.testing.assert_close(FocalLoss(HEADS, f1_share=1.0)(logits, y), f1)
    mixed = FocalLoss(HEADS, f1_share=0.25)(logits, y)
    torch.testing.assert_close(mixed, 0.75 * FocalLoss(HEADS)(logits, y) + 0.25 * f1)
    with pytest.raises(UsageError, match="share of soft F1 is 2"):
        FocalLoss(HEADS, f1_share=2)


def test_a_mixed_number_is_learned_as_the_mixture_of_both_distributions():
    logits = torch.randn(1, 45, generator=torch.Generator().manual_seed(0))
    two = [torch.distributions.Normal(float(c), 2.0).log_prob(torch.arange(43).double()).softmax(0) for c in (3, 30)]
    target = torch.distributions.Categorical(0.25 * two[0] + 0.75 * two[1])
    log_p = torch.distributions.Categorical(logits=logits[0, 2:].double())
    labels = torch.zeros(1, 45)
    labels[0, 2 + 3], labels[0, 2 + 30] = 0.25, 0.75
    expected = torch.distributions.kl_divergence(target, log_p).float()
    torch.testing.assert_close(FocalLoss(YEARS)(logits, labels), expected, rtol=1e-4, atol=1e-5)
    # half the weight, half the sum; the mean is the same
    torch.testing.assert_close(
        FocalLoss(YEARS, reduction="sum")(logits, labels / 2), expected / 2, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(FocalLoss(YEARS)(logits, labels / 2), expected, rtol=1e-4, atol=1e-5)


def test_soft_f1_uses_labels_without_smoothing():
    logits, y = torch.eye(3)[[0, 1, 0, 1]] * 100, torch.tensor([[0], [1], [0], [1]])
    # class 2 is in no label, and all answers are right
    assert FocalLoss(ONE, f1_share=1.0, label_smoothing=0.1)(logits, y).item() == pytest.approx(0, abs=1e-6)


def test_class_weights_weigh_each_class_of_a_soft_label():
    logits, labels = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.tensor([[0.5, 0.5, 0]])
    # 1 x 0.5 x log 2 + 3 x 0.5 x log 4, over 0.5 + 1.5
    expected = (0.5 * math.log(2) + 1.5 * math.log(4)) / 2
    torch.testing.assert_close(CrossEntropyLoss(ONE, [[1.0, 3.0, 1.0]])(logits, labels), torch.tensor(expected))


def test_smoothed_labels_of_classes_without_a_weight_cost_nothing_alone():
    loss = CrossEntropyLoss(ONE, [[0.0, 1.0, 1.0]], label_smoothing=0.1)
    logits = torch.randn(2, 3, requires_grad=True)
    nothing = loss(logits, torch.tensor([[0], [0]]))
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()


def in_parts(own, taught, share):
    return torch.stack([(1 - share) * own, share * taught], 1)


def test_a_teacher_at_a_temperature_costs_as_in_hinton():
    """(1 - w) CE(own label, student) + w T^2 KL(teacher at T, student at T), by PyTorch's functions."""
    logits, y = batch()
    teacher = torch.randn(16, HEADS.n_logits, generator=torch.Generator().manual_seed(3)) * 2
    probabilities = torch.cat([part.softmax(1) for part in HEADS.split(teacher)], 1)
    expected = 0.3 * reference(logits, y)
    for p, q in zip(HEADS.split(logits), HEADS.split(teacher), strict=True):
        student, theirs = (p / 4).log_softmax(1), (q / 4).log_softmax(1)
        expected += 0.7 * 16 * F.kl_div(student, theirs, log_target=True, reduction="batchmean")
    labels = in_parts(soft(y), probabilities, 0.7)
    torch.testing.assert_close(CrossEntropyLoss(HEADS, temperature=4.0)(logits, labels), expected)
    # gamma is of the own labels
    expected += 0.3 * (FocalLoss(HEADS)(logits, y) - reference(logits, y))
    torch.testing.assert_close(FocalLoss(HEADS, temperature=4.0)(logits, labels), expected)


@pytest.mark.parametrize("temperature", [pytest.param(0.5, marks=pytest.mark.slow), 4.0])
def test_a_student_at_a_temperature_ends_with_the_probabilities_of_its_teacher(temperature):
    teacher = torch.tensor([[0.98, 0.015, 0.005], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    loss = FocalLoss(ONE, label_smoothing=0.1, temperature=temperature)
    found = minimize(loss, in_parts(torch.zeros(3, 3), teacher, 1.0), steps=1500)
    torch.testing.assert_close(found, teacher, atol=1e-3, rtol=0)
    # with alpha at probabilities x alpha, as at temperature 1
    loss = FocalLoss(ONE, alpha=[[1.0, 3.0, 0.5]], temperature=temperature)
    expected = teacher * torch.tensor([1.0, 3.0, 0.5])
    found = minimize(loss, in_parts(torch.zeros(3, 3), teacher, 1.0), steps=1500)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True), atol=3e-3, rtol=0)


def test_labels_in_two_parts_without_a_temperature_are_cross_entropys_of_their_sum():
    logits, y = batch()
    taught = mixed_labels(y)
    together = 0.3 * soft(y) + 0.7 * taught
    entropy = -torch.xlogy(taught, taught).sum() * 0.7
    found = CrossEntropyLoss(HEADS, reduction="sum")(logits, in_parts(soft(y), taught, 0.7))
    torch.testing.assert_close(found + entropy, CrossEntropyLoss(HEADS, reduction="sum")(logits, together))
    f1 = FocalLoss(HEADS, f1_share=1.0, temperature=4.0)
    assert f1(logits, in_parts(soft(y), taught, 0.7)) == f1(logits, together)


def test_a_distribution_has_no_part_of_a_teacher():
    logits, y = torch.randn(6, 45), torch.tensor([[0, 3], [1, 42]] * 3)
    labels = soft_labels(y, YEARS)
    bands, years = labels.split([2, 43], dim=1)
    parts = torch.stack([torch.cat([bands * 0, years], 1), torch.cat([bands, years * 0], 1)], 1)
    found = CrossEntropyLoss(YEARS, temperature=1.0)(logits, parts)
    torch.testing.assert_close(found, CrossEntropyLoss(YEARS)(logits, labels))


# --- losses of single heads -----------------------------------------------------------------------------------------


def ordinal(score, thresholds):
    """(B, K) log-probabilities of a cumulative link model in float64, as spacecutter computes them."""
    below = torch.sigmoid(thresholds[None] - score[:, None])
    return torch.cat([below[:, :1], below.diff(dim=1), 1 - below[:, -1:]], dim=1).log()


SCORE = torch.tensor([-1.5, 0.2, 0.4, 2.0, 3.0], dtype=torch.float64)
THRESHOLDS = torch.tensor([-0.5, 1.5], dtype=torch.float64)
GRADES = torch.tensor([0, 2, 1, 1, 2])


def test_coral_is_the_binary_cross_entropy_of_each_threshold():
    levels = torch.tensor([[grade > k for k in range(2)] for grade in GRADES.tolist()]).double()
    of_levels = SCORE[:, None] - THRESHOLDS[None]
    expected = F.binary_cross_entropy_with_logits(of_levels, levels, reduction="none").sum(1)
    # coral-pytorch's coral_loss
    log_p = F.logsigmoid(of_levels)
    torch.testing.assert_close(expected, -(log_p * levels + (log_p - of_levels) * (1 - levels)).sum(1))
    found = coral(ordinal(SCORE, THRESHOLDS), F.one_hot(GRADES, 3).float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_coral_of_soft_labels_has_soft_levels():
    labels = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    of_levels = SCORE[:1, None] - THRESHOLDS[None]
    expected = F.binary_cross_entropy_with_logits(of_levels, torch.tensor([[0.8, 0.5]]).double(), reduction="none")
    found = coral(ordinal(SCORE[:1], THRESHOLDS), labels)
    torch.testing.assert_close(found.float(), expected.sum(1).float())
    torch.testing.assert_close(coral(ordinal(SCORE[:1], THRESHOLDS), 3 * labels), 3 * found)


def test_cumulative_is_the_negative_log_likelihood_of_its_layer():
    loss = FocalLoss(ONE, reduction="none", per_head={"one": HeadOptions(loss="cumulative")})
    log_p = ordinal(SCORE, THRESHOLDS).float()
    torch.testing.assert_close(loss(log_p, GRADES[:, None]), F.nll_loss(log_p, GRADES, reduction="none"))


def test_each_head_has_its_own_loss():
    logits, y = batch(unknown=0.3)
    options = {
        "mask": HeadOptions(loss="ce"),
        "gender": HeadOptions(gamma=1, label_smoothing=0.2),
        "age": HeadOptions(f1_share=0.25),
    }
    found = FocalLoss(HEADS, gamma=3, alpha=ALPHA, label_smoothing=0.1, per_head=options)(logits, y)
    shared = {"gamma": 3, "label_smoothing": 0.1}
    own = [{**shared, "gamma": 0}, {"gamma": 1, "label_smoothing": 0.2}, {**shared, "f1_share": 0.25}]
    parts = zip(HEADS, HEADS.split(logits), y.T, ALPHA, own, strict=True)
    expected = sum(FocalLoss(Heads([h]), alpha=[row], **each)(p, c[:, None]) for h, p, c, row, each in parts)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UsageError, match="per_head names the head 'ages'"):
        FocalLoss(HEADS, per_head={"ages": HeadOptions()})


@pytest.mark.parametrize("name", get_args(HeadLossName))
def test_a_head_loss_treats_labels_as_the_others_do(name):
    assert name in HEAD_LOSSES
    logits, y = batch(unknown=0.3)
    loss = FocalLoss(HEADS, alpha=ALPHA, label_smoothing=0.1, per_head={"age": HeadOptions(loss=name)})
    # class numbers are soft labels with one class
    torch.testing.assert_close(loss(logits, soft(y)), loss(logits, y))
    # an unknown label takes a photo out
    part, known = HEADS.split(logits)[2], y[:, 2] >= 0
    alone = FocalLoss(
        Heads([HEADS["age"]]), alpha=ALPHA[2:], label_smoothing=0.1, per_head={"age": HeadOptions(loss=name)}
    )
    torch.testing.assert_close(alone(part, y[:, 2:]), alone(part[known], y[known, 2:]))
    # the mean is by the weights of the labels
    each = deepcopy(alone)
    each.reduction = "none"
    losses, weights = each(part, y[:, 2:]), WEIGHTS[2][y[:, 2].clamp(min=0)] * known
    torch.testing.assert_close(alone(part, y[:, 2:]), losses.sum() / weights.sum())
    nothing = alone(part, torch.full_like(y[:, 2:], -1))
    assert nothing == 0
    nothing.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", get_args(HeadLossName))
def test_a_head_loss_is_least_at_the_labels(name):
    labels = torch.tensor([[0.2, 0.5, 0.3]])
    loss = FocalLoss(ONE, per_head={"one": HeadOptions(loss=name)})
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(logits, labels)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(1), labels, rtol=0, atol=0.03)


def test_a_head_that_merges_another_s_classes_has_the_loss_of_the_other():
    age = Head("age", ("young", "middle", "old"), bounds=(30.0, 60.0))
    bands = Head("age_bands", ("a", "b", "c", "d"), bands_of="age", finer_bounds=(20.0, 30.0, 60.0))
    heads, options = Heads([age, bands]), {"age_bands": HeadOptions(loss="coral")}
    log_p = torch.randn(2, 4).log_softmax(1)
    merged = torch.stack([log_p[:, :2].logsumexp(1), log_p[:, 2], log_p[:, 3]], 1)
    # of the first photo the band is known, of the second only which of the merged ones it is
    loss = FocalLoss(heads, reduction="none", per_head=options)
    found = loss(torch.cat([merged, log_p], 1), torch.tensor([[0, 1], [2, -1]]))
    expected = torch.stack([coral(log_p[:1], torch.eye(4)[[1]])[0], coral(merged[1:], torch.eye(3)[[2]])[0]])
    torch.testing.assert_close(found, expected)
