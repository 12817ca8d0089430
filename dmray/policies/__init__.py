"""Policies: the networks of a method, snapshots of their weights, and decoders, which act with them."""

from dmray.methods import Layout, PolicyShape
from dmray.policies.authors import from_authors
from dmray.policies.decoding import Decoder, check_decoder, make_decoder
from dmray.policies.policy import (
    PolicyRecipe,
    PolicySnapshot,
    SequencePolicy,
    initial_policy,
    policy_recipe,
    snapshot,
)
from dmray.policies.rollout_fields import RolloutFields, SubgoalSource
from dmray.policies.sequence_model import SequenceModel
from dmray.policies.state_decoder import StateDecoder
from dmray.policies.window_decoder import WindowDecoder

__all__ = [
    "Decoder",
    "Layout",
    "PolicyRecipe",
    "PolicyShape",
    "PolicySnapshot",
    "RolloutFields",
    "SequenceModel",
    "SequencePolicy",
    "StateDecoder",
    "SubgoalSource",
    "WindowDecoder",
    "check_decoder",
    "from_authors",
    "initial_policy",
    "make_decoder",
    "policy_recipe",
    "snapshot",
]
