"""What a notebook does with the Learner, compared with numbers of another source."""

import pickle

import adamp
import matplotlib
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from PIL import Image
from small_learners import TRAIN, VALID, small_dls, small_learner
from torch import nn

from fastmask.data.contest import read_contest
from fastmask.data.table import Table
from fastmask.heads import Head, Heads
from fastmask.model.losses import FocalLoss
from fastmask.system.errors import DataError, UsageError
from fastmask.training.learner import heads_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*CUDA is not available.*"),
    pytest.mark.filterwarnings("ignore:.*insecure pickle.*"),
]


def loaders(table, train=TRAIN, **options):
    """Every third photo validates, the others train."""
    folds = np.where(np.arange(len(table)) % 3 == 0, 0, 1)
    return small_dls(table, folds, (train, VALID), **{"bs": 8} | options)


def learner(dls, network="test_resnet", cbs=(), **options):
    return small_learner(dls, network, cbs, pretrained=False, **options)


def plain_network(n_logits=8):
    """Without batch norm or dropout, so that its output for a photo depends on that photo alone."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, n_logits))


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def photos_of(loader):
    return torch.cat([torch.Tensor(x) for x, *_ in loader])


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest).select(range(48))


@pytest.fixture(scope="module")
def learn(table, tmp_path_factory):
    """Trained for one epoch; for reading only."""
    learn = learner(loaders(table), path=tmp_path_factory.mktemp("learn"))
    learn.fit_one_cycle(1, 1e-3)
    return learn


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def probabilities(learn):
    """By hand: the network on the validation photos, a softmax per head."""
    learn.model.eval()
    with torch.no_grad():
        logits = learn.model(photos_of(learn.dls.valid))
    return torch.cat([part.softmax(-1) for part in heads_of(learn.dls).split(logits)], -1)


# training


def test_it_trains_as_a_plain_loop_does(table):
    learn = learner(loaders(table), plain_network())
    learn.fit(2, 1e-3)
    network, dls, heads = plain_network(), loaders(table), table.heads
    optimizer = adamp.AdamP(network.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-5)
    for _ in range(2):
        for x, y in dls.train:
            log_p = [part.log_softmax(-1) for part in heads.split(network(torch.Tensor(x)))]
            true = [p.gather(1, y[:, [i]].as_subclass(torch.Tensor)) for i, p in enumerate(log_p)]
            sum((-((1 - t.exp()) ** 2) * t).mean() for t in true).backward()
            optimizer.step()
            optimizer.zero_grad()
    expected = torch.cat([p.detach().flatten() for p in network.parameters()])
    torch.testing.assert_close(weights(learn), expected, atol=1e-6, rtol=0)


def test_one_cycle_goes_up_and_down_by_cosines(table):
    learn = learner(loaders(table), plain_network())
    learn.fit_one_cycle(2, 1e-2)
    steps, up = np.arange(8) / 8, 0.25
    cosine = [
        1e-2 / 25 + (1e-2 - 1e-2 / 25) * (1 - np.cos(np.pi * t / up)) / 2
        if t < up
        else 1e-2 / 1e5 + (1e-2 - 1e-2 / 1e5) * (1 + np.cos(np.pi * (t - up) / (1 - up))) / 2
        for t in steps
    ]
    np.testing.assert_allclose(learn.recorder.lrs, cosine, rtol=1e-6)


class EachEpoch(Callback):
    """Keeps the first weights of the body and of the heads, and their learning rates, at the end of each epoch."""

    def __init__(self):
        self.seen = []

    def after_epoch(self):
        first = [group[0].detach().clone() for group in self.learn.opt.param_lists]
        self.seen.append((*first, [h["lr"] for h in self.learn.opt.hypers]))


def test_fine_tune_trains_the_heads_first_then_the_body_at_a_hundredth(table):
    learn = learner(loaders(table), cbs=[EachEpoch()])
    body, heads = (next(part.parameters()).detach().clone() for part in (learn.model.body, learn.model.heads))
    learn.fine_tune(1, 1e-3)
    (frozen, trained, _), (thawed, _, lrs) = learn.each_epoch.seen
    assert torch.equal(frozen, body)
    assert not torch.equal(trained, heads)
    assert not torch.equal(thawed, body)
    assert lrs[1] == pytest.approx(100 * lrs[0])


def test_a_slice_gives_the_body_a_lower_rate(table):
    learn = learner(loaders(table))
    learn.unfreeze()
    learn.fit(1, slice(1e-5, 1e-3))
    assert [h["lr"] for h in learn.opt.hypers] == pytest.approx([1e-5, 1e-3])
    learn.fit(1, slice(1e-3))
    assert [h["lr"] for h in learn.opt.hypers] == pytest.approx([1e-4, 1e-3])


def test_other_schedules(table):
    learn = learner(loaders(table), plain_network())
    learn.fit_flat_cos(2, 1e-3)
    assert learn.recorder.lrs[:6] == pytest.approx([1e-3] * 6)
    assert learn.recorder.lrs[7] == pytest.approx(1e-8 + (1e-3 - 1e-8) / 2)  # half a cosine
    learn.fit_sgdr(2, 1, 1e-3)
    assert len(learn.recorder.values) == 3  # cycles of one and of two epochs
    assert learn.recorder.lrs[4] == pytest.approx(1e-3)  # the second starts anew


def test_accumulated_batches_are_one_big_batch(table):
    small, big = (learner(loaders(table, bs=bs), plain_network(), wd=0) for bs in (4, 8))
    small.fit(1, 1e-3, cbs=GradientAccumulation(8))  # fastai counts photos, not batches
    big.fit(1, 1e-3)
    assert len(small.recorder.lrs) == 2 * len(big.recorder.lrs)
    torch.testing.assert_close(weights(small), weights(big), atol=1e-6, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fastai's mixed precision then works on the GPU")
@pytest.mark.parametrize("precision", ["to_fp16", "to_bf16"])
def test_mixed_precision_changes_nothing_on_a_cpu(table, precision):
    plain, mixed = learner(loaders(table)), getattr(learner(loaders(table)), precision)()
    plain.fit(1, 1e-3)
    mixed.fit(1, 1e-3)
    assert torch.equal(weights(plain), weights(mixed))
    assert not torch.is_autocast_enabled("cpu")


def test_saved_weights_and_optimizer_continue_as_if_never_saved(table, tmp_path):
    learn = learner(loaders(table), plain_network(), path=tmp_path)
    learn.fit(1, 1e-3)
    learn.save("half")
    learn.fit(1, 1e-3)
    other = learner(loaders(table), plain_network(), path=tmp_path)
    other.dls.train.passes.next = 1
    other.load("half")
    other.fit(1, 1e-3)
    assert torch.equal(weights(learn), weights(other))


# fastai's callbacks


class Scripted(Callback):
    """Replaces the macro-F1 in the recorder, and keeps each epoch's weights."""

    order = 55

    def __init__(self, values):
        self.values, self.kept = values, []

    def after_epoch(self):
        self.learn.recorder.values[-1][2] = self.values[self.learn.epoch]
        self.kept.append(weights(self.learn))


