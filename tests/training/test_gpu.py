"""What only a GPU can show; examples/benchmarks/gpu.py runs these tests, and times the GPU besides."""

import subprocess
import sys
from contextlib import contextmanager

import adamp
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file
from small_learners import (
    TRAIN,
    VALID,
    AtBatch,
    KilledError,
    Weights,
    assert_close,
    kill,
    small_dls,
    small_learner,
)
from torch import nn

from fastmask.export import predict_onnx
from fastmask.export.onnx import export_onnx
from fastmask.inference.predictions import predict
from fastmask.model.adamp import AdamP
from fastmask.model.precision import tf32
from fastmask.training.step import Precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch):
    """Let cuDNN take kernels that add in the same order each time."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def keep_busy():
    """Give the GPU some milliseconds of work, which the host does not wait for."""
    busy = torch.randn(4096, 4096, device=GPU)
    for _ in range(10):
        busy = busy @ busy.T / 4096


@pytest.mark.parametrize("precision", DTYPES)
def test_a_killed_run_resumes_to_the_same_weights(train, tmp_path, precision):
    # with the checkpoints of both epochs, since the best may differ by the last bit of its score
    settings = {"device": "cuda", "precision": precision, "fold": [0], "save_every": "1", "epochs": 2, "top_k": 2}
    whole = train(tmp_path / "whole", **settings)
    with pytest.raises(KilledError):
        train(tmp_path / "run", cbs=[AtBatch(6, kill)], **settings)
    resumed = train(tmp_path / "run", resume=True, **settings)
    for one, other in zip(whole.checkpoints(0), resumed.checkpoints(0), strict=True):
        assert one.name == other.name
        assert_close(load_file(one), load_file(other), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_first_losses_are_those_of_fp32(table, precision):
    losses, dtypes = {}, {each: set() for each in ("fp32", precision)}
    for each, seen in dtypes.items():
        learn = small_learner(small_dls(table, device=GPU), precision=each)
        learn.model.register_forward_hook(lambda _, inputs, logits, seen=seen: seen.add(logits.dtype))
        learn.fit(1)
        losses[each] = [float(loss) for loss in learn.recorder.losses]
        assert all(p.dtype == torch.float32 for p in learn.model.parameters())
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)
    assert dtypes == {"fp32": {torch.float32}, precision: {DTYPES[precision]}}


class HugeScale(Callback):
    """Scales losses by so much that all gradients overflow in fp16."""

    order = Precision.order + 1

    def before_fit(self):
        self.learn.precision.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**100)


def test_steps_that_overflow_in_fp16_are_skipped(table):
    weights = Weights()
    learn = small_learner(small_dls(table, device=GPU), precision="fp16", cbs=[HugeScale(), weights])
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(1)
    assert not weights.steps
    assert all(torch.equal(p.cpu(), q) for p, q in zip(learn.model.parameters(), before, strict=True))
    assert learn.precision.scaler.get_scale() == 2.0 ** (100 - len(learn.recorder.losses))


def test_tf32_is_used_only_where_it_is_allowed():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    a, b = torch.randn(2, 1024, 1024, device=GPU)
    x, filters = torch.randn(8, 64, 32, 32, device=GPU), torch.randn(64, 64, 3, 3, device=GPU)
    exact = a.double() @ b.double(), nn.functional.conv2d(x.double(), filters.double())
    for allowed, low, high in ((False, 0, 1e-5), (True, 1e-5, 1e-2)):
        with tf32(GPU, allowed):
            found = a @ b, nn.functional.conv2d(x, filters)
        for one, other in zip(found, exact, strict=True):
            assert low <= float((one - other).abs().max() / other.abs().max()) <= high


@contextmanager
def no_wait():
    """A block in which it is an error to wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_are_those_of_a_cpu_however_far_the_gpu_is_behind(table):
    """Memory that is still being copied from must not be filled with the next batch; none waits but the first."""
    on_cpu, on_gpu = (small_dls(table, augments=(TRAIN, VALID), device=d) for d in ("cpu", GPU))
    for name in ("train", "valid"):
        expected, found = list(getattr(on_cpu, name)), []
        batches = iter(getattr(on_gpu, name))
        found.append(next(batches))
        for _ in expected[1:]:
            keep_busy()
            with no_wait():
                found.append(next(batches))
        found = [[part.as_subclass(torch.Tensor).clone() for part in batch] for batch in found]
        assert len(found) == len(expected) > 1
        for (x, y), (own_x, own_y) in zip(expected, found, strict=True):
            assert own_x.device.type == "cuda"
            torch.testing.assert_close(own_x.cpu(), x.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-5)
            assert torch.equal(own_y.cpu(), y.as_subclass(torch.Tensor))


