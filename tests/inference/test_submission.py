import unicodedata
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fastmask.data.contest import contest_heads
from fastmask.heads import Head, Heads
from fastmask.inference.predictions import Predictions
from fastmask.inference.sources import read_source
from fastmask.inference.submission import read_form
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


# of any contest
PLANT = Heads([Head("class", ("healthy", "rust", "scab"))])
TWO = Heads([Head("colour", ("red", "green")), Head("size", ("small", "large"))])
PHOTOS = ["1.jpg", "2.jpg", "3.jpg"]
# of PLANT, in the order of PHOTOS
SHARES = np.array([[0.7, 0.2, 0.1], [0.1, 0.125, 0.775], [0.2, 0.5, 0.3]])


def save(tmp_path, text):
    file = tmp_path / "sample_submission.csv"
    file.write_text(text)
    return file


def predictions(heads=PLANT, shares=SHARES, **more):
    return Predictions(PHOTOS[: len(shares)], heads, shares, {}, **more)


def filled(tmp_path, text, found, kept=()):
    return found.to_submission(save(tmp_path, text), tmp_path / "out.csv", kept).read_text()


@pytest.mark.parametrize("key", ["id", "image_id", "path"])
def test_one_head_fills_the_one_other_column_with_names_of_classes(tmp_path, key):
    text = filled(tmp_path, f"{key},label\n3.jpg,\n1.jpg,\n2.jpg,\n", predictions())
    assert text == f"{key},label\n3.jpg,rust\n1.jpg,healthy\n2.jpg,scab\n"


@pytest.mark.parametrize("names", [["3", "1"], ["x/3.jpg", "x/1.jpg"], ["3.JPG", "1.JPG"]])
def test_photos_are_named_with_or_without_ending_in_any_column(tmp_path, names):
    text = filled(tmp_path, f"label,photo\n,{names[0]}\n,{names[1]}\n", predictions())
    assert text == f"label,photo\nrust,{names[0]}\nhealthy,{names[1]}\n"


@pytest.mark.parametrize("header", ["id,scab,healthy,rust", "id,class.scab,class.healthy,class.rust"])
def test_a_column_per_class_gets_its_probability(tmp_path, header):
    text = filled(tmp_path, f"{header}\n2,0.25,0.25,0.25\n1,0,0,0\n", predictions())
    assert text == f"{header}\n2,0.775,0.1,0.125\n1,0.1,0.7,0.2\n"


def test_several_heads_fill_the_columns_called_like_them(tmp_path):
    shares = np.array([[0.9, 0.1, 0.3, 0.7], [0.2, 0.8, 0.6, 0.4]])
    text = filled(tmp_path, "id,size,colour,size.large\n2,,,\n1,,,\n", predictions(TWO, shares))
    assert text == "id,size,colour,size.large\n2,small,green,0.4\n1,large,red,0.7\n"


def test_the_classes_that_a_rule_chose_are_filled_in(tmp_path):
    decided = predictions(decided=np.array([[1], [1], [0]]))
    assert filled(tmp_path, "id,label\n1,\n2,\n3,\n", decided) == "id,label\n1,rust\n2,rust\n3,healthy\n"


def test_photos_that_failed_get_the_usual_classes(tmp_path):
    found = predictions(failed={"9.jpg": "it is damaged"}, usual=2)
    assert filled(tmp_path, "id,label\n9,\n1,\n", found) == "id,label\n9,scab\n1,healthy\n"
    assert filled(tmp_path, "id,rust,scab\n9,,\n1,,\n", found) == "id,rust,scab\n9,0,1\n1,0.2,0.1\n"
    with pytest.raises(DataError, match="line 2, column id: 9 was not predicted"):
        filled(tmp_path, "id,label\n9,\n", replace(found, usual=None))


def test_a_column_of_persons_is_kept_where_it_is_named(tmp_path):
    assert filled(tmp_path, "id,who,label\n1,ann,\n", predictions(), ["who"]) == "id,who,label\n1,ann,healthy\n"
    with pytest.raises(UsageError, match="has the column 'who'"):
        filled(tmp_path, "id,who,label\n1,ann,\n", predictions())


def test_numbers_that_are_replaced_by_names_are_reported(tmp_path):
    with pytest.warns(FastmaskWarning, match="column label: numbers, such as 0.5, are replaced by names of classes"):
        filled(tmp_path, "id,label\n1,0.5\n2,0.5\n", predictions())
    numbers = predictions(Heads([Head("label", ("0", "1", "2"))]))
    assert filled(tmp_path, "id,label\n1,4\n2,4\n", numbers) == "id,label\n1,0\n2,2\n"


ONE = "expected, in addition to id, one column for the class, or one per class for its probability: healthy, rust, scab"


@pytest.mark.parametrize(
    ("text", "heads", "message"),
    [
        ("id,label,score\n1,,\n", PLANT, f"has the column 'label'; {ONE}"),
        ("id,healthy,rust,scabs\n1,,,\n", PLANT, f"has the column 'scabs'; {ONE}"),
        ("id\n1\n", PLANT, f"has no column to fill in; {ONE}"),
        ("rust,scab\n1,1\n", PLANT, "has no column of photos; found rust, scab, expected one such as id"),
        (
            "id,label\n1,\n",
            TWO,
            "'label'; expected, in addition to id, columns called colour, size for classes",
        ),
        (
            "ImageID,ans\n1,0\n",
            PLANT,
            "has ImageID and ans, which holds joint classes of mask, gender, age; the run's",
        ),
        ("id,colour\n1,\n", Heads([replace(TWO[0], weight=0.0), TWO[1]]), r"not learned colour \(weight 0\), which"),
    ],
)
def test_columns_that_cannot_be_filled_are_refused(tmp_path, text, heads, message):
    with pytest.raises(UsageError, match=message):
        read_form(save(tmp_path, text), heads, PHOTOS)
