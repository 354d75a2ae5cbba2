"""`pip install fastmask` without extras: what needs no extra works, what needs one names it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
HIDE = TESTS / "fixtures"
# modules that are imported only by the feature of an extra
OF_EXTRAS = {
    "fastmask.app.page": "gradio",
    "fastmask.app.tabs": "gradio",
    "fastmask.export.graph": "onnxscript",
    "fastmask.training.distributed": "accelerate",
    "fastmask.launch.ray": "ray",
}
IMPORT_ALL = """
import without_extras, importlib, json, pkgutil, fastmask
missing = {}
for module in pkgutil.walk_packages(fastmask.__path__, "fastmask."):
    if module.name != "fastmask.__main__":
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            missing[module.name] = error.name
for name in fastmask.__all__:
    getattr(fastmask, name)
print(json.dumps(missing))
"""
RUN_ALL = """
import without_extras, io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from fastmask.commands.main import main

answers = []
for words, variables in json.load(sys.stdin):
    os.environ.update(variables)
    err = io.StringIO()
    code = 0
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = end.code or 0
    for name in variables:
        del os.environ[name]
    answers.append((code, err.getvalue()))
print(json.dumps(answers))
"""
# one of two processes of a launcher
LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def in_base_install(code: str, given: str = "") -> str:
    """What a script prints in a process that finds no package of an extra."""
    paths = os.pathsep.join([str(HIDE), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_but_those_of_an_extra_can_be_imported() -> None:
    assert json.loads(in_base_install(IMPORT_ALL)) == OF_EXTRAS


@pytest.fixture(scope="module")
def answers(contest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The exit code and stderr of commands that need no extra, and of those that need one."""
    work = tmp_path_factory.mktemp("base")
    run, photos = str(work / "run"), str(contest / "eval" / "images")
    small = ["--data", str(contest), "--arch", "test_resnet", "--no-pretrained", "--resize", "64", "32"]
    fit = ["fit", *small, "--folds", "2", "--epochs", "1", "--bs", "16", "--out"]
    space = work / "space.yaml"
    space.write_text("lr: [1e-4, 1e-3]\n")
    commands: dict[str, tuple[list[str], dict[str, str]]] = {
        "fit": ([*fit, run], {}),
        "predict": (["predict", run, photos, "--out", str(work / "answers.csv")], {}),
        "report": (["report", run], {}),
        "score": (["score", run], {}),
        "lr-find": (["lr-find", *small, "--folds", "2", "--bs", "16", "--out", str(work / "lr.png")], {}),
        "bench": (["bench", *small, "--folds", "2", "--bs", "16", "--seconds", "0.1"], {}),
        "screen": (["screen", *small[:2], "--archs", "test_resnet", "--no-pretrained", "--folds", "2"], {}),
        "decide": (["decide", run], {}),
        "label-errors": (["label-errors", run], {}),
        "app": (["app", run], {}),
        "onnx": (["export", run], {}),
        "tune": (["tune", *small, "--space", str(space), "--trials", "1", "--out", str(work / "tuned")], {}),
        "faces": (["faces", photos, "--out", str(work / "boxes.csv")], {}),
        "tensorboard": ([*fit, str(work / "one"), "--tensorboard"], {}),
        "wandb": ([*fit, str(work / "two"), "--wandb", "masks"], {}),
        "mlflow": ([*fit, str(work / "three"), "--mlflow", "masks"], {}),
        "ray": ([*fit, str(work / "four"), "--launcher", "ray"], {}),
        "parallel": ([*fit, str(work / "five")], LAUNCHED),
    }
    err = json.loads(in_base_install(RUN_ALL, json.dumps(list(commands.values()))))
    return dict(zip(commands, map(tuple, err), strict=True))


@pytest.mark.parametrize(
    "command", ["fit", "predict", "report", "score", "lr-find", "bench", "screen", "decide", "label-errors"]
)
def test_a_command_needs_no_extra(command: str, answers: dict[str, tuple[int, str]]) -> None:
    code, err = answers[command]
    assert code == 0, err


@pytest.mark.parametrize("extra", ["app", "onnx", "tune", "faces", "tensorboard", "wandb", "mlflow", "ray", "parallel"])
def test_what_an_extra_is_for_names_the_line_that_installs_it(extra: str, answers: dict[str, tuple[int, str]]) -> None:
    code, err = answers[extra]
    (sentence,) = (line for line in err.splitlines() if line.startswith("fastmask: error: "))
    assert code == 2
    assert f'pip install "fastmask[{extra}]"' in sentence
    assert "Traceback" not in err
