"""Options: described fields as options of commands, and the options that all or several commands have."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from typer.models import ParameterInfo

from fastmask.config import (
    PANELS,
    RUN,
    Config,
    alternatives,
    describe,
    make,
    make_config,
    option_name,
    parse_sets,
    read_class_weights,
    read_recipe,
    read_settings,
)
from fastmask.system.errors import UsageError
from fastmask.system.files import check_new, check_new_picture
from fastmask.system.terminal import set_quiet

Command = Callable[..., None]
# the groups of commands, in the order of `fastmask --help`
GROUPS = TRAIN, PREDICT, JUDGE, DATA_SETS, MODELS, MACHINE = (
    *("Train", "Predict", "Judge", "Data", "Models", "This machine"),
)


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
RunsArgument = Annotated[list[Path], typer.Argument(help="Runs of the same photos and labels.", metavar="RUN RUN ...")]
ImagesArgument = Annotated[Path, typer.Argument(help="A folder of photos.", show_default=False)]
NewRun = Annotated[Path, option("The run directory to create.")]
Json = Annotated[bool, option("Print JSON.", "--json")]
Overwrite = Annotated[bool, option("Replace existing output.", "--overwrite")]
# next to an option that names a file to write: it is checked before the command runs, which gets --overwrite for it
NEW_FILE, NEW_PICTURE = _CHECKS = (check_new, check_new_picture)

_SOURCES = {
    "recipe": Annotated[str | None, option("Settings by name: report, quick, winner.")],
    "config": Annotated[Path | None, option("Settings from a YAML file, over the recipe.")],
    "set_": Annotated[
        list[str] | None, option("Any setting, over --config; may be repeated.", "--set", metavar="NAME=VALUE")
    ],
}


def with_settings(*panels: str, without: Sequence[str] = (), only: Sequence[str] = ()) -> Callable[[Command], Command]:
    """A command whose first parameter is a `Config`, made of the options in `panels`, --set, --config and --recipe.

    Some options may be left out by `without`, or only some taken by `only`. The command line takes precedence over
    --set, --set over --config, --config over --recipe, and that over the defaults. Options of the command itself are in
    the panel Run where the settings of that panel are.
    """
    panel_of = {name: describe(Config, name).panel for name in Config.model_fields}
    names = [n for panel in PANELS if panel in panels for n, of in panel_of.items() if of == panel]
    names = [name for name in names if name not in without and (not only or name in only)]

    def build(given: dict[str, Any]) -> Config:
        recipe, config, sets = (given.pop(name) for name in _SOURCES)
        settings = _read(Config, given)
        if settings.get("class_weight") not in (None, "none", "auto"):
            settings["alpha"] = read_class_weights(settings.pop("class_weight"))
        return make_config(
            read_recipe(recipe) if recipe else {},
            read_settings(config) if config else {},
            parse_sets(sets or []),
            settings,
        )

    sources = [_in_panel(_parameter(name, annotation), RUN) for name, annotation in _SOURCES.items()]
    options = [*(_field(Config, name, rare=not describe(Config, name).common) for name in names), *sources]
    return _built(options, build, first=True, panel=RUN if RUN in panels else None)


def with_options(model: type[BaseModel]) -> Callable[[Command], Command]:
    """A command whose first parameter is a `model`, made of the options of its described fields."""
    options = [_field(model, name) for name, field in model.model_fields.items() if field.json_schema_extra]
    return _built(options, lambda given: make(model, _read(model, given)))


def _built(
    options: Sequence[inspect.Parameter],
    build: Callable[[dict[str, Any]], BaseModel],
    first: bool = False,
    panel: str | None = None,
) -> Callable[[Command], Command]:
    """A decorator: the first parameter of a command is built of `options`, which come before its own or after them."""

    def decorate(command: Command) -> Command:
        def run(**given: Any) -> None:
            taken = {one.name: given.pop(one.name) for one in options}
            command(build(taken), **given)

        own = [_in_panel(one, panel) for one in _parameters(command)[1:]]
        return _with_parameters(run, command, [*options, *own] if first else [*own, *options])

    return decorate


def _field(model: type[BaseModel], name: str, rare: bool = False) -> inspect.Parameter:
    """A field as an option, whose value is None if it is not given."""
    field, shown, names = model.model_fields[name], describe(model, name), option_name(model, name)
    default = None if field.annotation is bool and "/" not in names else field.default
    note = shown.note or _in_words(default)
    made = option(str(field.description), names, panel=shown.panel, note=note, rare=rare)
    return _parameter(name, Annotated[_form(field.annotation)[0] | None, made])


def _form(annotation: Any) -> tuple[Any, Callable[[str], Any] | None]:
    """The type that typer has for an annotation, and what reads the text if typer does not."""
    found = alternatives(annotation)
    kinds = list(dict.fromkeys(one if isinstance(one, type) or get_origin(one) else type(one) for one in found))
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
    if len(kinds) == 1 and not lists:
        return (str if get_origin(kinds[0]) is dict else kinds[0]), None
    if len(kinds) == 1 and get_origin(kinds[0]) is tuple and ... not in get_args(kinds[0]):
        return tuple[*(alternatives(part)[0] for part in get_args(kinds[0]))], None  # type: ignore[misc]
    if lists:
        element = alternatives(get_args(lists[0])[0])[0]
        return str, {str: words, int: whole_numbers, float: numbers}.get(element)
    return str, _number_or_word if int in kinds else None


def _read(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of fields as the command line gives them, without those that it does not give."""
    return {name: _read_field(model, name, value) for name, value in given.items() if value is not None}


