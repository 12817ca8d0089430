"""Convert a `DecisionTransformerModel` of Hugging Face's transformers to our DT: names, layouts, settings.

Glossary (theirs -> the authors', which `dmray.policies.authors` converts):
    encoder.h.N.*, encoder.ln_f   transformer.h.N.*, transformer.ln_f
    encoder.wpe                   added to the bias of embed_ln: their model gives every token the position 0, so the
                                  first row of the table is added to all normalized tokens
    encoder.wte                   nothing: the table of words is not used
The embeddings and heads have the authors' names. Their tokens are (return-to-go, state, action) of a timestep: our DT
with action_input "dt".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dmray.arguments import whole_number
from dmray.errors import CheckpointError
from dmray.policies.authors import StateDict, from_authors
from dmray.policies.policy import SequencePolicy
from dmray.registry import short, short_repr

MODEL_TYPE = "decision_transformer"
_UNUSED = re.compile(r"encoder\.wte\.weight")
_POSITIONS, _NORM_BIAS = "encoder.wpe.weight", "embed_ln.bias"
_ALLOWED: Mapping[str, tuple[object, ...]] = {  # the values of settings that our network can follow; the default first
    "activation_function": ("relu", "gelu"),  # "gelu" is the exact one
    "action_tanh": (True,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "layer_norm_epsilon": (1e-5,),
    "add_cross_attention": (False,),
}
_DEFAULT_CONTEXT = 20


def from_huggingface(
    config: Mapping[str, Any],
    weights: StateDict,
    *,
    context_length: int | None = None,
    action_limit: float = 1.0,
    return_scale: float = 1000.0,
) -> SequencePolicy:
    """Make a policy that computes what their model with this config and these weights computes, in evaluation mode.

    `config`: the content of config.json. `context_length` None: the config's `max_length`, or 20 without one. The
    statistics of states are not in the model: call `set_statistics` before acting on raw states.

    Raises:
        CheckpointError: it is another model, the config has a setting that our network has not, or a weight is
            missing, unknown or of the wrong shape.
        SpecError: a setting is not a positive number.
    """
    _check(config)
    hidden = whole_number("config.json: hidden_size", config.get("hidden_size", 128), 1)
    context = context_length or config.get("max_length") or _DEFAULT_CONTEXT
    policy = from_authors(
        "dt",
        {"action": _as_authors(weights, hidden)},
        n_head=whole_number("config.json: n_head", config.get("n_head", 1), 1),
        context_length=whole_number("context_length", context, 1),
        action_input="dt",
        action_limit=action_limit,
        return_scale=return_scale,
        activation=config.get("activation_function", "relu"),
    )
    found = {"hidden_size": policy.recipe.model.d_model, "n_layer": policy.recipe.model.n_layer}
    found |= {"state_dim": policy.recipe.shape.observation_dim, "act_dim": policy.recipe.shape.action_dim}
    for name, size in found.items():
        if name in config and config[name] != size:
            raise CheckpointError(
                f"config.json: {name} is {short_repr(config[name])}, but the weights have {size}; the two files are of "
                "different models"
            )
    return policy


def _check(config: Mapping[str, Any]) -> None:
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"config.json: model_type is {short_repr(config.get('model_type'))}, but only '{MODEL_TYPE}' can be read"
        )
    for name, allowed in _ALLOWED.items():
        if config.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"config.json: {name} is {short_repr(config[name])}, but dmray's DT computes with "
                f"{' or '.join(map(repr, allowed))} only"
            )
    inner, hidden = config.get("n_inner"), config.get("hidden_size", 128)
    if inner is not None and inner != 4 * hidden:
        raise CheckpointError(
            f"config.json: n_inner is {short_repr(inner)}, but dmray's DT has 4 times hidden_size ({hidden})"
        )


def _as_authors(weights: StateDict, hidden: int) -> dict[str, Tensor]:
    """The weights under the authors' names, with the position in the bias of the norm."""
    for name in (_POSITIONS, _NORM_BIAS):
        if name not in weights:
            raise CheckpointError(f"'{name}' is missing; is this a DecisionTransformerModel's file?")
    positions, bias = weights[_POSITIONS], weights[_NORM_BIAS]
    if positions.ndim != 2 or tuple(bias.shape) != (hidden,) or positions.shape[1] != hidden or not len(positions):
        shapes = f"{tuple(positions.shape)} and {tuple(bias.shape)}"
        raise CheckpointError(f"'{short(_POSITIONS)}' and '{_NORM_BIAS}' have shapes {shapes}, not (n, {hidden})")
    kept = {name: value for name, value in weights.items() if name != _POSITIONS and not _UNUSED.fullmatch(name)}
    kept[_NORM_BIAS] = bias.float() + positions[0].float()
    return {re.sub(r"^encoder\.", "transformer.", name): value for name, value in kept.items()}
