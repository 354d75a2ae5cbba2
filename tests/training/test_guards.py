import io
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from small_learners import TINY, small_dls, small_learner

from fastmask.data.contest import read_contest
from fastmask.data.photo_dl import columns_of
from fastmask.data.transforms import UNREADABLE
from fastmask.model.losses import FocalLoss
from fastmask.system.errors import DataError, DivergenceError, FastmaskError
from fastmask.training.callbacks import Checkpoint
from fastmask.training.guards import FiniteLoss, SkipNonFinite, SkipUnreadable, is_out_of_memory, name_photos
from fastmask.training.state import STATE, StateSaver

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def learner(table):
    """42 photos to train on: two batches of 16 per epoch."""
    return lambda *cbs, **options: small_learner(small_dls(table), cbs=cbs, **options)


class BadLoss(Callback):
    """Multiplies the loss of some batches, (epoch, batch) counted from 1; counts the batches that were trained."""

    order, run_valid = 0, False

    def __init__(self, value, *places):
        self.value, self.places, self.trained = value, places, 0

    def after_loss(self):
        self.trained += 1
        if (self.learn.epoch + 1, self.learn.iter + 1) in self.places:
            self.learn.loss = self.learn.loss * self.value
            self.learn.loss_grad = self.learn.loss_grad * self.value


class BadGradient(BadLoss):
    """The loss is finite, and the gradient of one weight is not."""

    def after_loss(self):
        pass

    def after_backward(self):
        if (self.learn.epoch + 1, self.learn.iter + 1) in self.places:
            self.learn.model.heads[0].weight.grad[0, 0] = self.value


@pytest.mark.parametrize(
    ("value", "every", "batch", "trained"), [(NAN, 50, 1, 4), (INF, 2, 1, 4), (NAN, 1, 2, 4), (INF, 1, 1, 3)]
)
def test_a_loss_of_nan_or_inf_ends_the_fit_and_is_named(learner, table, tmp_path, value, every, batch, trained):
    """Two batches per epoch: the second epoch has the third and the fourth."""
    bad = BadLoss(value, (2, batch))
    learn = learner(bad, FiniteLoss(every), Checkpoint(tmp_path, top_k=9))
    with pytest.raises(DivergenceError) as error:
        learn.fit(3, 1e-3)
    assert str(error.value).startswith(f"epoch 2, batch {batch} (")
    assert str(error.value).endswith(" and 13 more): the loss is NaN or infinite")
    assert bad.trained == trained
    assert [file.name for file in tmp_path.iterdir()] == ["epoch000.safetensors"]
    # by the order of the pass, independently of the guard
    rows = learn.dls.train.order[(batch - 1) * 16 : batch * 16]
    assert error.value.photos == [str(table.photo(learn.dls.train_ds.items[row])) for row in rows]


def test_the_finder_may_go_to_bad_losses(learner, monkeypatch, tmp_path):
    # fastai's finder writes into the current folder
    monkeypatch.chdir(tmp_path)
    learn = learner(FiniteLoss(every=1))
    learn.lr_find(1e5, 1e20, num_it=20, stop_div=False, show_plot=False, suggest_funcs=None)
    assert not np.isfinite([float(loss) for loss in learn.recorder.losses]).all()


def test_a_fold_that_diverges_says_where_and_the_likely_causes(train, tmp_path):
    out = tmp_path / "run"
    expected = r"^Fold 1/2 diverged in epoch 1, batch [1-9] \(.* and 13 more\): the loss "
    with pytest.raises(FastmaskError, match=expected) as error:
        train(out, lr=1e30)
    message = str(error.value)
    assert f"{out}/fold0/diverged.csv lists all photos" in message
    assert "lower --lr" in message
    assert message.endswith("It has no state to resume from yet.")
    assert "fp16" not in message
    assert len(pd.read_csv(out / "fold0" / "diverged.csv")) == 16


