"""The commands that predict: predict, ensemble, soup, pseudo."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastmask.commands.options import (
    NEW_CSV,
    PREDICT,
    Commands,
    ImagesArgument,
    Json,
    NewRun,
    Overwrite,
    RunArgument,
    RunsArgument,
    echo,
    option,
    with_options,
)
from fastmask.inference.options import PhotoOptions, PredictOptions, SoupOptions
from fastmask.system.errors import DataError, FastmaskError, FastmaskWarning, UsageError, one_line
from fastmask.system.terminal import progress_bar, quote, say
from fastmask.system.text import count

if TYPE_CHECKING:
    import numpy as np

    from fastmask.data.pseudo import Pseudo
    from fastmask.decision.rule import Rule
    from fastmask.inference.networks import Load
    from fastmask.inference.predictions import Predictions
    from fastmask.inference.sources import Found
    from fastmask.run.directory import RunDirectory

app = Commands()
_Backend = Annotated[
    Literal["torch", "onnx"], option("torch, or onnx: ONNX Runtime, faster for thousands of photos on a CPU.")
]


@app.command(rich_help_panel=PREDICT)
@with_options(PredictOptions)
def predict(
    options: PredictOptions,
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(help="Photos, folders, or a CSV and its folder.", show_default=False)],
    out: Annotated[Path, option("The CSV to write."), NEW_CSV],
    submission: Annotated[
        Path | None, option("A CSV to fill in, such as an info.csv or a sample_submission.csv: its photos, its order.")
    ] = None,
    decision: Annotated[
        str | None, option("plain, calibrated, f1, or auto: the best of fastmask decide.", note="the run's")
    ] = None,
    same_person: Annotated[
        str | None,
        option("Average the person's heads over each person: a column of --submission's file, or 'folder'."),
    ] = None,
    whole_shift: Annotated[
        bool, option("Print how far the photos are from the run's.", "--shift", note="with --submission")
    ] = False,
    backend: _Backend = "torch",
) -> None:
    """Predict photos: probabilities, or a submission.

    Averages the fold models; for an ensemble, predicts its blend.
    A submission is noted in ledger.csv next to the run.
    Photos that cannot be predicted are listed in a CSV next to --out.
    """
    from fastmask.evaluation.decisions import check_decision
    from fastmask.inference.failures import failed_list
    from fastmask.inference.predictions import predict as predict_photos
    from fastmask.inference.submission import persons_of
    from fastmask.run.directory import RunDirectory

    if decision is not None:
        check_decision(decision)
    loaded, unpredicted, load = RunDirectory.load(run), failed_list(out), _load_by(backend, options)
    kept = [same_person] if same_person else []
    photos = _find_photos(loaded, images, submission, out, kept)
    persons = None if same_person is None else persons_of(photos.paths, same_person, submission)
    other = _other_models(loaded, options)
    unlike = _unlike_oof(loaded, options, other)
    if whole_shift and unlike:
        raise UsageError(f"--shift needs {unlike}.")
    rule, name = _rule(loaded, decision or loaded.config.decision, persons is not None)
    entry = _entry(loaded, name, options, other) if submission is not None else {}
    with progress_bar("predicting") as progress:
        predictions = predict_photos(loaded, photos, options, progress=progress, load=load)
    left = [name not in predictions.failed for name in photos.names]
    persons = None if persons is None else persons[left]
    for note in predictions.notes:
        _warn(note)
    _say_scored(loaded, options, other)
    answered = predictions if rule is None else predictions.decide(rule, persons)
    _write(answered, out, submission, unpredicted, kept)
    _warn_of_seen(loaded, [path for path, there in zip(photos.paths, left, strict=True) if there], options)
    if submission is not None:
        _note(loaded, out, {**entry, "members": ",".join(predictions.members)})
    if whole_shift or (entry.get("oof") and not unlike):
        _say_shift(loaded, predictions, persons, whole_shift)
    typer.echo(f"{out}: {count(len(answered), 'photo')}, {_averaged(answered, loaded, options)}")
    _report_failed(predictions, unpredicted, None if submission is None else _usual(predictions))


def _load_by(backend: str, options: PredictOptions) -> Load | None:
    """How checkpoints are loaded for a backend."""
    if backend == "torch":
        return None
    if options.soup:
        raise UsageError("--backend onnx predicts by single checkpoints; leave out --soup, or make the soup a run.")
    from fastmask.export.backend import onnx_load

    return onnx_load()


def _say_scored(run: RunDirectory, options: PredictOptions, other: str | None) -> None:
    """Say where the run's scores are not those of such predictions: by `other` models, of other views or versions."""
    if other is not None:
        say(f"These models ({other}) have no out-of-fold predictions: the run's scores are those of its checkpoints.")
    if _are_other_views(run, options):
        say("The run's scores are of its own views of a photo, not of these.")
    if options.images_also:
        say("The run's scores are of the photos themselves, not of the mean over their versions.")


