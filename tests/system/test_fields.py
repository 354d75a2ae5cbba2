from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from fastmask.system.errors import UsageError
from fastmask.system.fields import alternatives, describe, make_model, option_field, option_name


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    views: Annotated[int, Field(ge=1)] = option_field(1, "Views per photo.", "Data", note="one")
    mirror_image: bool = option_field(False, "Add the mirror image.")
    soup: bool = option_field(False, "Average weights.", words="--soup")
    size: Literal["auto"] | tuple[int, int] | None = option_field(None, "Auto, or height and width.")


def test_a_field_says_how_the_command_line_shows_it():
    assert (describe(Options, "views").panel, describe(Options, "views").note) == ("Data", "one")
    names = [option_name(Options, name) for name in Options.model_fields]
    assert names == ["--views", "--mirror-image/--no-mirror-image", "--soup", "--size"]


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (Annotated[int, Field(ge=1)] | None, [int]),
        (Literal["auto", "off"] | float, ["auto", "off", float]),
        (list[str] | dict[str, int], [list[str], dict[str, int]]),
    ],
)
def test_the_alternatives_of_an_annotation(annotation, found):
    assert alternatives(annotation) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"view": 2}, "There is no option 'view'; did you mean 'views'?"),
        ({"zoom": 2}, "There is no option 'zoom'."),
        ({"views": 0}, "Option views: input should be greater than or equal to 1, found 0."),
        ({"size": 7}, "Option size: expected auto, or height and width; found 7."),
        ({"views": 0, "soup": "x"}, "Option views: .*found 0. Option soup: .*found 'x'."),
    ],
)
def test_each_mistake_is_one_sentence(given, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        make_model(Options, given)
    assert make_model(Options, {"size": (1, 2)}).size == (1, 2)
