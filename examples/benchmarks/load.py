"""How examples/serve.py answers many clients at once: python examples/benchmarks/load.py MODEL PHOTOS [--requests 1000]

Starts the server with a file of `fastmask export`, and sends photos of a folder from 1, 8, 32 and 128 clients; every
tenth request has a file that is not a photo, and every fiftieth one that is too large. Each answer is compared with
that of predict_onnx.py: `lost` counts requests without an answer, `wrong` those with another one. `floor` is ONNX
Runtime alone, with the same photos in batches of 16, decoded in the same process.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

SERVE = Path(__file__).parents[1] / "serve.py"
CLIENTS, BATCH = (1, 8, 32, 128), 16


@contextmanager
def serving(model: Path, threads: int, most: int) -> Iterator[str]:
    """The URL of a server for requests of up to `most` megabytes, which is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, SERVE, model, "--port", port, "--threads", threads, "--batch", BATCH, "--most", most]
    with subprocess.Popen(list(map(str, words)), start_new_session=True) as server:
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while not _is_up(url):
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit("The server did not start.")
                time.sleep(0.2)
            yield url
        finally:
            with suppress(ProcessLookupError):
                # with its workers
                os.killpg(server.pid, 15)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def expected_answers(model: Path, photos: list[Path], threads: int) -> tuple[list[np.ndarray], float]:
    """The probabilities of each photo by the script next to the model, and its photos per second."""
    spec = importlib.util.spec_from_file_location("predict_onnx", model.with_name("predict_onnx.py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    session = script.open_model(model, threads)
    meta = script.read_meta(session)
    list(script.predict(session, meta, photos[:BATCH], BATCH))
    start = time.perf_counter()
    found = np.concatenate(list(script.predict(session, meta, photos, BATCH)))
    return list(found), len(photos) / (time.perf_counter() - start)


def ask(
    client: httpx.Client, url: str, number: int, photos: list[bytes], expected: list[np.ndarray], large: bytes
) -> tuple[str, float]:
    """What became of a request (held, lost or wrong), and its seconds."""
    row, status = number % len(photos), 200
    sent = photos[row]
    if number % 50 == 49:
        sent, status = large, 413
    elif number % 10 == 9:
        sent, status = b"not a photo", 422
    start = time.perf_counter()
    try:
        answer = client.post(f"{url}/predict", files={"photo": sent})
    except httpx.TransportError:
        return "lost", time.perf_counter() - start
    seconds = time.perf_counter() - start
    if answer.status_code != status:
        return "lost" if answer.status_code >= 500 else "wrong", seconds
    if status != 200:
        return "held", seconds
    heads: dict[str, Any] = answer.json()
    values = [value for head in heads.values() if isinstance(head, dict) for value in head.values()]
    return "held" if np.allclose(values, expected[row], atol=1e-5) else "wrong", seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    paths = sorted(path for path in given.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:200]
    if not paths:
        raise SystemExit(f"{given.photos} has no photos.")
    expected, floor = expected_answers(given.model, paths, given.threads)
    photos = [path.read_bytes() for path in paths]
    # of a request, which is a little longer than its photo
    most = 1 + -(-max(map(len, photos)) // 2**20)
    print("clients  requests  held  lost  wrong  photos/s  of the floor  median ms  99 % ms")
    with serving(given.model, given.threads, most) as url:
        send = partial(ask, url=url, photos=photos, expected=expected, large=b"x" * (most + 1 << 20))
        for clients in CLIENTS:
            with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=clients)) as client:
                start = time.perf_counter()
                with ThreadPoolExecutor(clients) as pool:
                    results = list(pool.map(lambda number: send(client, number=number), range(given.requests)))
                rate = len(results) / (time.perf_counter() - start)
            ends = [end for end, _ in results]
            median, high = np.quantile([seconds for _, seconds in results], [0.5, 0.99]) * 1000
            counts = "  ".join(f"{ends.count(end):4d}" for end in ("held", "lost", "wrong"))
            print(
                f"{clients:7d}  {len(ends):8d}  {counts}  {rate:8.0f}  {rate / floor:12.2f}  {median:9.0f}  {high:7.0f}"
            )


if __name__ == "__main__":
    main()
