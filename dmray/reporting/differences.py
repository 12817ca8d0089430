"""The difference between two methods over the same data sets: its interval, its test, and what more seeds would show.

Scores are given as one mapping from seed to score per data set. If both methods have the same seeds on every data set
(two or more), the seeds are paired: a paired t test. Otherwise it is Welch's t test over all seeds of both. Over
several data sets the difference is the mean of the differences on each, and the degrees of freedom are Welch's and
Satterthwaite's. The data sets are taken as given: the test is about other seeds, not about other data sets.

The test decides, and not the bootstrap interval, which is given beside it: a bootstrap of three seeds without any
difference excludes 0 in one of four cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, t

from dmray.reporting.aggregates import percentiles, resampled

RESOLUTION = 0.1  # normalized points, the last digit of the tables
LEVEL = 0.05  # of the tests; intervals are of 95 %
POWER = 0.8  # of a detectable difference
_MOST_SEEDS = 1000
_ROUNDING = 1e-9  # a spread below this share of the scores is that of floating-point numbers

SeedScores = Mapping[int, float]  # one data set's scores by seed


@dataclass(frozen=True)
class Difference:
    """How much higher the first method's mean is than the second's.

    `error`: the standard error; `degrees`: its degrees of freedom. Both are None where a data set has fewer than two
    seeds, and where no seed differs from another, which says nothing about further seeds; then all else is None, too.
    `seeds`: the number of pairs per data set, or of the first and the second method's seeds; the lowest of all data
    sets. `samples`: what the bootstrap draws from, one array per data set: the differences of pairs, or the scores of
    the first and those of the second method.
    """

    value: float
    paired: bool
    seeds: tuple[int, ...]
    error: float | None = None
    degrees: float | None = None
    samples: tuple[Sequence[np.ndarray], ...] = field(default=(), repr=False, compare=False)

    @property
    def tiny(self) -> bool:
        """Whether the difference is smaller than what the tables show."""
        return abs(self.value) < RESOLUTION

    @property
    def level(self) -> bool:
        """Whether it is tiny and larger ones are excluded: by the interval, or because no seed differs from another."""
        if self.interval is None:
            return self.tiny and min(self.seeds) > 1
        return self.tiny and max(map(abs, self.interval)) < RESOLUTION

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of 95 %, by the t test."""
        if self.error is None or self.degrees is None:
            return None
        reach = float(t.isf(LEVEL / 2, self.degrees)) * self.error
        return self.value - reach, self.value + reach

    @property
    def bootstrap(self) -> tuple[float, float] | None:
        """Of 95 %: the percentiles of 2,000 draws of seeds within each data set."""
        if self.error is None or not self.samples:
            return None
        first, *second = self.samples
        return percentiles(_means(first, seed=0) - (_means(second[0], seed=1) if second else 0.0))

    @property
    def p_value(self) -> float | None:
        """Two-sided: how often seeds alone would make a difference as large as this one or larger."""
        if self.error is None or self.degrees is None:
            return None
        return float(2 * t.sf(abs(self.value) / self.error, self.degrees))

    @property
    def seeds_text(self) -> str:
        """For example "3 paired seeds", "2 and 3 seeds"."""
        if self.paired:
            return f"{self.seeds[0]} paired seeds"
        return f"{self.seeds[0]} and {self.seeds[1]} seeds"

    def detectable(self, level: float = LEVEL) -> float | None:
        """The true difference that a test at `level` finds with probability `POWER`, with as many seeds as here."""
        if self.error is None or self.degrees is None:
            return None
        return self.error * _detectable_errors(self.degrees, level)

    def more_seeds(self, level: float = LEVEL) -> int | None:
        """How many more seeds of each method a test at `level` needs to find this difference with probability `POWER`.

        Assumes that the true difference and the deviation over seeds are those measured. None: more than 1,000,
        or unknown.
        """
        if self.error is None or self.degrees is None:
            return None
        few, enough = -1, _MOST_SEEDS
        if not self._found_with(enough, level):
            return None
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self._found_with(middle, level) else (middle, enough)
        return enough

    def _found_with(self, more: int, level: float) -> bool:
        error, degrees = _error_and_degrees(self.samples, more)
        return abs(self.value) >= error * _detectable_errors(degrees, level)


def difference(first: Sequence[SeedScores], second: Sequence[SeedScores]) -> Difference:
    """The difference between two methods on the same data sets, in the same order; each has at least one seed on each.

    Its value is always that of the means over all seeds, which the tables show: seeds of one method alone, as there are
    in a sweep that still runs, are not left out, but then nothing is paired.
    """
    both = list(zip(first, second, strict=True))
    if all(ours.keys() == theirs.keys() and len(ours) > 1 for ours, theirs in both):
        pairs = [np.array([ours[seed] - theirs[seed] for seed in sorted(ours)]) for ours, theirs in both]
        return _estimated((pairs,), (min(map(len, pairs)),))
    mine, yours = ([np.array(list(each.values())) for each in scores] for scores in (first, second))
    return _estimated((mine, yours), (min(map(len, mine)), min(map(len, yours))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of tests that were made together, so that 5 % is the chance of any false finding."""
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    return [float(corrected[place]) for place in np.argsort(order)]


def _estimated(samples: tuple[list[np.ndarray], ...], seeds: tuple[int, ...]) -> Difference:
    """The mean of the means of the differences of pairs, or of the first method's scores less that of the second's."""
    first, *second = (float(np.mean([each.mean() for each in scores])) for scores in samples)
    value, paired = first - sum(second), not second
    every = [each for scores in samples for each in scores]
    if min(map(len, every)) < 2:
        return Difference(value, paired, seeds)
    if max(float(each.std()) for each in every) <= _ROUNDING * max(1.0, *(float(np.abs(each).max()) for each in every)):
        return Difference(value, paired, seeds)
    return Difference(value, paired, seeds, *_error_and_degrees(samples), samples)


def _error_and_degrees(samples: tuple[Sequence[np.ndarray], ...], more: int = 0) -> tuple[float, float]:
    """The standard error and its degrees of freedom, also with so many `more` seeds of the same deviations."""
    every = [each for scores in samples for each in scores]
    sizes = np.array([len(each) + more for each in every])
    variances = np.array([each.var(ddof=1) for each in every]) / sizes / len(samples[0]) ** 2
    return float(variances.sum() ** 0.5), float(variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum())


def _means(samples: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """The mean over data sets of the means of bootstrap draws, one number per draw."""
    return np.concatenate([np.mean([each.mean(-1) for each in draws], axis=0) for draws in resampled(samples, seed)])


@cache
def _detectable_errors(degrees: float, level: float) -> float:
    """The true difference, in standard errors, that a two-sided t test finds with probability `POWER`.

    The other side of the test is left out: it is never reached at such a difference.
    """
    critical = float(t.isf(level / 2, degrees))
    return float(brentq(lambda true: float(nct.sf(critical, degrees, true)) - POWER, 0.0, 10 * critical))
