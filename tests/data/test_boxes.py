import io

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from fastmask.api import cross_validate
from fastmask.data.augment import Augmentation
from fastmask.data.boxes import BOX, COLUMNS, LANDMARKS, Face, Framing, boxes_frame, fit_window, read_boxes, region_of
from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import dataloaders, photo_maps
from fastmask.data.photo import read_photo
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import write_csv

# a box of 100 x 200 with eyes at a height of 180, the nose at 220, the mouth at 260: the chin is at 260 + 0.65 * 80
MARKS = (120.0, 182.0, 170.0, 178.0, 145.0, 220.0, 125.0, 262.0, 165.0, 258.0)
FACE = Face(100, 100, 200, 300, 0.9, MARKS)
HEADER = ",".join(("path", *BOX))


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (512, 384, 3), dtype=np.uint8)


@pytest.fixture
def boxes(tmp_path):
    """Read a CSV of boxes from its text."""

    def read(text):
        file = tmp_path / "boxes.csv"
        file.write_text(text)
        return read_boxes(file)

    return read


def test_a_table_of_any_detector_is_read(boxes):
    read = boxes("x1,y1,path,x0,y0,model\n30,40.5,a/1.jpg,10,-2e1,yolo\n,,a/2.jpg,,,\n")
    assert read.faces["a/1.jpg"][:4] == (10, -20, 30, 40.5)
    assert np.isnan(read.faces["a/1.jpg"].score)
    assert read.faces["a/1.jpg"].landmarks is None
    assert read.faces["a/2.jpg"] is None


def test_of_several_faces_the_surest_then_the_largest_then_the_first(boxes):
    text = f"{HEADER},score\na,0,0,9,9,.8\na,0,0,5,5,.9\na,0,0,99,99,\nb,0,0,5,5,.5\nb,0,0,6,6,.5\nb,1,1,7,7,.5\n"
    read = boxes(text + "c,,,,,\nc,0,0,3,3,\nd,0,0,3,3,\nd,,,,,\n")
    assert {path: face.x1 for path, face in read.faces.items()} == {"a": 5, "b": 6, "c": 3, "d": 3}
    assert read.lines == {"a": 3, "b": 6, "c": 9, "d": 10}


@pytest.mark.parametrize("rows", ["a,0.2,0.25,0.8,0.75\nb,,,,\n", "a,-0.1,0,1,1.05\nb,0.4,0.4,0.5,0.5\n"])
def test_boxes_in_fractions_of_the_photo_are_refused(rows, boxes):
    with pytest.raises(DataError, match="boxes.csv: no box is longer than (0.6|1.1), so .* fractions.*expected pixels"):
        boxes(f"{HEADER}\n{rows}")


def test_one_box_of_pixels_is_enough(boxes):
    assert boxes(f"{HEADER}\na,0,0,1,1\nb,0,0,2,2\nc,,,,\n").faces["a"][:4] == (0, 0, 1, 1)
    assert boxes(f"{HEADER}\na,,,,\n").faces == {"a": None}


