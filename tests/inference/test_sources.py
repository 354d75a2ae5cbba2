"""Sources: what photos to predict are given as."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fastmask.inference.sources import find_photos, read_source
from fastmask.system.errors import DataError, FastmaskWarning, UnreadableError, UsageError


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def test_hidden_and_other_files_of_a_folder_are_left_out(tmp_path):
    for name in ("b.jpg", "a.png", "._a.png", ".ipynb_checkpoints/c.jpg", "notes.txt", "deep/d.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(FastmaskWarning, match=r"1 file is left out \(1 .txt\), such as .*notes.txt\. "):
        found = find_photos(tmp_path)
    assert found.names == ["a.png", "b.jpg", "deep/d.jpeg"]
    assert found.sources == [tmp_path / name for name in found.names]


def test_photos_of_a_list_are_named_as_given_or_relative_to_a_root(tmp_path):
    photo = tmp_path / "a" / "b.jpg"
    photo.parent.mkdir()
    photo.touch()
    for given in (photo, str(photo), [photo], (path for path in [photo]), pd.Series([str(photo)]), np.array([photo])):
        assert find_photos(given) == ([str(photo)], [photo])
    assert find_photos([photo], tmp_path).names == ["a/b.jpg"]
    with pytest.raises(UsageError, match="b.jpg is not in .*other"):
        find_photos([photo], tmp_path / "other")


def test_photos_with_equal_names_in_several_folders_stay_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "x.jpg").touch()
    names = [str(Path("b", "x.jpg")), str(Path("a", "x.jpg")), str(Path("b", "x.jpg"))]
    assert find_photos(["b", "a/x.jpg", "b/x.jpg"]).names == names


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="holds no photos"):
        find_photos(tmp_path)
    for given in (tmp_path / "gone", ""):
        with pytest.raises(UsageError, match=r"(gone|'') does not exist; expected a photo or a folder"):
            find_photos(given)
    (tmp_path / "info.xlsx").touch()
    with pytest.raises(UsageError, match="info.xlsx is not a photo; .*a CSV with a column of their paths"):
        find_photos([tmp_path / "info.xlsx"])


LISTS = {
    "a.csv": "label,image\ncat,b/2.jpg\ndog,b/10.jpg\ncat,b/2.jpg\n",
    "ids.csv": "id\nb/2\nb/10\nb/2\n",
    "a.tsv": "id\timage\n7\tb/2.jpg\n8\tb/10.jpg\n9\tb/2.jpg\n",
    "a.txt": "b/2.jpg\nb/10.jpg\nb/2.jpg\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_the_photos_of_a_list_are_in_its_order(tmp_path, name):
    for photo in ("1.jpg", "2.jpg", "10.jpg"):
        (tmp_path / "b" / photo).parent.mkdir(exist_ok=True)
        (tmp_path / "b" / photo).touch()
    place = tmp_path / "lists" / name
    place.parent.mkdir()
    place.write_text(LISTS[name])
    names = ["b/2.jpg", "b/10.jpg", "b/2.jpg"]
    assert find_photos(place, tmp_path) == (names, [tmp_path / one for one in names])
    beside = place.rename(tmp_path / name)
    assert find_photos([str(beside), tmp_path / "b" / "1.jpg"]).names == [*names, str(tmp_path / "b" / "1.jpg")]


def test_a_photo_that_a_list_names_and_that_is_missing_is_its_error(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.csv").write_text("path,label\na.jpg,cat\ngone.jpg,dog\n")
    found = find_photos(tmp_path / "a.csv")
    assert found.names == ["a.jpg", "gone.jpg"]
    with pytest.raises(DataError, match=r"a\.csv, line 3, column path: .*gone\.jpg does not exist"):
        read_source(found.sources[1], "gone.jpg")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path\n", "list.csv has no rows"),
        ("colour,size\nred,small\n", "list.csv has no column of photos among colour, size"),
        ("a.jpg,cat\n", "list.csv has no header"),
    ],
)
def test_a_list_without_photos_is_named(tmp_path, text, named):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=named):
        find_photos(tmp_path / "list.csv")


def test_a_link_to_nothing_and_a_name_that_a_table_cannot_hold_are_errors_of_these_photos(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "b\n.jpg").touch()
    names, (link, other) = find_photos(tmp_path)
    assert names == ["a.jpg", r"'b\n.jpg'"]
    with pytest.raises(UnreadableError, match=r"a\.jpg is a link to .*, which does not exist"):
        read_source(link, names[0])
    with pytest.raises(UnreadableError, match="characters in its name"):
        read_source(other, names[1])


def test_the_same_pixels_in_memory_are_the_same_photo(colours, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "a.png", exif=turned)
    wanted = np.rot90(colours, -1)
    data = (tmp_path / "a.png").read_bytes()
    channels_last = wanted.transpose(2, 0, 1).copy().transpose(1, 2, 0)
    in_memory = [data, bytearray(data), io.BytesIO(data), Image.open(tmp_path / "a.png"), wanted, channels_last]
    names, photos = find_photos([tmp_path / "a.png", *in_memory])
    assert names == [str(tmp_path / "a.png"), *(f"photo {number}" for number in range(1, 7))]
    for name, photo in zip(names, photos, strict=True):
        read = read_source(photo, name)
        assert np.array_equal(read, wanted)
        assert read.flags.c_contiguous


def test_other_modes_are_what_pillow_makes_of_them(colours):
    grey, alpha = colours[:, :, 0], np.dstack([colours, colours[:, :, :1]])
    white = Image.new("RGBA", (4, 6), "white")
    on_white = np.asarray(Image.alpha_composite(white, Image.fromarray(alpha)).convert("RGB"))
    pairs = [(grey, np.dstack([grey] * 3)), (grey[:, :, None], np.dstack([grey] * 3)), (alpha, on_white)]
    for given, wanted in [*pairs, (Image.fromarray(grey), pairs[0][1]), (Image.fromarray(alpha), on_white)]:
        (photo,) = find_photos(given).sources
        assert np.array_equal(read_source(photo, "photo 0"), wanted)
    assert len(find_photos(np.stack([colours, colours])).names) == 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "Found no photos in an empty list"),
        (None, "Found None"),
        (3, "Found 3"),
        ({"a.jpg": 1}, r"Found \{'a.jpg': 1\}"),
        ([None], "Photo 0 is None"),
        (np.zeros((6, 4, 3)), r"array of float64 \(6, 4, 3\).* times 255, rounded"),
        (np.zeros((3, 6, 5), np.uint8), r"array of uint8 \(3, 6, 5\).*the array.transpose\(1, 2, 0\)\.$"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        (torch.zeros(3, 6, 4), r"a tensor \(3, 6, 4\) \(tensor.permute"),
        ([torch.zeros(3, 6, 4)], "Photo 0 is a tensor"),
        (pd.DataFrame({"path": ["a.jpg"]}), r"a DataFrame \(give its column of paths\)"),
    ],
)
def test_what_is_not_a_photo_is_one_sentence_that_says_what_is(given, named):
    with pytest.raises(UsageError, match=named) as raised:
        find_photos(given)
    assert "expected photos: a path, a folder, a PIL image, a uint8 array (height, width, 3)" in str(raised.value)


def test_an_image_that_cannot_be_read_is_an_error_of_this_photo(colours, tmp_path):
    Image.fromarray(colours.repeat(40, axis=0)).save(tmp_path / "a.bmp")
    cut = io.BytesIO((tmp_path / "a.bmp").read_bytes()[:1000])
    for photo in (Image.open(cut), b"", b"no photo"):
        (source,) = find_photos([photo]).sources
        with pytest.raises(UnreadableError, match="photo 0 is "):
            read_source(source, "photo 0")
