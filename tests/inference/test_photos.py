"""Photos to predict: which files they are, and what a run needs to prepare them."""

import pytest

from fastmask.api import Run
from fastmask.inference.photos import augments_of, face_cut, find_photos
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


def test_hidden_and_other_files_of_a_folder_are_left_out(tmp_path):
    for name in ("b.jpg", "a.png", "._a.png", ".ipynb_checkpoints/c.jpg", "notes.txt", "deep/d.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(FastmaskWarning, match=r"1 file is left out \(1 .txt\), such as .*notes.txt: "):
        names, _ = find_photos(tmp_path)
    assert names == ["a.png", "b.jpg", "deep/d.jpeg"]


def test_photos_of_a_list_are_named_as_given_or_relative_to_a_root(tmp_path):
    photo = tmp_path / "a" / "b.jpg"
    photo.parent.mkdir()
    photo.touch()
    assert find_photos([photo])[0] == [str(photo)]
    assert find_photos([photo], tmp_path)[0] == ["a/b.jpg"]
    with pytest.raises(UsageError, match="b.jpg is not in .*other"):
        find_photos([photo], tmp_path / "other")


def test_photos_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UsageError, match="holds no photos"):
        find_photos(tmp_path)
    with pytest.raises(UsageError, match="gone is not a folder"):
        find_photos(tmp_path / "gone")
    with pytest.raises(DataError, match=r"none\.jpg does not exist"):
        find_photos([tmp_path / "none.jpg"])


def test_boxes_need_a_run_that_was_trained_with_them(finished_run):
    assert face_cut(finished_run, None, {}) is None
    with pytest.raises(UsageError, match="--boxes needs a run that was trained with boxes, and .*small was not"):
        face_cut(finished_run, "boxes.csv", {})


def test_a_pipeline_that_cannot_be_built_names_the_run(run_copy):
    (run_copy / "pipelines.yaml").write_text("train: {transform: 3}\nvalid: {transform: 3}\n")
    with pytest.raises(DataError, match="run_copy/pipelines.yaml: train_pipeline is not a pipeline"):
        augments_of(Run.load(run_copy))
