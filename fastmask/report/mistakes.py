"""Mistakes: the photos that a run's out-of-fold predictions get wrong, the most confident first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fastmask.heads import JOINT, UNKNOWN, Heads
from fastmask.run.directory import RunDirectory
from fastmask.scoring import target_of


def mistakes(run: RunDirectory, head: str = JOINT) -> pd.DataFrame:
    """One row a photo that is answered wrongly in one head, or in the joint class; the most confident first.

    The columns are row (of `oof`), path, person, fold, true, predicted (names of classes), probability (of what is
    predicted) and probability_true. The joint class's probability is the product of its heads'. Photos without the
    label are left out. Raises UsageError for a head that there is not.
    """
    true, predicted = target_of(run.heads, run.true, head), target_of(run.heads, run.predicted, head)
    rows = np.flatnonzero((true != UNKNOWN) & (true != predicted))
    probabilities = run.probabilities[rows]
    said = probability_of(run.heads, probabilities, run.predicted[rows], head)
    name = run.heads.joint_name if head == JOINT else run.heads[head].decode
    frame = pd.DataFrame(
        {
            "row": rows,
            **{column: run.oof[column].to_numpy()[rows] for column in ("path", "person", "fold")},
            "true": [name(int(code)) for code in true[rows]],
            "predicted": [name(int(code)) for code in predicted[rows]],
            "probability": said,
            "probability_true": probability_of(run.heads, probabilities, run.true[rows], head),
        }
    )
    return frame.iloc[np.argsort(-said, kind="stable")].reset_index(drop=True)


def probability_of(heads: Heads, probabilities: np.ndarray, y: np.ndarray, head: str = JOINT) -> np.ndarray:
    """(N, classes of all heads) probabilities, (N, heads) known classes -> (N,) the probability of each photo's."""
    places = heads.joined if head == JOINT else (heads.position(head),)
    parts, rows = heads.split(probabilities), np.arange(len(y))
    return np.asarray(np.prod([parts[i][rows, y[:, i]] for i in places], axis=0, dtype=np.float64))
