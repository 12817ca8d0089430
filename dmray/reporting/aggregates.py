"""rliable's statistics over data sets and seeds, with stratified bootstrap intervals (Agarwal et al. 2021).

Scores are given as one array of normalized scores per data set, one number per seed. The bootstrap draws seeds with
replacement within each data set. Intervals are from the 2.5th to the 97.5th percentile of the draws. The draws are
seeded, so the same scores give the same interval. With three or four seeds the intervals are rough. If a data set has
a single seed there is no interval.

The interval of a `contrast` is corrected for few seeds, since it decides what a report says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t, trim_mean

Scores = Sequence[np.ndarray]
Statistic = Callable[[np.ndarray], np.ndarray]  # (draws, runs) -> (draws,)
GOAL = 100.0  # D4RL's reference maximum; scores above it have an optimality gap of zero
FEWEST_SEEDS = 3  # of a contrast's interval
_DRAWS, _BLOCK = 2000, 200
_ROUNDING = 1e-9  # a spread below this share of the scores is that of floating-point numbers


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval (None: a data set has a single seed). `runs`: the number of trials."""

    value: float
    interval: tuple[float, float] | None
    runs: int


def mean(runs: np.ndarray) -> np.ndarray:
    """The mean over all runs."""
    return np.asarray(runs.mean(-1))


def median(runs: np.ndarray) -> np.ndarray:
    """The median over all runs."""
    return np.asarray(np.median(runs, -1))


def iqm(runs: np.ndarray) -> np.ndarray:
    """The interquartile mean: the mean of the middle half of all runs."""
    return np.asarray(trim_mean(runs, 0.25, axis=-1))


def optimality_gap(runs: np.ndarray) -> np.ndarray:
    """The mean over all runs of the distance to the reference maximum, 0 for runs above it. Lower is better."""
    return np.asarray(np.maximum(GOAL - runs, 0).mean(-1))


def estimate(scores: Scores, statistic: Statistic) -> Estimate:
    """The statistic over all runs of all data sets, with its interval."""
    runs = np.concatenate(scores)
    interval = None
    if _several_seeds(scores):
        interval = percentiles(np.concatenate([statistic(np.hstack(draws)) for draws in resampled(scores)]))
    return Estimate(float(statistic(runs[None])[0]), interval, len(runs))


def interval_of_runs(runs: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over runs of the mean over each one's episodes; None for a single episode.

    The runs are drawn with replacement, and in each one its episodes. A single run's interval is over its episodes.
    """
    if len(runs) == 1 and len(runs[0]) < 2:
        return None
    draw = np.random.default_rng(0)
    means = np.zeros(_DRAWS)
    for _ in runs:
        of_each = [each[draw.integers(len(each), size=(_DRAWS, len(each)))].mean(axis=1) for each in runs]
        means += np.stack(of_each)[draw.integers(len(runs), size=_DRAWS), np.arange(_DRAWS)] / len(runs)
    return percentiles(means)


def probability_of_improvement(first: Scores, second: Scores) -> Estimate:
    """The probability that a run of `first` has a higher score than one of `second` on the same data set.

    Averaged over the data sets, which must be in the same order in both. Ties count one half.
    """

    def probability(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> np.ndarray:
        each = [_share_higher(x, y) for x, y in zip(ours, theirs, strict=True)]
        return np.asarray(np.mean(each, axis=0))

    interval = None
    if _several_seeds([*first, *second]):
        paired = zip(resampled(first, seed=0), resampled(second, seed=1), strict=True)
        interval = percentiles(np.concatenate([probability(ours, theirs) for ours, theirs in paired]))
    value = float(probability([x[None] for x in first], [y[None] for y in second])[0])
    return Estimate(value, interval, sum(map(len, [*first, *second])))


def contrast(strata: Scores, weights: Sequence[float] | np.ndarray) -> Estimate:
    """The weighted sum of the strata's means, with a 95 % bootstrap interval; seeds are drawn within each stratum.

    A plain bootstrap of n seeds is too narrow: its variance is (n - 1)/n of what it should be, and its percentiles are
    those of a normal distribution. So each draw's distance from its stratum's mean is multiplied by sqrt(n / (n - 1)),
    and by the ratio of the 97.5th percentiles of Student's t and of a normal distribution, with the degrees of freedom
    of Welch and Satterthwaite. (Hesterberg 2015 takes percentiles farther out instead, but three seeds have no draw
    there if one stratum has nearly all the spread.) No interval: a stratum has fewer than `FEWEST_SEEDS` seeds, or no
    seed differs from another, which says nothing about further seeds.
    """
    means = np.array([each.mean() for each in strata])
    weighted = np.asarray(weights, dtype=np.float64)
    value, runs = float(weighted @ means), sum(map(len, strata))
    if min(map(len, strata)) < FEWEST_SEEDS or _no_spread(strata):
        return Estimate(value, None, runs)
    sizes = np.array([len(each) for each in strata])
    variances = weighted**2 * np.array([each.var(ddof=1) for each in strata]) / sizes
    degrees = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    drawn = np.concatenate([np.stack([x.mean(-1) for x in block], axis=-1) for block in resampled(strata)])
    wider = np.sqrt(sizes / (sizes - 1)) * t.isf(0.025, degrees) / norm.isf(0.025)
    return Estimate(value, percentiles((means + wider * (drawn - means)) @ weighted), runs)


def _no_spread(strata: Scores) -> bool:
    largest = max(1.0, *(float(np.abs(each).max()) for each in strata))
    return max(float(each.std()) for each in strata) <= _ROUNDING * largest


def performance_profile(scores: Scores, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of runs above each threshold, and its 95 % band (low, high): three arrays like `thresholds`."""
    runs = np.sort(np.concatenate(scores))
    drawn = np.concatenate([_above(np.sort(np.hstack(draws)), thresholds) for draws in resampled(scores)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return _above(runs[None], thresholds)[0], low, high


def estimate_text(found: Estimate) -> str:
    """The estimate as text for tables: "71.5" or "71.5 [70.0, 73.0]"."""
    if found.interval is None:
        return f"{found.value:z.1f}"
    low, high = found.interval
    return f"{found.value:z.1f} [{low:z.1f}, {high:z.1f}]"


def _several_seeds(scores: Scores) -> bool:
    return all(len(x) > 1 for x in scores)


def resampled(scores: Scores, seed: int = 0) -> list[list[np.ndarray]]:
    """Blocks of bootstrap draws; each has a (draws, seeds) array per data set. All statistics use the same draws."""
    rng = np.random.default_rng(seed)
    return [[x[rng.integers(len(x), size=(_BLOCK, len(x)))] for x in scores] for _ in range(_DRAWS // _BLOCK)]


def _share_higher(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The share of pairs in which the first is higher: (draws, m) and (draws, n) -> (draws,)."""
    lead = first[:, :, None] - second[:, None, :]
    return np.asarray(((lead > 0) + 0.5 * (lead == 0)).mean((1, 2)))


def _above(runs: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs above each threshold: sorted (draws, runs) -> (draws, thresholds)."""
    return np.stack([1 - np.searchsorted(row, thresholds, side="right") / len(row) for row in runs])


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
