"""The reference: what help() shows of the public names, and the examples in their docstrings."""

import doctest
import inspect
import pydoc
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_learners import small_dls, small_learner

import fastmask as fm
from fastmask.config import Config

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# the packages of an optional extra that an example needs
EXTRAS = {
    "Exported": ("onnx", "onnxscript", "onnxruntime"),
    "export_onnx": ("onnx", "onnxscript", "onnxruntime"),
    "Tuned": ("optuna",),
    "tune": ("optuna",),
}
# examples that take two seconds or more
SLOW = {"Exported", "Report", "Tuned", "export_onnx", "merge_runs", "tune", "write_report"}


@pytest.mark.parametrize("function", [fm.cross_validate, fm.screen, fm.tune], ids=lambda function: function.__name__)
def test_help_shows_the_settings_as_parameters(function):
    parameters = inspect.signature(function).parameters
    assert set(Config.model_fields) <= set(parameters)
    assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    text = pydoc.plain(pydoc.render_doc(function))
    assert "**settings" not in text
    assert "arch: str = 'tf_efficientnet_b4'" in text
    assert parameters["epochs"].default == Config().epochs


@pytest.fixture(scope="module")
def names(contest, finished_run, other_run, small_settings, tmp_path_factory) -> dict[str, Any]:
    """The names that examples use without defining them; for reading only."""
    table = fm.read_contest(contest)
    out = tmp_path_factory.mktemp("runs") / "ordered"
    dls = small_dls(table)
    return {
        "fm": fm,
        "np": np,
        "pd": pd,
        "torch": torch,
        "Path": Path,
        "table": table,
        "photos": [table.photo(row) for row in (0, 7, 14)],
        "run": finished_run,
        "other": other_run,
        "ordered": fm.cross_validate(table, out=out, **{**small_settings, "epochs": 1, "order": "age"}),
        "dls": dls,
        "learn": small_learner(dls),
    }


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in fm.__all__])
def test_the_example_of_each_public_name_runs(name, names, contest, tmp_path, monkeypatch):
    """Each public name has an example in its docstring, which gives the output that it shows.

    It runs in an empty folder, with the contest folder as `data` if it names that. It may use, without defining them:

    - `fm`, `np`, `pd`, `torch` and `Path`;
    - `table`: 84 photos of 12 persons, read from a contest folder;
    - `photos`: the paths of three of these;
    - `run`: a trained run of two folds on `table`, with photos of 64 x 32 pixels;
    - `other`: a second run of the same folds, with other weights;
    - `ordered`: a run that has also learned the age as a number (`order="age"`);
    - `dls`: fastai's DataLoaders of `table` with photos of 32 x 16 pixels, in batches of 16;
    - `learn`: an untrained `mask_learner` of `dls`.

    Lines and warnings on stderr are not part of the output.
    """
    for package in EXTRAS.get(name, ()):
        pytest.importorskip(package)
    text = inspect.cleandoc(getattr(fm, name).__doc__ or "")
    example = doctest.DocTestParser().get_doctest(text, dict(names), f"fastmask.{name}", None, 0)
    assert example.examples, f"the docstring of {name} has no example"
    if '"data' in text:
        shutil.copytree(contest, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.FastmaskWarning)
        result = doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(example, out=report.append)
    assert not result.failed, "".join(report)
