import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import minimum, steep, valley
from PIL import Image
from small_learners import TRAIN, VALID, small_dls, small_learner

from fastmask.system.errors import FastmaskError, UsageError
from fastmask.training.callbacks import Checkpoint, History, OOFCollector
from fastmask.training.finder import Found, lr_find, suggest_lrs


@pytest.fixture(scope="module")
def photos(table):
    return table.select(range(24))


def learner(photos, path, cbs=(), drop_rate=0.2):
    folds = np.where(np.arange(len(photos)) % 3 == 0, 0, 1)
    dls = small_dls(photos, folds, (TRAIN, VALID), bs=4)
    return small_learner(dls, "test_resnet", cbs, pretrained=False, drop_rate=drop_rate, path=path)


@pytest.fixture
def make(photos, tmp_path):
    return lambda *cbs: learner(photos, tmp_path, cbs)


def stock_finder(learn, num_it):
    learn.lr_find(num_it=num_it, show_plot=False)


def state(learn):
    """Everything that the finder could change, as values to compare."""
    return {
        "network": deepcopy(learn.model.state_dict()),
        "modes": [module.training for module in learn.model.modules()],
        "grads": [p.grad is None for p in learn.model.parameters()],
        "optimizer": None if learn.opt is None else deepcopy(learn.opt.state_dict()),
        "passes": [(dl.passes.next, dl.pass_) for dl in learn.dls.loaders],
        "random": torch.get_rng_state(),
        "records": [list(getattr(learn.recorder, k, [])) for k in ("lrs", "losses", "values", "iters")],
        "learner": {
            k: v for k, v in vars(learn).items() if k in ("epoch", "n_epoch", "training", "path", "train_iter")
        },
        "callbacks": [cb.name for cb in learn.cbs],
        "attributes": sorted(vars(learn)),
        "files": sorted(learn.path.rglob("*")),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Stop(Callback):
    """Ends the finder in its fourth step."""

    def __init__(self, error):
        self.error = error

    def after_backward(self):
        if hasattr(self.learn, "lr_finder") and self.learn.train_iter == 3:
            raise self.error


@pytest.fixture(scope="module")
def found(photos, tmp_path_factory):
    learn = learner(photos, tmp_path_factory.mktemp("found"), drop_rate=0.0)
    stock = deepcopy(learn)
    theirs = stock.lr_find(num_it=40, show_plot=False, suggest_funcs=(valley, steep, minimum))
    return lr_find(learn, num_it=40), theirs, stock


@pytest.mark.slow
def test_it_finds_what_fastai_finds(found):
    ours, theirs, stock = found
    assert (ours.suggestion, ours.steep, ours.minimum) == (theirs.valley, theirs.steep, theirs.minimum)
    assert ours.lrs == [float(lr) for lr in stock.recorder.lrs]
    assert ours.losses == [float(loss) for loss in stock.recorder.losses]
    assert ours.lrs[:2] == pytest.approx([1e-7, 1e-7 * 1e8 ** (1 / 40)])


def test_it_is_written_as_json_and_as_a_picture(found, tmp_path):
    ours, *_ = found
    assert Found(**json.loads(json.dumps(ours.to_plain()))) == ours
    assert str(ours).startswith(f"suggestion {ours.suggestion:.1e}, steep ")
    ours.plot(tmp_path / "lr-find.png")
    assert Image.open(tmp_path / "lr-find.png").size == (840, 540)


@pytest.mark.parametrize("trained", [False, True])
def test_the_learner_is_as_before(make, trained):
    learn = make()
    if trained:
        learn.freeze()
        learn.fit(1, 1e-3)
        learn.unfreeze()
        learn.fit(1, 1e-3)
    before = state(learn)
    lr_find(learn, num_it=20)
    assert same(before, state(learn))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_the_learner_is_as_before_when_it_is_stopped(make, error):
    learn = make(Stop(error))
    learn.fit(1, 1e-3)
    before = state(learn)
    with pytest.raises(type(error)):
        lr_find(learn, num_it=20)
    assert same(before, state(learn))


@pytest.mark.parametrize("finder", [lr_find, stock_finder])
def test_a_run_after_it_is_the_run_without_it(make, finder):
    plain, found = make(), make()
    finder(found, num_it=20)
    for learn in (plain, found):
        learn.fit_one_cycle(1, 1e-3)
    assert same(plain.model.state_dict(), found.model.state_dict())
    assert plain.recorder.losses == found.recorder.losses


@pytest.mark.parametrize("finder", [lr_find, stock_finder])
def test_callbacks_do_not_count_its_epochs(make, finder, tmp_path):
    folder = tmp_path / "fold0"
    learn = make(Checkpoint(folder), OOFCollector(folder), History(folder))
    finder(learn, num_it=20)
    assert not folder.exists()
    learn.fit(1, 1e-3)
    assert {file.stem for file in folder.iterdir()} == {"epoch000", "oof-000", "history", "times"}


def test_a_loss_that_diverges_suggests_nothing(make):
    with pytest.raises(FastmaskError, match="cannot suggest a learning rate: the loss diverged after"):
        lr_find(make(), num_it=20, start_lr=1e4, end_lr=1e9)


def test_losses_of_nan_and_inf_are_cut_off():
    lrs = np.geomspace(1e-7, 10, 100).tolist()
    falling = np.linspace(2, 1, 60).tolist()
    ours = suggest_lrs(lrs, falling + [float("nan")] * 40, 100)
    assert len(ours.losses) == len(ours.lrs) == 60
    assert 1e-7 < ours.suggestion < lrs[60]
    with pytest.raises(FastmaskError, match="after 12 of 100 steps, up to a learning rate of 7.7e-07"):
        suggest_lrs(lrs, falling[:12] + [float("inf")] * 88, 100)
    with pytest.raises(FastmaskError, match="after 0 of 100 steps"):
        suggest_lrs([], [], 100)


@pytest.mark.parametrize("asked", [{"num_it": 5}, {"start_lr": 1.0, "end_lr": 0.1}, {"start_lr": 0.0}])
def test_a_range_that_shows_nothing_is_refused(make, asked):
    with pytest.raises(UsageError, match="20 steps or more"):
        lr_find(make(), **asked)


def test_loaders_without_a_batch_are_refused(make):
    learn = make()
    learn.dls.train = learn.dls.train.new(bs=100)
    with pytest.raises(UsageError, match="gives no batch"):
        lr_find(learn)


def test_a_leap_after_the_lowest_loss_is_not_the_steepest_fall():
    lrs = np.geomspace(1e-7, 10, 100).tolist()
    losses = [1.0] * 50 + [1 - 0.01 * i for i in range(30)] + [0.8, 5.0, 9.0, 2.0] + [9.0] * 16
    found = suggest_lrs(lrs, losses, 100)
    assert lrs[50] <= found.steep <= lrs[80]
    assert float(steep(torch.tensor(lrs), torch.tensor(losses), 100)[0]) > lrs[80]
