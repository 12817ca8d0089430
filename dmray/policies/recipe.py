"""How to build a policy, as values that pickle."""

from __future__ import annotations

from dataclasses import dataclass

from dmray.methods import METHODS, ActionInput, Method, PolicyShape
from dmray.models import BackboneConfig
from dmray.specs import TrialSpec


@dataclass(frozen=True)
class PolicyRecipe:
    """Everything but the weights. Returns-to-go are divided by `return_scale` before the network sees them."""

    method: str
    model: BackboneConfig
    action_input: ActionInput
    shape: PolicyShape
    return_scale: float

    def resolved_method(self) -> Method:
        """The method, with the action token that `action_input` says."""
        return METHODS[self.method].with_action_input(self.action_input)


def policy_recipe(trial: TrialSpec, shape: PolicyShape) -> PolicyRecipe:
    """How to build the policy of a (planned) trial."""
    assert trial.evaluation.return_scale is not None, "a planned trial names its return scale"
    return PolicyRecipe(trial.method, trial.model, trial.training.action_input, shape, trial.evaluation.return_scale)
