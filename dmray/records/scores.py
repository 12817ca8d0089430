"""The scores of a trial and their spread over seeds: one rule for MLflow, tables and figures.

The last score is the main result: the evaluation of the final weights. The best score is the highest score during
training; it is chosen by looking at the evaluations, so it is optimistic. Both are for the first target return and over
all episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, NamedTuple, cast

import numpy as np

from dmray.records.metrics import single_metrics
from dmray.records.records import EvaluationDone

EVALUATION_METRICS = tuple(metric.name for metric in single_metrics("evaluation"))
_READ: tuple[Callable[[EvaluationDone], float | None], ...] = tuple(
    cast(Any, metric.read) for metric in single_metrics("evaluation")
)
_LARGE = 1e100
_NORMALIZED, _RETURN = EVALUATION_METRICS.index("normalized_score"), EVALUATION_METRICS.index("return_mean")


class Score(NamedTuple):
    """The result of one evaluation for the first target return.

    `numbers` are in the order of `EVALUATION_METRICS`; NaN where a metric was not measured. `quick`: over fewer
    episodes, so it is part of a curve, and never a trial's last or best score.
    """

    step: int
    target_return: float | None
    quick: bool
    numbers: tuple[float, ...]

    @classmethod
    def of(cls, evaluation: EvaluationDone) -> Score:
        numbers = [read(evaluation) for read in _READ]
        return cls(
            evaluation.step,
            evaluation.first_target.target_return,
            evaluation.quick,
            tuple(math.nan if number is None else float(number) for number in numbers),
        )

    @property
    def values(self) -> dict[str, float]:
        """The metrics that were measured, by name."""
        named = zip(EVALUATION_METRICS, self.numbers, strict=True)
        return {name: number for name, number in named if not math.isnan(number)}

    @property
    def normalized(self) -> float:
        """D4RL-normalized, the mean over episodes."""
        return self.numbers[_NORMALIZED]

    @property
    def return_mean(self) -> float:
        """Raw, the mean over episodes."""
        return self.numbers[_RETURN]


def last_score(scores: Iterable[Score]) -> Score | None:
    """The evaluation with the highest step."""
    return max(_whole(scores), key=lambda score: score.step, default=None)


def best_score(scores: Iterable[Score]) -> Score | None:
    """The evaluation with the highest normalized score; of equals the earliest."""
    return max(_whole(scores), key=lambda score: (score.normalized, -score.step), default=None)


def _whole(scores: Iterable[Score]) -> list[Score]:
    return [score for score in scores if not score.quick]


@dataclass(frozen=True)
class ScoreSeries:
    """The scores of a trial in the order of their steps, each step once, as arrays of one length.

    `columns` are the evaluation metrics by name.
    """

    step: np.ndarray
    quick: np.ndarray
    columns: Mapping[str, np.ndarray]
    target_return: float | None

    @classmethod
    def of(cls, scores: Iterable[Score]) -> ScoreSeries:
        ordered = sorted(scores, key=lambda score: score.step)
        columns = np.array([score.numbers for score in ordered], dtype=float).reshape(-1, len(EVALUATION_METRICS)).T
        return cls(
            step=np.array([score.step for score in ordered], dtype=int),
            quick=np.array([score.quick for score in ordered], dtype=bool),
            columns=dict(zip(EVALUATION_METRICS, columns, strict=True)),
            target_return=ordered[-1].target_return if ordered else None,
        )

    def __len__(self) -> int:
        return len(self.step)

    def __iter__(self) -> Iterator[Score]:
        return map(self._at, range(len(self)))

    @property
    def normalized(self) -> np.ndarray:
        """D4RL-normalized, the mean over episodes."""
        return self.columns["normalized_score"]

    @cached_property
    def last(self) -> Score | None:
        """As `last_score`."""
        whole = self._whole
        return self._at(int(whole[-1])) if len(whole) else None

    @cached_property
    def best(self) -> Score | None:
        """As `best_score`."""
        whole = self._whole
        return self._at(int(whole[self.normalized[whole].argmax()])) if len(whole) else None

    def mean_of_last(self, count: int) -> float | None:
        """The mean normalized score of the last `count` evaluations (of all, where there are fewer)."""
        whole = self._whole[-count:]
        return float(self.normalized[whole].mean()) if len(whole) else None

    @property
    def _whole(self) -> np.ndarray:
        return np.flatnonzero(~self.quick)

    def _at(self, place: int) -> Score:
        numbers = tuple(float(column[place]) for column in self.columns.values())
        return Score(int(self.step[place]), self.target_return, bool(self.quick[place]), numbers)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over `n` seeds; one seed has no deviation."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None when there are no values."""
        if not values:
            return None
        largest = max(map(abs, values))
        scale = largest if largest > _LARGE else 1.0  # squares of such numbers overflow
        scaled = [value / scale for value in values]
        return cls(fmean(scaled) * scale, stdev(scaled) * scale if len(values) > 1 else None, len(values))

    @property
    def standard_error(self) -> float | None:
        return None if self.std is None else self.std / math.sqrt(self.n)