def test_the_network_and_its_photos_are_channels_last(table):
    learn, seen = small_learner(small_dls(table, device=GPU)), []
    learn.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    learn.fit(1)
    filters = [p for p in learn.model.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert filters
    for tensor in (*filters, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


class NoWait(Callback):
    """Fails where a training step, from its batch to its end, waits for the GPU; the first step warms up."""

    order = -100

    def before_batch(self):
        if self.training and self.iter:
            keep_busy()
            torch.cuda.set_sync_debug_mode("error")


class WaitAgain(Callback):
    order = 1000

    def after_batch(self):
        torch.cuda.set_sync_debug_mode("default")

    after_cancel_batch = after_batch


@pytest.mark.parametrize(
    ("settings", "bs"),
    [({}, 8), ({"ema": 0.9}, 8), ({"precision": "bf16"}, 8), ({"accumulate": 2}, 4)],
    ids=["plain", "averaged", "bf16", "in parts"],
)
def test_no_training_step_waits_for_the_gpu(table, settings, bs):
    learn = small_learner(small_dls(table, device=GPU, bs=bs), cbs=[NoWait(), WaitAgain()], **settings)
    try:
        learn.fit(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(learn.recorder.losses) > 4


def test_a_step_of_adamp_is_the_package_s():
    torch.manual_seed(0)
    start = [torch.randn(16, 8, 3, 3), torch.randn(16), torch.randn(10, 16)]
    ours, theirs = ([nn.Parameter(t.to(GPU)) for t in start] for _ in range(2))
    options = {"lr": 1e-2, "weight_decay": 1e-2}
    pair = AdamP(ours, **options), adamp.AdamP(theirs, **options)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_predictions_are_those_of_a_cpu(finished_run, contest):
    paths = sorted(contest.rglob("*.jpg"))[:20]
    with tf32(GPU, False):
        on_cpu, on_gpu = (predict(finished_run, paths, device=d, precision="fp32") for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu.probabilities, on_cpu.probabilities, atol=2e-3)


ALONE = """
import sys
import torch
import torch.distributed as dist
sys.path[:0] = {path!r}
from small_learners import TINY, small_dls, small_learner
from torch.nn.parallel import DistributedDataParallel
from fastmask.data.contest import read_contest
from fastmask.training.distributed import WholeBatchTrainer
from fastmask.training.processes import Processes

device, used = torch.device("cuda:0"), set()
torch.cuda.set_device(device)
dist.init_process_group("nccl", init_method={store!r}, rank=0, world_size=1)


class Alone(WholeBatchTrainer):
    # Accelerate leaves the network of one process as it is
    def before_fit(self):
        super().before_fit()
        self.learn.model = DistributedDataParallel(self.learn.model, device_ids=[0])

    def before_batch(self):
        used.add(type(self.learn.model).__name__)


table, losses = read_contest({contest!r}), []
for cbs in ([], [Alone(Processes(0, 1, device), device)]):
    learn = small_learner(small_dls(table, augments=(TINY, TINY), device=device), cbs=cbs)
    learn.fit(1)
    losses.append(torch.stack([loss.detach() for loss in learn.recorder.losses]))
torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
print(dist.get_backend(), *used, type(learn.model).__name__)
dist.destroy_process_group()
"""


def test_one_process_under_nccl_trains_as_without(contest, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    # by which Accelerate knows that there are processes
    monkeypatch.setenv("LOCAL_RANK", "0")
    code = ALONE.format(path=sys.path, contest=str(contest), store=f"file://{tmp_path}/store")
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["nccl", "DistributedDataParallel", "MultiHeadNet"]


def test_an_exported_file_answers_alike_on_the_gpu(finished_run, contest, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    model = export_onnx(finished_run, tmp_path / "model.onnx").model
    paths, answers = sorted(contest.rglob("*.jpg"))[:20], []
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        session = predict_onnx.open_model(model, provider=provider)
        assert session.get_providers()[0] == provider
        answers.append(np.concatenate(list(predict_onnx.predict(session, predict_onnx.read_meta(session), paths))))
    np.testing.assert_allclose(*answers, atol=2e-3)
