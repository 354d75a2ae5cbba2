from pathlib import Path

import pytest

from fastmask.launch.mirror import MirroredFolder, all_files, apply_change
from fastmask.run.files import DONE, STATE


@pytest.fixture
def fold(tmp_path):
    folder = tmp_path / "fold0"
    (folder / "tensorboard").mkdir(parents=True)
    for name in ("epoch001.safetensors", "history.csv", "tensorboard/events", ".half.part"):
        (folder / name).write_bytes(name.encode())
    return folder


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_copy_follows_what_changes(fold, tmp_path):
    mirrored, copy = MirroredFolder(fold), tmp_path / "copy"
    (fold / STATE).write_bytes(b"first")
    for step in ("all of it", "a better epoch, and a new state", "done"):
        if step.startswith("a better"):
            (fold / "epoch001.safetensors").unlink()
            (fold / "epoch002.safetensors").write_bytes(b"better")
            (fold / STATE).write_bytes(b"second")
        if step == "done":
            (fold / STATE).unlink()
            (fold / DONE).write_bytes(b"{}")
        change = mirrored.collect_change()
        assert change is not None
        apply_change(copy, change)
        assert contents(copy) == contents(fold), step
        assert mirrored.is_up_to_date
    again = mirrored.collect_change()
    assert again is not None
    assert again.files == {}


def test_state_and_done_come_last(fold):
    for name in (STATE, DONE, "zebra.csv"):
        (fold / name).write_bytes(b"")
    change = MirroredFolder(fold).collect_change()
    assert change is not None
    assert list(change.files)[-2:] == [STATE, DONE]
    assert list(all_files(fold).files) == list(change.files)


def test_a_change_while_a_state_is_saved_is_none(fold, monkeypatch):
    mirrored, read = MirroredFolder(fold), Path.read_bytes
    (fold / STATE).write_bytes(b"first")

    def meanwhile(path):
        (fold / STATE).write_bytes(b"the second state")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", meanwhile)
        assert mirrored.collect_change() is None
    assert not mirrored.is_up_to_date
    change = mirrored.collect_change()
    assert change is not None
    assert change.files[STATE] == b"the second state"


def test_a_change_while_a_file_is_removed_is_none(fold, monkeypatch):
    read = Path.read_bytes

    def meanwhile(path):
        (fold / "history.csv").unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    assert MirroredFolder(fold).collect_change() is None


def test_a_fold_without_a_state_has_no_files_to_send(fold):
    assert all_files(fold).files == {}
