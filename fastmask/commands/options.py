"""Options: the settings of a run as options of several commands, each written once, and what --json asks of them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from fastmask.system.errors import UsageError
from fastmask.system.terminal import set_quiet

# options that take as many numbers as follow them
_NUMBER_LISTS = ("--stats", "--milestones")
DATA, AUGMENT, NETWORK, TRAINING, RUN = "Data", "Augmentation", "Network", "Training", "Run"
# settings of the panel Run that say where folds are trained: nothing to commands that train none
LAUNCHING = ("launcher", "address", "per_fold", "fetch")
# the groups of commands, in the order of `fastmask --help`
TRAIN, PREDICT, JUDGE, DATA_SETS, MODELS, MACHINE = "Train", "Predict", "Judge", "Data", "Models", "This machine"
GROUPS = (TRAIN, PREDICT, JUDGE, DATA_SETS, MODELS, MACHINE)
# shown by --help; --help-all shows the others, too
_COMMON = (
    *("data", "folds", "crop", "resize", "arch", "pretrained", "weights", "epochs", "hours", "bs", "lr"),
    *("recipe", "config", "set_"),
)

# the help of an option of several commands
WORKERS = "Loading processes. (default: 0 on a CPU or on Windows, else up to 8)"


def option(help_: str, panel: str | None = None, *names: str, metavar: str | None = None, rare: bool = False) -> Any:
    """An option without typer's own note of the default: the help says it where there is one.

    A `rare` option is shown only by --help-all.
    """
    made = typer.Option(*names, help=help_, rich_help_panel=panel, metavar=metavar, show_default=False)
    return _rare(made) if rare else made


def _rare(made: Any) -> Any:
    made = copy(made)
    # shell completion offers hidden options, too
    made.hidden = "_FASTMASK_COMPLETE" not in os.environ
    return made


# a setting's name -> its type on the command line, its help, the panel it is shown in
_SETTINGS: dict[str, tuple[Any, Any]] = {
    "data": (str, option("Contest folder, CSV, a folder a class, or 'sample'. (default: data)", DATA)),
    "heads": (str, option("The CSV's columns to learn, such as colour,shape. (default: found)", DATA)),
    "images": (str, option("The folder that the CSV's paths start from. (default: the CSV's)", DATA)),
    "image_column": (str, option("The CSV's column of photos. (default: path, or found)", DATA)),
    "group_column": (str, option("The CSV's column that tells persons apart. (default: person)", DATA)),
    "fixes": (str, option("A CSV of corrected labels: person or path, column, value.", DATA)),
    "age_bounds": (tuple[float, float], option("Age bounds to train on. (default: 30 60)", DATA)),
    "folds": (int, option("Folds. (default: 5)", DATA)),
    "folds_file": (str, option("A CSV that deals photos or persons into folds.", DATA)),
    "stratify": (str, option("A head or 'joint'. (default: the contest: age; else joint)", DATA)),
    "group": (str, option("person: whole persons; none: the leaky split. (default: person)", DATA)),
    "crop": (tuple[int, int], option("Height and width of the crop. (default: 400 200)", DATA)),
    "resize": (tuple[int, int], option("Height and width to scale the crop to.", DATA)),
    "stats": (str, option("report, pretrained, or three means and three deviations. (default: report)", DATA)),
    "boxes": (
        str,
        option("A CSV of faces, as `faces` writes it: photos are cut to them, to the size of --crop.", DATA),
    ),
    "margin": (float, option("What a face's box is widened by on each side. (default: 0.3)", DATA)),
    "region": (str, option("face, forehead, nose-to-chin or chin-to-neck. (default: face)", DATA)),
    "seed": (int, option("Seed of everything that is drawn. (default: 0)", DATA)),
    "extra": (str, option("A CSV of photos for training alone, with labels of any of the heads.", DATA)),
    "extra_images": (str, option("The folder that the paths of --extra start from. (default: the CSV's)", DATA)),
    "extra_weight": (float, option("What a photo of --extra counts. (default: 1)", DATA)),
    "pseudo": (str, option("A folder of pseudo-labels, as `pseudo` makes it, to train on besides.", DATA)),
    "pseudo_weight": (float, option("What a photo of --pseudo counts. (default: 1)", DATA)),
    "pseudo_least": (float, option("Least probability of a pseudo-label that counts. (default: 0)", DATA)),
    "teacher": (str, option("A run or an ensemble: each fold learns from its models of that fold, besides.", DATA)),
    "teacher_weight": (float, option("Share of the teacher's probabilities in a label. (default: 0.5)", DATA)),
    "teacher_temperature": (float, option("Above 1 the teacher is taken for less sure. (default: 1)", DATA)),
    "drop": (
        str,
        option("Ages to validate but not to train on, such as 27-29,57-59.", DATA, "--drop-ages"),
    ),
    "sampler": (str, option("Draw the classes of joint, or of a head, alike. (default: as they are)", DATA)),
    "erase": (float, option("Probability that a rectangle of a photo is erased. (default: 0)", AUGMENT)),
    "mixup": (float, option("Mix-up: alpha of the shares' Beta, such as 0.4. (default: 0: none)", AUGMENT)),
    "cutmix": (float, option("CutMix: alpha of the areas' Beta, such as 1. (default: 0: none)", AUGMENT)),
    "mix_prob": (float, option("Probability that --mixup or --cutmix mixes a batch. (default: 1)", AUGMENT)),
    "half_cutmix": (float, option("Probability that a side of a photo becomes a partner's. (default: 0)", AUGMENT)),
    "half_shares": (
        tuple[float, float],
        option("Least and greatest share of the partner's side. (default: 0.5 0.5)", AUGMENT),
    ),
    "half_partner": (
        str,
        option(
            "Partners: same (joint class), any, or a class such as 'incorrect female 60+'. (default: same)", AUGMENT
        ),
    ),
    "arch": (str, option("A timm model. (default: tf_efficientnet_b4)", NETWORK)),
    "pretrained": (
        bool,
        option("Start from the weights of timm's hub. (default: yes)", NETWORK, "--pretrained/--no-pretrained"),
    ),
    "weights": (str, option("Start from this file (safetensors, .pth), or each fold from that of a run.", NETWORK)),
    "drop_rate": (float, option("Dropout before the heads. (default: 0)", NETWORK)),
    "drop_path": (float, option("Stochastic depth of the body. (default: 0)", NETWORK)),
    "freeze": (str, option("Keep the body, or its first so many stages, as they are: body, 3.", NETWORK)),
    "unfreeze": (int, option("The epoch from which what --freeze keeps trains, too. (default: never)", NETWORK)),
    "layer_decay": (
        float,
        option("Learning rate of each block of the body, of that above it, such as 0.8. (default: 1)", NETWORK),
    ),
    "epochs": (int, option("Epochs of each fold. (default: 20)", TRAINING)),
    "hours": (float, option("Time for all folds: takes as many epochs, at most --epochs, as fit.", TRAINING)),
    "refit": (int, option("Epochs on all photos at the end, for the models that predict. (default: 0)", TRAINING)),
    "bs": (str, option("Photos a batch, or auto: as many of 32 as fit into memory. (default: 32)", TRAINING)),
    "lr": (float, option("Learning rate; one-cycle's highest. (default: 3e-4)", TRAINING)),
    "wd": (float, option("Weight decay. (default: 1e-5)", TRAINING)),
    "sched": (str, option("multistep, onecycle, cosine or constant. (default: multistep)", TRAINING)),
    "milestones": (str, option("Epochs, or shares under 1, of multistep. (default: 0.5 0.75)", TRAINING)),
    "lr_gamma": (float, option("Factor at each milestone. (default: 0.5)", TRAINING)),
    "accumulate": (int, option("Batches whose gradients make one step. (default: 1)", TRAINING)),
    "ema": (
        float,
        option("Decay of averaged weights that are kept, such as 0.999. (default: 0: none)", TRAINING),
    ),
    "swa": (float, option("Average the weights of the epochs after this share, such as 0.75. (default: 0)", TRAINING)),
    "loss": (str, option("focal or ce. (default: focal)", TRAINING)),
    "focal_gamma": (float, option("Gamma of the focal loss. (default: 2)", TRAINING)),
    "f1_share": (float, option("Share of soft F1 in the loss; 1: soft F1 alone. (default: 0)", TRAINING)),
    "label_smoothing": (float, option("Share of each label dealt to all classes. (default: 0)", TRAINING)),
    "class_weight": (
        str,
        option("none, auto (each class weighs alike), or a YAML of age: [1, 1, 4]. (default: none)", TRAINING),
    ),
    "order": (str, option("Also learn the number behind a head, such as age, as a distribution.", TRAINING)),
    "monitor": (str, option("Metric that stops and saves. (default: macro_f1)", TRAINING)),
    "patience": (int, option("Epochs without a better one before a fold stops; 0: never. (default: 5)", TRAINING)),
    "top_k": (int, option("Checkpoints kept a fold, and averaged. (default: 1)", TRAINING)),
    "on_nan": (str, option("A loss that is no number: stop, or skip the step. (default: stop)", TRAINING)),
    "on_bad_photo": (str, option("A photo that cannot be read: error, or skip it. (default: error)", TRAINING)),
    "save_every": (
        str,
        option("Steps (500) or time (90s, 5m) between states to go on from within an epoch. (default: 60s)", RUN),
    ),
    "tensorboard": (
        bool,
        option("Event files of TensorBoard beside each fold. (default: no)", RUN, "--tensorboard/--no-tensorboard"),
    ),
    "wandb": (str, option("Report to this project of Weights & Biases, a run a fold.", RUN)),
    "mlflow": (str, option("Report to this experiment of MLflow, a run a fold.", RUN)),
    "launcher": (str, option("Folds in turn here: local; side by side on a cluster: ray. (default: local)", RUN)),
    "address": (
        str,
        option("Ray's cluster: auto, HOST:PORT, ray://HOST:PORT. (default: one of this machine's own)", RUN),
    ),
    "per_fold": (
        str,
        option("A fold's share of a node, such as gpu=0.5,cpu=4. (default: a GPU, or the cores torch takes)", RUN),
    ),
    "fetch": (
        bool,
        option("Send folds' files to --out even where Ray's nodes see it. (default: no)", RUN, "--fetch/--no-fetch"),
    ),
    "precision": (str, option("auto, fp32, bf16 or fp16. (default: auto: GPU: bf16 or fp16, CPU: fp32)", RUN)),
    "tf32": (bool, option("TF32 where a GPU computes in fp32. (default: yes)", RUN, "--tf32/--no-tf32")),
    "compile": (bool, option("Compile the network. (default: no)", RUN, "--compile/--no-compile")),
    "cache": (str, option("Where decoded photos are kept: auto, disk, ram or off. (default: auto)", RUN)),
    "cache_dir": (str, option("The folder of decoded photos. (default: the user's cache)", RUN)),
    "workers": (int, option(WORKERS, RUN)),
    "device": (str, option("cpu, cuda:0. (default: the GPU if there is one)", RUN)),
}
_SOURCES: dict[str, tuple[Any, Any]] = {
    "recipe": (str, option("Settings by name: report, quick, winner.", RUN)),
    "config": (Path, option("Settings from a YAML file, over the recipe.", RUN)),
    "set_": (list[str], option("Any setting, over --config; may be repeated.", RUN, "--set", metavar="NAME=VALUE")),
}


def with_settings(
    *panels: str, without: Sequence[str] = (), only: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose first parameter is a `Config` made of the options in `panels` and those that name files of them.

    Of the options some may be left `without`, or `only` some taken. The command line goes over --set, over --config,
    over --recipe, over the defaults.
    """
    there = [n for n, (_, made) in _SETTINGS.items() if made.rich_help_panel in panels]
    names = [n for n in there if n not in without and (not only or n in only)]
    options = {**{n: _SETTINGS[n] for n in names}, **_SOURCES}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            sources = [given.pop(name) for name in _SOURCES]
            settings = {name: given.pop(name) for name in names}
            command(_config({n: v for n, v in settings.items() if v is not None}, *sources), **given)

        added = [
            _parameter(name, Annotated[type_ | None, _rare(made) if name not in _COMMON else made])
            for name, (type_, made) in options.items()
        ]
        return _with_parameters(run, command, [*added, *_parameters(command)[1:]])

    return decorate


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    """The parameters of a command, their annotations resolved."""
    if hasattr(command, "__signature__"):
        # of `with_settings`, which has done so
        return list(command.__signature__.parameters.values())
    hints = get_type_hints(command, localns={"Config": Any}, include_extras=True)
    parameters = inspect.signature(command).parameters.values()
    return [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]


