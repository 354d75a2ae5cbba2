import inspect
import io
import json
import shlex
import shutil
import signal

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastmask.api import Run, cross_validate
from fastmask.config import make_config
from fastmask.data.contest import read_contest
from fastmask.system.errors import DataError, UsageError
from fastmask.system.files import read_yaml, write_yaml
from fastmask.training import fold as fold_module
from fastmask.training.state import STATE, SaveEvery, StateSaver, _sum

# two batches of 21 an epoch, so that a step of three batches ends in another epoch
PENDING = {"bs": 21, "accumulate": 2, "epochs": 3}
BF16 = "bf16, a process, stopping early"
VARIANTS = {
    "plain": {},
    "a step across epochs": {**PENDING, "bs": 14, "ema": 0.9},
    "averaged": {"ema": 0.9, "sched": "onecycle", "drop_rate": 0.3, "top_k": 2, "on_nan": "skip"},
    "mixed, drawn, frozen, averaged at last": {
        "mixup": 0.4,
        "cutmix": 1.0,
        "half_cutmix": 0.5,
        "half_partner": "any",
        "sampler": "joint",
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
    BF16: {"precision": "bf16", "workers": 1, "patience": 1, "monitor": "valid_loss"},
}
NEEDS = {BF16: [pytest.mark.bf16, pytest.mark.semaphores]}
EACH_VARIANT = pytest.mark.parametrize("variant", [pytest.param(name, marks=NEEDS.get(name, [])) for name in VARIANTS])


class KilledError(BaseException):
    """The end of a process, as far as one can be had within it: nothing gets to save anything."""


class At(Callback):
    """Does something after a batch, counted from 1 over training and validation of a process."""

    order = StateSaver.order + 1
    batches = 0

    def __init__(self, number, what):
        self.number, self.what = number, what

    def after_batch(self):
        At.batches += 1
        if At.batches == self.number:
            self.what()


def files(run):
    """Every file of a run by its bytes, but those that say when and how long."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.name not in ("environment.json", "times.csv")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def kill():
    raise KilledError


def interrupt(number=signal.SIGINT):
    signal.raise_signal(number)


@pytest.fixture
def fit(contest, small_settings, monkeypatch):
    """Trains into a directory; `at` (batch, what) happens on the way. Gives back what was said."""

    def run(out, at=None, **settings):
        log = io.StringIO()
        At.batches = 0
        if at is not None:
            learner = fold_module.Plan.learner
            monkeypatch.setattr(
                fold_module.Plan, "learner", lambda plan, fold, cbs=(): learner(plan, fold, [*cbs, At(*at)])
            )
        try:
            cross_validate(read_contest(contest), out=out, log=log, **{**small_settings, **settings})
        finally:
            monkeypatch.undo()
        return log.getvalue()

    return run


@pytest.fixture(scope="module")
def whole(contest, small_settings, tmp_path_factory):
    """The files of each variant's run that nobody stopped."""
    made = {}

    def of(variant):
        if variant not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            settings = {**small_settings, **VARIANTS[variant]}
            cross_validate(read_contest(contest), out=out, log=io.StringIO(), **settings)
            made[variant] = files(out)
        return made[variant]

    return of


@EACH_VARIANT
@pytest.mark.parametrize("batch", [1, 6, 11])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(fit, whole, tmp_path, variant, batch):
    settings = VARIANTS[variant]
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(batch, kill), save_every="1", **settings)
    # once more, before it gets to where it was
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(1, kill), resume=True, **settings)
    fit(tmp_path / "run", resume=True, save_every="3", **settings)
    expected = dict(whole(variant))
    expected["config.yaml"] = expected["config.yaml"].replace(b"save_every: 60s", b"save_every: '1'")
    assert files(tmp_path / "run") == expected


@pytest.mark.parametrize("batch", range(14, 21))
def test_an_average_counts_an_epoch_once_wherever_it_was_interrupted(fit, whole, tmp_path, batch):
    """Batches 14 to 20 are the validation of the first epoch that is averaged, and the training of the second."""
    variant = "mixed, drawn, frozen, averaged at last"
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", at=(batch, interrupt), **VARIANTS[variant])
    fit(tmp_path / "run", resume=True, **VARIANTS[variant])
    assert files(tmp_path / "run") == whole(variant)


