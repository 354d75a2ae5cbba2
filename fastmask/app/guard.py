"""Guard: an ASGI application that lets through only the requests that the page needs.

Gradio's server can fetch URLs, proxy requests, run functions by name, and serve files of known folders. Here it may
serve its page, accept a photo, and return that photo.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastmask.system.files import real

API = "/gradio_api"
FILE, UPLOAD = f"{API}/file=", f"{API}/upload"
_PAGES = {
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    f"{API}/info",
    f"{API}/startup-events",
    f"{API}/queue/data",
    f"{API}/upload_progress",
}
_FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
_POSTS = {f"{API}/queue/join", f"{API}/cancel", f"{API}/reset", UPLOAD}
# bytes of a request, and of an upload in addition to the photo
_MOST_WORDS, _AROUND = 2**20, 2**16
# only this server as a source; Gradio needs inline scripts and eval
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Passes requests of the page on to `app`, and answers all others with a 4xx status.

    `uploads` is the folder of uploaded photos, the only one that files are served from, `most_bytes` the limit of a
    photo. If `hosts` are given, the Host header must be one of them: this prevents DNS rebinding.
    """

    def __init__(self, app: ASGIApp, uploads: Path, most_bytes: int, hosts: Iterable[str] = ()) -> None:
        self.app, self.uploads, self.most_bytes, self.hosts = app, real(uploads), most_bytes, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on to the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        request, send = Request(scope, receive), _with_headers(send)
        status, why = self._refusal(request)
        if not status and request.method == "POST" and scope["path"] != UPLOAD:
            try:
                body = await request.body()
            except ClientDisconnect:
                return
            receive = _replay(body, receive)
            if not self._own_files(body):
                status, why = 403, "Only a photo that was uploaded to this page can be used."
        await (PlainTextResponse(why, status) if status else self.app)(scope, receive, send)

    def _refusal(self, request: Request) -> tuple[int, str]:
        """The status and the message of a refused request; 0 if it may pass."""
        path, headers = request.scope["path"], request.headers
        host = headers.get("host", "")
        if self.hosts and _name_of(host) not in self.hosts:
            return 403, "This page can only be opened on the machine it runs on."
        if headers.get("origin") and headers["origin"].partition("://")[2] != host:
            return 403, "This page does not accept requests from other pages."
        if request.method in ("GET", "HEAD") and self._may_read(path):
            return 0, ""
        if request.method != "POST" or path not in _POSTS:
            return 404, "There is no such page."
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal()):
            return 411, "A Content-Length header is required."
        most = self.most_bytes + _AROUND if path == UPLOAD else _MOST_WORDS
        return (413, f"The limit is {most >> 20} MB.") if int(length) > most else (0, "")

    def _may_read(self, path: str) -> bool:
        if path.startswith(FILE):
            return real(path[len(FILE) :]).is_relative_to(self.uploads)
        plain = ".." not in path and "\\" not in path and "//" not in path
        return path in _PAGES or (plain and path.startswith(_FOLDERS))

    def _own_files(self, body: bytes) -> bool:
        """Whether all files in a request are in the folder of uploaded photos."""
        try:
            value = json.loads(body or b"null")
        except (ValueError, RecursionError):
            return False
        return all(isinstance(path, str) and real(path).is_relative_to(self.uploads) for path in _paths(value))


def _paths(value: Any) -> Iterator[Any]:
    """Everything that is given as the path of a file, at any depth."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "path" in one:
                yield one["path"]
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _name_of(host: str) -> str:
    """The name in `name:port`, or in `[::1]:port`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first gives a body that was already read."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(n, v) for n, v in message.get("headers", []) if n.decode().lower() not in _HEADERS]
            headers += [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": headers}
        await send(message)

    return sent
