"""Doctor: what a machine has, and whether a small run works on it."""

from __future__ import annotations

import http.client
import io
import os
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from huggingface_hub.constants import ENDPOINT

from fastmask.api import cross_validate
from fastmask.config import make_config, read_recipe
from fastmask.data.contest import contest_heads
from fastmask.data.loaders import pick_device
from fastmask.data.readers import read_data
from fastmask.data.sample import write_sample
from fastmask.model.network import build_network
from fastmask.model.precision import resolve_precision, usable_precision
from fastmask.run.environment import PACKAGES
from fastmask.system.errors import FastmaskError, UsageError

_WAIT = 5.0
_SMALL = {"resize": [64, 32], "folds": 2, "epochs": 2, "group": "person"}


def examine() -> Iterator[str]:
    """One line for each thing that a run needs, then a run of about ten seconds.

    Raises FastmaskError if the run's predictions are wrong.
    """
    yield f"system    {platform.platform()}, Python {platform.python_version()}"
    yield f"packages  {', '.join(f'{name} {version(name)}' for name in PACKAGES)}"
    yield f"CPU       {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield f"GPU       {gpus()}"
    yield f"precision {half_precision(pick_device(None))}"
    yield f"disk      {shutil.disk_usage('.').free / 1e9:.1f} GB free in {Path.cwd()}"
    yield f"hub       {hub()}"
    yield from small_run()


def gpus() -> str:
    """The GPUs that torch can use."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none that torch can use; runs use the CPU"


def half_precision(device: torch.device) -> str:
    """Whether a network computes on a device in the 16 bits that it is fast in, on a CPU bf16, as it does in fp32."""
    precision = "bf16" if device.type == "cpu" else resolve_precision("auto", device)
    try:
        usable_precision(build_network("test_resnet", contest_heads()), (128, 96), device, precision, auto=False)
    except UsageError as error:
        return str(error)
    return f"{precision} works on the {'CPU' if device.type == 'cpu' else 'GPU'}"


def hub() -> str:
    """Whether timm's hub responds."""
    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=_WAIT):
            return f"{ENDPOINT} answers: pretrained weights can be fetched"
    except urllib.error.HTTPError as error:
        return f"{ENDPOINT} answers {error.code}: pretrained weights may not be fetched"
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        return f"{ENDPOINT} is out of reach ({why}): use --weights FILE or --no-pretrained"


def small_run() -> Iterator[str]:
    """Draw people, cross-validate a small network on them, predict others, and check the probabilities."""
    start = time.perf_counter()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        data = write_sample(Path(folder) / "sample", persons=12)
        config = make_config(read_recipe("quick"), _SMALL, {"data": str(data)})
        yield f"drawing   {time.perf_counter() - start:.1f} s"
        start = time.perf_counter()
        log = io.StringIO()
        run = cross_validate(read_data(config), config, out=Path(folder) / "run", log=log)
        predictions = run.predict(data / "eval" / "images")
        sums = np.array([part.sum(1) for part in run.heads.split(predictions.probabilities)])
        counts = len(run.oof), len(run.folds)
    if counts[0] != counts[1] or not np.allclose(sums, 1, atol=1e-4):
        raise FastmaskError("The small run's probabilities do not add up to 1: torch does not work on this machine.")
    yield f"run       2 folds x 2 epochs and a prediction in {time.perf_counter() - start:.1f} s: works"
