"""Each name against the library's own call with the same seed on the same photo."""

import pickle
import random
import re

import albumentations as A
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_loaders import batches, equal, loaders
from timm.data import create_transform
from torchvision.transforms import v2

from fastmask.config import make_config
from fastmask.data.augment import Augmentation, build_augmentations, from_plain, to_plain
from fastmask.data.catalog import CATALOG, PhotoFormat, Stage, make_augmentations, resolve_name
from fastmask.data.contest import read_contest
from fastmask.data.loaders import photo_maps
from fastmask.data.pipelines import effective_pipelines
from fastmask.guide.chapters import read_chapter
from fastmask.system.errors import UsageError

SIZE, FILL = (96, 64), (140, 129, 122)
# smooth, with noise: what a policy does shows
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]
PHOTO = (
    np.stack([2 * ROWS, 3 * COLUMNS, ROWS + COLUMNS], axis=-1) + np.random.default_rng(0).integers(0, 40, (*SIZE, 3))
).astype(np.uint8)


def transform_of(call):
    (made,) = (each for stage in make_augmentations([call], PhotoFormat(SIZE, FILL)).values() for each in stage)
    return made


def apply(call, seed, photo=PHOTO):
    """A photo augmented as in a loader, which sets the generators of a pipeline."""
    transform = transform_of(call)
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform(image=photo)["image"]


def seed_of(seed):
    """The seed of the global generators that a policy draws from its own."""
    return int(np.random.default_rng(seed).integers(2**32))


TORCHVISION = [
    ("randaugment", v2.RandAugment(fill=FILL)),
    ("RandAugment(num_ops=3, magnitude=20)", v2.RandAugment(3, 20, fill=FILL)),
    ("autoaugment", v2.AutoAugment(fill=FILL)),
    ("autoaugment(policy=svhn)", v2.AutoAugment(v2.AutoAugmentPolicy.SVHN, fill=FILL)),
    ("trivialaugment", v2.TrivialAugmentWide(fill=FILL)),
    ("augmix", v2.AugMix(fill=FILL)),
    ("augmix(severity=9, fill=0)", v2.AugMix(9, fill=0)),
]


@pytest.mark.parametrize(("call", "policy"), TORCHVISION)
def test_a_policy_of_torchvision_is_the_library_s(call, policy):
    for seed in range(12):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed))
            expected = np.asarray(policy(Image.fromarray(PHOTO)))
        assert np.array_equal(apply(call, seed), expected)


@pytest.mark.parametrize(
    "text",
    ["rand-m9-mstd0.5", "rand-m7-n3-inc1", "rand-m5-n2-tweights", "augmix-m5-w4-d2", "original", "v0-mstd0.5", "3a"],
)
def test_a_policy_of_timm_is_that_of_its_training_script(text):
    # what timm's train.py builds for --aa, with its own --train-interpolation
    mean = tuple(value / 255 for value in FILL)
    _, policies, _ = create_transform(SIZE, True, auto_augment=text, mean=mean, interpolation="random", separate=True)
    policy = next(each for each in policies.transforms if "auto_augment" in type(each).__module__)
    for seed in range(12):
        random.seed(seed_of(seed))
        np.random.seed(seed_of(seed))  # noqa: NPY002
        expected = np.asarray(policy(Image.fromarray(PHOTO)))
        assert np.array_equal(apply(text, seed), expected)


SHAPE = SIZE[1] / SIZE[0]


ALBUMENTATIONS = [
    ("flip", A.HorizontalFlip()),
    ("rotate", A.Rotate(15, fill=FILL)),
    ("rotate(limit=(-40, 0), p=1, fill=9)", A.Rotate((-40, 0), p=1, fill=9)),
    ("colour-jitter", A.ColorJitter(hue=0)),
    ("clahe", A.CLAHE()),
    ("blur", A.GaussianBlur()),
    ("grid-dropout", A.GridDropout(fill=FILL)),
    ("coarse-dropout", A.CoarseDropout(fill=FILL)),
    (
        "random-resized-crop(scale=(0.1, 0.5))",
        A.RandomResizedCrop(SIZE, (0.1, 0.5), (SHAPE * 3 / 4, SHAPE * 4 / 3), area_for_downscale="image"),
    ),
    # any class of albumentations
    ("GaussNoise(p=1)", A.GaussNoise(p=1)),
    ("perspective", A.Perspective(fill=FILL)),
]


@pytest.mark.parametrize(("call", "transform"), ALBUMENTATIONS)
def test_a_transform_of_albumentations_is_the_library_s(call, transform):
    for seed in range(12):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert np.array_equal(apply(call, seed), transform(image=PHOTO)["image"])


def test_every_name_is_compared():
    assert set(CATALOG) <= {resolve_name(call.partition("(")[0]) for call, _ in (*TORCHVISION, *ALBUMENTATIONS)}


@pytest.mark.parametrize("call", [*CATALOG, "rand-m9-mstd0.5", "augmix-m3", "GaussNoise"])
def test_it_leaves_the_global_generators_and_the_photo_alone_and_survives_yaml(call):
    photo = PHOTO.copy()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    transform = transform_of(call)
    again = from_plain(yaml.safe_load(yaml.safe_dump(to_plain(A.Compose([transform])))))
    one, other = Augmentation(A.Compose([transform])), Augmentation(again)
    for seed in range(6):
        made = one(photo, np.random.default_rng(seed))
        assert np.array_equal(other(photo, np.random.default_rng(seed)), made)
    assert np.array_equal(photo, PHOTO)
    after = random.getstate(), np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