def _are_other_views(run: RunDirectory, options: PredictOptions) -> bool:
    """Whether the options name other views than those of the run, or of a run of the ensemble."""
    own = type(options)()
    return any(options.of_run(one.config).walks != own.of_run(one.config).walks for one in _runs_of(run))


def _resolved(run: RunDirectory, options: PredictOptions) -> list[PredictOptions]:
    """The options with the views of the run, or of each run of an ensemble."""
    return [options.of_run(one.config) for one in _runs_of(run)]


def _averaged(answered: Predictions, run: RunDirectory, options: PredictOptions) -> str:
    """What is averaged, in words: the members, and per photo the views and versions."""
    how = "mean" if answered.blend is None else f"{answered.blend} blend"
    numbers = sorted({one.n_views for one in _resolved(run, options)})
    views = f"{' or '.join(map(str, numbers))} view{'s' * (numbers != [1])} per photo"
    versions = f", and per version in {', '.join(options.images_also)}" if options.images_also else ""
    return f"{how} of {', '.join(answered.members)}, {views}{versions}"


def _find_photos(
    run: RunDirectory, images: Sequence[Path], submission: Path | None, out: Path, kept: Sequence[str]
) -> Found:
    """The photos to predict: those of the arguments, or those listed in the file of --submission."""
    from fastmask.inference.sources import find_photos, is_list
    from fastmask.inference.submission import check_out, read_form

    if submission is None:
        if len(images) == 2 and is_list(images[0]) and images[1].is_dir():
            return find_photos(images[0], root=images[1])
        return find_photos(images[0] if len(images) == 1 else images)
    check_out(submission, out)
    if len(images) > 1:
        raise UsageError(
            f"--submission takes one folder, with the photos that {submission} names; found {len(images)}."
        )
    return read_form(submission, run.heads, images[0], kept).find(images[0])


def _write(answered: Predictions, out: Path, submission: Path | None, unpredicted: Path, kept: Sequence[str]) -> None:
    """Write the predictions, and the list of the photos that failed."""
    from fastmask.inference.failures import write_failed

    if submission is None:
        answered.to_csv(out)
    else:
        answered.to_submission(submission, out, kept)
    write_failed(unpredicted, answered.failed, None if submission is None else _usual(answered))


def _usual(predictions: Predictions) -> int | str | None:
    """What a submission has for photos that failed: the contest's joint class, or the names of the classes."""
    from fastmask.inference.submission import is_contest

    usual, heads = predictions.usual, predictions.heads
    return usual if usual is None or is_contest(heads) else heads.joint_name(usual)


def _report_failed(found: Predictions | Pseudo, file: Path, answer: int | str | None = None) -> None:
    """Raise DataError if photos failed: all else is written, but the exit code is not 0."""
    from fastmask.inference.failures import describe_failed

    if found.failed:
        raise DataError(describe_failed(found.failed, len(found), file, answer))


def _warn_of_seen(run: RunDirectory, photos: Sequence[Path], options: PredictOptions) -> None:
    from fastmask.inference.predictions import count_seen

    try:
        seen = count_seen(run, photos, options)
    except DataError as error:
        # a photo was changed since; the predictions are written
        _warn(f"Whether the models were trained on these photos is unknown: {one_line(error)}.")
        return
    if seen:
        _warn(
            f"These models were trained on {seen} of the {len(photos)} photos: their predictions, and a score of them, "
            "are too good. The run's oof.csv has predictions of models that have not seen them."
        )


def _other_models(run: RunDirectory, options: PredictOptions) -> str | None:
    """A description of the models that predict, if they are not those of OOF; otherwise None."""
    return "a soup" if options.soup else "refitted" if options.refit and _is_refitted(run) else None


