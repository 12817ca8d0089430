"""A stored policy as a function of arrays decides what the evaluation's decoder decides."""

from __future__ import annotations

import numpy as np
import pytest

from dmray.errors import SpecError
from dmray.fields import Field
from dmray.inference.pyfunc import ServedPolicy
from dmray.policies import make_decoder
from dmray.specs import MethodName
from tests.policies.windows import METHODS, SHAPE, TINY, random_fields, tiny_policy

STEPS = 3 * TINY.context_length


@pytest.mark.parametrize("method", METHODS)
def test_it_decides_as_an_evaluation_does(method: MethodName) -> None:
    policy, fields = tiny_policy(method), random_fields(3, STEPS)
    served, decoder = ServedPolicy(policy), make_decoder(policy, "window", 3)
    states, targets = fields[Field.STATE].numpy(), fields[Field.RETURN_TO_GO][:, :, 0].numpy()
    actions = np.zeros((3, STEPS, SHAPE.action_dim), np.float32)
    for t in range(STEPS):
        actions[:, t] = decoder.decide(states[:, t], targets[:, t])
        window = {
            "observations": states[:, : t + 1],
            "actions": np.where(np.arange(t + 1)[:, None] == t, np.nan, actions[:, : t + 1]),  # the last is not read
            "returns_to_go": targets[:, : t + 1],
        }
        np.testing.assert_allclose(served.predict(window), actions[:, t], rtol=0, atol=5e-6)


def windows(steps: int = 2, **changes: np.ndarray) -> dict[str, np.ndarray]:
    given = {
        "observations": np.zeros((1, steps, SHAPE.observation_dim)),
        "actions": np.zeros((1, steps, SHAPE.action_dim)),
        "returns_to_go": np.zeros((1, steps)),
    }
    return {**given, **changes}


def test_an_array_of_another_shape_is_told() -> None:
    served = ServedPolicy(tiny_policy("dm"))
    with pytest.raises(SpecError, match=r"actions: shape \(1, 3, 1\), but this policy takes \(1, 2, "):
        served.predict(windows(actions=np.zeros((1, 3, 1))))
    with pytest.raises(SpecError, match="returns_to_go: shape"):
        ServedPolicy(tiny_policy("dt")).predict(
            {name: values for name, values in windows().items() if name != "returns_to_go"}
        )


def test_an_episode_that_outlasts_the_longest_is_told() -> None:
    served = ServedPolicy(tiny_policy("dt"))
    served.predict(windows(), {"first_timestep": SHAPE.max_timesteps - 2})
    with pytest.raises(SpecError, match="episodes have at most"):
        served.predict(windows(), {"first_timestep": SHAPE.max_timesteps - 1})
