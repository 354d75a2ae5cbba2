import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastmask.config import make_config
from fastmask.data.boxes import Framing
from fastmask.data.contest import read_contest
from fastmask.data.photo import read_photo
from fastmask.data.readers import read_frame
from fastmask.data.versions import check_different, cut_extra, find_versions, join_cuts, read_versions
from fastmask.system.errors import DataError, PhotoSizeError, UsageError


def draw(file, color=(255, 0, 0), size=(6, 8)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)
    return file


@pytest.fixture
def photos(tmp_path):
    """Four photos below `own`, two of which differ only in their ending."""
    paths = ["a/1.jpg", "a/2.jpeg", "b/1.jpg", "b/1.png"]
    return {path: draw(tmp_path / "own" / path, (0, 0, 255)) for path in paths}


def test_a_version_has_the_path_of_its_photo_with_any_ending(photos, tmp_path):
    for name in ("A/1.PNG", "a/2.jpeg", "b/1.png", "c/1.jpg"):
        draw(tmp_path / "red" / name)
    (tmp_path / "red" / "notes.txt").touch()
    found = find_versions(photos, str(tmp_path / "red"))
    # b/1.png is that of the photo of the same name, not of b/1.jpg
    assert dict(found.paths) == {"a/1.jpg": "A/1.PNG", "a/2.jpeg": "a/2.jpeg", "b/1.png": "b/1.png"}
    assert (found.lacking, found.stray) == (["b/1.jpg"], ["c/1.jpg", "notes.txt"])
    said = "has versions of 3 of 4 photos, lacking such as b/1.jpg; 2 files of no photo, such as c/1.jpg"
    assert str(found) == f"{tmp_path / 'red'} {said}"


def test_an_ending_that_two_photos_share_the_path_of_is_of_neither(photos, tmp_path):
    draw(tmp_path / "red" / "b" / "1.webp")
    draw(tmp_path / "red" / "a" / "1.png")
    found = find_versions(photos, str(tmp_path / "red"))
    assert dict(found.paths) == {"a/1.jpg": "a/1.png"}
    assert found.stray == ["b/1.webp"]


@pytest.mark.parametrize("inside", ["images", "train/images"])
def test_the_folder_may_be_that_of_a_data_set(photos, tmp_path, inside):
    draw(tmp_path / "red" / inside / "a" / "1.png")
    assert find_versions(photos, str(tmp_path / "red")).root == tmp_path / "red" / inside


