import io
import shlex
import shutil
import sys
import threading
from contextlib import suppress
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from fastai.callback.core import Callback
from small_learners import AtBatch, KilledError, kill
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmask.api import Run, merge_runs
from fastmask.commands.main import main
from fastmask.config import make_config
from fastmask.run.directory import check_free
from fastmask.system.errors import UsageError
from fastmask.training.progress import trackers as trackers_module
from fastmask.training.progress.trackers import FoldInfo, Trackers, check_trackers
from fastmask.training.resume import spell_resume

# per epoch of `small_settings`
STEPS = 2


class Losses(Callback):
    """Keeps the losses of the training steps of each fold."""

    def __init__(self):
        self.folds = []

    def before_fit(self):
        self.folds.append([])

    def after_batch(self):
        if self.training:
            self.folds[-1].append(self.learn.loss.item())


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def fit(train):
    """Trains into a directory, until a step; returns the log and the losses of the steps of each fold."""

    def run(out, until=None, action=kill, **settings):
        log, losses = io.StringIO(), Losses()
        ends = [] if until is None else [AtBatch(until, action, validation=False)]
        with suppress(KilledError):
            train(out, cbs=[losses, *ends], log=log, **settings)
        return log.getvalue(), losses.folds

    return run


def scalars(folder):
    """{tag: {step: value}} of event files, as TensorBoard itself reads them; each step once."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(dict(pairs)) == len(pairs) for pairs in found.values())
    return {tag: dict(pairs) for tag, pairs in found.items()}


def check_events(run, fold, losses=None):
    found, history = scalars(run.fold_path(fold) / "tensorboard"), run.history(fold)
    assert found["epoch"] == {STEPS * (epoch + 1): epoch for epoch in history["epoch"]}
    check_values(history, found)
    if losses is not None:
        assert list(found["step/loss"].values()) == pytest.approx(losses)


def check_values(history, values):
    """{name: {step: value}} against the history of a fold."""
    ends = [STEPS * (epoch + 1) for epoch in history["epoch"]]
    assert sorted(values["step/loss"]) == list(range(1, ends[-1] + 1))
    assert set(values) == {"epoch", "step/loss", *(f"epoch/{column}" for column in history.columns.drop("epoch"))}
    for column in history.columns.drop("epoch"):
        assert list(values[f"epoch/{column}"]) == ends
        assert list(values[f"epoch/{column}"].values()) == pytest.approx(history[column].tolist(), nan_ok=True)


@pytest.fixture(scope="module")
def tracked(fit, tmp_path_factory):
    """A run with all three trackers, what they recorded, its log, and the losses of its steps."""
    out, wandb, mlflow = tmp_path_factory.mktemp("tracked") / "lite0", FakeWandB(), FakeMLflow()
    mlflow.create_experiment("another")
    with pytest.MonkeyPatch.context() as patch:
        fake(patch, wandb, mlflow)
        said, losses = fit(out, tensorboard=True, wandb="masks", mlflow="masks")
    return SimpleNamespace(run=Run.load(out), wandb=wandb, mlflow=mlflow, said=said, losses=losses)


def test_tensorboard_holds_the_history_and_each_step(tracked):
    for fold in (0, 1):
        check_events(tracked.run, fold, tracked.losses[fold])


@pytest.mark.parametrize(
    ("until", "save_every"),
    [(3, "1"), (3, "60s"), *(pytest.param(n, "1", marks=pytest.mark.slow) for n in (1, 2))],
)
def test_tensorboard_has_each_step_of_a_resumed_fold_once(fit, tmp_path, until, save_every):
    fit(tmp_path / "run", until, tensorboard=True, fold=[0], save_every=save_every)
    fit(tmp_path / "run", resume=True, fold=[0], tensorboard=True)
    check_events(Run.load(tmp_path / "run"), 0)


def test_epochs_without_validation_have_no_scores(fit, tmp_path):
    fit(tmp_path / "run", tensorboard=True, fold=[0], epochs=2, validate_every=2)
    found = scalars(tmp_path / "run" / "fold0" / "tensorboard")
    assert (list(found["epoch/train_loss"]), list(found["epoch/macro_f1"])) == ([STEPS, 2 * STEPS], [2 * STEPS])


def test_trackers_change_no_result(tracked, finished_run):
    for name in ("oof.csv", "fold0/history.csv", "fold1/history.csv"):
        assert (tracked.run.path / name).read_bytes() == (finished_run.path / name).read_bytes()
    assert tracked.run.identity == finished_run.identity


def test_a_run_with_event_files_is_a_run(tracked, fit, tmp_path):
    run = shutil.copytree(tracked.run.path, tmp_path / "run")
    check_free(run, overwrite=True)
    shutil.rmtree(run / "fold1")
    other = shutil.copytree(tracked.run.path, tmp_path / "other")
    shutil.rmtree(other / "fold0")
    check_events(merge_runs([run, other], tmp_path / "whole"), 1)
    # a fold that starts anew is cleared
    (run / "fold0" / "done.json").unlink()
    fit(run, resume=True, fold=[0], tensorboard=False, wandb=None, mlflow=None)
    assert not list(run.rglob("*tensorboard*"))


# --- stand-ins for packages that are too heavy to install for a test --------------------------------------------------


class FakeWandB(ModuleType):
    """Records the calls of Weights & Biases: an entry per call of init, with its log and its end."""

    class Error(Exception):
        """As the package's own."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.mode, self.fails_at, self.logged_in = [], "online", None, True
        self.Settings = lambda **settings: settings

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self):
        if not self.logged_in:
            raise self.Error("No API key configured.")

    def init(self, **options):
        self._fail("init")
        run = SimpleNamespace(options=options, logged=[], ended=None, url=None, offline=True)
        run.log = lambda values, step: (self._fail("log"), run.logged.append((step, values)))
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        self.runs.append(run)
        return run

    def _fail(self, call):
        if call == self.fails_at:
            raise self.Error("the network\nis gone")