class Broken(FocalLoss):
    """NaN in the forward passes of training whose numbers are in `bad`."""

    calls, bad = 0, range(0)

    def forward(self, logits, y):
        loss = super().forward(logits, y)
        if logits.requires_grad:
            Broken.calls += 1
            loss = loss * (NAN if Broken.calls in Broken.bad else 1)
        return loss


def test_a_run_that_diverged_resumes_from_its_last_good_state_without_the_step(train, tmp_path, monkeypatch):
    out, settings = tmp_path / "run", {"epochs": 3, "loss_func": Broken}
    monkeypatch.setattr(Broken, "calls", 0)
    monkeypatch.setattr(Broken, "bad", range(4, 5))
    expected = "epoch 2, batch 2 .*The last good state is kept; to resume without such steps: fastmask fit --resume"
    with pytest.raises(FastmaskError, match=expected):
        train(out, **settings)
    assert (out / "fold0" / STATE).is_file()
    # it resumes after two steps
    monkeypatch.setattr(Broken, "calls", 2)
    log = io.StringIO()
    run = train(out, log=log, resume=True, on_nan="skip", **settings)
    skipped = pd.read_csv(out / "fold0" / "skipped-batches.csv")
    assert skipped[["epoch", "batch", "what"]].drop_duplicates().to_numpy().tolist() == [[2, 2, "loss"]]
    assert len(skipped) == 16
    assert f"fold 1/2 skipped what {out / 'fold0' / 'skipped-batches.csv'} lists" in log.getvalue()
    assert np.isfinite(run.history(0)["train_loss"]).all()
    assert not (out / "fold1" / "skipped-batches.csv").exists()


class WithoutBatch(Callback):
    """Leaves out the second batch of the first epoch before anything sees it."""

    order = -100

    def before_batch(self):
        if (self.learn.epoch, self.learn.iter) == (0, 1):
            raise CancelBatchException


@pytest.mark.parametrize(("bad", "value"), [(BadLoss, NAN), (BadLoss, INF), (BadGradient, NAN), (BadGradient, INF)])
def test_a_skipped_step_leaves_no_trace(learner, tmp_path, bad, value):
    """The weights, batch norm's statistics and the optimizer's averages are those of a fit without the batch."""
    skips = SkipNonFinite(tmp_path)
    one = learner(bad(value, (1, 2)), skips, FiniteLoss(1))
    one.fit(2, 1e-3)
    other = learner(WithoutBatch())
    other.remove_cbs(other.recorder)
    other.fit(2, 1e-3)
    expected = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert [row[:3] for row in skips.rows] == [[1, 2, "loss" if bad is BadLoss else "gradients"]] * 16
    assert np.isfinite([float(loss) for loss in one.recorder.losses]).all()


def test_a_first_step_can_be_skipped(learner, tmp_path):
    learn = learner(BadLoss(NAN, (1, 1)), SkipNonFinite(tmp_path))
    learn.fit(1, 1e-3)
    assert torch.stack(list(learn.recorder.losses)).isfinite().all()


