import pytest

from fastmask.data.folders import read_folders
from fastmask.heads import Head, Heads
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


def test_a_folder_per_class(folders):
    with pytest.warns(FastmaskWarning) as warned:
        table = read_folders(folders, head="animal")
    said = " ".join(str(w.message) for w in warned)
    assert "every photo counts as a different person" in said
    assert "1 files, such as" in said
    assert "notes.txt, are left out" in said
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
    with pytest.raises(UsageError, match="cat holds 1 folders; expected two or more, one per class"):
        read_folders(folders / "cat")


def test_folders_of_a_split_are_not_classes(contest_copy):
    (contest_copy / "train" / "train.csv").unlink()
    with pytest.raises(UsageError, match=r"eval, train, which are not classes; .* a contest folder with train.csv"):
        read_folders(contest_copy)


def test_a_linked_photo_in_the_folder_of_a_class_is_refused(tmp_path):
    for name in ("pets/cat/a.jpg", "pets/dog/b.jpg", "private.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "pets" / "dog" / "c.jpg").symlink_to(tmp_path / "private.jpg")
    with pytest.raises(DataError, match="c.jpg is a link out of .*pets"):
        read_folders(tmp_path / "pets")
