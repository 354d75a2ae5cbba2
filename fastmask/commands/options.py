"""Options: described fields as options of commands, and the options that all or several commands have."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from typer.models import ParameterInfo

from fastmask.config import (
    PANELS,
    RUN,
    Config,
    make_config,
    parse_sets,
    read_class_weights,
    read_recipe,
    read_settings,
)
from fastmask.system.annotations import alternatives, is_size
from fastmask.system.errors import UsageError
from fastmask.system.fields import describe, make_model, option_name, spell_default
from fastmask.system.files import check_new_csv, check_new_picture
from fastmask.system.terminal import set_quiet

Command = Callable[..., None]
# the groups of commands, in the order of `fastmask --help`
TRAIN, PREDICT, JUDGE, DATA_SETS, MODELS, MACHINE = "Train", "Predict", "Judge", "Data", "Models", "This machine"
MANUAL = "Manual"
GROUPS = (TRAIN, PREDICT, JUDGE, DATA_SETS, MODELS, MACHINE, MANUAL)


def option(
    help_: str, *names: str, panel: str | None = None, note: str | None = None, rare: bool = False, **more: Any
) -> Any:
    """An option; its help ends with the default value, or with a `note` on the default.

    A `rare` option is shown by --help-all only.
    """
    # shell completion offers hidden options, too
    hidden = rare and "_FASTMASK_COMPLETE" not in os.environ
    return typer.Option(
        ..., *names, help=help_, rich_help_panel=panel, show_default=note or True, hidden=hidden, **more
    )


# options and arguments of several commands
RunArgument = Annotated[Path, typer.Argument(help="The run directory.", show_default=False)]
RunsArgument = Annotated[list[Path], typer.Argument(help="Runs with photos in common.", metavar="RUN RUN ...")]
ImagesArgument = Annotated[Path, typer.Argument(help="A folder of photos.", show_default=False)]
NewRun = Annotated[Path, option("The run directory to create.")]
Json = Annotated[bool, option("Print JSON.", "--json")]
Overwrite = Annotated[bool, option("Replace existing output.", "--overwrite")]
# marks an option that names a file to write: it is checked before the command runs, and the command gets --overwrite
NEW_CSV, NEW_PICTURE = check_new_csv, check_new_picture

_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class _Parameter:
    """A parameter of a command: its type and option for typer, a parser of its text, and a check of its value."""

    name: str
    kind: Any
    info: ParameterInfo
    default: Any = None
    read: Callable[[Any], Any] | None = None
    check: Callable[..., None] | None = None

    def in_panel(self, panel: str | None) -> _Parameter:
        """In a panel of the help, if it is not in another."""
        info = copy(self.info)
        info.rich_help_panel = info.rich_help_panel or panel
        return replace(self, info=info)

    def value(self, given: Any) -> Any:
        """Convert and check a value given by typer."""
        if given is None or self.read is None:
            return self.default if given is None else given
        try:
            return self.read(given)
        except ValueError as error:
            name = next(iter(self.info.param_decls or ()), f"--{self.name.replace('_', '-')}")
            shown = " ".join(given) if isinstance(given, list) else given
            raise UsageError(f"{name} {shown}: {error}.") from None

    def to_typer(self) -> inspect.Parameter:
        """The parameter for typer, with the default in its help."""
        info, default = copy(self.info), self.default
        # a flag without a negative is off
        switch = isinstance(default, bool) and not any("/" in name for name in info.param_decls or ())
        note = info.show_default if isinstance(info.show_default, str) else None if switch else spell_default(default)
        info.help, info.show_default = f"{info.help} (default: {note})" if note else info.help, False
        if self.read is not None and default is not _REQUIRED:
            default = None
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.name, kind, default=default, annotation=Annotated[self.kind, info])


_SOURCES = [
    _Parameter("recipe", str | None, option("Settings by name: strong, report, winner, quick.", panel=RUN)),
    _Parameter("config", Path | None, option("Settings from a YAML file, over the recipe.", panel=RUN)),
    _Parameter(
        "set_",
        list[str] | None,
        option("Any setting, over --config; may be repeated.", "--set", panel=RUN, metavar="NAME=VALUE"),
    ),
]


def with_settings(*panels: str, without: Sequence[str] = (), only: Sequence[str] = ()) -> Callable[[Command], Command]:
    """A decorator that makes a command's first parameter, a `Config`, from options in `panels`, --set and others.

    `without` excludes options, `only` selects some. The command line takes precedence over --set, --set over --config,
    --config over --recipe, and that over the defaults. If the command has settings in the panel Run, its own options
    are in that panel, too.
    """
    panel_of = {name: describe(Config, name).panel for name in Config.model_fields}
    names = [n for panel in PANELS if panel in panels for n, of in panel_of.items() if of == panel]
    names = [name for name in names if name not in without and (not only or name in only)]
    fields = [_field(Config, name, rare=not describe(Config, name).common) for name in names]

    def build(given: dict[str, Any]) -> Config:
        recipe, config, sets = (given.pop(one.name) for one in _SOURCES)
        if given.get("class_weight") not in (None, "none", "auto"):
            given["alpha"] = read_class_weights(given.pop("class_weight"))
        return make_config(
            read_recipe(recipe) if recipe else {},
            read_settings(config) if config else {},
            parse_sets(sets or []),
            {name: value for name, value in given.items() if value is not None},
        )

    panel = RUN if RUN in panels else None
    return _build_first(build, lambda own: [*fields, *_SOURCES, *(one.in_panel(panel) for one in own)])


def with_options(model: type[BaseModel]) -> Callable[[Command], Command]:
    """A decorator that makes a command's first parameter, a `model`, from options for its described fields."""
    fields = [_field(model, name) for name, field in model.model_fields.items() if field.json_schema_extra]

    def build(given: dict[str, Any]) -> BaseModel:
        return make_model(model, {name: value for name, value in given.items() if value is not None})

    return _build_first(build, lambda own: [*own, *fields])


