"""What the tests of the page share: its content for the small run, and a photo to try."""

import re
from html import unescape

import pytest

from fastmask.app.viewer import open_viewer


@pytest.fixture
def viewer(finished_run, tmp_path):
    """The content of the page of `finished_run`; marks go to a new file."""
    return open_viewer(finished_run, fixes=tmp_path / "fixes.csv")


@pytest.fixture(scope="session")
def photo(contest):
    return sorted((contest / "eval" / "images").iterdir())[0]


@pytest.fixture(scope="session")
def words():
    """A function that gives the text of HTML."""
    return lambda html: unescape(" ".join(re.sub("<[^>]*>", " ", html).split()))
