import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file
from small_learners import small_dls, small_learner

from fastmask.data.photo_dl import Passes
from fastmask.run.tensors import read_oof, save_tensors
from fastmask.system.errors import DivergenceError
from fastmask.training.callbacks import Checkpoint, EarlyStopping, History, OOFCollector, ValidateEvery


class Scripted(Callback):
    """Replaces the values of the metric to monitor, one per epoch."""

    order = Checkpoint.order - 5

    def __init__(self, values):
        self.values = values

    def after_epoch(self):
        if self.values[self.learn.epoch] is not None:
            self.learn.recorder.values[-1][2] = self.values[self.learn.epoch]


@pytest.fixture
def learner(table):
    dls = small_dls(table)
    return lambda *cbs, drop_rate=0.0: small_learner(dls, cbs=cbs, drop_rate=drop_rate)


def epochs_kept(folder):
    return sorted(int(f.stem.removeprefix("epoch")) for f in folder.glob("epoch*"))


@pytest.mark.parametrize(
    ("top_k", "values", "kept"),
    [
        (1, [0.1, 0.3, 0.2, 0.25], [1]),
        (2, [0.1, 0.3, 0.2, 0.25], [1, 3]),
        (1, [0.3, 0.3, 0.3], [0]),
        (1, [float("nan"), 0.1, float("nan")], [1]),
        (1, [float("nan")] * 2, [0]),
        (3, [0.2, 0.1], [0, 1]),
    ],
)
def test_a_better_checkpoint_is_never_replaced_by_a_worse(learner, tmp_path, top_k, values, kept):
    learner(Scripted(values), Checkpoint(tmp_path, top_k=top_k)).fit(len(values), 1e-3)
    assert epochs_kept(tmp_path) == kept


def test_a_loss_is_better_when_lower(learner, tmp_path):
    learn = learner(Checkpoint(tmp_path, monitor="valid_loss"))
    learn.fit(3, 1e-3)
    losses = [values[1] for values in learn.recorder.values]
    assert epochs_kept(tmp_path) == [int(np.argmin(losses))]


@pytest.mark.parametrize(("second", "kept"), [([0.1, 0.2], [1]), ([0.1, 0.9], [3])])
def test_a_second_fit_continues_the_files_of_the_first(learner, tmp_path, second, kept):
    learn = learner(Scripted([0.5, 0.6]), Checkpoint(tmp_path), OOFCollector(tmp_path), History(tmp_path))
    learn.fit(2, 1e-3)
    best = load_file(tmp_path / "epoch001.safetensors")
    learn.remove_cb(learn.scripted)
    learn.add_cb(Scripted(second))
    learn.fit(2, 1e-3)
    assert epochs_kept(tmp_path) == kept
    if kept == [1]:
        assert all(torch.equal(t, best[n]) for n, t in load_file(tmp_path / "epoch001.safetensors").items())
    assert pd.read_csv(tmp_path / "history.csv")["epoch"].tolist() == [0, 1, 2, 3]
    assert read_oof(tmp_path, 3).shape == read_oof(tmp_path, 0).shape


def test_validating_and_predicting_count_as_no_epoch(learner, tmp_path):
    learn = learner(Checkpoint(tmp_path), OOFCollector(tmp_path), History(tmp_path), EarlyStopping(patience=1))
    learn.fit(1, 1e-3)
    before = sorted(p.name for p in tmp_path.iterdir())
    learn.validate()
    learn.get_preds()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert len(pd.read_csv(tmp_path / "history.csv")) == 1


@pytest.mark.parametrize(("patience", "ran"), [(1, 3), (2, 4), (5, 6)])
def test_early_stopping_waits_for_patience_epochs(learner, patience, ran, capsys):
    learn = learner(Scripted([0.1, 0.3, 0.2, 0.25, 0.3, 0.3]), EarlyStopping(patience=patience))
    learn.fit(6, 1e-3)
    assert len(learn.recorder.values) == ran
    assert capsys.readouterr().out == ""