def _build_first(
    build: Callable[[dict[str, Any]], BaseModel], extend: Callable[[list[_Parameter]], list[_Parameter]]
) -> Callable[[Command], Command]:
    """A decorator that builds the first parameter of a command from the parameters that `extend` adds."""

    def decorate(command: Command) -> Command:
        own = _parameters(command)
        names = {one.name for one in own}

        def run(**given: Any) -> None:
            first = build({name: value for name, value in given.items() if name not in names})
            command(first, **{name: value for name, value in given.items() if name in names})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.parameters = extend(own)  # type: ignore[attr-defined]
        return run

    return decorate


def _parameters(command: Command) -> list[_Parameter]:
    """The parameters of a command, without the model that is built from options."""
    if hasattr(command, "parameters"):
        return command.parameters
    hints = get_type_hints(command, include_extras=True, localns={"Config": Any})
    found = []
    for parameter in inspect.signature(command).parameters.values():
        if get_origin(hints[parameter.name]) is Annotated:
            kind, info, *checks = get_args(hints[parameter.name])
            is_list = any(get_origin(one) is tuple and ... in get_args(one) for one in alternatives(kind))
            kind, read = _form(kind) if is_list else (kind, None)
            found.append(_Parameter(parameter.name, kind, info, parameter.default, read, *checks))
    return found


@cache
def _field(model: type[BaseModel], name: str, rare: bool = False) -> _Parameter:
    """A field as an option, with the value None if it is not given."""
    field, shown, names = model.model_fields[name], describe(model, name), option_name(model, name)
    default = None if field.annotation is bool and "/" not in names else field.default
    note = shown.note or spell_default(default)
    kind, read = _form(field.annotation)
    info = option(str(field.description), names, panel=shown.panel, note=note, rare=rare)
    of_words = _element(field.annotation) is str and shown.read is None
    read = shown.read or read
    if (shown.repeats or of_words) and read is not None:
        info.metavar = "NAME,NAME" if of_words else "NAME=VALUE"
        return _Parameter(name, list[str] | None, info, read=partial(_read_repeated, read))
    return _Parameter(name, kind | None, info, read=read)


def _read_repeated(read: Callable[[str], Any], texts: Sequence[str]) -> Any:
    """The value of an option that may be repeated; None if it is not given."""
    return read(",".join(texts)) if texts else None


def _form(annotation: Any) -> tuple[Any, Callable[[str], Any] | None]:
    """The type for typer, and a parser for texts that typer cannot read."""
    found, element = alternatives(annotation), _element(annotation)
    kinds = list(dict.fromkeys(one if isinstance(one, type) or get_origin(one) else type(one) for one in found))
    if element is not None:
        of = next(get_origin(one) for one in found if get_origin(one) in (list, tuple))
        return str, lambda text: text if text in found else of(_READERS.get(element, words)(text))
    if len(kinds) > 1:
        return str, _number_or_word if int in kinds else None
    if is_size(annotation):
        return str, None
    if get_origin(kinds[0]) is tuple:
        return tuple[*(alternatives(part)[0] for part in get_args(kinds[0]))], None  # type: ignore[misc]
    return (str if get_origin(kinds[0]) is dict else kinds[0]), None


