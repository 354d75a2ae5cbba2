import pytest

from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.training.plan import prepare
from fastmask.training.rehearsal import _Stopwatch, rehearse


@pytest.fixture
def plan(contest, small_settings):
    return prepare(read_contest(contest), make_config(small_settings, {"bs": 4, "epochs": 7, "top_k": 2}))


def test_it_reckons_with_what_a_run_would_do(plan):
    cost = rehearse(plan)
    # 84 photos, two folds of 42
    assert (cost.train_steps, cost.valid_steps, cost.epochs, cost.folds) == (10, 11, 7, 2)
    assert cost.run_seconds == pytest.approx(2 * 7 * (10 * cost.train_step + 11 * cost.valid_step))
    assert rehearse(plan, [1]).run_seconds > 0
    assert 1.0 < cost.loss < 1.5  # focal losses of three untrained heads, by hand: 0.25 ln 2 + 2 * 0.44 ln 3 = 1.14
    assert cost.memory > 1e8


def test_the_disk_is_that_of_a_real_run(contest, small_settings, tmp_path):
    import io

    from fastmask.training.crossval import cross_validate

    table = read_contest(contest)
    cost = rehearse(prepare(table, make_config(small_settings)))
    run = cross_validate(table, out=tmp_path / "run", log=io.StringIO(), **small_settings)
    taken = sum(f.stat().st_size for f in run.path.rglob("*.safetensors"))
    assert 0.6 * cost.disk < taken < cost.disk


def test_it_says_so_in_words_and_leaves_nothing(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = str(rehearse(plan))
    assert [line.split()[0] for line in words.splitlines()] == ["step", "epoch", "run", "memory", "disk"]
    assert "2 folds of 7 epochs" in words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("warm", "seconds", "expected"), [(1, [9, 1, 2, 3], 2), (3, [90, 0, 0, 1, 2, 3], 2), (1, [5], 5)]
)
def test_steps_that_warm_up_do_not_count(warm, seconds, expected):
    watch = _Stopwatch(3)
    watch.warm, watch.seconds[True] = warm, seconds
    assert watch.step(True) == expected
