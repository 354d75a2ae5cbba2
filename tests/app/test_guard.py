"""Guard: which requests reach the application behind it."""

import asyncio
import json

import pytest

pytest.importorskip("starlette")

from fastmask.app.guard import Guard

LOCAL = {"host": "127.0.0.1:7860"}
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"


@pytest.fixture
def uploads(tmp_path):
    (tmp_path / "uploads" / "abc").mkdir(parents=True)
    (tmp_path / "uploads" / "abc" / "photo.jpg").write_bytes(b"photo")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "uploads" / "link.txt").symlink_to(tmp_path / "secret.txt")
    return tmp_path / "uploads"


@pytest.fixture
def ask(uploads):
    """Send a request through a guard: the status, the headers, and the requests that came through."""

    def asked(method, path, body=b"", hosts=("127.0.0.1",), **headers):
        passed, sent = [], []
        given = {**LOCAL, "content_length": str(len(body)), **headers}
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items() if value]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs}
        waiting = [{"type": "http.request", "body": body[i : i + 7], "more_body": i + 7 < len(body)}
                   for i in range(0, max(len(body), 1), 7)]  # fmt: skip

        async def application(scope, receive, send):
            passed.append((scope["method"], scope["path"], (await receive())["body"] if method == "POST" else b""))
            await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOWALL")]})
            await send({"type": "http.response.body", "body": b"inner"})

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message)

        asyncio.run(Guard(application, uploads, 1000, hosts)(scope, receive, send))
        return sent[0]["status"], dict(sent[0]["headers"]), passed

    return asked


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/index-1.js", "/gradio_api/queue/data"])
def test_the_page_and_its_parts_pass(path, ask):
    status, headers, passed = ask("GET", path)
    assert (status, passed) == (200, [("GET", path, b"")])
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert headers[b"x-frame-options"] == b"DENY"
    assert b"X-Frame-Options" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/monitoring",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/file=https://example.com/a.jpg",
        "/gradio_api/vibe-code",
        "/gradio_api/deep_link",
        "/assets/../../etc/passwd",
        "/assets/..\\x",
        "/static//etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../etc/passwd",
    ],
)
def test_all_other_paths_are_not_found(path, ask):
    for method in ("GET", "HEAD"):
        status, headers, passed = ask(method, path)
        assert (status, passed) == (404, [])
        assert b"content-security-policy" in headers


def test_only_uploaded_photos_are_served(uploads, ask):
    assert ask("GET", f"/gradio_api/file={uploads}/abc/photo.jpg")[0] == 200
    for path in ("../secret.txt", "abc/../../secret.txt", "link.txt"):
        assert ask("GET", f"/gradio_api/file={uploads}/{path}")[0] == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(method, ask):
    assert ask(method, "/")[0] == 404


@pytest.mark.parametrize(
    "path", ["/gradio_api/run/answer", "/gradio_api/call/answer", "/gradio_api/vibe-edit", "/login"]
)
def test_other_posts_are_refused(path, ask):
    assert ask("POST", path, b"{}")[::2] == (404, [])


def test_a_request_about_an_upload_passes_whole(uploads, ask):
    body = json.dumps({"data": [{"path": str(uploads / "abc" / "photo.jpg")}, "x" * 50, None]}).encode()
    assert ask("POST", JOIN, body)[2] == [("POST", JOIN, body)]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../secret.txt", "https://example.com/a.jpg", "file:///etc/passwd", "", None, 7, ["a"]],
)
def test_a_request_about_another_file_does_not(path, ask):
    for data in ([{"path": path, "meta": {"_type": "gradio.FileData"}}], {"deep": [[{"x": {"path": path}}]]}):
        assert ask("POST", JOIN, json.dumps({"data": data}).encode())[::2] == (403, [])


@pytest.mark.parametrize("body", [b"\xff", b"{", b"[" * 100_000])
def test_invalid_json_is_refused(body, ask):
    assert ask("POST", JOIN, body)[::2] == (403, [])


def test_a_long_request_or_one_of_unknown_length_is_not_read(ask):
    assert ask("POST", UPLOAD, b"x", content_length="66000")[0] == 200
    assert ask("POST", UPLOAD, b"x", content_length="67000")[::2] == (413, [])
    assert ask("POST", JOIN, b"x", content_length=str(2**20 + 1))[::2] == (413, [])
    for length in ("", "-1", "1e3", "²"):
        assert ask("POST", UPLOAD, b"x", content_length=length)[::2] == (411, [])


def test_other_hosts_and_origins_are_refused(ask):
    for host in ("evil.example:7860", "127.0.0.1.evil.example", "", "[::1]:7860"):
        assert ask("GET", "/", host=host)[::2] == (403, [])
    assert ask("GET", "/", host="[::1]:7860", hosts=("::1",))[0] == 200
    assert ask("GET", "/", host="anything", hosts=())[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert ask("POST", JOIN, b"{}", origin=origin)[::2] == (403, [])
    assert ask("POST", JOIN, b"{}", origin="http://127.0.0.1:7860")[0] == 200