@EACH_VARIANT
@pytest.mark.parametrize(("batch", "number"), [(1, signal.SIGINT), (5, signal.SIGTERM), (8, signal.SIGHUP)])
def test_an_interruption_saves_the_step_and_says_how_to_go_on(fit, whole, tmp_path, variant, batch, number):
    out, settings = tmp_path / "my run", VARIANTS[variant]
    with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
        # a state of the clock's would come after a minute
        fit(out, at=(batch, lambda: interrupt(number)), **settings)
    assert end.type is KeyboardInterrupt if number == signal.SIGINT else end.value.code == 128 + number
    assert (out / "fold0" / STATE).is_file() or (out / "fold1" / STATE).is_file()
    said = fit(out, resume=True, **settings)
    assert "goes on in epoch" in said
    assert files(out) == whole(variant)


def test_an_interruption_names_the_line_to_type(contest, small_settings, fit, tmp_path):
    log = io.StringIO()
    saver = StateSaver.after_batch
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StateSaver, "after_batch", lambda self: (interrupt(), saver(self)))
        cross_validate(read_contest(contest), out=tmp_path / "my run", log=log, **small_settings)
    assert log.getvalue().splitlines()[-1] == (
        f"Interrupted. To go on: fastmask fit --resume --out {shlex.quote(str(tmp_path / 'my run'))}"
    )


def test_a_second_interruption_ends_at_once(fit, tmp_path):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", at=(1, twice))
    assert not (tmp_path / "run" / "fold0" / STATE).exists()


def test_a_fold_that_ends_while_it_is_interrupted_is_kept(fit, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(At, "after_fit", lambda self: self.what(), raising=False)
        fit(tmp_path / "run", at=(-1, interrupt))
    assert Run.load(tmp_path / "run").trained_folds == [0]
    assert not (tmp_path / "run" / "fold0" / STATE).exists()
    fit(tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole("plain")


def test_a_finished_fold_is_never_touched_again(fit, tmp_path):
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(13, kill))
    assert Run.load(tmp_path / "run").trained_folds == [0]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "fold0").iterdir()}
    fit(tmp_path / "run", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "fold0").iterdir()} == before


def test_resuming_a_run_that_has_ended_changes_nothing(run_copy, fit):
    before = files(run_copy)
    fit(run_copy, resume=True)
    assert files(run_copy) == before


def test_the_settings_of_the_run_are_taken_over(contest, fit, tmp_path):
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(6, kill), save_every="1", lr=0.01, epochs=3)
    cross_validate(read_contest(contest), out=tmp_path / "run", resume=True, log=io.StringIO())
    run = Run.load(tmp_path / "run")
    assert (run.config.lr, run.config.epochs, len(run.history(0))) == (0.01, 3, 3)
    with pytest.raises(UsageError, match=r"was started with lr 0\.01, now it is 0\.1"):
        cross_validate(read_contest(contest), out=tmp_path / "run", resume=True, lr=0.1)


@pytest.mark.parametrize("steps", [1, 2])
def test_states_are_saved_as_often_as_asked(contest, small_settings, tmp_path, monkeypatch, steps):
    """Two batches of 16 photos an epoch, and two folds of two epochs: a state at the end of each first epoch."""
    places = []
    save = StateSaver.save
    monkeypatch.setattr(
        StateSaver, "save", lambda self, epoch, step: (places.append((epoch, step)), save(self, epoch, step))
    )
    cross_validate(
        read_contest(contest), out=tmp_path / "run", log=io.StringIO(), save_every=str(steps), **small_settings
    )
    within = [(epoch, step) for epoch in (0, 1) for step in (1, 2) if step % steps == 0]
    assert places == sorted([*within, (1, 0)]) * 2


def test_no_state_is_saved_in_the_middle_of_a_step(contest, small_settings, tmp_path, monkeypatch):
    """Four batches an epoch, three a step: what the gradients of a step would need is kept at an epoch's end only."""
    places, pending = [], []
    save = StateSaver.save

    def saving(self, epoch, step):
        places.append((epoch, step))
        pending.append(self.learn.accumulation.count)
        save(self, epoch, step)

    monkeypatch.setattr(StateSaver, "save", saving)
    settings = {**small_settings, "bs": 10, "accumulate": 3, "save_every": "1", "epochs": 3}
    cross_validate(read_contest(contest), out=tmp_path / "run", log=io.StringIO(), fold=[0], **settings)
    assert places == [(0, 3), (1, 0), (1, 2), (2, 0), (2, 1), (2, 4)]
    assert pending == [0, 10, 0, 20, 0, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500", SaveEvery(steps=500)),
        ("90s", SaveEvery(seconds=90)),
        ("5m", SaveEvery(seconds=300)),
    ],
)
def test_how_often_is_steps_or_time(text, expected):
    assert SaveEvery.parse(make_config({"save_every": text}).save_every) == expected