def test_what_is_written_is_read_back(tmp_path):
    faces = [FACE, None, Face(1 / 3, 2, 3, 4)]
    frame = boxes_frame(["a", "b", "c"], faces)
    assert list(frame.columns) == list(COLUMNS)
    write_csv(tmp_path / "boxes.csv", frame)
    read = read_boxes(tmp_path / "boxes.csv").faces
    assert read["a"] == FACE
    assert read["b"] is None
    assert read["c"].x0 == pytest.approx(1 / 3)
    assert read["c"].landmarks is None
    assert len(boxes_frame([], [])) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,x0,y0,x1\na,1,2,3\n", "has no column 'y1'"),
        (f"{HEADER}\n", "has no rows; expected one per photo"),
        (f"{HEADER}\n,1,2,3,4\n", "line 2, column path: found nothing, expected the path of a photo"),
        (f"{HEADER}\na,1,2,3,4\nb,1,2,wide,4\n", "line 3, column x1: found 'wide', expected a number"),
        (f"{HEADER}\na,nan,2,3,4\n", "line 2, column x0: found 'nan', expected a number"),
        (f"{HEADER}\na,1,2,inf,4\n", "line 2, column x1: found 'inf', expected a number"),
        (f"{HEADER}\na,1_0,2,30,4\n", "column x0: found '1_0', expected a number"),
        (f"{HEADER}\na,1,2,1e300,4\n", "column x1: found 1e300, expected a number from -1000000 to 1000000"),
        (f"{HEADER}\na,1,2,1e999,4\n", "column x1: found 1e999, expected a number from -1000000 to 1000000"),
        (f"{HEADER}\na,5,2,5,4\n", "line 2, column x1: found 5, expected more than x0, which is 5"),
        (f"{HEADER}\na,1,4,3,2\n", "line 2, column y1: found 2, expected more than y0, which is 4"),
        (f"{HEADER}\na,1,,3,4\n", "line 2, column y0: found nothing, expected a number: all four of the box"),
        (f"{HEADER},score\na,1,2,3,4,high\n", "line 2, column score: found 'high', expected a number"),
        (f"{HEADER},nose_x\na,1,2,3,4,5\n", "has no column 'right_eye_x', but other landmarks; expected all of"),
        (f"{HEADER},{','.join(LANDMARKS)}\na,1,2,3,4,{'5,' * 9}\n", "column left_mouth_y: found nothing, .* all ten"),
        (f"{HEADER},{','.join(LANDMARKS)}\na,,,,,{'5,' * 9}5\n", "column x0: found nothing, .* landmarks, but no box"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(text, message, boxes):
    with pytest.raises(DataError, match=message):
        boxes(text)


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"nothing.csv is not a file; expected a CSV with the columns path, x0"):
        read_boxes(tmp_path / "nothing.csv")


def test_each_photo_needs_a_row_but_not_each_row_a_photo(boxes):
    read = boxes(f"{HEADER}\na,1,2,3,4\nz,1,2,3,4\n")
    read.check(["a"])
    with pytest.raises(DataError, match=r"no row for b \(2 of 3 photos have none, its first is for a\); find .* faces"):
        read.check(["a", "b", "c"])


def test_the_digest_is_of_boxes_alone(boxes):
    one = boxes(f"{HEADER}\na,1,2,3,4\nb,,,,\n").digest()
    assert len(one) == 64
    assert boxes(f"{HEADER},score\nb,,,,,\na,1.0,2,3,4,0.7\n").digest() == one
    assert boxes(f"{HEADER}\na,1,2,3,4.5\nb,,,,\n").digest() != one
    assert boxes(f"{HEADER}\na,1,2,3,4\nb,1,2,3,4\n").digest() != one
    more = boxes(f"{HEADER}\na,1,2,3,4\nb,,,,\nc,1,2,3,4\n")
    assert more.digest() != one
    assert more.digest(["b", "a"]) == one


def test_regions_by_the_landmarks():
    assert region_of(FACE, "face") == (100, 100, 200, 300)
    assert region_of(FACE, "forehead") == (100, 100, 200, 180)
    assert region_of(FACE, "nose-to-chin") == (100, 200, 200, 312)
    assert region_of(FACE, "chin-to-neck") == (100, 286, 200, 312 + 66)


@pytest.mark.parametrize("marks", [None, MARKS[::-1], (0.0,) * 10])
def test_regions_without_the_landmarks_of_an_upright_face(marks):
    face = FACE._replace(landmarks=marks)
    # eyes at 100 + 0.4 * 200, nose at 100 + 0.59 * 200, mouth at 100 + 0.765 * 200, chin at 253 + 0.65 * 73
    assert region_of(face, "forehead") == pytest.approx((100, 100, 200, 180))
    assert region_of(face, "nose-to-chin") == pytest.approx((100, 199, 200, 300.45))
    assert region_of(face, "chin-to-neck") == pytest.approx((100, 276.725, 200, 360.675))


