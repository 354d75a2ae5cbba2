"""How often the 95 % interval of macro-F1 holds the truth, by the number of persons, for several ways to make it.

python examples/benchmarks/coverage.py [REPLICATIONS [MISTAKES]]

Persons of seven photos (five masks worn, one incorrect, none) with the contest's genders and ages, and a model whose
mistakes about a person are mostly the same in all seven photos, neighbouring age bands confused. Each replication draws
some persons and makes an interval from them alone; the truth is of 300,000 persons, over the classes that were drawn.

percentile  draws of whole persons, percentiles 2.5 and 97.5; a class that a draw lacks keeps its F1
bayesian    exponential weights of the persons (Rubin 1981): no draw lacks a class
expanded    percentile, widened by Student's t and sqrt(n / (n - 1)) (Hesterberg 2015), n the persons of a typical class
BCa         percentile, corrected for bias and skewness (Efron 1987), the acceleration by leaving out one person each
by class    percentile, with two imagined persons added to each class, one always right and one always wrong, whose
            weights are drawn from Gamma(1/4): half a person in all
two more    the same two for all classes, as mistakes about a person go through several classes

MISTAKES makes the model's mistakes about ages rarer, such as 0.1.
"""

import sys
import time

import numpy as np
from scipy.stats import norm, t

PERSONS, DRAWS, CLASSES = (60, 160, 600, 2700), 300, 18
# male, then female: <30, 30-59, 60+
SEEN = np.array([549, 410, 83, 732, 817, 109]) / 2700
AGES = np.array([[0.88, 0.12, 0.0], [0.14, 0.80, 0.06], [0.0, 0.45, 0.55]])
WORN = np.array([0, 0, 0, 0, 0, 1, 2])


def persons(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3, 18) each person's photos by class: right answers, answers, truths."""
    group = rng.choice(6, n, p=SEEN)[:, None]
    gender, age = group // 3, group % 3
    # what is thought of the person, and in three photos of twenty something else
    u = np.where(rng.random((n, 7, 1)) < 0.15, rng.random((n, 7, 2)), rng.random((n, 1, 2)))
    said_age = (u[..., :1] > AGES.cumsum(1)[age]).sum(-1)
    said_gender = np.where(u[..., 1] < 0.04, 1 - gender, gender)
    said_mask = np.where(rng.random((n, 7)) < 0.03, rng.integers(0, 3, (n, 7)), WORN)
    true, said = WORN * 6 + gender * 3 + age, said_mask * 6 + said_gender * 3 + said_age
    one = np.eye(CLASSES)
    return np.stack([one[true] * (true == said)[..., None], one[said], one[true]], axis=1).sum(2)


def f1(counts: np.ndarray, absent: np.ndarray | float = 0.0) -> np.ndarray:
    """(..., 3, 18) counts -> (..., 18) the F1 a class, `absent` of one without truth."""
    right, said, true = np.moveaxis(counts, -2, 0)
    return np.where(true > 0, 2 * right / np.maximum(said + true, 1e-300), absent)


def imagined(sample: np.ndarray) -> np.ndarray:
    """(2, 3, 18) one who is right and one who is wrong, with as many photos of each class as others have of it."""
    photos = sample[:, 2].sum(0) / np.maximum((sample[:, 2] > 0).sum(0), 1)
    return np.stack([[photos, photos, photos], [0 * photos, photos, photos]])


def bca(draws: np.ndarray, point: float, left_out: np.ndarray) -> np.ndarray:
    z0 = norm.ppf(np.clip((np.sum(draws < point) + 0.5 * np.sum(draws == point)) / len(draws), 0.005, 0.995))
    apart = left_out.mean() - left_out
    acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5 + 1e-12)
    z = z0 + norm.ppf([0.025, 0.975])
    return np.quantile(draws, norm.cdf(z0 + z / (1 - acceleration * z)))


def intervals(rng: np.random.Generator, sample: np.ndarray) -> dict[str, tuple[float, float]]:
    """An interval by each method."""
    n, whole = len(sample), sample.sum(0)[None]
    classes = whole[0, 2] > 0
    each = f1(whole[0])
    point = float(each[classes].mean())

    def drawn(weights: np.ndarray, units: np.ndarray) -> np.ndarray:
        counts = (weights @ units.reshape(len(units), -1)).reshape(-1, 3, CLASSES)
        return f1(counts, each)[:, classes].mean(1)

    counts = rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(float)
    percentile, bayesian = drawn(counts, sample), drawn(rng.exponential(size=(DRAWS, n)), sample)
    both = imagined(sample)
    apart = (both[:, None] * np.eye(CLASSES)[classes][:, None]).reshape(-1, 3, CLASSES)
    more = {}
    for name, units in (("by class", apart), ("two more", both)):
        weights = np.concatenate([counts, rng.gamma(0.25, size=(DRAWS, len(units)))], 1)
        more[name] = np.quantile(drawn(weights, np.concatenate([sample, units])), (0.025, 0.975))
    typical = max(2, np.median((sample[:, 2] > 0).sum(0)[classes]))
    tail = norm.cdf(t.ppf(0.025, typical - 1) * np.sqrt(typical / (typical - 1)))
    found = {
        "percentile": np.quantile(percentile, (0.025, 0.975)),
        "bayesian": np.quantile(bayesian, (0.025, 0.975)),
        "expanded": np.quantile(percentile, (tail, 1 - tail)),
        "BCa": bca(percentile, point, f1(whole - sample, each)[:, classes].mean(1)),
        **more,
    }
    # as fastmask's, they hold the figure itself
    return {name: (min(low, point), max(high, point)) for name, (low, high) in found.items()}


def main(replications: int = 200, mistakes: float = 1.0) -> None:
    AGES[:] = np.eye(3) + mistakes * (AGES - np.eye(3))
    rng, start = np.random.default_rng(0), time.perf_counter()
    truth = f1(sum(persons(rng, 30_000).sum(0) for _ in range(10)))
    print(f"true macro-F1 {truth.mean():.3f}; {replications} replications of {DRAWS} draws")
    for n in PERSONS:
        found: dict[str, list[tuple[bool, float]]] = {}
        for _ in range(replications):
            sample = persons(rng, n)
            true = truth[sample[:, 2].sum(0) > 0].mean()
            for name, (low, high) in intervals(rng, sample).items():
                found.setdefault(name, []).append((low <= true <= high, high - low))
        if n == PERSONS[0]:
            print(f"{'persons':>7}  " + "  ".join(f"{name:>13}" for name in found))
        cells = (f"{np.mean(rows, axis=0)[0]:6.1%} {np.mean(rows, axis=0)[1]:6.3f}" for rows in found.values())
        print(f"{n:7}  " + "  ".join(cells), flush=True)
    print(f"coverage and mean width; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, float), sys.argv[1:], strict=False)))
