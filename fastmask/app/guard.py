"""Guard: what the page answers to, and nothing else that the server under it would: an ASGI application around one.

The server can fetch addresses, pass requests on, run functions by name, and hand out files of folders that it knows.
Here it may serve its own page, take a photo, and give that photo back.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from fastmask.system.files import real

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

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
# bytes of what is asked, and of what goes around a photo that is sent
_MOST_WORDS, _AROUND = 2**20, 2**16
# the page comes from here alone, with its scripts in itself; the server's own are made of text
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
    """Lets through what the page needs, to `app`; all else is answered 4xx.

    `uploads` is the folder of photos that were sent, the only one that files are given of, `most_bytes` what a photo
    may have. Of `hosts`, where they are given, one must be what the browser took the page for: otherwise a name that
    somebody else owns could lead here.
    """

    def __init__(self, app: Application, uploads: Path, most_bytes: int, hosts: Iterable[str] = ()) -> None:
        self.app, self.uploads, self.most_bytes, self.hosts = app, real(uploads), most_bytes, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or leave it to the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, why = self._refusal(scope["method"], scope["path"], headers)
        if status:
            await _answer(send, status, why)
            return
        if scope["method"] == "POST" and scope["path"] != UPLOAD:
            body = await _body(receive)
            if not self._own_files(body):
                await _answer(send, 403, "Only a photo that was sent to this page can be asked about.")
                return
            receive = _again(body, receive)
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, path: str, headers: MutableMapping[str, str]) -> tuple[int, str]:
        """The status and the sentence that a request is refused with; 0 where it may pass."""
        host = headers.get("host", "")
        if self.hosts and _name_of(host) not in self.hosts:
            return 403, "This page is for the machine that it runs on."
        if headers.get("origin") and headers["origin"].partition("://")[2] != host:
            return 403, "This page takes nothing from other pages."
        if method in ("GET", "HEAD"):
            return (0, "") if self._may_read(path) else (404, "There is no such page.")
        if method != "POST" or path not in _POSTS:
            return 404, "There is no such page."
        return self._too_long(path, headers.get("content-length", ""))

    def _may_read(self, path: str) -> bool:
        if path.startswith(FILE):
            return real(path[len(FILE) :]).is_relative_to(self.uploads)
        plain = ".." not in path and "\\" not in path and "//" not in path
        return path in _PAGES or (plain and path.startswith(_FOLDERS))

    def _too_long(self, path: str, length: str) -> tuple[int, str]:
        if not (length.isascii() and length.isdecimal()):
            return 411, "Say how long it is."
        most = self.most_bytes + _AROUND if path == UPLOAD else _MOST_WORDS
        return (413, f"That is longer than {most >> 20} MB.") if int(length) > most else (0, "")

    def _own_files(self, body: bytes) -> bool:
        """Whether all files that are spoken of lie in the folder of photos that were sent, and none elsewhere."""
        try:
            spoken = json.loads(body or b"null")
        except (ValueError, RecursionError):
            return False
        return all(isinstance(path, str) and real(path).is_relative_to(self.uploads) for path in _paths(spoken))


def _paths(value: Any) -> Iterator[Any]:
    """What is given as the path of a file, anywhere in plain values."""
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


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that has been read already, then whatever comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = [
                (name, value) for name, value in message.get("headers", []) if name.decode().lower() not in _HEADERS
            ]
            message = {**message, "headers": [*there, *((n.encode(), v.encode()) for n, v in _HEADERS.items())]}
        await send(message)

    return sent


async def _answer(send: Send, status: int, why: str) -> None:
    sent = _with_headers(send)
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await sent({"type": "http.response.start", "status": status, "headers": headers})
    await sent({"type": "http.response.body", "body": why.encode()})
