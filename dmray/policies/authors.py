"""The authors' state dicts as our policies: names, layouts and sizes, nothing else.

Glossary (theirs -> ours, N a layer):
    embed_{return,state,action,subgoal}   embeddings.{return_to_go,state,action,subgoal}
    embed_timestep                        timesteps
    embed_ln                              norm
    backbone.layers.N.*, backbone.norm_f  the same (DM, DM+R, HDM; inside the mixer, mamba_ssm's names)
    transformer.h.N.attn                  backbone.layers.N.attention (DT, HDT)
    transformer.h.N.{ln_1,ln_2,mlp}       backbone.layers.N.{ln_1,ln_2,mlp}
    transformer.ln_f                      backbone.ln_f
    predict_{action,subgoal}.0            head, before the Tanh
    embed_sub_goal, predict_state         embeddings.subgoal and head of HDT's high network, which has no Tanh
GPT-2's c_attn, c_proj and c_fc keep their weights as (in, out), the transpose of a linear layer's.

Passed over, since no decision depends on it: GPT-2's token table and mask buffers, the return embedding of HDT's high
network, the predicted states and returns of Chen et al.'s DT. The networks of DM and DM+R are not published; their
names here are those that DT and HDM have for the same parts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmray.errors import CheckpointError
from dmray.methods import METHODS, ActionInput, PolicyShape
from dmray.policies.policy import SequencePolicy
from dmray.policies.recipe import PolicyRecipe
from dmray.registry import nearest, unknown

StateDict = Mapping[str, Tensor]

_MAX_TIMESTEPS = 4096  # rows of the authors' timestep table, for networks that have none


@dataclass(frozen=True)
class _Names:
    """How the authors name a network's parts: patterns of our names, the first that fits counts; `unread` of theirs."""

    renamed: Mapping[str, str]
    unread: str = r"(?!)"  # fits nothing

    def theirs(self, ours: str) -> str:
        for pattern, replacement in self.renamed.items():
            if re.match(pattern, ours):
                return re.sub(pattern, replacement, ours, count=1)
        raise AssertionError(f"the table has no name for {ours}")


_AROUND = {
    r"embeddings\.return_to_go\.": "embed_return.",
    r"embeddings\.": "embed_",
    r"timesteps\.": "embed_timestep.",
    r"norm\.": "embed_ln.",
}
_MAMBA = {r"backbone\.": "backbone.", **_AROUND}
_TRANSFORMER = {
    r"backbone\.layers\.(\d+)\.attention\.": r"transformer.h.\1.attn.",
    r"backbone\.layers\.": "transformer.h.",
    r"backbone\.": "transformer.",
    **_AROUND,
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
    n_head: int = 1,
    context_length: int = 20,
    action_input: ActionInput = "paper",
    action_limit: float = 1.0,
    return_scale: float = 1000.0,
) -> SequencePolicy:
    """The policy that computes what the authors' networks with these weights compute; float32, in evaluation mode.

    `networks` has a state dict for each of `SequencePolicy.stage_names`. Sizes are read from the weights; the keyword
    arguments are what weights do not say, as published. Chen et al.'s network is "dt" with action_input "dt". Nor do
    weights say the states' statistics: raw states need `set_statistics` first. Leaves torch's RNG as it was.

    Raises:
        CheckpointError: a stage, weight or shape is unknown, missing or wrong: named, with the nearest right one. Also
            when two stages differ in size, which one config cannot say.
    """
    published = {name for name, _ in _NAMES}
    if method not in published:
        raise CheckpointError(unknown("published method", method, published))
    stages = tuple(stage.target.value for stage in METHODS[method].stages)
    _check_names(method, networks, stages)
    found = [_Network(f"{method}, {stage}", networks[stage], _NAMES[method, stage]) for stage in stages]
    sizes = _shared_sizes(found)
    config = METHODS[method].config
    given = {**sizes, "n_head": n_head, "context_length": context_length}
    model = config.model_validate({name: size for name, size in given.items() if name in config.model_fields})
    action_dim = found[-1].size("embed_action.weight", 1)
    shape = PolicyShape(sizes["observation_dim"], action_dim, action_limit, sizes["max_timesteps"])
    with torch.random.fork_rng(devices=[]):
        policy = SequencePolicy(PolicyRecipe(method, model, action_input, shape, return_scale))
    for network, stage_model in zip(found, policy.stages, strict=True):
        stage_model.load_state_dict(network.translated(stage_model.state_dict()))
    return policy.eval()


