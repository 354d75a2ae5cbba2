import io
from copy import deepcopy
from functools import partial

import albumentations as A
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.learner import AvgLoss, AvgSmoothLoss
from fastai.optimizer import OptimWrapper
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmask.api import cross_validate
from fastmask.config import make_config
from fastmask.data.augment import Augmentation
from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import dataloaders
from fastmask.data.photo_dl import Passes
from fastmask.heads import Head, Heads
from fastmask.model.losses import FocalLoss
from fastmask.run.tensors import read_oof
from fastmask.system.errors import FastmaskError, UsageError
from fastmask.system.files import read_yaml
from fastmask.training import plan as plan_module
from fastmask.training.callbacks import Checkpoint, EarlyStopping, OOFCollector, finds_lr
from fastmask.training.finder import lr_find
from fastmask.training.guards import FiniteLoss
from fastmask.training.learner import mask_learner
from fastmask.training.plan import prepare
from fastmask.training.step import (
    EMA,
    SWA,
    Accumulation,
    MeanLoss,
    Precision,
    SmoothLoss,
    autocast,
    check_compiler,
    resolve_precision,
    swap_tensors,
    tf32,
)

SMALL = Augmentation(A.Compose([A.CenterCrop(400, 200), A.Resize(16, 8)]))
SGD = partial(OptimWrapper, opt=torch.optim.SGD)
CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


@pytest.fixture(scope="module")
def make(table):
    """A learner of a small network, 42 photos to train on, plain SGD; `bn` gives the network a batch norm."""
    folds = assign_folds(table, 2, stratify="gender")

    def make(*cbs, bs=8, bn=False, lr=0.1, **settings):
        dls = dataloaders(table, 0, folds, augments=(SMALL, SMALL), bs=bs, num_workers=0, device="cpu")
        torch.manual_seed(0)
        norm = [nn.BatchNorm1d(8)] if bn else []
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 8, 8), *norm, nn.Tanh(), nn.Linear(8, 8))
        options = {"opt_func": SGD, "lr": lr, "wd": 0.0, **settings}
        learn = mask_learner(dls, network, cbs=list(cbs), **options)
        learn.remove_cbs(ProgressCallback)
        learn.logger = lambda *_: None
        return learn

    return make


def batches(learn, epochs=1):
    """The training batches that a fit of the learner will see, and the network as it starts."""
    dl, drawn = learn.dls.train, []
    for _ in range(epochs):
        drawn += [(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)) for x, y in dl]
    dl.passes.next = 0
    return drawn, deepcopy(learn.model).train()


def tensors(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_close(one, other, **tolerance):
    torch.testing.assert_close({k: one[k] for k in other}, dict(other), **tolerance)


class Weights(Callback):
    """Keeps the weights after each optimizer step, and those that an epoch leaves to the next."""

    order = EMA.order - 1

    def __init__(self):
        self.steps, self.starts, self.skipped = [], [], False

    def before_train(self):
        self.starts.append(tensors(self.learn.model))

    def after_cancel_step(self):
        self.skipped = True

    def after_step(self):
        if not self.skipped:
            self.steps.append(tensors(self.learn.model))
        self.skipped = False


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "fast_bf16", "expected"),
    [
        ("auto", CPU, False, "fp32"),
        ("bf16", CPU, False, "bf16"),
        ("auto", CUDA, True, "bf16"),
        ("auto", CUDA, False, "fp16"),
        ("fp16", CUDA, True, "fp16"),
        ("fp32", CUDA, True, "fp32"),
    ],
)
def test_auto_is_what_the_device_is_fast_in(monkeypatch, name, device, fast_bf16, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda d: asked.append(d) or torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast_bf16 or including_emulation)
    assert resolve_precision(name, device) == expected
    assert asked == ([CUDA] if (name, device) == ("auto", CUDA) else [])


def test_a_precision_that_cannot_be_had_is_refused(make):
    with pytest.raises(UsageError, match="fp16 needs a GPU; on a CPU take fp32 or bf16"):
        make(precision="fp16")
    with pytest.raises(UsageError, match="no precision 'bf17'; expected auto, fp32"):
        make(precision="bf17")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_block_of_autocast_is_torch_s(precision, dtype):
    x = torch.randn(4, 4)
    with autocast(CPU, precision):
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


