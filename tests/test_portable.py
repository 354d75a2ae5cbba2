"""Windows and macOS, as far as they can be simulated on Linux."""

import gc
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import windows

from fastmask.api import cross_validate
from fastmask.commands import main as cli
from fastmask.config import make_config
from fastmask.data import loaders
from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import dataloaders, default_workers
from fastmask.export import predict_onnx
from fastmask.system import files, terminal
from fastmask.system.files import read_yaml, stays_below, sync_folder, write_text
from fastmask.system.lock import holder_of, lock_run
from fastmask.training.rehearsal import peak_memory
from fastmask.training.setup import prepare

FIT = (
    "fit --data {contest} --arch test_resnet --no-pretrained --folds 2 --epochs 2 --bs 16 --resize 64 32 --device cpu "
    "--save-every 1 --cache-dir kept"
)
# and their exit codes
COMMANDS = {
    # into an existing folder, and until its console is closed
    f"{FIT} --no-report --out run": 128 + windows.SIGBREAK,
    "fit --resume --no-report --out run": 0,
    # after which half of the photos are damaged
    "cache list --cache-dir kept": 0,
    f"{FIT} --out run --overwrite": 0,
    "predict run {contest}/eval/images --out answers.csv": 0,
    "predict run {contest}/eval/images --out answers.csv --overwrite": 0,
    f"{FIT} --dry-run": 0,
    "cache clear --cache-dir kept": 0,
}
PRETENDING = f"""
import gc, importlib, json, pkgutil, sys
sys.path.insert(0, {str(Path(__file__).parent / "fixtures")!r})
import windows
windows.pretend()

import signal
from pathlib import Path
import fastmask
from fastmask.commands import main as cli
from fastmask.training.state import StateSaver

save, saved = StateSaver.save, []

def interrupted(self, *step):
    save(self, *step)
    saved.append(step)
    if len(saved) == 3:
        signal.raise_signal(windows.SIGBREAK)

StateSaver.save = interrupted
for words in json.loads(sys.argv[1]):
    try:
        cli.main(words)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    # reference cycles would keep files open
    gc.collect()
    print(f"exit {{code}}", flush=True)
    if words[:2] == ["cache", "list"]:
        (pixels,) = Path(words[-1]).glob("*.photos")
        with pixels.open("r+b") as file:
            file.write(bytes(pixels.stat().st_size // 2))

for module in pkgutil.walk_packages(fastmask.__path__, "fastmask."):
    if module.name != "fastmask.__main__":
        importlib.import_module(module.name)
print("imported: all")
"""


@pytest.fixture(scope="module")
def pretended(contest, tmp_path_factory):
    """The folder and the output of commands in a process that simulates Windows."""
    folder = tmp_path_factory.mktemp("windows")
    (folder / "run").mkdir()
    commands = [[word.format(contest=contest) for word in line.split()] for line in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", PRETENDING, json.dumps(commands)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return folder, done.stdout.splitlines()


@pytest.mark.slow
def test_every_module_can_be_imported_on_windows(pretended):
    assert "imported: all" in pretended[1]


@pytest.mark.slow
def test_commands_never_replace_open_files(pretended):
    folder, printed_lines = pretended
    assert [line for line in printed_lines if line.startswith("exit")] == [f"exit {code}" for code in COMMANDS.values()]
    assert any("resumes in epoch" in line for line in printed_lines)
    # damaged photos are decoded again
    assert sum("Decoded 84 different photos" in line for line in printed_lines) == 2
    assert list((folder / "kept").glob("*.photos")) == []


def test_the_simulation_protects_open_and_mapped_files(tmp_path):
    file, other = tmp_path / "in" / "a", tmp_path / "b"
    file.parent.mkdir()
    for path in (file, other):
        path.write_bytes(b"0000")
    mapped = np.memmap(file, np.uint8, "r")
    with pytest.raises(PermissionError, match="is being used"):
        windows.replace(other, file)
    with pytest.raises(PermissionError, match="is being used"):
        windows.rename(file.parent, tmp_path / "c")
    with file.open("rb") as opened, pytest.raises(OSError, match="Bad file descriptor"):
        windows.fsync(opened.fileno())
    del mapped
    gc.collect()
    with other.open("rb"), pytest.raises(PermissionError, match="is being used"):
        windows.unlink(other)
    with pytest.raises(FileExistsError):
        windows.rename(other, file)
    windows.replace(other, file)


@pytest.fixture
def like_windows(monkeypatch):
    for module in (files, terminal):
        monkeypatch.setattr(module, "os", windows.without(os, name="nt"))


@pytest.mark.usefixtures("like_windows")
def test_a_file_that_another_program_has_open_is_replaced_once_it_is_closed(tmp_path, monkeypatch):
    refusals = iter([PermissionError, PermissionError])

    def replace(source, target):
        for refusal in refusals:
            raise refusal(13, "in use")
        os.replace(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    refusals = iter([PermissionError] * 100)
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0))
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a", "newer")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("refused", [PermissionError(13, "denied"), IsADirectoryError(21, "a folder")])
def test_a_folder_that_cannot_be_opened_is_not_synced(refused, tmp_path, monkeypatch):
    def refuse(*_):
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr(files, "os", windows.without(os, open=refuse))
        write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "gone")