def _element(annotation: Any) -> Any:
    """The type of the elements of a list, which is one word of the command line; None for what is not such a list."""
    found = alternatives(annotation)
    lists = [one for one in found if get_origin(one) in (list, tuple)]
    pair = len(found) == 1 and get_origin(found[0]) is tuple and ... not in get_args(found[0])
    return None if pair or not lists else alternatives(get_args(lists[0])[0])[0]


def _help_all(context: typer.Context, value: bool) -> None:
    if value:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


_QUIET = option("Print only results, warnings and errors.", "--quiet", "-q", callback=set_quiet)
_HELP_ALL = option("Show all options and exit.", "--help-all", callback=_help_all, is_eager=True)


class Commands(typer.Typer):
    """A typer app that adds to commands --quiet, --help-all if --help hides options, --overwrite if they write files.

    A parameter `tuple[X, ...]` is one word with commas. A file that a command is to write is checked before it runs.
    """

    def command(self, name: str | None = None, **kwargs: Any) -> Callable[[Any], Any]:
        def decorate(command: Command) -> Command:
            own = _parameters(command)
            added = [_Parameter("quiet", bool, _QUIET, False)]
            if any(one.check for one in own) and not any(one.name == "overwrite" for one in own):
                overwrite = _Parameter("overwrite", bool, get_args(Overwrite)[1], False)
                added.insert(0, overwrite.in_panel(own[-1].info.rich_help_panel))
            if any(one.info.hidden for one in own):
                added.append(_Parameter("help_all", bool, _HELP_ALL, False))

            def run(**given: Any) -> None:
                _check_outputs([one for one in own if one.check], given)
                command(**{one.name: one.value(given[one.name]) for one in own})

            run.__name__, run.__doc__ = command.__name__, command.__doc__
            shown = [one.to_typer() for one in (*own, *added)]
            run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
            run.__annotations__ = {one.name: one.annotation for one in shown}
            register(run)
            return command

        register = super().command(name, **kwargs)
        return decorate


def _check_outputs(outputs: Sequence[_Parameter], given: Mapping[str, Any]) -> None:
    """Raise UsageError for a file that cannot be written, or that exists and may not be replaced."""
    names = [one.name for one in outputs]
    values = [value if isinstance(value, list) else [value] for name, value in given.items() if name not in names]
    inputs = [one for value in values for one in value if isinstance(one, Path)]
    for one in outputs:
        if one.check is not None and given[one.name] is not None:
            one.check(given[one.name], given["overwrite"], *inputs)


def echo(result: Any, json: bool) -> None:
    """Print a result as text, or its plain values with --json."""
    if json:
        from json import dumps

        typer.echo(dumps(result.to_plain(), indent=2))
    else:
        typer.echo(str(result))


def words(text: str) -> list[str]:
    """`a, b` -> ["a", "b"]."""
    return [word.strip() for word in text.split(",")]


def whole_numbers(text: str) -> list[int]:
    """`0,3` -> [0, 3]; raises ValueError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError("expected whole numbers, separated by commas") from None


def numbers(text: str) -> list[float]:
    """`0.5,0.75` -> [0.5, 0.75]; raises ValueError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError("expected numbers, separated by spaces or commas") from None


# parsers of lists, by the type of the elements
_READERS: dict[Any, Callable[[str], list[Any]]] = {str: words, int: whole_numbers, float: numbers}


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() and text.isascii() else text


def join_numbers(arguments: Sequence[str]) -> list[str]:
    """`--stats 0.5 0.5` -> `--stats 0.5,0.5`: lists of numbers take all following numbers."""
    kinds = {option_name(Config, name): field.annotation for name, field in Config.model_fields.items()}
    lists = [name for name, kind in kinds.items() if _element(kind) is float or is_size(kind)]
    joined: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if equals and name in lists:
            joined += [name, value]
        elif len(joined) >= 2 and joined[-2] in lists and _are_numbers(f"{joined[-1]},{word}"):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def expand_home(arguments: Sequence[str]) -> list[str]:
    """`--data=~/x` -> `--data=/home/me/x`, where shells leave the `~`."""
    pairs = [word.partition("=") for word in arguments]
    return [
        f"{name}={os.path.expanduser(value)}" if equals and name[:2] == "--" else word
        for word, (name, equals, value) in zip(arguments, pairs, strict=True)
    ]


def _are_numbers(text: str) -> bool:
    try:
        return bool(numbers(text))
    except ValueError:
        return False
