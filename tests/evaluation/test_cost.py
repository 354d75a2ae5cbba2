import pandas as pd
import pytest

from fastmask.api import Run
from fastmask.evaluation.cost import cost_of
from fastmask.system.files import write_json


def test_the_cost_is_what_the_directory_tells(finished_run, three):
    cost = cost_of(finished_run)
    times = [pd.read_csv(finished_run.fold_path(f) / "times.csv")["seconds"] for f in (0, 1)]
    seconds = sum(map(sum, times))
    assert (cost.folds, cost.of_folds, cost.epochs) == (2, 2, (2, 2))
    assert cost.seconds == pytest.approx(seconds)
    # 42 photos to train on are two batches of 16
    assert cost.photos_per_second == pytest.approx(2 * 2 * 32 / seconds)
    assert cost.parameters == finished_run.environment["body"]["parameters"]
    weights = [file for fold in (0, 1) for file in finished_run.path.glob(f"fold{fold}/epoch*.safetensors")]
    assert cost.checkpoint_bytes == sum(len(file.read_bytes()) for file in weights)
    nothing = cost_of(three[0])
    assert (nothing.seconds, nothing.parameters, nothing.photos_per_second, nothing.epochs) == (None,) * 4


@pytest.mark.parametrize("text", ["epoch,seconds\n0,nan\n", "epoch,seconds\n0,-3\n", "epoch,seconds\n0,inf\n"])
def test_times_that_are_none_are_not_added_up(run_copy, text):
    (run_copy / "fold0" / "times.csv").write_text(text)
    write_json(run_copy / "environment.json", {"body": 3, "device": []})
    cost = cost_of(Run.load(run_copy))
    assert (cost.seconds, cost.epochs, cost.parameters, cost.device) == (None,) * 4
    assert cost.checkpoint_bytes > 0


def test_refitted_networks_are_checkpoints_too(run_copy):
    before = cost_of(Run.load(run_copy)).checkpoint_bytes
    for fold in (0, 1):
        (run_copy / f"fold{fold}" / "refit.safetensors").write_bytes(b"0" * 1000)
    cost = cost_of(Run.load(run_copy))
    assert cost.checkpoint_bytes == before + 2000
    assert cost.cells[2].endswith("s + refit")
