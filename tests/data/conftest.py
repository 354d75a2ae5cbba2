import pytest


@pytest.fixture
def folders(tmp_path):
    """A folder per class, of empty files, with other files and hidden ones."""
    for name in ("cat/1.jpg", "cat/deep/2.png", "dog/1.jpg", "dog/.hidden.jpg", ".cache/3.jpg", "dog/notes.txt"):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "pets"
