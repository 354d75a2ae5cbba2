"""What the words of the command line come to."""

import pytest

from fastmask.commands.options import join_numbers, numbers, ranges, with_settings, words
from fastmask.config import Config
from fastmask.system.errors import UsageError


def test_lists_of_words_numbers_and_ranges() -> None:
    assert words("a, b,c d") == ["a", "b", "c d"]
    assert numbers("--fold", "0,3", int) == [0, 3]
    assert numbers("--stats", "0.5,1e-3") == [0.5, 0.001]
    assert ranges("--drop-ages", "27-29,57") == [[27, 29], [57, 57]]


@pytest.mark.parametrize("text", ["a", "1-2-3", "", "1-", "1,,2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--drop-ages {text}: expected ranges such as 27-29,57-59"):
        ranges("--drop-ages", text)


def test_what_is_no_number_is_refused_by_its_kind() -> None:
    with pytest.raises(UsageError, match="--fold 0.5: expected whole numbers, separated by commas"):
        numbers("--fold", "0.5", int)
    with pytest.raises(UsageError, match="--stats a: expected numbers, separated by spaces or commas"):
        numbers("--stats", "a")


@pytest.mark.parametrize(
    ("typed", "joined"),
    [
        ("fit --stats 0.5 0.5 1 --lr 1", ["fit", "--stats", "0.5,0.5,1", "--lr", "1"]),
        ("--stats=0.5 0.5", ["--stats", "0.5,0.5"]),
        ("--milestones 0.5,0.75 0.9 data", ["--milestones", "0.5,0.75,0.9", "data"]),
        ("--stats report 3", ["--stats", "report", "3"]),
        ("--crop 400 200", ["--crop", "400", "200"]),
        ("--set a=1 2", ["--set", "a=1", "2"]),
    ],
)
def test_some_options_take_as_many_words_as_are_numbers(typed: str, joined: list[str]) -> None:
    assert join_numbers(typed.split()) == joined


def test_a_command_takes_the_settings_of_its_panels_and_its_own_options() -> None:
    asked = []

    @with_settings("Training", only=("epochs", "lr"))
    def train(settings: Config, often: int = 1) -> None:
        asked.append((settings.epochs, settings.lr, often))

    given = dict.fromkeys(("recipe", "config", "set_", "epochs", "lr"))
    train(**{**given, "epochs": 3, "set_": ["epochs=2", "lr=0.1"]}, often=5)
    assert asked == [(3, 0.1, 5)]
    assert list(train.__signature__.parameters) == ["epochs", "lr", "recipe", "config", "set_", "often"]
