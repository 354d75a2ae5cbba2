"""Inputs that were tampered with end in one sentence each: a selection of those of examples/benchmarks/hostile.py."""

import os
import pickle
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "hostile.py"
# one of each kind of attack, at least
CHOSEN = [
    "settings: object in a setting",
    "settings: alias bomb in a setting",
    "config.yaml: merge bomb",
    "config.yaml: an enormous network",
    "pipelines.yaml: os.system",
    "pipelines.yaml: other photos",
    "pipelines.yaml: a giant by padding",
    "heads.json: nested",
    "heads.json: digits",
    "run/folds.csv: a NUL",
    "run/oof.csv: mask.wear 'nan'",
    "data/train/train.csv: path '../../run'",
    "table.csv: path '/etc/passwd'",
    "table.csv: a link out",
    "info.csv: ImageID '../run/oof.csv'",
    "photo: PNG bomb",
    "photo: PNG text bomb",
    "photo: JPEG under Pillow's own bound",
    "photo: PostScript",
    "photo: a name that is no text",
    "checkpoint: a pickle",
    "checkpoint: a shape of 10^12",
    "weights: a header beyond the file",
    ".pth: a pickle by torch, the old way",
    ".pth: a zip bomb",
    "run/oof.csv: a link out",
    "run/fold0: a link out of its folder",
    "run/fold0/epoch.safetensors: a pipe",
    "run/heads.json: a link to endless zeros",
    "photos/0.jpg: a pipe",
    "options: fit --data data --lr nan",
    "ensemble.json: weights negative",
    "ensemble.json: a hundred thousand members",
    "ensemble: a checkpoint of no numbers",
    "pseudo.json: thousands of folds",
    "labels/labels.csv: path '/etc/passwd'",
    "pseudo-labels: a photo of two folds",
    "extra: a photo that is a link out",
    "class weights: alias bomb in a setting",
    "boxes.csv: x0 'nan'",
    "eval.csv: x0 '500'",
    "landmarks.csv: nose_x '900'",
    "theirs.csv: mask.wear 'inf'",
    ".pth to screen: a pickle by torch, the old way",
    "checkpoint to average: a pickle",
    "teacher.safetensors: other tensors",
    "options: fit --data data --teacher half0",
    "space: alias bomb in a setting",
    "space: a logarithm of 0",
    "tune.yaml: a space of the seed",
    "study.db: noise",
    "photo to search: PNG bomb",
]


@pytest.fixture(scope="module")
def hostile(cache_home):
    return runpy.run_path(str(SCRIPT))


@pytest.mark.slow
def test_chosen_attacks_end_in_one_sentence_each(contest, finished_run, tmp_path):
    shutil.copytree(contest, tmp_path / "good" / "data")
    shutil.copytree(finished_run.path, tmp_path / "good" / "run")
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(tmp_path), *CHOSEN]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    count = len(CHOSEN)
    assert ended.stdout.splitlines()[-1] == f"cases {count}, sentences {count}, failures 0", ended.stdout


def test_at_least_1800_cases_have_different_names(hostile):
    names = [case.name for case in hostile["cases"]()]
    assert len(names) >= 1800
    assert len(set(names)) == len(names)


def test_the_pickles_would_run_code(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(hostile["SAFETENSORS"]["a pickle"])
    assert os.listdir() == ["MARKER"]


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        ((1, "", "fastmask: error: It is empty.\n", 0), []),
        ((0, "done", "", 0), ["exit code 0, expected 1", "no sentence"]),
        ((1, "", "Traceback (most recent call last):\nKeyError: 3\n", 0), ["no sentence", "a traceback"]),
        ((-14, "", "", 0), ["exit code -14, expected 1", "no sentence"]),
        ((1, "", "fastmask: error: It is empty.\n", 5 * 10**9), ["5.0 GB"]),
    ],
)
def test_faults_of_a_case_are_found(hostile, ended, wrong):
    case = hostile["Case"]("an empty file", hostile["nothing"], "score run")
    assert hostile["faults"](case, hostile["Ended"](*ended), {"a": "1"}, {"a": "1"}) == wrong
    quiet = hostile["Ended"](1, "", "fastmask: error: It is empty.\n", 0)
    assert hostile["faults"](case, quiet, {"a": "1"}, {"a": "2"}) == ["changed a"]
    assert hostile["faults"](case, quiet, {}, {"MARKER": "1"}) == ["changed MARKER", "code was run"]
