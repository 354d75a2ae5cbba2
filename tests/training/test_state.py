import inspect
import io
import json
import shlex
import shutil
import signal
from itertools import product

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from run_files import bytes_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_learners import AtBatch, KilledError, interrupt, kill

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.folds import assign_folds
from fastmask.data.loaders import dataloaders
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_yaml, write_yaml
from fastmask.training import fold as fold_module
from fastmask.training.state import STATE, SaveEvery, StateSaver, _checksum

SWA = "mixed, balanced, frozen, averaged by SWA"
PLATEAU = "SAM of SGD on a plateau"
OWN, ROUTED = "heads of their own", "a routed head, by Adan with rates that decay"
AUG, FEATURES = "augmented", "a loss on features"
RARE = "every second epoch validated"
BF16 = "bf16, a loading process, early stopping"
VARIANTS = {
    "plain": {},
    # two steps per epoch, of which two parts of three are computed twice
    "steps of three batches": {"bs": 7, "accumulate": 3, "epochs": 3, "ema": 0.9, "drop_rate": 0.3},
    "averaged": {"ema": 0.9, "sched": "onecycle", "drop_rate": 0.3, "top_k": 2, "on_nan": "skip"},
    SWA: {
        "mixup": 0.4,
        "cutmix": 1.0,
        "half_cutmix": 0.5,
        "half_partner": "any",
        "mix_classes": ["age.<30", "mask.none"],
        "mix_partner": "gender.female",
        "sampler": "joint",
        "per_person": {"mask.wear": 4},
        "draw_weights": {"mask.incorrect": 3},
        "freeze": 2,
        "unfreeze": 2,
        "layer_decay": 0.7,
        "swa": 0.4,
        "epochs": 4,
        "class_weight": "auto",
        "f1_share": 0.5,
        "label_smoothing": 0.1,
        "drop": {"age": [[27, 29]]},
    },
    PLATEAU: {
        "opt": "sgd",
        "lr": 1e-9,
        "sched": "plateau",
        "plateau_patience": 0,
        "warmup": 0.2,
        "sam": 0.05,
        "clip": 1.0,
        "epochs": 3,
        "drop_rate": 0.3,
    },
    OWN: {
        "loss": "ce",
        "per_head": {
            "mask": {"loss": "focal", "gamma": 1, "hidden": 8, "drop_rate": 0.3},
            "gender": {"f1_share": 0.5, "label_smoothing": 0.1, "pool": "avgmax"},
            "age": {"loss": "coral", "hidden": 8, "pool": "gem"},
        },
        "mixup": 0.4,
    },
    ROUTED: {
        "per_head": {"age": {"loss": "cumulative", "router": "gender", "hidden": 8}, "mask": {"router": "age"}},
        "opt": "adan",
        "opt_args": {"betas": [0.9, 0.92, 0.99]},
        "sched": "onecycle",
        "layer_decay": 0.7,
        "drop_rate": 0.2,
        "accumulate": 2,
        "bs": 8,
        "ema": 0.9,
    },
    FEATURES: {
        "feature_loss": "arcface",
        "feature_args": {"centres": 2},
        "feature_weight": 0.5,
        "sam": 0.05,
        "layer_decay": 0.7,
        "accumulate": 2,
        "bs": 8,
        "ema": 0.9,
    },
    RARE: {"validate_every": 2, "epochs": 3, "ema": 0.9, "drop_rate": 0.3},
    # random by torch's, NumPy's and Python's global generators
    AUG: {
        "train_pipeline": None,
        "valid_pipeline": None,
        "resize": [64, 32],
        "augment": "random-resized-crop,randaugment,rand-m9-mstd0.5,grid-dropout",
        "progressive": 0.5,
    },
    BF16: {"precision": "bf16", "workers": 1, "patience": 1, "monitor": "valid_loss"},
}
NEEDS = {BF16: [pytest.mark.bf16, pytest.mark.semaphores, pytest.mark.slow]}