@pytest.mark.semaphores
def test_what_it_does_is_counted_whatever_the_workers_the_cache_and_the_global_seeds(contest):
    # six persons
    table, calls = read_contest(contest).select(range(42)), ",".join([*CATALOG, "rand-m9-mstd0.5"])
    augments = build_augmentations(effective_pipelines(make_config({"augment": calls, "resize": [64, 32]})))
    plain, kept = (loaders(table, augments=augments, maps=maps) for maps in ([], photo_maps(table, augments, "ram")))
    two = loaders(table, augments=pickle.loads(pickle.dumps(augments)), maps=[], num_workers=2)
    passes = []
    for seed in range(2):
        passes.append(batches(plain.train))
        torch.manual_seed(seed)
        assert equal(passes[-1], batches(kept.train))
        assert equal(passes[-1], batches(two.train))
    assert not equal(*passes)
    assert equal(batches(plain.valid), batches(two.valid))


def test_the_guide_lists_the_catalog():
    chapter = read_chapter("augment")
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+)(?:'s|') `(\w+)` \|(.*?)\|", chapter, re.MULTILINE)
    assert {name: (library, transform) for name, library, transform, _ in rows} == {
        name: (entry.library, entry.transform) for name, entry in CATALOG.items()
    }
    differing = {name: ", ".join(f"{k}={v}" for k, v in entry.arguments.items()) for name, entry in CATALOG.items()}
    assert all(differing[name] in text for name, _, _, text in rows)


def names(settings):
    train, valid = build_augmentations(effective_pipelines(make_config(settings)))
    return [type(each).__name__ for each in train.pipeline][:-2], [type(each).__name__ for each in valid.pipeline][:-2]


def test_the_order_is_shapes_then_colours_then_covers_whatever_is_given_first():
    given = "grid-dropout,randaugment,flip,clahe,rotate"
    train, valid = names({"augment": given, "erase": 0.2, "resize": [60, 40]})
    assert train == [
        *("CenterCrop", "Resize", "HorizontalFlip", "Rotate"),
        *("RandomBrightnessContrast", "TorchvisionPolicy", "CLAHE", "Erasing", "GridDropout"),
    ]
    assert valid == ["CenterCrop", "Resize"]
    assert list(Stage) == sorted(Stage)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        # a part of the crop's own pixels, not of the scaled ones
        ({"resize": [60, 40]}, ["CenterCrop", "RandomResizedCrop"]),
        ({}, ["CenterCrop", "RandomResizedCrop"]),
        ({"fit": "pad"}, ["LongestMaxSize", "PadIfNeeded", "RandomResizedCrop"]),
        ({"fit": "stretch"}, ["Resize", "RandomResizedCrop"]),
        ({"fit": "crop"}, ["SmallestMaxSize", "RandomResizedCrop"]),
    ],
)
def test_a_random_part_is_taken_once(settings, start):
    train, _ = names({"augment": "random-resized-crop(scale=(0.5, 1))", **settings})
    assert train == [*start, "RandomBrightnessContrast"]


def test_the_random_part_of_fit_crop_is_not_taken_twice():
    with pytest.raises(UsageError, match=r"fit crop already takes a random part .* random-resized-crop\(scale"):
        names({"augment": "random-resized-crop", "fit": "crop"})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("RandAugment", "randaugment"),
        ("rand_augment", "randaugment"),
        ("TrivialAugmentWide", "trivialaugment"),
        ("ColorJitter", "colour-jitter"),
        ("color_jitter", "colour-jitter"),
        ("HorizontalFlip", "flip"),
        ("gaussnoise", "GaussNoise"),
        ("augmix", "augmix"),
        ("rand-m9-n2", "rand-m9-n2"),
    ],
)
def test_names_are_found_whatever_their_spelling(given, found):
    assert resolve_name(given) == found


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("randaugmnt", "there is no 'randaugmnt'; did you mean randaugment or "),
        (
            "nothing-like-it",
            "expected some of randaugment, .*, a class of albumentations, or timm's text, such as",
        ),
        ("Normalize", "there is no 'Normalize'; "),
        ("randaugment(magnitud=7)", "randaugment has no argument 'magnitud'; did you mean magnitude"),
        ("flip(limit=3)", "flip has no argument 'limit'; expected some of p"),
        ("random-resized-crop(p=0.5)", "random-resized-crop has no argument 'p'"),
        ("randaugment(magnitude=99)", "randaugment cannot be used like this: index 99 is out of bounds"),
        ("autoaugment(policy=best)", "'best' is not a valid AutoAugmentPolicy"),
        ("rotate(limit=abc)", "rotate cannot be used like this: limit is 'abc', and input should be a valid"),
        ("rotate(limit=10000000)", "rotate cannot be used like this: limit is -1e.07, expected at most"),
        ("rotate(limit=0)", "rotate cannot be used like this: it changes nothing"),
        ("flip(p=0)", "p is 0, so it changes nothing"),
        ("rand-m9-x4", "timm's rand has no part 'x4', expected such as rand-m9-n2-mstd0.5"),
        ("rand-n99-tweights", "rand-n99-tweights cannot be used like this: Cannot take a larger sample"),
        ("ToFloat", "it makes float32"),
        ("RandomCrop(height=9, width=9)", r"it makes uint8 \(9, 9, 3\) of a photo, expected uint8 \(400, 200, 3\)"),
        ("TextImage(font_path='/etc/passwd')", "TextImage cannot be used like this"),
        ("flip,clahe,HorizontalFlip(p=1)", "Setting augment has flip twice"),
        ("rotate(10)", r"found 'rotate\(10\)', expected arguments as in rotate\(name=value"),
        ("rotate(", r"found 'rotate\(', expected a name, or a name with arguments"),
    ],
)
def test_a_mistake_is_one_sentence(calls, message):
    with pytest.raises(UsageError, match=message) as caught:
        effective_pipelines(make_config({"augment": calls}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
