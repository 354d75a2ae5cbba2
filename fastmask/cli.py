"""The command line: parse, call, print.

Results go to stdout, everything else to stderr. Exit 0: done; 1: failed; 2: asked wrongly; 130: interrupted. Nothing
heavy is imported before a command runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmask.errors import FastmaskError, FastmaskWarning, UsageError
from fastmask.files import check_target

if TYPE_CHECKING:
    from fastmask.config import Config
    from fastmask.data.table import Table

app = typer.Typer(
    name="fastmask",
    help="Train, cross-validate, judge and apply classifiers of several attributes of one photo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# the exit code that typer gives a Ctrl-C
INTERRUPTED = 130
# options that take as many numbers as follow them
_NUMBER_LISTS = ("--stats", "--milestones")
_DATA, _NETWORK, _TRAINING, _RUN = "Data", "Network", "Training", "Run"


def _option(help_: str, panel: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=panel, metavar=metavar, show_default=False)


@app.command()
def fit(
    ctx: typer.Context,
    data: Annotated[str | None, _option("Contest folder, or 'sample'. (default: data)", _DATA)] = None,
    age_bounds: Annotated[
        tuple[float, float] | None, _option("Age bounds to train on. (default: 30 60)", _DATA)
    ] = None,
    folds: Annotated[int | None, _option("Folds. (default: 5)", _DATA)] = None,
    stratify: Annotated[str | None, _option("A head or 'joint'. (default: the contest: age)", _DATA)] = None,
    group: Annotated[
        str | None, _option("person: whole persons; none: the leaky split. (default: person)", _DATA)
    ] = None,
    crop: Annotated[tuple[int, int] | None, _option("Height and width of the crop. (default: 400 200)", _DATA)] = None,
    resize: Annotated[tuple[int, int] | None, _option("Height and width to scale the crop to.", _DATA)] = None,
    stats: Annotated[
        str | None, _option("report, pretrained, or three means and three deviations. (default: report)", _DATA)
    ] = None,
    seed: Annotated[int | None, _option("Seed of everything that is drawn. (default: 0)", _DATA)] = None,
    arch: Annotated[str | None, _option("A timm model. (default: tf_efficientnet_b4)", _NETWORK)] = None,
    pretrained: Annotated[
        bool | None,
        _option("Start from the weights of timm's hub. (default: yes)", _NETWORK, "--pretrained/--no-pretrained"),
    ] = None,
    weights: Annotated[str | None, _option("Start from this file (safetensors, .pth).", _NETWORK)] = None,
    drop_rate: Annotated[float | None, _option("Dropout before the heads. (default: 0)", _NETWORK)] = None,
    drop_path: Annotated[float | None, _option("Stochastic depth of the body. (default: 0)", _NETWORK)] = None,
    epochs: Annotated[int | None, _option("Epochs of each fold. (default: 20)", _TRAINING)] = None,
    bs: Annotated[int | None, _option("Photos a batch. (default: 32)", _TRAINING)] = None,
    lr: Annotated[float | None, _option("Learning rate; one-cycle's highest. (default: 3e-4)", _TRAINING)] = None,
    wd: Annotated[float | None, _option("Weight decay. (default: 1e-5)", _TRAINING)] = None,
    sched: Annotated[
        str | None, _option("multistep, onecycle, cosine or constant. (default: multistep)", _TRAINING)
    ] = None,
    milestones: Annotated[
        str | None, _option("Epochs, or shares under 1, of multistep. (default: 0.5 0.75)", _TRAINING)
    ] = None,
    lr_gamma: Annotated[float | None, _option("Factor at each milestone. (default: 0.5)", _TRAINING)] = None,
    loss: Annotated[str | None, _option("focal or ce. (default: focal)", _TRAINING)] = None,
    focal_gamma: Annotated[float | None, _option("Gamma of the focal loss. (default: 2)", _TRAINING)] = None,
    monitor: Annotated[str | None, _option("Metric that stops and saves. (default: macro_f1)", _TRAINING)] = None,
    patience: Annotated[
        int | None, _option("Epochs without a better one before a fold stops; 0: never. (default: 5)", _TRAINING)
    ] = None,
    top_k: Annotated[int | None, _option("Checkpoints kept a fold, and averaged. (default: 1)", _TRAINING)] = None,
    workers: Annotated[int | None, _option("Loading processes. (default: CPU: 0, GPU: up to 8)", _RUN)] = None,
    device: Annotated[str | None, _option("cpu, cuda:0. (default: the GPU if there is one)", _RUN)] = None,
    recipe: Annotated[str | None, _option("Settings by name: report, quick.", _RUN)] = None,
    config: Annotated[Path | None, _option("Settings from a YAML file, over the recipe.", _RUN)] = None,
    set_: Annotated[
        list[str] | None, _option("Any setting, over --config; may be repeated.", _RUN, "--set", metavar="NAME=VALUE")
    ] = None,
    out: Annotated[Path | None, _option("The run directory. (default: runs/ARCH)", _RUN)] = None,
    resume: Annotated[bool, _option("Go on with the folds that the run in --out lacks.", _RUN, "--resume")] = False,
    overwrite: Annotated[bool, _option("Replace the run in --out.", _RUN, "--overwrite")] = False,
    print_config: Annotated[bool, _option("Print the effective settings and stop.", _RUN, "--print-config")] = False,
) -> None:
    """Train every fold, and print the out-of-fold score.

    Settings: command line over --set over --config over --recipe over defaults, which are the report's recipe with
    whole persons in each fold.
    """
    from fastmask.config import make_config, parse_sets, read_recipe, read_settings

    settings = make_config(
        read_recipe(recipe) if recipe else {},
        read_settings(config) if config else {},
        parse_sets(set_ or []),
        _given(ctx),
    )
    if print_config:
        from fastmask.files import to_yaml

        typer.echo(to_yaml(settings.to_plain()), nl=False)
        return
    _check_out(out, resume, overwrite)
    from fastmask.training.crossval import cross_validate

    table = _read_table(settings)
    out = out or _free_name(Path("runs") / settings.arch)
    run = cross_validate(table, settings, out=out, overwrite=overwrite, resume=resume)
    typer.echo(str(run.score()))
    optimistic = run.scores["optimistic"]["joint"]["macro_f1"]
    _say(f"Optimistic figure, each fold's epoch chosen by the fold itself: macro-F1 {optimistic:.4f}")
    _say(
        f"Written to {run.path}: oof.csv, scores.json, checkpoints. Next: fastmask predict {run.path} IMAGES --out FILE"
    )


def _given(ctx: typer.Context) -> dict[str, Any]:
    """The settings named on the command line."""
    other = {"recipe", "config", "set_", "out", "resume", "overwrite", "print_config"}
    given = {name: value for name, value in ctx.params.items() if value is not None and name not in other}
    for name in ("stats", "milestones"):
        if name in given and given[name] not in ("report", "pretrained"):
            given[name] = _numbers(f"--{name}", given[name])
    return given


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers, separated by spaces or commas.") from None


def _check_out(out: Path | None, resume: bool, overwrite: bool) -> None:
    """Refuse a directory in use before torch takes its seconds to load."""
    from fastmask.run import check_free

    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other.")
    if resume and out is None:
        raise UsageError("--resume needs --out, the run directory to go on with.")
    if out is not None and not resume:
        check_free(out, overwrite)


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _read_table(settings: Config) -> Table:
    from fastmask.data.table import read_contest

    data = settings.data
    if data == "sample":
        from fastmask.data.sample import cached_sample

        data = str(cached_sample(log=_say))
    return read_contest(data, settings.age_bounds, settings.score_age_bounds)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    images: Annotated[Path, typer.Argument(help="A folder of photos.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The CSV to write.", show_default=False)],
    submission: Annotated[
        Path | None, typer.Option(help="An info.csv to fill in: its photos, its order.", show_default=False)
    ] = None,
    tta: Annotated[int, typer.Option(help="Views a photo: itself, its mirror image, training augmentations.")] = 1,
    members: Annotated[
        str | None, typer.Option(help="Folds to average, such as fold0,fold2. (default: all)", show_default=False)
    ] = None,
    bs: Annotated[int, typer.Option(help="Photos a batch.")] = 64,
    workers: Annotated[
        int | None, typer.Option(help="Loading processes. (default: CPU: 0, GPU: up to 8)", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:0. (default: the GPU if there is one)", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
) -> None:
    """Predict photos by the mean of the fold models: probabilities, or with --submission the contest's file."""
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; name another file with --out, or replace it with --overwrite.")
    check_target(out)
    from fastmask.run import Run

    loaded = Run.load(run)
    photos: Any = images
    if submission is not None:
        from fastmask.inference.submission import check_out, photos_of_info

        check_out(submission, out)
        photos = photos_of_info(submission, images)
    chosen = None if members is None else [name.strip() for name in members.split(",")]
    with _Progress("predicting") as progress:
        predictions = loaded.predict(
            photos, tta=tta, members=chosen, bs=bs, workers=workers, device=device, progress=progress
        )
    if submission is not None:
        # named as in the file of questions, whose order they have
        names = [path.relative_to(images).as_posix() for path in photos]
        replace(predictions, names=names).to_submission(submission, out)
    else:
        predictions.to_csv(out)
    typer.echo(f"{out}: {len(predictions)} photos, mean of {', '.join(predictions.members)}, {tta} view(s) each")


