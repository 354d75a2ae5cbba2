"""Photos and folders that are links: what is refused, what a trusted folder allows, and what leads to nothing."""

import pandas as pd
import pytest

from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.data.folders import read_folders
from fastmask.data.formats import list_files
from fastmask.data.links import describe_broken, leads_outside, link_fault
from fastmask.data.readers import read_data
from fastmask.system.errors import DataError, MissingPhotoError, UsageError


@pytest.fixture
def linked(tmp_path):
    """A function that links NAME in a folder `data` to a file or folder TARGET next to it, and returns the link."""

    def link(name, target):
        path, place = tmp_path / "data" / name, tmp_path / target
        path.parent.mkdir(parents=True, exist_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.mkdir() if "." not in place.name else place.touch()
        path.symlink_to(place)
        return path

    return link


def test_a_trusted_folder_allows_links_into_it(linked, tmp_path):
    data = tmp_path / "data"
    photo, folder = linked("cat/1.jpg", "store/ab/cd.bin"), linked("dog", "other/dogs")
    (folder / "2.jpg").touch()
    for path, trusted in ((photo, tmp_path / "store"), (folder / "2.jpg", tmp_path / "other" / "dogs")):
        assert leads_outside(path, data)
        assert leads_outside(path, data, tmp_path / "elsewhere")
        assert not leads_outside(path, data, trusted)
        assert not leads_outside(path, data, tmp_path)


def test_a_trusted_folder_that_is_a_link_itself(linked, tmp_path):
    photo = linked("cat/1.jpg", "store/cd.bin")
    (tmp_path / "short").symlink_to(tmp_path / "store")
    assert not leads_outside(photo, tmp_path / "data", tmp_path / "short")


def test_a_link_out_of_the_trusted_folder_is_refused(linked, tmp_path):
    photo = linked("cat/1.jpg", "private/cd.bin")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "1.jpg").symlink_to(photo)
    (tmp_path / "data" / "2.jpg").symlink_to(tmp_path / "store" / "1.jpg")
    assert leads_outside(tmp_path / "data" / "2.jpg", tmp_path / "data", tmp_path / "store")


STORES = {
    "hub/blobs/0a1b.bin": "hub/blobs",
    "repo/.dvc/cache/files/md5/0a/1b.bin": "repo/.dvc/cache",
    "mnt/cache/files/md5/0a/1b.bin": "mnt/cache/files/md5",
    "repo/.git/annex/objects/xx/yy/k.d/k.jpg": "repo/.git/annex/objects",
    "photos/1.jpg": "photos",
}


@pytest.mark.parametrize("target", STORES)
def test_a_refused_link_names_the_folder_to_trust(target, linked, tmp_path):
    photo = linked("cat/1.jpg", target)
    said = str(link_fault(photo, tmp_path / "data"))
    assert said.startswith(
        f"{photo} is a link out of {tmp_path / 'data'}, to {tmp_path / target} (see fastmask guide data); copy"
    )
    assert said.endswith(f"--trust-links {tmp_path / STORES[target]}.")


def test_the_link_that_leads_out_is_named(linked, tmp_path):
    folder = linked("dog", "other/dogs")
    (folder / "2.jpg").touch()
    assert str(link_fault(folder / "2.jpg", tmp_path / "data")).startswith(f"{folder} is a link out of")


@pytest.mark.parametrize(
    ("target", "command"),
    [
        (".dvc/cache/files/md5/0a/1b", "dvc pull"),
        (".git/annex/objects/xx/k.jpg", "git annex get"),
        ("hub/blobs/0a1b", "download the data set again"),
        ("gone.jpg", "restore that, or remove the link"),
    ],
)
def test_a_link_to_nothing_names_what_gets_it(target, command, tmp_path):
    (tmp_path / "1.jpg").symlink_to(f"./{target}")
    said = describe_broken(tmp_path / "1.jpg")
    assert said == f"{tmp_path / '1.jpg'} is a link to {tmp_path / target}, which does not exist; {command}."


def test_a_folder_that_is_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "cat").symlink_to("gone")
    assert describe_broken(tmp_path / "cat" / "1.jpg").startswith(
        f"{tmp_path / 'cat'} is a link to {tmp_path / 'gone'}"
    )
    assert describe_broken(tmp_path / "dog" / "1.jpg") == ""


def test_a_link_leaves_its_folder_or_not(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.jpg", "out.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "in" / "deep" / "near.jpg").symlink_to("../a.jpg")
    (tmp_path / "in" / "deep" / "far.jpg").symlink_to("../../out.jpg")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "link").symlink_to("in")
    for folder in (tmp_path / "in", tmp_path / "link"):
        names = ("a.jpg", "deep/near.jpg", "deep/far.jpg", "up/out.jpg")
        assert [leads_outside(folder / name, folder) for name in names] == [False, False, True, True]


def store(folder, place):
    """Move the photos of a folder to a store next to it, under other names, as DVC and the hub do, and link to them."""
    place.mkdir()
    for i, photo in enumerate(sorted(folder.rglob("*.*"))):
        if photo.suffix != ".csv":
            photo.symlink_to(photo.rename(place / f"{i:04d}"))


