"""The commands on what a run answers: predict, ensemble, score, decide, bound, label-errors, diff, ledger."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmask.commands.options import JUDGE, PREDICT, WORKERS, Commands, echo, numbers, option, words
from fastmask.system.errors import FastmaskError, FastmaskWarning, UsageError, one_line
from fastmask.system.files import check_new, check_new_picture
from fastmask.system.terminal import bar, quote, say

if TYPE_CHECKING:
    import numpy as np

    from fastmask.decision.rule import Rule
    from fastmask.inference.predictions import Predictions
    from fastmask.run.directory import RunDirectory

app = Commands()

_RUN = Annotated[Path, typer.Argument(help="The run directory.", show_default=False)]
_OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace the file to write.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_BOXES = Annotated[Path | None, option("The photos' faces, as `faces` writes them, of a run with --boxes.")]
_WORKERS = Annotated[int | None, option(WORKERS)]
_DEVICE = Annotated[str | None, option("cpu, cuda:0. (default: the GPU if there is one)")]


@app.command(rich_help_panel=PREDICT)
def predict(
    run: _RUN,
    images: Annotated[Path, typer.Argument(help="A folder of photos.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The CSV to write.", show_default=False)],
    submission: Annotated[Path | None, option("An info.csv to fill in: its photos, its order.")] = None,
    decision: Annotated[str, typer.Option(help="plain, calibrated, f1, or auto: the best of `decide`.")] = "plain",
    same_person: Annotated[
        str | None,
        option("Average over persons what belongs to them: a column of --submission's file, or 'folder'."),
    ] = None,
    tta: Annotated[int, typer.Option(help="Views a photo: itself, its mirror image, training augmentations.")] = 1,
    views: Annotated[str | None, option("Instead, views beside the photo: some of flip,shift,scale.")] = None,
    soup: Annotated[
        bool, typer.Option("--soup", help="Average the weights of a fold's checkpoints (--top-k).")
    ] = False,
    boxes: _BOXES = None,
    refit: Annotated[
        bool,
        typer.Option("--refit/--no-refit", help="Of a run with --refit: by its last networks, or by its checkpoints."),
    ] = True,
    members: Annotated[str | None, option("Folds to average, such as fold0,fold2. (default: all)")] = None,
    bs: Annotated[int, typer.Option(help="Photos a batch.")] = 64,
    workers: _WORKERS = None,
    device: _DEVICE = None,
    precision: Annotated[str, typer.Option(help="auto (the run's; on a CPU fp32), fp32, bf16 or fp16.")] = "auto",
    whole_shift: Annotated[
        bool, typer.Option("--shift", help="Say how far the photos are from the run's. (default: with --submission)")
    ] = False,
    overwrite: _OVERWRITE = False,
) -> None:
    """Predict photos: probabilities, or a submission.

    Averages the fold models; for an ensemble, predicts its blend.
    A submission is noted in ledger.csv next to the run.
    """
    check_new(out, overwrite)
    from fastmask.api import Run
    from fastmask.decision.crossfit import check_decision

    check_decision(decision)
    loaded = Run.load(run)
    photos: Any = images if submission is None else _questions(loaded, submission, images, out)
    persons = None if same_person is None else _persons(photos, same_person, submission)
    seen = [] if views is None else words(views)
    count = _count_views(tta, seen)
    other = _other_models(loaded, soup, refit)
    unlike = _unlike_oof(loaded, count, other)
    if whole_shift and unlike:
        raise UsageError(f"--shift needs {unlike}.")
    rule, name = _rule(loaded, decision, persons is not None)
    entry = _entry(loaded, name, count, seen, other) if submission is not None else {}
    with bar("predicting") as progress:
        predictions = loaded.predict(
            photos,
            tta=tta,
            views=seen,
            soup=soup,
            boxes=boxes,
            refit=refit,
            root=images,
            members=None if members is None else words(members),
            bs=bs,
            workers=workers,
            device=device,
            precision=precision,
            progress=progress,
        )
    if other is not None:
        say(f"No out-of-fold prediction is of these models ({other}): the run's scores are of its checkpoints.")
    answered = predictions if rule is None else predictions.decide(rule, persons)
    if submission is None:
        answered.to_csv(out)
    else:
        answered.to_submission(submission, out)
        _note(loaded, out, {**entry, "members": ",".join(predictions.members)})
    if whole_shift or (entry.get("oof") and not unlike):
        _say_shift(loaded, predictions, whole_shift)
    how = "mean" if predictions.blend is None else f"{predictions.blend} blend"
    typer.echo(f"{out}: {len(answered)} photos, {how} of {', '.join(answered.members)}, {count} view(s) each")


def _questions(run: RunDirectory, submission: Path, images: Path, out: Path) -> list[Path]:
    """The photos of a file of questions, in its order."""
    from fastmask.inference.submission import check_heads, check_out, photos_of_info

    check_heads(run.heads)
    check_out(submission, out)
    return photos_of_info(submission, images)


def _count_views(tta: int, views: Sequence[str]) -> int:
    """How often each photo is seen."""
    if not views:
        return tta
    from fastmask.inference.views import make_views

    return len(make_views(views))


def _other_models(run: RunDirectory, soup: bool, refit: bool) -> str | None:
    """In words, what predicts in place of the checkpoints that OOF is of; None where these do."""
    return "a soup" if soup else "refitted" if refit and _is_refitted(run) else None


def _is_refitted(run: RunDirectory) -> bool:
    """Whether it would predict by networks that were trained on all photos at last."""
    from fastmask.run.directory import RunDirectory
    from fastmask.run.files import CONFIG

    if not run.is_ensemble:
        return bool(run.refitted)
    # what is gone is told where it is needed
    paths = [run.path / member["path"] for member in run.ensemble["members"]]
    return any(RunDirectory.load(path).refitted for path in paths if (path / CONFIG).is_file())


def _unlike_oof(run: RunDirectory, views: int, other: str | None) -> str | None:
    """In words, what predictions must be to be compared with the run's OOF ones, and are not; None where they are."""
    if run.is_ensemble:
        return f"a run of single models, each with its own OOF: {run.path} is an ensemble, so name one of its runs"
    if views > 1:
        return "one view a photo (no --tta, no --views): the mean of several is less sure than OOF"
    return f"the models that OOF is of (no --soup, and --no-refit), and these are {other}" if other else None