def cases(*values, slow=()):
    """Parameters of a test, those of the first of which a variant needs something, and the `slow` ones, marked."""
    marked = [pytest.param(*each, marks=NEEDS.get(each[0], [])) for each in values]
    return marked + [pytest.param(*each, marks=[*NEEDS.get(each[0], []), pytest.mark.slow]) for each in slow]


@pytest.fixture
def fit(train):
    """Trains into a directory; `at` (batch, action) happens on the way. Returns what was logged."""

    def run(out, at=None, **settings):
        log = io.StringIO()
        train(out, cbs=[] if at is None else [AtBatch(*at)], log=log, **settings)
        return log.getvalue()

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The files of each variant's run that was not interrupted, of its first fold or of both."""
    made = {}

    def of(variant, **fold):
        key = variant, *fold
        if key not in made:
            made[key] = bytes_of(train(tmp_path_factory.mktemp("whole") / "run", **VARIANTS[variant], **fold).path)
        return made[key]

    return of


FAST = [
    ("plain", 6),
    ("averaged", 4),
    (SWA, 6),
    (PLATEAU, 11),
    (ROUTED, 4),
    # of two batches in the first epoch, which is not validated: after it
    (RARE, 3),
]


# of five batches, two of them of training, in each of two epochs of each fold
@pytest.mark.parametrize(
    ("variant", "batch"),
    cases(*FAST, slow=[each for each in [*product(VARIANTS, (1, 6, 11)), (RARE, 2)] if each not in FAST]),
)
def test_a_killed_run_resumes_to_the_same_bytes(fit, whole, tmp_path, variant, batch):
    fold = {} if batch == 11 else {"fold": [0]}
    settings = {**VARIANTS[variant], **fold}
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(batch, kill), save_every="1", **settings)
    # killed again before it reaches the same batch
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(1, kill), resume=True, **settings)
    fit(tmp_path / "run", resume=True, save_every="3", **settings)
    expected = dict(whole(variant, **fold))
    expected["config.yaml"] = expected["config.yaml"].replace(b"save_every: 60s", b"save_every: '1'")
    assert bytes_of(tmp_path / "run") == expected


# 14 and 15 are in the validation of the first epoch that is averaged, 16 to 20 are the second
@pytest.mark.parametrize("batch", [14, *(pytest.param(n, marks=pytest.mark.slow) for n in (15, 16, 17, 18, 19, 20))])
def test_swa_counts_an_epoch_once_wherever_it_was_interrupted(fit, whole, tmp_path, batch):
    settings = {**VARIANTS[SWA], "fold": [0]}
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", at=(batch, interrupt), **settings)
    fit(tmp_path / "run", resume=True, **settings)
    assert bytes_of(tmp_path / "run") == whole(SWA, fold=[0])


@pytest.mark.parametrize(
    ("variant", "batch", "number"),
    cases(
        *(("plain", 1, signal.SIGINT), ("averaged", 5, signal.SIGTERM), ("steps of three batches", 8, signal.SIGHUP)),
        slow=[("steps of three batches", 1, signal.SIGINT), ("plain", 8, signal.SIGHUP), (BF16, 5, signal.SIGTERM)],
    ),
)
def test_an_interruption_saves_the_step(fit, whole, tmp_path, variant, batch, number):
    out, settings = tmp_path / "my run", {**VARIANTS[variant], "fold": [0]}
    with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
        # by the clock, a state would be saved only after a minute
        fit(out, at=(batch, lambda: interrupt(number)), **settings)
    assert end.type is KeyboardInterrupt if number == signal.SIGINT else end.value.code == 128 + number
    assert (out / "fold0" / STATE).is_file()
    assert "resumes in epoch" in fit(out, resume=True, **settings)
    assert bytes_of(out) == whole(variant, fold=[0])


def test_an_interruption_prints_the_command_that_resumes(fit, tmp_path, train):
    log = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "my run", cbs=[AtBatch(1, interrupt)], log=log)
    assert log.getvalue().splitlines()[-1] == (
        f"Interrupted. To resume: fastmask fit --resume --out {shlex.quote(str(tmp_path / 'my run'))}"
    )


