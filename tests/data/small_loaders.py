"""Loaders of small photos, for the tests of loaders."""

import albumentations as A

from fastmask.data.augment import Augmentation
from fastmask.data.folds import assign_folds
from fastmask.data.halves import Halves
from fastmask.data.loaders import dataloaders
from fastmask.data.training_set import training_set

SMALL = [A.CenterCrop(400, 200), A.Resize(64, 32)]
TRAIN = Augmentation(A.Compose([*SMALL, A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.8)]))
VALID = Augmentation(A.Compose(SMALL))


def loaders(table, augments=(TRAIN, VALID), **options):
    """The loaders of a table's first fold of three, in batches of eight."""
    folds = assign_folds(table, 3, group="person", stratify="gender")
    options = {"bs": 8, "num_workers": 0, "device": "cpu", **options}
    return dataloaders(table, options.pop("fold", 0), folds, augments=augments, **options)


def batches(dl):
    return [(x.clone(), y.clone()) for x, y in dl]


def equal(one, other):
    return len(one) == len(other) and all(
        (a == b).all() for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True)
    )


def of_the_training(table, **options):
    """The photos of folds 1 and 2 as a training set, and its halves."""
    made = training_set(table, assign_folds(table, 3, stratify="gender") != 0)
    classes = table.heads.joint(made.labels)
    return made, Halves(classes, table.heads, **{"probability": 0.7, "shares": (0.3, 0.6), **options})