def test_many_skipped_steps_in_a_row_end_the_fit(learner, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmask.training.guards._HOPELESS", 8)
    places = [(epoch, batch) for epoch in range(1, 10) for batch in (1, 2)]
    skips = SkipNonFinite(tmp_path)
    with pytest.raises(DivergenceError, match=r"^epoch 4, batch 2 .*the 8th step in a row with NaN or infinity$"):
        learner(BadLoss(NAN, *places), skips).fit(10, 1e-3)
    assert len(pd.read_csv(skips.file)) == 8 * 16


def test_good_steps_between_bad_ones_start_the_count_anew(learner, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmask.training.guards._HOPELESS", 2)
    skips = SkipNonFinite(tmp_path)
    learner(BadLoss(NAN, *((epoch, 1) for epoch in (1, 2, 3))), skips).fit(3, 1e-3)
    assert len(skips.rows) == 3 * 16


@pytest.mark.parametrize("bad", [BadLoss, BadGradient])
def test_a_step_of_several_batches_lists_the_photos_of_all(learner, tmp_path, bad):
    """Any of them may be the cause; batch norm's statistics are restored."""
    skips = SkipNonFinite(tmp_path)
    learn = learner(bad(NAN, (1, 1)), skips, accumulate=2)
    before = {name: buffer.clone() for name, buffer in learn.model.named_buffers()}
    learn.fit(1, 1e-3)
    assert [row[:3] for row in skips.rows] == [[1, 1, "loss" if bad is BadLoss else "gradients"]] * 32
    assert len({row[3] for row in skips.rows}) == 32
    assert all(torch.equal(buffer, before[name]) for name, buffer in learn.model.named_buffers())


def test_skipped_batches_stay_listed_when_a_run_resumes_without_skipping(train, tmp_path, monkeypatch):
    """Skipped in the first epoch, then interrupted, resumed without skipping, and with it again."""
    out, settings = tmp_path / "run", {"epochs": 5, "patience": 0, "fold": [0], "loss_func": Broken}
    listed = out / "fold0" / "skipped-batches.csv"
    monkeypatch.setattr(Broken, "calls", 0)
    monkeypatch.setattr(Broken, "bad", range(1, 2))
    saver = StateSaver.after_batch

    def interrupted_at(call):
        def after_batch(self):
            if self.training and Broken.calls == call:
                signal.raise_signal(signal.SIGINT)
            saver(self)

        return after_batch

    for call, on_nan in ((2, "skip"), (5, "stop")):
        monkeypatch.setattr(StateSaver, "after_batch", interrupted_at(call))
        with pytest.raises(KeyboardInterrupt):
            train(out, resume=call > 2, on_nan=on_nan, **settings)
        assert len(pd.read_csv(listed)) == 16
    monkeypatch.setattr(StateSaver, "after_batch", saver)
    monkeypatch.setattr(Broken, "bad", range(7, 8))
    run = train(out, resume=True, on_nan="skip", **settings)
    assert pd.read_csv(listed)["epoch"].unique().tolist() == [1, 4]
    assert run.trained_folds == [0]


class TestBadPhotos:
    """Photos that cannot be read."""

    @pytest.fixture
    def photos(self, contest_copy):
        return sorted((contest_copy / "train" / "images").rglob("*.jpg"))

    @pytest.fixture
    def copied(self, contest_copy):
        return read_contest(contest_copy)

    @pytest.fixture
    def dls(self, copied):
        return small_dls(copied, substitute=(32, 16), maps=[])

    def test_are_left_out_from_the_start_and_listed(self, copied, photos, train, finished_run, tmp_path):
        """Also where a file of folds names them."""
        photos[3].write_bytes(photos[3].read_bytes()[:2000])
        photos[9].write_text("no photo")
        settings = {"folds_file": str(finished_run.path / "folds.csv"), "epochs": 1}
        with pytest.raises(DataError, match=f"{photos[3].name} is "):
            train(tmp_path / "a", copied, **settings)
        assert not (tmp_path / "a").exists()
        log = io.StringIO()
        run = train(tmp_path / "b", copied, log=log, on_bad_photo="skip", **settings)
        skipped = pd.read_csv(run.path / "skipped.csv")
        assert [path.split("images/")[-1] for path in skipped["path"]] == [
            str(photo).split("images/")[-1] for photo in (photos[3], photos[9])
        ]
        assert "not an image" in skipped["why"][1]
        assert len(run.oof) == len(copied) - 2
        assert " persons, 2 left out;" in log.getvalue()
        whole = finished_run.folds.set_index("path")["fold"]
        assert (whole[run.folds["path"]].to_numpy() == run.folds["fold"].to_numpy()).all()

    def test_are_an_error_where_there_is_no_other(self, copied, photos, plan_of):
        for photo in (path for path in photos[0].parent.parent.rglob("*") if path.is_file()):
            photo.write_text("no photo")
        with pytest.raises(DataError, match="No photo can be read; the first: "):
            plan_of(copied, on_bad_photo="skip")

    @pytest.mark.parametrize("workers", [0, pytest.param(1, marks=[pytest.mark.semaphores, pytest.mark.slow])])
    def test_that_vanish_during_training_are_skipped(self, copied, train, tmp_path, workers):
        gone, away = copied.photo(5), tmp_path / "gone.jpg"

        class Vanish(Callback):
            def before_epoch(self):
                if self.learn.epoch == 1 and str(gone) in columns_of(self.learn.dls.train_ds)[0]:
                    gone.rename(away)

            def after_fit(self):
                if away.exists():
                    away.rename(gone)

        log, settings = io.StringIO(), {"cache": "off", "workers": workers, "on_bad_photo": "skip", "fold": [0]}
        run = train(tmp_path / "skip", copied, cbs=[Vanish()], log=log, save_every="1", **settings)
        # the last incomplete batch of a pass is dropped, here not with the photo
        (listed,) = (pd.read_csv(file) for file in run.path.glob("fold*/skipped-photos.csv"))
        assert listed.to_numpy().tolist()[0][2] == str(gone)
        assert "skipped-photos.csv lists" in log.getvalue()
        assert 5 not in run.folds.index[run.folds["fold"] == 0]
        assert len(run.oof) == (run.folds["fold"] == 0).sum()

    def test_are_replaced_by_grey_without_labels(self, learner, copied, dls, tmp_path):
        x, y = dls.train.one_batch()
        photo = copied.photo(dls.train_ds.items[dls.train.order[4]])
        shutil.move(photo, tmp_path)
        # the order of the pass is the same, since it was not counted
        x_bad, y_bad = dls.train.one_batch()
        assert (y_bad[4] == UNREADABLE).all()
        others = [i for i in range(16) if i != 4]
        assert torch.equal(y_bad[others], y[others])
        assert torch.equal(x_bad[others], x[others])
        assert len(x_bad[4].unique()) <= 3
        learn = learner()
        learn.dls = dls
        skips = SkipUnreadable(tmp_path)
        skips.learn = learn
        learn.epoch, learn.iter, learn.yb = 0, 0, (y_bad,)
        skips.before_train()
        skips.before_batch()
        assert (learn.yb[0][4] == -1).all()
        assert torch.equal(learn.yb[0][others], y[others])
        assert skips.rows == [[1, 1, str(photo)]]
        # soft labels in two parts
        parts = torch.ones(len(y), 2, 8)
        parts[4] = UNREADABLE
        learn.yb = (parts,)
        skips.before_batch()
        assert learn.yb[0].sum((1, 2)).tolist() == [0 if row == 4 else 16 for row in range(len(y))]

    def test_are_an_error_where_they_are_too_many(self, learner, copied, dls, tmp_path):
        skips = SkipUnreadable(tmp_path)
        learn = learner(skips)
        learn.dls = dls
        for row in list(dls.train_ds.items)[:10]:
            copied.photo(row).unlink()
        with pytest.raises(DataError, match="More than a tenth of the photos cannot be read, the last /"):
            learn.fit(1)
        assert len(pd.read_csv(skips.file)) >= 5

    def test_do_not_hide_an_augmentation_that_fails(self, table):
        def fails(image, rng):
            raise ValueError("a mistake of its author")

        # fastai tries the first photo, so the loaders cannot be made
        with pytest.raises(DataError, match="the augmentation fails on it: a mistake of its author"):
            small_dls(table, augments=(fails, TINY), substitute=(32, 16), maps=[]).train.one_batch()

    def test_of_the_validation_are_an_error(self, copied, dls):
        photo = copied.photo(dls.valid_ds.items[3])
        photo.unlink()
        with pytest.raises(DataError, match=photo.name):
            list(dls.valid)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_photos_of_other_loaders_are_unknown():
    assert name_photos([]) == "photos unknown"


def test_torch_s_own_message_is_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert is_out_of_memory(error.value)
