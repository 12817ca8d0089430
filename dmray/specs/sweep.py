"""A sweep file, parsed: what to run (data sets x methods x models x seeds) and where and how to run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from dmray.frozen import Spec
from dmray.methods import METHODS
from dmray.models import BackboneConfig
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


class GridBlock(Spec):
    """Methods x models; a sweep may have several blocks (trials that two blocks share are run once).

    Each entry of `models` gives fields of the methods' configs, and must be right for every method of the block.
    """

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)]
    models: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] = ({},)

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
                    said = mistake.said
                    if users:
                        said = (
                            f"method '{method}' has no '{mistake.field}' ({', '.join(users)} of this block "
                            f"{'has' if len(users) == 1 else 'have'}); give '{method}' a block of its own in 'grid'"
                        )
                    elif mistake.unknown_field and (others := self._users_of(mistake.field, METHODS)):
                        said = f"method '{method}' has no '{mistake.field}', which is a field of {', '.join(others)}"
                    where = f"models.{place}.{mistake.place}".removesuffix(".")
                    found[Mistake(where, said)] = None
        return list(found)

    def _users_of(self, field: str, methods: Iterable[str]) -> list[str]:
        return [method for method in methods if field in METHODS[method].config.model_fields]


class ResourcesSpec(Spec):
    """What one trial and the evaluation actors take. It changes when a result is there, not what it is.

    (`torch_threads` may change the last bits of a result, as any change of the hardware may. So may `deterministic`: it
    forces PyTorch's deterministic algorithms and the reference scan, several times slower, in training and evaluation.)

    A trial trains on while its evaluations run, until `max_pending_evaluations` of them are open. Then it waits, or, if
    `when_evaluations_lag` is "skip", leaves evaluations out (never the last one); the ledger says which.

    A trial with a share of a GPU trains on it; with `device` "cpu" it only holds the share, so that the scheduling of a
    GPU sweep can be rehearsed on machines without GPUs (which are then logical: `ray start --num-gpus`). On a GPU the
    training step is recorded once as a CUDA graph and replayed, unless `capture` is "off"; batches and checkpoints are
    the same either way. An evaluation actor with a share of a GPU has its policy there, the simulators stay on its CPU;
    its actions differ from a CPU's in the last bits.

    `executor` "train" gives each trial a Ray Train worker beside a driver, which takes some ten seconds and eight
    processes to start: nothing against hours of training. "tune" runs the trial in Tune's own actor, one process that
    takes trial after trial: for trials of seconds or minutes. The records are the same.
    """

    executor: Literal["train", "tune"] = "train"
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0
    device: Literal["auto", "cpu"] = "auto"
    capture: Literal["auto", "off"] = "auto"
    max_concurrent_trials: PositiveInt | None = None
    torch_threads: PositiveInt = 1
    deterministic: bool = False
    evaluation_actors: PositiveInt = 1
    cpus_per_evaluation_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_evaluation_actor: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_pending_evaluations: PositiveInt = 4
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
            raise ValueError(f"{value}: a fraction of a GPU is below 1, more than one GPU is a whole number")
        return value


class FaultSpec(Spec):
    """How often a trial may be started again after its worker or its driver died, and how often it saves.

    With executor "tune" worker and driver are one process, which may be started again as often as a worker.

    On Ray a worker that takes no training step for `no_progress_timeout_s` (None: as long as it likes; waiting for
    evaluations does not count) is ended and started again like one that died; its stacks are in the ledger. A trial
    stops before a checkpoint that would leave less than `min_free_gib` on the storage, and a sweep before its start.
    """

    worker_restarts: Annotated[int, Field(ge=0)] = 3
    driver_restarts: Annotated[int, Field(ge=0)] = 2
    checkpoint_every_steps: PositiveInt = 1000
    no_progress_timeout_s: PositiveFloat | None = 3600.0
    min_free_gib: Annotated[float, Field(ge=0)] = 1.0


class TrackingSpec(Spec):
    """Where records go beside the ledger. `mlflow_uri` None: an SQLite file in the storage folder; "off": no MLflow."""

    mlflow_uri: str | None = None
    log_every_steps: PositiveInt = 100
    flush_every_s: Annotated[float, Field(gt=0)] = 2.0


class SweepSpec(Spec):
    """The whole sweep file.

    `order` says which trials are started first, data set by data set: "methods_together" all methods of a seed, so that
    a first comparison is there early; "seeds_together" all seeds of a method and size, so that its spread is.
    "cheap_first" goes by the work of each trial, whatever its data set.
    """

    name: Slug
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
    storage: str = "runs"

    @field_validator("datasets", mode="before")
    @classmethod
    def _names_are_short_for_datasets(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value

    @model_validator(mode="after")
    def _decode_mode_fits_every_context(self) -> SweepSpec:
        shortest = min(model.context_length for block in self.grid for _, model in block.configurations)
        problem = parse_decode(self.evaluation.decode).problem(shortest)
        if problem is not None:
            raise ValueError(f"evaluation.decode {self.evaluation.decode}: {problem}")
        return self

    @model_validator(mode="after")
    def _somebody_could_be_stopped(self) -> SweepSpec:
        rule = self.early_stopping
        if rule is None:
            return self
        if not rule.rungs(self.training, self.evaluation):
            raise ValueError(
                f"early_stopping.grace_steps {rule.grace_steps}: the first evaluation from there on is not before the "
                f"end (training.steps {self.training.steps}, evaluation.every_steps {self.evaluation.every_steps})"
            )
        compete = self._most_competing(rule)
        if compete < rule.reduction_factor:
            raise ValueError(
                f"early_stopping.reduction_factor {rule.reduction_factor}: at most {compete} trials of a seed compete "
                f"within a {rule.within}, so none could be stopped; name more models"
                + (", or early_stopping.within: dataset" if rule.within == "method" else "")
            )
        return self

    def _most_competing(self, rule: EarlyStoppingSpec) -> int:
        """Trials of a data set and seed in the largest group."""
        configurations = {configuration for block in self.grid for configuration in block.configurations}
        by_method = Counter(method for method, _ in configurations)
        return max(by_method.values()) if rule.within == "method" else len(configurations)

    @model_validator(mode="after")
    def _nothing_twice(self) -> SweepSpec:
        given: dict[str, list[str]] = {
            "datasets": [dataset.name for dataset in self.datasets],
            "seeds": [str(seed) for seed in self.seeds],
        }
        for kind, values in given.items():
            again = sorted({value for value in values if values.count(value) > 1})
            if again:
                raise ValueError(f"{kind}: named twice: {', '.join(again)}")
        return self
