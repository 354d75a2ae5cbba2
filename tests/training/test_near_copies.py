import io
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.preparation import near_copies as search
from fastmask.preparation.check import check_data
from fastmask.run.caveats import describe_extra_copies
from fastmask.system.errors import DataError, FastmaskWarning, UsageError
from fastmask.system.files import read_json, write_json
from fastmask.training import near_copies as noted
from fastmask.training.crossval import create_run
from fastmask.training.near_copies import note_near_copies


def encode(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


@pytest.fixture
def copied(contest_copy):
    """The contest, its person 9 with a darker, and mirrored, photo of person 0, in other bytes."""
    table = read_contest(contest_copy)
    image = Image.open(table.photo(2)).convert("RGB")
    darker = ImageEnhance.Brightness(image).enhance(0.8).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    table.photo(65).write_bytes(encode(darker))
    return table


@pytest.fixture
def searches(monkeypatch):
    """The number of photos of each search."""
    found = []
    real = search.find_near_copies
    monkeypatch.setattr(search, "find_near_copies", lambda s, *rest: found.append(len(s)) or real(s, *rest))
    return found


@pytest.fixture
def apart(plan_of, tmp_path, copied):
    """Settings of a split with persons 0 and 9 in two folds, and one with them in the same."""
    frame = copied.frame[["person"]].drop_duplicates()
    names = frame["person"].tolist()
    settings = []
    for name, fold in (("apart", 1), ("together", 0)):
        file = tmp_path / f"{name}.csv"
        folds = {person: place % 2 for place, person in enumerate(names)} | {names[0]: 0, names[9]: fold}
        frame.assign(fold=frame["person"].map(folds)).to_csv(file, index=False)
        settings.append({"folds_file": str(file), "cache_dir": str(tmp_path / "cache")})
    return settings


def test_near_copies_in_two_folds_are_warned_of_and_searched_once(copied, plan_of, apart, searches):
    paths = copied.frame["path"]
    said = (
        f"1 pair of persons in two folds have the same picture in different files, such as {paths[2]} and {paths[65]}:"
    )
    for _ in range(2):
        with pytest.warns(FastmaskWarning, match=said):
            plan = note_near_copies(plan_of(copied, **apart[0]))
        assert plan.environment["near_copies"] == {"pairs": [[paths[2], paths[65]]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = note_near_copies(plan_of(copied, **apart[1]))
    assert together.environment == plan.environment | {"time": together.environment["time"]}
    assert searches == [84]


@pytest.mark.slow
def test_other_photos_or_persons_or_pixels_are_searched_again(copied, plan_of, apart, searches):
    def note(**settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FastmaskWarning)
            return note_near_copies(plan_of(copied, **{**apart[1], **settings})).environment["near_copies"]["pairs"]

    found = note()
    assert note(workers=0) == found
    assert len(searches) == 1
    whole = {"train_pipeline": None, "valid_pipeline": None, "crop": (400, 200)}
    assert note(**whole) == found
    assert len(searches) == 2
    copied.frame["person"] = copied.frame["person"].replace(copied.persons[65], copied.persons[0])
    assert note(folds_file=None) == []
    assert len(searches) == 3
    # nothing is written without a cache on the disk, and the photos themselves are compared
    assert note(cache="off", folds_file=None, seed=1) == note(cache="off", folds_file=None, seed=1) == []
    assert len(searches) == 5


def test_identical_files_are_no_near_copies(contest_copy, plan_of, searches, tmp_path):
    table = read_contest(contest_copy)
    table.photo(65).write_bytes(table.photo(2).read_bytes())
    plan = note_near_copies(plan_of(table, cache_dir=str(tmp_path)))
    assert plan.environment["near_copies"] == {"pairs": []}


def test_check_is_not_repeated(copied, plan_of, apart, searches, contest_copy):
    findings = check_data(make_config({"data": str(contest_copy), "cache_dir": apart[0]["cache_dir"]}))
    assert [f.kind for f in findings if "duplicate" in f.kind] == ["near duplicate"]
    paths = copied.frame["path"]
    with pytest.warns(FastmaskWarning, match="same picture"):
        plan = note_near_copies(plan_of(copied, **apart[0]))
    assert plan.environment["near_copies"] == {"pairs": [[paths[2], paths[65]]]}
    assert searches == []


def test_pixels_that_check_finds_identical_are_near_copies_of_other_files(contest_copy, plan_of, searches, tmp_path):
    table = read_contest(contest_copy)
    data = table.photo(2).read_bytes()
    # a comment after the photo's end is another file with the same pixels
    table.photo(65).write_bytes(data + b"comment")
    check_data(make_config({"data": str(contest_copy), "cache_dir": str(tmp_path)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastmaskWarning)
        plan = note_near_copies(plan_of(table, cache_dir=str(tmp_path)))
    paths = table.frame["path"]
    assert plan.environment["near_copies"] == {"pairs": [[paths[2], paths[65]]]}
    assert searches == []


def test_too_many_photos_are_a_caveat_until_check_has_searched(copied, plan_of, apart, monkeypatch, contest_copy):
    monkeypatch.setattr(noted, "_MOST_PHOTOS", 83)
    with pytest.warns(FastmaskWarning, match="not searched among 84 photos.* fastmask check finds them"):
        plan = note_near_copies(plan_of(copied, **apart[1]))
    assert plan.environment["near_copies"] == {"pairs": None}
    check_data(make_config({"data": str(contest_copy), "cache_dir": apart[1]["cache_dir"]}))
    assert len(note_near_copies(plan_of(copied, **apart[1])).environment["near_copies"]["pairs"]) == 1


def test_a_leaky_split_is_not_searched(copied, plan_of, searches):
    with pytest.warns(FastmaskWarning, match="--group none"):
        plan = note_near_copies(plan_of(copied, group="none"))
    assert "near_copies" not in plan.environment
    assert searches == []


@pytest.mark.parametrize("text", ["{", '{"pairs": [["a"]]}', '{"pairs": [["a", "b"]]}', "[]"])
def test_a_broken_file_is_searched_again(copied, plan_of, apart, searches, tmp_path, text):
    note_near_copies(plan_of(copied, **apart[1]))
    (file,) = (tmp_path / "cache" / "copies").iterdir()
    file.write_text(text)
    plan = note_near_copies(plan_of(copied, **apart[1]))
    assert len(plan.environment["near_copies"]["pairs"]) == 1
    assert searches == [84, 84]


def test_a_folder_that_cannot_be_written_to_is_said(copied, plan_of, apart, tmp_path):
    lines = []
    plan = plan_of(copied, **apart[1])
    (tmp_path / "cache" / "copies").write_text("a file in place of the folder")
    assert len(note_near_copies(plan, lines.append).environment["near_copies"]["pairs"]) == 1
    assert [line.partition(":")[0] for line in lines] == ["The search for near copies is not kept"]


@pytest.mark.slow
def test_the_score_of_a_run_carries_the_caveat(copied, train, apart, tmp_path):
    with pytest.warns(FastmaskWarning, match="same picture"):
        run = train(tmp_path / "run", copied, epochs=1, **apart[0])
    (caveat,) = run.caveats
    assert caveat.startswith("1 pair of persons in two folds")
    assert caveat in run.scores["notes"]
    assert train(tmp_path / "same", copied, epochs=1, **apart[1]).caveats == []
    plain = read_json(run.path / "environment.json")
    for broken in ([], {"pairs": [["a"]]}, {"pairs": [[1, 2]]}, {"pairs": "a"}, {}):
        write_json(run.path / "environment.json", plain | {"near_copies": broken})
        with pytest.raises(DataError, match="no list of pairs under near_copies"):
            _ = type(run).load(run.path).caveats
    # a run of an earlier version
    write_json(run.path / "environment.json", {k: v for k, v in plain.items() if k != "near_copies"})
    assert type(run).load(run.path).caveats == []


def test_any_order_is_the_same_data(copied, plan_of, apart, searches):
    rows = np.random.default_rng(0).permutation(len(copied))
    note_near_copies(plan_of(copied, **apart[1]))
    note_near_copies(plan_of(copied.select(rows), **apart[1]))
    assert searches == [84]


def homeless():
    raise UsageError("Cannot find a home directory for the cache")


def test_without_a_home_directory_each_start_searches(copied, plan_of, apart, searches, monkeypatch):
    monkeypatch.setattr("fastmask.data.cache_files.cache_home", homeless)
    for _ in range(2):
        plan = note_near_copies(plan_of(copied, **{**apart[1], "cache_dir": None, "cache": "off"}))
        assert len(plan.environment["near_copies"]["pairs"]) == 1
    assert searches == [84, 84]


def test_near_copies_among_extra_photos_are_warned_of_where_their_folds_validate_them(copied, plan_of, apart, tmp_path):
    """A photo of person 0, darker and in other bytes, under another name: trained on where person 0 is validated."""
    path, person = copied.frame["path"][2], copied.persons[2]
    darker = ImageEnhance.Brightness(Image.open(copied.photo(2)).convert("RGB")).enhance(0.9)
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "x.jpg").write_bytes(encode(darker))
    settings = {"extra": str(tmp_path / "extra" / "extra.csv"), **apart[1]}
    for name in ("stranger", person):
        (tmp_path / "extra" / "extra.csv").write_text(f"path,person,gender\nx.jpg,{name},female\n")
        if name == "stranger":
            said = (
                f"1 photo of --extra is used to train a fold .* the same picture, such as x.jpg and {path}: this score"
            )
            with pytest.warns(FastmaskWarning, match=said):
                plan = note_near_copies(plan_of(copied, **settings))
            # the two persons of the table who have it
            assert sorted(plan.environment["near_copies"]["extra"]) == [
                [path, "x.jpg"],
                [copied.frame["path"][65], "x.jpg"],
            ]
            run = create_run(tmp_path / "run", plan, overwrite=False)
            assert re.fullmatch(
                f"{said}.*", describe_extra_copies(plan.environment["near_copies"], run.folds, run.extra)
            )
        else:
            # left out of the fold that validates the same person
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                plan = note_near_copies(plan_of(copied, **settings))
            assert plan.environment["near_copies"]["extra"] == [[copied.frame["path"][65], "x.jpg"]]


@pytest.mark.parametrize("extra", [1, [1], [["a"]], [["a", 1]], {"a": "b"}])
def test_malformed_pairs_of_extra_photos_are_named(extra):
    frame = pd.DataFrame({"path": ["a"], "fold": [0], "person": ["p"], "without": [""]})
    with pytest.raises(DataError, match="runs/a holds no list of pairs under near_copies"):
        describe_extra_copies({"pairs": [], "extra": extra}, frame, frame, "runs/a")
    assert describe_extra_copies({"pairs": []}, frame, frame) == describe_extra_copies(None, frame, frame) == ""
