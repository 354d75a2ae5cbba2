import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fastmask.decision.calibration import calibration_error, calibrations, reliability
from fastmask.decision.temperature import apply_temperature, fit_temperature
from fastmask.evaluation.plots import plot_reliability
from fastmask.heads import Head, Heads


def drawn(n=4000, temperature=1.0, seed=0):
    """Probabilities of a model that is overconfident by `temperature`, and labels drawn from softmax(logits)."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, 3))
    true = torch.tensor(logits).softmax(1).numpy()
    y = (true.cumsum(1) > rng.random((n, 1))).argmax(1)
    return torch.tensor(logits * temperature).softmax(1).numpy(), y


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_overconfidence(temperature):
    probabilities, y = drawn(temperature=temperature)
    assert fit_temperature(probabilities, y) == pytest.approx(temperature, rel=0.06)


def test_it_is_the_optimum_of_pytorchs_optimizer():
    probabilities, y = drawn(n=500, temperature=1.7)
    logits, labels = torch.tensor(probabilities).log(), torch.tensor(y)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(logits / scale, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(probabilities, y) == pytest.approx(scale.item(), rel=1e-3)


def test_a_temperature_is_a_softmax_of_scaled_logits_and_changes_no_answer():
    logits = np.array([[2.0, 0.5, -1.0], [0.0, 0.1, 0.0]])
    scaled = apply_temperature(torch.tensor(logits).softmax(1).numpy(), 2.0)
    assert scaled == pytest.approx(torch.tensor(logits / 2).softmax(1).numpy())
    assert scaled.argmax(1).tolist() == [0, 1]


def test_unknown_labels_are_left_out():
    probabilities, y = drawn(n=600)
    unknown = np.arange(600) % 3 == 0
    known = fit_temperature(probabilities[~unknown], y[~unknown])
    assert fit_temperature(probabilities, np.where(unknown, -1, y)) == known
    assert fit_temperature(probabilities, np.full(600, -1)) == 1
    assert np.isnan(calibration_error(probabilities, np.full(600, -1)))


def test_a_probability_of_0_stays_finite():
    probabilities, y = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]], np.float32), np.array([0, 1, 0])
    assert np.isfinite(fit_temperature(probabilities, y))
    assert np.isfinite(apply_temperature(probabilities, 20)).all()


def test_the_calibration_error_worked_by_hand():
    # two bins of five photos: 0.9 sure and right 3 in 5; 0.6 sure and right 4 in 5: (0.3 + 0.2) / 2
    sure = np.repeat([0.9, 0.6], 5)
    right = np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 0])
    probabilities = np.stack([sure, 1 - sure], axis=1)
    assert calibration_error(probabilities, 1 - right) == pytest.approx(0.25)
    table = reliability(probabilities, 1 - right)
    assert table["n"].tolist() == [5, 5]
    assert table["confidence"].tolist() == pytest.approx([0.6, 0.9])
    assert table["accuracy"].tolist() == pytest.approx([0.8, 0.6])
    assert (table["low"] < table["confidence"]).all()
    assert (table["confidence"] <= table["high"]).all()


def test_calibrated_probabilities_have_a_smaller_error(tmp_path):
    probabilities, y = drawn(temperature=2.5)
    cooled = apply_temperature(probabilities, fit_temperature(probabilities, y))
    assert calibration_error(cooled, y) < 0.03 < 0.1 < calibration_error(probabilities, y)
    both = np.concatenate([probabilities, probabilities], axis=1)
    cooled = np.concatenate([apply_temperature(probabilities, 2.5), probabilities], axis=1)
    heads = Heads([Head("one", ("a", "b", "c")), Head("two", ("d", "e", "f"))])
    each = calibrations(heads, both, cooled, np.stack([y, y], axis=1))
    assert each["one"].error_after < each["two"].error_after == each["two"].error_before
    plot_reliability(each, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