def test_the_best_epoch_is_saved_and_loaded_at_the_end(table, tmp_path):
    learn = learner(loaders(table), path=tmp_path)
    scripted = Scripted([0.1, 0.4, 0.2])
    learn.fit(3, 1e-3, cbs=[scripted, SaveModelCallback(monitor="macro_f1")])
    assert torch.equal(weights(learn), scripted.kept[1])
    assert (tmp_path / "models" / "model.pth").is_file()


def test_it_stops_early_and_lowers_the_rate(table):
    learn = learner(loaders(table), plain_network())
    learn.fit(9, 1e-3, cbs=[Scripted([0.3, 0.1, 0.1]), EarlyStoppingCallback(monitor="macro_f1", patience=2)])
    assert len(learn.recorder.values) == 3
    learn.fit(3, 1e-3, cbs=[Scripted([0.3, 0.1, 0.1]), ReduceLROnPlateau(monitor="macro_f1", patience=1, factor=10)])
    assert learn.recorder.lrs[::4] == pytest.approx([1e-3, 1e-3, 1e-4])


def test_the_csv_logger_writes_what_was_recorded(table, tmp_path):
    learn = learner(loaders(table), path=tmp_path)
    learn.fit(2, 1e-3, cbs=CSVLogger())
    header, *rows = (tmp_path / "history.csv").read_text().splitlines()
    assert header.split(",")[:4] == ["epoch", "train_loss", "valid_loss", "macro_f1"]
    read = [[float(cell) for cell in row.split(",")[1:-1]] for row in rows]
    np.testing.assert_allclose(read, [list(values) for values in learn.recorder.values], rtol=1e-6)


