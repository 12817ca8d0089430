"""Ledger records as metric points: pure functions, the same for a live trial and for a replay.

Families: `train/`, `eval/`, `rung/`, `final/`, `best/`, `time/`, `system/` for trials, `agg/` for cells. The step is
the optimizer step (the number of seeds for `agg/`). The time of a point is the record's, so a point made twice is the
same point twice.
Every record carries one sentinel, `<family>/step`: a server commits the metrics of a batch together, so where the
sentinel is, the record is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from dmray.records.records import EvaluationDone, RungDecision, TrainProgress, TrialDone
from dmray.records.scores import Score, Spread, best_score, last_score

SENTINELS = {  # by the kind of the record
    "train": "train/step",
    "evaluation": "eval/step",
    "rung": "rung/step",
    "done": "final/step",
}
CELL_SENTINEL = "agg/n_seeds"


Measured = TrainProgress | EvaluationDone | RungDecision | TrialDone


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    step: int
    time_ms: int


def points_of(record: Measured, scores: Sequence[Score]) -> list[Point]:
    """The points of one record; `scores` are the trial's evaluations so far."""
    match record:
        case TrainProgress():
            values = _train(record)
        case EvaluationDone():
            values = _evaluation(record)
        case RungDecision():
            values = _rung(record)
        case TrialDone():
            values = _done(record, scores)
    values[SENTINELS[record.kind]] = record.step
    return _points(values, record.step, record.time_s)


def seed_group_points(last: Sequence[float], best: Sequence[float], time_s: float) -> list[Point]:
    """Aggregates over the scores of a cell's finished seeds (at least one); the step is their number."""
    values: dict[str, float] = {CELL_SENTINEL: len(last)}
    for name, scores in (("last", last), ("best", best)):
        spread = Spread.of(scores)
        if spread is not None:
            values[f"agg/normalized_score_{name}_mean"] = spread.mean
            if spread.std is not None:
                values[f"agg/normalized_score_{name}_std"] = spread.std
    return _points(values, len(last), time_s)


def target_name(target: float) -> str:
    """A target return as part of a metric name, which allows no `+`: plain digits, never an exponent."""
    return format(Decimal(repr(float(target))).normalize(), "f")


def _points(values: dict[str, float], step: int, time_s: float) -> list[Point]:
    return [Point(key, float(value), step, int(time_s * 1000)) for key, value in values.items()]


def _train(record: TrainProgress) -> dict[str, float]:
    stages = {f"train/loss_{name}": loss for name, loss in record.stage_losses.items()}
    return {
        "train/loss": record.loss,
        **(stages if len(stages) > 1 else {}),
        "train/grad_norm": record.grad_norm,
        "train/learning_rate": record.learning_rate,
        "time/steps_per_s": record.steps_per_s,
        **{f"system/{name}": value for name, value in record.system.items()},
    }


def _evaluation(record: EvaluationDone) -> dict[str, float]:
    headline = record.headline
    targets = {
        f"eval/target_{target_name(result.target_return)}/normalized_score": result.normalized_mean
        for result in record.targets
        if result.target_return is not None
    }
    return {
        "eval/normalized_score": headline.normalized_mean,
        "eval/return_mean": headline.return_mean,
        "eval/return_std": headline.return_std,
        "eval/length_mean": headline.length_mean,
        **targets,
        "time/evaluation_s": record.wall_s,
    }


def _rung(record: RungDecision) -> dict[str, float]:
    values = {
        "rung/normalized_score": record.score,
        "rung/peers": record.peers,
        "rung/better_peers": record.better,
        "rung/stop": float(record.verdict == "stop"),
    }
    return values if record.cutoff is None else {**values, "rung/cutoff": record.cutoff}


def _done(record: TrialDone, scores: Sequence[Score]) -> dict[str, float]:
    values: dict[str, float] = {"time/train_s": record.train_s}
    last, best = last_score(scores), best_score(scores)
    if last is not None and record.status == "finished":  # weights that diverged have no final score
        values["final/normalized_score"] = last.normalized
        values["final/return_mean"] = last.return_mean
        values["final/length_mean"] = last.length_mean
    if best is not None:
        values["best/normalized_score"] = best.normalized
        values["best/return_mean"] = best.return_mean
        values["best/step"] = best.step
    return values