def _is_refitted(run: RunDirectory) -> bool:
    """Whether the run predicts with networks that were refitted on all photos."""
    return any(one.refitted for one in _runs_of(run))


def _runs_of(run: RunDirectory) -> list[RunDirectory]:
    """The run, or those that an ensemble is made of."""
    from fastmask.run.directory import RunDirectory
    from fastmask.run.files import CONFIG

    if not run.is_ensemble:
        return [run]
    # a missing member is reported later
    paths = [run.path / member["path"] for member in run.ensemble["members"]]
    return [RunDirectory.load(path) for path in paths if (path / CONFIG).is_file()]


def _unlike_oof(run: RunDirectory, options: PredictOptions, other: str | None) -> str | None:
    """The reason why predictions cannot be compared with the run's OOF predictions, or None."""
    if run.is_ensemble:
        return f"a run with models of its own, and {run.path} is an ensemble: name one of its runs"
    if options.images_also:
        return "the photos alone (no --images-also): the mean of several versions is less confident than OOF"
    if _are_other_views(run, options):
        return "the views of the run (no --tta, no --views): the mean of more of them is less confident than OOF"
    return f"the models that predicted OOF (no --soup, and --no-refit), and these are {other}" if other else None


def _rule(run: RunDirectory, decision: str, averaged: bool) -> tuple[Rule | None, str]:
    """The rule fitted on the run, and its name; no rule for plain decisions, which need no OOF."""
    from fastmask.decision.rule import PLAIN
    from fastmask.evaluation.decisions import AUTO, decide, fit_run, name_of

    if decision == AUTO:
        found = decide(run, averaged)
        decision = found.best
        say("\n".join(found.verdicts))
    if decision == PLAIN and not averaged:
        return None, PLAIN
    say(f"Decision {name_of(decision, averaged)}, by the run's out-of-fold predictions")
    rule = fit_run(run, decision, averaged)
    if averaged and not rule.shared:
        raise UsageError(
            f"--same-person averages the heads that all photos of a person share, and the labels of {run.path} have "
            "none; leave it out."
        )
    return rule, name_of(decision, averaged)


def _entry(run: RunDirectory, decision: str, options: PredictOptions, other: str | None) -> dict[str, Any]:
    """The ledger's entry of a submission, from the run; raises DataError for a broken ledger.

    Predictions by `other` models than those of OOF have no score.
    """
    from fastmask.evaluation.decisions import score_of
    from fastmask.evaluation.ledger import ledger_of, read_ledger
    from fastmask.system.files import real

    if ledger_of(run.path).exists():
        read_ledger(ledger_of(run.path))
    oof = score_of(run, decision) if run.is_scored and other is None else None
    caveats = " ".join(run.caveats) if oof else ""
    each = _resolved(run, options)
    named = {",".join(one.views or ()) for one in each}
    views = [f"views {names}" for names in named if names and len(named) == 1]
    versions = [f"versions {','.join(options.images_also)}"] if options.images_also else []
    note = ", ".join([*views, *versions, *([other] if other else [])])
    made = {
        "oof": oof,
        "run": str(real(run.path)),
        "decision": decision,
        "tta": max((one.n_views for one in each), default=1),
    }
    return {**made, "caveats": caveats, "note": note}


def _note(run: RunDirectory, out: Path, entry: dict[str, Any]) -> None:
    """Write a submission into the ledger."""
    from fastmask.evaluation.ledger import entry_of, ledger_of, note

    ledger = ledger_of(run.path)
    try:
        before = note(ledger, entry_of(out, **entry))
    except (FastmaskError, OSError) as error:
        # the submission is written, and the run may be in a folder that is read-only
        why = error.strerror if isinstance(error, OSError) else one_line(error)
        _warn(f"The submission is not noted in {ledger}: {why}; note it in another: fastmask ledger add --ledger FILE.")
        return
    say(f"Noted in {ledger}" + (f": OOF {entry['oof']}" if entry["oof"] else ""))
    if before and before.file != str(out.resolve()):
        say(f"These are the same answers as in {before.file}, which was noted before.")
    for caveat in run.caveats if entry["oof"] else ():
        say(caveat)