def _read_field(model: type[BaseModel], name: str, value: Any) -> Any:
    annotation = model.model_fields[name].annotation
    read = describe(model, name).read or _form(annotation)[1]
    return (
        value if read is None or value in alternatives(annotation) else _parsed(option_name(model, name), value, read)
    )


def _parsed(option_: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f"{option_} {text}: {error}.") from None


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters(command: Command) -> list[inspect.Parameter]:
    """The parameters of a command, their annotations resolved."""
    if hasattr(command, "__signature__"):
        # of `with_settings`, which has done so
        return list(command.__signature__.parameters.values())
    hints = get_type_hints(command, include_extras=True, localns={"Config": Any})
    parameters = inspect.signature(command).parameters.values()
    return [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]


def _with_parameters(run: Command, command: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    """`run`, which typer takes for `command` with other parameters."""
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _changed(parameter: inspect.Parameter, kind: Any = None, **values: Any) -> inspect.Parameter:
    """The parameter with another type, or with other values of its option or argument."""
    old, *extras = get_args(parameter.annotation)
    extras = [copy(one) for one in extras]
    for one in extras:
        if isinstance(one, ParameterInfo):
            vars(one).update(values)
    return parameter.replace(annotation=Annotated[kind or old, *extras])


def _info(parameter: inspect.Parameter) -> ParameterInfo:
    return next(one for one in get_args(parameter.annotation) if isinstance(one, ParameterInfo))


def _in_panel(parameter: inspect.Parameter, panel: str | None) -> inspect.Parameter:
    return _changed(parameter, rich_help_panel=_info(parameter).rich_help_panel or panel)


def _noted(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with its default in the help, and of a type that typer knows."""
    info, kind, default = _info(parameter), None, parameter.default
    note = info.show_default if isinstance(info.show_default, str) else None
    if info.show_default is True:
        # a flag without a negative is off
        switch = isinstance(default, bool) and not any("/" in name for name in info.param_decls or ())
        note = None if switch else _in_words(default)
    if _is_list(parameter):
        kind, default = str, default if default is inspect.Parameter.empty else _in_words(default)
    help_ = f"{info.help} (default: {note})" if note else info.help
    return _changed(parameter, kind, help=help_, show_default=False).replace(default=default)


def _in_words(default: Any) -> str | None:
    """A default value as the help shows it; None where there is nothing to show."""
    if default in (None, "", (), inspect.Parameter.empty):
        return None
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, list | tuple):
        return (",".join(default)) if isinstance(default[0], str) else " ".join(f"{one:g}" for one in default)
    return f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else str(default)


def _is_list(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is a `tuple[X, ...]`, which the command line gives as one word with commas."""
    return any(
        get_origin(kind) is tuple and ... in get_args(kind) for kind in alternatives(get_args(parameter.annotation)[0])
    )


def _help_all(context: typer.Context, value: bool) -> None:
    if value:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


_QUIET = _parameter(
    "quiet",
    Annotated[bool, option("Print only results, warnings and errors.", "--quiet", "-q", callback=set_quiet)],
    False,
)
_HELP_ALL = _parameter(
    "help_all",
    Annotated[bool, option("Show all options and exit.", "--help-all", callback=_help_all, is_eager=True)],
    False,
)
_OVERWRITE = _parameter("overwrite", Overwrite, False)


class Commands(typer.Typer):
    """A typer app whose commands have --quiet, --help-all if --help hides options, and --overwrite if they write files.

    A parameter `tuple[X, ...]` is one word with commas. A file that a command is to write is checked before it runs.
    """

    def command(self, name: str | None = None, **kwargs: Any) -> Callable[[Any], Any]:
        def decorate(command: Command) -> Command:
            own = _parameters(command)
            checks = {p.name: check for p in own for check in get_args(p.annotation) if check in _CHECKS}
            added = [_QUIET]
            if checks and not any(p.name == "overwrite" for p in own):
                panel = _info(own[-1]).rich_help_panel
                added.insert(0, _in_panel(_OVERWRITE, panel))
            if any(_info(p).hidden for p in own):
                added.append(_HELP_ALL)

            def run(**given: Any) -> None:
                _check_outputs(checks, given)
                command(**{p.name: _value(p, given[p.name]) for p in own})

            register(_with_parameters(run, command, [_noted(p) for p in (*own, *added)]))
            return command

        register = super().command(name, **kwargs)
        return decorate


def _value(parameter: inspect.Parameter, value: Any) -> Any:
    if not _is_list(parameter):
        return value
    if value is None:
        return parameter.default
    name = next(iter(_info(parameter).param_decls or ()), f"--{parameter.name.replace('_', '-')}")
    read = _form(get_args(parameter.annotation)[0])[1] or words
    return tuple(_parsed(name, value, read))


def _check_outputs(checks: Mapping[str, Callable[..., None]], given: Mapping[str, Any]) -> None:
    """Raise UsageError for a file that cannot be written, or that exists and may not be replaced."""
    values = [value for name, value in given.items() if name not in checks]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    inputs = [one for one in flat if isinstance(one, Path)]
    for name, check in checks.items():
        if given[name] is not None:
            check(given[name], given["overwrite"], *inputs)


def echo(result: Any, json: bool) -> None:
    """Print a result as text, or, as its --json asks, its plain values."""
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


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() and text.isascii() else text


def join_numbers(arguments: Sequence[str]) -> list[str]:
    """`--stats 0.5 0.5` -> `--stats 0.5,0.5`: settings that are lists of numbers take as many words as are numbers."""
    lists = [option_name(Config, n) for n, f in Config.model_fields.items() if _form(f.annotation)[1] is numbers]
    joined: list[str] = []
    for word in _split_equals(arguments, lists):
        if len(joined) >= 2 and joined[-2] in lists and _is_number(word) and _is_number(joined[-1].split(",")[-1]):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def _split_equals(arguments: Sequence[str], lists: Sequence[str]) -> Iterator[str]:
    """`--stats=0.5` -> `--stats`, `0.5`."""
    for word in arguments:
        option_, equals, value = word.partition("=")
        yield from (option_, value) if equals and option_ in lists else (word,)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
