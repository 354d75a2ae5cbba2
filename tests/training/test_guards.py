import io
import shutil
import signal

import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback

from fastmask.api import Run, cross_validate
from fastmask.data.augment import Augmentation
from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import dataloaders
from fastmask.data.photo_dl import columns_of
from fastmask.data.transforms import UNREADABLE
from fastmask.model.losses import FocalLoss
from fastmask.model.network import build_network
from fastmask.system.errors import DataError, DivergenceError, FastmaskError
from fastmask.training.callbacks import Checkpoint
from fastmask.training.guards import FiniteLoss, SkipNonFinite, SkipUnreadable, is_out_of_memory, some
from fastmask.training.learner import mask_learner
from fastmask.training.state import STATE, StateSaver
from fastmask.training.step import Accumulation

SMALL = Augmentation(A.Compose([A.CenterCrop(400, 200), A.Resize(32, 16)]))
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def learner(contest):
    """42 photos to train on: two batches of 16 an epoch."""
    table = read_contest(contest)
    folds = assign_folds(table, 2, stratify="gender")

    def make(*cbs, loss_func=None, **options):
        dls = dataloaders(table, 0, folds, augments=(SMALL, SMALL), bs=16, num_workers=0, device="cpu", **options)
        torch.manual_seed(0)
        learn = mask_learner(dls, build_network("test_resnet", table.heads), cbs=list(cbs), loss_func=loss_func)
        learn.remove_cbs(ProgressCallback)
        learn.logger = lambda *_: None
        return learn

    return make


class BadLoss(Callback):
    """Makes the loss of some batches, (epoch, batch) counted from 1, bad; keeps how many batches were trained."""

    order, run_valid = 0, False

    def __init__(self, value, *places):
        self.value, self.places, self.trained = value, places, 0

    def after_loss(self):
        self.trained += 1
        if (self.learn.epoch + 1, self.learn.iter + 1) in self.places:
            self.learn.loss = self.learn.loss * self.value
            self.learn.loss_grad = self.learn.loss_grad * self.value


class BadGradient(BadLoss):
    """The loss is a number, and the gradient of one weight is none."""

    def after_loss(self):
        pass

    def after_backward(self):
        if (self.learn.epoch + 1, self.learn.iter + 1) in self.places:
            self.learn.model.heads[0].weight.grad[0, 0] = self.value


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(("every", "batch", "trained"), [(50, 1, 4), (2, 1, 4), (1, 2, 4), (1, 1, 3)])
def test_a_bad_loss_ends_the_fit_and_is_named(learner, tmp_path, value, every, batch, trained):
    """Two batches an epoch: the second epoch has the third and the fourth."""
    bad = BadLoss(value, (2, batch))
    learn = learner(bad, FiniteLoss(every), Checkpoint(tmp_path, top_k=9))
    with pytest.raises(DivergenceError) as told:
        learn.fit(3, 1e-3)
    assert str(told.value).startswith(f"epoch 2, batch {batch} (")
    assert str(told.value).endswith(" and 13 more): the loss is NaN or infinite")
    assert bad.trained == trained
    assert [file.name for file in tmp_path.iterdir()] == ["epoch000.safetensors"]
    # by the order of the pass, and not by what the guard thinks of it
    rows = learn.dls.train.order[(batch - 1) * 16 : batch * 16]
    table_rows = [learn.dls.train_ds.items[row] for row in rows]
    assert [path.split("/images/")[1] for path in told.value.photos] == [
        read_contest(learn_root(told)).frame["path"][row].split("images/")[-1] for row in table_rows
    ]


def learn_root(told):
    return told.value.photos[0].split("/train/")[0]


def test_the_finder_may_go_to_bad_losses(learner, monkeypatch, tmp_path):
    # fastai's own writes where it is
    monkeypatch.chdir(tmp_path)
    learn = learner(FiniteLoss(every=1))
    learn.lr_find(1e5, 1e20, num_it=20, stop_div=False, show_plot=False, suggest_funcs=None)
    assert not np.isfinite([float(loss) for loss in learn.recorder.losses]).all()


