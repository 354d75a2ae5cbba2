"""A picture of a run: photos with what the folds that had not seen them said, learning curves, the joint confusion.

python examples/picture.py RUN OUT.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import confusion_matrix

import fastmask as fm
from fastmask.data.photo import read_photo


def photos(run: fm.Run, axes: np.ndarray) -> None:
    root = Path(json.loads((run.path / "environment.json").read_text(encoding="utf-8"))["photos"]["root"])
    names, oof = run.heads.joint_names(), run.oof
    rows = np.random.default_rng(3).choice(len(oof), len(axes), replace=False)
    for ax, row in zip(axes, rows, strict=True):
        true, predicted = oof["true"].iloc[row], oof["predicted"].iloc[row]
        ax.imshow(read_photo(root / oof["path"].iloc[row]))
        ax.set_title(names[predicted], color="tab:green" if true == predicted else "tab:red", fontsize=8)
        ax.set_xlabel("" if true == predicted else f"is {names[true]}", fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])


def curves(run: fm.Run, ax: plt.Axes) -> None:
    for fold in run.trained_folds:
        history = run.history(fold)
        ax.plot(history["epoch"] + 1, history["macro_f1"], label=f"fold {fold + 1}")
    for i, fold in enumerate(run.scores["folds"]):
        for epoch in fold["epochs"]:
            ax.axvline(epoch + 1, color=f"C{i}", linestyle=":", alpha=0.6)
    ax.set(xlabel="epoch (dotted: chosen by the other folds)", ylabel="joint macro-F1", title="Learning curves")
    ax.legend()


def confusion(run: fm.Run, ax: plt.Axes) -> None:
    names = run.heads.joint_names()
    matrix = confusion_matrix(run.oof["true"], run.oof["predicted"], labels=range(len(names)), normalize="true")
    ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    joint = run.score().joint
    low, high = joint.macro_f1_interval
    ax.set(xlabel="predicted", ylabel="true", title=f"Macro-F1 {joint.macro_f1:.3f} ({low:.3f} … {high:.3f})")


def main(run_directory: str, out: str) -> None:
    run = fm.Run.load(run_directory)
    figure = plt.figure(figsize=(13, 8.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.7])
    photos(run, top.subplots(1, 8))
    left, right = bottom.subplots(1, 2)
    curves(run, left)
    confusion(run, right)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
