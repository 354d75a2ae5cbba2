from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from fastmask.system.errors import UsageError
from fastmask.system.fields import describe, make_model, option_field, option_name


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
    ("given", "message"),
    [
        ({"view": 2}, "There is no option 'view'; did you mean 'views'?"),
        ({"zoom": 2}, "There is no option 'zoom'."),
        ({"views": 0}, "Option views: found 0, expected a whole number from 1."),
        ({"size": "big"}, "Option size: found 'big', expected auto or two whole numbers."),
        ({"views": 0, "soup": "x"}, "Option views: found 0, .*. Option soup: found 'x', expected true or false."),
    ],
)
def test_each_mistake_is_one_sentence(given, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        make_model(Options, given)
    assert make_model(Options, {"size": (1, 2)}).size == (1, 2)
