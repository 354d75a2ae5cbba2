"""What is given in place of the data: parts of a contest folder, archives, other files."""

import pytest

from fastmask.config import make_config
from fastmask.data.contest import PERSON_FOLDER
from fastmask.data.folders import read_folders
from fastmask.data.mistaken import check_kind
from fastmask.data.readers import read_data
from fastmask.system.errors import UsageError


def read(data):
    return read_data(make_config({"data": str(data)}))


def test_a_part_of_a_contest_folder_is_refused_with_the_folder_to_give(contest, monkeypatch):
    person = next(p.name for p in (contest / "train" / "images").iterdir() if PERSON_FOLDER.fullmatch(p.name))
    for part in ("train/images", f"train/images/{person}"):
        with pytest.raises(UsageError, match=rf"{part} is a part of a contest folder.*give {contest} in its place\.$"):
            read(contest / part)
    for part in ("eval", "eval/images"):
        with pytest.raises(UsageError, match=rf"{part} has no labels to train on; give {contest} in its place"):
            read(contest / part)
    with pytest.raises(UsageError, match=f"give {contest} in its place"):
        read_folders(contest / "train" / "images")
    monkeypatch.chdir(contest / "train")
    with pytest.raises(UsageError, match=r"images is a part of a contest folder.*give \.\. in its place"):
        read("images")


@pytest.mark.parametrize("name", ["train", "train.csv"])
def test_the_folder_of_train_csv_and_the_file_itself_are_read(contest, name):
    assert len(read(contest / "train" / name if "." in name else contest / name)) == 84


@pytest.mark.parametrize("wrap", ["data", "input/data", "a/b"])
def test_a_contest_folder_further_down_is_named(wrap, contest, tmp_path):
    (tmp_path / "top" / wrap).parent.mkdir(parents=True)
    (tmp_path / "top" / wrap).symlink_to(contest)
    (tmp_path / "top" / "code").mkdir()
    (tmp_path / "top" / "__MACOSX").mkdir()
    with pytest.raises(UsageError, match=rf"holds one: give {tmp_path}/top/{wrap} in its place"):
        read(tmp_path / "top")


@pytest.mark.parametrize("data", ["", "train", "train/images", "train/labels.csv"])
def test_a_train_csv_with_another_name_is_to_be_renamed(data, contest_copy):
    (contest_copy / "train" / "train.csv").rename(contest_copy / "train" / "labels.csv")
    with pytest.raises(
        UsageError, match=r"labels.csv has the columns of .*train.csv; rename it .* give .*/train as the"
    ):
        read(contest_copy / data)


@pytest.mark.parametrize("data", ["", "train", "train/images"])
def test_persons_without_a_train_csv_are_not_classes(data, contest_copy):
    (contest_copy / "train" / "train.csv").unlink()
    with pytest.raises(
        UsageError, match=r"holds a folder per person, such as .*/train/train.csv, which does not exist"
    ):
        read(contest_copy / data)


def test_persons_with_other_names_are_known_by_their_photos(contest_copy):
    (contest_copy / "train" / "train.csv").unlink()
    for i, person in enumerate(sorted((contest_copy / "train" / "images").iterdir())):
        person.rename(person.with_name(f"p{i:03d}"))
    with pytest.raises(UsageError, match="holds a folder per person, such as p000"):
        read(contest_copy / "train" / "images")


def test_a_csv_of_another_kind_called_train_is_not_the_contest_s(tmp_path):
    for name in ("train/cat/1.jpg", "train/dog/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "train.csv").write_text("image,label\ntrain/cat/1.jpg,cat\n")
    with pytest.warns(match="every photo counts"):
        assert read(tmp_path).heads["class"].classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pets.zip", "pets.zip is an archive; unpack it, and give"),
        ("pets.tar.gz", "pets.tar.gz is an archive"),
        ("pets.parquet", "pets.parquet is not a CSV; save it as one"),
        ("pets.ODS", "pets.ODS is not a CSV; save it as one, with commas"),
        ("pets.xlsx", "pets.xlsx is not a CSV"),
        ("pets.json", "pets.json is not a CSV"),
        ("data.yaml", "data.yaml is not a CSV"),
        ("cat.jpg", "cat.jpg is one photo"),
        ("pets.dvc", "pets.dvc is a pointer of DVC; run dvc pull, and give the data in its place"),
    ],
)
def test_other_files_are_refused_with_what_to_do(name, message, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=message):
        read(tmp_path / name)


def test_data_that_dvc_has_not_pulled(tmp_path):
    (tmp_path / "pets.dvc").touch()
    with pytest.raises(UsageError, match="pets does not exist, but .*pets.dvc does: get the data with dvc pull"):
        read(tmp_path / "pets")


@pytest.mark.parametrize("address", ["https://a.b/pets.zip", "s3://bucket/pets", "hf://datasets/pets"])
def test_an_address_is_to_be_downloaded(address):
    with pytest.raises(UsageError, match=f"--data is the address {address}; download it first"):
        check_kind(address)
