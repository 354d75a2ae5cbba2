"""The digests of photos: remembered, and read again where a file has changed."""

import hashlib
import os
import sqlite3
import time

import pytest

from fastmask.data import digests
from fastmask.data.cache_files import clear_cache, digests_file, list_caches
from fastmask.data.digests import digest_photos
from fastmask.data.photo import read_bytes
from fastmask.system.errors import DataError

PHOTOS, HOUR = 100, 3600


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Files that were changed an hour ago, as the clock of the module says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    now = time.time
    monkeypatch.setattr(digests.time, "time", lambda: now() + HOUR)
    found = [tmp_path / f"{number}.jpg" for number in range(PHOTOS)]
    for number, path in enumerate(found):
        path.write_bytes(b"photo %d" % number)
    return found


@pytest.fixture
def read(monkeypatch):
    """The files that are read, in any order."""
    found = []

    def note(path):
        found.append(path)
        return read_bytes(path)

    monkeypatch.setattr(digests, "read_bytes", note)
    return found


def expected(paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_photos_are_read_once_and_a_sample_again(paths, read):
    assert digest_photos([*paths, paths[3]]) == [*expected(paths), expected(paths)[3]]
    assert sorted(read) == sorted(paths)
    read.clear()
    assert digest_photos(paths) == expected(paths)
    assert len(read) in (14, 15)
    # by another name of the folder
    read.clear()
    others = [path.parent / "home" / ".." / path.name for path in paths]
    assert digest_photos(others) == expected(paths)
    assert len(read) in (14, 15)


def test_a_changed_photo_is_read_again(paths, read):
    before = digest_photos(paths)
    # of the same length, and with the same time, written in place and replaced
    times = paths[1].stat()
    paths[1].write_bytes(b"Photo 1")
    os.utime(paths[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    other = paths[2].with_suffix(".part")
    other.write_bytes(b"Photo 2")
    os.utime(other, ns=(paths[2].stat().st_atime_ns, paths[2].stat().st_mtime_ns))
    other.replace(paths[2])
    read.clear()
    found = digest_photos(paths)
    assert found == expected(paths)
    assert [one != two for one, two in zip(before, found, strict=True)] == [
        number in (1, 2) for number in range(PHOTOS)
    ]
    assert {paths[1], paths[2]} <= set(read)
    assert len(read) - 2 in (14, 15)


def test_a_photo_that_has_just_been_written_is_not_remembered(paths, read, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(paths[0].parent / "home"))
    digest_photos(paths)
    assert not digests_file().exists()


def test_if_one_of_the_sample_is_not_what_was_remembered_all_are_read(paths, read):
    digest_photos(paths)
    with sqlite3.connect(digests_file()) as opened:
        opened.execute("UPDATE digests SET sha256 = ?", ("0" * 64,))
    opened.close()
    assert digest_photos(paths) == expected(paths)
    read.clear()
    assert digest_photos(paths) == expected(paths)
    assert len(read) in (14, 15)


@pytest.mark.parametrize("data", [b"", b"no database" * 1000])
def test_a_broken_file_of_digests_is_made_anew(paths, read, data):
    digests_file().parent.mkdir(parents=True)
    digests_file().write_bytes(data)
    assert str(list_caches()[0]).endswith("broken: it is made again when needed")
    assert digest_photos(paths) == expected(paths)
    (listed,) = list_caches()
    assert (listed.path, listed.what, listed.photos) == (digests_file(), "digests", PHOTOS)
    assert clear_cache(["digests-1"]) == [listed]
    assert list_caches() == []


def test_without_a_cache_photos_are_read(paths, read, tmp_path):
    (tmp_path / "home").write_text("a file in place of the folder")
    for _ in range(2):
        read.clear()
        assert digest_photos(paths) == expected(paths)
        assert len(read) == PHOTOS


def test_a_locked_cache_is_left_as_it_is(paths, read, monkeypatch):
    digest_photos(paths[:70])
    connect = sqlite3.connect
    monkeypatch.setattr(digests.sqlite3, "connect", lambda file: connect(file, timeout=0))
    other = connect(digests_file())
    other.execute("BEGIN EXCLUSIVE")
    assert digest_photos(paths) == expected(paths)
    other.rollback()
    other.close()
    assert list_caches()[0].photos == 70


def test_a_photo_that_is_gone_is_named(paths):
    digest_photos(paths)
    paths[5].unlink()
    with pytest.raises(DataError, match=r"5\.jpg is not a file"):
        digest_photos(paths)