class Mixed(Callback):
    """Keeps the labels of a mixed batch and its loss."""

    order, run_valid = 60, False

    def __init__(self):
        self.steps = []

    def after_loss(self):
        mixer = self.learn.mix_up if hasattr(self.learn, "mix_up") else self.learn.cut_mix
        made = (self.learn.pred, self.learn.y, mixer.yb1[0], mixer.lam, self.learn.loss)
        self.steps.append([t.detach().clone() for t in made])


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_mixing_mixes_the_losses_of_both_labels(table, mixer):
    holes = Table(
        table.frame.assign(age=["" if i % 2 else a for i, a in enumerate(table.frame["age"])]), table.heads, table.root
    )
    learn, seen = learner(loaders(holes, train=VALID), plain_network()), Mixed()
    learn.fit(1, 1e-3, cbs=[mixer(), seen])
    logits, y, other, lam, loss = seen.steps[0]
    assert (y != other).any()
    assert (y == -1).any()

    def each(codes):
        log_p = [part.log_softmax(-1) for part in table.heads.split(logits)]
        known = [p.gather(1, codes[:, [i]].clamp(min=0)).squeeze(1) for i, p in enumerate(log_p)]
        return sum(torch.where(codes[:, i] < 0, 0, -((1 - t.exp()) ** 2) * t) for i, t in enumerate(known))

    torch.testing.assert_close(loss, (lam * each(y) + (1 - lam) * each(other)).mean())
    assert isinstance(learn.loss_func, FocalLoss)
    assert learn.loss_func.reduction == "mean"


def test_mixing_is_a_function_of_the_step(table):
    def trained(noise):
        learn = learner(loaders(table), plain_network())
        torch.manual_seed(noise)
        learn.fit(1, 1e-3, cbs=MixUp())
        return weights(learn)

    assert torch.equal(trained(1), trained(2))


# predicting


def test_predictions_are_the_network_s_in_the_table_s_order(learn, probabilities):
    inputs, found, y, decoded, losses = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    heads = heads_of(learn.dls)
    torch.testing.assert_close(found, probabilities, atol=1e-5, rtol=0)
    assert torch.equal(torch.Tensor(inputs), photos_of(learn.dls.valid))
    assert y.tolist() == learn.dls.truth[::3].tolist()
    assert decoded.tolist() == heads.argmax(probabilities.numpy()).tolist()
    picked = [p.gather(1, y[:, [i]]).squeeze(1) for i, p in enumerate(heads.split(probabilities))]
    torch.testing.assert_close(losses, sum((1 - p) ** 2 * -p.log() for p in picked), atol=1e-4, rtol=0)


def test_training_photos_are_predicted_in_the_table_s_order(learn):
    _, y = learn.get_preds(ds_idx=0)
    assert y.tolist() == learn.dls.truth[np.arange(len(learn.dls.truth)) % 3 != 0].tolist()


