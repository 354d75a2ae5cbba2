"""What threads of torch are worth on a CPU: next to a busy program, and for two folds side by side.

python examples/benchmarks/threads.py [ARCH ...] [--rounds N] [--seconds S]

ARCH is tf_efficientnet_lite0, resnet18 and tf_efficientnet_b4 by default.

Steps of a training with photos of 200 x 100, by processes of their own, in turn, several times; the medians. `chosen`
are the threads that fastmask fit takes.

busy          next to a program that takes a whole core: chosen and all threads, over chosen threads on an idle machine
side by side  two folds at a time with half of the threads each, over one fold at a time with all threads; of five folds
              the last is alone
"""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from statistics import median
from typing import Annotated, Any

import timm
import torch
import typer

from fastmask.system.threads import free_threads

ARCHS = ("tf_efficientnet_lite0", "resnet18", "tf_efficientnet_b4")
BATCH, SIZE = 32, (200, 100)


def train(arch: str, threads: int | None, least: float, begin: Any, found: Any) -> None:
    """Put the seconds of a step and the threads into `found`, of steps that last `least` seconds after `begin`."""
    begin.wait()
    with free_threads(threads):
        network = timm.create_model(arch, num_classes=8).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        x = torch.randn(BATCH, 3, *SIZE).to(memory_format=torch.channels_last)
        # the first step warms up
        steps, start = -1, 0.0
        while steps < 1 or time.perf_counter() - start < least:
            network(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            start = start if steps else time.perf_counter()
        found.put(((time.perf_counter() - start) / steps, torch.get_num_threads()))


def keep_busy(begin: Any) -> None:
    begin.wait()
    while True:
        pass


def measure(
    arch: str, least: float, processes: int = 1, threads: int | None = None, busy: bool = False
) -> tuple[float, int]:
    """The mean seconds of a step of processes that train at the same time, and the threads of each."""
    context = multiprocessing.get_context("spawn")
    begin, found = context.Barrier(processes + busy), context.Queue()
    arguments = (arch, threads, least, begin, found)
    started = [context.Process(target=train, args=arguments, daemon=True) for _ in range(processes)]
    others = [context.Process(target=keep_busy, args=(begin,), daemon=True)] if busy else []
    for process in started + others:
        process.start()
    try:
        for process in started:
            process.join()
            if process.exitcode:
                raise SystemExit(f"{arch} cannot be trained.")
    finally:
        for other in started + others:
            other.kill()
    seconds, used = zip(*(found.get() for _ in started), strict=True)
    return sum(seconds) / processes, used[0]


def main(archs: Annotated[list[str] | None, typer.Argument()] = None, rounds: int = 3, seconds: float = 10) -> None:
    most = torch.get_num_threads()
    half = max(1, most // 2)
    kinds: dict[str, dict[str, Any]] = {
        "chosen": {},
        "chosen, busy": {"busy": True},
        "all, busy": {"busy": True, "threads": most},
        "all": {"threads": most},
        "half": {"threads": half},
        "two, half each": {"processes": 2, "threads": half},
    }
    print(f"{most} threads, batches of {BATCH}, torch {torch.__version__}")
    for arch in archs or ARCHS:
        times: dict[str, list[float]] = defaultdict(list)
        taken = defaultdict(set)
        for _ in range(rounds):
            for kind, options in kinds.items():
                found, threads = measure(arch, seconds, **options)
                times[kind].append(found)
                taken[kind].add(threads)
        step = {kind: median(each) for kind, each in times.items()}
        print(arch)
        for kind, found in step.items():
            print(f"  {kind:15} {found:.3f} s a step, threads {' or '.join(map(str, sorted(taken[kind])))}")
        idle = step["chosen"]
        print(
            f"  busy: chosen {step['chosen, busy'] / idle:.2f} times idle, all {step['all, busy'] / idle:.2f}; "
            f"idle: chosen {idle / step['all']:.2f} times all"
        )
        beside = step["two, half each"]
        two, five = 2 * step["all"] / beside, 5 * step["all"] / (2 * beside + step["half"])
        print(f"  side by side: two folds {two:.2f} times as fast, five {five:.2f} times", flush=True)


if __name__ == "__main__":
    typer.run(main)
