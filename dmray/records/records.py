"""The records of a trial: what its ledger holds, what MLflow mirrors, what a report is made from.

A ledger is append-only and may hold a step twice after a crash (work since the last checkpoint is redone). Everywhere
**the first record of a kind and step counts**, and after a `StartedOver` only what follows it. `EvaluationDone` carries
one `TargetResult` per target return (one without a target for methods that take none). Times are seconds since the
epoch, durations are `_s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from dmray.frozen import Spec
from dmray.specs.early_stopping import Within

_YEAR_9999_S = 253_402_300_799.0  # what dates can show; a later time is damage
_MOST_STEPS = 2**53  # JSON's whole numbers

TimeS = Annotated[float, Field(ge=0.0, le=_YEAR_9999_S)]
Count = Annotated[int, Field(ge=0, le=_MOST_STEPS)]


class Record(Spec):
    """Base of all ledger lines."""

    time_s: TimeS


class AttemptStarted(Record):
    """A worker started the trial, or continued it after a crash or a pause (`attempt` counts from 1).

    `trained_as`: the id of the shorter trial that this attempt was made for, if the trial was extended since.
    """

    kind: Literal["attempt"] = "attempt"
    attempt: Count
    from_step: Count
    trial_id: str
    spec: dict[str, Any]
    provenance: dict[str, Any]
    trained_as: str | None = None


class TrainProgress(Record):
    """Means over the steps since the last such record; `step` counts optimizer steps done.

    `system`: how busy the machine was (`dmray.records.system_usage`).
    """

    kind: Literal["train"] = "train"
    step: Count
    loss: float
    stage_losses: dict[str, float]
    grad_norm: float
    learning_rate: float
    steps_per_s: float
    system: dict[str, float] = Field(default_factory=dict)


class _PerEpisode:
    """Marks the fields that hold one number an episode: `dmray.records.fast_decoder` skips them."""


PER_EPISODE = _PerEpisode()


class TargetResult(Spec):
    """All episodes of one evaluation under one target return (None: the method takes no target).

    Lists are in the order of the episode index; `normalized_*` are D4RL-normalised (100 is the reference maximum).
    """

    target_return: float | None
    returns: Annotated[list[float], PER_EPISODE]
    lengths: Annotated[list[int], PER_EPISODE]
    return_mean: float
    return_std: float
    normalized_mean: float
    normalized_std: float
    length_mean: float

    @classmethod
    def of(
        cls, target_return: float | None, returns: np.ndarray, normalized: np.ndarray, lengths: Sequence[int]
    ) -> TargetResult:
        """The result of episodes with these raw returns, normalized returns and lengths."""
        return cls(
            target_return=target_return,
            returns=returns.tolist(),
            lengths=list(lengths),
            return_mean=float(returns.mean()),
            return_std=float(returns.std()),
            normalized_mean=float(normalized.mean()),
            normalized_std=float(normalized.std()),
            length_mean=float(np.mean(lengths)),
        )


class EvaluationDone(Record):
    """One closed-loop evaluation of the weights after `step` optimizer steps; `decode` and `seed` name the protocol."""

    kind: Literal["evaluation"] = "evaluation"
    step: Count
    decode: str
    seed: int
    quick: bool = False  # fewer episodes than the spec's, because they ruled out a new best
    targets: Annotated[list[TargetResult], Field(min_length=1)]
    wall_s: float

    @property
    def first_target(self) -> TargetResult:
        """The result for the first target return, which gives the trial's score (not the best of several)."""
        return self.targets[0]


class EvaluationSkipped(Record):
    """The weights after `step` optimizer steps were not evaluated: too many evaluations were open."""

    kind: Literal["skipped"] = "skipped"
    step: Count


class AttemptFailed(Record):
    """An attempt ended with an exception; the trial is not done and may be run again."""

    kind: Literal["failure"] = "failure"
    attempt: Count
    step: Count
    error: str
    traceback: str


class AttemptPaused(Record):
    """An attempt saved its state after `step` and ended, because the sweep was paused or stopped: no failure."""

    kind: Literal["paused"] = "paused"
    attempt: Count
    step: Count


class TrainingExtended(Record):
    """The records before this one are those of the shorter trial `trial_id`; the training goes on after `step`.

    The two trials differ in `training.steps` only.
    """

    kind: Literal["extended"] = "extended"
    trial_id: str
    step: Count


class StartedOver(Record):
    """An attempt begins again at step 0, because the trial's files lacked results that nothing can bring back.

    The records before it do not count, except that the attempts of them were made. `reason` says what was missing.
    """

    kind: Literal["started_over"] = "started_over"
    attempt: Count
    reason: str


class RungDecision(Record):
    """Early stopping's decision about the weights after `step`, by the normalized scores known at that time.

    `num_peers` other trials had a score, `num_better` of them a higher one. `cutoff` is the lowest score that
    continues; None while there are too few scores to stop anyone. `within` and `reduction_factor` are the rule's
    (`dmray.planning.successive_halving`).
    """

    kind: Literal["rung"] = "rung"
    step: Count
    score: float
    num_peers: Count
    num_better: Count
    cutoff: float | None
    within: Within
    reduction_factor: int
    action: Literal["continue", "stop"]


class TrialStopped(Record):
    """An attempt saved its state after `step` and ended, because early stopping decided so: no result, no failure.

    The trial is not run again while `decision` holds under the sweep's rule. Once it no longer holds, the trial may
    continue from there.
    """

    kind: Literal["stopped"] = "stopped"
    attempt: Count
    step: Count
    decision: RungDecision


class TrialDone(Record):
    """The trial ended as a result. Diverged means a loss that is not finite: a result, not a crash."""

    kind: Literal["done"] = "done"
    status: Literal["finished", "diverged"]
    step: Count
    best_step: Count | None
    train_s: float


LedgerRecord = Annotated[
    AttemptStarted
    | TrainProgress
    | EvaluationDone
    | EvaluationSkipped
    | AttemptFailed
    | AttemptPaused
    | TrainingExtended
    | StartedOver
    | RungDecision
    | TrialStopped
    | TrialDone,
    Field(discriminator="kind"),
]
ledger_line: TypeAdapter[LedgerRecord] = TypeAdapter(LedgerRecord)