def test_a_second_interruption_ends_at_once(fit, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", at=(1, lambda: [interrupt(), interrupt()]))
    assert not (tmp_path / "run" / "fold0" / STATE).exists()


@pytest.mark.slow
def test_a_fold_that_ends_while_it_is_interrupted_is_kept(fit, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(AtBatch, "after_fit", lambda self: self.action(), raising=False)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", at=(-1, interrupt))
    assert Run.load(tmp_path / "run").trained_folds == [0]
    assert not (tmp_path / "run" / "fold0" / STATE).exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "fold0").iterdir()}
    fit(tmp_path / "run", resume=True)
    assert bytes_of(tmp_path / "run") == whole("plain")
    # a finished fold is not touched again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "fold0").iterdir()} == before


def test_resuming_a_finished_run_changes_nothing(run_copy, fit):
    before = bytes_of(run_copy)
    fit(run_copy, resume=True)
    assert bytes_of(run_copy) == before


def test_resuming_takes_the_settings_of_the_run(fit, table, tmp_path):
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(6, kill), save_every="1", lr=0.01, epochs=3)
    cross_validate(table, out=tmp_path / "run", resume=True, fold=[0], log=io.StringIO())
    run = Run.load(tmp_path / "run")
    assert (run.config.lr, run.config.epochs, len(run.history(0))) == (0.01, 3, 3)
    with pytest.raises(UsageError, match=r"was started with lr 0\.01, now it is 0\.1"):
        cross_validate(table, out=tmp_path / "run", resume=True, lr=0.1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # two batches an epoch: a state at the end of the first epoch
        ({"save_every": "1"}, [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        ({"save_every": "2"}, [(0, 2), (1, 0), (1, 2)]),
        # of two batches each
        ({"save_every": "2", "bs": 5, "accumulate": 2}, [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]),
    ],
)
def test_states_are_saved_as_often_as_asked(train, tmp_path, monkeypatch, settings, expected):
    places = []
    save = StateSaver.save

    def saving(self, epoch, step):
        places.append((epoch, step))
        save(self, epoch, step)

    monkeypatch.setattr(StateSaver, "save", saving)
    train(tmp_path / "run", fold=[0], **settings)
    assert places == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500", SaveEvery(steps=500)), ("90s", SaveEvery(seconds=90)), ("5m", SaveEvery(seconds=300))],
)
def test_save_every_is_steps_or_time(text, expected):
    assert SaveEvery.parse(make_config({"save_every": text}).save_every) == expected


@pytest.mark.parametrize("text", ["0", "-5", "1h", "s", "1.5s", "", "ten", "0s"])
def test_save_every_is_nothing_else(text):
    with pytest.raises(UsageError, match=r"save_every: found .*, expected steps \(500\) or time \(90s, 5m\)"):
        make_config({"save_every": text})


def test_saving_by_the_clock_takes_a_hundredth_of_the_time(monkeypatch):
    """A save of two seconds is followed by two hundred without one, even if a shorter time was asked for."""
    now = [1000.0]
    monkeypatch.setattr("fastmask.training.state.time.monotonic", lambda: now[0])
    saver = StateSaver(None, {}, SaveEvery(seconds=60), lambda: None)
    saver.learn = type("Quiet", (), {})()
    saver._last, saver._cost = now[0], 2.0
    due = []
    for seconds in range(0, 260, 20):
        now[0] = 1000.0 + seconds
        due.append(saver._is_due(1))
    assert due == [seconds >= 200 for seconds in range(0, 260, 20)]


@pytest.fixture(scope="module")
def killed(train, tmp_path_factory):
    out = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(KilledError):
        train(out, cbs=[AtBatch(1, kill)], save_every="1")
    return out


