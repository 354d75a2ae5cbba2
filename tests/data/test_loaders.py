import errno
import os
from unittest.mock import Mock

import albumentations as A
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from small_loaders import SMALL, TRAIN, VALID, loaders, of_the_training

import fastmask.data.transforms
from fastmask.config import make_config
from fastmask.data.augment import REPORT_STATS, Augmentation
from fastmask.data.contest import read_contest
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import batch_stats, dataloaders, photo_loader, photo_maps, pick_device, pick_workers
from fastmask.data.photo import read_photo
from fastmask.data.pipelines import report_pipelines
from fastmask.data.training_set import TrainingSet
from fastmask.system.errors import UsageError
from fastmask.training.setup import prepare


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


def test_a_batch_is_photos_in_channels_last_and_a_class_a_head(table):
    x, y = loaders(table).train.one_batch()
    assert (x.shape, x.dtype) == ((8, 3, 64, 32), torch.float32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert (y.shape, y.dtype) == ((8, 3), torch.int64)


def test_the_batch_equals_albumentations_normalize_and_totensor(table):
    whole = A.Compose([*SMALL, A.Normalize(*REPORT_STATS), A.ToTensorV2()])
    dl = loaders(table, augments=(Augmentation(whole), Augmentation(whole))).valid
    rows = [row for row, fold in enumerate(assign_folds(table, 3, stratify="gender")) if fold == 0]
    expected = torch.stack([whole(image=read_photo(table.photo(row)))["image"] for row in rows])
    torch.testing.assert_close(torch.cat([torch.Tensor(x) for x, _ in dl]), expected, atol=1e-5, rtol=0)


def test_training_leaves_the_fold_out_and_drops_the_last_batch(table):
    dls = loaders(table)
    valid = sum(len(y) for _, y in dls.valid)
    train = sum(len(y) for _, y in dls.train)
    assert valid == len(dls.valid_ds) == (assign_folds(table, 3, stratify="gender") == 0).sum()
    assert train == len(dls.train_ds) // 8 * 8
    assert len(dls.train_ds) + valid == len(table)


def test_validation_labels_are_official_and_training_labels_as_trained(contest):
    table = read_contest(contest, age_bounds=(20, 25))
    dls = loaders(table)
    folds = assign_folds(table, 3, stratify="gender")
    assert torch.cat([y for _, y in dls.valid]).tolist() == table.y[folds == 0].tolist()
    trained = sorted(y.tolist() for i in range(len(dls.train_ds)) for y in [dls.train_ds[i][1]])
    assert trained == sorted(table.train_y[folds != 0].tolist())
    assert (table.y != table.train_y).any()


def test_statistics_can_be_given_with_the_report_s_augmentation(table):
    dls = dataloaders(table, 0, assign_folds(table, 3, stratify="gender"), stats=[[0.5] * 3, [0.5] * 3], num_workers=0)
    x, _ = dls.valid.one_batch()
    assert x.min() >= -1
    assert x.max() <= 1


def test_a_path_an_image_and_an_array_can_be_predicted(table):
    dls, path = loaders(table), table.photo(4)
    image = Image.open(path).convert("RGB")
    seen = [dls.test_dl([item]).one_batch()[0] for item in (path, str(path), image, np.asarray(image), 4)]
    assert all((x == seen[0]).all() for x in seen)


def test_photos_are_shown_with_their_names(table):
    plt.switch_backend("Agg")
    loaders(table).show_batch(max_n=4)
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]
    plt.close("all")
    assert len(titles) == 4
    assert all(t.split()[1] in ("male", "female") for t in titles)


def test_photos_without_labels_are_in_the_order_given_and_from_maps(table, monkeypatch):
    paths, options = [str(table.photo(i)) for i in (9, 2, 30)], {"bs": 2, "num_workers": 0, "device": "cpu"}

    def photos(paths, **more):
        loader = photo_loader(paths, (TRAIN, VALID), REPORT_STATS, **options, **more)
        return torch.cat([torch.Tensor(x) for (x,) in loader])

    x = photos(paths)
    assert len(x) == 3
    assert (x[2] == photos(paths[2:])[0]).all()
    maps = photo_maps(table, (VALID,))
    monkeypatch.setattr(fastmask.data.transforms, "read_photo", lambda path: pytest.fail("it is in the map"))
    assert (photos(paths, maps=maps) == x).all()


def test_without_semaphores_no_other_process_loads(table, monkeypatch):
    refuse = Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS)))
    monkeypatch.setattr("multiprocessing.context.BaseContext.Lock", refuse)
    assert (pick_workers(None, torch.device("cuda")), pick_workers(0, torch.device("cuda"))) == (0, 0)
    folds = assign_folds(table, 3, stratify="gender")
    with pytest.raises(UsageError, match=r"\(--workers 2\) need semaphores.*/dev/shm.*Use --workers 0"):
        dataloaders(table, 0, folds, num_workers=2)
    # before a run has a directory
    with pytest.raises(UsageError, match="--workers 2"):
        prepare(table, make_config({"arch": "test_resnet", "pretrained": False, "workers": 2}))


def test_statistics_are_given_once():
    own = Augmentation(report_pipelines(stats=((0.5,) * 3, (0.5,) * 3))[1])
    assert batch_stats([own]) == ((0.5,) * 3, (0.5,) * 3)
    assert batch_stats([VALID]) == REPORT_STATS
    with pytest.raises(UsageError, match="give the statistics once"):
        batch_stats([own], REPORT_STATS)


def test_a_fold_that_does_not_exist_and_a_device_that_does_not_are_refused(table):
    with pytest.raises(UsageError, match="Fold 7 does not split"):
        loaders(table, fold=7)
    with pytest.raises(UsageError, match="Device 'abacus' cannot be used"):
        pick_device("abacus")


def test_a_training_set_may_have_other_photos_and_soft_labels(table):
    made, _ = of_the_training(table)
    extra = TrainingSet(made.photos[:4], np.full((4, table.heads.n_logits), 0.5, np.float32))
    dls = loaders(table, train=made.join(extra, table.heads))
    assert len(dls.train_ds) == len(made) + 4
    y = torch.cat([y for _, y in dls.train])
    assert (y.shape[1], y.dtype) == (table.heads.n_logits, torch.float32)
    valid = torch.cat([y for _, y in dls.valid])
    assert valid.tolist() == table.y[assign_folds(table, 3, stratify="gender") == 0].tolist()
    dls.train.show_batch(show=False)
