"""The early stopping section of a sweep file: which trials compete, and after which steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from dmray.frozen import Count, Spec
from dmray.specs.trial import EvaluationSpec, TrainingSpec, TrialSpec

Within = Literal["method", "dataset"]


class EarlyStoppingSpec(Spec):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934), the variant that stops trials. Off by default.

    The rungs are the steps `grace_steps`, `grace_steps * reduction_factor`, `grace_steps * reduction_factor**2`, and so
    on. After a rung a trial continues only if its score is among the best 1/`reduction_factor` of the trials that have
    reached the rung so far. Only trials of the same data set and seed compete, so that a seed's luck stops no trial of
    another seed. With `within` "method" they must also be of the same method, so that no method is stopped in favour of
    another; with `within` "dataset" all methods compete.

    The rule changes which trials end early, but not what a trial measures. So trial ids do not depend on it.
    """

    grace_steps: Count
    reduction_factor: Annotated[int, Field(ge=2, le=10**6)] = 3
    within: Within = "method"

    def rungs(self, training: TrainingSpec, evaluation: EvaluationSpec) -> tuple[int, ...]:
        """The steps at which trials compete: rounded up to the next evaluation, and less than `training.steps`."""
        return tuple(dict.fromkeys(self._rounded(training.steps, evaluation.every_steps)))

    def competitors_of(self, trial: TrialSpec) -> str:
        """The id of the group of trials in which `trial` competes."""
        return trial.competitors_id(across_methods=self.within == "dataset")

    def _rounded(self, steps: int, every: int) -> Iterator[int]:
        nominal = self.grace_steps
        while (rung := -(-nominal // every) * every) < steps:
            yield rung
            nominal *= self.reduction_factor
