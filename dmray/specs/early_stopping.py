"""Early stopping: which trials of a sweep compete, and after which steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from dmray.frozen import Spec
from dmray.specs.trial import EvaluationSpec, TrainingSpec, TrialSpec

Within = Literal["method", "dataset"]


class EarlyStoppingSpec(Spec):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934), the variant that stops: off unless a sweep asks for it.

    After `grace_steps`, and `reduction_factor` times as many again and again (rungs), a trial goes on only if its score
    is among the best 1/`reduction_factor` of those that came there so far. Trials of one data set and seed compete, so
    that no seed is stopped for another's luck; `within` "method", those of one method, so that no method is stopped for
    the sake of another; `within` "dataset", those of all methods.

    It decides which trials end early and never what a trial measures, so it is no part of a trial's identity.
    """

    grace_steps: PositiveInt
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    within: Within = "method"

    def rungs(self, training: TrainingSpec, evaluation: EvaluationSpec) -> tuple[int, ...]:
        """The steps after which trials compete: rounded up to evaluated ones, and before the last."""
        return tuple(dict.fromkeys(self._rounded(training.steps, evaluation.every_steps)))

    def competitors_of(self, trial: TrialSpec) -> str:
        """The id of the trials that compete with `trial`."""
        return trial.competitors_id(across_methods=self.within == "dataset")

    def _rounded(self, steps: int, every: int) -> Iterator[int]:
        nominal = self.grace_steps
        while (rung := -(-nominal // every) * every) < steps:
            yield rung
            nominal *= self.reduction_factor
