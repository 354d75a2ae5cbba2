import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastmask.data.boxes import Framing
from fastmask.data.contest import read_contest
from fastmask.data.fixes import apply_fixes
from fastmask.data.folds_file import read_folds
from fastmask.data.paths import locate_photos, match_paths, path_in
from fastmask.data.readers import read_csv
from fastmask.system.errors import DataError, FastmaskWarning, MissingPhotoError

NFD, NFC = (unicodedata.normalize(form, "사진/é 1.jpg") for form in ("NFD", "NFC"))
FILES = ["img/a.jpg", "img/b.jpg", "img/c d.JPG", NFD, "thumbs/a.jpg", "deep/down/e.png"]


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("cell", "path"),
    [
        ("img/a.jpg", "img/a.jpg"),
        ("./img//a.jpg", "img/a.jpg"),
        ("../set/img/a.jpg", "img/a.jpg"),
        ("img\\a.jpg", "img/a.jpg"),
        (".\\img\\a.jpg", "img/a.jpg"),
        ("IMG/A.JPG", "img/a.jpg"),
        ("img/c d.jpg", "img/c d.JPG"),
        ("img/a", "img/a.jpg"),
        ("img/C D", "img/c d.JPG"),
        (NFC, NFD),
        (NFC.upper(), NFD),
    ],
)
def test_a_photo_is_found_under_its_real_path(cell, path, folder):
    assert locate_photos([cell], folder, "t") == {cell: path}
    assert match_paths([cell], FILES, folder) == {cell: [path]}


def test_the_real_path_of_a_photo_in_nfc_is_found_by_nfd(tmp_path):
    (tmp_path / "사진").mkdir()
    (tmp_path / NFC).touch()
    assert locate_photos([NFD], tmp_path, "t") == {NFD: NFC}


@pytest.mark.parametrize(
    ("cells", "paths"),
    [
        (["/kaggle/input/x/img/a.jpg", "/kaggle/input/x/img/b.jpg"], ["img/a.jpg", "img/b.jpg"]),
        (["D:\\own\\img\\a.jpg", "D:\\own\\img\\b.jpg"], ["img/a.jpg", "img/b.jpg"]),
        (["e.png", "B.jpg"], ["deep/down/e.png", "img/b.jpg"]),
        (["down/e"], ["deep/down/e.png"]),
        (["set/img/a.jpg"], ["img/a.jpg"]),
    ],
)
def test_photos_of_a_table_from_another_machine_are_found_by_the_ends_of_their_paths(cells, paths, folder):
    with pytest.warns(FastmaskWarning, match=f"t: {len(cells)} photos are found in .*set by the ends of their paths"):
        assert list(locate_photos(cells, folder, "t").values()) == paths


@pytest.mark.parametrize("start", ["/", "../"])
def test_a_path_from_a_root_is_one_in_the_folder_if_all_are(start, folder):
    cells = [f"{start}{path}" for path in FILES]
    assert list(locate_photos(cells, folder, "t").values()) == FILES


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a.jpg"], "found 'a.jpg', which matches img/a.jpg and thumbs/a.jpg; write the full path"),
        (["z/b.jpg"], r"z/b.jpg does not exist \(1 of 1 are missing; the nearest photo is 'img/b.jpg'\); .* --images"),
        (["img/b.png"], "the nearest photo is 'img/b.jpg'"),
        (["img/bb.jpg"], "the nearest photo is 'img/b.jpg'"),
        # another photo of the same name in another folder is not meant
        (["/s1/img/b.jpg", "/s2/img/b.jpg"], "found '/s1/img/b.jpg', expected a photo inside .*--images"),
        (["/data/x/e.png"], "found '/data/x/e.png', expected a photo inside"),
        ([""], "found '', expected a photo inside"),
        (["a" * 3000 + ".jpg"], "which cannot be the name of a photo"),
    ],
)
def test_a_photo_that_is_not_clear_is_one_sentence(cells, message, folder):
    fault = locate_photos(cells, folder, "t")[cells[0]]
    assert isinstance(fault, DataError)
    with pytest.raises(DataError, match=message):
        raise fault


