"""The fields that define a trial. The same TrialSpec is the same experiment on any machine.

Resources, paths and numbers of retries are not among them (see `dmray.specs.sweep`), so changing them does not change
trial ids. A data set is identified by its name. The fingerprint of its content is recorded when the trial starts and
compared when it continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from dmray.frozen import Count, Line, Spec, content_hash
from dmray.methods import METHODS, ActionInput, Method, Preset, SubgoalHead, SubgoalTarget
from dmray.models import BackboneConfig
from dmray.registry import unknown
from dmray.specs.decode import parse_decode

IDENTITY_VERSION = 4  # increased when the meaning of a field changes, so that old results are not taken for new ones


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return name


MethodName = Annotated[str, AfterValidator(_known_method)]
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
NoiseLevel = Annotated[float, Field(ge=0.0, le=1000.0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


WindowAnchor = Literal["last", "first"]
LossMean = Literal["valid", "all"]


class Generation(Spec):
    """How to record a data set: with behaviour "random" in any task, or with a behaviour of the task's family."""

    behaviour: Slug = "expert"
    transitions: Count = 60_000
    seed: Seed = 0


class DatasetSpec(Spec):
    """A data set: the name of a published one, or any other name with its task and a `path` or `generate`.

    `catalog`: the name of the published one, where `name` is another. `fraction`: the part of its episodes that is
    kept (`dmray.datasets.part_of`).
    """

    name: Slug
    catalog: Slug | None = None
    task: Slug | None = None
    path: Line | None = None
    generate: Generation | None = None
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSpec:
        if self.path is not None and self.generate is not None:
            raise ValueError("give 'path' or 'generate', not both")
        if self.catalog is not None and (self.path is not None or self.generate is not None):
            raise ValueError("'catalog' names a published data set; leave out 'path' and 'generate'")
        if self.generate is not None and self.task is None:
            raise ValueError("'generate' needs 'task', for example task: maze2d-umaze")
        return self

    @property
    def catalog_name(self) -> str:
        """The name by which the catalog has it, if it is published."""
        return self.catalog or self.name


class TrainingSpec(Spec):
    """Behaviour cloning: AdamW, linear warm-up, gradient clipping per stage.

    The defaults are the paper's, or those of its code where the paper does not give them.

    `window_anchor`: the step of an episode that is drawn uniformly, the last or the first of a window.
    `loss_mean`: the loss is the mean over valid timesteps, or over all, where padding counts as an error of zero.
    `subgoal_head`, `subgoal_target` (HDT, HDM): the head of the network that predicts subgoals, and what it predicts:
    the state to reach, or its difference from the present state. Both are z-scored.
    """

    steps: Count = 1_000_000
    batch_size: Annotated[int, Field(gt=0, le=10**6)] = 16
    learning_rate: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 10_000
    grad_clip: PositiveFloat = 0.25
    episode_weighting: Literal["uniform", "length"] = "uniform"
    window_anchor: WindowAnchor = "last"
    action_input: ActionInput = "paper"
    subgoal_head: SubgoalHead = "published"
    subgoal_target: SubgoalTarget = "state"
    loss_mean: LossMean = "valid"
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"


class EvaluationSpec(Spec):
    """Rollouts in the simulator: `episodes` episodes after every `every_steps` training steps.

    The seed of an episode follows from `seed` and the episode's number. `target_returns` and `return_scale` default to
    the task's (`dmray.tasks`); methods without a return-to-go ignore the targets. `cohort_size` episodes are rolled out
    in lockstep. It fixes the batches, so that results do not depend on the number of evaluation actors.

    `action_noise`, `observation_noise`: Gaussian noise on what the policy does and sees, in units of the deviation of
    each dimension in the trial's data (`dmray.rollout.noise`).

    `quick_episodes` (None: off): evaluations during training run only this many episodes. All `episodes` are run after
    the last step, and when the quick score may be a new best (`dmray.trial.pending_evaluations`).
    """

    episodes: Annotated[int, Field(gt=0, le=10**6)] = 100
    every_steps: Count = 1000
    seed: Seed = 0
    decode: str = "window"
    target_returns: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    return_scale: PositiveFloat | None = None
    cohort_size: Annotated[int, Field(gt=0, le=10**5)] = 50
    quick_episodes: Annotated[int, Field(gt=0, le=10**6)] | None = None
    action_noise: NoiseLevel = 0.0
    observation_noise: NoiseLevel = 0.0

    @field_validator("decode")
    @classmethod
    def _known_mode(cls, value: str) -> str:
        parse_decode(value)
        return value

    @field_validator("target_returns")
    @classmethod
    def _no_target_twice(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"a target return is given twice: {', '.join(f'{value:g}' for value in values)}")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationSpec:
        if self.target_returns is not None and not self.target_returns:
            raise ValueError("target_returns: give at least one, or omit the field to use the task's")
        if self.quick_episodes is not None and self.quick_episodes >= self.episodes:
            raise ValueError(f"quick_episodes {self.quick_episodes} is not less than episodes {self.episodes}")
        return self


