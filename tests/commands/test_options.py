"""Options: made of described fields, and read from text."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from fastmask.commands.options import (
    NEW_CSV,
    Commands,
    expand_home,
    join_numbers,
    numbers,
    option,
    whole_numbers,
    with_options,
    with_settings,
    words,
)
from fastmask.config import TRAINING, Config
from fastmask.system.errors import UsageError
from fastmask.system.fields import option_field
from fastmask.system.setting_text import read_bands, read_ranges


def test_lists_of_words_numbers_and_ranges() -> None:
    assert words("a, b,c d") == ["a", "b", "c d"]
    assert whole_numbers("0,3") == [0, 3]
    assert numbers("0.5,1e-3") == [0.5, 0.001]
    assert read_ranges("27-29,57") == {"age": [[27, 29], [57, 57]]}


def test_bounds_of_a_head_twice_are_refused() -> None:
    assert read_bands("age=20,30;height=150") == {"age": [20, 30], "height": [150]}
    with pytest.raises(ValueError, match="expected the bounds of each head once"):
        read_bands("age=20,30;age=25,30")


@pytest.mark.parametrize("text", ["a", "1-2-3", "", "1-", "1,,2"])
def test_invalid_ranges(text: str) -> None:
    with pytest.raises(ValueError, match="expected ranges such as 27-29,57-59"):
        read_ranges(text)


def test_invalid_numbers() -> None:
    with pytest.raises(ValueError, match="expected whole numbers, separated by commas"):
        whole_numbers("0.5")
    with pytest.raises(ValueError, match="expected numbers, separated by spaces or commas"):
        numbers("a")


@pytest.mark.parametrize(
    ("typed", "joined"),
    [
        ("fit --stats 0.5 0.5 1 --lr 1", ["fit", "--stats", "0.5,0.5,1", "--lr", "1"]),
        ("--stats=0.5 0.5", ["--stats", "0.5,0.5"]),
        ("--milestones 0.5,0.75 0.9 data", ["--milestones", "0.5,0.75,0.9", "data"]),
        ("--stats report 3", ["--stats", "report", "3"]),
        ("--crop 400 200", ["--crop", "400,200"]),
        ("--crop 224 data", ["--crop", "224", "data"]),
        ("--set a=1 2", ["--set", "a=1", "2"]),
    ],
)
def test_some_options_take_as_many_words_as_are_numbers(typed: str, joined: list[str]) -> None:
    assert join_numbers(typed.split()) == joined


def test_a_tilde_after_an_equals_sign_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    typed = ["fit", "--data=~/my.csv", "--set", "data=~/x", "~/a=~/b", "--out=a/~"]
    assert expand_home(typed) == ["fit", "--data=/home/me/my.csv", "--set", "data=~/x", "~/a=~/b", "--out=a/~"]


def test_a_command_takes_the_settings_of_its_panels_and_its_own_options() -> None:
    taken = []

    @with_settings(TRAINING, only=("epochs", "lr"))
    def train(settings: Config, often: Annotated[int, option("How often.")] = 1) -> None:
        taken.append((settings.epochs, settings.lr, often))

    given = dict.fromkeys(("recipe", "config", "set_", "epochs", "lr"))
    train(**{**given, "epochs": 3, "set_": ["epochs=2", "lr=0.1"]}, often=5)
    assert taken == [(3, 0.1, 5)]
    assert [one.name for one in train.parameters] == ["epochs", "lr", "recipe", "config", "set_", "often"]


class Described(BaseModel):
    """Fields of several types."""

    often: int = option_field(3, "How often.")
    views: tuple[str, ...] = option_field((), "Which views.", note="only the photo")
    size: Literal["auto"] | int = option_field("auto", "How large.")
    soup: bool = option_field(False, "Whether to average.", words="--soup")
    private: int = 1


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Runs a command that prints its options and writes a file, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    app = Commands()

    @app.command()
    @with_options(Described)
    def command(
        options: Described,
        out: Annotated[Path | None, option("A file to write."), NEW_CSV] = None,
        names: Annotated[tuple[str, ...], option("Names.")] = ("a", "b"),
        rare: Annotated[str | None, option("Rare.", note="found", rare=True)] = None,
    ) -> None:
        print(options, names)
        if out is not None:
            out.write_text("new")

    runner = CliRunner()
    return lambda text: runner.invoke(app, text.split())


def test_fields_of_a_model_are_options(show: CliRunner) -> None:
    assert show("").output == "often=3 views=() size='auto' soup=False private=1 ('a', 'b')\n"
    words = "--often 2 --views flip,shift --size 7 --soup --names c"
    assert show(words).output == "often=2 views=('flip', 'shift') size=7 soup=True private=1 ('c',)\n"
    assert show("--private 2").exit_code == 2


def test_help_shows_defaults_one_way_and_rare_options_on_demand(show: CliRunner) -> None:
    text = show("--help").output
    assert "How large. (default: auto)" in text
    assert "Names. (default: a,b)" in text
    assert "How often. (default: 3)" in text
    assert "Which views. (default: only the photo)" in text
    assert "Whether to average.  " in text
    assert "[default" not in text
    assert "Rare" not in text
    assert "Rare. (default: found)" in show("--help-all").output


def test_a_file_is_replaced_only_on_request(show: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    refused = show("--out old")
    assert isinstance(refused.exception, UsageError)
    assert "old exists" in str(refused.exception)
    assert (tmp_path / "old").read_text() == "old"
    assert show("--out old --overwrite").exit_code == 0
    assert (tmp_path / "old").read_text() == "new"
