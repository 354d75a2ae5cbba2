"""Full disks, limits of file sizes, removed folders: one sentence, and after resuming the same bytes as always."""

import errno
import io
import os
import re
import resource
import shlex
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_files import bytes_of
from safetensors import SafetensorError, safe_open

from fastmask.api import cross_validate
from fastmask.commands.main import main
from fastmask.data.contest import read_contest
from fastmask.run import tensors
from fastmask.system.errors import FastmaskError
from fastmask.system.files import write_yaml

STATE = "state.safetensors"


def left_over(folder):
    """Temporary files, which only a killed process may leave."""
    return list(folder.rglob(".*"))


class FullDisk:
    """Stands for a function of `os`, which finds the disk full at its `number`-th call."""

    def __init__(self, function, number):
        self.function, self.number, self.calls = function, number, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.number:
            # a write does not say to which file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*arguments)


@contextmanager
def messages_to(messages):
    """A context that adds the message of an error to `messages`."""
    try:
        yield
    except (FastmaskError, OSError) as error:
        messages.append(str(error))


@pytest.fixture
def fit(contest, small_settings, tmp_path):
    """Starts or resumes the run of `finished_run` in a temporary folder."""
    table = read_contest(contest)

    def start_or_resume(log=None, **settings):
        out = tmp_path / "runs" / "run"
        resume = out.exists()
        given = {} if resume else {**small_settings, **settings}
        return cross_validate(table, out=out, resume=resume, log=log or io.StringIO(), **given).path

    return start_or_resume


@pytest.mark.parametrize(("name", "step"), [("fsync", 7), ("replace", 3)])
def test_a_run_resumes_from_a_full_disk_again_and_again(fit, finished_run, monkeypatch, tmp_path, name, step):
    """Each attempt makes a few more writes than the last one, and resumes from its state."""
    real, messages, run = getattr(os, name), [], tmp_path / "runs" / "run"
    while not (run / "scores.json").exists():
        with monkeypatch.context() as patch:
            patch.setattr(os, name, FullDisk(real, 2 + step * len(messages)))
            with messages_to(messages):
                fit()
        assert left_over(tmp_path / "runs") == []
        assert len(messages) < 10
    assert bytes_of(run) == bytes_of(finished_run.path)
    making = [words for words in messages if "/runs/.run." in words]
    resume = re.escape(f" Once that is fixed: fastmask fit --resume --out {shlex.quote(str(run))}")
    assert 0 < len(making) < len(messages) - 1
    for words in messages[len(making) :]:
        assert re.fullmatch(f"No space left on device: {re.escape(str(run))}/[a-z0-9/.-]+[.]{resume}", words)


def test_a_state_that_cannot_be_replaced_is_kept(fit, monkeypatch, tmp_path):
    file, before, real = tmp_path / "runs" / "run" / "fold0" / STATE, [], os.replace

    def full_at_the_second_state(source, target):
        if Path(target).name == STATE:
            before.append(file.read_bytes() if file.exists() else None)
            if len(before) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        return real(source, target)

    monkeypatch.setattr(os, "replace", full_at_the_second_state)
    with pytest.raises(FastmaskError, match=f"No space left on device: {file}. Once that is fixed: fastmask fit"):
        fit(epochs=3)
    assert before[0] is None
    assert file.read_bytes() == before[1]
    with safe_open(file, framework="pt") as opened:
        assert all(opened.get_tensor(name) is not None for name in opened.keys())  # noqa: SIM118
    assert left_over(tmp_path) == []


def test_a_full_disk_in_safetensors_is_an_os_error(monkeypatch, tmp_path):
    def full(content, path, metadata):
        path.write_bytes(b"the first of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    file = tmp_path / STATE
    file.write_bytes(b"the old one")
    with pytest.raises(OSError, match="No space left on device") as caught:
        tensors.save_tensors({}, file)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {STATE: b"the old one"}


@pytest.fixture
def files_of_a_megabyte():
    """No file may grow longer, which is how safetensors itself comes to fail."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.usefixtures("files_of_a_megabyte")
def test_a_limit_of_the_file_size_is_one_sentence(contest, small_settings, tmp_path, capsys):
    write_yaml(tmp_path / "settings.yaml", {**small_settings, "data": str(contest)})
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "run")])
    assert ended.value.code == 1
    last, fold = capsys.readouterr().err.splitlines()[-1], tmp_path / "run" / "fold0"
    resume = f"fastmask fit --resume --out {shlex.quote(f'{tmp_path}/run')}"
    assert last == f"fastmask: error: File too large: {fold}/epoch000.safetensors. Once that is fixed: {resume}"
    assert left_over(tmp_path) == []


class Remover(io.StringIO):
    """A log that removes a folder once an epoch has ended."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def write(self, text):
        if "epoch 1/" in text and not self.getvalue().count("epoch 1/"):
            shutil.rmtree(self.folder)
        return super().write(text)


@pytest.mark.parametrize("name", ["run", "run/fold0"])
def test_a_folder_that_is_removed_in_training_is_not_recreated(fit, finished_run, tmp_path, name):
    gone = tmp_path / "runs" / name
    with pytest.raises(FastmaskError, match=f"No such file or directory: {tmp_path}/runs/run/fold0/.*Once that is"):
        fit(Remover(gone))
    # not recreated in part
    assert not gone.exists()
    assert left_over(tmp_path) == []
    assert bytes_of(fit()) == bytes_of(finished_run.path)
