"""How to build a policy, as values that pickle."""

from __future__ import annotations

from dataclasses import dataclass

from dmray.fields import Field
from dmray.policies.algorithms import ActionInput
from dmray.specs import MethodName, ModelSpec, TrialSpec


@dataclass(frozen=True)
class PolicyShape:
    """Sizes that the task and the data set impose.

    Actions lie in [-action_limit, action_limit]; timesteps in [0, max_timesteps).
    """

    observation_dim: int
    action_dim: int
    action_limit: float
    max_timesteps: int

    def dim(self, field: Field) -> int:
        """Numbers per timestep of a field."""
        if field is Field.RETURN_TO_GO:
            return 1
        return self.action_dim if field is Field.ACTION else self.observation_dim


@dataclass(frozen=True)
class PolicyRecipe:
    """Everything but the weights. Returns-to-go are divided by `return_scale` before the network sees them."""

    method: MethodName
    model: ModelSpec
    action_input: ActionInput
    shape: PolicyShape
    return_scale: float


def policy_recipe(trial: TrialSpec, shape: PolicyShape) -> PolicyRecipe:
    """How to build the policy of a (planned) trial."""
    model: ModelSpec = trial.model
    assert trial.evaluation.return_scale is not None, "a planned trial names its return scale"
    return PolicyRecipe(trial.method, model, trial.training.action_input, shape, trial.evaluation.return_scale)
