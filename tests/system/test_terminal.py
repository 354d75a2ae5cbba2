"""Terminal: figures in words, and long lines."""

import io

import pytest

from fastmask.system.terminal import between_words, in_bytes


class Console(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        # which used to be 1e+03 kB
        (999_900, "1 MB"),
        (1_234_567, "1.23 MB"),
        (999.7e9, "1 TB"),
        (2.5e15, "2,500 TB"),
    ],
)
def test_bytes_are_read_without_an_exponent(count: float, words: str) -> None:
    assert in_bytes(count) == words


def test_a_long_line_ends_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    text = "560 photos of 80 persons; mask (wear, incorrect, none); gender (male, female); run runs/a-long-name"
    lines = between_words(text, Console()).splitlines()
    assert " ".join(lines) == text
    assert len(lines) > 3
    assert max(map(len, lines)) < 30
    assert between_words(text, io.StringIO()) == text
