from dataclasses import replace

import numpy as np
import pytest

from fastmask.heads import Head, Heads
from fastmask.inference.form import read_form
from fastmask.inference.predictions import Predictions
from fastmask.system.errors import DataError, FastmaskWarning, UsageError

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


def test_photos_that_are_empty_or_duplicated_are_refused(tmp_path):
    for text, message in (
        ("id,label\n1,\n1,\n", "line 3, column id: '1' is duplicated"),
        ("id,label\n", "has no rows"),
    ):
        with pytest.raises(DataError, match=message):
            read_form(save(tmp_path, text), PLANT, PHOTOS)


def test_the_photos_of_a_form_are_found_in_their_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for photo in PHOTOS:
        (tmp_path / "images" / photo).write_bytes(b"")
    form = read_form(save(tmp_path, "label,id\n,2\n,1\n"), PLANT, tmp_path / "images")
    assert form.find(tmp_path / "images").names == ["2.jpg", "1.jpg"]