def test_validate_gives_the_mean_of_the_photos_losses(learn):
    losses = learn.get_preds(with_loss=True)[2]
    assert learn.validate()[0] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_a_photo_is_predicted_from_a_path_an_image_and_an_array(learn, table, probabilities):
    path = table.photo(3)
    image = Image.open(path).convert("RGB")
    expected = probabilities[1]  # the second of every third
    for photo in (path, str(path), image, np.asarray(image)):
        names, codes, found = learn.predict(photo)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert tuple(names) == table.heads.decode(codes.tolist())
        assert codes.tolist() == table.heads.argmax(expected.numpy()).tolist()


@pytest.mark.parametrize(
    "array", [np.zeros((64, 32), np.uint8), np.zeros((64, 32, 3)), np.zeros((64, 32, 4), np.uint8)]
)
def test_an_array_that_is_no_photo_is_refused(learn, array):
    with pytest.raises(DataError, match=r"expected uint8 \(height, width, 3\), RGB"):
        learn.predict(array)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_new_photos(learn, table, probabilities, workers):
    paths = [table.photo(row) for row in (9, 0, 6)]
    found, y = learn.get_preds(dl=learn.dls.test_dl(paths, bs=2, num_workers=workers))
    torch.testing.assert_close(found, probabilities[[3, 0, 2]], atol=1e-5, rtol=0)
    assert y is None


def test_new_photos_have_no_results_and_no_photos_no_prediction(learn, table):
    with pytest.raises(UsageError, match="Photos without labels"):
        learn.show_results(dl=learn.dls.test_dl([table.photo(0)]))
    with pytest.raises(UsageError, match="This loader has no photos"):
        learn.get_preds(dl=learn.dls.valid.new(learn.dls.valid.dataset.new_empty()))


def test_tta_is_the_mean_of_augmented_passes_drawn_to_the_plain_one(table, learn, probabilities):
    learn.dls.valid.passes.next = 5
    found, y = learn.tta(n=2)
    dl = learn.dls.valid
    dl.passes.next = 5
    augmented = []
    with torch.no_grad(), dl.dataset.set_split_idx(0):
        for _ in range(2):
            parts = table.heads.split(learn.model(photos_of(dl)))
            augmented.append(torch.cat([part.softmax(-1) for part in parts], -1))
    assert not torch.allclose(augmented[0], augmented[1])
    mean = (augmented[0] + augmented[1]) / 2
    torch.testing.assert_close(found, 0.75 * mean + 0.25 * probabilities, atol=1e-5, rtol=0)
    assert y.tolist() == learn.dls.truth[::3].tolist()


def test_tta_of_other_transforms_is_refused(learn):
    with pytest.raises(UsageError, match="Without NormalizeBatch"):
        learn.tta(n=1, item_tfms=[lambda x: x])


def test_an_exported_learner_predicts_the_same(learn, table, probabilities):
    learn.export()
    loaded = load_learner(learn.path / "export.pkl")
    found, _ = loaded.get_preds(dl=loaded.dls.test_dl([table.photo(row) for row in range(0, len(table), 3)]))
    torch.testing.assert_close(found, probabilities, atol=1e-5, rtol=0)
    assert loaded.predict(table.photo(0))[0] == learn.predict(table.photo(0))[0]


@pytest.mark.parametrize(
    "name",
    ["randomness.Counted", "model.network.body_and_heads", "training.step.EMA"],
)
def test_learners_that_earlier_versions_exported_find_their_classes(name):
    module, _, attribute = name.rpartition(".")
    assert pickle.loads(f"cfastmask.{module}\n{attribute}\n.".encode()).__name__ == attribute


# looking


def titles():
    return [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]