@pytest.mark.parametrize(
    ("rectangle", "size", "expected"),
    [
        ((100, 100, 200, 300), (200, 100), (100, 100, 200, 300)),
        # grown sideways, upwards and downwards, around the centre
        ((100, 100, 200, 300), (224, 224), (50, 100, 250, 300)),
        ((100, 100, 200, 200), (400, 200), (100, 50, 200, 250)),
        # moved inside at each edge
        ((-30, 100, 70, 200), (50, 50), (0, 100, 100, 200)),
        ((300, 100, 400, 200), (50, 50), (284, 100, 384, 200)),
        # 520 high is more than 512: smaller by 512 / 520, 98 wide around 150
        ((100, -500, 200, 20), (520, 100), (101, 0, 199, 512)),
        ((100, 480, 200, 580), (50, 50), (100, 412, 200, 512)),
        # larger than the photo: the largest square there is, as near as it can be
        ((-100, 100, 500, 300), (50, 50), (0, 8, 384, 392)),
        # the whole photo in another shape: its middle
        ((0, 0, 384, 512), (100, 100), (0, 64, 384, 448)),
        ((0, 0, 384, 512), (400, 200), (64, 0, 320, 512)),
        # smaller than a pixel
        ((10.2, 10.2, 10.4, 10.4), (50, 50), (10, 10, 11, 11)),
    ],
)
def test_a_window_is_grown_to_the_shape_and_moved_into_the_photo(rectangle, size, expected):
    assert fit_window(rectangle, size, 512, 384) == expected


def test_windows_of_many_boxes_have_the_shape_and_lie_inside():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        x0, y0 = rng.uniform(-300, 600, 2)
        size = tuple(int(side) for side in rng.integers(1, 500, 2))
        window = fit_window((x0, y0, x0 + rng.uniform(1, 900), y0 + rng.uniform(1, 900)), size, 512, 384)
        assert 0 <= window.x0 < window.x1 <= 384
        assert 0 <= window.y0 < window.y1 <= 512
        wide, high = window.x1 - window.x0, window.y1 - window.y0
        shape = size[1] / size[0]
        assert abs(wide - high * shape) <= 0.5 + 0.5 * shape or min(wide, high) == 1


def test_a_box_moved_by_a_pixel_moves_its_window_by_one():
    starts = [fit_window((x + 0.5, 100, x + 50.5, 150), (50, 50), 512, 384).x0 for x in range(50, 60)]
    assert np.diff(starts).tolist() == [1] * 9


@pytest.mark.parametrize(
    ("size", "how"), [((100, 50), cv2.INTER_AREA), ((200, 100), cv2.INTER_AREA), ((500, 250), cv2.INTER_LINEAR)]
)
def test_a_cut_is_a_slice_scaled(photo, size, how):
    expected = cv2.resize(photo[100:300, 100:200].copy(), size[::-1], interpolation=how)
    made = Framing(size, 0).cut(photo, FACE)
    assert made.shape == (*size, 3)
    assert made.dtype == np.uint8
    assert np.array_equal(made, expected)
    assert not np.shares_memory(made, photo)
    if size == (200, 100):
        assert np.array_equal(made, photo[100:300, 100:200])


def test_an_integer_factor_shrinks_to_means(photo):
    blocks = photo[100:300, 100:200].reshape(50, 4, 25, 4, 3).mean(axis=(1, 3))
    assert np.abs(Framing((50, 25), 0).cut(photo, FACE) - blocks).max() <= 0.5