def test_bf16_trains_as_a_plain_loop_under_autocast(make):
    learn = make(bn=True, precision="bf16")
    drawn, network = batches(learn, epochs=2)
    loss_func, opt = FocalLoss(learn.loss_func.heads), torch.optim.SGD(network.parameters(), lr=0.1)
    for x, y in drawn:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(x)
            assert logits.dtype == torch.bfloat16
            loss = loss_func(logits.float(), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
    learn.fit(2)
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-6, rtol=0)


def test_bf16_predictions_are_handed_on_as_float32(make):
    learn, plain = make(precision="bf16"), make()
    expected = autocast(CPU, "bf16")
    x, _ = learn.dls.valid.one_batch()
    with expected, torch.no_grad():
        logits = learn.model(x).as_subclass(torch.Tensor)
    raw, _ = learn.get_preds(act=lambda logits: logits)
    assert (logits.dtype, raw.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(raw[: len(x)].as_subclass(torch.Tensor), logits.float())
    assert not torch.equal(raw, plain.get_preds(act=lambda logits: logits)[0])


class FailsOnce(Callback):
    """An error in the middle of a batch, where autocast is on."""

    order = Precision.order + 1

    def after_pred(self):
        self.learn.remove_cb(self)
        raise KeyboardInterrupt


def test_an_interruption_does_not_leave_torch_in_bf16(make):
    learn = make(FailsOnce(), precision="bf16")
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert not torch.is_autocast_enabled("cpu")
    learn.add_cb(FailsOnce())
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    learn.get_preds()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_fp16_leaves_out_the_steps_that_overflow(make, batches_a_step):
    """torch's own scaler in a plain loop, on the CPU, with a loss so large that its first scales overflow."""
    weights, accumulation = Weights(), [Accumulation(2)] * (batches_a_step - 1)
    learn = make(Precision("fp16"), weights, *accumulation, ema=0.5, lr=1e-4)
    heads = learn.loss_func.heads
    learn.loss_func = FocalLoss(Heads([Head(h.name, h.classes, weight=100.0) for h in heads]), gamma=0)
    drawn, network = batches(learn, epochs=5)
    opt, scaler, stepped = torch.optim.SGD(network.parameters(), lr=1e-4), torch.amp.GradScaler("cpu"), []
    for number, (x, y) in enumerate(drawn, start=1):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = learn.loss_func(network(x).float(), y) / batches_a_step
        scaler.scale(loss).backward()
        if number % batches_a_step == 0:
            before = tensors(network)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
            stepped.append(any(not torch.equal(t, before[n]) for n, t in network.state_dict().items()))
    assert stepped.count(True) in range(1, len(stepped))
    learn.fit(5)
    assert len(weights.steps) == stepped.count(True)
    assert_close(weights.steps[-1], network.state_dict(), atol=1e-6, rtol=0)
    assert_close(learn.model.state_dict(), averaged(weights.steps, 0.5), atol=1e-6, rtol=1e-5)


# --- TF32 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["highest", "high"])
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_as_asked_in_a_fit_and_as_before_after_it(recwarn, before, allowed):
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = not allowed
        with pytest.raises(KeyError), tf32(CUDA, allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
            raise KeyError
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (before, not allowed)
        with tf32(CPU, allowed):
            assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]
    assert not recwarn.list


# --- compiling ------------------------------------------------------------------------------------------------------


def test_a_compiled_network_trains_as_it_would_otherwise(make, tmp_path, monkeypatch):
    """torch's tracing without its code generation, which takes a minute; the last batches are smaller ones."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (make(OOFCollector(tmp_path / n), Checkpoint(tmp_path / n), ema=0.9) for n in ("a", "b"))
    compiled.model.compile()
    for learn in (plain, compiled):
        learn.fit(2)
    assert len(plain.dls.valid_ds) % 8
    np.testing.assert_allclose(read_oof(tmp_path / "b", 1), read_oof(tmp_path / "a", 1), atol=1e-6)
    (kept,) = (tmp_path / "b").glob("epoch*")
    assert load_file(kept).keys() == plain.model.state_dict().keys()


def test_a_machine_that_cannot_compile_is_told_of(monkeypatch):
    def broken(function, **options):
        def compiled(x):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(FastmaskError, match=r"cannot compile here \(Failed to find C compiler\); install a C\+\+"):
        check_compiler(CPU)


# --- accumulated batches --------------------------------------------------------------------------------------------


def test_two_batches_of_8_are_one_of_16(make):
    learn = make(accumulate=2, lr=1.0)
    drawn, network = batches(learn)
    loss_func, opt = FocalLoss(learn.loss_func.heads), torch.optim.SGD(network.parameters(), lr=1.0)
    for first, second in zip(drawn[:-1:2], drawn[1::2], strict=True):
        x, y = (torch.cat(pair) for pair in zip(first, second, strict=True))
        loss_func(network(x), y).backward()
        opt.step()
        opt.zero_grad()
    learn.fit(1)
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rest_of_an_epoch_goes_into_the_next(make, precision):
    """Five batches an epoch, two a step: 2 steps and a half, which ends in the second epoch; a third leaves a half."""
    weights = Weights()
    learn = make(weights, accumulate=2, precision=precision)
    drawn, network = batches(learn, epochs=3)
    assert len(drawn) == 15
    opt = torch.optim.SGD(network.parameters(), lr=0.1)
    for number, (x, y) in enumerate(drawn, start=1):
        with autocast(CPU, precision):
            logits = network(x).float()
        (FocalLoss(learn.loss_func.heads)(logits, y) / 2).backward()
        if number % 2 == 0:
            opt.step()
            opt.zero_grad()
    learn.fit(3)
    assert len(weights.steps) == 7
    assert_close(learn.model.state_dict(), network.state_dict(), atol=1e-6, rtol=0)
    one = learn.dls.train.passes.next
    learn.fit(1)
    # the half of the fit before was dropped: a fresh learner from the same weights takes the same steps
    other = make(accumulate=2, precision=precision)
    other.model.load_state_dict(weights.steps[6])
    other.dls.train.passes = Passes(one)
    other.fit(1)
    assert_close(learn.model.state_dict(), other.model.state_dict(), atol=1e-6, rtol=0)


def test_the_learning_rate_follows_the_batches(make):
    plain, accumulated = make(), make(accumulate=2)
    for learn in (plain, accumulated):
        learn.fit_one_cycle(2, 1e-2)
    assert accumulated.recorder.lrs == plain.recorder.lrs
    assert len(set(plain.recorder.lrs)) == 10
    with pytest.raises(UsageError, match="1 batch or more"):
        make(accumulate=0)


# --- averaged weights -----------------------------------------------------------------------------------------------


def averaged(steps, decay):
    """The exponential average of the weights after each step, whose first decays are 0, 1 - 2^-0.75, 1 - 3^-0.75."""
    average = {name: tensor.double() for name, tensor in steps[0].items()}
    for n, weights in enumerate(steps[1:], start=1):
        d = min(decay, 1 - (n + 1) ** -0.75)
        average = {name: d * average[name] + (1 - d) * tensor for name, tensor in weights.items()}
    return {name: tensor.float() for name, tensor in average.items() if "num_batches" not in name}


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"precision": "bf16"}])
def test_the_average_is_validated_and_kept_while_the_raw_weights_train(make, tmp_path, settings):
    weights, folder = Weights(), tmp_path
    learn = make(weights, Checkpoint(folder, top_k=2), OOFCollector(folder), bn=True, ema=0.7, **settings)
    plain = make(raw := Weights(), bn=True, **settings)
    for one in (learn, plain):
        one.fit(2)
    assert learn.recorder.losses == plain.recorder.losses
    assert all(torch.equal(a[n], b[n]) for a, b in zip(weights.starts, raw.starts, strict=True) for n in a)
    each = 5 if "accumulate" not in settings else 2
    for epoch in range(2):
        expected = averaged(weights.steps[: (epoch + 1) * each + (epoch and each == 2)], 0.7)
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
    # epochs 3 and 4 count; those before are validated as they are
    for epoch in (0, 1, 2):
        assert_close(seen[epoch], ends[epoch], atol=0, rtol=0)
    mean = {name: (ends[2][name] + t) / 2 for name, t in ends[3].items() if t.is_floating_point()}
    assert_close(seen[3], mean)
    assert_close(learn.model.state_dict(), mean)
    # training goes on from the weights that it left
    plain = make(Ends(), bn=True)
    kept, ends = ends, []
    plain.fit(4)
    assert_close(plain.model.state_dict(), kept[3], atol=0, rtol=0)


def test_swa_averages_as_a_gpu_does_it(make, monkeypatch):
    """torch takes another path where a device multiplies many tensors at once; integers must survive it."""
    monkeypatch.setattr("torch.optim.swa_utils._get_foreach_kernels_supported_devices", lambda: ["cpu"])
    learn = make(swa=0.3, bn=True)
    learn.fit(3)
    assert all(np.isfinite(learn.recorder.values[-1][:2]))


def test_swa_averages_nothing_of_a_validation_or_of_the_finder(make, monkeypatch, tmp_path):
    # fastai's finder writes where it is
    monkeypatch.chdir(tmp_path)
    learn = make(swa=0.5)
    before = tensors(learn.model)
    learn.validate()
    learn.lr_find(num_it=20, show_plot=False)
    assert_close(learn.model.state_dict(), before, atol=0, rtol=0)
    with pytest.raises(UsageError, match="share of the training before it, between 0 and 1; found 2"):
        make(swa=2)
    with pytest.raises(UsageError, match="two averages of the same weights"):
        make(swa=0.5, ema=0.9)


class Interrupts(Callback):
    """Ends the second validation of the fit with an error, when the average is in place."""

    order = EMA.order + 1

    def before_validate(self):
        if self.learn.epoch == 1:
            raise KeyboardInterrupt


def test_a_fit_that_was_interrupted_in_its_validation_goes_on_from_the_trained_weights(make):
    learn = make(Interrupts(), ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2)
    # in validation the average is in place, and the trained weights wait beside it
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


def test_the_finder_averages_nothing(make, monkeypatch, tmp_path):
    # fastai's own writes where it is
    monkeypatch.chdir(tmp_path)
    learn = make(ema=0.9)
    before = tensors(learn.model)
    lr_find(learn, num_it=20)
    assert_close(learn.model.state_dict(), before, atol=0, rtol=0)
    learn.lr_find(num_it=20, show_plot=False)
    assert_close(learn.model.state_dict(), before, atol=0, rtol=0)
    assert not finds_lr(learn)


def test_networks_exchange_their_tensors():
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.zeros_(other.weight)
    other.running_mean += 3
    pointers = one.weight.data_ptr(), other.weight.data_ptr()
    swap_tensors(one, other)
    assert (one.weight.sum(), one.running_mean.sum()) == (0, 6)
    assert (other.weight.data_ptr(), one.weight.data_ptr()) == pointers


@pytest.mark.parametrize("decay", [1.0, -0.5])
def test_a_decay_that_averages_nothing_is_refused(make, decay):
    with pytest.raises(UsageError, match="between 0 and 1"):
        make(ema=decay)


# --- losses and waiting ---------------------------------------------------------------------------------------------


def test_losses_are_fastai_s_bit_for_bit(make):
    pairs = [(MeanLoss(), AvgLoss()), (SmoothLoss(beta=0.9), AvgSmoothLoss(beta=0.9))]
    learn = make()
    for ours, theirs in pairs:
        ours.reset()
        theirs.reset()
    for photos in (8, 8, 3):
        learn.yb = (torch.zeros(photos, 3),)
        learn.loss = torch.rand(photos, requires_grad=True)
        for ours, theirs in pairs:
            ours.accumulate(learn)
            theirs.accumulate(learn)
            assert torch.equal(ours.value, theirs.value)


def test_the_recorder_is_as_fastai_leaves_it(make):
    ours, theirs = make(), make()
    theirs.recorder.loss, theirs.recorder.smooth_loss = AvgLoss(), AvgSmoothLoss()
    for learn in (ours, theirs):
        learn.fit(2)
    assert ours.recorder.losses == theirs.recorder.losses
    assert ours.recorder.iters == theirs.recorder.iters == [5, 10]
    assert [v[:3] for v in ours.recorder.values] == [v[:3] for v in theirs.recorder.values]
    assert ours.recorder.plot_loss(skip_start=0).lines[0].get_ydata().shape == (10,)
    ours.add_cb(ProgressCallback())
    ours.fit(1)


class Waits(TorchDispatchMode):
    """Fails where a number or a tensor would be copied from the device to the host, or a shape depends on numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, to = func.overloadpacket.__name__, (kwargs or {}).get("device")
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"), name
        assert not (name == "_to_copy" and args[0].is_meta and to is not None and to.type == "cpu"), name
        return func(*args, **(kwargs or {}))


def walk(learn, epoch_part, batch_list):
    learn(f"before_{epoch_part}")
    with Waits():
        for number, batch in enumerate(batch_list):
            learn.one_batch(number, batch)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_step_waits_for_the_device(make, tmp_path, device):
    """Tensors of the device "meta" have no numbers, so nothing can be copied from them."""
    cbs = [OOFCollector(tmp_path), Checkpoint(tmp_path), FiniteLoss()]
    # torch has no autocast and timm no average there
    settings = {"precision": "bf16", "ema": 0.9} if device == "cpu" else {}
    learn = make(*cbs, bn=True, accumulate=2, **settings)
    train, valid = list(learn.dls.train), list(learn.dls.valid)
    learn.dls.device = torch.device(device)
    learn.model.to(device)
    learn.create_opt()
    learn("before_fit")
    learn("before_epoch")
    learn.dl, learn.n_iter = learn.dls.train, len(train)
    walk(learn, "train", train)
    assert len(learn.recorder.losses) == len(train)
    assert learn.recorder.losses[-1].device.type == device
    if device == "meta":
        # the end of the epoch is when the losses go to the host
        with pytest.raises(NotImplementedError, match="LossesToHost"):
            learn("after_train")
    learn.dl, learn.n_iter = learn.dls.valid, len(valid)
    with torch.no_grad():
        walk(learn, "validate", valid)
    assert learn.recorder.loss.count == len(learn.dls.valid_ds)
    assert learn.metrics[0].counts.device.type == device


def test_fastai_s_own_losses_would_wait(make):
    learn = make()
    learn.recorder.smooth_loss = AvgSmoothLoss()
    learn.model.to("meta")
    learn.dls.device = torch.device("meta")
    learn.create_opt()
    learn("before_fit")
    learn("before_epoch")
    learn.dl, learn.n_iter = learn.dls.train, 1
    with pytest.raises((AssertionError, NotImplementedError)):
        walk(learn, "train", [learn.dls.train.one_batch()])


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_computed_in_and_resumes_in_that_alone(contest, small_settings, tmp_path):
    table, out = read_contest(contest), tmp_path / "run"
    settings = {**small_settings, "accumulate": 2, "ema": 0.5, "log": io.StringIO()}
    run = cross_validate(table, out=out, fold=[0], precision="auto", **settings)
    assert read_yaml(out / "config.yaml")["precision"] == run.config.precision == "fp32"
    with pytest.raises(UsageError, match="was started with precision fp32, now it is bf16"):
        cross_validate(table, out=out, fold=[1], precision="bf16", resume=True, **settings)
    plan = prepare(table, make_config({**small_settings, "accumulate": 2, "ema": 0.5, "precision": "bf16"}))
    learn = plan.learner(0)
    assert (learn.precision.precision, learn.accumulation.batches, learn.ema.decay) == ("bf16", 2, 0.5)
    assert str(plan).endswith(" on cpu in bf16")


def test_a_run_that_cannot_be_compiled_does_not_start(contest, small_settings, monkeypatch):
    asked = []

    def refuse(device):
        asked.append(device)
        raise FastmaskError("no compiler")

    monkeypatch.setattr(plan_module, "check_compiler", refuse)
    prepare(read_contest(contest), make_config(small_settings))
    with pytest.raises(FastmaskError, match="no compiler"):
        prepare(read_contest(contest), make_config({**small_settings, "compile": True}))
    assert asked == [CPU]