class FakeMLflow(ModuleType):
    """Records the calls of MLflow, and finds runs by their tags."""

    def __init__(self):
        super().__init__("mlflow")
        self.experiments, self.runs = {}, []

    def MlflowClient(self):  # noqa: N802 - the package's name
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = str(len(self.experiments) + 1)
        return self.experiments[name]

    def search_runs(self, experiments, filter_string):
        tag, _, value = filter_string.removeprefix("tags.").partition(" = ")
        return [run for run in self.runs if run.experiment in experiments and run.tags[tag] == value.strip("'")]

    def create_run(self, experiment, tags, run_name):
        info = SimpleNamespace(run_id=f"id{len(self.runs)}")
        run = SimpleNamespace(
            info=info, experiment=experiment, tags=tags, name=run_name, params={}, metrics=[], statuses=[]
        )
        self.runs.append(run)
        return run

    def update_run(self, run_id, status):
        self._of(run_id).statuses.append(status)

    set_terminated = update_run

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self._of(run_id).metrics += metrics
        self._of(run_id).params.update({param.key: param.value for param in params})

    def _of(self, run_id):
        return next(run for run in self.runs if run.info.run_id == run_id)


def fake(patch, wandb, mlflow):
    """Replace the packages by both."""
    entities = ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)
    for module in (wandb, mlflow, entities):
        patch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def wandb(monkeypatch):
    made = FakeWandB()
    fake(monkeypatch, made, FakeMLflow())
    return made


@pytest.fixture
def mlflow(wandb):
    return sys.modules["mlflow"]


def by_name(pairs):
    values = {}
    for step, row in pairs:
        for name, value in row.items():
            values.setdefault(name, {})[step] = value
    return values


def test_wandb_has_a_run_per_fold_in_a_group(tracked):
    runs = tracked.wandb.runs
    assert [(r.options["project"], r.options["group"], r.options["name"], r.ended) for r in runs] == [
        ("masks", "lite0", "lite0 fold 0", 0),
        ("masks", "lite0", "lite0 fold 1", 0),
    ]
    for fold, theirs in enumerate(runs):
        steps = [step for step, _ in theirs.logged]
        # it refuses a step lower than the one before
        assert steps == sorted(steps)
        assert theirs.options["config"]["lr"] == tracked.run.config.lr
        check_values(tracked.run.history(fold), by_name(theirs.logged))
        assert f"lite0 fold {fold} is in Weights & Biases: run {theirs.options['id']}, offline" in tracked.said


def test_mlflow_has_a_run_per_fold_with_the_run_as_a_tag(tracked):
    runs = tracked.mlflow.runs
    assert [(r.experiment, r.name, r.tags["group"], r.statuses) for r in runs] == [
        ("2", "lite0 fold 0", "lite0", ["FINISHED"]),
        ("2", "lite0 fold 1", "lite0", ["FINISHED"]),
    ]
    for fold, theirs in enumerate(runs):
        assert (theirs.params["arch"], theirs.params["epochs"]) == ("test_resnet", "2")
        assert max(map(len, theirs.params.values())) <= 500
        check_values(tracked.run.history(fold), by_name((m.step, {m.key: m.value}) for m in theirs.metrics))


def test_a_resumed_fold_continues_in_the_same_runs(fit, tmp_path, wandb, mlflow):
    fit(tmp_path / "run", 3, fold=[0], save_every="1", wandb="masks", mlflow="masks")
    assert (wandb.runs[0].ended, mlflow.runs[0].statuses) == (1, ["KILLED"])
    said, _ = fit(tmp_path / "run", resume=True, fold=[0])
    first, second = (r.options["id"] for r in wandb.runs)
    assert first == second
    assert f"run fold 0 resumes in Weights & Biases: run {first}, offline" in said
    (theirs,) = mlflow.runs
    assert theirs.statuses == ["KILLED", "RUNNING", "FINISHED"]
    history = Run.load(tmp_path / "run").history(0)
    check_values(history, by_name((m.step, {m.key: m.value}) for m in theirs.metrics))


