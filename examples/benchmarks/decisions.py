"""What ways to decide for a joint class gain in macro-F1 on new persons, by the number of persons they are fitted on.

python examples/benchmarks/decisions.py [REPETITIONS]

Persons of seven photos with the contest's genders and ages, and heads that are too sure or too unsure and lean to some
age band, as trained networks do. Each way is fitted on some persons and scored on 3,000 others; the gain is over the
most probable class, with its standard error.

f1         fastmask's: temperatures, class shares, and the expected macro-F1's derivative
no shares  the same without the class shares
ascent     coordinate ascent on class offsets that maximise macro-F1 on the labels, after the same temperatures
near       the same, offsets kept within 0.5
prior      log-probabilities less 0.2 x the log of the class's count (logit adjustment, Menon et al. 2021)
"""

import sys
import time

import numpy as np
from scipy.special import softmax
from scipy.stats import norm

from fastmask.data.contest import contest_heads
from fastmask.decision.rule import expected_gains, fit_rule
from fastmask.scoring import f1

PERSONS, NEW = (150, 600, 2700), 3000
HEADS = contest_heads()
SHARES = np.array([[549, 410, 83], [732, 817, 109]])


def draw(rng: np.random.Generator, n: int, lean: np.ndarray, sure: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (7 n, 8) and labels (7 n, 3) of n persons; mistakes about one are mostly alike in all photos."""
    group = rng.choice(6, n, p=SHARES.ravel() / SHARES.sum())
    gender, band = group // 3, group % 3
    age = np.choose(band, [rng.integers(18, 30, n), rng.integers(30, 60, n), np.full(n, 60)])
    guess = (age + rng.normal(0, 6, n)).repeat(7) + rng.normal(0, 2, 7 * n)
    years = np.arange(18, 61)
    of_band = np.digitize(years, (30, 60))
    density = SHARES.sum(0)[of_band] / np.bincount(of_band)[of_band]
    posterior = norm.pdf((guess[:, None] - years) / 6.3) * density
    bands = np.stack([posterior[:, of_band == b].sum(1) for b in range(3)], axis=1)
    side = rng.normal(1.6, 1.2, n).repeat(7) + rng.normal(0, 0.7, 7 * n)
    mask = np.tile([0, 0, 0, 0, 0, 1, 2], n)
    logits = [
        0.6 * (4 * np.eye(3)[mask] + rng.normal(0, 1.2, (7 * n, 3))),
        1.5 * side[:, None] * np.where(np.eye(2)[gender.repeat(7)], 0.5, -0.5),
        sure * np.log(bands / bands.sum(1, keepdims=True) + 1e-9) + lean,
    ]
    y = np.stack([mask, gender.repeat(7), band.repeat(7)], axis=1)
    return np.concatenate([softmax(part, axis=1) for part in logits], axis=1), y


def macro(said: np.ndarray, true: np.ndarray) -> float:
    """Macro-F1 of class numbers over the classes of the truth."""
    hits, answers, truths = (np.bincount(who, minlength=HEADS.n_joint) for who in (said[said == true], said, true))
    return float(f1(hits, answers, truths)[truths > 0].mean())


def ascend(logs: np.ndarray, y: np.ndarray, most: float, rounds: int = 6) -> np.ndarray:
    """Offsets of the classes, one after the other put where macro-F1 is highest, the others held."""
    offsets, best = np.zeros(logs.shape[1]), macro(logs.argmax(1), y)
    truths = np.bincount(y, minlength=len(offsets))
    for _ in range(rounds):
        before = best
        for c in np.unique(y):
            others = logs + offsets
            others[:, c] = -np.inf
            rival = others.argmax(1)
            margin = others.max(1) - logs[:, c]
            order = np.argsort(margin)
            rival, true, margin = rival[order], y[order], margin[order]
            one, right = np.eye(len(offsets))[rival], (rival == true)[:, None]
            # what is left to the rivals where the first k photos go to the class
            answers, hits = (np.vstack([0 * one[:1], -x.cumsum(0)]) + x.sum(0) for x in (one, one * right))
            answers[:, c], hits[:, c] = np.arange(len(y) + 1), np.r_[0, (true == c).cumsum()]
            scores = f1(hits, answers, np.broadcast_to(truths, hits.shape))[:, truths > 0].mean(1)
            cuts = np.r_[margin[0] - 1, (margin[1:] + margin[:-1]) / 2, margin[-1] + 1]
            scores[np.abs(cuts) > most] = -1
            if scores.max() > best + 1e-9:
                best, offsets[c] = scores.max(), cuts[scores.argmax()]
        if best == before:
            break
    return offsets


def gains(rng: np.random.Generator, n: int) -> dict[str, float]:
    """The gain of each way on new persons."""
    lean, sure = rng.normal(0, 0.5, 3), rng.choice([0.6, 1, 2])
    (p, y), (new, truth) = (draw(rng, size, lean, sure) for size in (n, NEW))
    rule, labels, true = fit_rule("f1", HEADS, p, y), HEADS.joint(y), HEADS.joint(truth)
    old, joint = (HEADS.joint_probabilities(rule.calibrated(x)) for x in (p, new))
    weight, cost = expected_gains(old, np.unique(labels))
    logs = np.log(joint)
    said = {
        "f1": HEADS.joint(rule.decide(new)),
        "no shares": (joint * weight - cost).argmax(1),
        "ascent": (logs + ascend(np.log(old), labels, 4)).argmax(1),
        "near": (logs + ascend(np.log(old), labels, 0.5)).argmax(1),
        "prior": (logs - 0.2 * np.log(1 + np.bincount(labels, minlength=HEADS.n_joint))).argmax(1),
    }
    plain = macro(HEADS.joint(HEADS.argmax(new)), true)
    return {"plain": plain, **{way: macro(answers, true) - plain for way, answers in said.items()}}


def main(repetitions: int = 12) -> None:
    rng, start = np.random.default_rng(0), time.perf_counter()
    for n in PERSONS:
        found = [gains(rng, n) for _ in range(repetitions)]
        if n == PERSONS[0]:
            print(f"{'persons':>7}  {'plain':>6}  " + "  ".join(f"{way:>16}" for way in list(found[0])[1:]))
        each = {way: np.array([one[way] for one in found]) for way in found[0]}
        cells = [f"{v.mean():+.4f} ± {v.std() / np.sqrt(len(v)):.4f}" for way, v in each.items() if way != "plain"]
        print(f"{n:7}  {each['plain'].mean():.4f}  " + "  ".join(f"{cell:>16}" for cell in cells), flush=True)
    print(f"{repetitions} repetitions, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
