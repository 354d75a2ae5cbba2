"""The page over HTTP, as a browser or a program requests it, and what it must not serve."""

import json
import os
import re
import threading
import time
from pathlib import Path

import httpx
import pytest

from fastmask.app.viewer import open_viewer

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from fastmask.app.server import free_socket, served  # noqa: E402
from fastmask.app.trial import MOST_BYTES  # noqa: E402

pytestmark = pytest.mark.slow
ANY = ["joint", "mistakes", "*", "*", "*", "surest", 0, 100, ""]


class Served:
    """A page that is served, with a client and plain requests."""

    def __init__(self, address, fixes):
        self.address, self.fixes = address, fixes
        # without the user's token and proxies
        self.client = gradio_client.Client(address, verbose=False, token=False, httpx_kwargs={"trust_env": False})

    def ask(self, name, *given):
        return self.client.predict(*given, api_name=name)

    def get(self, path, **options):
        # the raw path, because a client would normalize /../
        with httpx.Client(trust_env=False) as client:
            request = client.build_request("GET", self.address, **options)
            request.url = request.url.copy_with(raw_path=path.encode())
            return client.send(request)

    def post(self, path, **options):
        return httpx.post(self.address + path.lstrip("/"), trust_env=False, **options)


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory):
    """The page of the small run, at a free port of this machine."""
    import uvicorn

    fixes = tmp_path_factory.mktemp("fixes") / "fixes.csv"
    with free_socket("127.0.0.1", 0) as listening, served(open_viewer(finished_run, fixes=fixes)) as application:
        server = uvicorn.Server(uvicorn.Config(application, log_level="error", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.05)
            yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}/", fixes)
        finally:
            server.should_exit = True
            thread.join()


def test_a_photo_is_predicted_and_explained(page, finished_run, photo, words):
    file = gradio_client.handle_file(str(photo))
    said = page.ask("/answer", file)
    (row,) = finished_run.predict([photo]).frame.to_dict("records")
    for column in finished_run.heads.columns:
        share = f"{row[column]:.1%}".replace("%", " %")
        assert f"{column.partition('.')[2]} {share}" in words(said), column
    assert f"Joint class {row['mask']} {row['gender']} {row['age']}" in words(said)
    assert "What supports" in page.ask("/explain", file, "mask", said)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.jpg", b"this is no photo", "is not an image that can be read"),
        ("empty.png", b"", "is empty"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "is an SVG drawing, not a photo"),
        ("page.html", b"<script>alert(1)</script>", "is not an image that can be read"),
    ],
)
def test_a_file_that_is_not_a_photo_has_a_message(page, tmp_path, words, name, content, message):
    (tmp_path / name).write_bytes(content)
    file = gradio_client.handle_file(str(tmp_path / name))
    said = page.ask("/answer", file)
    assert 'class="fm-notice fm-bad" role="alert"' in said
    assert words(said).startswith(f"{name} {message}")
    assert page.ask("/explain", file, "mask", said) == ""


def test_photos_are_browsed_and_labels_marked(page, finished_run, words):
    wrong = (finished_run.oof["true"] != finished_run.oof["predicted"]).sum()
    tiles, *_, where, _ = page.ask("/browse", *ANY, 1, None)
    assert f"of {wrong} page 1" in words(where)
    row = int(re.findall(r'data-row="(\d+)"', tiles)[0])
    *_, said = page.ask("/mark", row, "age", None, 61, False, "this photo")
    assert words(said).startswith(f"Written to {page.fixes}: age of {finished_run.oof['path'][row]} is 61")
    # the fields of an answer are sent with the next request, hidden ones too
    shown = page.ask("/show", row, "age")
    right = shown[5]["value"] if isinstance(shown[5], dict) else shown[5]
    *_, said = page.ask("/mark", row, "age", right, 62, False, "this photo")
    assert "is 62" in words(said)
    assert page.ask("/marks")[0].count("<tr>") == 2
    *_, said = page.ask("/take_back", row, "age")
    assert words(said).startswith("Removed: age")
    *_, said = page.ask("/take_back", row, "age")
    assert words(said) == "age of this photo is not marked."
    assert "There is no such photo" in str(page.ask("/show", 10**6, "mask"))


SECRETS = ["/etc/passwd", "/etc/hosts", "{run}/config.yaml", "{run}/oof.csv", "{run}/fold0/done.json", "{fixes}",
           "{photo}", "{cwd}/pyproject.toml"]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_no_file_of_this_machine_is_served(page, finished_run, photo, secret):
    page.fixes.touch()
    names = {"run": finished_run.path, "fixes": page.fixes, "photo": photo, "cwd": Path.cwd()}
    file = Path(secret.format(**names))
    upload = json.loads(page.post("/gradio_api/upload", files={"files": ("a.jpg", b"mine")}).text)[0]
    folder = Path(upload).parent
    up = "../" * 30
    for path in (
        f"/gradio_api/file={file}",
        f"/gradio_api/file={up}{file}",
        f"/gradio_api/file={folder}/{up}{file}",
        f"/gradio_api/file=%2e%2e%2f{'%2e%2e%2f' * 30}{file}",
        f"/gradio_api/file/{file}",
        f"/file={file}",
        f"/file/{file}",
        f"/static/{up}{file}",
        f"/assets/{up}{file}",
        f"/assets/%2e%2e/{'%2e%2e/' * 30}{file}",
        f"/svelte/{up}{file}",
        f"/{up}{file}",
        f"/gradio_api/custom_component/1/client/component/{up}{file}",
    ):
        found = page.get(path)
        assert found.status_code >= 400, path
        assert file.read_bytes()[:40] not in found.content or not file.stat().st_size
    assert page.get(f"/gradio_api/file={upload}").content == b"mine"


def test_a_request_cannot_fetch_a_file_or_a_url(page, finished_run):
    """Gradio copies the files of a request into a folder that it serves, or downloads them."""
    for path in (
        "/etc/passwd",
        str(finished_run.path / "config.yaml"),
        "http://127.0.0.1:1/a.jpg",
        "https://a.example/a",
    ):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
        asked = {"data": data, "fn_index": 0, "session_hash": "x", "event_data": None}
        assert page.post("/gradio_api/queue/join", json=asked).status_code == 403


def test_uploads_are_limited_never_run_and_deleted(page, finished_run):
    found = page.post("/gradio_api/upload", files={"files": ("a.jpg", b"\0" * (MOST_BYTES + 2**17))})
    assert (found.status_code, found.text) == (413, "The limit is 25 MB.")
    for name in ("a.svg", "a.html"):
        upload = page.post("/gradio_api/upload", files={"files": (name, b"<script>alert(1)</script>")}).json()[0]
        headers = page.get(f"/gradio_api/file={upload}").headers
        assert headers["content-disposition"].startswith("attachment")
        assert headers["x-content-type-options"] == "nosniff"
    before = os.environ["GRADIO_TEMP_DIR"]
    with served(open_viewer(finished_run)) as application:
        assert os.environ["GRADIO_TEMP_DIR"] == str(application.uploads)
        (application.uploads / "a.jpg").touch()
    assert not application.uploads.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == before


def test_the_page_loads_nothing_from_other_hosts_and_sends_no_telemetry(page):
    import gradio.analytics

    text = page.get("/").text
    sources = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"(https?:[^\"]*)", text)
    assert [source for source in sources if not source.startswith(page.address)] == []
    assert "default-src 'self'" in page.get("/").headers["content-security-policy"]
    assert '"analytics_enabled":false' in text.replace(" ", "")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not gradio.analytics.analytics_enabled()
