"""The description of a method, from which training, evaluation, planning and reports get what depends on the method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dmray.fields import Field, Token
from dmray.methods.layout import Layout
from dmray.models.backbones import Backbone, linear_parameters
from dmray.models.configs import BackboneConfig

ActionInput = Literal["paper", "dt"]
SubgoalHead = Literal["published", "tanh", "linear"]
SubgoalTarget = Literal["state", "difference"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")
_COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")
_MARKERS = "ov^<>8sphHDdPX*1234+x.|_"
_OBSERVED = (Field.STATE, Field.RETURN_TO_GO)
_ACTION, _PREVIOUS_ACTION = Token(Field.ACTION), Token(Field.ACTION, lag=1)


@dataclass(frozen=True)
class PolicyShape:
    """The sizes of a policy that follow from its task and data set.

    Actions are in [-action_limit, action_limit], timesteps in [0, max_timesteps).
    """

    observation_dim: int
    action_dim: int
    action_limit: float
    max_timesteps: int

    def dim(self, field: Field) -> int:
        """The length of a field's vector at one timestep."""
        if field is Field.RETURN_TO_GO:
            return 1
        return self.action_dim if field is Field.ACTION else self.observation_dim


@dataclass(frozen=True)
class Preset:
    """The choices of one published implementation of a method: fields of the method's config and of `training`.

    Sizes, learning rates and batches are none of them. `source`: where the implementation is published.
    """

    name: str
    source: str
    model: Mapping[str, Any] = field(default_factory=dict, hash=False)
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Method:
    """A backbone (one network per stage) and the stages, in the order in which they predict a timestep's fields.

    `name`: the name in sweep files. `label`: the name in reports. `colour` (hex), `marker` (matplotlib's): how figures
    draw it. `baselines`: the names of the methods that it is compared with. `source`: where it is published. `summary`:
    one sentence that describes it. `presets`: published implementations of it, which a sweep file names; all presets of
    a method give the same fields, so that a trial equals one of them at most.

    Raises:
        ValueError: a stage has an input that no earlier stage predicts, no stage predicts the action, `name`, `colour`
            or `marker` cannot be used, or a preset has fields that another one or the config does not have.
    """

    name: str
    label: str
    summary: str
    source: str
    backbone: Backbone
    stages: tuple[Layout, ...]
    colour: str
    marker: str
    baselines: tuple[str, ...] = ()
    presets: tuple[Preset, ...] = ()

    def __post_init__(self) -> None:
        self._check_looks()
        self._check_presets()
        known = set(_OBSERVED)
        for stage in self.stages:
            for token in stage.visible:
                if token.lag == 0 and token.field not in known:
                    raise ValueError(f"{stage.target} needs {token.field} of the same timestep, which is not known yet")
            known.add(stage.target)
        if Field.ACTION not in known:
            raise ValueError("no stage predicts the action")

    @property
    def config(self) -> type[BackboneConfig]:
        """The config class, whose fields a sweep file gives under `models:`."""
        return self.backbone.config

    @property
    def takes_target(self) -> bool:
        """Whether the policy takes a target return."""
        return self._has(Field.RETURN_TO_GO)

    @property
    def sees_actions(self) -> bool:
        """Whether actions are among the tokens."""
        return self._has(Field.ACTION)

    @property
    def predicts_subgoals(self) -> bool:
        """Whether a stage predicts subgoals."""
        return any(stage.target is Field.SUBGOAL for stage in self.stages)

    def with_action_input(self, action_input: ActionInput) -> Method:
        """This method with another action token.

        `paper`: the action of the previous timestep, as published. `dt`: the action of the same timestep, after the
        token from which it is predicted, as in Chen et al. (arXiv 2106.01345).
        """
        if action_input == "paper":
            return self
        return replace(self, stages=tuple(_with_own_action(stage) for stage in self.stages))

    def with_subgoal_head(self, subgoal_head: SubgoalHead) -> Method:
        """This method with another head of the stage that predicts subgoals.

        `published`: as this method has it (HDM: Tanh; HDT: linear). `tanh`: encoded subgoals are within [-1, 1].
        `linear`: they have no limit.
        """
        if subgoal_head == "published":
            return self
        squash = subgoal_head == "tanh"
        return replace(self, stages=tuple(_with_subgoal_squash(stage, squash) for stage in self.stages))

    def num_parameters(self, config: Any, shape: PolicyShape) -> int:
        """Trainable parameters of all stages."""
        return sum(self._stage_parameters(stage, config, shape) for stage in self.stages)

    def forward_flops(self, config: Any) -> float:
        """FLOPs of the backbones' forward passes over one window of `context_length` timesteps."""
        return sum(self.backbone.flops(config, config.context_length * len(stage.tokens)) for stage in self.stages)

    def _check_looks(self) -> None:
        """A figure with a wrong colour would fail only when all trials have ended."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name '{self.name}': only letters, digits, '+', '.', '_' and '-' (it names folders)")
        if not _COLOUR.fullmatch(self.colour):
            raise ValueError(f"colour '{self.colour}': write it as '#1b9e77'")
        if len(self.marker) != 1 or self.marker not in _MARKERS:
            raise ValueError(f"marker '{self.marker}': one of matplotlib's, {' '.join(_MARKERS)}")

    def _check_presets(self) -> None:
        for preset in self.presets:
            for section in ("model", "training"):
                given, wanted = getattr(preset, section).keys(), getattr(self.presets[0], section).keys()
                if given != wanted:
                    differing = ", ".join(sorted(given ^ wanted))
                    raise ValueError(f"preset '{preset.name}': all presets give the same fields; look at {differing}")
            self.config.model_validate(dict(preset.model))

    def _stage_parameters(self, stage: Layout, config: BackboneConfig, shape: PolicyShape) -> int:
        width = config.d_model
        fields = dict.fromkeys(token.field for token in stage.tokens)
        embeddings = sum(linear_parameters(shape.dim(field), width) for field in fields)
        timesteps = shape.max_timesteps * width if self.backbone.timestep_embedding else 0
        head = linear_parameters(width, shape.dim(stage.target))
        return self.backbone.num_parameters(config) + embeddings + timesteps + 2 * width + head

    def _has(self, field: Field) -> bool:
        return any(token.field is field for stage in self.stages for token in stage.tokens)


def _with_own_action(stage: Layout) -> Layout:
    return replace(stage, tokens=tuple(_ACTION if token == _PREVIOUS_ACTION else token for token in stage.tokens))


def _with_subgoal_squash(stage: Layout, squash: bool) -> Layout:
    return replace(stage, squash=squash) if stage.target is Field.SUBGOAL else stage