def test_a_photo_is_not_looked_for_elsewhere_if_others_are_where_the_table_says(folder):
    found = locate_photos(["img/a.jpg", "e.png"], folder, "t")
    assert found["img/a.jpg"] == "img/a.jpg"
    assert isinstance(found["e.png"], MissingPhotoError)
    assert "1 of 2 are missing; the nearest photo is 'deep/down/e.png'" in str(found["e.png"])


def test_a_photo_that_exists_outside_names_the_folder_to_give(folder):
    (folder.parent / "other.jpg").touch()
    for cell in ("../other.jpg", str(folder.parent / "other.jpg")):
        message = str(locate_photos([cell], folder, "t")[cell])
        assert f"expected a photo inside {folder}; it exists, so --images {folder.parent} finds it" in message


def test_files_that_differ_only_in_case_are_told_apart(folder):
    if (folder / "IMG").exists():
        pytest.skip("this file system ignores case")
    (folder / "img" / "A.jpg").touch()
    assert locate_photos(["img/a.jpg", "img/A.jpg"], folder, "t") == {
        "img/a.jpg": "img/a.jpg",
        "img/A.jpg": "img/A.jpg",
    }
    assert "matches" in str(locate_photos(["img/A.JPG"], folder, "t")["img/A.JPG"])


def test_hidden_files_are_not_found(folder):
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "e.png").touch()
    (folder / "deep" / ".trash").mkdir()
    (folder / "deep" / ".trash" / "e.png").touch()
    with pytest.warns(FastmaskWarning, match="by the ends"):
        assert locate_photos(["e.png"], folder, "t") == {"e.png": "deep/down/e.png"}


def test_a_path_below_its_folder_is_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cell in ("a/b.jpg", "./a//b.jpg", f"{tmp_path}/a/b.jpg", f"../{tmp_path.name}/a/b.jpg"):
        assert path_in(Path(), cell) == "a/b.jpg"
    for cell in ("/b.jpg", "../b.jpg", "", "."):
        assert path_in(Path(), cell) == cell


@pytest.fixture
def table(folder):
    rows = "".join(f"{name},p{i},{'xy'[i % 2]}\n" for i, name in enumerate(FILES))
    (folder / "my.csv").write_text(f"path,person,hat\n{rows}", encoding="utf-8")
    return read_csv(folder / "my.csv")


@pytest.mark.parametrize(
    "spell",
    [
        lambda path: path.replace("/", "\\"),
        lambda path: unicodedata.normalize("NFC", path).upper(),
        lambda path: f"./{os.path.splitext(path)[0]}",
        lambda path: f"/kaggle/input/{path}",
    ],
)
def test_files_about_photos_name_them_in_any_of_these_ways(spell, table, tmp_path):
    spelled = [spell(path) for path in FILES]
    pd.DataFrame({"path": spelled, "fold": [0, 1, 0, 1, 0, 1]}).to_csv(tmp_path / "folds.csv", index=False)
    assert read_folds(table, tmp_path / "folds.csv").tolist() == [0, 1, 0, 1, 0, 1]
    pd.DataFrame({"path": spelled[:1], "column": "hat", "value": "y"}).to_csv(tmp_path / "fixes.csv", index=False)
    assert apply_fixes(table, tmp_path / "fixes.csv").frame["hat"].tolist() == list("yyxyxy")
    boxes = pd.DataFrame({"path": spelled, "x0": range(6), "y0": 0, "x1": 8, "y1": 8})
    boxes.to_csv(tmp_path / "boxes.csv", index=False)
    faces = table.cut_to_faces(tmp_path / "boxes.csv", Framing((2, 2))).faces
    photo = np.stack([np.arange(8, dtype=np.uint8)] * 8)[..., None].repeat(3, 2)
    assert faces(photo, table.photo(3)).shape == (2, 2, 3)
    assert faces.boxes.faces[faces.names[str(table.photo(3))]].x0 == 3


def test_a_person_of_the_contest_is_found_on_another_system(contest_copy):
    images = contest_copy / "train" / "images"
    person = sorted(path.name for path in images.iterdir())[0]
    (images / person).rename(images / person.upper())
    (images / person.upper() / "mask1.jpg").rename(images / person.upper() / "Mask1.JPG")
    table = read_contest(contest_copy)
    assert len(table) == 84
    row = table.frame["path"].tolist().index(f"{person.upper()}/Mask1.JPG")
    assert table.persons[row] == person
