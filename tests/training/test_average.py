import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file
from small_learners import Weights, assert_close, averaged, tensors
from torch import nn

from fastmask.run.tensors import read_oof
from fastmask.system.errors import UsageError
from fastmask.training.average import EMA, SWA, swap_tensors
from fastmask.training.callbacks import Checkpoint, EarlyStopping, OOFCollector, ValidateEvery, finds_lr
from fastmask.training.finder import lr_find


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"precision": "bf16"}])
def test_the_average_is_validated_and_saved_while_the_weights_train(make, tmp_path, settings):
    weights, folder = Weights(), tmp_path
    learn = make(weights, Checkpoint(folder, top_k=2), OOFCollector(folder), bn=True, ema=0.7, **settings)
    plain = make(raw := Weights(), bn=True, **settings)
    for one in (learn, plain):
        one.fit(2)
    assert learn.recorder.losses == plain.recorder.losses
    assert all(torch.equal(a[n], b[n]) for a, b in zip(weights.starts, raw.starts, strict=True) for n in a)
    # steps per epoch
    each = 5 if "accumulate" not in settings else 2
    for epoch in range(2):
        expected = averaged(weights.steps[: (epoch + 1) * each], 0.7)
        assert_close(load_file(folder / f"epoch{epoch:03d}.safetensors"), expected, atol=1e-6, rtol=1e-5)
        plain.model.load_state_dict(expected, strict=False)
        loss, *scores = plain.validate()
        assert learn.recorder.values[epoch][1] == pytest.approx(loss, abs=1e-5)
        assert list(learn.recorder.values[epoch][2:]) == pytest.approx(scores)
        np.testing.assert_allclose(read_oof(folder, epoch), plain.get_preds()[0], atol=1e-5)


def test_a_fit_leaves_the_average_as_it_was_last_validated(make, tmp_path):
    learn = make(Checkpoint(tmp_path, monitor="valid_loss", top_k=9), EarlyStopping(patience=1), ema=0.9, lr=1e-9)
    learn.fit(5)
    assert len(learn.recorder.values) == 2
    last = list(learn.recorder.values[-1])
    kept = load_file(tmp_path / "epoch001.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in learn.model.state_dict().items())
    assert list(learn.validate()) == last[1:]
    before = tensors(learn.model)
    learn.get_preds()
    learn.model[1].weight.data.zero_()
    assert learn.validate()[0] != last[1]
    learn.model.load_state_dict(before)
    learn.fit(1)
    assert not torch.equal(learn.model[1].weight, before["1.weight"])


def test_swa_is_the_mean_of_the_weights_at_the_ends_of_the_last_epochs(make):
    ends, seen = [], []

    class Ends(Callback):
        # before SWA shows its average, and after
        order = SWA.order - 1

        def before_validate(self):
            ends.append(tensors(self.learn.model))

    class Seen(Callback):
        order = SWA.order + 1

        def before_validate(self):
            seen.append(tensors(self.learn.model))

    learn = make(Ends(), Seen(), swa=0.5, bn=True)
    learn.fit(4)
    # epochs 3 and 4 are averaged; those before are validated as they are
    for epoch in (0, 1, 2):
        assert_close(seen[epoch], ends[epoch], atol=0, rtol=0)
    mean = {name: (ends[2][name] + t) / 2 for name, t in ends[3].items() if t.is_floating_point()}
    assert_close(seen[3], mean)
    assert_close(learn.model.state_dict(), mean)
    # training continues from the trained weights
    plain = make(Ends(), bn=True)
    kept, ends = ends, []
    plain.fit(4)
    assert_close(plain.model.state_dict(), kept[3], atol=0, rtol=0)


def test_swa_averages_epochs_that_are_not_validated(make):
    ends = []
    for cbs in ((), (ValidateEvery(3),)):
        learn = make(*cbs, swa=0.3, bn=True)
        learn.dls.train.passes.next = 0
        learn.fit(4)
        ends.append(tensors(learn.model))
    assert_close(ends[1], ends[0], atol=0, rtol=0)


def test_swa_averages_as_a_gpu_does_it(make, monkeypatch):
    """torch has another path where a device multiplies many tensors at once; integers must survive it."""
    monkeypatch.setattr("torch.optim.swa_utils._get_foreach_kernels_supported_devices", lambda: ["cpu"])
    learn = make(swa=0.3, bn=True)
    learn.fit(3)
    assert all(np.isfinite(learn.recorder.values[-1][:2]))


class Interrupts(Callback):
    """Ends the second validation of the fit with an error, when the average is in place."""

    order = EMA.order + 1

    def before_validate(self):
        if self.learn.epoch == 1:
            raise KeyboardInterrupt


def test_a_fit_interrupted_in_its_validation_continues_from_the_trained_weights(make):
    learn = make(Interrupts(), ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2)
    # in validation the average is in place, and holds the trained weights
    trained = {name: t.clone() for name, t in learn.ema._average.module.state_dict().items()}
    assert any((t != trained[name]).any() for name, t in learn.model.state_dict().items())
    learn.remove_cbs(Interrupts)
    seen = []

    class Start(Callback):
        order = EMA.order + 1

        def before_train(self):
            seen.append({name: t.clone() for name, t in learn.model.state_dict().items()})

    learn.fit(1, cbs=Start())
    assert all((t == trained[name]).all() for name, t in seen[0].items())
    assert all(np.isfinite(learn.recorder.values[-1][:2]))


def test_networks_exchange_their_tensors():
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.zeros_(other.weight)
    other.running_mean += 3
    pointers = one.weight.data_ptr(), other.weight.data_ptr()
    swap_tensors(one, other)
    assert (one.weight.sum(), one.running_mean.sum()) == (0, 6)
    assert (other.weight.data_ptr(), one.weight.data_ptr()) == pointers


@pytest.mark.parametrize("settings", [{"swa": 0.5}, {"ema": 0.9}])
def test_a_validation_and_the_finder_average_nothing(make, monkeypatch, tmp_path, settings):
    # fastai's finder writes into the current folder
    monkeypatch.chdir(tmp_path)
    learn = make(**settings)
    before = tensors(learn.model)
    learn.validate()
    lr_find(learn, num_it=20)
    assert_close(learn.model.state_dict(), before, atol=0, rtol=0)
    learn.lr_find(num_it=20, show_plot=False)
    assert_close(learn.model.state_dict(), before, atol=0, rtol=0)
    assert not finds_lr(learn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema": 1.0}, "decay of averaged weights lies between 0 and 1"),
        ({"ema": -0.5}, "decay of averaged weights lies between 0 and 1"),
        ({"swa": 2}, "fraction of the training before it, between 0 and 1; found 2"),
        ({"swa": 0.5, "ema": 0.9}, "two averages of the same weights"),
    ],
)
def test_an_invalid_average_is_refused(make, settings, message):
    with pytest.raises(UsageError, match=message):
        make(**settings)