class TestInvalidState:
    """A state file that cannot be resumed from."""

    @pytest.fixture
    def stopped(self, killed, tmp_path):
        return shutil.copytree(killed, tmp_path / "run")

    def refused(self, fit, stopped, why):
        before = bytes_of(stopped)
        with pytest.raises(DataError, match=f"{STATE} is not a state that this fold can resume from \\(.*{why}"):
            fit(stopped, resume=True)
        assert bytes_of(stopped) == before

    def change(self, stopped, tensors=None, **plain):
        file = stopped / "fold0" / STATE
        with safe_open(file, framework="pt") as opened:
            state = {**json.loads(opened.metadata()["state"])["state"], **plain}
        tensors = {**load_file(file), **(tensors or {})}
        save_file(tensors, file, {"state": json.dumps({"sum": _checksum(state, tensors), "state": state})})

    @pytest.mark.parametrize(
        ("values", "why"),
        [
            ({"fold": 1}, "it belongs to another fold"),
            ({"photos": "0" * 64}, "it belongs to another photos"),
            ({"run": "0" * 64}, "it belongs to another run"),
            ({"format": 1}, "it belongs to another format"),
            ({"epoch": 7}, "it is at step 1 of epoch 7"),
            ({"callbacks": {"accumulation": {"count": 0}}}, "an earlier version saved it, which counted the batches"),
        ],
    )
    def test_of_something_else(self, fit, stopped, values, why):
        self.change(stopped, **values)
        self.refused(fit, stopped, why)

    def test_of_other_settings(self, fit, killed, tmp_path):
        other = tmp_path / "other"
        with pytest.raises(KilledError):
            fit(other, at=(1, kill), lr=1e-5)
        shutil.copy(killed / "fold0" / STATE, other / "fold0" / STATE)
        with pytest.raises(DataError, match="it belongs to another run"):
            fit(other, resume=True, lr=1e-5)

    @pytest.mark.parametrize("name", ["network.heads.0.weight", "optimizer.state.0.exp_avg.(tensor)"])
    def test_of_another_network(self, fit, stopped, name):
        tensors = load_file(stopped / "fold0" / STATE)
        self.change(stopped, {f".{name}": torch.zeros(2, *tensors[f".{name}"].shape)})
        self.refused(fit, stopped, "size mismatch" if "network" in name else "a tensor of the optimizer is")

    def test_with_a_flipped_bit(self, fit, stopped):
        file = stopped / "fold0" / STATE
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
        self.refused(fit, stopped, "it is damaged")

    def test_that_is_truncated(self, fit, stopped):
        file = stopped / "fold0" / STATE
        file.write_bytes(file.read_bytes()[:-1000])
        self.refused(fit, stopped, "")

    def test_without_metadata(self, fit, stopped):
        save_file({"a": torch.zeros(1)}, stopped / "fold0" / STATE)
        self.refused(fit, stopped, "'state'")


def test_files_of_epochs_after_the_state_are_removed(fit, whole, tmp_path):
    """Five batches per epoch."""
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(6, kill), fold=[0])
    folder = tmp_path / "run" / "fold0"
    shutil.copytree(folder, tmp_path / "then")
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(5, kill), resume=True, fold=[0])
    shutil.copy(tmp_path / "then" / STATE, folder)
    shutil.copy(tmp_path / "then" / "epoch000.safetensors", folder)
    shutil.copy(folder / "epoch000.safetensors", folder / "epoch007.safetensors")
    shutil.copy(folder / "oof-000.safetensors", folder / "oof-007.safetensors")
    fit(tmp_path / "run", resume=True, fold=[0])
    assert bytes_of(tmp_path / "run") == whole("plain", fold=[0])


def test_a_checkpoint_is_removed_only_when_no_state_names_it(fit, whole, tmp_path, monkeypatch):
    """Killed between the last epoch and the end of the fold: the state is of an epoch earlier, and needs its best."""
    monkeypatch.setattr(fold_module, "write_json", lambda *_, **__: kill())
    with pytest.raises(KilledError):
        fit(tmp_path / "run", fold=[0])
    folder = tmp_path / "run" / "fold0"
    named = json.loads(safe_open(folder / STATE, "pt").metadata()["state"])["state"]["callbacks"]["checkpoint"]["kept"]
    assert [(folder / f"epoch{epoch:03d}.safetensors").is_file() for _, epoch in named] == [True] * len(named)
    monkeypatch.undo()
    fit(tmp_path / "run", resume=True, fold=[0])
    assert bytes_of(tmp_path / "run") == whole("plain", fold=[0])


