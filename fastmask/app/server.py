"""Server: the page of a run at an address of this machine, behind its guard."""

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

from fastmask.app.guard import Guard
from fastmask.app.trial import MOST_BYTES
from fastmask.app.viewer import Viewer
from fastmask.system.errors import FastmaskWarning, UsageError
from fastmask.system.terminal import say

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# ports that are tried in turn
_PORTS = 100
_FOLDER = "GRADIO_TEMP_DIR"


def serve(viewer: Viewer, host: str = "127.0.0.1", port: int = 7860, report: Callable[[str], None] = say) -> None:
    """Serve the page until Ctrl-C; `report` is called with its address. Raises UsageError if no port is free."""
    local = host in LOOPBACK
    with free_socket(host, port) as listening, served(viewer, LOOPBACK if local else ()) as application:
        if not local:
            warnings.warn(
                f"--host {host} gives everyone who can reach this machine access to the photos and to marking labels, "
                "without a password.",
                FastmaskWarning,
                stacklevel=2,
            )
        number = listening.getsockname()[1]
        report(f"http://{f'[{host}]' if ':' in host else host}:{number}/")
        import uvicorn

        config = uvicorn.Config(application, log_level="warning", ws="none", timeout_graceful_shutdown=2)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def served(viewer: Viewer, hosts: Sequence[str] = LOOPBACK) -> Iterator[Guard]:
    """The page as an ASGI application behind its guard; uploaded photos are in a temporary folder.

    `hosts` are the names of this machine that a browser may use; all if empty.
    """
    _prepare_gradio()
    before = os.environ[_FOLDER]
    with TemporaryDirectory(prefix="uploads-", dir=before, ignore_cleanup_errors=True) as folder:
        os.environ[_FOLDER] = os.path.realpath(folder)
        try:
            # Gradio reads its settings on import
            from fastmask.app.page import build, mount_page

            yield Guard(mount_page(build(viewer), MOST_BYTES), Path(folder), MOST_BYTES, hosts)
        finally:
            os.environ[_FOLDER] = before


@functools.cache
def _prepare_gradio() -> TemporaryDirectory[str]:
    """Set Gradio's environment variables before its import; its folder is deleted when the process ends.

    By default it sends telemetry, and writes to /tmp/gradio, which may be another user's.
    """
    home = TemporaryDirectory(prefix="fastmask-app-", ignore_cleanup_errors=True)
    os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", _FOLDER: home.name})
    return home


def free_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at the first free port from `port` on; raises UsageError if there is none."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; expected 0 to 65535.")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(
            f"--host is {host!r}, which is not a name or address of this machine ({error.strerror})."
        ) from error
    last: OSError | None = None
    for number in range(port, min(port + _PORTS, 65536)):
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":
            # otherwise the port stays in use for a minute after the page has ended
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
    raise UsageError(f"Cannot listen at {host} on port {port} or those after it: {last and last.strerror}.") from last
