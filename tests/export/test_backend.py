"""Predictions by ONNX Runtime: those of PyTorch."""

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from fastmask.export import graph
from fastmask.export.backend import onnx_load
from fastmask.inference.predictions import predict
from fastmask.system.errors import UsageError


def test_probabilities_are_those_of_pytorch_and_the_body_is_traced_once(finished_run, contest, monkeypatch):
    traced = []
    trace = graph.trace
    monkeypatch.setattr(graph, "trace", lambda *given: traced.append(given) or trace(*given))
    paths = sorted(contest.rglob("*.jpg"))[:9]
    wanted = predict(finished_run, paths, views=("flip",), bs=4)
    found = predict(finished_run, paths, views=("flip",), bs=4, load=onnx_load())
    assert len(finished_run.trained_folds) > 1
    assert len(traced) == 1
    assert found.members.keys() == wanted.members.keys()
    for member, probabilities in wanted.members.items():
        np.testing.assert_allclose(found.members[member], probabilities, atol=1e-5)
        assert not np.allclose(probabilities, wanted.probabilities, atol=1e-3)


@pytest.mark.filterwarnings("ignore:These models were trained on")
def test_the_command_predicts_alike(fastmask, finished_run, contest, tmp_path):
    tables, folder = [], next(contest.rglob("*.jpg")).parent
    for name in ("torch", "onnx"):
        out = tmp_path / f"{name}.csv"
        assert fastmask("predict", finished_run.path, folder, "--out", out, "--backend", name).code == 0
        tables.append(pd.read_csv(out))
    pd.testing.assert_frame_equal(*tables, atol=1e-5)


def test_what_it_cannot_do_is_refused(fastmask, finished_run, contest, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="ONNX Runtime predicts on a CPU here, not on meta"):
        onnx_load()(finished_run, finished_run.checkpoints(0)[0], torch.device("meta"), (64, 32))
    command = ("predict", finished_run.path, contest, "--out", tmp_path / "a.csv", "--backend", "onnx")
    answer = fastmask(*command, "--soup")
    assert (answer.code, answer.errors) == (
        2,
        ["--backend onnx predicts by single checkpoints; leave out --soup, or make the soup a run."],
    )
    monkeypatch.setattr("fastmask.export.options.find_spec", lambda name: None)
    answer = fastmask(*command)
    assert answer.code == 2
    assert answer.errors[0].startswith("ONNX Runtime needs the package onnx; install it with ")
