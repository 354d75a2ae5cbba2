"""Serve: the page of a run at an address of this machine, behind its guard."""

from __future__ import annotations

import errno
import functools
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from fastmask.app.guard import Application, Guard
from fastmask.app.trial import MOST_BYTES
from fastmask.app.viewer import Viewer
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.terminal import say

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# ports that are tried, one after the other
_PORTS = 100
_FOLDER = "GRADIO_TEMP_DIR"


def serve(viewer: Viewer, host: str = "127.0.0.1", port: int = 7860, told: Callable[[str], None] = say) -> None:
    """Serve the page until a Ctrl-C; `told` is told its address. Raises UsageError where nothing can listen there."""
    local = host in LOOPBACK
    with free_socket(host, port) as listening, served(viewer, LOOPBACK if local else ()) as application:
        if not local:
            warnings.warn(
                f"--host {host} shows the photos, and lets labels be marked, to everybody who reaches this machine; "
                "nobody is asked for a password.",
                FastmaskWarning,
                stacklevel=2,
            )
        number = listening.getsockname()[1]
        told(f"http://{f'[{host}]' if ':' in host else host}:{number}/")
        import uvicorn

        config = uvicorn.Config(application, log_level="warning", ws="none", timeout_graceful_shutdown=2)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def served(viewer: Viewer, hosts: Sequence[str] = LOOPBACK) -> Iterator[Guard]:
    """The page as an ASGI application, behind its guard; photos that are sent lie in a folder that goes with it.

    `hosts` are the names that a browser may call this machine by, all where there are none.
    """
    _settle()
    before = os.environ[_FOLDER]
    with TemporaryDirectory(prefix="uploads-", dir=before, ignore_cleanup_errors=True) as folder:
        os.environ[_FOLDER] = os.path.realpath(folder)
        try:
            # which reads its settings when it is imported
            from fastmask.app.page import build, mounted

            page: Application = mounted(build(viewer), MOST_BYTES)
            yield Guard(page, Path(folder), MOST_BYTES, hosts)
        finally:
            os.environ[_FOLDER] = before


@functools.cache
def _settle() -> TemporaryDirectory[str]:
    """Gradio's settings for this process, before it is imported; its folder goes when the process ends.

    It would tell its makers of each start, and keep things in /tmp/gradio, which may be another user's.
    """
    home = TemporaryDirectory(prefix="fastmask-app-", ignore_cleanup_errors=True)
    os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", _FOLDER: home.name})
    return home


def free_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at the first free port from `port` on; raises UsageError where there is none."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; expected 0 to 65535.")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(
            f"--host is {host!r}, which is no name or address of this machine ({error.strerror})."
        ) from error
    last: OSError | None = None
    for number in range(port, min(port + _PORTS, 65536)):
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":
            # or a port would stay taken for a minute after the page has gone
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((place[0], number, *place[2:]))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            last = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    raise UsageError(
        f"Nothing can listen at {host}, port {port} and those after it: {last and last.strerror}."
    ) from last
