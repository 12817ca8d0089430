"""The fields of a sweep file: what to run (data sets x methods x models x seeds), and where and how to run it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from dmray.frozen import Count, Line, Seconds, Spec
from dmray.methods import METHODS
from dmray.models import BackboneConfig
from dmray.registry import short, unknown
from dmray.specs.decode import parse_decode
from dmray.specs.early_stopping import EarlyStoppingSpec
from dmray.specs.mistakes import Mistake, mistakes_of, nested_mistakes
from dmray.specs.trial import (
    DatasetSpec,
    EvaluationSpec,
    MethodName,
    Seed,
    Slug,
    TrainingSpec,
)

NO_MLFLOW = "off"
_EVERY = re.compile(r"every:[1-9][0-9]{0,14}")
MAX_TRIALS = 100_000
_RESERVED = ("datasets", "mlartifacts", "mlflow.db", "mlruns")  # beside the sweeps' folders in a storage


def _free_name(name: str) -> str:
    if name.lower() in _RESERVED:
        raise ValueError(f"the name '{name}' is reserved for a folder of the storage; choose another one")
    return name


SweepName = Annotated[Slug, AfterValidator(_free_name)]


class GridBlock(Spec):
    """Methods x models. A sweep may have several blocks; a trial that is in two blocks is run once.

    Each entry of `models` has fields of the methods' configs and must be valid for every method of the block.
    """

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)]
    models: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] = ({},)

    @model_validator(mode="after")
    def _each_once(self) -> GridBlock:
        _check_size(len(self.methods) * len(self.models), "the methods x models of this block")
        _refuse_duplicates("methods", self.methods)
        first: dict[str, int] = {}
        for place, model in enumerate(self.models):
            same = first.setdefault(repr(sorted(model.items())), place)
            if same != place:
                raise ValueError(f"models: entries {same} and {place} (counted from 0) are equal; remove one")
        return self

    @model_validator(mode="after")
    def _baselines_exist(self) -> GridBlock:
        for method in self.methods:
            for baseline in METHODS[method].baselines:
                if baseline not in METHODS:
                    raise ValueError(f"the baseline of method '{method}': {unknown('method', baseline, METHODS)}")
        return self

    @model_validator(mode="after")
    def _models_fit_the_methods(self) -> GridBlock:
        mistakes = [mistake for place in range(len(self.models)) for mistake in self._mistakes_in(place)]
        if mistakes:
            raise nested_mistakes(mistakes)
        return self

    @property
    def configurations(self) -> tuple[tuple[str, BackboneConfig], ...]:
        """Each method with each of its configs, model by model."""
        return tuple(
            (method, METHODS[method].config.model_validate(model)) for model in self.models for method in self.methods
        )

    def _mistakes_in(self, place: int) -> list[Mistake]:
        found: dict[Mistake, None] = {}
        for method in self.methods:
            config = METHODS[method].config
            try:
                config.model_validate(self.models[place])
            except ValidationError as invalid:
                for mistake in mistakes_of(invalid, config):
                    users = self._users_of(mistake.field, self.methods) if mistake.unknown_field else []
                    problem = mistake.problem
                    if users:
                        problem = (
                            f"method '{method}' has no '{mistake.field}' ({', '.join(users)} of this block "
                            f"{'has' if len(users) == 1 else 'have'}); give '{method}' a block of its own in 'grid'"
                        )
                    elif mistake.unknown_field and (others := self._users_of(mistake.field, METHODS)):
                        problem = f"method '{method}' has no '{mistake.field}', which is a field of {', '.join(others)}"
                    where = f"models.{place}.{mistake.place}".removesuffix(".")
                    found[Mistake(where, problem)] = None
        return list(found)

    def _users_of(self, field: str, methods: Iterable[str]) -> list[str]:
        return [method for method in methods if field in METHODS[method].config.model_fields]


class ResourcesSpec(Spec):
    """What a trial and the evaluation actors use of a machine. It changes the speed of a sweep, not its results.

    Two fields may change the last bits of results, as other hardware may: `torch_threads`, and `deterministic`, which
    makes training and evaluation use PyTorch's deterministic algorithms and the reference scan (several times slower).

    A trial continues to train while its evaluations run, until `max_pending_evaluations` of them are pending. Then it
    waits, or, if `when_evaluations_lag` is "skip", skips evaluations (never the last one) and records this in the
    ledger.

    A trial with a share of a GPU trains on the GPU. With `device` "cpu" it reserves the share but trains on the CPU, so
    that the scheduling of a GPU sweep can be tested on machines without GPUs (`ray start --num-gpus` declares them). On
    a GPU the training step is captured as a CUDA graph and replayed, unless `capture` is "off"; batches and checkpoints
    are the same either way. An evaluation actor with a share of a GPU runs its policy there and the simulators on its
    CPU; its actions differ from a CPU's in the last bits.

    `executor` "train" starts a Ray Train worker and a driver process for each trial. This takes about ten seconds and
    eight processes, which does not matter for trials of hours. "tune" runs the trial in a Ray Tune actor, a single
    process that is reused for the next trial: for trials of seconds or minutes. The records are the same.
    """

    executor: Literal["train", "tune"] = "train"
    cpus_per_trial: Annotated[float, Field(gt=0, le=1e5)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0, le=1e5)] = 0.0
    device: Literal["auto", "cpu"] = "auto"
    capture: Literal["auto", "off"] = "auto"
    max_concurrent_trials: Count | None = None
    torch_threads: Annotated[int, Field(gt=0, le=10_000)] = 1
    deterministic: bool = False
    evaluation_actors: Annotated[int, Field(gt=0, le=100_000)] = 1
    cpus_per_evaluation_actor: Annotated[float, Field(gt=0, le=1e5)] = 1.0
    gpus_per_evaluation_actor: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_pending_evaluations: Annotated[int, Field(gt=0, le=10**6)] = 4
    when_evaluations_lag: Literal["wait", "skip"] = "wait"

    @property
    def trial_device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus_per_trial > 0 and self.device == "auto" else "cpu"

    @property
    def evaluation_device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus_per_evaluation_actor > 0 and self.device == "auto" else "cpu"

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"{value}: must be below 1 (a fraction of a GPU) or a whole number")
        return value


def _known_retention(text: str) -> str:
    if text not in ("last_best", "all") and not _EVERY.fullmatch(text):
        raise ValueError(f"'{short(text)}': give last_best, all, or every:N with a number of steps, as in every:10000")
    return text


class FaultSpec(Spec):
    """How many times a trial is retried after its worker or its driver process died, and how often it saves.

    With executor "tune" the worker and the driver are one process, which is restarted up to `worker_restarts` times.

    On Ray a worker that takes no training step for `no_progress_timeout_s` is killed and retried like one that died,
    and its stack traces are written to the ledger. Waiting for evaluations does not count; None: no timeout. A process
    of the sweep on Ray that has been stopped (SIGSTOP, not a debugger) for `frozen_timeout_s` is killed and replaced;
    if Ray itself does not answer for so long, the sweep ends. An evaluation actor may take ten times as long for its
    episodes as the trial's slowest so far, and always 60 seconds; its first ones may take `evaluation_timeout_s`, which
    replaces the 60 seconds too if it is less. Then it is killed and replaced, and its episodes run again. If less than
    `min_free_gib` is free on the storage, a trial stops before its next checkpoint. A sweep does not start if its
    trials would leave less than that.

    `keep_checkpoints`: which weights a trial keeps. Always those of the last state (from which more `training.steps`
    continue), of the best evaluation and of the end ("last_best"); with "every:N" also those after every N steps, with
    "all" those of each checkpoint.
    """

    worker_restarts: Annotated[int, Field(ge=0, le=10**6)] = 3
    driver_restarts: Annotated[int, Field(ge=0, le=10**6)] = 2
    checkpoint_every_steps: Count = 1000
    keep_checkpoints: Annotated[str, AfterValidator(_known_retention)] = "last_best"
    no_progress_timeout_s: Seconds | None = 3600.0
    frozen_timeout_s: Seconds | None = 30.0
    evaluation_timeout_s: Seconds = 3600.0
    min_free_gib: Annotated[float, Field(ge=0, le=1e9)] = 1.0

    @property
    def keep_every_steps(self) -> int | None:
        """The steps between two weights that are kept; None: none are."""
        if self.keep_checkpoints == "all":
            return self.checkpoint_every_steps
        _, every, steps = self.keep_checkpoints.partition("every:")
        return int(steps) if every else None


class TrackingSpec(Spec):
    """Which records are copied to MLflow. `mlflow_uri` None: an SQLite file in the sweep's folder; "off": no MLflow.

    `log_every_steps`: training steps between two training records of the ledger. `flush_every_s`: seconds between two
    updates of MLflow.
    """

    mlflow_uri: Line | None = None
    log_every_steps: Count = 100
    flush_every_s: Seconds = 2.0


class SweepSpec(Spec):
    """The whole sweep file.

    `order`: the order in which trials start. Within each data set, "methods_together" starts all methods of a seed
    first, for an early comparison of methods; "seeds_together" starts all seeds of a method and size first, for an
    early estimate of the deviation over seeds. "cheap_first" sorts all trials by their number of FLOPs.
    """

    name: SweepName
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1)]
    grid: Annotated[tuple[GridBlock, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    early_stopping: EarlyStoppingSpec | None = None
    resources: ResourcesSpec = ResourcesSpec()
    faults: FaultSpec = FaultSpec()
    tracking: TrackingSpec = TrackingSpec()
    order: Literal["methods_together", "seeds_together", "cheap_first"] = "methods_together"
    storage: Line = "runs"

    @field_validator("datasets", mode="before")
    @classmethod
    def _expand_dataset_names(cls, value: object) -> object:
        """A string in the list is short for a data set with that name."""
        if isinstance(value, list | tuple):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value

    @model_validator(mode="after")
    def _not_too_many_trials(self) -> SweepSpec:
        configurations = sum(len(block.methods) * len(block.models) for block in self.grid)
        size = f"{len(self.datasets)} data sets x {len(self.seeds)} seeds x {configurations} methods and models"
        _check_size(len(self.datasets) * len(self.seeds) * configurations, size)
        return self

    @model_validator(mode="after")
    def _no_duplicates(self) -> SweepSpec:
        _refuse_duplicates("datasets", [dataset.name for dataset in self.datasets])
        _refuse_duplicates("seeds", self.seeds)
        return self

    @model_validator(mode="after")
    def _decode_mode_fits_every_context(self) -> SweepSpec:
        shortest = min(model.context_length for block in self.grid for _, model in block.configurations)
        problem = parse_decode(self.evaluation.decode).problem(shortest)
        if problem is not None:
            raise ValueError(f"evaluation.decode {self.evaluation.decode}: {problem}")
        return self

    @model_validator(mode="after")
    def _early_stopping_can_stop_trials(self) -> SweepSpec:
        rule = self.early_stopping
        if rule is None:
            return self
        if not rule.rungs(self.training, self.evaluation):
            raise ValueError(
                f"early_stopping.grace_steps {rule.grace_steps}: there is no evaluation between this step and the end "
                f"(training.steps {self.training.steps}, evaluation.every_steps {self.evaluation.every_steps})"
            )
        compete = self._largest_competition(rule)
        if compete < rule.reduction_factor:
            raise ValueError(
                f"early_stopping.reduction_factor {rule.reduction_factor}: at most {compete} trials of a seed compete "
                f"within a {rule.within}, so none could be stopped; add models"
                + (", or set early_stopping.within: dataset" if rule.within == "method" else "")
            )
        return self

    def _largest_competition(self, rule: EarlyStoppingSpec) -> int:
        """The number of trials in the largest group of trials that compete."""
        configurations = {configuration for block in self.grid for configuration in block.configurations}
        by_method = Counter(method for method, _ in configurations)
        return max(by_method.values()) if rule.within == "method" else len(configurations)


def _refuse_duplicates(kind: str, values: Sequence[object]) -> None:
    """Raise a ValueError that names the values that are given more than once."""
    duplicates = sorted(short(str(value)) for value, count in Counter(values).items() if count > 1)
    if duplicates:
        more = f" and {len(duplicates) - 5:,} more" if len(duplicates) > 5 else ""
        raise ValueError(f"{kind}: given twice: {', '.join(duplicates[:5])}{more}")


def _check_size(num_trials: int, what: str) -> None:
    if num_trials > MAX_TRIALS:
        raise ValueError(f"{what} are {num_trials:,} trials; a sweep has at most {MAX_TRIALS:,}, so divide it")