def test_an_invalid_key_is_refused():
    callback = Trackers({}, FoldInfo("run", 0, {}), SimpleNamespace(), print)
    callback.load_state_dict({"number": 0, "key": "0123456789abcdef"})
    with pytest.raises(ValueError, match="its key of the trackers is"):
        callback.load_state_dict({"number": 0, "key": "x' or '1' = '1"})


def test_a_resumed_fold_may_have_another_tracker(fit, tmp_path, wandb):
    fit(tmp_path / "run", 3, fold=[0], save_every="1")
    said, _ = fit(tmp_path / "run", resume=True, fold=[0], wandb="masks")
    assert "run fold 0 is in Weights & Biases" in said
    # its state was saved in the step in which it was killed
    assert min(step for step, _ in wandb.runs[0].logged) == 4


def test_an_interruption_logs_every_step_up_to_the_state(fit, tmp_path, wandb):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", 3, interrupt, wandb="masks")
    assert sorted(by_name(wandb.runs[0].logged)["step/loss"]) == [1, 2, 3]
    assert wandb.runs[0].ended == 1


@pytest.mark.parametrize("call", ["init", "log"])
def test_a_tracker_that_fails_is_reported_once_and_ends_nothing(fit, tmp_path, wandb, call):
    wandb.fails_at = call
    said, _ = fit(tmp_path / "run", fold=[0], wandb="masks", tensorboard=True)
    line = "Weights & Biases gets no more values of run fold 0, see history.csv for them: the network is gone"
    assert said.splitlines().count(line) == 1
    # the other trackers continue
    check_events(Run.load(tmp_path / "run"), 0)


def test_a_tracker_that_hangs_is_not_waited_for(fit, tmp_path, wandb, monkeypatch):
    back = threading.Event()
    monkeypatch.setattr(trackers_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(wandb, "init", lambda **_: back.wait(60))
    said, _ = fit(tmp_path / "run", fold=[0], epochs=1, wandb="masks")
    back.set()
    assert "Weights & Biases has not received all of run fold 0 yet; it may while the run continues" in said
    assert Run.load(tmp_path / "run").trained_folds == [0]


def test_losses_are_logged_within_an_epoch(monkeypatch):
    monkeypatch.setattr(trackers_module, "_EVERY", 0.0)
    arrived, rows = [], []

    class Slow(trackers_module.AsyncCopy):
        def is_complete(self):
            return bool(arrived)

    monkeypatch.setattr(trackers_module, "AsyncCopy", Slow)
    callback = Trackers({}, FoldInfo("run", 0, {}), SimpleNamespace(), print)
    callback._give, callback._logged = rows.extend, 0.0
    callback.learn = SimpleNamespace(training=True, train_iter=0)
    for step in range(1, 6):
        callback.learn.train_iter, callback.learn.loss = step, trackers_module.torch.tensor(step / 2)
        arrived[:] = [True] * (step == 4)
        callback.after_batch()
    # the first loss arrived in the fourth step, and the others were copied together
    assert rows == [(1, {"step/loss": 0.5})]
    callback.after_train()
    assert rows == [(step, {"step/loss": step / 2}) for step in range(1, 6)]


@pytest.mark.parametrize("setting", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_reported_before_training(setting, contest, small_settings, tmp_path, monkeypatch, capsys):
    for name in ("torch.utils.tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**small_settings, "data": str(contest)}))
    words = [] if setting == "tensorboard" else ["masks"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(file), "--out", str(tmp_path / "run"), f"--{setting}", *words])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f'; install it with pip install "fastmask[{setting}]", or do without it (--' in last
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_missing_login_is_reported_before_training(wandb):
    wandb.logged_in = False
    with pytest.raises(UsageError, match=r"\(No API key configured\): wandb login, or set WANDB_MODE=offline"):
        check_trackers(make_config({"wandb": "masks"}))
    wandb.mode = "offline"
    check_trackers(make_config({"wandb": "masks"}))


def test_the_command_that_resumes_has_the_settings_given_anew(tmp_path):
    run = SimpleNamespace(path=tmp_path, config=make_config({"tensorboard": True}))
    given = {"wandb": "my masks", "hours": 1.5, "data": "moved", "device": "cpu"}
    plan = SimpleNamespace(config=make_config(given), loss_func=None, opt_func=None)
    line = spell_resume(run, plan, [0, 2])
    command = f"fastmask fit --resume --out {shlex.quote(str(tmp_path))} --fold 0,2"
    assert line == f"{command} --data moved --hours 1.5 --no-tensorboard --wandb 'my masks' --device cpu"
    for own in ("loss_func", "opt_func"):
        custom = SimpleNamespace(**{**vars(plan), own: print})
        assert spell_resume(run, custom, None) == f"cross_validate(..., out={str(tmp_path)!r}, resume=True)"