def test_a_fold_that_diverges_says_where_and_why_it_may_be(contest, small_settings, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(
        FastmaskError, match=r"^Fold 1/2 diverged in epoch 1, batch [1-9] \(.* and 13 more\): the loss "
    ) as e:
        cross_validate(read_contest(contest), out=out, log=io.StringIO(), lr=1e30, **small_settings)
    told = str(e.value)
    assert f"{out}/fold0/diverged.csv lists all photos" in told
    assert "lower --lr" in told
    assert told.endswith("It has no state to go on from yet.")
    assert "fp16" not in told
    assert len(pd.read_csv(out / "fold0" / "diverged.csv")) == 16


class Broken(FocalLoss):
    """No number for the photos of one epoch, if it is told which forward pass of training begins it."""

    calls, bad = 0, range(0)

    def forward(self, logits, y):
        loss = super().forward(logits, y)
        if logits.requires_grad:
            Broken.calls += 1
            loss = loss * (NAN if Broken.calls in Broken.bad else 1)
        return loss


def test_a_run_that_diverged_goes_on_from_its_last_good_state_without_the_step(
    contest, small_settings, tmp_path, monkeypatch
):
    out, table, settings = tmp_path / "run", read_contest(contest), {**small_settings, "epochs": 3}
    monkeypatch.setattr(Broken, "calls", 0)
    monkeypatch.setattr(Broken, "bad", range(4, 5))
    with pytest.raises(
        FastmaskError,
        match=r"epoch 2, batch 2 .*The last good state is kept; to resume without such steps: fastmask fit --resume",
    ):
        cross_validate(table, out=out, log=io.StringIO(), loss_func=Broken, **settings)
    assert (out / "fold0" / STATE).is_file()
    # it goes on after two steps
    monkeypatch.setattr(Broken, "calls", 2)
    log = io.StringIO()
    run = cross_validate(table, out=out, log=log, loss_func=Broken, resume=True, on_nan="skip", **settings)
    skipped = pd.read_csv(out / "fold0" / "skipped-batches.csv")
    assert skipped[["epoch", "batch", "what"]].drop_duplicates().to_numpy().tolist() == [[2, 2, "loss"]]
    assert len(skipped) == 16
    assert f"fold 1/2 left out what {out / 'fold0' / 'skipped-batches.csv'} lists" in log.getvalue()
    assert np.isfinite(run.history(0)["train_loss"]).all()
    assert not (out / "fold1" / "skipped-batches.csv").exists()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("bad", [BadLoss, BadGradient])
def test_a_skipped_step_is_as_if_its_batch_had_not_been_there(learner, tmp_path, bad, value):
    """The other learner is not shown the batch: same weights, batch norm's statistics and averages of the optimizer."""

    class Without(Callback):
        order = -100

        def before_batch(self):
            if (self.learn.epoch, self.learn.iter) == (0, 1):
                from fastai.callback.core import CancelBatchException

                raise CancelBatchException

        def after_batch(self):
            pass

    skips = SkipNonFinite(tmp_path)
    one = learner(bad(value, (1, 2)), skips, FiniteLoss(1))
    one.fit(2, 1e-3)
    other = learner(Without())
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


def test_nothing_but_skipped_steps_is_told(learner, tmp_path):
    places = [(epoch, batch) for epoch in range(1, 40) for batch in (1, 2)]
    skips = SkipNonFinite(tmp_path)
    with pytest.raises(DivergenceError, match=r"^epoch 25, batch 2 .*the 50th step in a row without a number$"):
        learner(BadLoss(NAN, *places), skips).fit(40, 1e-3)
    assert len(pd.read_csv(skips.file)) == 50 * 16


def test_good_steps_between_bad_ones_are_no_row(learner, tmp_path):
    places = [(epoch, 1) for epoch in range(1, 53)]
    skips = SkipNonFinite(tmp_path)
    learner(BadLoss(NAN, *places), skips).fit(52, 1e-3)
    assert len(skips.rows) == 52 * 16


def test_a_step_of_several_batches_lists_them_all(learner, tmp_path):
    """Any of them may be the cause."""
    skips = SkipNonFinite(tmp_path)
    learner(BadGradient(NAN, (1, 1)), skips, Accumulation(2)).fit(1, 1e-3)
    assert sorted({tuple(row[:3]) for row in skips.rows}) == [(1, 1, "gradients"), (1, 2, "gradients")]


def test_what_was_left_out_stays_listed_when_nothing_is_to_be_left_out_any_more(
    contest, small_settings, tmp_path, monkeypatch
):
    """Left out in the first epoch, then interrupted, gone on without leaving out, and with it again."""
    out, table, settings = tmp_path / "run", read_contest(contest), {**small_settings, "epochs": 5, "patience": 0}
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
            cross_validate(
                table, out=out, log=io.StringIO(), loss_func=Broken, resume=call > 2, on_nan=on_nan, **settings
            )
        assert len(pd.read_csv(listed)) == 16
    monkeypatch.setattr(StateSaver, "after_batch", saver)
    monkeypatch.setattr(Broken, "bad", range(7, 8))
    run = cross_validate(table, out=out, log=io.StringIO(), loss_func=Broken, resume=True, on_nan="skip", **settings)
    assert pd.read_csv(listed)["epoch"].unique().tolist() == [1, 4]
    assert run.trained_folds == [0, 1]


class TestBadPhotos:
    @pytest.fixture
    def photos(self, contest_copy):
        return sorted((contest_copy / "train" / "images").rglob("*.jpg"))

    def test_are_left_out_from_the_start_and_listed(self, contest_copy, photos, small_settings, tmp_path):
        photos[3].write_bytes(photos[3].read_bytes()[:2000])
        photos[9].write_text("no photo")
        table = read_contest(contest_copy)
        with pytest.raises(DataError, match=f"{photos[3].name} is "):
            cross_validate(table, out=tmp_path / "a", log=io.StringIO(), **small_settings)
        assert not (tmp_path / "a").exists()
        log = io.StringIO()
        run = cross_validate(table, out=tmp_path / "b", log=log, on_bad_photo="skip", **small_settings)
        skipped = pd.read_csv(run.path / "skipped.csv")
        names = [str(photo.relative_to(contest_copy / "train")) for photo in (photos[3], photos[9])]
        assert [path.split("images/")[-1] for path in skipped["path"]] == [n.split("images/")[-1] for n in names]
        assert "not an image" in skipped["why"][1]
        assert len(run.oof) == len(table) - 2
        assert "without 2 that cannot be read" in log.getvalue()

    def test_are_an_error_where_there_is_no_other(self, contest_copy, photos, small_settings, tmp_path):
        for photo in (path for path in photos[0].parent.parent.rglob("*") if path.is_file()):
            photo.write_text("no photo")
        with pytest.raises(DataError, match="No photo can be read; the first: "):
            cross_validate(read_contest(contest_copy), out=tmp_path / "a", on_bad_photo="skip", **small_settings)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_that_vanish_in_training_teach_nothing(self, contest_copy, small_settings, tmp_path, monkeypatch, workers):
        table = read_contest(contest_copy)
        settings = {**small_settings, "cache": "off", "workers": workers, "save_every": "1"}
        gone = table.photo(5)

        class Vanish(Callback):
            def before_epoch(self):
                if self.learn.epoch == 1 and str(gone) in columns_of(self.learn.dls.train_ds)[0]:
                    gone.rename(tmp_path / "gone.jpg")

            def after_fit(self):
                if (tmp_path / "gone.jpg").exists():
                    (tmp_path / "gone.jpg").rename(gone)

        from fastmask.training import fold as fold_module

        learner = fold_module.Plan.learner
        monkeypatch.setattr(fold_module.Plan, "learner", lambda p, f, cbs=(): learner(p, f, [*cbs, Vanish()]))
        log = io.StringIO()
        run = cross_validate(table, out=tmp_path / "skip", log=log, on_bad_photo="skip", **settings)
        # a pass drops its last incomplete batch, and the photo with it or not
        listed = [pd.read_csv(f) for f in run.path.glob("fold*/skipped-photos.csv")]
        trained_without = 5 not in run.folds.index[run.folds["fold"] == 0]
        assert [frame.to_numpy().tolist()[0][2] for frame in listed] == [str(gone)] * len(listed)
        assert len(listed) == 1
        assert "skipped-photos.csv lists" in log.getvalue()
        assert trained_without
        assert len(run.oof) == len(table)

    def test_stand_in_grey_without_labels(self, learner, contest_copy, tmp_path):
        table = read_contest(contest_copy)
        folds = assign_folds(table, 2, stratify="gender")
        options = {"augments": (SMALL, SMALL), "bs": 16, "num_workers": 0, "device": "cpu", "maps": []}
        dls = dataloaders(table, 0, folds, substitute=(32, 16), **options)
        x, y = dls.train.one_batch()
        bad = dls.train.order[4]
        photo = table.photo(dls.train_ds.items[bad])
        shutil.move(photo, tmp_path)
        # the order of the pass is the same, for it was not counted
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

    def test_are_an_error_where_they_are_too_many(self, learner, contest_copy, tmp_path):
        table = read_contest(contest_copy)
        folds = assign_folds(table, 2, stratify="gender")
        options = {"augments": (SMALL, SMALL), "bs": 16, "num_workers": 0, "device": "cpu", "maps": []}
        dls = dataloaders(table, 0, folds, substitute=(32, 16), **options)
        skips = SkipUnreadable(tmp_path)
        learn = learner(skips)
        learn.dls = dls
        for row in list(dls.train_ds.items)[:10]:
            table.photo(row).unlink()
        with pytest.raises(DataError, match="More than a tenth of the photos cannot be read, the last /"):
            learn.fit(1)
        assert len(pd.read_csv(skips.file)) >= 5

    def test_are_no_excuse_for_an_augmentation_that_fails(self, contest):
        def fails(image, rng):
            raise ValueError("a mistake of its author")

        table = read_contest(contest)
        folds = assign_folds(table, 2, stratify="gender")
        options = {"substitute": (32, 16), "num_workers": 0, "device": "cpu", "maps": []}
        # fastai tries the first photo, so the loaders do not come to be
        with pytest.raises(DataError, match="the augmentation fails on it: a mistake of its author"):
            dataloaders(table, 0, folds, augments=(fails, SMALL), **options).train.one_batch()

    def test_may_be_named_in_a_file_of_folds(self, contest_copy, photos, small_settings, finished_run, tmp_path):
        photos[3].write_text("no photo")
        settings = {k: v for k, v in small_settings.items() if k != "folds"}
        settings |= {"folds_file": str(finished_run.path / "folds.csv"), "on_bad_photo": "skip"}
        run = cross_validate(read_contest(contest_copy), out=tmp_path / "b", log=io.StringIO(), **settings)
        assert len(run.oof) == len(finished_run.oof) - 1
        whole = finished_run.folds.set_index("path")["fold"]
        assert (whole[run.folds["path"]].to_numpy() == run.folds["fold"].to_numpy()).all()

    def test_of_the_validation_are_an_error(self, contest_copy):
        table = read_contest(contest_copy)
        folds = assign_folds(table, 2, stratify="gender")
        options = {"augments": (SMALL, SMALL), "bs": 16, "num_workers": 0, "device": "cpu", "maps": []}
        dls = dataloaders(table, 0, folds, substitute=(32, 16), **options)
        photo = table.photo(dls.valid_ds.items[3])
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


def test_what_torch_says_where_memory_ends_is_known():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    ("photos", "words"),
    [([], "photos unknown"), (["a"], "a"), (list("abc"), "a, b, c"), (list("abcd"), "a, b, c and 1 more")],
)
def test_some_photos_are_named(photos, words):
    assert some(photos) == words


def test_a_run_says_that_it_left_out_nothing_by_having_no_list(finished_run):
    assert not (Run.load(finished_run.path).path / "skipped.csv").exists()