def test_oof_probabilities_and_history_are_those_of_each_epoch(learner, tmp_path):
    plain, shuffled = (learner(OOFCollector(tmp_path / name), History(tmp_path / name)) for name in ("plain", "other"))
    plain.fit(2, 1e-3)
    history = pd.read_csv(tmp_path / "plain" / "history.csv")
    assert history["macro_f1"].tolist() == pytest.approx([v[2] for v in plain.recorder.values])
    scores = list(plain.recorder.values[0][2:])
    assert {"train_loss", "valid_loss", "accuracy", "age_macro_f1", "mask_accuracy", "lr"} <= set(history)
    expected, _ = plain.get_preds()
    np.testing.assert_allclose(read_oof(tmp_path / "plain", 1), expected, atol=1e-6)
    assert (read_oof(tmp_path / "plain", 0) != read_oof(tmp_path / "plain", 1)).any()
    # a shuffled validation changes neither
    shuffled.dls.valid = plain.dls.valid.new(shuffle=True)
    shuffled.dls.train.passes = Passes()
    shuffled.fit(1, 1e-3)
    assert shuffled.dls.valid.order != sorted(shuffled.dls.valid.order)
    np.testing.assert_allclose(read_oof(tmp_path / "other", 0), read_oof(tmp_path / "plain", 0), atol=1e-5)
    assert list(shuffled.recorder.values[0][2:]) == scores


def test_fewer_validations_change_no_other_epoch(learner, tmp_path):
    plain, fewer = tmp_path / "plain", tmp_path / "fewer"
    for folder, every in ((plain, 1), (fewer, 2)):
        own = [ValidateEvery(every), Checkpoint(folder, top_k=9), OOFCollector(folder), History(folder)]
        learn = learner(*own, drop_rate=0.5)
        for dl in learn.dls.loaders:
            dl.passes = Passes()
        learn.fit(5, 1e-3)
        # by which a resumed fold counts
        assert [dl.passes.next for dl in learn.dls.loaders] == [5, 5]
    assert epochs_kept(fewer) == [1, 3, 4]
    for epoch in (1, 3, 4):
        for name in (f"epoch{epoch:03d}.safetensors", f"oof-{epoch:03d}.safetensors"):
            assert (fewer / name).read_bytes() == (plain / name).read_bytes()
    assert len(list(fewer.glob("oof-*"))) == 3
    whole, sparse = (pd.read_csv(folder / "history.csv") for folder in (plain, fewer))
    whole.loc[[0, 2], [name for name in whole if name not in ("epoch", "train_loss", "lr")]] = np.nan
    pd.testing.assert_frame_equal(sparse, whole)


def test_patience_counts_validated_epochs(learner):
    learn = learner(ValidateEvery(2), Scripted([None, 0.3, None, 0.2, None, 0.1]), EarlyStopping(patience=1))
    learn.fit(6, 1e-3)
    assert len(learn.recorder.values) == 4


def test_an_epoch_that_is_the_last_in_time_is_validated(learner):
    learn = learner(late := ValidateEvery(9, lambda: late.learn.epoch == 1))
    learn.fit(3, 1e-3)
    assert [len(values) > 1 for values in learn.recorder.values] == [False, True, True]


def test_dropout_is_a_function_of_the_step(learner):
    losses = []
    for noise in (3, 4):
        learn = learner(drop_rate=0.5)
        learn.dls.train.passes = Passes()
        torch.manual_seed(noise)  # earlier random numbers must not matter
        learn.fit(1, 1e-3)
        losses.append([float(x) for x in learn.recorder.losses])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (float("nan"), "predictions have NaN or infinity"),
        (float("inf"), "predictions have NaN or infinity"),
        # probabilities of exactly 0 and 1, which could be scored
        (-3.5e27, r"outputs in validation reach 3\.5e\+27"),
    ],
)
def test_predictions_of_nan_or_absurd_ones_end_the_fit(learner, tmp_path, value, found):
    class Spoil(Callback):
        def before_validate(self):
            self.learn.model.heads[0].bias.data[0] = value

    learn = learner(Spoil(), OOFCollector(tmp_path), Checkpoint(tmp_path))
    with pytest.raises(DivergenceError, match=f"^epoch 1: the network's {found}$"):
        learn.fit(1, 1e-3)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_has_the_permissions_of_any_file(tmp_path):
    save_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
