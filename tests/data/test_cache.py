import json
import multiprocessing
import pickle
import resource
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from fastmask.data import cache
from fastmask.data.augment import Augmentation, Prefix
from fastmask.data.cache import PhotoMap, photo_map
from fastmask.data.cache_files import clear_cache, list_caches
from fastmask.data.digests import digest_photos
from fastmask.data.photo import read_photo
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

CROP = Prefix([A.CenterCrop(40, 20)])


@pytest.fixture
def photos(tmp_path):
    """Twelve photos of noise, of which the last has another size."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "photos" / f"{i:02}.jpg" for i in range(11)] + [tmp_path / "photos" / "other.png"]
    paths[0].parent.mkdir()
    for path in paths:
        size = (48, 64, 3) if path.suffix == ".jpg" else (45, 25, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "decoded"


def kept(paths, folder, prefix=CROP, how="disk", **options):
    return photo_map(paths, digest_photos(paths), prefix, how, folder, **options)


def holds(made, paths, prefix=CROP):
    """Whether a map has the decoded pixels of each photo."""
    return len(made) == len(paths) and all(np.array_equal(made.get(str(p)), prefix(read_photo(p))) for p in paths)


@pytest.mark.parametrize("how", ["disk", "ram", "auto"])
def test_what_is_kept_is_what_decoding_gives(photos, folder, how):
    assert holds(kept(photos, folder, how=how), photos)
    whole = kept(photos, folder, Prefix(), how)
    assert holds(whole, photos, Prefix())
    assert whole.sizes(map(str, photos)) == [(48, 64)] * 11 + [(45, 25)]


def test_a_second_run_decodes_only_a_few_to_compare(photos, folder, monkeypatch):
    kept(photos, folder)
    decoded, decode = [], cache.decode_named
    monkeypatch.setattr(cache, "_PROBED", 2)
    monkeypatch.setattr(cache, "decode_named", lambda data, path: decoded.append(path) or decode(data, path))
    again = kept([*reversed(photos)], folder)
    monkeypatch.undo()
    assert len(decoded) == 2
    assert holds(again, photos)
    assert not again.get(str(photos[0])).flags.writeable


def test_another_photo_prefix_or_decoder_is_another_cache(photos, folder, monkeypatch):
    kept(photos, folder)
    shutil.copy(photos[3], photos[5])
    assert holds(kept(photos, folder), photos)
    mirrored = Prefix([A.CenterCrop(40, 20), A.HorizontalFlip(p=1)])
    assert holds(kept(photos, folder, mirrored), photos, mirrored)
    monkeypatch.setattr(cache, "version", lambda name: "0.0")
    kept(photos, folder)
    assert len(list_caches(folder)) == 4


def test_equal_photos_take_their_place_once(photos, folder):
    twin = photos[0].with_name("twin.jpg")
    shutil.copy(photos[0], twin)
    made = kept([*photos, twin], folder)
    assert holds(made, [*photos, twin])
    assert made.file.stat().st_size == len(photos) * 40 * 20 * 3


def change_index(change):
    def spoil(file):
        index = json.loads(file.with_suffix(".json").read_text())
        file.with_suffix(".json").write_text(json.dumps({**index, **change(index)}))

    return spoil


def lose_index(file):
    file.with_suffix(".json").unlink()


def forge_file(file):
    """An index that agrees with the size of a file that takes no room."""
    change_index(lambda index: {"photos": 10**12, "sizes": [[1, 1, 10**12]]})(file)
    with file.open("wb") as opened:
        opened.truncate(3 * 10**12)


def link_pixels(file):
    (file.with_name("elsewhere")).write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to("elsewhere")


SPOIL = {
    "short pixels": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "blank pixels": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "linked pixels": link_pixels,
    "broken index": lambda file: file.with_suffix(".json").write_text("{"),
    "lost index": lose_index,
    "too many photos": change_index(lambda index: {"photos": 10**15, "sizes": [[1, 1, 10**15]]}),
    "other numbers": change_index(lambda index: {"sizes": [[1e999, -1, True]]}),
    "turned sizes": change_index(lambda index: {"sizes": [[w, h, n] for h, w, n in index["sizes"]]}),
    "both forged": forge_file,
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_a_cache_that_is_not_whole_is_made_again(photos, folder, spoil):
    spoil(kept(photos, folder).file)
    assert holds(kept(photos, folder), photos)
    assert len(list_caches(folder)) == 1


def test_an_interrupted_build_leaves_nothing_and_the_next_one_ends(photos, folder, monkeypatch):
    def interrupted(data, path):
        if Path(path) == sorted(zip(digest_photos(photos), photos, strict=True))[-1][1]:
            raise KeyboardInterrupt
        return decode(data, path)

    decode = cache.decode_named
    monkeypatch.setattr(cache, "decode_named", interrupted)
    monkeypatch.setattr(cache, "_PROBED", 1)
    with pytest.raises(KeyboardInterrupt):
        kept(photos, folder)
    monkeypatch.undo()
    assert [f.suffix for f in folder.iterdir()] == [".lock"]
    assert holds(kept(photos, folder), photos)


@pytest.mark.parametrize("ending", [".photos", ".json"])
def test_unfinished_files_of_a_killed_build_are_removed(photos, folder, ending):
    file = kept(photos, folder).file
    left = file.with_name(f".{file.stem}{ending}.4711.part")
    left.write_bytes(b"half")
    lose_index(file)
    kept(photos, folder)
    assert not left.exists()
    left.write_bytes(b"half")
    with FileLock(folder / f".{file.stem}.lock"):
        clear_cache(folder=folder)
        assert left.exists(), "a process builds it"
    clear_cache(folder=folder)
    assert not left.exists()


def test_two_processes_that_build_one_cache_end_with_one(photos, folder):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=kept, args=(photos, folder)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert holds(kept(photos, folder), photos)
    assert len(list_caches(folder)) == 1


def test_the_second_waits_for_the_first_and_reports_it(photos, folder):
    file = kept(photos, folder).file
    lose_index(file)
    lock, reported, waits = FileLock(folder / f".{file.stem}.lock"), [], threading.Event()
    lock.acquire()

    def say(message):
        reported.append(message)
        waits.set()

    waiting = threading.Thread(target=lambda: kept(photos, folder, say=say))
    waiting.start()
    assert waits.wait(60)
    assert "waiting for it" in reported[0]
    assert waiting.is_alive()
    lock.release()
    waiting.join()
    assert holds(kept(photos, folder), photos)


def test_without_room_on_the_disk_photos_are_kept_in_memory_or_decoded_again(photos, folder, monkeypatch):
    monkeypatch.setattr(cache, "_RESERVE", 10**18)
    lines = []
    assert holds(kept(photos, folder, how="auto", say=lines.append), photos)
    assert "into memory" in lines[0]
    monkeypatch.setattr(cache.psutil, "virtual_memory", lambda: SimpleNamespace(total=1000))
    assert len(kept(photos, folder, how="auto", say=lines.append)) == 0
    assert "decoded again in every epoch" in lines[-1]
    assert "free, photos take" in lines[-1]
    for how, reason in (
        ("disk", r"disk: .* has .* free, photos take"),
        ("ram", "ram: photos take .* this machine has"),
    ):
        with pytest.warns(FastmaskWarning, match=rf"without a cache \({reason}"):
            assert len(kept(photos, folder, how=how)) == 0


def test_a_disk_that_becomes_full_keeps_nothing_nor_does_a_folder_that_cannot_be_made(photos, folder):
    # the system refuses to let a file grow, as on a full disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, limits[1]))
    try:
        with pytest.warns(FastmaskWarning, match="disk: .*File too large"):
            assert len(kept(photos, folder)) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [f.suffix for f in folder.iterdir()] == [".lock"]
    assert holds(kept(photos, folder), photos)
    with pytest.warns(FastmaskWarning, match="disk: "):
        assert len(kept(photos, photos[0] / "decoded")) == 0


def test_a_read_only_folder_is_read_without_a_lock(photos, folder, monkeypatch):
    kept(photos, folder)
    monkeypatch.setattr(cache, "FileLock", lambda *_: pytest.fail("it was locked"))
    assert holds(kept(photos, folder), photos)


def test_a_broken_photo_and_one_that_the_crop_does_not_fit_are_named(photos, folder):
    with pytest.raises(DataError, match=r"is \d+ high and \d+ wide, and the pipeline does not fit"):
        kept(photos, folder, Prefix([A.CenterCrop(60, 20)]))
    photos[4].write_bytes(photos[4].read_bytes()[:-500])
    with pytest.raises(DataError, match=f"{photos[4].name} is damaged or cut short"):
        kept(photos, folder)
    assert list_caches(folder) == []


def test_a_photo_that_changes_while_it_is_read_is_not_kept(photos, folder):
    digests = digest_photos(photos)
    shutil.copy(photos[3], photos[5])
    with pytest.raises(DataError, match=f"{photos[5].name} was changed while"):
        photo_map(photos, digests, CROP, "disk", folder)


def test_a_map_is_opened_again_in_another_process_and_off_is_an_empty_one(photos, folder):
    made = kept(photos, folder)
    sent = pickle.dumps(made)
    assert len(sent) < 10_000
    assert holds(pickle.loads(sent), photos)
    in_memory = pickle.loads(pickle.dumps(kept(photos, folder, how="ram")))
    assert (len(in_memory), in_memory.prefix) == (0, CROP.plain)
    clear_cache(folder=folder)
    assert len(pickle.loads(sent)) == 0
    assert holds(made, photos), "what is open stays"
    assert len(kept(photos, folder / "off", how="off")) == 0
    assert not (folder / "off").exists()
    assert PhotoMap().get("photo.jpg") is None


def test_caches_are_listed_and_cleared_by_name(photos, folder):
    one = kept(photos, folder).file.stem
    other = kept(photos, folder, Prefix()).file.stem
    listed = {c.path.stem: c for c in list_caches(folder)}
    assert set(listed) == {one, other}
    assert (listed[one].photos, listed[one].bytes) == (12, 12 * 40 * 20 * 3)
    assert str(listed[one]).startswith(f"{one}       12 photos   28.8 kB  ")
    assert str(listed[one]).endswith("  CenterCrop")
    assert str(listed[other]).endswith("  whole photos")
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        list_caches("nowhere")
    assert [c.path.stem for c in clear_cache([one], folder)] == [one]
    assert [c.path.stem for c in list_caches(folder)] == [other]
    assert len(clear_cache(folder=folder)) == 1
    assert {file.suffix for file in folder.iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("transforms", "fixed"),
    [
        ([A.CenterCrop(40, 20), A.HorizontalFlip(p=0.5), A.Resize(10, 10)], 1),
        ([A.PadIfNeeded(60, 60), A.LongestMaxSize(30), A.ToGray(p=1)], 3),
        ([A.PadIfNeeded(60, 60, position="random")], 0),
        ([A.LongestMaxSize([10, 20])], 0),
        ([A.RandomCrop(30, 30)], 0),
        ([A.Resize(30, 30), A.GaussianBlur(p=1)], 1),
        ([A.CenterCrop(40, 20, p=0.9)], 0),
    ],
)
def test_the_prefix_is_the_longest_deterministic_beginning(transforms, fixed, photos):
    augment, image = Augmentation(A.Compose(transforms)), read_photo(photos[0])
    assert len(augment.prefix.transforms) == fixed
    rest = augment.vary(augment.prefix(image), np.random.default_rng(3))
    assert np.array_equal(rest, augment(image, np.random.default_rng(3)))
    assert len({augment.prefix(image).tobytes() for _ in range(5)}) == 1


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", 5, None, "Crop\n0 photos"])
def test_an_index_that_may_be_forged_is_not_printed(photos, folder, name):
    file = kept(photos, folder).file
    assert "CenterCrop" in str(list_caches(folder)[0])
    change_index(lambda index: {"prefix": [{"transform": {"__class_fullname__": name}}]})(file)
    assert str(list_caches(folder)[0]).endswith("broken: it is made again when needed")