def test_a_framing_puts_the_steps_together(photo):
    framing = Framing((320, 160), 0.3, "face")
    assert framing.window(FACE, 512, 384) == (70, 40, 230, 360)
    assert np.array_equal(framing.cut(photo, FACE), photo[40:360, 70:230])
    # forehead: 100 x 80 at 100, 100, grown to 160 x 80
    assert Framing((80, 160), 0, "forehead").window(FACE, 512, 384) == (70, 100, 230, 180)


@pytest.mark.parametrize("region", ["face", "forehead"])
def test_without_a_face_the_middle_of_the_photo_and_no_margin(photo, region):
    framing = Framing((384, 384), 0.3, region)
    assert np.array_equal(framing.cut(photo, None), photo[64:448])


def test_without_a_face_the_centre_of_the_photo_s_own_pixels(photo):
    # 512 x 384 less 401 x 199: 55 lines above and 56 below, 92 columns to the left and 93 to the right
    framing = Framing((401, 199), no_face="crop")
    assert framing.window(None, 512, 384) == (92, 55, 291, 456)
    assert np.array_equal(framing.cut(photo, None), photo[55:456, 92:291])
    assert np.array_equal(framing.cut(photo, None), A.CenterCrop(401, 199)(image=photo)["image"])
    assert framing.window(FACE, 512, 384) == Framing((401, 199)).window(FACE, 512, 384)
    # a photo that is smaller than the crop is left whole
    assert framing.window(None, 400, 384) == Framing((401, 199)).window(None, 400, 384) == (93, 0, 292, 400)


def test_a_box_partly_outside_is_cut_and_one_outside_the_photo_is_an_error(boxes, photo):
    read = boxes(f"{HEADER}\nin,-50,400,50,600\nbelow,10,512,60,600\nleft,-20,10,0,60\n")
    framing = Framing((200, 100), 0)
    assert np.array_equal(read.cut(photo, "in", framing), photo[312:512, 0:100])
    with pytest.raises(
        DataError, match=r"line 3: the box \(10, 512, 60, 600\) lies outside below, .* 384 wide and 512"
    ):
        read.cut(photo, "below", framing)
    with pytest.raises(DataError, match="line 4: the box .* lies outside left"):
        read.cut(photo, "left", framing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 10),), "A face is cut to a height and a width of 1 or more"),
        (((10, 10), -0.1), "--margin is -0.1; expected 0 to 10"),
        (((10, 10), float("nan")), "--margin is nan; expected 0 to 10"),
        (((10, 10), 0.3, "face", "skip"), "--no-face is 'skip'; expected one of whole, crop"),
        (((10, 10), 0.3, "ears"), "--region is 'ears'; expected one of face, forehead, nose-to-chin, chin-to-neck"),
    ],
)
def test_an_invalid_framing_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Framing(*arguments)


@pytest.fixture
def faces(contest, tmp_path):
    """A table of the contest with photos cut to boxes that move with the row; every seventh has no face."""
    table = read_contest(contest)
    boxes = [f"{60 + i},80,{260 + i},330" if i % 7 else ",,," for i in range(len(table))]
    rows = [f"{path},{box}" for path, box in zip(table.frame["path"], boxes, strict=True)]
    (tmp_path / "boxes.csv").write_text("\n".join([HEADER, *rows]))
    return table.cut_to_faces(tmp_path / "boxes.csv", Framing((64, 32)))


WHOLE = Augmentation(A.Compose([A.CenterCrop(64, 32)]))


@pytest.mark.parametrize("cache", ["off", "ram", "disk"])
def test_the_network_sees_the_cut_photos_from_whatever_cache(faces, tmp_path, cache):
    folds = assign_folds(faces, 3, "gender")
    maps = photo_maps(faces, [WHOLE], cache, tmp_path / "cache")
    dls = dataloaders(
        faces, 0, folds, augments=(WHOLE, WHOLE), maps=maps, bs=8, num_workers=0, stats=([0] * 3, [1] * 3)
    )
    seen = torch.cat([x for x, _ in dls.valid]) * 255
    boxes, paths = faces.faces.boxes, faces.frame["path"]
    rows = np.flatnonzero(folds == 0)
    expected = [Framing((64, 32)).cut(read_photo(faces.photo(row)), boxes.faces[paths[row]]) for row in rows]
    assert np.array_equal(seen.round().permute(0, 2, 3, 1).numpy().astype(np.uint8), expected)
    assert faces.faces.count_faceless() == 12
    assert faces.faces.describe_faceless() == "12 without one left whole"


