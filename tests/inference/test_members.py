import numpy as np

from fastmask.data.contest import contest_heads
from fastmask.heads import Heads
from fastmask.inference.members import align_column, all_heads, member_names

HEADS = contest_heads()


def test_heads_and_names_of_several_runs(run_of, guess, labels):
    def made(name, names):
        heads, columns = Heads([HEADS[n] for n in names]), [HEADS.position(n) for n in names]
        return run_of(guess(labels[:, columns], 1, heads=heads), labels[:, columns], name, heads=heads)

    runs = [made("x/run", ["gender"]), made("y/run", ["age", "mask"]), made("z/run", ["mask", "gender"])]
    assert all_heads(runs).names == ("age", "mask", "gender")
    assert member_names(runs) == ["run", "run-2", "run-3"]


def test_a_column_of_another_run_is_put_into_the_order_of_the_first(run_of, guess, labels):
    order = np.random.default_rng(0).permutation(len(labels))
    one = run_of(guess(labels, 1), labels, "one")
    other = run_of(guess(labels, 2), labels, "other", order=order)
    assert align_column(one, other, "path").tolist() == one.folds["path"].tolist()
    assert align_column(one, other, "gender").tolist() == one.folds["gender"].tolist()
    assert other.folds["path"].tolist() != one.folds["path"].tolist()
