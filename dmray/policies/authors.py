"""Convert the authors' state dicts to our policies: names, layouts and sizes of weights.

Glossary (theirs -> ours, N is the number of a layer):
    embed_{return,state,action,subgoal}   embeddings.{return_to_go,state,action,subgoal}
    embed_timestep                        timesteps
    embed_ln                              norm
    backbone.layers.N.*, backbone.norm_f  the same (DM, DM+R, HDM; the mixer's weights have mamba_ssm's names)
    transformer.h.N.attn                  backbone.layers.N.attention (DT, HDT)
    transformer.h.N.{ln_1,ln_2,mlp}       backbone.layers.N.{ln_1,ln_2,mlp}
    transformer.ln_f                      backbone.ln_f
    predict_{action,subgoal}.0            head, before the Tanh
    embed_sub_goal, predict_state         embeddings.subgoal and head of HDT's high network, which has no Tanh
GPT-2's c_attn, c_proj and c_fc store their weights as (in, out), the transpose of a linear layer's.

Ignored, because actions do not depend on them: GPT-2's token table and mask buffers, the return embedding of HDT's high
network, the heads of Chen et al.'s DT for states and returns. The code of DM and DM+R is not published; their names
here are those of the same parts of DT and HDM.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from dmray.arguments import finite_number, whole_number
from dmray.errors import CheckpointError, SpecError
from dmray.methods import METHODS, ActionInput, PolicyShape
from dmray.models.configs import Activation
from dmray.policies.policy import PolicyRecipe, SequencePolicy
from dmray.registry import nearest, short, short_repr, unknown
from dmray.specs.mistakes import mistakes_of

StateDict = Mapping[str, Tensor]

_MAX_TIMESTEPS = 4096  # rows of the authors' timestep table, for networks that have none


@dataclass(frozen=True)
class _Names:
    """The authors' names of a network's weights.

    `renamed`: patterns of our names and the replacements; the first pattern that matches is used. `ignored`: a pattern
    of their names that have no counterpart.
    """

    renamed: Mapping[str, str]
    ignored: str = r"(?!)"  # matches nothing

    def theirs(self, ours: str) -> str:
        """Their name of our weight `ours`."""
        for pattern, replacement in self.renamed.items():
            if re.match(pattern, ours):
                return re.sub(pattern, replacement, ours, count=1)
        raise AssertionError(f"the table has no name for {ours}")


_EMBEDDINGS = {
    r"embeddings\.return_to_go\.": "embed_return.",
    r"embeddings\.": "embed_",
    r"timesteps\.": "embed_timestep.",
    r"norm\.": "embed_ln.",
}
_MAMBA = {r"backbone\.": "backbone.", **_EMBEDDINGS}
_TRANSFORMER = {
    r"backbone\.layers\.(\d+)\.attention\.": r"transformer.h.\1.attn.",
    r"backbone\.layers\.": "transformer.h.",
    r"backbone\.": "transformer.",
    **_EMBEDDINGS,
}
_ACTION, _SUBGOAL = {r"head\.": "predict_action.0."}, {r"head\.": "predict_subgoal.0."}
_HDT_HIGH = {r"head\.": "predict_state.", r"embeddings\.subgoal\.": "embed_sub_goal."}
_GPT2 = r"transformer\.wte\.weight|transformer\.h\.\d+\.attn\.(bias|masked_bias)"
_NAMES: Mapping[tuple[str, str], _Names] = {
    ("dt", "action"): _Names(_ACTION | _TRANSFORMER, rf"{_GPT2}|predict_(state|return)\.(weight|bias)"),
    ("dm", "action"): _Names(_ACTION | _MAMBA),
    ("dm+r", "action"): _Names(_ACTION | _MAMBA),
    ("hdt", "subgoal"): _Names(_HDT_HIGH | _TRANSFORMER, rf"{_GPT2}|embed_return\.(weight|bias)"),
    ("hdt", "action"): _Names(_ACTION | _TRANSFORMER, _GPT2),
    ("hdm", "subgoal"): _Names(_SUBGOAL | _MAMBA),
    ("hdm", "action"): _Names(_ACTION | _MAMBA),
}
_TRANSPOSED = re.compile(r"transformer\.h\.\d+\.(attn|mlp)\.c_(attn|proj|fc)\.weight")


def from_authors(
    method: str,
    networks: Mapping[str, StateDict],
    *,
    n_head: int | None = None,
    context_length: int = 20,
    action_input: ActionInput = "paper",
    action_limit: float = 1.0,
    return_scale: float | None = None,
    activation: Activation | None = None,
) -> SequencePolicy:
    """Make a policy that computes what the authors' networks with these weights compute; float32, in evaluation mode.

    `networks` has a state dict for each of `SequencePolicy.stage_names`. Sizes are read from the weights. The keyword
    arguments are settings that are not in the weights; their defaults are the published ones. None is that of settings
    that not every method has: `n_head` 1 and `activation` "relu" of transformers, `return_scale` 1000 of methods with
    returns. Chen et al.'s network is method "dt" with action_input "dt". The statistics of states are not in the
    weights either: call `set_statistics` before acting on raw states. Does not change torch's global RNG.

    Raises:
        CheckpointError: the method is not a published one; a stage or weight is unknown or missing; a weight has the
            wrong shape, is no tensor of floating-point numbers, or is not finite; two stages differ in size (a policy
            has one config); or the sizes are not those of a config. The message has the most similar name.
        SpecError: a setting is not a positive number, or one that the method does not have.
    """
    published = {name for name, _ in _NAMES}
    if not isinstance(method, str) or not isinstance(networks, Mapping):
        raise CheckpointError("give the method's name, and a mapping from its stages to their state dicts")
    if method not in published:
        raise CheckpointError(unknown("published method", method, published))
    stages = tuple(stage.target.value for stage in METHODS[method].stages)
    _check_names(method, networks, stages)
    config, of_transformers = METHODS[method].config, {"n_head": n_head, "activation": activation}
    has = {name: name in config.model_fields for name in of_transformers}
    for name, value in {**of_transformers, "return_scale": return_scale}.items():
        if value is not None and not has.get(name, METHODS[method].takes_target):
            raise SpecError(f"{name} {short_repr(value)}: method '{method}' has no such setting; leave it out")
    n_head, activation = 1 if n_head is None else n_head, "relu" if activation is None else activation
    return_scale = 1000.0 if return_scale is None else return_scale
    _check_settings(n_head, context_length, action_input, action_limit, return_scale)
    for stage in stages:
        _check_tensors(f"{method}, {stage}", networks[stage], _NAMES[method, stage].ignored)
    found = [_Network(f"{method}, {stage}", networks[stage], _NAMES[method, stage]) for stage in stages]
    sizes = _shared_sizes(found)
    given = {**sizes, "n_head": n_head, "context_length": context_length, "activation": activation}
    try:
        model = config.model_validate({name: size for name, size in given.items() if name in config.model_fields})
    except ValidationError as invalid:
        raise CheckpointError(f"{method}: {mistakes_of(invalid, config)[0]} (read from the weights)") from None
    action_dim = found[-1].size("embed_action.weight", 1)
    shape = PolicyShape(sizes["observation_dim"], action_dim, action_limit, sizes["max_timesteps"])
    with torch.random.fork_rng(devices=[]):
        policy = SequencePolicy(PolicyRecipe(method, model, action_input, shape, return_scale))
    for network, stage_model in zip(found, policy.stages, strict=True):
        stage_model.load_state_dict(network.translated(stage_model.state_dict()))
    return policy.eval()


@dataclass(frozen=True)
class _Network:
    """One of the authors' state dicts. Error messages begin with `label`."""

    label: str
    weights: StateDict
    names: _Names

    def sizes(self) -> dict[str, int]:
        """The sizes of the network, under the field names of the method's config and of PolicyShape."""
        width = self.size("embed_ln.weight", 0)
        sizes = {"d_model": width, "observation_dim": self.size("embed_state.weight", 1)}
        if self.names.theirs("backbone.layers.").startswith("transformer"):
            return sizes | {"n_layer": self._layers(), "max_timesteps": self.size("embed_timestep.weight", 0)}
        mixer = "backbone.layers.0.mixer"
        return sizes | {
            "n_layer": self._layers(),
            "d_state": self.size(f"{mixer}.A_log", 1),
            "d_conv": self.size(f"{mixer}.conv1d.weight", 2),
            "expand": max(1, self.size(f"{mixer}.A_log", 0) // max(1, width)),
            "max_timesteps": _MAX_TIMESTEPS,
        }

    def size(self, name: str, axis: int) -> int:
        """The length of one axis of a weight."""
        if name not in self.weights:
            raise CheckpointError(_missing(self.label, name, self.weights))
        shape = tuple(self.weights[name].shape)
        if axis >= len(shape):
            raise CheckpointError(f"{self.label}: '{name}' has shape {shape}, but must have at least {axis + 1} axes")
        return shape[axis]

    def translated(self, ours: StateDict) -> dict[str, Tensor]:
        """Their weights with the names and layouts of `ours`, the state dict of our network of the same size."""
        theirs = {name: self.names.theirs(name) for name in ours}
        given = [name for name in self.weights if not re.fullmatch(self.names.ignored, name)]
        _check_names(self.label, given, theirs.values())
        return {name: self._as(value.shape, theirs[name]) for name, value in ours.items()}

    def _as(self, shape: torch.Size, name: str) -> Tensor:
        value, transposed = self.weights[name], _TRANSPOSED.fullmatch(name) is not None
        expected = tuple(reversed(shape)) if transposed else tuple(shape)
        if tuple(value.shape) != expected:
            raise CheckpointError(f"{self.label}: '{name}' has shape {tuple(value.shape)}, but must have {expected}")
        return value.T if transposed else value

    def _layers(self) -> int:
        prefix = re.escape(self.names.theirs("backbone.layers."))
        numbers = [int(match[1]) for name in self.weights if (match := re.match(rf"{prefix}([0-9]{{1,6}})\.", name))]
        count = len(set(numbers))
        if set(numbers) != set(range(count)):
            raise CheckpointError(
                f"{self.label}: layers {_listed(numbers)} are given, but they must be 0 to {count - 1}"
            )
        return count


def _listed(numbers: Sequence[int]) -> str:
    known = sorted(set(numbers))
    return ", ".join(short_repr(number) for number in known[:8]) + (", ..." if len(known) > 8 else "")


def _check_settings(
    n_head: int, context_length: int, action_input: str, action_limit: float, return_scale: float
) -> None:
    whole_number("n_head", n_head, 1)
    whole_number("context_length", context_length, 1)
    for name, value in (("action_limit", action_limit), ("return_scale", return_scale)):
        if finite_number(name, value) <= 0:
            raise SpecError(f"{name} {value}: must be above 0")
    if action_input not in get_args(ActionInput):
        raise SpecError(unknown("action_input", str(action_input), get_args(ActionInput)))


def _check_tensors(label: str, weights: object, ignored: str) -> None:
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{label}: give a state dict, a mapping from names to tensors")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{label}: '{short(name)}' is a {type(value).__name__}, but must be a tensor")
        if re.fullmatch(ignored, name):
            continue
        if not value.is_floating_point():
            raise CheckpointError(f"{label}: '{short(name)}' has dtype {value.dtype}, but must be floating-point")
        if not _is_plain(value):
            raise CheckpointError(
                f"{label}: '{short(name)}' {tuple(value.shape)}: not a number in memory for each element"
            )
        if not bool(torch.isfinite(value.float()).all()):
            raise CheckpointError(f"{label}: '{short(name)}' is not finite")


def _is_plain(value: Tensor) -> bool:
    """Whether it is dense and each element is in memory. (An expanded one could grow beyond any memory.)"""
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _shared_sizes(networks: Sequence[_Network]) -> dict[str, int]:
    first, sizes = networks[0], networks[0].sizes()
    for other in networks[1:]:
        for name, size in other.sizes().items():
            if size != sizes[name]:
                raise CheckpointError(
                    f"{other.label}: {name} is {size}, but {sizes[name]} in '{first.label}'; they must be equal"
                )
    return sizes


def _check_names(label: str, given: Collection[str], expected: Collection[str]) -> None:
    for name in given:
        if name not in expected:
            best = nearest(name, expected)
            raise CheckpointError(f"{label}: unknown '{short(name)}'" + (f", did you mean '{best}'?" if best else ""))
    for name in expected:
        if name not in given:
            raise CheckpointError(_missing(label, name, given))


def _missing(label: str, name: str, given: Collection[str]) -> str:
    best = nearest(name, given)
    return f"{label}: '{name}' is missing" + (f"; the most similar given name is '{best}'" if best else "")
