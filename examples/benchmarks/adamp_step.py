"""What a step of AdamP costs beside the `adamp` package's, timm's and torch's AdamW, on gradients of a real training.

python examples/benchmarks/adamp_step.py [ARCH [WEIGHTS]]

Trains ARCH (tf_efficientnet_b4) by the package on drawn photos for 50 steps, and gives each step's gradients to all
optimizers in turn, each with weights of its own; those of the package and of timm lie in torch's default memory format,
because the package refuses channels-last weights. Also prints how far fastmask's weights end from the package's, and
how many weights the package projected.
"""

import sys
import time
from collections import Counter
from statistics import median

import adamp
import timm.optim
import torch
from torch import nn

from fastmask import Augmentation, FocalLoss, build_network, contest_heads, dataloaders, read_contest, report_pipelines
from fastmask.data.sample import cached_sample
from fastmask.model.adamp import AdamP

STEPS = 50
BATCH = 8
SIZE = (96, 64)
OPTIONS = {"lr": 3e-4, "weight_decay": 1e-5}


class CountedAdamP(adamp.AdamP):
    """The package's, counting the projections by view."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.projected = Counter()

    def _projection(self, p, grad, perturb, delta, wd_ratio, eps):
        self.views = []
        perturb, ratio = super()._projection(p, grad, perturb, delta, wd_ratio, eps)
        self.projected[self.views[-1] if ratio == wd_ratio else "not"] += 1
        return perturb, ratio

    def _cosine_similarity(self, x, y, eps, view_func):
        self.views.append("channel by channel" if view_func == self._channel_view else "as a whole")
        return super()._cosine_similarity(x, y, eps, view_func)


def copies(weights, memory_format=torch.preserve_format):
    return [nn.Parameter(p.detach().clone(memory_format=memory_format)) for p in weights]


def optimizers(weights):
    default = torch.contiguous_format
    return {
        "adamp package": CountedAdamP(copies(weights, default), **OPTIONS),
        "fastmask AdamP": AdamP(copies(weights), **OPTIONS),
        "timm AdamP": timm.optim.AdamP(copies(weights, default), **OPTIONS),
        "torch AdamW foreach": torch.optim.AdamW(copies(weights), **OPTIONS, foreach=True),
        "torch AdamW fused": torch.optim.AdamW(copies(weights), **OPTIONS, fused=True),
    }


def step_seconds(optimizer, grads):
    """A step by copies of `grads`, in seconds."""
    parameters = optimizer.param_groups[0]["params"]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = torch.empty_like(p).copy_(grad)
    wait = torch.cuda.synchronize if parameters[0].is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    optimizer.step()
    wait()
    seconds = time.perf_counter() - start
    optimizer.zero_grad()
    return seconds


def batches(dls):
    while True:
        yield from dls.train


def main(arch: str = "tf_efficientnet_b4", weights: str | None = None) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = read_contest(cached_sample(log=print) / "train")
    augments = tuple(map(Augmentation, report_pipelines(resize=SIZE)))
    dls = dataloaders(table, augments=augments, bs=BATCH, num_workers=0, device=device)
    heads = contest_heads()
    network = build_network(arch, heads, pretrained=False, weights=weights, size=SIZE).to(device).train()
    loss, learnt = FocalLoss(heads).to(device), list(network.parameters())
    rivals = optimizers(learnt)
    theirs, ours = (rivals[name].param_groups[0]["params"] for name in ("adamp package", "fastmask AdamP"))
    times = {name: [] for name in rivals}
    for _, (x, y) in zip(range(STEPS), batches(dls), strict=False):
        loss(network(x.contiguous(memory_format=torch.channels_last)), y).backward()
        grads = [p.grad for p in learnt]
        for name, optimizer in rivals.items():
            times[name].append(step_seconds(optimizer, grads))
        network.zero_grad()
        with torch.no_grad():
            for p, q in zip(learnt, theirs, strict=True):
                p.copy_(q)

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}: {arch}, {sum(p.numel() for p in learnt) / 1e6:.1f} M weights in {len(learnt)} tensors")
    print(f"{'optimizer':22} {'ms a step':>10} {'of fastmask':>12}")
    own = times["fastmask AdamP"][1:]
    for name, each in times.items():
        ratio = median(a / b for a, b in zip(each[1:], own, strict=True))
        print(f"{name:22} {1000 * median(each[1:]):10.1f} {ratio:11.2f}x")
    difference = max((p - q).abs().max().item() for p, q in zip(theirs, ours, strict=True))
    print(f"largest difference to the package's weights after {STEPS} steps: {difference:.1e}")
    projected = rivals["adamp package"].projected
    print("projected a step: " + ", ".join(f"{view} {n / STEPS:.1f}" for view, n in sorted(projected.items())))


if __name__ == "__main__":
    main(*sys.argv[1:])
