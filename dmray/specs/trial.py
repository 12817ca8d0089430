"""What defines one trial, and nothing else: the same TrialSpec is the same experiment on any machine.

Machines, paths, actors and fault budgets are not in here (see `dmray.specs.sweep`), so changing them keeps every
trial's identity. A data set is identified by its name; its content is fingerprinted when the trial starts and
compared on resume.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dmray.specs.base import Spec, content_hash
from dmray.specs.decode import parse_decode

IDENTITY_VERSION = 3  # raised when the meaning of a field changes, so that old results are not mistaken for new ones

MethodName = Literal["dt", "dm", "dm+r", "hdt", "hdm"]
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Generation(Spec):
    """Record a data set instead of reading a file: random actions in any task, or a behaviour of the task's family."""

    behaviour: Slug = "expert"
    transitions: PositiveInt = 60_000
    seed: Seed = 0


class DatasetSpec(Spec):
    """One data set: a name of the catalog, or a name of one's own with its task and where its transitions come from."""

    name: Slug
    task: Slug | None = None
    path: str | None = None
    generate: Generation | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSpec:
        if self.path is not None and self.generate is not None:
            raise ValueError("give 'path' or 'generate', not both")
        if self.generate is not None and self.task is None:
            raise ValueError("'generate' needs 'task', for example task: maze2d-umaze")
        return self


class ModelSpec(Spec):
    """Size of the sequence model; the defaults are the paper's main setting (section 5, d 128, 6 layers, K 20)."""

    d_model: PositiveInt = 128
    n_layer: PositiveInt = 6
    context_length: PositiveInt = 20
    n_head: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    d_state: PositiveInt = 16
    d_conv: PositiveInt = 4
    expand: PositiveInt = 2

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSpec:
        if self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}")
        return self


class TrainingSpec(Spec):
    """Behaviour cloning: AdamW, linear warm-up, clipping per stage. Defaults: the paper's, else its code's."""

    steps: PositiveInt = 1_000_000
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 10_000
    grad_clip: PositiveFloat = 0.25
    episode_weighting: Literal["uniform", "length"] = "uniform"
    action_input: Literal["paper", "dt"] = "paper"
    dtype: Literal["float32", "bfloat16"] = "float32"


class EvaluationSpec(Spec):
    """Closed-loop validation: `episodes` episodes, each with its own seed by index, every `every_steps` training steps.

    `target_returns` and `return_scale` default to the task's (`dmray.tasks`); methods without a return-to-go ignore
    the targets. `cohort_size` episodes are rolled out in lockstep: it fixes the batches, so that results do not
    depend on how many actors share the work.

    `quick_episodes` (off by default): along the way only the first so many episodes are run; all of them at the end,
    and wherever the quick score leaves it open whether the weights are the best so far (`dmray.trial.cadence`).
    """

    episodes: PositiveInt = 100
    every_steps: PositiveInt = 1000
    seed: Seed = 0
    decode: str = "window"
    target_returns: tuple[float, ...] | None = None
    return_scale: PositiveFloat | None = None
    cohort_size: PositiveInt = 50
    quick_episodes: PositiveInt | None = None

    @field_validator("decode")
    @classmethod
    def _known_mode(cls, value: str) -> str:
        parse_decode(value)
        return value

    @model_validator(mode="after")
    def _possible(self) -> EvaluationSpec:
        if self.target_returns is not None and not self.target_returns:
            raise ValueError("target_returns: give at least one, or leave it out for the task's own")
        if self.quick_episodes is not None and self.quick_episodes >= self.episodes:
            raise ValueError(f"quick_episodes {self.quick_episodes} is not less than episodes {self.episodes}")
        return self


class TrialSpec(Spec):
    """One training run: a data set, a method, a model size and a seed, trained and evaluated as said."""

    dataset: DatasetSpec
    method: MethodName
    model: ModelSpec
    seed: Seed
    training: TrainingSpec
    evaluation: EvaluationSpec

    def _identity(self) -> dict[str, object]:
        content = self.model_dump(mode="json")
        del content["dataset"]["path"]
        return {"version": IDENTITY_VERSION, **content}

    @cached_property
    def trial_id(self) -> str:
        """Content id, the trial's name everywhere: `<dataset>-<method>-s<seed>-<ten hex digits>`."""
        digest = content_hash(self._identity())[:10]
        return f"{self.dataset.name}-{self.method.replace('+', '_')}-s{self.seed}-{digest}"

    @cached_property
    def seed_group_id(self) -> str:
        """The id of what all seeds of this trial share."""
        content = self._identity()
        del content["seed"]
        digest = content_hash(content)[:10]
        return f"{self.dataset.name}-{self.method.replace('+', '_')}-{digest}"

    def competitors_id(self, across_methods: bool) -> str:
        """The id of what all sizes of this method share under this seed; with `across_methods`, all methods too."""
        content = self._identity()
        for part in ("model", "method") if across_methods else ("model",):
            del content[part]
        digest = content_hash(content)[:10]
        method = [] if across_methods else [self.method.replace("+", "_")]
        return "-".join([self.dataset.name, *method, f"s{self.seed}", digest])
