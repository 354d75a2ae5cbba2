import io

from fastmask.system.terminal import wrap_words


class Console(io.StringIO):
    def isatty(self):
        return True


def test_a_long_line_is_wrapped_between_words_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = "560 photos of 80 persons; mask (wear, incorrect, none); gender (male, female); run runs/a-long-name"
    lines = wrap_words(text, Console()).splitlines()
    assert " ".join(lines) == text
    assert len(lines) > 3
    assert max(map(len, lines)) < 30
    assert wrap_words(text, io.StringIO()) == text
