"""How often the 95 % intervals of fastmask contain the truth, next to two other methods, on simulated persons.

python examples/benchmarks/coverage.py [REPLICATIONS [KIND ...]]

Two models predict the genders, ages and masks of the contest. Most mistakes about a person are the same in all of the
person's photos, and mostly the same of both models. Each replication draws some persons, and makes the intervals of
the joint class and of each head from them alone; the truth is of 200,000 persons, over the classes that were drawn.

fastmask    what `score` and `score_differences` give
percentile  draws of whole persons, percentiles 2.5 and 97.5; a class that a draw lacks keeps its F1
jackknife   leaving out one person each, with Student's t of persons - 1 degrees of freedom
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from fastmask.data.contest import contest_heads
from fastmask.scoring import draw_scores, f1, target_of

HEADS = contest_heads()
TARGETS = ("joint", *HEADS.classified)
PERSONS, DRAWS = (10, 20, 40, 80, 160, 600), 600
# male, then female: <30, 30-59, 60+
SEEN = np.array([549, 410, 83, 732, 817, 109]) / 2700
# mistakes of a model with an accuracy of 0.8 for the joint class
AGES = np.array([[0.0, 0.10, 0.0], [0.12, 0.0, 0.05], [0.0, 0.38, 0.0]])
GENDER, MASK = 0.035, 0.025
WORN = np.array([0, 0, 0, 0, 0, 1, 2])


@dataclass(frozen=True)
class Kind:
    """Persons with `photos` each, 0 for 1 to 20; `mistakes` of the first model, and how many of them the second makes.

    `shared` is the fraction of the persons for whom both models are the same but for that. With `balanced`, all genders
    and ages are equally frequent.
    """

    photos: int = 7
    mistakes: float = 1.0
    fewer: float = 0.9
    shared: float = 0.9
    balanced: bool = False


KINDS = {
    "accuracy 0.8": Kind(),
    "accuracy 0.5": Kind(mistakes=2.6),
    "accuracy 0.95": Kind(mistakes=0.23),
    "accuracy 0.99": Kind(mistakes=0.045),
    "one photo each": Kind(photos=1),
    "one photo each, 0.95": Kind(photos=1, mistakes=0.23),
    "1 to 20 photos": Kind(photos=0),
    "1 to 20 photos, 0.95": Kind(photos=0, mistakes=0.23),
    "classes alike": Kind(balanced=True),
    "other models": Kind(shared=0.0, fewer=0.6),
}


def persons(rng: np.random.Generator, n: int, kind: Kind) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The person of each photo, its labels (photos, heads), and those that each model predicts."""
    photos = np.full(n, kind.photos) if kind.photos else np.ceil(20 ** rng.random(n)).astype(int)
    owner = np.repeat(np.arange(n), photos)
    group = np.resize(np.arange(6), n) if kind.balanced else rng.choice(6, n, p=SEEN)
    mask = np.resize(WORN, len(owner)) if kind.photos == 7 else rng.choice(WORN, len(owner))
    true = np.stack([mask, group[owner] // 3, group[owner] % 3], axis=1)
    first, second = (_luck(rng, owner, n) for _ in range(2))
    alike = (rng.random(n) < kind.shared)[owner, None]
    models = ((first, kind.mistakes), (np.where(alike, first, second), kind.mistakes * kind.fewer))
    return owner, true, [_predict(true, luck, mistakes) for luck, mistakes in models]


def _luck(rng: np.random.Generator, owner: np.ndarray, n: int) -> np.ndarray:
    """(photos, 4) uniform numbers for age, gender, mask, and the wrong mask; mostly those of the person."""
    own = rng.random((len(owner), 4))
    alone = np.stack([rng.random(len(owner)) < 0.15] * 2 + [np.ones(len(owner), bool)] * 2, axis=1)
    return np.where(alone, own, rng.random((n, 4))[owner])


def _predict(true: np.ndarray, luck: np.ndarray, mistakes: float) -> np.ndarray:
    mask, gender, age = true.T
    wrong = np.minimum(AGES * mistakes, 0.45)
    said = (luck[:, :1] >= np.cumsum(wrong, axis=1)[age]).sum(axis=1)
    return np.stack(
        [
            np.where(luck[:, 2] < MASK * mistakes, (mask + 1 + (luck[:, 3] < 0.5)) % 3, mask),
            np.where(luck[:, 1] < GENDER * mistakes, 1 - gender, gender),
            np.where(said < 3, said, age),
        ],
        axis=1,
    )


def count(owner: np.ndarray, true: np.ndarray, predicted: np.ndarray, k: int) -> np.ndarray:
    """(persons, 3, k) each person's photos by class: right predictions, predictions, truths."""
    n, hit = owner[-1] + 1, true == predicted
    rows = (owner[hit], true[hit]), (owner, predicted), (owner, true)
    return np.stack([np.bincount(who * k + y, minlength=n * k).reshape(n, k) for who, y in rows], axis=1)


def figures(counts: np.ndarray, classes: np.ndarray, absent: np.ndarray | float = 0.0) -> np.ndarray:
    """(..., 3, k) counts -> (2, ...) macro-F1 over classes, with F1 `absent` of those without truth, and accuracy."""
    hits, said, true = np.moveaxis(counts, -2, 0)
    each = np.where(true > 0, f1(hits, said, true), absent)
    return np.stack([each[..., classes].mean(-1), hits.sum(-1) / true.sum(-1)])


def percentile(rng: np.random.Generator, counts: list[np.ndarray], classes: np.ndarray) -> list[np.ndarray]:
    """The intervals of the first model's macro-F1 and accuracy, and of the second's differences from it."""
    n, weights = len(counts[0]), rng.multinomial(len(counts[0]), np.full(len(counts[0]), 1 / len(counts[0])), DRAWS)
    drawn = []
    for one in counts:
        sums = (weights.astype(float) @ one.reshape(n, -1)).reshape(DRAWS, *one.shape[1:])
        drawn.append(figures(sums, classes, f1(*one.sum(0))))
    return [np.percentile(values, (2.5, 97.5)) for values in (*drawn[0], *(drawn[1] - drawn[0]))]


def jackknife(counts: list[np.ndarray], classes: np.ndarray) -> list[np.ndarray]:
    """As `percentile`."""
    n = len(counts[0])
    whole, left_out = zip(*((figures(c.sum(0), classes), figures(c.sum(0) - c, classes)) for c in counts), strict=True)
    values = np.concatenate([whole[0], whole[1] - whole[0]])
    without = np.concatenate([left_out[0], left_out[1] - left_out[0]])
    half = t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((without - without.mean(1, keepdims=True)) ** 2).sum(1))
    return list(np.stack([values - half, values + half], axis=1))


FIGURES = ("macro-F1", "accuracy", "difference of macro-F1", "difference of accuracy")


def replicate(
    rng: np.random.Generator, n: int, kind: Kind, truth: dict[str, list[np.ndarray]]
) -> dict[str, np.ndarray]:
    """By each method (targets, figures, 2) whether the interval contains the truth, and its width."""
    owner, true, models = persons(rng, n, kind)
    found: dict[str, list[list[np.ndarray]]] = {}
    for target in TARGETS:
        y, *answers = (target_of(HEADS, labels, target) for labels in (true, *models))
        classes = np.unique(y)
        first, second = draw_scores([(one, y, classes) for one in answers], owner, DRAWS, seed=int(rng.integers(2**31)))
        score, gain = first.score(), second.minus(first)
        ours = [one for found in (score, gain) for one in (found.macro_f1_interval, found.accuracy_interval)]
        counts = [count(owner, y, one, len(truth[target][0][0])) for one in answers]
        by_method = {
            "fastmask": ours,
            "percentile": percentile(rng, counts, classes),
            "jackknife": jackknife(counts, classes),
        }
        right = np.array([figures(one, classes) for one in truth[target]])
        wanted = [*right[0], *(right[1] - right[0])]
        for name, intervals in by_method.items():
            rows = [(low <= value <= high, high - low) for (low, high), value in zip(intervals, wanted, strict=True)]
            found.setdefault(name, []).append(np.array(rows, float))
    return {name: np.array(rows) for name, rows in found.items()}


def truth_of(rng: np.random.Generator, kind: Kind) -> dict[str, list[np.ndarray]]:
    """Per target the (3, k) counts of each model, of very many persons."""
    sums: dict[str, list[np.ndarray]] = {}
    for _ in range(10):
        owner, true, models = persons(rng, 20_000, kind)
        for target in TARGETS:
            k = HEADS.n_joint if target == "joint" else len(HEADS[target].classes)
            y = target_of(HEADS, true, target)
            new = [count(0 * owner, y, target_of(HEADS, one, target), k)[0] for one in models]
            sums[target] = [a + b for a, b in zip(sums.get(target, [0, 0]), new, strict=True)]
    return sums


def main(replications: int = 200, *names: str) -> None:
    start, least, joint = time.perf_counter(), {}, {}
    print("coverage and mean width; of the heads the lowest coverage and the mean width")
    for name in names or KINDS:
        rng = np.random.default_rng([0, list(KINDS).index(name)])
        truth = truth_of(rng, KINDS[name])
        every = [figures(one, np.arange(one.shape[1])) for one in truth["joint"]]
        print(f"\n{name}: joint macro-F1 {every[0][0]:.3f} and {every[1][0]:.3f}, accuracy {every[0][1]:.3f}")
        for n in PERSONS:
            runs = [replicate(rng, n, KINDS[name], truth) for _ in range(replications)]
            if n == PERSONS[0]:
                print(f"{'persons':>7} {'':22}  " + "  ".join(f"{method:>12}, heads     " for method in runs[0]))
            for i, figure in enumerate(FIGURES):
                cells = []
                for method in runs[0]:
                    mean = np.mean([run[method][:, i] for run in runs], axis=0)
                    joint.setdefault((n, figure, method), []).append(mean[0, 0])
                    for part, rows in (("joint", mean[:1]), ("head", mean[1:])):
                        cells.append(f"{rows[:, 0].min():6.1%} {rows[:, 1].mean():5.3f}")
                        key = (method, part, figure)
                        least[key] = min(least.get(key, (2.0, "", 0)), (rows[:, 0].min(), name, n))
                print(f"{n:7} {figure:22}  " + "  ".join(cells), flush=True)
    print("\njoint class, mean coverage of the kinds")
    for (n, figure, method), values in joint.items():
        print(f"{n:7} {figure:22}  {method:10} {np.mean(values):6.1%}")
    print("\nlowest coverage")
    for (method, part, figure), (value, name, n) in least.items():
        print(f"{method:10} {part:5} {figure:22} {value:6.1%}  {name}, {n} persons")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