@pytest.fixture
def pets(tmp_path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg"):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "pets"


pytestmark = pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")


def test_photos_in_a_store_are_read_where_it_is_trusted(pets, tmp_path):
    store(pets, tmp_path / "blobs")
    with pytest.raises(DataError, match=rf"cat/1.jpg is a link out of .*--trust-links {tmp_path / 'blobs'}\.$"):
        read_folders(pets)
    table = read_data(make_config({"data": str(pets), "trust_links": str(tmp_path / "blobs")}))
    assert [table.photo(i).read_bytes().decode() for i in range(4)] == table.frame["path"].tolist()
    assert read_data(make_config(table.reading)).frame.equals(table.frame)


def test_a_csv_trusts_a_folder(pets, tmp_path):
    rows = pd.DataFrame({"path": ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg"], "kind": [*"ccdd"]})
    rows.to_csv(pets / "my.csv", index=False)
    store(pets, tmp_path / "blobs")
    with pytest.raises(DataError, match="line 2, column path: .*cat/1.jpg is a link out of"):
        read_data(make_config({"data": str(pets / "my.csv")}))
    table = read_data(make_config({"data": str(pets / "my.csv"), "trust_links": str(tmp_path)}))
    assert table.frame["path"].tolist() == rows["path"].tolist()
    assert read_data(make_config(table.reading)).frame.equals(table.frame)


def test_the_contest_s_photos_may_be_in_a_trusted_store(contest_copy, tmp_path):
    whole = read_contest(contest_copy).frame
    store(contest_copy / "train", tmp_path / "blobs")
    with pytest.raises(DataError, match=f"--trust-links {tmp_path / 'blobs'}"):
        read_contest(contest_copy)
    table = read_contest(contest_copy, trust_links=tmp_path / "blobs")
    assert table.frame.equals(whole)
    assert read_data(make_config(table.reading)).frame.equals(whole)


def test_a_contest_photo_that_leaves_the_trusted_folder_is_named(contest_copy, tmp_path):
    images = contest_copy / "train" / "images"
    person = sorted(images.iterdir())[0]
    (tmp_path / "store").mkdir()
    person.symlink_to(person.rename(tmp_path / "store" / person.name))
    photo = sorted(person.glob("mask1.*"))[0]
    photo.symlink_to(photo.rename(tmp_path / "private.jpg"))
    with pytest.raises(DataError, match=f"^{photo} is a link out of {images}, to {tmp_path}/private.jpg"):
        read_contest(contest_copy, trust_links=tmp_path / "store")


def test_the_folder_of_a_class_may_be_a_link(pets, tmp_path):
    (tmp_path / "else").mkdir()
    (pets / "dog").symlink_to((pets / "dog").rename(tmp_path / "else" / "dogs"))
    with pytest.raises(DataError, match=rf"pets/dog is a link out of .*--trust-links {tmp_path}/else/dogs\.$"):
        read_folders(pets)
    assert read_folders(pets, trust_links=tmp_path / "else").frame["class"].tolist() == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize("what", ["cat/1.jpg", "dog"])
def test_data_that_was_not_pulled(what, pets):
    place = pets / what
    place.rename(pets.parent / "moved")
    place.symlink_to("../.dvc/cache/files/md5/00/11")
    with pytest.raises(DataError, match=rf"{what} is a link to .*\.dvc/cache/.*, which does not exist; dvc pull"):
        read_folders(pets)


def test_a_contest_photo_and_a_csv_s_photo_that_were_not_got(contest_copy, pets):
    photo = next((contest_copy / "train" / "images").rglob("mask1.*"))
    photo.unlink()
    photo.symlink_to("../../.git/annex/objects/k.jpg")
    with pytest.raises(MissingPhotoError, match="mask1.* is a link to .*which does not exist; git annex get") as caught:
        read_contest(contest_copy)
    assert caught.value.photo == f"{photo.parent.name}/{photo.name}"
    (pets / "cat" / "1.jpg").unlink()
    (pets / "cat" / "1.jpg").symlink_to("gone.jpg")
    (pets / "my.csv").write_text("path,kind\ncat/1.jpg,c\ncat/2.jpg,c\ndog/3.jpg,d\ndog/4.jpg,d\n")
    with pytest.raises(MissingPhotoError, match=r"line 2, column path: .*cat/1.jpg is a link to .*gone.jpg, which"):
        read_data(make_config({"data": str(pets / "my.csv")}))


def test_the_trusted_folder_must_exist(pets):
    with pytest.raises(UsageError, match="--trust-links nowhere is not a folder"):
        read_data(make_config({"data": str(pets), "trust_links": "nowhere"}))


def test_a_link_to_itself_is_a_link_to_nothing(pets):
    (pets / "cat" / "loop").symlink_to("loop")
    assert len(read_folders(pets)) == 4
    (pets / "dog" / "5.jpg").symlink_to("5.jpg")
    with pytest.raises(
        DataError, match=r"5\.jpg is a link to .*5\.jpg, which does not exist; .* or remove the link\.$"
    ):
        read_folders(pets)


def test_a_folder_inside_a_class_may_be_a_link_into_a_trusted_folder(pets, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "deep" / "5.jpg").write_bytes(b"5")
    (tmp_path / "more" / "back").symlink_to(pets)
    (pets / "cat" / "more").symlink_to(tmp_path / "more")
    (pets / "dog" / "up").symlink_to("..")
    with pytest.raises(DataError, match=rf"pets/cat/more is a link out of .*--trust-links {tmp_path}/more\.$"):
        read_folders(pets)
    paths = read_folders(pets, trust_links=tmp_path / "more").frame["path"].tolist()
    assert paths == ["cat/1.jpg", "cat/2.jpg", "cat/more/deep/5.jpg", "dog/3.jpg", "dog/4.jpg"]


def test_photos_to_predict_may_be_in_linked_folders(pets, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "pets").symlink_to(pets)
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")
    photos, others = list_files(tmp_path / "all")
    assert [photo.relative_to(tmp_path / "all").as_posix() for photo in photos] == [
        f"pets/{name}" for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg")
    ]
    assert others == []
