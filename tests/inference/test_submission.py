import unicodedata
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fastmask.data.contest import contest_heads
from fastmask.heads import Heads
from fastmask.inference.form import read_form
from fastmask.inference.sources import read_source
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

NAMES = [f"{i:040x}.jpg" for i in range(60)]


def write(file, answers, names=NAMES):
    pd.DataFrame({"ImageID": names, "ans": answers}).to_csv(file, index=False)
    return file


def write_submission(classes, info, out):
    """Fill in `info` with photo -> joint class."""
    heads, photos = contest_heads(), list(classes)
    y = heads.unjoint(np.array(list(classes.values())))
    return read_form(info, heads, photos).fill(heads, photos, y, np.zeros((len(y), heads.n_logits)), out)


def photos_of_info(info, folder):
    return read_form(info, contest_heads(), folder).find(folder)


@pytest.fixture
def info(tmp_path):
    return write(tmp_path / "info.csv", 0)


def test_a_submission_has_the_rows_of_info_in_their_order(info, tmp_path):
    rng = np.random.default_rng(0)
    classes = dict(zip(rng.permutation(NAMES), rng.integers(0, 18, 60).tolist(), strict=True))
    frame = pd.read_csv(write_submission({f"images/{n}": c for n, c in classes.items()}, info, tmp_path / "out.csv"))
    assert frame["ImageID"].tolist() == NAMES
    assert frame["ans"].tolist() == [classes[n] for n in NAMES]


def test_a_submission_needs_all_heads_learned(info):
    heads = [replace(head, weight=float(head.name == "mask")) for head in contest_heads()]
    with pytest.raises(UsageError, match=r"has not learned gender, age \(weight 0\), .* fastmask ensemble"):
        read_form(info, Heads(heads), NAMES)


def test_a_photo_without_prediction_is_named_and_nothing_is_written(info, tmp_path):
    with pytest.raises(DataError, match=f"line 9, column ImageID: {NAMES[7]} was not predicted"):
        write_submission({n: 0 for n in NAMES if n != NAMES[7]}, info, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_photos_of_one_file_name_in_two_folders_are_distinguished(tmp_path):
    names = ["a/mask1.jpg", "b/mask1.jpg"]
    info = write(tmp_path / "info.csv", 0, names)
    written = write_submission(dict(zip(names, (0, 17), strict=True)), info, tmp_path / "out.csv")
    assert pd.read_csv(written)["ans"].tolist() == [0, 17]
    elsewhere = {"/x/a/mask1.jpg": 3, "/x/b/mask1.jpg": 4}
    assert pd.read_csv(write_submission(elsewhere, info, tmp_path / "other.csv"))["ans"].tolist() == [3, 4]
    with pytest.raises(DataError, match="is the file name of 2 predicted photos"):
        write_submission(elsewhere, write(tmp_path / "one.csv", 0, ["mask1.jpg"]), tmp_path / "third.csv")


def test_info_csv_is_never_overwritten(info):
    with pytest.raises(UsageError, match="the file of --submission itself"):
        write_submission(dict.fromkeys(NAMES, 3), info, info)
    assert set(pd.read_csv(info)["ans"]) == {0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ImageID\na.jpg\n", r"info\.csv has no column 'ans'"),
        ("image,ans\na.jpg,0\n", "has no column 'ImageID'; found image"),
        ("ImageID,ans\na.jpg,0\na.jpg,0\n", r"line 3, column ImageID: 'a\.jpg' is duplicated"),
        ("ImageID,ans\n,0\n", "line 2, column ImageID: '' is empty"),
        ("ImageID,ans\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_errors_of_info_csv_are_named(tmp_path, text, message):
    (tmp_path / "info.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_form(tmp_path / "info.csv", contest_heads(), [])


def test_photos_of_info_are_in_the_folder_and_others_are_errors_of_these_photos(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"")
    outside = ["../b.jpg", str(tmp_path / "b.jpg")]
    names, photos = photos_of_info(write(tmp_path / "i.csv", 0, ["a.jpg", "c.jpg", *outside]), tmp_path / "images")
    assert names == ["a.jpg", "c.jpg", *outside]
    assert photos[0] == tmp_path / "images" / "a.jpg"
    for photo, message in zip(
        photos[1:], ["c.jpg does not exist", *["found .* expected a photo inside"] * 2], strict=True
    ):
        with pytest.raises(DataError, match=f"column ImageID: .*{message}"):
            read_source(photo, "")


def test_photos_of_info_and_a_submission_are_found_as_they_are_written_on_another_system(tmp_path):
    name, written = unicodedata.normalize("NFD", "사진.JPG"), "C:\\eval\\images\\사진.jpg"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(b"")
    info = write(tmp_path / "i.csv", 0, [written])
    with pytest.warns(FastmaskWarning, match="1 photos are found .* by the ends of their paths"):
        assert photos_of_info(info, tmp_path / "images") == ([name], [tmp_path / "images" / name])
    frame = pd.read_csv(write_submission({name: 7}, info, tmp_path / "out.csv"))
    assert (frame["ImageID"].tolist(), frame["ans"].tolist()) == ([written], [7])