def test_another_box_is_another_cache(faces, tmp_path):
    first, again = (photo_maps(faces, [WHOLE], "disk", tmp_path / "cache") for _ in range(2))
    assert first[0].file == again[0].file
    file = tmp_path / "boxes.csv"
    file.write_text(file.read_text().replace("61,80", "62,80"))
    moved = read_contest(faces.reading["data"]).cut_to_faces(file, Framing((64, 32)))
    assert photo_maps(moved, [WHOLE], "disk", tmp_path / "cache")[0].file != first[0].file
    assert moved.faces.digest() != faces.faces.digest()


def test_a_photo_without_a_row_or_without_a_path_is_refused(faces, tmp_path):
    with pytest.raises(DataError, match=r"other\.jpg has no row in .*; find its face with fastmask faces"):
        faces.faces(np.zeros((512, 384, 3), np.uint8), "other.jpg")
    with pytest.raises(UsageError, match="512 high and 384 wide and given without its path"):
        faces.faces.check_cut(np.zeros((512, 384, 3), np.uint8))
    cut = np.zeros((64, 32, 3), np.uint8)
    assert faces.faces.check_cut(cut) is cut
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="has no row for .*1 of 84 photos"):
        read_contest(faces.reading["data"]).cut_to_faces(file, Framing((64, 32)))


@pytest.mark.parametrize("no_face", [pytest.param("whole", marks=pytest.mark.slow), "crop"])
def test_a_run_on_faces_predicts_photos_with_boxes(no_face, contest, small_settings, faces, tmp_path, fastmask):
    settings = {**small_settings, "train_pipeline": None, "valid_pipeline": None, "crop": [64, 32], "epochs": 1}
    table, boxes = read_contest(contest), tmp_path / "boxes.csv"
    settings["no_face"] = no_face
    run = cross_validate(table, out=tmp_path / "run", log=io.StringIO(), boxes=str(boxes), **settings)
    rows = np.flatnonzero(run.folds["fold"] == 0)
    photos = [table.photo(row) for row in rows]
    with pytest.raises(UsageError, match="was trained on faces"):
        run.predict(photos, members=["fold0"])
    # by the paths that are given
    header, *lines = boxes.read_text().splitlines()
    (tmp_path / "named.csv").write_text("\n".join([header, *(f"{table.root}/{line}" for line in lines)]))
    found = run.predict(photos, members=["fold0"], boxes=tmp_path / "named.csv")
    # the epoch of OOF is the last one, and there is one
    np.testing.assert_allclose(found.probabilities, run.probabilities[rows], atol=1e-5)
    names = sorted(path.name for path in (contest / "eval" / "images").iterdir())
    (tmp_path / "eval.csv").write_text("\n".join([HEADER, *(f"{name},60,80,260,330" for name in names)]))
    words = ["predict", run.path, contest / "eval" / "images", "--boxes", tmp_path / "eval.csv"]
    answer = fastmask(*words, "--submission", contest / "eval" / "info.csv", "--out", tmp_path / "s.csv")
    assert answer.code == 0, answer.err
    assert len((tmp_path / "s.csv").read_text().splitlines()) == len(names) + 1
    assert fastmask(*words, "--out", tmp_path / "p.csv").code == 0
    boxes.write_text(boxes.read_text().replace("61,80", "62,80"))
    with pytest.raises(UsageError, match="another boxes of faces"):
        cross_validate(table, out=tmp_path / "run", log=io.StringIO(), resume=True)
