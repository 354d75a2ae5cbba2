"""How evenly folds of whole persons are dealt by several strata, and how much the folds' scores differ.

python examples/benchmarks/strata.py [SEEDS [PERSONS ...]]

Persons with the contest's genders and ages, seven photos each (five masks worn, one incorrect, none); with unequal
photos; of three sources, of which one labels the masks alone and one gender and age alone; photos with three heads of
their own, one or several a person, with 24 and 120 combinations of classes. The simulated model's mistakes about a
person are mostly the same in all photos. Each seed draws the persons, the mistakes and the folds.

one head   the classes of one head: for persons their age
combined   the combination of all classes, photos with an unknown label as one more class
persons    the combination of the classes of the heads that are the same in all photos of a person
joint      fastmask's: the classes of every head and their combinations, unknown labels apart

gap        persons of a combination in the fold with the most, less those in the fold with the fewest: mean and greatest
           of the combinations with at least as many persons as folds
heads      of the classes of all heads, the greatest standard deviation over the folds of the share of photos
score      the standard deviation over the folds of the macro-F1 of the combinations, with its standard error
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from fastmask.data.contest import contest_heads
from fastmask.data.folds import assign_folds
from fastmask.data.sample import CONTEST_PERSONS
from fastmask.data.table import Table
from fastmask.heads import UNKNOWN, Head, Heads
from fastmask.scoring import score_heads, scored_classes

FOLDS, PERSONS = 5, (160, 600, 2700)
WORN = np.array([0, 0, 0, 0, 0, 1, 2])
CELLS = np.array([*CONTEST_PERSONS]), np.array([*CONTEST_PERSONS.values()])
# what is said of each age band
AGES = np.array([[0.88, 0.12, 0.0], [0.14, 0.80, 0.06], [0.0, 0.45, 0.55]])
# (persons of (N,) photos, (N, heads) labels, (N, heads) answers)
Data = tuple[np.ndarray, np.ndarray, np.ndarray]
FEW, MANY = (3, 2, 4), (6, 5, 4)


def cells(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 2) gender and age of persons: of 2,700 the contest's own, of other numbers drawn from those."""
    kinds, counts = CELLS
    return kinds[np.repeat(np.arange(6), counts) if n == counts.sum() else rng.choice(6, n, p=counts / counts.sum())]