class _WithNoise(Protocol):
    @property
    def action_noise(self) -> float: ...

    @property
    def observation_noise(self) -> float: ...


def noise_text(made: _WithNoise) -> str:
    """The noise of an evaluation, for names of protocols: ", action noise 0.1"; empty without noise."""
    named = {"action noise": made.action_noise, "observation noise": made.observation_noise}
    return "".join(f", {name} {value:g}" for name, value in named.items() if value)


class TrialSpec(Spec):
    """One training run: data set, method, the method's config, seed, and how to train and evaluate."""

    dataset: DatasetSpec
    method: MethodName
    model: SerializeAsAny[BackboneConfig]
    seed: Seed
    training: TrainingSpec
    evaluation: EvaluationSpec

    @model_validator(mode="before")
    @classmethod
    def _config_of_the_method(cls, content: Any) -> Any:
        """Parse `model` as the config class of the method, for trials that are read from JSON."""
        if isinstance(content, dict) and content.get("method") in METHODS and isinstance(content.get("model"), dict):
            config = METHODS[content["method"]].config
            return {**content, "model": config.model_validate(content["model"])}
        return content

    @model_validator(mode="after")
    def _model_fits_the_method(self) -> TrialSpec:
        wanted = METHODS[self.method].config
        if not isinstance(self.model, wanted):
            raise ValueError(f"method '{self.method}' takes a {wanted.__name__}, not a {type(self.model).__name__}")
        return self

    def identity(self) -> dict[str, Any]:
        """The content that the trial's ids are hashes of: the fields that its method uses, without default values.

        So a field that a later version adds does not change existing ids (`dmray.frozen.Spec.identity`).
        """
        method = METHODS[self.method]
        same_head = method.with_subgoal_head(self.training.subgoal_head) == method
        unused = (*unused_in_training(method), *(["subgoal_head"] if same_head else []))
        return {
            "version": IDENTITY_VERSION,
            "dataset": _without(self.dataset.identity(), "path"),
            "method": self.method,
            "model": self.model.identity(),
            "seed": self.seed,
            "training": _without(self.training.identity(), *unused),
            "evaluation": _without(self.evaluation.identity(), *_unused_in_evaluation(method)),
        }

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> TrialSpec:
        """As pydantic's `model_copy`, without the original's cached ids."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("trial_id", "seed_group_id"):
            copied.__dict__.pop(name, None)
        return copied

    @property
    def used_training(self) -> dict[str, Any]:
        """The fields of `training` that its method uses, with their values; the others are no settings."""
        return self.training.model_dump(exclude=set(unused_in_training(METHODS[self.method])))

    @property
    def used_evaluation(self) -> dict[str, Any]:
        """The fields of `evaluation` that its method uses, with their values."""
        return self.evaluation.model_dump(exclude=set(_unused_in_evaluation(METHODS[self.method])))

    @property
    def preset(self) -> str | None:
        """The preset of the method whose fields the trial has; None if there is none."""
        return next((each.name for each in METHODS[self.method].presets if self._has_fields_of(each)), None)

    def _has_fields_of(self, preset: Preset) -> bool:
        model = all(getattr(self.model, name) == value for name, value in preset.model.items())
        return model and all(getattr(self.training, name) == value for name, value in preset.training.items())

    @cached_property
    def trial_id(self) -> str:
        """The trial's id: `<dataset>-<method>-s<seed>-<ten hex digits of a hash of identity()>`."""
        digest = content_hash(self.identity())[:10]
        return f"{self.dataset.name}-{self.method.replace('+', '_')}-s{self.seed}-{digest}"

    @cached_property
    def seed_group_id(self) -> str:
        """The id that all trials share that differ from this one only in the seed."""
        digest = content_hash(_without(self.identity(), "seed"))[:10]
        return f"{self.dataset.name}-{self.method.replace('+', '_')}-{digest}"

    def competitors_id(self, across_methods: bool) -> str:
        """The id that all settings of this method share under this seed; with `across_methods`, all methods share it.

        Settings are the model and the training, but not its number of steps: scores after a step are comparable then.
        """
        content = {**_without(self.identity(), "model"), "training": {"steps": self.training.steps}}
        if across_methods:  # without the settings that only some methods use
            evaluation = _without(self.evaluation.identity(), "target_returns", "return_scale")
            content = {**_without(content, "method"), "evaluation": evaluation}
        digest = content_hash(content)[:10]
        method = [] if across_methods else [self.method.replace("+", "_")]
        return "-".join([self.dataset.name, *method, f"s{self.seed}", digest])


# The fields of `training` that only some methods use.
_USED_BY: Mapping[str, Callable[[Method], bool]] = {
    "action_input": lambda method: method.sees_actions,
    "subgoal_head": lambda method: method.predicts_subgoals,
    "subgoal_target": lambda method: method.predicts_subgoals,
}


def unused_in_training(method: Method) -> tuple[str, ...]:
    """The fields of `training` that `method` has no use for."""
    return tuple(name for name, uses in _USED_BY.items() if not uses(method))


def _unused_in_evaluation(method: Method) -> tuple[str, ...]:
    return () if method.takes_target else ("target_returns", "return_scale")


def _without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}
