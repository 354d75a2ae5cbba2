import json

import torch

from fastmask.model.losses import FocalLoss
from fastmask.run.environment import git_commit, qualified_name


def test_the_environment_has_versions_body_and_photos(finished_run):
    environment = json.loads((finished_run.path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["body"]["tag"].startswith("test_resnet")
    assert environment["body"]["initial_weights"] == "random"
    assert environment["photos"]["count"] == 84


def test_a_custom_loss_has_a_dotted_name():
    assert qualified_name(FocalLoss) == "fastmask.model.losses.FocalLoss"
    assert qualified_name(None) is None


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
