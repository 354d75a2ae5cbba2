"""The page, over HTTP as a browser or a program asks it, and what it must not give."""

import json
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.api import Run
from fastmask.data.contest import read_contest
from fastmask.data.fixes import apply_fixes
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from fastmask.app.server import free_socket, serve, served  # noqa: E402
from fastmask.app.trial import MOST_BYTES, Trial, check_photo  # noqa: E402
from fastmask.app.viewer import open_viewer  # noqa: E402

ASKED_WRONGLY = 2
ANY = ["joint", "mistakes", "*", "*", "*", "surest", 0, 100, ""]


class Served:
    """A page that is served, with a client and a plain way to ask."""

    def __init__(self, address: str, fixes: Path) -> None:
        self.address, self.fixes = address, fixes
        # without the token that who runs the tests may have at home, and their proxies
        self.client = gradio_client.Client(address, verbose=False, token=False, httpx_kwargs={"trust_env": False})

    def ask(self, name: str, *given: Any) -> Any:
        return self.client.predict(*given, api_name=name)

    def get(self, path: str, **options: Any) -> httpx.Response:
        # as it stands: a client would tidy up /../
        with httpx.Client(trust_env=False) as client:
            request = client.build_request("GET", self.address, **options)
            request.url = request.url.copy_with(raw_path=path.encode())
            return client.send(request)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.address + path.lstrip("/"), trust_env=False, **options)


@pytest.fixture(scope="module")
def page(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
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


@pytest.fixture(scope="module")
def photo(contest: Path) -> Path:
    return sorted((contest / "eval" / "images").iterdir())[0]


def words(html: str) -> str:
    return unescape(" ".join(re.sub("<[^>]*>", " ", html).split()))


def test_a_photo_gets_the_answer_that_predict_gives(
    page: Served, finished_run: Run, photo: Path, tmp_path: Path
) -> None:
    said = page.ask("/answer", gradio_client.handle_file(str(photo)))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "photo.jpg").write_bytes(photo.read_bytes())
    frame = finished_run.predict(tmp_path / "one").frame.iloc[0]
    for column in finished_run.heads.columns:
        name = column.partition(".")[2]
        share = f"{frame[column]:.1%}".replace("%", " %")
        assert f"{name} {share}" in words(said), column
    assert f"Joint class {frame['mask']} {frame['gender']} {frame['age']}" in words(said)


def test_its_networks_stay_and_its_numbers_are_those_of_the_command(
    finished_run: Run, photo: Path, tmp_path: Path, fastmask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(finished_run)
    first, _ = trial.answer(photo)
    monkeypatch.setattr("fastmask.app.trial.load_network", None)
    again, remark = trial.answer(photo)
    assert remark == ""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "any.jpg").write_bytes(photo.read_bytes())
    assert fastmask("predict", finished_run.path, tmp_path / "one", "--out", "p.csv").code == 0
    written = pd.read_csv("p.csv")[finished_run.heads.columns].to_numpy()
    for predictions in (first, again):
        np.testing.assert_allclose(predictions.probabilities, written, rtol=1e-7)


def test_where_it_looks_is_the_mean_of_the_folds(finished_run: Run, photo: Path) -> None:
    from fastmask.report.gradcam import explain

    made = Trial(finished_run).explain(photo, "mask")
    label = finished_run.heads["mask"].classes[finished_run.predict([photo]).y[0, 0]]
    folds = [explain(finished_run, [photo], "mask", label, fold=fold)[0] for fold in (0, 1)]
    heat = (folds[0].heat + folds[1].heat) / 2
    np.testing.assert_allclose(made.heat, heat / heat.max(), atol=1e-6)
    assert (made.label, made.probability) == (label, pytest.approx((folds[0].probability + folds[1].probability) / 2))