@app.command()
def score(
    paths: Annotated[
        list[Path], typer.Argument(help="A run, or PREDICTIONS ANSWERS.", metavar="RUN | PREDICTIONS ANSWERS")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a run's out-of-fold predictions, or a submission against answers: macro-F1, accuracy, 95 % intervals."""
    if len(paths) == 1:
        from fastmask.run import Run

        scores = Run.load(paths[0]).score()
    elif len(paths) == 2:
        from fastmask.inference.submission import score_files

        scores = score_files(paths[0], paths[1])
    else:
        raise UsageError(f"score takes a run, or predictions and answers; found {len(paths)} paths.")
    if json:
        from json import dumps

        typer.echo(dumps(scores.to_plain(), indent=2))
    else:
        typer.echo(str(scores))


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    persons: Annotated[int, typer.Option(help="Persons to train on, seven photos each.")] = 160,
    seed: Annotated[int, typer.Option(help="Another seed draws other people.")] = 0,
) -> None:
    """Draw people in the contest's format, to try fastmask without its photos."""
    from fastmask.data.sample import write_sample

    written = write_sample(folder, persons, seed)
    typer.echo(f"{written}: {persons * 7} photos of {persons} persons in train, and others with answers.csv in eval")


class _Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> Callable[[int, int], None] | None:
        self.bar: Any = None
        if not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.bar.start()
        task = self.bar.add_task(self.what, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **kwargs: Any) -> None:
    if issubclass(category, FastmaskWarning):
        _say(f"fastmask: warning: {message}")
    else:
        _plain_warning(message, category, *where, **kwargs)


_plain_warning = warnings.showwarning


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
        option, equals, value = word.partition("=")
        yield from (option, value) if equals and option in _NUMBER_LISTS else (word,)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake becomes one sentence on stderr and an exit code."""
    warnings.showwarning = _show_warning
    # torch and pandas speak of fastai's and timm's own code, about which a user can do nothing
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
    try:
        app(join_numbers(sys.argv[1:] if arguments is None else arguments))
    except FastmaskError as error:
        _say(f"fastmask: error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        # a full disk, a folder that vanished, a name too long: the system's own words and the file
        _say(f"fastmask: error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
        sys.exit(1)
    except SystemExit as done:
        if done.code == INTERRUPTED:
            _say("fastmask: interrupted")
        raise