def say(rng: np.random.Generator, person: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The answers: what is thought of a person, and in three photos of twenty something else."""
    own, other = rng.random((person.max() + 1, 2))[person], rng.random((len(person), 2))
    u = np.where(rng.random((len(person), 1)) < 0.15, other, own)
    mask = np.where(rng.random(len(person)) < 0.03, rng.integers(0, 3, len(person)), y[:, 0])
    return np.stack(
        [mask, np.where(u[:, 1] < 0.04, 1 - y[:, 1], y[:, 1]), (u[:, :1] > AGES.cumsum(1)[y[:, 2]]).sum(1)], axis=1
    )


def contest(rng: np.random.Generator, n: int) -> Data:
    person = np.arange(n).repeat(7)
    y = np.column_stack([np.tile(WORN, n), cells(rng, n)[person]])
    return person, y, say(rng, person, y)


def unequal(rng: np.random.Generator, n: int) -> Data:
    person = np.arange(n).repeat(rng.geometric(0.3, n))
    y = np.column_stack([WORN[rng.integers(0, 7, len(person))], cells(rng, n)[person]])
    return person, y, say(rng, person, y)


def sources(rng: np.random.Generator, n: int) -> Data:
    person, y, said = contest(rng, n)
    source = rng.choice(3, n, p=[0.4, 0.3, 0.3])[person]
    y = y.copy()
    y[source == 1, 1:] = UNKNOWN
    y[source == 2, 0] = UNKNOWN
    return person, y, said


def own_heads(sizes: tuple[int, ...], each: int) -> Callable[[np.random.Generator, int], Data]:
    """Photos whose labels differ within a person, `each` of them a person on average."""

    def draw(rng: np.random.Generator, n: int) -> Data:
        person = np.arange(n).repeat(1 + rng.poisson(each - 1, n))
        y, said = [], []
        for size in sizes:
            p = np.arange(size, 0, -1) ** 1.5 / (np.arange(size, 0, -1) ** 1.5).sum()
            usual, own = rng.choice(size, n, p=p)[person], rng.choice(size, len(person), p=p)
            y.append(np.where(rng.random(len(person)) < 0.4, usual, own))
            hard, strange = rng.random(n)[person], rng.random(len(person))
            wrong = np.where(rng.random(len(person)) < 0.85, hard, strange) < 0.2
            said.append(np.where(wrong, rng.integers(0, size, len(person)), y[-1]))
        return person, np.stack(y, axis=1), np.stack(said, axis=1)

    return draw


def make_heads(sizes: tuple[int, ...]) -> Heads:
    return Heads([Head(f"head{i}", tuple("abcdef"[:size])) for i, size in enumerate(sizes)])


DATA = {
    "contest": (contest_heads(), contest),
    "unequal": (contest_heads(), unequal),
    "sources": (contest_heads(), sources),
    "own heads": (make_heads(FEW), own_heads(FEW, 1)),
    "own heads, persons": (make_heads(FEW), own_heads(FEW, 4)),
    "many classes": (make_heads(MANY), own_heads(MANY, 1)),
    "many classes, persons": (make_heads(MANY), own_heads(MANY, 4)),
}


def deal(strata: np.ndarray, person: np.ndarray, seed: int) -> np.ndarray:
    """Folds by one stratum a photo."""
    folds = np.empty(len(person), np.int64)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (_, valid) in enumerate(splitter.split(strata, strata, person)):
        folds[valid] = fold
    return folds


def ways(heads: Heads, person: np.ndarray, y: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The folds by each way."""
    yield "one head", deal(y[:, -1], person, seed)
    yield "combined", deal(heads.joint(y), person, seed)
    alike = [i for i in range(len(heads)) if (pd.Series(y[:, i]).groupby(person).nunique() == 1).all()]
    if 0 < len(alike) < len(heads):
        yield "persons", deal(np.unique(y[:, alike], axis=0, return_inverse=True)[1].ravel(), person, seed)
    frame = pd.DataFrame({head.name: head.decode_all(codes) for head, codes in zip(heads, y.T, strict=True)})
    frame = frame.assign(path=np.arange(len(y)), person=person, age_value=np.nan)
    # the bands of training are those of the score
    same = Heads([Head(head.name, head.classes) for head in heads])
    yield "joint", assign_folds(Table(frame, same, root=Path()), FOLDS, seed=seed)


def figures(heads: Heads, data: Data, folds: np.ndarray) -> tuple[float, float, float, float]:
    """Mean and greatest gap, the heads' spread, the score's."""
    person, y, said = data
    joint = heads.joint(y)
    known = joint != UNKNOWN
    pairs = pd.DataFrame({"fold": folds, "joint": joint, "person": person})[known].drop_duplicates()
    persons = pd.crosstab(pairs["fold"], pairs["joint"])
    gaps = (persons.max() - persons.min())[persons.sum() >= FOLDS]
    spread = 0.0
    for codes in y.T:
        photos = pd.crosstab(folds[codes != UNKNOWN], codes[codes != UNKNOWN])
        spread = max(spread, (photos / photos.mean()).std(ddof=0).max())
    classes = scored_classes(heads, [said], y)
    scores = [
        score_heads(heads, said[folds == f], y[folds == f], draws=0, classes=classes).joint.macro_f1
        for f in range(FOLDS)
    ]
    return gaps.mean(), gaps.max(), spread, float(np.std(scores, ddof=1))


def main(seeds: int = 20, *numbers: int) -> None:
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    print(f"{'persons':>7}  {'data':21}  {'strata':8}  gap mean, most   heads  score")
    for n in numbers or PERSONS:
        for name, (heads, draw) in DATA.items():
            found: dict[str, list[tuple[float, ...]]] = {}
            for seed in range(seeds):
                data = draw(np.random.default_rng([seed, n]), n)
                for way, folds in ways(heads, *data[:2], seed):
                    found.setdefault(way, []).append(figures(heads, data, folds))
            for way, rows in found.items():
                mean, most, spread, score = np.mean(rows, axis=0)
                error = np.std([row[-1] for row in rows]) / max(1, seeds - 1) ** 0.5
                gap = f"{mean:.2f}, {most:.2f}"
                cells = f"{n:7}  {name:21}  {way:8}  {gap:>14}  {spread:6.1%}  {score:.4f} ± {error:.4f}"
                print(cells, flush=True)
    print(f"{FOLDS} folds, {seeds} seeds; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
