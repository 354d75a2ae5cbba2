"""First batch: the very batch that the plan's own learner begins with."""

import numpy as np
import pytest
import torch
from fastai.torch_core import TensorImage

from fastmask.api import Run
from fastmask.config import make_config
from fastmask.data.contest import contest_heads, read_contest
from fastmask.labels import soft_labels
from fastmask.report.sections.first_batch import first_batch, label_lines
from fastmask.run.source import photos_of
from fastmask.training.crossval import create_run
from fastmask.training.setup import prepare


def batch_of_learner(plan, fold):
    """Photos and labels after the callbacks of the first step."""
    learn = plan.learner(fold)
    learn.dl = learn.dls.train
    learn.model.train()
    x, y = learn.dls.train.one_batch()
    learn.xb, learn.yb, learn.iter, learn.training = (x,), (y,), 0, True
    for callback in learn.cbs.sorted("order"):
        if type(callback).__name__ in ("CountedSteps", "Mix"):
            callback.before_batch()
    pixels = learn.dls.train.after_batch.decode(TensorImage(learn.xb[0])) * 255
    labels = soft_labels(learn.yb[0].as_subclass(torch.Tensor), plan.table.heads).numpy()
    return pixels.permute(0, 2, 3, 1).numpy().round().astype(np.uint8), labels


@pytest.mark.parametrize(
    ("fold", "settings"),
    [
        (0, {}),
        (1, {"half_cutmix": 1.0, "half_partner": "any", "sampler": "joint"}),
        (0, {"cutmix": 1.0, "mixup": 0.4, "drop": {"age": [[20, 30]]}}),
        (0, {"mixup": 0.4, "mix_classes": ["mask.wear"], "mix_partner": "same", "per_person": 3}),
        (0, {"cutmix": 1.0, "bs": 5, "accumulate": 3}),
        (1, {"augment": "augmix,rand-m9-mstd0.5,clahe,random-resized-crop", "half_cutmix": 0.5}),
    ],
)
def test_it_is_the_batch_that_the_training_began_with(fold, settings, contest, small_settings, tmp_path):
    plain = {"data": str(contest), **small_settings, "train_pipeline": None, "valid_pipeline": None}
    config = make_config(plain, {"crop": [96, 64], "resize": [32, 24], "erase": 0.5, **settings})
    plan = prepare(read_contest(contest), config)
    run = create_run(tmp_path / "run", plan, False)
    photos, labels = first_batch(Run.load(run.path), photos_of(run), fold)
    expected = batch_of_learner(plan, fold)
    np.testing.assert_array_equal(photos, expected[0])
    np.testing.assert_allclose(labels, expected[1], atol=1e-6)


def test_global_generators_are_not_used(finished_run):
    with torch.random.fork_rng():
        before = torch.random.get_rng_state()
        first_batch(finished_run, photos_of(finished_run), 0)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_labels_have_their_weight():
    labels = np.array([1, 0, 0, 0.3, 0.7, 0, 0, 0])
    assert label_lines(contest_heads(), labels) == [("wear", ""), ("female 0.70", ""), ("age unknown", "")]
