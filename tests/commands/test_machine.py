"""bench, doctor and cache."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmask.api import Run
from fastmask.commands import doctor
from fastmask.system.errors import FastmaskError
from fastmask.training import bench as training_bench

DONE, FAILED, INVALID = 0, 1, 2
Command = Callable[..., Any]


def test_bench_says_what_limits_a_run(
    small: list[str],
    fastmask: Command,
    work: Path,
    snapshot: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = snapshot(work)
    answer = fastmask("bench", *small[1:3], "--seconds", 0.1, "--json")
    assert answer.code == DONE, answer.errors
    plain = json.loads(answer.out)
    assert plain["bs"] == 16
    assert plain["load_seconds_a_batch"] < plain["train_seconds_a_batch"]
    assert fastmask("bench", *small[1:3], "--seconds", "nan").code == INVALID
    monkeypatch.setattr(training_bench, "bench", lambda *_: "a table")
    assert fastmask("bench", *small[1:3]).out == "a table\n"
    assert snapshot(work) == before


def test_photos_are_decoded_once_and_caches_can_be_listed_and_cleared(small: list[str], fastmask: Command) -> None:
    here = ["--cache-dir", "decoded"]
    first = fastmask(*small, *here, "--cache", "disk", "--dry-run")
    assert any(line.startswith("Decoded 84 different photos in") for line in first.err)
    assert not any("Decoded" in line for line in fastmask(*small, *here, "--dry-run").err)
    listed = fastmask("cache", "list", *here)
    copies, photos = (line.split() for line in listed.out.splitlines())
    assert copies[1:3] == photos[1:3] == ["84", "photos"]
    assert copies[-6:] == ["near", "copies:", "0", "pairs", "of", "persons"]
    assert listed.err == ["decoded: caches 2, 516 kB"]
    name = photos[0]
    assert fastmask("cache", "clear", "other", *here).code == INVALID
    assert fastmask("cache", "clear", name, *here).out == "caches removed: 1, 516 kB\n"
    assert fastmask("cache", "clear", *here).code == DONE
    assert fastmask("cache", "list", *here).out == ""


def test_doctor_examines_a_healthy_machine(fastmask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "hub", lambda: "not asked")
    lines = fastmask("doctor").out.splitlines()
    expected = ["system", "packages", "CPU", "GPU", "precision", "disk", "hub", "drawing", "run"]
    assert [line.split()[0] for line in lines] == expected
    assert lines[-1].endswith("works")


@pytest.mark.bf16
def test_doctor_tries_half_precision() -> None:
    assert doctor.half_precision(torch.device("cpu")) == "bf16 works on the CPU"


def test_doctor_finds_half_precision_that_is_computed_wrongly(wrong_bf16: None) -> None:
    assert doctor.half_precision(torch.device("cpu")).startswith("This CPU computes bf16 wrongly: ")


def test_probabilities_that_do_not_add_up_are_found(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        heads, oof, folds = finished_run.heads, finished_run.oof, finished_run.folds

        def predict(self, images: Path) -> Any:
            predictions = finished_run.predict(images)
            predictions.probabilities[0] *= 2
            return predictions

    monkeypatch.setattr(doctor, "cross_validate", lambda *_, **__: Broken())
    with pytest.raises(FastmaskError, match="do not add up to 1"):
        list(doctor.small_run())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "answers: pretrained weights can be fetched"),
        (urllib.error.HTTPError("hub", 503, "busy", {}, None), "answers 503"),  # type: ignore[arg-type]
        (urllib.error.URLError("no route"), "out of reach (no route): use --weights FILE"),
        (TimeoutError("timed out"), "out of reach (timed out)"),
        (ValueError("unknown url type: 'foo'"), "out of reach (unknown url type: 'foo')"),
    ],
)
def test_the_hub_answers_or_not(error: Exception | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: Any) -> None: ...

    def urlopen(request: Any, timeout: float) -> Answer:
        if error is not None:
            raise error
        return Answer()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert said in doctor.hub()
