"""Painted sets: their content, the same bytes again, and that the readers read them."""

import hashlib
import json

import cv2
import numpy as np
import pandas as pd
import pytest
from bare_faces import drawn, landmarks_of, moved

from fastmask.data.boxes import COLUMNS
from fastmask.data.contest import contest_heads, read_contest
from fastmask.data.photo import read_photo
from fastmask.data.readers import read_csv
from fastmask.heads import Heads
from fastmask.preparation.paint import paint_set, parse_per_face
from fastmask.system.errors import DataError, UsageError

COUNTS = {"wear": 2, "incorrect": 1, "none": 1}


def write_bare(folder, path, number):
    """Write a drawn face; returns its row of landmarks."""
    image, points = drawn(number)
    (folder / path).parent.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return boxed(path, landmarks_of(points))


def boxed(path, face):
    return (path, *face.box, 0.99, *face.points.ravel())


def write_faces(file, rows):
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A CSV of six drawn faces of three persons with gender and years, and the CSV of their landmarks."""
    folder = tmp_path_factory.mktemp("bare")
    paths = [f"p{number // 2}/photo{number}.png" for number in range(6)]
    boxes = [write_bare(folder, path, number) for number, path in enumerate(paths)]
    rows = [(path, path[:2], ("male", "female")[i // 2 % 2], 20 + 9 * i) for i, path in enumerate(paths)]
    pd.DataFrame(rows, columns=["path", "person", "gender", "age"]).to_csv(folder / "bare.csv", index=False)
    write_faces(folder / "faces.csv", [*boxes[:5], ("p2/photo5.png", *[None] * 15)])
    return folder


def table_of(bare, file="bare.csv"):
    heads = contest_heads()
    return read_csv(bare / file, heads=Heads([heads["gender"], heads["age"]]), images=bare)


def hashes(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def painted(bare, tmp_path_factory):
    return paint_set(table_of(bare), bare / "faces.csv", tmp_path_factory.mktemp("out") / "set", COUNTS)


def test_the_set_reads_back_with_its_classes(bare, painted):
    assert (painted.faces, painted.faceless, painted.covered) == (5, 1, 0)
    assert painted.photos == {"wear": 10, "incorrect": 5, "none": 5}
    back = read_csv(painted.folder / "labels.csv", heads=contest_heads())
    assert back.frame["mask"].value_counts().to_dict() == painted.photos
    source = table_of(bare).frame.set_index("path")
    for row in back.frame.itertuples():
        # images/p0/photo0-wear1.jpg
        origin = source.loc[row.path[7:].rsplit("-", 1)[0] + ".png"]
        assert (row.person, row.gender, row.age_value) == (origin.person, origin.gender, origin.age_value)
        assert row.path.rsplit("-", 1)[1].startswith(row.mask)
    assert {len(group) for _, group in back.frame.groupby("person")} == {8, 4}


def test_the_photos_show_what_their_labels_say(bare, painted):
    image, points = drawn(0)
    none, wear, wrong = (
        read_photo(painted.folder / f"images/p0/photo0-{name}.jpg").astype(float)
        for name in ("none", "wear1", "incorrect1")
    )
    # JPEG of quality 95
    assert abs(none - image).mean() < 4
    assert moved(none, wear, points["nose"]) > 10 > 4 > moved(none, wrong, points["nose"])
    assert moved(none, wear, points["right_eye"]) < 2


def test_the_same_seed_gives_the_same_bytes_whatever_else_is_painted(bare, painted, tmp_path):
    table, faces, before = table_of(bare), bare / "faces.csv", hashes(painted.folder)
    again = paint_set(table, faces, tmp_path / "again", COUNTS, workers=1)
    assert hashes(again.folder) == before
    other = paint_set(table, faces, tmp_path / "other", COUNTS, seed=1)
    masked = [name for name in before if "wear" in name or "incorrect" in name]
    assert all(hashes(other.folder)[name] != before[name] for name in masked)
    few = paint_set(table.select([4, 1]), faces, tmp_path / "few", {"wear": 3, "incorrect": 1})
    shared = set(hashes(few.folder)) & set(masked)
    assert len(shared) == 6
    assert all(hashes(few.folder)[name] == before[name] for name in shared)


def test_a_contest_folder_is_painted_on_its_bare_photos_alone(contest, tmp_path):
    table = read_contest(contest)
    paths = table.frame["path"].tolist()
    first = table.frame["mask"].tolist().index("none")
    _, points = drawn(0)
    rows = [boxed(path, landmarks_of(points)) if i == first else (path, *[""] * 15) for i, path in enumerate(paths)]
    write_faces(tmp_path / "faces.csv", rows)
    made = paint_set(table, tmp_path / "faces.csv", tmp_path / "set", {"wear": 5, "incorrect": 1, "none": 1})
    assert (made.faces, made.faceless, made.covered) == (1, 11, 72)
    back = read_csv(made.folder / "labels.csv", heads=contest_heads())
    assert list(back.frame["mask"]) == ["wear"] * 5 + ["incorrect", "none"]
    assert set(back.frame["person"]) == {table.frame["person"][first]}
    assert len(set(hashes(made.folder).values())) == 8


def test_own_names_png_and_photos_that_differ_by_their_ending(bare, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_faces(folder / "faces.csv", [write_bare(folder, name, 0) for name in ("a.png", "a.bmp")])
    pd.DataFrame({"path": ["a.png", "a.bmp"], "person": "p", "eyes": ["brown", "blue"]}).to_csv(folder / "d.csv")
    table = read_csv(folder / "d.csv", heads=["eyes"])
    made = paint_set(
        table,
        folder / "faces.csv",
        tmp_path / "set",
        {"incorrect": 1, "none": 1},
        head="cover",
        classes=("on", "wrong", "off"),
        looks=["cloth-black"],
        suffix=".png",
    )
    labels = pd.read_csv(made.folder / "labels.csv")
    assert list(labels.columns) == ["path", "person", "cover", "eyes"]
    assert list(labels["cover"]) == ["wrong", "off"] * 2
    assert list(labels["eyes"]) == ["brown"] * 2 + ["blue"] * 2
    assert np.array_equal(read_photo(made.folder / "images/a.png-none.png"), drawn(0)[0])


def test_an_empty_folder_is_filled_and_another_refused(bare, tmp_path):
    (tmp_path / "empty").mkdir()
    made = paint_set(table_of(bare), bare / "faces.csv", tmp_path / "empty", {"wear": 1})
    assert sorted(p.name for p in made.folder.iterdir()) == ["images", "labels.csv"]
    with pytest.raises(UsageError, match="not an empty folder"):
        paint_set(table_of(bare), bare / "faces.csv", tmp_path / "empty", {"wear": 1})
    with pytest.raises(UsageError, match="data to paint on"):
        paint_set(table_of(bare), bare / "faces.csv", bare, {"wear": 1})


@pytest.mark.parametrize("existing", ["", "place", "place/set"])
def test_a_photo_that_fails_leaves_nothing_behind(bare, tmp_path, existing):
    table, out = table_of(bare), tmp_path / "here/place/set"
    (tmp_path / "here" / existing).mkdir(parents=True)
    broken = table.select([0, 1, 2])
    broken.frame.loc[2, "path"] = "broken.jpg"
    faces = (bare / "faces.csv").read_text().splitlines()
    (bare / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "faces.csv").write_text("\n".join([*faces, faces[1].replace("p0/photo0.png", "broken.jpg")]))
    with pytest.raises(DataError, match=r"broken\.jpg is not an image"):
        paint_set(broken, tmp_path / "faces.csv", out, {"wear": 1})
    left = [p.relative_to(tmp_path / "here").as_posix() for p in (tmp_path / "here").rglob("*")]
    assert left == [place for place in ("place", "place/set") if existing.startswith(place)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.drop(columns="nose_x"), "no column 'nose_x'"),
        (
            lambda f: f.drop(columns=list(COLUMNS[6:])),
            "line 2: p0/photo0.png has a box, but no landmarks",
        ),
        (lambda f: f.drop(index=0), "no row for p0/photo0.png"),
        (lambda f: f.assign(nose_x=f["nose_x"] + 4000), r"line 2: p0/photo0.png: its nose at \(4.* outside the photo"),
        (
            lambda f: f.assign(left_eye_x=f["right_eye_x"], left_eye_y=f["right_eye_y"]),
            "line 2: p0/photo0.png: its eyes are on one point",
        ),
        (
            lambda f: f.assign(nose_y=f["nose_y"] * 0),
            r"line 2: p0/photo0.png: its nose at \(.*, 0\) is far from its eyes",
        ),
        (lambda f: f.assign(x0=float("nan")), "column x0"),
    ],
)
def test_landmarks_that_cannot_be_used(bare, tmp_path, change, sentence):
    change(pd.read_csv(bare / "faces.csv")).to_csv(tmp_path / "spoilt.csv", index=False)
    with pytest.raises(DataError, match=sentence):
        paint_set(table_of(bare), tmp_path / "spoilt.csv", tmp_path / "set", {"wear": 1})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"head": "gender"}, "Head gender has no class 'wear'"),
        ({"head": "path"}, "cannot be called"),
        ({"classes": ("a", "b")}, "needs three classes"),
        ({"classes": ("a", "a", "b")}, "different classes"),
        ({"looks": ["scarf"]}, "no look 'scarf'"),
        ({"looks": []}, "no look"),
        ({"suffix": ".gif"}, "found '.gif'"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "--workers is 0; expected 1 to 1024"),
        ({"workers": -1}, "--workers is -1"),
    ],
)
def test_settings_that_cannot_be_used(bare, tmp_path, settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        paint_set(table_of(bare), bare / "faces.csv", tmp_path / "set", {"wear": 1}, **settings)
    assert not (tmp_path / "set").exists()


def test_per_face():
    assert parse_per_face("wear=5, incorrect=1,none=1") == {"wear": 5, "incorrect": 1, "none": 1}
    assert parse_per_face("incorrect=2") == {"wear": 0, "incorrect": 2, "none": 0}
    for text in ("", "none=1", "wear", "wear=-1", "wear=1,wear=2", "worn=1", "wear=101", "wear=1,none=2"):
        with pytest.raises(UsageError, match="--per-face"):
            parse_per_face(text)


def test_no_bare_face(bare, tmp_path):
    empty = pd.read_csv(bare / "faces.csv")
    empty[list(COLUMNS[1:])] = float("nan")
    empty.to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(DataError, match="none of the 6 bare photos shows a face"):
        paint_set(table_of(bare), tmp_path / "none.csv", tmp_path / "set", {"wear": 1})


def test_the_command_paints_what_fit_reads(bare, tmp_path, fastmask):
    heads = {"gender": ["male", "female"], "age": {"classes": ["<30", "30-59", "60+"], "bounds": [30, 60]}}
    (tmp_path / "heads.yaml").write_text(json.dumps({"heads": heads}))
    given = ["--config", tmp_path / "heads.yaml", "--data", bare / "bare.csv", "--landmarks", bare / "faces.csv"]
    words = [*given, "--out", tmp_path / "painted"]
    answer = fastmask("paint", *words, "--per-face", "wear=2,incorrect=1")
    assert answer.code == 0, answer.err
    assert "photos 10 wear, 5 incorrect, of 5 faces; left out: 1 photos without a face" in answer.out
    labels = pd.read_csv(tmp_path / "painted" / "labels.csv")
    assert labels["mask"].value_counts().to_dict() == {"wear": 10, "incorrect": 5}
    # years, not bands
    assert set(labels["age"]) == {20, 29, 38, 47, 56}
    again = fastmask("paint", *words)
    assert (again.code, again.out) == (2, "")
    wrong = fastmask("paint", *words[:-1], tmp_path / "other", "--per-face", "hat=2")
    assert wrong.code == 2
    assert not (tmp_path / "other").exists()