def _with_parameters(
    run: Callable[..., None], command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """`run`, which typer takes for `command` with other parameters."""
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _help_all(context: typer.Context, value: bool) -> None:
    if value:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


_QUIET = _parameter(
    "quiet",
    Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.", callback=set_quiet)],
    False,
)
_HELP_ALL = _parameter(
    "help_all",
    Annotated[bool, typer.Option("--help-all", help="Show all options and exit.", callback=_help_all, is_eager=True)],
    False,
)


class Commands(typer.Typer):
    """A typer app whose commands have --quiet, and --help-all if --help hides some of their options."""

    def command(self, name: str | None = None, **kwargs: Any) -> Callable[[Any], Any]:
        def decorate(command: Callable[..., None]) -> Callable[..., None]:
            own = _parameters(command)
            rare = any(getattr(extra, "hidden", False) for p in own for extra in get_args(p.annotation)[1:])
            added = [_QUIET, *([_HELP_ALL] if rare else [])]

            def run(**given: Any) -> None:
                command(**{p.name: given[p.name] for p in own})

            register(_with_parameters(run, command, [*own, *added]))
            return command

        register = super().command(name, **kwargs)
        return decorate


def _config(given: dict[str, Any], recipe: str | None, config: Path | None, sets: list[str] | None) -> Any:
    from fastmask.config import make_config, parse_sets, read_class_weights, read_recipe, read_settings

    for name in ("stats", "milestones"):
        if name in given and given[name] not in ("report", "pretrained"):
            given[name] = numbers(f"--{name}", given[name])
    for name in ("bs", "freeze"):
        if given.get(name, "").isdecimal() and given[name].isascii():
            given[name] = int(given[name])
    if "drop" in given:
        given["drop"] = {"age": ranges("--drop-ages", given["drop"])}
    if given.get("class_weight") not in (None, "none", "auto"):
        given["alpha"] = read_class_weights(given.pop("class_weight"))
    if "heads" in given:
        given["heads"] = words(given["heads"])
    return make_config(
        read_recipe(recipe) if recipe else {},
        read_settings(config) if config else {},
        parse_sets(sets or []),
        given,
    )


def echo(result: Any, json: bool) -> None:
    """Print a result as text, or, as its --json asks, its plain values."""
    if json:
        from json import dumps

        typer.echo(dumps(result.to_plain(), indent=2))
    else:
        typer.echo(str(result))


def ranges(option_: str, text: str) -> list[list[float]]:
    """`27-29,57` -> [[27, 29], [57, 57]]; raises UsageError naming the option."""
    try:
        ends = [[float(end) for end in part.split("-")] for part in text.split(",")]
        return [[low, high] for low, high in ([*both, *both][:2] if len(both) == 1 else both for both in ends)]
    except ValueError:
        raise UsageError(f"{option_} {text}: expected ranges such as 27-29,57-59.") from None


def words(text: str) -> list[str]:
    """`a, b` -> ["a", "b"]."""
    return [word.strip() for word in text.split(",")]


def numbers(option_: str, text: str, kind: Callable[[str], Any] = float) -> list[Any]:
    """`0.5,0.75` -> [0.5, 0.75]; raises UsageError naming the option."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers, separated by commas" if kind is int else "numbers, separated by spaces or commas"
        raise UsageError(f"{option_} {text}: expected {what}.") from None


def join_numbers(arguments: Sequence[str]) -> list[str]:
    """`--stats 0.5 0.5` -> `--stats 0.5,0.5`: these options take as many words as are numbers."""
    joined: list[str] = []
    for word in _split_equals(arguments):
        if (
            len(joined) >= 2
            and joined[-2] in _NUMBER_LISTS
            and _is_number(word)
            and _is_number(joined[-1].split(",")[-1])
        ):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def _split_equals(arguments: Sequence[str]) -> Iterator[str]:
    """`--stats=0.5` -> `--stats`, `0.5`."""
    for word in arguments:
        option_, equals, value = word.partition("=")
        yield from (option_, value) if equals and option_ in _NUMBER_LISTS else (word,)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