@dataclass(frozen=True)
class _Network:
    """One state dict of theirs; `label` begins its errors."""

    label: str
    weights: StateDict
    names: _Names

    def sizes(self) -> dict[str, int]:
        """What the weights say, by the names of the method's config and of PolicyShape."""
        width = self.size("embed_ln.weight", 0)
        sizes = {"d_model": width, "observation_dim": self.size("embed_state.weight", 1)}
        if self.names.theirs("backbone.layers.").startswith("transformer"):
            return sizes | {"n_layer": self._layers(), "max_timesteps": self.size("embed_timestep.weight", 0)}
        mixer = "backbone.layers.0.mixer"
        return sizes | {
            "n_layer": self._layers(),
            "d_state": self.size(f"{mixer}.A_log", 1),
            "d_conv": self.size(f"{mixer}.conv1d.weight", 2),
            "expand": max(1, self.size(f"{mixer}.A_log", 0) // width),
            "max_timesteps": _MAX_TIMESTEPS,
        }

    def size(self, name: str, axis: int) -> int:
        """The length of one axis of one weight."""
        if name not in self.weights:
            raise CheckpointError(_missing(self.label, name, self.weights))
        shape = tuple(self.weights[name].shape)
        if axis >= len(shape):
            raise CheckpointError(f"{self.label}: '{name}' has shape {shape}, {axis + 1} axes or more are right")
        return shape[axis]

    def translated(self, ours: StateDict) -> dict[str, Tensor]:
        """Their weights by the names and in the layouts of `ours`, the state dict of a network of this size."""
        theirs = {name: self.names.theirs(name) for name in ours}
        given = [name for name in self.weights if not re.fullmatch(self.names.unread, name)]
        _check_names(self.label, given, theirs.values())
        return {name: self._as(value.shape, theirs[name]) for name, value in ours.items()}

    def _as(self, shape: torch.Size, name: str) -> Tensor:
        value, transposed = self.weights[name], _TRANSPOSED.fullmatch(name) is not None
        right = tuple(reversed(shape)) if transposed else tuple(shape)
        if tuple(value.shape) != right:
            raise CheckpointError(f"{self.label}: '{name}' has shape {tuple(value.shape)}, {right} is right")
        return value.T if transposed else value

    def _layers(self) -> int:
        prefix = re.escape(self.names.theirs("backbone.layers."))
        numbers = [int(match[1]) for name in self.weights if (match := re.match(rf"{prefix}(\d+)\.", name))]
        return 1 + max(numbers, default=0)


def _shared_sizes(networks: Sequence[_Network]) -> dict[str, int]:
    first, sizes = networks[0], networks[0].sizes()
    for other in networks[1:]:
        for name, size in other.sizes().items():
            if size != sizes[name]:
                raise CheckpointError(
                    f"{other.label}: {name} is {size}, but {sizes[name]} in '{first.label}'; a policy has one size"
                )
    return sizes


def _check_names(label: str, given: Collection[str], right: Collection[str]) -> None:
    for name in given:
        if name not in right:
            best = nearest(name, right)
            raise CheckpointError(f"{label}: unknown '{name}'" + (f", did you mean '{best}'?" if best else ""))
    for name in right:
        if name not in given:
            raise CheckpointError(_missing(label, name, given))


def _missing(label: str, name: str, given: Collection[str]) -> str:
    best = nearest(name, given)
    return f"{label}: '{name}' is missing" + (f", the nearest given is '{best}'" if best else "")
