"""All metrics of a trial, in one list: what MLflow's points, the columns of the CSV files and `dmray.status` read.

A new metric takes a field of the record where it is measured (`dmray.records.records`) and a row here. A row reads a
record's number; None where it was not measured. A row whose name ends with `*` reads several numbers by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Generic, Literal, TypeVar

from dmray.records.records import EvaluationDone, RungDecision, TrainProgress, TrialDone

R = TypeVar("R", contravariant=True)

Kind = Literal["train", "evaluation", "rung", "done"]
Group = Literal["train", "eval", "rung", "time", "system"]


@dataclass(frozen=True)
class Metric(Generic[R]):
    """One number of a record, or several by name.

    `group` and `name` together are unique. `unit` is empty for a pure number. `better` says which values are to be
    wished for, None where neither is. `status_format`: `dmray.status` shows the latest value of running trials in it.
    """

    name: str
    group: Group
    unit: str
    better: Literal["higher", "lower"] | None
    description: str
    read: Callable[[R], float | Mapping[str, float] | None]
    status_format: str | None = None

    @property
    def many(self) -> bool:
        """Whether it reads several numbers."""
        return self.name.endswith("*")

    def values(self, record: R) -> Iterator[tuple[str, float]]:
        """Its numbers in `record`, with their names."""
        found = self.read(record)
        if isinstance(found, Mapping):
            before = self.name.removesuffix("*")
            yield from ((before + name, value) for name, value in found.items())
        elif found is not None:
            yield self.name, found


_TRAINING: tuple[Metric[TrainProgress], ...] = (
    Metric("loss", "train", "", "lower", "training loss", lambda record: record.loss, "{:.4g}"),
    Metric("loss_*", "train", "", "lower", "the loss of each stage, if there are several", lambda r: _stages(r)),
    Metric("grad_norm", "train", "", None, "norm of the gradient before clipping", lambda record: record.grad_norm),
    Metric("learning_rate", "train", "", None, "learning rate", lambda record: record.learning_rate),
    Metric(
        "steps_per_s", "time", "steps/s", "higher", "speed of training", lambda record: record.steps_per_s, "{:z,.0f}"
    ),
    Metric("*", "system", "", None, "how busy the machine was (dmray.records.system_usage)", lambda r: r.system),
)
_EVALUATION: tuple[Metric[EvaluationDone], ...] = (
    Metric(
        "normalized_score",
        "eval",
        "points",
        "higher",
        "D4RL-normalized score: 100 is the reference maximum",
        lambda record: record.first_target.normalized_mean,
        "{:z.1f}",
    ),
    Metric("return_mean", "eval", "", "higher", "mean return of an episode", lambda r: r.first_target.return_mean),
    Metric(
        "return_std",
        "eval",
        "",
        None,
        "deviation of the return over episodes",
        lambda r: r.first_target.return_std,
    ),
    Metric("length_mean", "eval", "steps", None, "mean length of an episode", lambda r: r.first_target.length_mean),
    Metric(
        "target_*", "eval", "points", "higher", "normalized score under each target return", lambda r: _by_target(r)
    ),
    Metric("evaluation_s", "time", "s", "lower", "duration of the evaluation", lambda record: record.wall_s),
)
_RUNG: tuple[Metric[RungDecision], ...] = (
    Metric("normalized_score", "rung", "points", "higher", "the score it is decided by", lambda r: r.score),
    Metric("num_peers", "rung", "trials", None, "other trials with a score", lambda record: record.num_peers),
    Metric("num_better", "rung", "trials", None, "those with a higher score", lambda record: record.num_better),
    Metric("cutoff", "rung", "points", None, "the lowest score that continues", lambda record: record.cutoff),
    Metric("stop", "rung", "", None, "1: early stopping ends the trial", lambda record: float(record.action == "stop")),
)
_END: tuple[Metric[TrialDone], ...] = (
    Metric("train_s", "time", "s", "lower", "duration of all attempts", lambda record: record.train_s),
)
METRICS: Mapping[Kind, tuple[Metric[Any], ...]] = {
    "train": _TRAINING,
    "evaluation": _EVALUATION,
    "rung": _RUNG,
    "done": _END,
}


@cache
def single_metrics(kind: Kind) -> tuple[Metric[Any], ...]:
    """The metrics of a kind of record that are one number: what fits into a column."""
    return tuple(metric for metric in METRICS[kind] if not metric.many)


def latest_values(training: TrainProgress | None, evaluation: Mapping[str, float]) -> dict[str, float]:
    """The metrics that `dmray.status` shows of a trial: of its last training record and its last evaluation."""
    values = dict(evaluation)
    if training is not None:
        values |= {name: value for metric in single_metrics("train") for name, value in metric.values(training)}
    return {metric.name: values[metric.name] for metric in shown_metrics() if metric.name in values}


@cache
def shown_metrics() -> tuple[Metric[Any], ...]:
    """The metrics that `dmray.status` shows, in the order of the list."""
    return tuple(metric for kind in ("train", "evaluation") for metric in METRICS[kind] if metric.status_format)


def target_name(target: float) -> str:
    """A target return as part of a metric's name, in plain digits: MLflow allows no `+`, which an exponent has."""
    return format(Decimal(repr(float(target))).normalize(), "f")


def _stages(record: TrainProgress) -> Mapping[str, float]:
    return record.stage_losses if len(record.stage_losses) > 1 else {}


def _by_target(record: EvaluationDone) -> Mapping[str, float]:
    return {
        f"{target_name(result.target_return)}/normalized_score": result.normalized_mean
        for result in record.targets
        if result.target_return is not None
    }