def test_folders_that_are_no_versions_are_refused(photos, tmp_path):
    with pytest.raises(UsageError, match="--images-also .*none is not a folder; expected one with other versions"):
        find_versions(photos, str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    expected = r"has a version of none of the 4 photos; expected such as .*empty/a/1.jpg, with any ending. It holds no"
    with pytest.raises(UsageError, match=expected):
        find_versions(photos, str(tmp_path / "empty"))
    draw(tmp_path / "flat" / "1.png")
    with pytest.raises(UsageError, match="none of the 4 photos; expected .* It holds .*flat/1.png"):
        find_versions(photos, str(tmp_path / "flat"))
    with pytest.raises(UsageError, match="holds the photos themselves, such as .*own/a/1.jpg"):
        find_versions(photos, str(tmp_path / "own"))
    (tmp_path / "link").symlink_to(tmp_path / "own")
    with pytest.raises(UsageError, match="holds the photos themselves"):
        find_versions(photos, str(tmp_path / "link"))
    draw(tmp_path / "both" / "a" / "1.png")
    draw(tmp_path / "both" / "a" / "1.jpg")
    with pytest.raises(DataError, match=r"has both a/1.jpg and a/1.png, and one photo, a/1.jpg; remove one"):
        find_versions(photos, str(tmp_path / "both"))


def test_a_folder_is_named_once_also_by_a_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    check_different([str(tmp_path / "a"), str(tmp_path)])
    with pytest.raises(UsageError, match="link is the same folder as .*/a; name each once"):
        check_different([str(tmp_path), str(tmp_path / "a"), str(tmp_path / "link")])


def test_versions_have_the_persons_and_labels_of_the_table(contest, tmp_path):
    table = read_contest(contest, age_bounds=(30, 58))
    table.frame.loc[5, "gender"] = "male" if table.frame["gender"][5] == "female" else "female"
    for row in (70, 5, 6):
        draw((tmp_path / "red" / table.frame["path"][row]).with_suffix(".png"))
    ((_, extra),) = read_versions(table, make_config({"images_also": str(tmp_path / "red")}))
    assert extra.origin_rows.tolist() == [5, 6, 70]
    assert extra.table.train_y.tolist() == table.train_y[[5, 6, 70]].tolist()
    assert extra.table.persons.tolist() == table.persons[[5, 6, 70]].tolist()
    assert [read_photo(extra.table.photo(row))[0, 0].tolist() for row in range(3)] == [[255, 0, 0]] * 3
    assert extra.select(np.array([False, True, True])).origin_rows.tolist() == [6, 70]


@pytest.fixture
def gradient(tmp_path):
    """A table of one photo with another colour in each quarter, and versions twice as large and of another shape."""
    quarters = np.zeros((80, 60, 3), np.uint8)
    quarters[:40, :30], quarters[:40, 30:], quarters[40:, :30], quarters[40:, 30:] = 40, 90, 150, 220
    for folder, size in (("own", (60, 80)), ("large", (120, 160)), ("square", (80, 80)), ("same", (60, 80))):
        (tmp_path / folder).mkdir()
        Image.fromarray(quarters).resize(size, Image.Resampling.NEAREST).save(tmp_path / folder / "a.png")
    Image.fromarray(quarters).save(tmp_path / "own" / "b.png")
    frame = pd.DataFrame({"path": ["a.png", "b.png"], "person": ["p", "q"], "colour": ["x", "y"]})
    return read_frame(frame, "colour", images=tmp_path / "own").select([0]), quarters


@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")
def test_a_larger_version_is_scaled_where_the_crop_is_in_pixels(gradient, tmp_path):
    table, quarters = gradient

    def cut(folder, **settings):
        config = make_config({"images_also": str(tmp_path / folder)}, settings)
        ((_, extra),) = read_versions(table, config)
        return cut_extra(extra, table, config).table

    made = cut("large", fit="contest")
    photo = made.photo(0)
    assert (made.faces(read_photo(photo), photo) == quarters).all()
    # a loader of both leaves the photo itself as it is
    both, own = join_cuts(table.faces, [made.faces]), table.photo(0)
    assert (both(read_photo(own), own) == quarters).all()
    assert both.key_of(photo) != both.key_of(own)
    assert cut("large", fit="pad").faces is cut("same", fit="contest").faces is join_cuts(None, [None]) is None
    with pytest.raises(PhotoSizeError, match=r"square/a.png is 80 high and 80 wide, its photo 80 and 60: .* --fit pad"):
        cut("square", fit="contest")
    assert cut("square", fit="stretch").faces is None


@pytest.mark.filterwarnings("ignore::fastmask.system.errors.FastmaskWarning")
def test_a_version_is_cut_to_the_face_of_its_photo(gradient, tmp_path):
    table, quarters = gradient
    (tmp_path / "boxes.csv").write_text("path,x0,y0,x1,y1\na.png,30,0,60,40\n")
    table = table.cut_to_faces(tmp_path / "boxes.csv", Framing((40, 30), margin=0))
    shutil.move(tmp_path / "large" / "a.png", tmp_path / "large" / "a.webp")
    config = make_config({"images_also": str(tmp_path / "large"), "boxes": str(tmp_path / "boxes.csv")})
    ((_, extra),) = read_versions(table, config)
    made = cut_extra(extra, table, config).table
    photo = made.photo(0)
    whole = np.asarray(Image.fromarray(quarters).resize((120, 160), Image.Resampling.NEAREST))
    assert (made.faces(whole, photo) == 90).all()
    both = join_cuts(table.faces, [made.faces])
    assert (both(quarters, table.photo(0)) == 90).all()
    assert (both(whole, photo) == 90).all()
