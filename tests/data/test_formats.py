"""Which files are photos, by their names and by their first bytes."""

import sys
from io import BytesIO
from types import ModuleType

import pytest
from PIL import Image, ImageFile

from fastmask.data import decode, formats
from fastmask.data.formats import FORMATS, READABLE, SUFFIXES, describe_left_out, is_readable, list_files
from fastmask.data.photo import decode_photo, list_photos, read_photo
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"
PICTURE = Image.linear_gradient("L").convert("RGB").resize((40, 60))


@pytest.fixture(autouse=True)
def _without_heic(monkeypatch):
    """As where pillow-heif is not installed."""
    readable = tuple(name for name in READABLE if name != "HEIF")
    for module in (formats, decode):
        monkeypatch.setattr(module, "READABLE", readable)
    monkeypatch.setattr(formats, "SUFFIXES", tuple(suffix for name in readable for suffix in FORMATS[name]))


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()


def test_each_ending_belongs_to_one_format_that_is_read_and_none_runs_programs():
    assert len(SUFFIXES) == len(set(SUFFIXES))
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".gif", ".bmp", ".ppm"} <= set(SUFFIXES)
    assert not {"EPS", "PDF", "WMF", "TGA"} & set(FORMATS)


@pytest.mark.parametrize("name", [name for name in READABLE if name != "HEIF"])
def test_a_photo_of_each_format_is_read(name, tmp_path):
    for suffix in FORMATS[name]:
        PICTURE.save(tmp_path / "saved", name)
        (tmp_path / "saved").rename(tmp_path / f"a{suffix}")
        assert abs(read_photo(tmp_path / f"a{suffix}").astype(int) - PICTURE).max() < 30


def test_the_content_counts_not_the_ending(tmp_path):
    for name in ("a.jpg", "b"):
        PICTURE.save(tmp_path / name, "PNG")
        assert (read_photo(tmp_path / name) == PICTURE).all()


def test_hidden_files_and_those_of_the_system_are_neither_photos_nor_left_out(tmp_path):
    files(tmp_path, "a.JPG", "b/c.jfif", "notes.txt", "b/IMG", ".DS_Store", "b/._c.jpg", "Thumbs.db", "desktop.ini")
    files(tmp_path, "__MACOSX/b/._c.jpg", "@eaDir/a.JPG/thumb.jpg", ".ipynb_checkpoints/a.jpg")
    photos, others = list_files(tmp_path)
    assert photos == [tmp_path / "a.JPG", tmp_path / "b/c.jfif"]
    assert others == [tmp_path / "b/IMG", tmp_path / "notes.txt"]


def test_files_that_are_left_out_are_counted_by_their_endings(tmp_path):
    files(tmp_path, "a.jpg", "1.HEIC", "2.heic", "IMG", "x.jpg_large")
    with pytest.warns(FastmaskWarning) as caught:
        assert list_photos(tmp_path) == [tmp_path / "a.jpg"]
    assert len(caught) == 1
    said = str(caught[0].message)
    assert said == (
        f"4 files are left out (2 .heic, 1 without an ending, 1 .jpg_large), such as {tmp_path / '1.HEIC'}. To read "
        ".heic, install the package pillow-heif (pip install pillow-heif). Names of photos end in "
        f"{formats.ENDINGS} or similar; rename or convert other photos."
    )
    assert formats.ENDINGS.startswith(".jpg, .png, .bmp")


def test_many_endings_are_the_most_frequent_ones(tmp_path):
    others = [tmp_path / f"{i}{end}" for end in (".a", ".b", ".c", ".d", ".e", ".f") for i in range(2)]
    assert describe_left_out(others).startswith("12 files are left out (2 .a, 2 .b, 2 .c, 2 .d and 2 more endings)")
    assert describe_left_out(others[:1]).startswith("1 file is left out (1 .a)")


def test_a_folder_of_others_alone_says_which(tmp_path):
    with pytest.raises(UsageError, match=r"holds no photos \(such as \.jpg, "):
        list_photos(tmp_path)
    files(tmp_path, "1.HEIC")
    with pytest.raises(
        UsageError, match=r"holds no photos: 1 file is left out \(1 .heic\), such as .*\(pip install pillow-heif\)\.$"
    ):
        list_photos(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            HEIC,
            r"is HEIC, .* install the package pillow-heif \(pip install pillow-heif\), or convert it to JPEG, or rem",
        ),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "is a video, not a photo"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, .*; run git lfs pull, or remove"),
        (b"<!DOCTYPE html>\n<html>", "is a web page, perhaps of a failed download"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "is macOS's notes about another file, .*; delete it"),
        (b"no image", "a.jpg is not an image that can be read; replace it, or remove its row."),
    ],
)
def test_what_is_not_a_photo_is_named(tmp_path, content, sentence):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_photo(tmp_path / "a.jpg")


def test_avif_names_the_version_of_pillow_that_reads_it(monkeypatch):
    monkeypatch.setattr(formats, "READABLE", ("JPEG",))
    assert "is AVIF, not a photo that can be read; install Pillow 11.3 or newer" in formats.describe_unreadable(
        b"\0\0\0\x20ftypavif\0\0\0\0avifmif1"
    )
    monkeypatch.setitem(formats.features.modules, "avif", ("nothing.there", None))
    assert not is_readable("AVIF")
    monkeypatch.delitem(formats.features.modules, "avif")
    assert not is_readable("AVIF")


class _Heif(ImageFile.ImageFile):
    format = "HEIF"

    def _open(self):
        self._size, self._mode = (3, 2), "RGB"
        self.tile = [("raw", (0, 0, 3, 2), len(HEIC), "RGB")]


def test_heic_is_read_by_the_package_for_it(monkeypatch):
    package = ModuleType("pillow_heif")
    package.register_heif_opener = lambda: Image.register_open("HEIF", _Heif, lambda first: first[4:8] == b"ftyp")
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(decode, "READABLE", (*READABLE, "HEIF"))
    try:
        assert decode_photo(HEIC + bytes(range(18))).tolist() == [
            [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
            [[9, 10, 11], [12, 13, 14], [15, 16, 17]],
        ]
        # and other photos as before
        file = BytesIO()
        PICTURE.save(file, "PNG")
        assert (decode_photo(file.getvalue()) == PICTURE).all()
    finally:
        Image.OPEN.pop("HEIF", None)


def test_runs_below_a_folder_of_photos_are_left_out_and_said(tmp_path):
    files(tmp_path, "a.jpg", "runs/one/heads.json", "runs/one/config.yaml", "runs/one/report/pair.png")
    files(tmp_path, "b/heads.json", "b/1.jpg")
    assert list_files(tmp_path) == (
        [tmp_path / "a.jpg", tmp_path / "b/1.jpg"],
        [tmp_path / "b/heads.json", tmp_path / "runs/one"],
    )
    assert list_files(tmp_path / "runs/one")[0] == [tmp_path / "runs/one/report/pair.png"]
    (tmp_path / "b/heads.json").unlink()
    with pytest.warns(FastmaskWarning, match="^.*one holds results of fastmask, not photos, and is left out.$"):
        assert list_photos(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b/1.jpg"]
