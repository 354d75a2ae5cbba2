from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.learner import AvgLoss, AvgSmoothLoss
from safetensors.torch import load_file
from small_learners import TINIEST, Weights, assert_close, averaged, batches, flat_learner, small_dls, tensors
from torch.utils._python_dispatch import TorchDispatchMode

from fastmask.heads import Head, Heads
from fastmask.model.losses import CrossEntropyLoss, FocalLoss
from fastmask.model.precision import autocast
from fastmask.run.tensors import read_oof
from fastmask.system.errors import FastmaskError, UsageError
from fastmask.system.files import read_yaml
from fastmask.training import setup
from fastmask.training.callbacks import Checkpoint, OOFCollector
from fastmask.training.description import describe_plan
from fastmask.training.guards import FiniteLoss
from fastmask.training.step import AsyncCopy, Precision, SmoothLoss

CPU = torch.device("cpu")


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


def test_bf16_predictions_are_float32(make):
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
    """Fails in the middle of a batch, where autocast is on."""

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


@pytest.mark.parametrize("parts", [1, 2])
def test_fp16_skips_the_steps_that_overflow(make, parts):
    """torch's own scaler in a plain loop, on the CPU, with a loss so large that its first scales overflow."""
    weights = Weights()
    learn = make(Precision("fp16"), weights, bs=8 // parts, accumulate=parts, ema=0.5, lr=1e-4)
    heads = learn.loss_func.heads
    learn.loss_func = FocalLoss(Heads([Head(h.name, h.classes, weight=100.0) for h in heads]), gamma=0)
    drawn, network = batches(learn, epochs=5)
    opt, scaler, stepped = torch.optim.SGD(network.parameters(), lr=1e-4), torch.amp.GradScaler("cpu"), []
    for x, y in drawn:
        with torch.autocast("cpu", dtype=torch.float16):
            loss = learn.loss_func(torch.cat([network(part) for part in x.chunk(parts)]).float(), y)
        scaler.scale(loss).backward()
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


def test_the_smoothed_loss_is_fastai_s_bit_for_bit(make):
    ours, theirs = SmoothLoss(beta=0.9), AvgSmoothLoss(beta=0.9)
    learn = make()
    for each in (ours, theirs):
        each.reset()
    for photos in (8, 8, 3):
        learn.loss = torch.rand(photos, requires_grad=True)
        for each in (ours, theirs):
            each.accumulate(learn)
        assert torch.equal(ours.value, theirs.value)


class OfAll(FocalLoss):
    """A custom loss that is no mean over photos."""

    def forward(self, logits, y):
        return torch.log1p(super().forward(logits, y) ** 2)


WEIGHTS = [[1.0, 9.0, 2.0], [4.0, 1.0], [1.0, 2.0, 8.0]]
LOSSES = {
    "focal": FocalLoss,
    "class weights": partial(FocalLoss, alpha=WEIGHTS, label_smoothing=0.1),
    "soft F1": partial(FocalLoss, f1_share=0.5),
    "custom": OfAll,
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_validation_loss_does_not_depend_on_the_size_of_batches(table, name):
    """It is that of all logits and labels at once, in a plain PyTorch computation."""
    random, frame = np.random.default_rng(0), table.frame.copy()
    for head in table.heads.names:
        frame[head] = frame[head].where(random.random(len(frame)) < np.linspace(0, 1, len(frame)), "")
    table = replace(table, frame=frame)
    losses = {}
    for bs in (1, 4, 11, 42):
        learn = flat_learner(small_dls(table, augments=(TINIEST, TINIEST), bs=bs), loss_func=LOSSES[name](table.heads))
        losses[bs] = learn.validate()[0]
    batch = learn.dls.valid.new(bs=len(learn.dls.valid_ds)).one_batch()
    x, y = (tensor.as_subclass(torch.Tensor) for tensor in batch)
    assert (y < 0).any()
    with torch.no_grad():
        expected = float(learn.loss_func(learn.model.eval()(x), y))
    assert list(losses.values()) == pytest.approx([expected] * 4, abs=1e-6)
    # which fastai's mean of batches is not
    fastai_s = flat_learner(small_dls(table, augments=(TINIEST, TINIEST), bs=4), loss_func=LOSSES[name](table.heads))
    fastai_s.recorder.loss = AvgLoss()
    assert abs(fastai_s.validate()[0] - expected) > 1e-3


def test_the_cross_entropy_of_a_validation_is_pytorch_s(table):
    """A mean over the known labels of each head, which PyTorch weighs by their classes."""
    frame = table.frame.assign(age=table.frame["age"].where(np.arange(len(table)) % 5 > 2, ""))
    table = replace(table, frame=frame)
    dls = small_dls(table, augments=(TINIEST, TINIEST), bs=4)
    learn = flat_learner(dls, loss_func=CrossEntropyLoss(table.heads, alpha=WEIGHTS))
    logits, y = (tensor.as_subclass(torch.Tensor) for tensor in learn.get_preds(act=lambda logits: logits))
    parts = zip(logits.split([3, 2, 3], dim=1), y.T, WEIGHTS, strict=True)
    expected = sum(F.cross_entropy(p, t, torch.tensor(w), ignore_index=-1) for p, t, w in parts)
    assert learn.validate()[0] == pytest.approx(float(expected), abs=1e-6)


def test_the_recorder_is_as_fastai_leaves_it(make):
    ours, theirs = make(), make()
    theirs.recorder.loss, theirs.recorder.smooth_loss = AvgLoss(), AvgSmoothLoss()
    for learn in (ours, theirs):
        learn.fit(2)
    assert ours.recorder.losses == theirs.recorder.losses
    assert ours.recorder.iters == theirs.recorder.iters == [5, 10]
    for one, other in zip(ours.recorder.values, theirs.recorder.values, strict=True):
        assert list(one) == pytest.approx(list(other), abs=1e-6)
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
    assert learn.recorder.loss.value.device.type == device
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


def test_on_a_cpu_a_copy_arrives_at_once():
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    copy = AsyncCopy(weights * 2)
    assert copy.is_complete()
    assert copy.wait().tolist() == [2.0, 4.0]
    assert not copy.value.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_does_not_wait_for_the_gpu():
    busy = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        busy = busy @ busy.T / 8192
    copy = AsyncCopy(busy.mean())
    assert not copy.is_complete()
    assert copy.wait().item() == busy.mean().item()
    assert copy.is_complete()


@pytest.mark.bf16
def test_a_run_records_its_precision_and_resumes_only_in_that(train, plan_of, tmp_path):
    settings = {"accumulate": 2, "ema": 0.5, "fold": [0]}
    run = train(tmp_path / "run", precision="auto", epochs=1, **settings)
    assert read_yaml(run.path / "config.yaml")["precision"] == run.config.precision == "fp32"
    with pytest.raises(UsageError, match="was started with precision fp32, now it is bf16"):
        train(run.path, precision="bf16", epochs=1, resume=True, **settings)
    plan = plan_of(accumulate=2, ema=0.5, precision="bf16")
    learn = plan.learner(0)
    assert (learn.precision.precision, learn.accumulation.batches, learn.ema.decay) == ("bf16", 2, 0.5)
    assert describe_plan(plan).endswith(" on cpu in bf16")


def test_a_run_that_cannot_be_compiled_does_not_start(plan_of, monkeypatch):
    asked = []

    def refuse(device):
        asked.append(device)
        raise FastmaskError("no compiler")

    monkeypatch.setattr(setup, "check_compiler", refuse)
    plan_of()
    with pytest.raises(FastmaskError, match="no compiler"):
        plan_of(compile=True)
    assert asked == [CPU]