def _persons(photos: Any, same_person: str, submission: Path | None) -> np.ndarray:
    from fastmask.inference.predictions import find_photos
    from fastmask.inference.submission import persons_of

    return persons_of(find_photos(photos)[1], same_person, submission)


def _rule(run: RunDirectory, decision: str, averaged: bool) -> tuple[Rule | None, str]:
    """The rule to answer by, fitted on the run, and its name; none for plain answers, which need no OOF."""
    from fastmask.decision.crossfit import AUTO, decide, fit_run, name_of
    from fastmask.decision.rule import PLAIN

    if decision == AUTO:
        found = decide(run, averaged)
        decision = found.best
        say("\n".join(found.verdicts))
    if decision == PLAIN and not averaged:
        return None, PLAIN
    say(f"Decision {name_of(decision, averaged)}, by the run's out-of-fold predictions")
    return fit_run(run, decision, averaged), name_of(decision, averaged)


def _entry(run: RunDirectory, decision: str, tta: int, views: Sequence[str], other: str | None) -> dict[str, Any]:
    """What the ledger will know of a submission, as far as the run tells; raises DataError for a broken ledger.

    What is of `other` models than OOF has no score.
    """
    from fastmask.decision.crossfit import score_of
    from fastmask.evaluation.ledger import ledger_of, read_ledger
    from fastmask.system.files import real

    if ledger_of(run.path).exists():
        read_ledger(ledger_of(run.path))
    oof = score_of(run, decision) if run.is_scored and other is None else None
    caveats = " ".join(run.caveats) if oof else ""
    note = ", ".join([f"views {','.join(views)}"] * bool(views) + ([other] if other else []))
    return {"oof": oof, "run": str(real(run.path)), "decision": decision, "tta": tta, "caveats": caveats, "note": note}


def _note(run: RunDirectory, out: Path, entry: dict[str, Any]) -> None:
    """Write a submission into the ledger."""
    from fastmask.evaluation.ledger import entry_of, ledger_of, note

    ledger = ledger_of(run.path)
    try:
        before = note(ledger, entry_of(out, **entry))
    except (FastmaskError, OSError) as error:
        # the submission is whole, and a run may lie where others may only read
        why = error.strerror if isinstance(error, OSError) else one_line(error)
        _warn(
            f"The submission is not noted in {ledger}: {why}; note it elsewhere by fastmask ledger add --ledger FILE."
        )
        return
    say(f"Noted in {ledger}" + (f": OOF {entry['oof']}" if entry["oof"] else ""))
    if before and before.file != str(out.resolve()):
        say(f"These are the same answers as {before.file}, which was noted before.")
    for caveat in run.caveats if entry["oof"] else ():
        say(caveat)


def _say_shift(run: RunDirectory, predictions: Predictions, whole: bool) -> None:
    from fastmask.evaluation.shift import shift

    try:
        found = shift(run, predictions)
        say(str(found) if whole else found.verdict)
    except FastmaskError as error:
        # the photos are predicted; this was only to be said besides
        _warn(f"How far the photos are from the run's is not known: {one_line(error)}.")


