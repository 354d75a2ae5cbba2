"""What each part of the recipe strong is worth, and what did not help, out of fold, on the same folds of persons.

python examples/benchmarks/score.py DATA OUT --write-tuning persons.csv      the persons that score.py never holds out
python examples/benchmarks/parts.py DATA OUT --persons persons.csv --weights FILE --set resize=[152,112] --set epochs=3
python examples/benchmarks/parts.py DATA OUT --row strong --row "focal loss" ...                     some of the rows

Each row is the recipe with other settings, trained with each of --seeds, of the folds too. `macro-F1` is by the row's
decision, `most probable` by the most probable classes; `minus strong` is paired over persons; `log loss` is the sum of
the heads'. Runs that are there already are not trained again. The table is OUT/parts.csv.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import log_loss

import fastmask as fm
from fastmask.config import parse_sets
from fastmask.scoring import score, score_differences

ROWS: dict[str, dict[str, Any]] = {
    "strong": {},
    "without the linear probe": {"linear_probe": False},
    "the whole photo": {"crop_pct": 1.0},
    "the middle 0.75": {"crop_pct": 0.75},
    "without RandAugment": {"augment": None},
    "random parts, too": {"augment": ["randaugment", "random-resized-crop(scale=(0.6,1),ratio=(0.7,0.8))"]},
    "not mirrored": {"flip": False},
    "focal loss": {"loss": "focal"},
    "smoothed labels": {"label_smoothing": 0.1},
    "half soft F1": {"f1_share": 0.5},
    "unweighted classes": {"class_weight": "none"},
    "sampler of the joint class": {"sampler": "joint"},
    "joint head": {"joint_head": 0.5},
    "mix-up": {"mixup": 0.2},
    "erasing": {"erase": 0.25},
    "three stages frozen": {"freeze": 3},
    "batch norm frozen": {"freeze_bn": True},
    "layer decay 0.75": {"layer_decay": 0.75},
    "weight decay 0.01": {"wd": 0.01},
    "twice the learning rate": {"lr": 2.8e-3},
    "batches of 32, 1.4 of the learning rate": {"bs": 32, "lr": 2e-3},
    "EMA": {"ema": 0.99},
    "progressive resizing": {"progressive": 0.6},
}


def figures(runs: list[fm.Run], base: list[fm.Run]) -> dict[str, Any]:
    """The scores of a row, means over its runs, and its difference to the base."""

    def joined(of: list[fm.Run]) -> tuple[np.ndarray, np.ndarray]:
        each = [(np.asarray(run.heads.joint(y)) for y in (run.predicted, run.true)) for run in of]
        predicted, true = (np.concatenate(part) for part in zip(*each, strict=True))
        return predicted, true

    (answers, true), (theirs, _) = joined(runs), joined(base)
    persons = np.concatenate([run.persons for run in runs])
    (difference,) = score_differences([(theirs, true, None), (answers, true, None)], persons)
    probable = [
        score(np.asarray(run.heads.joint(run.heads.argmax(run.probabilities))), run.heads.joint(run.true), draws=0)
        for run in runs
    ]
    seconds = [pd.read_csv(file)["seconds"].sum() for run in runs for file in run.path.glob("fold*/times.csv")]
    return {
        "macro-F1": np.mean([run.score(draws=0).joint.macro_f1 for run in runs]),
        "most probable": np.mean([one.macro_f1 for one in probable]),
        "log loss": np.mean([losses(run) for run in runs]),
        "minus strong": "" if runs is base else str(difference),
        "seconds": round(sum(seconds) / len(runs)),
    }


def losses(run: fm.Run) -> float:
    """The sum of the log losses of the heads that are scored."""
    columns = zip(run.heads.split(run.probabilities), run.true.T, strict=True)
    return sum(
        float(log_loss(y[y >= 0], (part / part.sum(axis=1, keepdims=True))[y >= 0], labels=range(part.shape[1])))
        for i, (part, y) in enumerate(columns)
        if i in run.heads.joined
    )


def main(
    data: str,
    out: Path,
    persons: Annotated[Path | None, typer.Option(help="A CSV of the persons to take, in its column person.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only these rows; may be repeated.")] = None,
    arch: str = "tf_efficientnet_lite0",
    weights: Annotated[str | None, typer.Option(help="The body's weights; random without.")] = None,
    stats: Annotated[float, typer.Option(help="Mean and deviation that the weights expect.")] = 0.5,
    folds: int = 3,
    seeds: int = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of all rows, such as epochs=3.")] = None,
) -> None:
    table = fm.read_data(fm.make_config({"data": data}))
    if persons is not None:
        table = table.select(np.flatnonzero(np.isin(table.persons, pd.read_csv(persons, dtype=str)["person"])))
    start: dict[str, Any] = {"weights": weights} if weights else {"pretrained": False}
    base = {"arch": arch, **start, "stats": (stats,) * 6, "folds": folds, **parse_sets(set_ or [])}

    def runs_of(name: str) -> list[fm.Run]:
        config, runs = fm.make_config(fm.read_recipe("strong"), base, ROWS[name]), []
        for seed in range(seeds):
            path = out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            runs.append(fm.cross_validate(table, config, out=path, resume=path.exists(), seed=seed))
        return runs

    strong, made = runs_of("strong"), []
    for name in row or ROWS:
        runs = strong if name == "strong" else runs_of(name)
        made.append({"row": name, **figures(runs, strong)})
        pd.DataFrame(made).round(4).to_csv(out / "parts.csv", index=False)
        print(" | ".join(f"{key} {value}" for key, value in made[-1].items()), flush=True)


if __name__ == "__main__":
    typer.run(main)