def test_photos_are_shown_with_their_classes(learn, table):
    learn.dls.valid.show_batch(max_n=4)
    assert titles() == [" ".join(table.heads.decode(y)) for y in table.y[:12:3]]
    learn.dls.show_batch(max_n=4, unique=True)
    assert len(set(titles())) == 1
    drawn = [ax.images[0].get_array().sum() for ax in plt.gcf().axes]
    assert len(set(drawn)) > 1  # one photo, augmented in several ways


def test_results_are_shown_with_truth_and_prediction(learn, table, probabilities):
    learn.show_results(max_n=4, shuffle=False)
    guesses = table.heads.argmax(probabilities.numpy())
    expected = [
        tuple(" ".join(table.heads.decode(y)) for y in pair) for pair in zip(table.y[::3], guesses, strict=True)
    ]
    assert titles() == [f"{true}\n{guess}" for true, guess in expected[:4]]
    colors = [ax.title.get_color() for ax in plt.gcf().axes]
    assert colors == ["green" if true == guess else "red" for true, guess in expected[:4]]


def test_stock_interpretation_shows_the_worst_photos(learn, table):
    found = Interpretation.from_learner(learn)
    losses, rows = found.top_losses(2)
    found.plot_top_losses(2)
    assert [title.splitlines()[1] for title in titles()] == [" ".join(table.heads.decode(table.y[3 * r])) for r in rows]
    assert [float(title.splitlines()[2]) for title in titles()] == pytest.approx(losses.tolist(), abs=0.006)


def test_the_summary_and_the_loop_and_the_curve(learn, capsys):
    text = learn.summary()
    assert f"Total params: {sum(p.numel() for p in learn.model.parameters()):,}" in text
    learn.show_training_loop()
    assert "CountedSteps" in capsys.readouterr().out
    ax = learn.recorder.plot_loss(skip_start=0)
    assert ax.lines[0].get_ydata() == pytest.approx([float(loss) for loss in learn.recorder.losses])


# other heads


def with_heads(table, heads, **columns):
    return Table(table.frame.drop(columns=list(table.heads.names)).assign(**columns), Heads(heads), table.root)


def test_one_head(table, tmp_path):
    one = with_heads(table, [table.heads["mask"]], mask=table.frame["mask"])
    learn = learner(loaders(one), path=tmp_path)
    learn.fit_one_cycle(1, 1e-3)
    found, y, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert (found.shape, y.shape, decoded.shape) == ((16, 3), (16, 1), (16, 1))
    p = found.gather(1, y).squeeze(1)
    torch.testing.assert_close(losses, (1 - p) ** 2 * -p.log(), atol=1e-4, rtol=0)
    assert learn.predict(one.photo(0))[0][0] in one.heads["mask"].classes
    learn.show_results(max_n=2)


def test_seven_heads_with_unknown_labels(table):
    heads = [Head(f"h{i}", tuple("abcd"[: 2 + i % 3])) for i in range(7)]
    draw = np.random.default_rng(0)
    columns = {h.name: draw.choice(["", *h.classes], len(table)) for h in heads}
    columns["h6"] = np.where(np.arange(len(table)) % 3 == 0, "", columns["h6"])  # unknown in validation
    many = with_heads(table, heads, **columns)
    learn = learner(loaders(many))
    learn.fit_one_cycle(1, 1e-3)
    learn.tta(n=1)
    learn.show_results(max_n=2)
    found, y = learn.get_preds()
    assert y.tolist() == many.y[::3].tolist()
    assert all(torch.allclose(part.sum(-1), torch.ones(16)) for part in many.heads.split(found))
    known = (y[:, 0] >= 0).numpy()
    right = (many.heads.argmax(found.numpy()) == y.numpy())[known, 0]
    values = dict(zip(learn.recorder.metric_names[2:], learn.validate(), strict=False))
    assert values["h0_accuracy"] == pytest.approx(right.mean())
    assert np.isnan(values["h6_accuracy"])
    assert len(learn.predict(many.photo(0))[0]) == 7
