"""Which folders are classes, by the names and contents that data sets of several tools have."""

import pytest

from fastmask.data.layout import find_layout, fold_of
from fastmask.data.table import LEFT_OUT, TRAIN_ONLY, VALIDATED
from fastmask.system.errors import UsageError

SPLIT_OF = {TRAIN_ONLY: "train", VALIDATED: "val"}


def make(root, *photos):
    """Empty files; those that end in / are folders."""
    for photo in photos:
        file = root / photo
        (file if photo.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not photo.endswith("/"):
            file.touch()
    return root


def read(root, *photos):
    """The folders of the layout with their splits, and those that are left out."""
    layout = find_layout(make(root, *photos))
    places = {place.relative_to(root).as_posix(): SPLIT_OF[fold] for place, fold in layout.places.items()}
    return places, [*layout.left_out]


CLASSES = {
    "a class called train": ["bus/1.jpg", "car/1.jpg", "train/1.jpg"],
    "val and test beside others": ["cat/1.jpg", "test/1.jpg", "val/1.jpg"],
    "images beside others": ["cat/1.jpg", "images/1.jpg"],
    "eval and valid beside others": ["cat/1.jpg", "eval/1.jpg", "valid/1.jpg"],
    "each class has the same folders": ["bus/day/1.jpg", "bus/night/1.jpg", "train/day/1.jpg", "train/night/1.jpg"],
    "CUB": ["001.Black_footed_Albatross/1.jpg", "002.Laysan_Albatross/1.jpg"],
    "with and without mask": ["mask/1.jpg", "no_mask/1.jpg"],
    "test tubes": ["test_tube/1.jpg", "train_station/1.jpg"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_folders_beside_others_are_classes_whatever_their_names(name, tmp_path):
    classes = {photo.split("/")[0]: "train" for photo in CLASSES[name]}
    assert read(tmp_path, *CLASSES[name]) == (classes, [])


BOTH = ("cat/1.jpg", "dog/1.jpg")


@pytest.mark.parametrize(
    "names",
    ["train val", "train valid", "training validation", "TRAINING_SET VAL_SET", "train2017 val2017", "trainval dev"],
)
def test_splits_hold_the_classes(names, tmp_path):
    train, val = names.split()
    photos = [f"{split}/{photo}" for split in (train, val) for photo in BOTH]
    expected = {f"{train}/cat": "train", f"{train}/dog": "train", f"{val}/cat": "val", f"{val}/dog": "val"}
    assert read(tmp_path, *photos) == (expected, [])


TRAINED = {"train/cat": "train", "train/dog": "train"}
BOTH_SPLITS = {**TRAINED, "val/cat": "val", "val/dog": "val"}
OTHERS = {
    "train only": ([], TRAINED, []),
    "a validation split without photos": (["val/cat/", "val/dog/"], TRAINED, ["val"]),
    "a test split": (["test/cat/1.jpg", "test/dog/1.jpg"], TRAINED, ["test"]),
    "photos without labels": (["test/1.jpg"], TRAINED, ["test"]),
    "a validation split without labels": (["val/1.jpg"], TRAINED, ["val"]),
    "all three": ([f"{s}/{p}" for s in ("val", "test") for p in BOTH], BOTH_SPLITS, ["test"]),
    "other folders without photos": (["docs/readme.txt"], TRAINED, ["docs"]),
    "other folders with photos": ([*(f"val/{p}" for p in BOTH), "unlabelled/1.jpg"], BOTH_SPLITS, ["unlabelled"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_test_split_and_what_has_no_classes_is_left_out(name, tmp_path):
    photos, places, left_out = OTHERS[name]
    assert read(tmp_path, *(f"train/{photo}" for photo in BOTH), *photos) == (places, left_out)


def test_a_split_may_be_inside_a_folder_of_the_same_name(tmp_path):
    photos = [f"{split}/{split}/{photo}" for split in ("seg_train", "seg_test") for photo in BOTH]
    expected = {"seg_train/seg_train/cat": "train", "seg_train/seg_train/dog": "train"}
    assert read(tmp_path, *photos) == (expected, ["seg_test"])


REFUSED = {
    "flat splits": (
        ["train/1.jpg", "val/1.jpg"],
        r"holds train, val, which are not classes; expected a folder per class",
    ),
    "nothing to train on": (["val/cat/1.jpg", "val/dog/1.jpg"], r"To train on val, give .*/val in its place"),
    "one folder around": (
        ["pets/cat/1.jpg", "pets/dog/1.jpg"],
        r"holds photos only in pets; give .*/pets in its place",
    ),
    "CUB whole": (["images/a/1.jpg", "images/b/1.jpg", "parts/p.txt"], r"only in images; give .*/images in its place"),
    "YOLO": (["images/1.jpg", "labels/1.txt"], r"holds images, labels, which are not classes; .*YOLO"),
    "YOLO in splits": (
        ["train/images/1.jpg", "train/labels/1.txt", "valid/images/1.jpg", "valid/labels/1.txt"],
        r"train holds images, labels, which are not classes",
    ),
    "VOC": (["JPEGImages/1.jpg", "Annotations/1.xml"], r"holds Annotations, JPEGImages, which are not classes"),
    "photos and masks": (["images/1.jpg", "masks/1.png"], r"holds images, masks, which are not classes"),
    "splits inside the classes": (
        ["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/1.jpg", "dog/test/1.jpg"],
        r"cat holds test, train, which are splits; expected the splits above the classes, as in .*/train/cat",
    ),
    "one class": (["cat/1.jpg"], r"holds 1 folder; expected two or more, one per class"),
    "photos alone": (["1.jpg", "2.jpg"], r"holds no folder per class; expected .*/CLASS with photos inside, a CSV"),
    "a CSV": (["1.jpg", "my.csv"], r"If my.csv has the labels, give .*/my.csv in its place"),
    "a CSV beside images": (["images/1.jpg", "a.csv", "labels.csv"], r"1 folder; .* give .*/labels.csv in its place"),
    "a CSV beside splits": (["train/1.jpg", "test/1.jpg", "train.csv"], r"not classes; .* give .*/train.csv in its pl"),
    "COCO": (["annotations/i.json", "train2017/1.jpg", "val2017/1.jpg"], r"holds train2017, val2017, which are not cl"),
    "YOLO's images above the splits": (
        ["images/train/1.jpg", "images/val/1.jpg", "labels/train/1.txt", "data.yaml"],
        r"images holds train, val, which are not classes",
    ),
    "two folders around": (["a/b/cat/1.jpg", "a/b/dog/1.jpg"], r"photos only in b; give .*/a/b in its place"),
    "splits further down": (
        ["data/train/cat/1.jpg", "data/train/dog/1.jpg", "code/x.py"],
        r"give .*/data in its place",
    ),
    "an archive": (["pets.zip"], r"unpack .*/pets.zip first"),
    "nothing": ([], r"holds no folder per class; expected .*, or a contest folder with train.csv\.$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_without_a_folder_per_class_is_refused_with_what_to_give(name, tmp_path):
    photos, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        read(tmp_path, *photos)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere is not a folder; expected one that holds a folder per class"):
        find_layout(tmp_path / "nowhere")


def test_names_of_splits():
    assert [fold_of(name) for name in ("Train", "val2017", "test-images", "seg_pred")] == [
        *(TRAIN_ONLY, VALIDATED, LEFT_OUT, LEFT_OUT)
    ]
    assert {*map(fold_of, ("trains", "trainee", "training ground", "images", "cat", "train_val", "1"))} == {None}