def _warn(message: str) -> None:
    warnings.warn(message, FastmaskWarning, stacklevel=3)


@app.command(rich_help_panel=PREDICT)
def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Runs of the same photos and labels.", metavar="RUN RUN ...")],
    out: Annotated[Path, typer.Option(help="The run directory to make.", show_default=False)],
    blend: Annotated[
        str, typer.Option(help="mean of probabilities, vote of classes, or oof: weights a head fitted on OOF.")
    ] = "mean",
    json: _JSON = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Blend several runs into one, and score it next to each.

    Predictions are blended separately for each head.
    """
    from fastmask.inference.ensemble import blend_runs

    echo(blend_runs(runs, blend, out=out, overwrite=overwrite), json)
    say(f"Written to {out}. Next: fastmask predict {quote(str(out))} IMAGES --out FILE")


@app.command(rich_help_panel=PREDICT)
def pseudo(
    run: _RUN,
    images: Annotated[Path, typer.Argument(help="A folder of photos.", show_default=False)],
    out: Annotated[Path, option("A new or empty folder.")],
    boxes: _BOXES = None,
    workers: _WORKERS = None,
    device: _DEVICE = None,
) -> None:
    """Label photos with each fold's models, for fit --pseudo.

    Each fold of the new run trains on the labels made by the same fold of this run.
    """
    from fastmask.inference.pseudo import make_pseudo

    with bar("predicting") as progress:
        made = make_pseudo(run, images, out, boxes=boxes, workers=workers, device=device, progress=progress)
    typer.echo(f"{out}: {len(made.paths)} photos, labelled by {len(made.probabilities)} folds, each apart")
    say(f"Next: fastmask fit --pseudo {quote(str(out))} --folds-file {quote(str(run / 'folds.csv'))}")


@app.command(rich_help_panel=JUDGE)
def score(
    paths: Annotated[
        list[Path], typer.Argument(help="A run, or PREDICTIONS ANSWERS.", metavar="RUN | PREDICTIONS ANSWERS")
    ],
    json: _JSON = False,
) -> None:
    """Score a run, or a submission against answers.

    Prints macro-F1 and accuracy with 95 % intervals. A run is scored by its
    out-of-fold predictions.
    """
    if len(paths) == 1:
        from fastmask.run.directory import RunDirectory

        scores = RunDirectory.load(paths[0]).score()
    elif len(paths) == 2:
        from fastmask.inference.submission import score_files

        scores = score_files(paths[0], paths[1])
    else:
        raise UsageError(f"score takes a run, or predictions and answers; found {len(paths)} paths.")
    echo(scores, json)


@app.command(rich_help_panel=JUDGE)
def decide(
    run: _RUN,
    same_person: Annotated[
        bool, typer.Option("--same-person", help="Also average over persons: it must be known whose new photos are.")
    ] = False,
    plot: Annotated[Path | None, option("A PNG of each head's reliability to write.")] = None,
    json: _JSON = False,
    overwrite: _OVERWRITE = False,
) -> None:
    """Compare decision rules: plain, calibrated, f1.

    They are scored on the out-of-fold predictions. Prints the one to use.
    """
    if plot is not None:
        check_new_picture(plot, overwrite)
    from fastmask.decision.crossfit import decide as compare
    from fastmask.decision.rule import PLAIN

    decisions = compare(run, same_person)
    if plot is not None:
        from fastmask.evaluation.plots import plot_reliability

        plot_reliability(decisions.calibration, plot)
        say(f"Written: {plot}")
    echo(decisions, json)
    asked = [f"--decision {decisions.best}"] * (decisions.best != PLAIN) + ["--same-person COLUMN"] * same_person
    say(" ".join(["Next: fastmask predict", quote(str(run)), "IMAGES", *asked, "--out FILE"]))


@app.command(rich_help_panel=JUDGE)
def bound(
    run: _RUN,
    head: Annotated[str, typer.Option(help="The head whose last bound is moved.")] = "age",
    bounds: Annotated[str | None, option("Bounds to try, such as 55,58,60. (default: five below the official)")] = None,
    plot: Annotated[Path | None, option("A PNG of the curve to write.")] = None,
    json: _JSON = False,
    overwrite: _OVERWRITE = False,
) -> None:
    """Score a run trained with --order at several age bounds.

    At each bound, out-of-fold predictions are scored against the official classes.
    """
    if plot is not None:
        check_new_picture(plot, overwrite)
    from fastmask.decision.bound import bound_curve

    curve = bound_curve(run, head, None if bounds is None else numbers("--bounds", bounds))
    if plot is not None:
        from fastmask.evaluation.plots import plot_bound

        plot_bound(curve, plot)
        say(f"Written: {plot}")
    echo(curve, json)


@app.command(rich_help_panel=JUDGE)
def label_errors(
    run: _RUN,
    out: Annotated[Path | None, option("A table of fixes to write, for fit --fixes.")] = None,
    heads: Annotated[str | None, option("Only these heads, such as gender,mask. (default: all)")] = None,
    most: Annotated[int, typer.Option(help="Rows shown a head.", min=0)] = 20,
    overwrite: _OVERWRITE = False,
) -> None:
    """List the labels that the out-of-fold predictions contradict.

    Photos and persons, the most suspicious first.
    """
    if out is not None:
        check_new(out, overwrite)
    from fastmask.evaluation.label_errors import find_label_errors, summary, to_fixes
    from fastmask.run.directory import RunDirectory
    from fastmask.system.files import write_csv

    loaded = RunDirectory.load(run)
    errors = find_label_errors(loaded, None if heads is None else words(heads))
    # of a band nobody knows the number, and most of these labels are right: only asked for
    banded = [head.name for head in loaded.heads if head.bounds and heads is None]
    if out is not None:
        write_csv(out, to_fixes([error for error in errors if error.head not in banded]))
        for name in banded:
            say(f"{name} is not in {out}: a class of it does not tell the number. Name it by --heads to have its rows.")
    typer.echo(summary(errors, most))
    if loaded.config.group == "none":
        say("The split is leaky (--group none): the models have seen these persons, and their wrong labels are hidden.")
    if out is not None:
        say(f"Written: {out}. Look at each photo and keep the rows that are right; then fastmask fit --fixes FILE")


@app.command(rich_help_panel=JUDGE)
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A submission.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another on the same photos.", show_default=False)],
    runs: Annotated[
        tuple[Path, Path] | None, option("The runs that they are of. (default: as the ledger knows)", None, "--runs")
    ] = None,
    ledger: Annotated[Path | None, option("The ledger. (default: runs/ledger.csv)")] = None,
    out: Annotated[Path | None, option("A CSV of the photos that differ to write.")] = None,
    json: _JSON = False,
    overwrite: _OVERWRITE = False,
) -> None:
    """Show where two submissions differ, and the expected change.

    The change of score is estimated from their runs' out-of-fold predictions.
    """
    if out is not None:
        check_new(out, overwrite, a, b)
    from fastmask.evaluation.diff import diff_files, expect_files

    found = diff_files(a, b)
    expected = expect_files(a, b, runs, ledger or _there(_LEDGER))
    if out is not None:
        found.to_csv(out)
    if json:
        from json import dumps

        typer.echo(dumps({**found.to_plain(), "expected": expected.to_plain()}, indent=2))
    else:
        typer.echo(f"{found}\n\n{expected}")


ledgers = Commands(no_args_is_help=True, help="Show, add and plot submissions and leaderboard scores.")
app.add_typer(ledgers, name="ledger", rich_help_panel=JUDGE)
_LEDGER = Path("runs") / "ledger.csv"
_LEDGER_OPTION = Annotated[Path, option("The ledger. (default: runs/ledger.csv)")]


def _there(file: Path) -> Path | None:
    return file if file.exists() else None


@ledgers.command("show")
def show(ledger: _LEDGER_OPTION = _LEDGER) -> None:
    """Show the submissions, the newest last, and how well OOF foretells the leaderboard."""
    from fastmask.evaluation.ledger import read_ledger, summary

    typer.echo(summary(read_ledger(ledger)))


@ledgers.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="The submission, under whatever name.", show_default=False)],
    public: Annotated[float, typer.Option(help="The leaderboard's macro-F1, such as 0.757.", show_default=False)],
    accuracy: Annotated[float | None, option("The leaderboard's accuracy, such as 79.476.")] = None,
    text: Annotated[str, option("A note of yours.", None, "--note")] = "",
    ledger: _LEDGER_OPTION = _LEDGER,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the score that is there.")] = False,
) -> None:
    """Keep what the leaderboard said of a submission."""
    from fastmask.evaluation.ledger import add_public, read_ledger, summary

    if not add_public(ledger, file, public, accuracy, text, overwrite).run:
        say(f"{file} is of no run that {ledger} knows; it is kept without one.")
    typer.echo(summary(read_ledger(ledger)))


@ledgers.command("plot")
def plot(
    out: Annotated[Path, option("The PNG to write.")],
    ledger: _LEDGER_OPTION = _LEDGER,
    overwrite: _OVERWRITE = False,
) -> None:
    """Draw OOF against leaderboard."""
    check_new_picture(out, overwrite)
    from fastmask.evaluation.ledger import read_ledger
    from fastmask.evaluation.plots import plot_ledger

    plot_ledger(read_ledger(ledger), out)
    typer.echo(str(out))
