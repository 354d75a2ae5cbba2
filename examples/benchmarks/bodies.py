"""What a training step of each body costs: photos 400 high and 200 wide, channels-last, float32, random weights.

python examples/benchmarks/bodies.py [BATCH] [ARCH ...]
"""

import sys
import time
from statistics import median

import torch

from fastmask import FocalLoss, build_network, contest_heads
from fastmask.model.adamp import AdamP

SIZE = (400, 200)
BODIES = (
    "vgg19",
    "resnet18",
    "resnet50",
    "resnext101_32x4d",
    "vit_small_patch16_224",
    "vit_small_patch16_384",
    "tf_efficientnet_b0",
    "tf_efficientnet_b3",
    "tf_efficientnet_b4",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnetv2_s",
    "mobilenetv3_large_100",
)
STEPS = 3


def step_seconds(network, batch):
    """The median step (forward, loss, backward, AdamP) of a few, after one that allocates."""
    heads, device = contest_heads(), next(network.parameters()).device
    loss, optimizer = FocalLoss(heads).to(device), AdamP(network.parameters(), lr=1e-5)
    x = torch.randn(batch, 3, *SIZE, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch, len(heads), dtype=torch.int64, device=device)
    times = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        loss(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main(batch: str = "4", *archs: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, batches of {batch} photos {SIZE[0]} x {SIZE[1]}, float32")
    print(f"{'body':30} {'parameters':>10} {'s a step':>10} {'ms a photo':>10}")
    for arch in archs or BODIES:
        network = build_network(arch, contest_heads(), size=SIZE).to(device)
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        seconds = step_seconds(network, int(batch))
        print(f"{arch:30} {millions:8.1f} M {seconds:10.3f} {1000 * seconds / int(batch):10.1f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