def png(width: int, height: int) -> bytes:
    """A picture that says in a few bytes that it is enormous."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BAD = {
    "text.jpg": (b"this is no photo", "is not a photo that can be read"),
    "empty.png": (b"", "is empty"),
    "bomb.png": (png(50_000, 50_000), "has more than 178 million pixels; scale it down"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "is not a photo"),
    "page.html": (b"<script>alert(1)</script>", "is not a photo"),
    "cut.png": (png(10, 10)[:60], "is damaged or cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_photo_gets_a_sentence(page: Served, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BAD[name][0])
    said = page.ask("/answer", gradio_client.handle_file(str(tmp_path / name)))
    assert said.count("<p") == 1
    assert 'class="fm-notice fm-bad" role="alert"' in said
    assert words(said).startswith(name)
    assert BAD[name][1] in words(said)
    assert page.ask("/explain", gradio_client.handle_file(str(tmp_path / name)), "mask", said) == ""


def test_a_photo_cut_short_and_one_too_long_are_told(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    with pytest.raises(DataError, match=r"^mine is damaged or cut short"):
        check_photo(tmp_path / "cut.jpg", "mine")
    with (tmp_path / "long.jpg").open("wb") as opened:
        opened.truncate(MOST_BYTES + 1)
    with pytest.raises(DataError, match=r"^mine is longer than 25 MB"):
        check_photo(tmp_path / "long.jpg", "mine")


def test_a_photo_that_the_network_cannot_take_is_told_without_our_folders(finished_run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "tiny.png")
    with pytest.raises(DataError) as told:
        Trial(finished_run).answer(tmp_path / "tiny.png")
    assert "tiny.png" in str(told.value)
    assert "/fastmask-" not in str(told.value)


def test_a_photo_that_is_too_small_is_told_without_options_that_the_page_has_not(
    finished_run: Run, tmp_path: Path
) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "tiny.png")
    with pytest.raises(DataError, match=r"^tiny.png is 10 high and 10 wide, .*; choose a larger photo\.$"):
        Trial(finished_run).answer(tmp_path / "tiny.png")


def test_the_map_of_an_answer_is_of_that_and_says_which_network_it_is_of(run_copy: Path) -> None:
    """Out of fold another epoch may answer than the one whose weights are kept; here its genders are swapped."""
    oof, heads = pd.read_csv(run_copy / "oof.csv"), Run.load(run_copy).heads
    gender = [f"gender.{name}" for name in heads["gender"].classes]
    kept, fold = heads["gender"].classes[int(oof[gender].iloc[0].argmax())], oof["fold"][0]
    oof[gender] = oof[gender[::-1]].to_numpy()
    joint = heads.joint(heads.argmax(oof[heads.columns].to_numpy()))
    oof.assign(predicted=joint).to_csv(run_copy / "oof.csv", index=False)
    viewer = open_viewer(run_copy)
    other = "female" if kept == "male" else "male"
    own = viewer.run.predict([viewer.photos.root / oof["path"][0]], members=[f"fold{fold}"])
    network = heads["gender"].classes[own.y[0, 1]]
    told = words(viewer.heat(0, "gender", "the answer"))
    (epoch,) = [int(file.stem[5:]) + 1 for file in viewer.run.checkpoints(fold)]
    assert told.startswith(f"What speaks for {other} in the network that is kept, of fold {fold}, epoch {epoch}. ")
    if network == other:
        assert "Its own answer is the same" in told
    else:
        assert f"and answers {network} itself" in told
        assert f"Out of fold the answer is {other}" in told
    same = own.y[0, 0] == viewer.run.predicted[0, 0]
    assert ("Out of fold" not in words(viewer.heat(0, "mask", "the answer"))) == same


def browse(page: Served, *changed: Any, number: int = 1, row: int | None = None) -> tuple[list[int], str]:
    """The rows of a page, and where it is."""
    given = list(ANY)
    for place, value in changed:
        given[place] = value
    tiles, *_, where, _ = page.ask("/browse", *given, number, row)
    return [int(found) for found in re.findall(r'data-row="(\d+)"', tiles)], words(where)


def test_mistakes_come_in_pages(page: Served, finished_run: Run) -> None:
    oof = pd.read_csv(finished_run.path / "oof.csv")
    wrong = set(np.flatnonzero(oof["true"] != oof["predicted"]))
    seen: list[int] = []
    for number in range(1, -(-len(wrong) // 24) + 1):
        rows, where = browse(page, number=number)
        assert len(rows) <= 24
        assert where.startswith(f"{len(seen) + 1} to {len(seen) + len(rows)} of {len(wrong)}")
        seen += rows
    assert sorted(seen) == sorted(wrong)
    assert browse(page, number=10**6)[0] == rows


def test_filters_reach_the_page(page: Served, finished_run: Run) -> None:
    oof = pd.read_csv(finished_run.path / "oof.csv")
    rows, where = browse(page, (1, "all"), (4, "1"), (5, "table"))
    assert rows == np.flatnonzero(oof["fold"] == 1)[:24].tolist()
    assert f"of {(oof['fold'] == 1).sum()} page" in where
    rows, _ = browse(page, (1, "all"), (5, "table"), (3, f"={finished_run.heads.joint_name(oof['predicted'][0])}"))
    assert rows == np.flatnonzero(oof["predicted"] == oof["predicted"][0])[:24].tolist()
    rows, where = browse(page, (1, "all"), (8, "nobody of that name"))
    assert (rows, where) == ([], "0 photos page 1 of 1")


def test_a_photo_is_shown_with_all_that_is_known(page: Served, finished_run: Run) -> None:
    large, facts, *_ = page.ask("/show", 3, "mask")
    oof = finished_run.oof.iloc[3]
    assert 'src="data:image/jpeg;base64,' in large
    assert f"Photo {oof['path']}" in words(facts)
    assert f"Person {oof['person']} (7 photos)" in words(facts)
    assert f"Fold {oof['fold']}, whose networks have not seen this person" in words(facts)


def test_there_is_no_photo_but_those_of_the_run(page: Served) -> None:
    for row in (-1, 10**6):
        assert "There is no such photo" in str(page.ask("/show", row, "mask"))


def test_a_label_is_marked_shown_and_taken_back(page: Served, finished_run: Run, contest: Path) -> None:
    table = read_contest(contest)
    path, person = finished_run.oof["path"][3], finished_run.oof["person"][3]
    own = table.frame.loc[table.frame["path"] == path].iloc[0]
    other = next(name for name in ("wear", "none") if name != own["mask"])
    *_, said = page.ask("/mark", 3, "mask", other, None, False, "this photo")
    assert words(said) == f"Written to {page.fixes}: mask of {path} is {other}."
    *_, said = page.ask("/mark", 3, "age", None, 61, False, "all photos of the person")
    assert words(said).endswith(f"age of all photos of {person} is 61 (60+).")
    fixed = apply_fixes(table, page.fixes).frame
    assert fixed.loc[fixed["path"] == path, "mask"].tolist() == [other]
    assert (fixed.loc[fixed["person"] == person, "age"] == "60+").all()
    assert f"Marked mask: {own['mask']} → {other}" in words(page.ask("/show", 3, "mask")[1])
    assert browse(page, (0, "mask"), (1, "marked"))[0] == [3]
    assert len(browse(page, (1, "marked"))[0]) == 7
    table_of_marks, _ = page.ask("/marks")
    assert table_of_marks.count("<tr>") == 3
    *_, said = page.ask("/take_back", 3, "mask")
    assert words(said) == f"Taken back: mask: {own['mask']} → {other} of {path}."
    page.ask("/take_back", 3, "age")
    assert apply_fixes(table, page.fixes).frame.equals(table.frame)
    *_, said = page.ask("/take_back", 3, "age")
    assert words(said) == "age of this photo is not marked."


def test_a_second_number_replaces_the_first_and_is_taken_back(page: Served, finished_run: Run, contest: Path) -> None:
    """As the page asks it: each question is asked with what the answer before put into the fields, hidden ones too."""
    path, person = finished_run.oof["path"][3], finished_run.oof["person"][3]
    for given, whole in ((61, "this photo"), (62, "this photo"), (63, "all photos of the person")):
        right = value_of(page.ask("/show", 3, "age")[5])
        for number in (given, given + 7):
            _, field, back, *_, said = page.ask("/mark", 3, "age", right, number, False, whole)
            assert words(said).startswith(f"Written to {page.fixes}: age of "), said
            assert value_of(back) == number
            right = value_of(field)
        marks = pd.read_csv(page.fixes, dtype=str, keep_default_na=False)
        assert marks["value"].tolist() == [str(given + 7)]
        assert marks[["path", "person"]].iloc[0].tolist() == ([path, ""] if whole == "this photo" else ["", person])
        *_, said = page.ask("/take_back", 3, "age")
        assert words(said).startswith("Taken back: age")
        assert value_of(page.ask("/show", 3, "age")[6]) is None
    assert apply_fixes(read_contest(contest), page.fixes).frame.equals(read_contest(contest).frame)


def value_of(field: Any) -> Any:
    """What an answer put into a field, which comes alone or with what else changes of it."""
    return field["value"] if isinstance(field, dict) else field


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("mask", None, None, False), "Say what is right of mask first, or that nobody can tell."),
        (("age", None, None, False), "Say what is right of age first"),
        (("age", None, 451, False), "The right label of age: found '451', expected a number from 0 to 150."),
        (("age", None, 1e20, False), "The right label of age: found '1e+20', expected a number"),
    ],
)
def test_a_mark_that_cannot_be_is_told_and_not_written(page: Served, given: Any, sentence: str) -> None:
    before = page.fixes.read_bytes() if page.fixes.exists() else None
    *_, said = page.ask("/mark", 3, *given, "this photo")
    assert sentence in words(said)
    assert (page.fixes.read_bytes() if page.fixes.exists() else None) == before


def test_a_label_that_stands_there_is_no_correction(page: Served, finished_run: Run) -> None:
    label = finished_run.folds.set_index("path")["gender"][finished_run.oof["path"][3]]
    page.ask("/show", 3, "gender")
    *_, said = page.ask("/mark", 3, "gender", label, None, False, "this photo")
    assert f"gender is labelled {label} already" in words(said)


SECRETS = ["/etc/passwd", "/etc/hosts", "{run}/config.yaml", "{run}/oof.csv", "{run}/fold0/done.json", "{fixes}",
           "{photo}", "{cwd}/pyproject.toml"]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_no_file_of_this_machine_is_given(page: Served, finished_run: Run, photo: Path, secret: str) -> None:
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


def test_a_question_cannot_fetch_a_file_or_an_address(page: Served, finished_run: Run) -> None:
    """Gradio moves what it is asked about into a folder of which it gives files, or fetches it."""
    for path in (
        "/etc/passwd",
        str(finished_run.path / "config.yaml"),
        "http://127.0.0.1:1/a.jpg",
        "https://a.example/a",
    ):
        asked = {
            "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}],
            "fn_index": 0,
            "session_hash": "x",
            "event_data": None,
        }
        assert page.post("/gradio_api/queue/join", json=asked).status_code == 403


def test_a_photo_that_is_too_long_is_not_taken(page: Served) -> None:
    found = page.post("/gradio_api/upload", files={"files": ("a.jpg", b"\0" * (MOST_BYTES + 2**17))})
    assert (found.status_code, found.text) == (413, "That is longer than 25 MB.")


def test_what_was_sent_never_runs_as_a_page(page: Served) -> None:
    for name in ("a.svg", "a.html"):
        upload = page.post("/gradio_api/upload", files={"files": (name, b"<script>alert(1)</script>")}).json()[0]
        headers = page.get(f"/gradio_api/file={upload}").headers
        assert headers["content-disposition"].startswith("attachment")
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_machine_as_a_source(page: Served) -> None:
    text = page.get("/").text
    sources = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"(https?:[^\"]*)", text)
    assert [source for source in sources if not source.startswith(page.address)] == []
    assert "default-src 'self'" in page.get("/").headers["content-security-policy"]
    assert '"analytics_enabled":false' in text.replace(" ", "")


def test_an_ensemble_answers_and_says_why_it_shows_no_map(finished_run: Run, run_copy: Path, photo: Path) -> None:
    from fastmask.api import blend_runs

    made = blend_runs([finished_run, run_copy], out=run_copy.parent / "both", draws=0)
    viewer = open_viewer(made.run.path)
    predictions, _ = viewer.trial.answer(photo)
    np.testing.assert_allclose(predictions.probabilities, finished_run.predict([photo]).probabilities, atol=1e-6)
    for work in (lambda: viewer.try_heat(str(photo), "mask"), lambda: viewer.heat(0, "mask", "the answer")):
        with pytest.raises(UsageError, match="is an ensemble, which was not trained and has no models of its own"):
            work()
    assert len(viewer.photos) == 84
    large, facts = viewer.show(0, "joint")
    assert "data:image/jpeg" in large
    assert "Fold" in facts


def test_a_run_of_faces_looks_for_the_face(
    finished_run: Run, run_copy: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmask.data.boxes import Face, to_frame
    from fastmask.preparation import faces
    from fastmask.system.files import write_csv

    config = (run_copy / "config.yaml").read_text().replace("boxes: null", "boxes: boxes.csv")
    (run_copy / "config.yaml").write_text(config)
    run = Run.load(run_copy)
    found: list[Face] = [Face(100, 100, 300, 350, 0.9)]
    monkeypatch.setitem(faces.DETECTORS, "mtcnn", lambda: lambda image: found)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes(photo.read_bytes())
    for there, said in ((found[0], ""), (None, "No face was found, so the whole photo was taken.")):
        found[:] = [there] if there else []
        write_csv(tmp_path / "boxes.csv", to_frame(["a.jpg"], [there]))
        expected = run.predict(tmp_path / "one", boxes=tmp_path / "boxes.csv").probabilities
        predictions, remark = Trial(run).answer(photo)
        assert remark == said
        np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-7)

    def missing() -> Any:
        raise UsageError("The detector mtcnn needs a package that is missing; install it.")

    monkeypatch.setitem(faces.DETECTORS, "mtcnn", missing)
    with pytest.raises(UsageError, match=r"was trained on faces, so a photo's must be found. The detector mtcnn needs"):
        Trial(run).answer(photo)


def test_without_its_photos_a_run_still_answers(run_copy: Path, photo: Path, tmp_path: Path) -> None:
    config = run_copy / "config.yaml"
    data = re.search(r"^data: (.*)$", config.read_text(), re.MULTILINE)
    assert data is not None
    config.write_text(config.read_text().replace(data[1], str(tmp_path / "gone")))
    viewer = open_viewer(run_copy)
    assert "which does not exist from here" in viewer.why_not
    assert "Joint class" in viewer.try_photo(str(photo))
    with pytest.raises(UsageError, match="not there any more"):
        viewer.show(0, "joint")
    assert open_viewer(run_copy, data=data[1]).why_not == ""
    with pytest.raises(UsageError):
        open_viewer(run_copy, data=str(tmp_path / "elsewhere"))


def test_a_table_of_fixes_that_fit_would_refuse_is_told_first(
    finished_run: Run, refused: Callable[..., str], work: Path
) -> None:
    (work / "fixes.csv").write_text("person,column,value\nnobody,gender,male\n")
    told = refused(1, "app", finished_run.path, "--fixes", "fixes.csv")
    assert told.startswith("fixes.csv, line 2, column person: no photo of the data matches 'nobody'")


def test_what_is_asked_wrongly_is_told(finished_run: Run, refused: Callable[..., str], work: Path) -> None:
    assert "is not a run directory" in refused(ASKED_WRONGLY, "app", work)
    assert "lies in the run" in refused(ASKED_WRONGLY, "app", finished_run.path, "--fixes", finished_run.path / "f.csv")
    assert "--port is 70000" in refused(ASKED_WRONGLY, "app", finished_run.path, "--port", 70000)
    assert "no name or address" in refused(ASKED_WRONGLY, "app", finished_run.path, "--host", "no.such.host.invalid")


def test_without_gradio_one_sentence_says_how_to_get_it(
    finished_run: Run, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'install it with pip install "fastmask[app]"' in refused(ASKED_WRONGLY, "app", finished_run.path)


def test_a_port_that_is_taken_is_passed_over() -> None:
    with free_socket("127.0.0.1", 0) as one:
        number = one.getsockname()[1]
        with free_socket("127.0.0.1", number) as other:
            assert number < other.getsockname()[1] <= number + 100
    with pytest.raises(UsageError, match="Nothing can listen at 192.0.2.1"):
        free_socket("192.0.2.1", 7860)


def test_who_lets_others_in_is_warned(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: started.append(sockets))
    viewer, told = open_viewer(finished_run), []
    with pytest.warns(FastmaskWarning, match=r"--host 0.0.0.0 shows the photos.* to everybody"):
        serve(viewer, "0.0.0.0", 0, told.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FastmaskWarning)
        serve(viewer, "127.0.0.1", 0, told.append)
    assert len(started) == 2
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", told[1])


def test_nothing_is_left_of_photos_that_were_sent(finished_run: Run, page: Served) -> None:
    before = os.environ["GRADIO_TEMP_DIR"]
    with served(open_viewer(finished_run)) as application:
        assert os.environ["GRADIO_TEMP_DIR"] == str(application.uploads)
        (application.uploads / "a.jpg").touch()
    assert not application.uploads.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == before


def test_no_telemetry(page: Served) -> None:
    import gradio.analytics

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not gradio.analytics.analytics_enabled()