@pytest.mark.parametrize("text", ["0", "-5", "1h", "s", "1.5s", "", "ten", "0s"])
def test_how_often_is_nothing_else(text):
    with pytest.raises(UsageError, match="save_every: expected steps, or time such as 90s or 5m"):
        make_config({"save_every": text})


def test_saving_by_the_clock_takes_a_hundredth_of_the_time(monkeypatch):
    """A save of two seconds is followed by two hundred without one, whatever shorter time was asked for."""
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


class TestAState:
    """What a state's file may be where it is not one to go on from."""

    @pytest.fixture
    def stopped(self, fit, tmp_path):
        with pytest.raises(KilledError):
            fit(tmp_path / "run", at=(1, kill), save_every="1")
        return tmp_path / "run"

    def refused(self, fit, stopped, why):
        before = files(stopped)
        with pytest.raises(DataError, match=f"{STATE} is not a state that this fold can go on from \\(.*{why}"):
            fit(stopped, resume=True)
        assert files(stopped) == before

    def change(self, stopped, tensors=None, **plain):
        file = stopped / "fold0" / STATE
        with safe_open(file, framework="pt") as opened:
            state = {**json.loads(opened.metadata()["state"])["state"], **plain}
        tensors = {**load_file(file), **(tensors or {})}
        save_file(tensors, file, {"state": json.dumps({"sum": _sum(state, tensors), "state": state})})

    def test_another_fold_s(self, fit, stopped):
        self.change(stopped, fold=1)
        self.refused(fit, stopped, "it is of another fold")

    def test_other_photos(self, fit, stopped):
        self.change(stopped, photos="0" * 64)
        self.refused(fit, stopped, "it is of another photos")

    def test_of_a_later_version(self, fit, stopped):
        self.change(stopped, format=2)
        self.refused(fit, stopped, "it is of another format")

    def test_beyond_the_end(self, fit, stopped):
        self.change(stopped, epoch=7)
        self.refused(fit, stopped, "it stands at step 1 of epoch 7")

    @pytest.mark.parametrize("name", ["network.heads.0.weight", "optimizer.state.0.exp_avg"])
    def test_of_another_network(self, fit, stopped, name):
        tensors = load_file(stopped / "fold0" / STATE)
        self.change(stopped, {f".{name}": torch.zeros(2, *tensors[f".{name}"].shape)})
        self.refused(fit, stopped, "size mismatch" if "network" in name else "an average is")

    def test_with_a_bit_that_the_disk_has_changed(self, fit, stopped):
        file = stopped / "fold0" / STATE
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
        self.refused(fit, stopped, "it is damaged")

    def test_cut_short(self, fit, stopped):
        file = stopped / "fold0" / STATE
        file.write_bytes(file.read_bytes()[:-1000])
        self.refused(fit, stopped, "")

    def test_without_what_is_not_a_tensor(self, fit, stopped):
        save_file({"a": torch.zeros(1)}, stopped / "fold0" / STATE)
        self.refused(fit, stopped, "'state'")