def test_the_holder_is_described_after_the_byte_that_windows_locks(tmp_path):
    with lock_run(tmp_path / "run"):
        assert (tmp_path / ".run.lock").read_bytes()[:9] == b"\0process "
        assert holder_of(tmp_path / ".run.lock").startswith(f"process {os.getpid()} on ")


def test_peak_memory_without_the_module_resource(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123, rss=12))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert peak_memory() == 123


@pytest.mark.parametrize(
    ("path", "below"),
    [
        (r"a\b.jpg", True),
        ("a/b.jpg", True),
        (r"C:\a.jpg", False),
        ("C:a.jpg", False),
        (r"\a.jpg", False),
        ("/a.jpg", False),
        (r"\\server\share\a.jpg", False),
        (r"a\..\..\b.jpg", False),
    ],
)
def test_a_path_of_windows_that_leaves_the_folder_is_detected(path, below):
    assert stays_below(PureWindowsPath(path)) is below


@pytest.mark.usefixtures("like_windows")
def test_commands_are_quoted_for_the_shells_of_windows():
    assert terminal.quote(r"C:\my runs\b4") == r'"C:\my runs\b4"'
    assert terminal.quote(r"runs\b4") == r"runs\b4"
    assert terminal.quote("R&D/b4") == '"R&D/b4"'


@pytest.fixture
def started(monkeypatch):
    """A function that sets how processes are started."""
    before = multiprocessing.get_start_method()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.semaphores
def test_processes_of_a_fork_server_load_the_same_batches(contest, started):
    table = read_contest(contest)
    found = []
    # the default of Python 3.14 on Linux
    started("forkserver")
    for workers in (0, 2):
        dls = dataloaders(table, 0, assign_folds(table, 2), bs=8, num_workers=workers, device="cpu")
        found.append([part for batch in dls.train for part in batch])
    assert len(found[0]) == 2 * 5
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.semaphores
def test_a_run_with_a_spawned_process_is_the_same_to_the_byte(contest, small_settings, tmp_path, started):
    started("spawn")
    made = []
    for workers in (0, 1):
        settings = {**small_settings, "epochs": 1, "workers": workers}
        run = cross_validate(
            read_contest(contest), out=tmp_path / str(workers), log=io.StringIO(), fold=[0], **settings
        )
        made.append((run.path / "oof.csv").read_bytes())
    assert made[0] == made[1]


