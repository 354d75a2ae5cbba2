from collections.abc import Callable

import numpy as np

from fastmask.api import Run
from fastmask.evaluation.label_errors import find_label_errors
from fastmask.report.blocks import Album, Text
from fastmask.report.material import Material
from fastmask.report.sections.suspects import section


def test_the_most_suspicious_of_each_person_are_shown(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    run = make_run(labels)
    errors = find_label_errors(run)
    text, album = section(Material(run))
    assert isinstance(text, Text)
    assert isinstance(album, Album)
    persons = list(dict.fromkeys(error.person for error in errors))[:24]
    assert len(album.photos) == len(persons)
    first = errors[0]
    assert album.photos[0].lines[0][0].startswith(f"{first.head}: labelled {first.label} ")
    assert album.photos[0].lines[1][0].startswith(f"more likely {first.suggested} ")
    for head in {error.head for error in errors}:
        assert f"{head} {sum(error.head == head for error in errors)} of" in text.text


def test_a_leak_hides_errors_and_is_said(make_run: Callable[..., Run], labels: np.ndarray) -> None:
    first = section(Material(make_run(labels, group="none")))[0]
    assert isinstance(first, Text)
    assert first.warning
