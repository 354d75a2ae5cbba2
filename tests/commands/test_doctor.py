import urllib.error
import urllib.request

import pytest

from fastmask.api import Run
from fastmask.commands import doctor
from fastmask.system.errors import FastmaskError


def test_a_healthy_machine(monkeypatch):
    monkeypatch.setattr(doctor, "hub", lambda: "not asked")
    lines = list(doctor.examine())
    assert [line.split()[0] for line in lines] == [
        "system",
        "packages",
        "CPU",
        "GPU",
        "disk",
        "hub",
        "drawing",
        "run",
    ]
    assert lines[-1].endswith("works")


def test_probabilities_that_are_none_are_found(monkeypatch):
    real = Run.predict

    def broken(self, images):
        predictions = real(self, images)
        predictions.probabilities[0] *= 2
        return predictions

    monkeypatch.setattr(Run, "predict", broken)
    with pytest.raises(FastmaskError, match="do not add up to 1"):
        list(doctor.small_run())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "answers: pretrained weights can be fetched"),
        (urllib.error.HTTPError("hub", 503, "busy", {}, None), "answers 503"),
        (urllib.error.URLError("no route"), "out of reach (no route): use --weights FILE"),
        (TimeoutError("timed out"), "out of reach (timed out)"),
        (ValueError("unknown url type: 'foo'"), "out of reach (unknown url type: 'foo')"),
    ],
)
def test_the_hub_answers_or_not(error, said, monkeypatch):
    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def urlopen(request, timeout):
        if error is not None:
            raise error
        return Answer()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert said in doctor.hub()