def test_what_came_after_the_state_is_made_anew(fit, whole, tmp_path):
    """Five batches an epoch: files of later epochs than the state's are none of its business."""
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(6, kill))
    folder = tmp_path / "run" / "fold0"
    shutil.copytree(folder, tmp_path / "then")
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(10, kill), resume=True)
    shutil.copy(tmp_path / "then" / STATE, folder)
    shutil.copy(tmp_path / "then" / "epoch000.safetensors", folder)
    (folder / "done.json").unlink(missing_ok=True)
    shutil.copy(next(folder.glob("epoch*")), folder / "epoch007.safetensors")
    shutil.copy(folder / "oof-000.safetensors", folder / "oof-007.safetensors")
    fit(tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole("plain")


def test_a_checkpoint_goes_only_when_no_state_names_it(fit, whole, tmp_path, monkeypatch):
    """Killed between the last epoch and the end of the fold: the state is of an epoch earlier, and needs its best."""

    def killed(*_, **__):
        raise KilledError

    monkeypatch.setattr(fold_module, "write_json", killed)
    with pytest.raises(KilledError):
        fit(tmp_path / "run")
    folder = tmp_path / "run" / "fold0"
    named = json.loads(safe_open(folder / STATE, "pt").metadata()["state"])["state"]["callbacks"]["checkpoint"]["kept"]
    assert [(folder / f"epoch{epoch:03d}.safetensors").is_file() for _, epoch in named] == [True] * len(named)
    monkeypatch.undo()
    fit(tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole("plain")


@pytest.mark.parametrize("outdone", [0, 1])
def test_a_fold_that_ended_keeps_its_best_alone(run_copy, fit, outdone):
    """Killed just after its end: what better epochs had outdone is still there."""
    folder, before = run_copy / f"fold{outdone}", files(run_copy)
    (kept,) = folder.glob("epoch*.safetensors")
    shutil.copy(
        kept, folder / ("epoch001.safetensors" if kept.name == "epoch000.safetensors" else "epoch000.safetensors")
    )
    (folder / STATE).write_bytes(b"left")
    fit(run_copy, resume=True)
    assert files(run_copy) == before


def test_a_state_of_other_settings_is_refused(fit, tmp_path):
    for name, lr in (("one", 1e-3), ("other", 1e-5)):
        with pytest.raises(KilledError):
            fit(tmp_path / name, at=(6, kill), lr=lr)
    shutil.copy(tmp_path / "one" / "fold0" / STATE, tmp_path / "other" / "fold0" / STATE)
    with pytest.raises(DataError, match="it is of another run"):
        fit(tmp_path / "other", resume=True, lr=1e-5)


def test_so_many_threads_that_torch_would_fall_are_not_taken_over(fit, tmp_path):
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(5, kill))
    file = tmp_path / "run" / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "threads": 200_000}))
    assert "threads:" not in fit(tmp_path / "run", resume=True)


def test_other_threads_are_the_run_s_again(fit, tmp_path):
    with pytest.raises(KilledError):
        fit(tmp_path / "run", at=(5, kill))
    file = tmp_path / "run" / "environment.json"
    environment = json.loads(file.read_text())
    before = torch.get_num_threads()
    file.write_text(json.dumps({**environment, "threads": before + 1, "packages": {}}))
    seen = []
    said = fit(tmp_path / "run", at=(1, lambda: seen.append(torch.get_num_threads())), resume=True)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
    assert f"Torch's threads: {before + 1}, as" in said
    assert "Other packages than when" in said


def test_a_run_of_before_there_were_states_is_gone_on_with(run_copy, fit):
    """Its configuration lacks what came later, and its unfinished fold has no state."""
    expected = files(run_copy)
    config = read_yaml(run_copy / "config.yaml")
    write_yaml(run_copy / "config.yaml", {k: v for k, v in config.items() if k not in ("save_every", "on_nan")})
    (run_copy / "fold1" / "done.json").unlink()
    fit(run_copy, resume=True)
    assert {k: v for k, v in files(run_copy).items() if k != "config.yaml"} == {
        k: v for k, v in expected.items() if k != "config.yaml"
    }


def test_fastai_s_loop_is_as_we_know_it():
    """The one private method that is overridden: when fastai changes it, this tells to look at ours."""
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


def test_a_pass_begins_where_it_is_told(contest, small_settings):
    from fastmask.data.folds import assign_folds
    from fastmask.data.loaders import dataloaders

    table = read_contest(contest)
    for workers in (0, 2):
        dls = dataloaders(table, 0, assign_folds(table, 2), bs=8, num_workers=workers, device="cpu")
        whole = [(x.numpy().copy(), y.numpy().copy()) for x, y in dls.train]
        order = dls.train.order
        dls.train.passes.next = 0
        rest = [(x.numpy().copy(), y.numpy().copy()) for x, y in dls.train.beginning(3)]
        assert len(rest) == len(whole) - 3
        assert dls.train.order == order
        for one, other in zip(whole[3:], rest, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
        assert len(list(dls.train)) == len(whole)
        dls.train.passes.next = 0
        assert list(dls.train.beginning(len(whole))) == []