def _say_shift(run: RunDirectory, predictions: Predictions, persons: np.ndarray | None, whole: bool) -> None:
    from fastmask.evaluation.shift import shift

    try:
        found = shift(run, predictions, persons)
        say(str(found) if whole else found.verdict)
    except FastmaskError as error:
        # the predictions are complete without it
        _warn(f"The distance of the photos from the run's cannot be computed: {one_line(error)}.")


def _warn(message: str) -> None:
    warnings.warn(message, FastmaskWarning, stacklevel=3)


@app.command(rich_help_panel=PREDICT)
def ensemble(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs with photos in common, or CSVs of predict.", metavar="RUN RUN ... | CSV CSV ..."),
    ],
    out: Annotated[Path, option("The run directory to create, or for CSVs the CSV to write.")],
    blend: Annotated[
        str | None,
        option(
            "mean of probabilities, vote of classes, oof: weights per head, fitted on OOF, or stack: a regression.",
            note="mean; vote for submissions",
        ),
    ] = None,
    weights: Annotated[tuple[float, ...] | None, option("One per run or CSV, such as 2,1,1.", note="equal")] = None,
    submission: Annotated[
        Path | None, option("For CSVs of probabilities: a CSV to fill in, such as an info.csv, as by predict.")
    ] = None,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Blend several runs into one, and score it next to each.

    Predictions are blended separately for each head. Files of predictions
    are blended by photo: submissions by vote, probabilities by mean.
    """
    from fastmask.inference.file_blend import are_files

    if are_files(runs):
        _blend_files(runs, out, blend, weights, submission, json, overwrite)
        return
    if submission is not None:
        raise UsageError("--submission is for CSVs; blend the runs, and fill it in by fastmask predict with the blend.")
    from fastmask.inference.ensemble import blend_runs

    echo(blend_runs(runs, blend or "mean", out=out, weights=weights, overwrite=overwrite), json)
    say(f"Written to {out}. Next: fastmask predict {quote(str(out))} IMAGES --out FILE")


def _blend_files(
    files: Sequence[Path],
    out: Path,
    blend: str | None,
    weights: Sequence[float] | None,
    submission: Path | None,
    json: bool,
    overwrite: bool,
) -> None:
    """Blend files of predictions into another, or into a submission."""
    from fastmask.inference.answers import AnswersFile
    from fastmask.inference.file_blend import combine_files
    from fastmask.system.files import write_csv

    NEW_CSV(out, overwrite, *files, *([] if submission is None else [submission]))
    blended = combine_files(files, blend, weights)
    if submission is None:
        write_csv(out, blended.frame)
    else:
        AnswersFile.read(blended.frame, "the blend").to_submission(submission, out)
    echo(blended, json)
    say(f"Written to {out}. Next, if labels are known: fastmask score {quote(str(out))} LABELS")


@app.command(rich_help_panel=PREDICT)
@with_options(SoupOptions)
def soup(
    options: SoupOptions, runs: RunsArgument, out: NewRun, json: Json = False, overwrite: Overwrite = False
) -> None:
    """Average the weights of checkpoints of several runs into one.

    Greedy: a checkpoint is kept if the out-of-fold score does not fall.
    For each fold they are chosen on the other folds. The runs have one body,
    the same heads, input and folds.
    """
    from fastmask.inference.soup import soup_runs

    echo(soup_runs(runs, out=out, overwrite=overwrite, options=options, say=say), json)
    say(f"Written to {out}. Next: fastmask predict {quote(str(out))} IMAGES --out FILE")


@app.command(rich_help_panel=PREDICT)
@with_options(PhotoOptions)
def pseudo(
    options: PhotoOptions,
    run: RunArgument,
    images: ImagesArgument,
    out: Annotated[Path, option("A new or empty folder.")],
) -> None:
    """Label photos with each fold's models, for fit --pseudo.

    Each fold of the new run trains on the labels made by the same fold of this run.
    """
    from fastmask.inference.failures import FAILED
    from fastmask.inference.teacher import make_pseudo

    with progress_bar("predicting") as progress:
        made = make_pseudo(run, images, out, options, progress=progress)
    for note in made.notes:
        _warn(note)
    folds = len(made.probabilities)
    typer.echo(f"{out}: {count(len(made.paths), 'photo')}, labelled by each of {folds} folds separately")
    say(f"Next: fastmask fit --pseudo {quote(str(out))} --folds-file {quote(str(run / 'folds.csv'))}")
    _report_failed(made, out / FAILED)
