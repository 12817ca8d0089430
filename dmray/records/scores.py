"""The two scores of a trial, last and best, and their spread over seeds: one rule for MLflow, tables and figures.

Last is the headline: the evaluation of the final weights. Best is the highest headline score along the way, which looks
at the evaluation itself, so it is optimistic. Both are under the first target return.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from dmray.records.records import EvaluationDone


@dataclass(frozen=True)
class Score:
    """One evaluation under its headline target: mean over episodes, D4RL-normalized and raw."""

    step: int
    normalized: float
    return_mean: float
    length_mean: float
    target_return: float | None
    quick: bool = False  # over fewer episodes: part of a curve, and never a trial's last or best score

    @classmethod
    def of(cls, evaluation: EvaluationDone) -> Score:
        headline = evaluation.headline
        return cls(
            step=evaluation.step,
            normalized=headline.normalized_mean,
            return_mean=headline.return_mean,
            length_mean=headline.length_mean,
            target_return=headline.target_return,
            quick=evaluation.quick,
        )


def last_score(scores: Iterable[Score]) -> Score | None:
    """The evaluation with the highest step."""
    return max(_whole(scores), key=lambda score: score.step, default=None)


def best_score(scores: Iterable[Score]) -> Score | None:
    """The evaluation with the highest normalized score; of equals the earliest."""
    return max(_whole(scores), key=lambda score: (score.normalized, -score.step), default=None)


def _whole(scores: Iterable[Score]) -> list[Score]:
    return [score for score in scores if not score.quick]


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
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    @property
    def standard_error(self) -> float | None:
        return None if self.std is None else self.std / math.sqrt(self.n)