@pytest.mark.semaphores
def test_spawned_processes_that_do_not_see_photos_in_memory_are_reported(contest, small_settings, monkeypatch):
    monkeypatch.setattr(loaders, "start_method", lambda: "spawn")
    assert default_workers(torch.device("cuda")) == 0
    for cache, workers, is_said in (("ram", 1, True), ("ram", 0, False), ("disk", 1, False)):
        said = []
        config = make_config({**small_settings, "cache": cache, "workers": workers})
        prepare(read_contest(contest), config, say=said.append)
        assert any("cannot see the photos in memory" in line for line in said) is is_said


class Console(io.TextIOWrapper):
    """A stream of a code page, strict as Python's stdout is."""

    def __init__(self, code_page):
        super().__init__(io.BytesIO(), encoding=code_page, errors="strict", newline="\n")

    @property
    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.fixture
def printed(work, monkeypatch):
    """A function that runs a command on a console of a code page: its exit code, stdout and stderr."""

    def command(code_page, *arguments):
        out, err = Console(code_page), Console(code_page)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                cli.main([str(a) for a in arguments])
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return code, out.text, err.text

    return command


@pytest.mark.parametrize(
    "code_page", ["cp437", *(pytest.param(page, marks=pytest.mark.slow) for page in ("cp949", "cp1252"))]
)
def test_commands_print_on_any_console(code_page, printed, run_copy):
    named = run_copy.rename(run_copy.with_name("größe±마스크"))
    other = shutil.copytree(named, named.with_name("other"))
    for words in (["score", named], ["compare", named, other], ["decide", named], ["--help"], ["fit", "--help"]):
        code, out, err = printed(code_page, *words)
        assert code == 0, err
        assert out
    code, out, _ = printed(code_page, "score", named)
    assert (" … " if "…".encode(code_page, "ignore") else " ... ") in out
    code, out, _ = printed(code_page, "score", named, "--json")
    assert json.loads(out)["joint"]
    code, _, err = printed(code_page, "score", named / "마스크")
    assert code == 2
    assert "마스크".encode(code_page, "backslashreplace").decode(code_page) in err


def test_a_run_is_trained_on_a_console_that_lacks_its_name(printed, contest, work):
    options = "--arch test_resnet --no-pretrained --folds 2 --epochs 1 --bs 16 --resize 64 32 --device cpu --no-report"
    code, out, err = printed("cp437", "fit", "--data", contest, *options.split(), "--out", "마스크")
    assert code == 0, err
    assert " ... " in out
    assert r"Written to \ub9c8\uc2a4\ud06c" in err
    assert (work / "마스크" / "oof.csv").is_file()


@pytest.mark.slow
def test_a_process_prints_on_a_console_of_code_page_437(run_copy):
    environment = {**os.environ, "PYTHONIOENCODING": "cp437"}
    command = [sys.executable, "-m", "fastmask", "score", run_copy]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert " ... " in done.stdout.decode("cp437")


def test_printed_settings_can_be_read_back_with_any_code_page(printed, work):
    for code_page in ("cp437", "cp949", "utf-8"):
        _, out, _ = printed(code_page, "fit", "--data", "마스크/größe", "--print-config")
        (work / "settings.yaml").write_bytes(out.encode(code_page))
        assert read_yaml(work / "settings.yaml")["data"] == "마스크/größe"


def test_a_line_prints_on_any_stream_and_keeps_the_user_s_error_handler(monkeypatch):
    stream = Console("cp437")
    terminal.say("0.1 … 0.2, größe 마스크", stream)
    assert stream.text == "0.1 ... 0.2, größe \\ub9c8\\uc2a4\\ud06c\n"
    stream = Console("cp437")
    stream.reconfigure(errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.replace_unencodable()
    print("…")
    assert stream.text == "?\n"


def test_the_script_of_an_export_prints_errors_on_any_console(monkeypatch):
    err = Console("cp437")
    monkeypatch.setattr(sys, "stderr", err)
    assert predict_onnx.main(["model.onnx", "사진"]) == 1
    assert r"\uc0ac\uc9c4 does not exist" in err.text
