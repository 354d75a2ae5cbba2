import pytest

from fastmask.data.folders import read_folders
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


def test_a_folder_per_class(folders):
    with pytest.warns(FastmaskWarning) as warned:
        table = read_folders(folders, head="animal")
    said = " ".join(str(w.message) for w in warned)
    assert "every photo counts as a different person" in said
    assert f"1 file is left out (1 .txt), such as {folders / 'dog/notes.txt'}. Names of photos end in .jpg, " in said
    assert table.heads == Heads([Head("animal", ("cat", "dog"))])
    assert table.frame["path"].tolist() == ["cat/1.jpg", "cat/deep/2.png", "dog/1.jpg"]
    assert table.y[:, 0].tolist() == [0, 0, 1]
    (folders / "__MACOSX").mkdir()
    (folders / "bird").mkdir()
    with pytest.raises(DataError, match="bird holds no photos"):
        read_folders(folders)
    (folders / "top.jpg").touch()
    with pytest.raises(DataError, match="top.jpg is not in the folder of a class"):
        read_folders(folders)
    with pytest.raises(UsageError, match="cat holds 1 folder; expected two or more, one per class"):
        read_folders(folders / "cat")


SPLIT = ("train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.jpg", "val/cat/1.jpg", "val/dog/2.jpg", "test/cat/9.jpg")


def make(root, *photos):
    for name in photos:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def said_of(root):
    """The table of a folder, and the warnings of it as one text."""
    with pytest.warns(FastmaskWarning) as warned:
        table = read_folders(root)
    return table, " ".join(str(each.message) for each in warned)


def test_val_is_a_fixed_split_and_test_is_left_out(tmp_path):
    table, said = said_of(make(tmp_path, *SPLIT))
    assert table.frame["path"].tolist() == list(SPLIT[:5])
    assert table.frame["class"].tolist() == ["cat", "cat", "dog", "cat", "dog"]
    assert table.frame["fold"].tolist() == [-1, -1, -1, 0, 0]
    assert "neither trained on nor validated: test." in said


def test_without_val_there_is_no_split(tmp_path):
    table, _ = said_of(make(tmp_path, *SPLIT[:3], SPLIT[-1]))
    assert table.frame["path"].tolist() == list(SPLIT[:3])
    assert "fold" not in table.frame


def test_classes_of_one_split_alone_are_named(tmp_path):
    table, said = said_of(make(tmp_path, *SPLIT, "train/hen/1.jpg", "val/owl/1.jpg"))
    assert table.heads["class"].classes == ("cat", "dog", "hen", "owl")
    assert "Only val has photos of owl: they are not trained on" in said
    assert "Only train has photos of hen: they are not scored." in said


def test_classes_that_look_like_one_or_like_none_are_named(tmp_path):
    _, said = said_of(make(tmp_path, "cat/1.jpg", "Cat/2.jpg", "dog/3.jpg"))
    assert "The classes Cat and cat of " in said
    assert "look like one; if they are, merge the folders." in said
    assert "counts as a class" not in said
    _, said = said_of(make(tmp_path, "unknown/1.jpg"))
    assert f"unknown in {tmp_path} counts as a class; move photos without a label" in said


def test_folders_inside_the_classes_are_named(tmp_path):
    _, said = said_of(make(tmp_path, *(f"{upper}/{i}/1.jpg" for upper in ("animal", "car") for i in "ab")))
    assert "The classes are the upper folders, animal, car, not those inside, such as a in animal" in said
    _, said = said_of(make(tmp_path, "animal/2.jpg"))
    assert "upper folders" not in said


def test_many_folders_of_the_same_few_photos_look_like_persons(tmp_path):
    make(tmp_path, *(f"id{i}/{stem}.jpg" for i in range(30) for stem in ("front", "left", "right")))
    _, said = said_of(tmp_path)
    assert "Each of the 30 folders of " in said
    assert "holds the same 3 photos (front, left, right). If each is a person" in said
    for i in range(30):
        make(tmp_path, *(f"id{i}/{i}_{k}.jpg" for k in range(3)))
    assert "If each is a person" not in said_of(tmp_path)[1]


def test_folders_of_one_photo_look_like_persons(tmp_path):
    _, said = said_of(make(tmp_path, *(f"id{i}/{i}.jpg" for i in range(30)), "id0/x.jpg"))
    assert "30 folders, which are taken as classes, for 31 photos. If each is a person" in said


def test_many_classes_with_many_photos_are_classes(tmp_path):
    _, said = said_of(make(tmp_path, *(f"{i:03d}.Bird/{k}.jpg" for i in range(60) for k in range(20))))
    assert "If each is a person" not in said


def test_a_run_inside_the_folder_is_no_class(tmp_path):
    run = ("heads.json", "config.yaml", "report/pair.png", "fold0/done.json")
    make(tmp_path, "cat/1.jpg", "dog/1.jpg", *(f"runs/{name}/{file}" for name in "ab" for file in run))
    make(tmp_path, *(f"mine/{file}" for file in run), *(f"dog/last/{file}" for file in run), "runs/a.csv")
    table, said = said_of(tmp_path)
    assert table.frame["path"].tolist() == ["cat/1.jpg", "dog/1.jpg"]
    assert f"{tmp_path / 'mine'} and 1 more hold results of fastmask, not photos, and are left out." in said
    assert f"{tmp_path / 'dog/last'} holds results of fastmask" in said
    assert "Rename" not in said
    # a class of photos is one, whatever else it holds
    make(tmp_path, "runs/home.jpg")
    assert said_of(tmp_path)[0].heads["class"].classes == ("cat", "dog", "runs")
