"""Ensembles of runs with a joint head: joint probabilities are blended, compared with sums by numpy."""

import numpy as np
import pandas as pd
import pytest

from fastmask.data.contest import contest_heads
from fastmask.decision.temperature import apply_temperature
from fastmask.heads import JOINT, Head, Heads
from fastmask.inference.blend import MEAN, VOTE, fit_blend, widen
from fastmask.inference.submission import read_form
from fastmask.system.errors import UsageError

THREE = contest_heads()
ONE = Heads([*THREE, Head(JOINT, tuple(THREE.joint_names()), joint_share=1.0)])
HALF = Heads([*THREE, Head(JOINT, tuple(THREE.joint_names()), joint_share=0.25)])


@pytest.fixture(scope="module")
def probabilities(guess):
    """(420, ...) of a run of one head, one of three heads and one of both, and the labels of their heads."""
    y = np.random.default_rng(0).integers(0, [3, 2, 3], (420, 3))
    full = np.column_stack([y, THREE.joint(y)])
    return [guess(full, 0, heads=ONE), guess(y, 1), guess(full, 2, heads=HALF)], full


def joints(members):
    """The (members, 420, 18) joint probabilities by hand."""
    products = [np.einsum("ni,nj,nk->nijk", p[:, :3], p[:, 3:5], p[:, 5:8]).reshape(len(p), 18) for p in members]
    one, _, half = members
    return np.stack([one[:, 8:], products[1], 0.25 * half[:, 8:] + 0.75 * products[2]])


@pytest.mark.parametrize("how", [MEAN, VOTE, "oof"])
def test_joint_probabilities_are_blended_and_heads_are_their_sums(probabilities, how):
    members, y = probabilities
    wide = [widen(ONE, own, p) for own, p in zip((ONE, THREE, HALF), members, strict=True)]
    blend = fit_blend(how, ONE, wide, y)
    mixed, each = blend.mix(wide), joints(members)
    if how == VOTE:
        shares = np.eye(18)[each.argmax(2)].mean(0)
        expected = (shares + each.mean(0) / 1000) / 1.001
    else:
        mixture = blend.mixtures[JOINT]
        temperatures = np.ones(3) if how == MEAN else mixture.temperatures
        softened = [apply_temperature(p, t) for p, t in zip(each, temperatures, strict=True)]
        expected = np.tensordot(mixture.weights, softened, axes=1)
    np.testing.assert_allclose(mixed[:, 8:], expected)
    cube = expected.reshape(-1, 3, 2, 3)
    for place, axes in ((slice(0, 3), (2, 3)), (slice(3, 5), (1, 3)), (slice(5, 8), (1, 2))):
        np.testing.assert_allclose(mixed[:, place], cube.sum(axis=axes))
    assert (ONE.joint(ONE.argmax(mixed)) == expected.argmax(1)).all()
    assert list(blend.mixtures) == [JOINT]


@pytest.mark.parametrize("names", [[str(i) for i in range(18)], THREE.joint_names()])
def test_a_head_of_the_18_classes_hands_in_their_numbers(tmp_path, names):
    # as text they are sorted 0, 1, 10, 11, ...
    heads = Heads([Head("class18", tuple(sorted(names)))])
    info = tmp_path / "info.csv"
    pd.DataFrame({"ImageID": [f"{i}.png" for i in range(18)], "ans": 0}).to_csv(info, index=False)
    form = read_form(info, heads, [f"{i}.png" for i in range(18)])
    form.fill(heads, form.photos, np.arange(18)[:, None], np.eye(18), tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["ans"].tolist() == [names.index(name) for name in sorted(names)]


def test_a_head_of_18_other_classes_is_refused(tmp_path):
    info = tmp_path / "info.csv"
    pd.DataFrame({"ImageID": ["a.png"], "ans": 0}).to_csv(info, index=False)
    with pytest.raises(UsageError, match="holds joint classes of mask, gender, age"):
        read_form(info, Heads([Head("letter", tuple("abcdefghijklmnopqr"))]), ["a.png"])