@pytest.mark.parametrize("outdone", [0, 1])
def test_a_finished_fold_keeps_only_its_best(run_copy, fit, outdone):
    """Killed just after its end: the checkpoints of worse epochs are still there."""
    folder, before = run_copy / f"fold{outdone}", bytes_of(run_copy)
    (kept,) = folder.glob("epoch*.safetensors")
    shutil.copy(
        kept, folder / ("epoch001.safetensors" if kept.name == "epoch000.safetensors" else "epoch000.safetensors")
    )
    (folder / STATE).write_bytes(b"left")
    fit(run_copy, resume=True)
    assert bytes_of(run_copy) == before


@pytest.fixture
def with_threads(run_copy):
    """A run whose second fold is not trained, with another number of threads and other packages."""
    (run_copy / "fold1" / "done.json").unlink()

    def change(**environment):
        file = run_copy / "environment.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **environment}))
        return run_copy

    return change


def test_a_run_keeps_the_threads_that_it_is_given(train, tmp_path):
    before, seen = torch.get_num_threads(), []
    with pytest.raises(KilledError):
        train(tmp_path, cbs=[AtBatch(1, lambda: [seen.append(torch.get_num_threads()), kill()])], threads=before + 1)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
    assert json.loads((tmp_path / "environment.json").read_text())["threads"] == before + 1


def test_a_number_of_threads_that_would_crash_torch_is_ignored(fit, with_threads):
    assert "threads:" not in fit(with_threads(threads=200_000), resume=True)


def test_resuming_uses_the_threads_of_the_run(train, with_threads):
    before, seen, log = torch.get_num_threads(), [], io.StringIO()
    run = with_threads(threads=before + 1, packages={})
    with pytest.raises(KilledError):
        train(run, cbs=[AtBatch(1, lambda: [seen.append(torch.get_num_threads()), kill()])], log=log, resume=True)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
    assert f"Torch's threads: {before + 1}, as" in log.getvalue()
    assert "Other packages than when" in log.getvalue()


def test_a_run_from_before_there_were_states_can_be_resumed(run_copy, fit):
    """Its configuration lacks later settings, and its unfinished fold has no state."""
    expected = bytes_of(run_copy)
    config = read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {k: v for k, v in config.items() if k not in ("save_every", "on_nan")})
    (run_copy / "fold1" / "done.json").unlink()
    fit(run_copy, resume=True)
    assert {k: v for k, v in bytes_of(run_copy).items() if k != "config.yaml"} == {
        k: v for k, v in expected.items() if k != "config.yaml"
    }


def test_fastai_s_loop_has_not_changed():
    """ResumableLearner overrides these two methods: if fastai changes them, ours has to follow."""
    assert inspect.getsource(Learner._do_fit) == (
        "    def _do_fit(self):\n"
        "        for epoch in range(self.n_epoch):\n"
        "            self.epoch=epoch\n"
        "            self._with_events(self._do_epoch, 'epoch', CancelEpochException)\n"
    )
    assert inspect.getsource(Learner.all_batches) == (
        "    def all_batches(self):\n"
        "        self.n_iter = len(self.dl)\n"
        "        for o in enumerate(self.dl): self.one_batch(*o)\n"
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.semaphores, pytest.mark.slow])])
def test_a_pass_can_begin_at_a_batch(table, workers):
    dls = dataloaders(table, 0, assign_folds(table, 2), bs=8, num_workers=workers, device="cpu")
    whole = [(x.numpy().copy(), y.numpy().copy()) for x, y in dls.train]
    order = dls.train.order
    dls.train.passes.next = 0
    rest = [(x.numpy().copy(), y.numpy().copy()) for x, y in dls.train.start_at(3)]
    assert len(rest) == len(whole) - 3
    assert dls.train.order == order
    for one, other in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    assert len(list(dls.train)) == len(whole)
    dls.train.passes.next = 0
    assert list(dls.train.start_at(len(whole))) == []
