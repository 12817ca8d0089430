"""Windows are decided as an evaluation decides, in every decode mode; and so by what MLflow loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmray.errors import SpecError
from dmray.fields import Field
from dmray.inference import act_on_windows
from dmray.inference.pyfunc import ServedPolicy
from dmray.policies import SequencePolicy, make_decoder, policy_recipe, snapshot
from dmray.specs import MethodName
from dmray.tasks import ReferenceScores
from dmray.trial.checkpoints import Origin, save_checkpoint, to_tensors
from tests.policies.windows import METHODS, SHAPE, config_of, random_fields, tiny_policy
from tests.sweeps import tiny_plan

STEPS = 3 * config_of("dm").context_length


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decode", ["window", "stream:3", "recurrent"])
def test_actions_on_windows_equal_those_of_an_evaluation(method: MethodName, decode: str) -> None:
    policy, fields = tiny_policy(method), random_fields(3, STEPS)
    served, decoder = ServedPolicy(policy), make_decoder(policy, decode, 3)
    states, targets = fields[Field.STATE].numpy(), fields[Field.RETURN_TO_GO][:, :, 0].numpy()
    actions = np.zeros((3, STEPS, SHAPE.action_dim), np.float32)
    for t in range(STEPS):
        actions[:, t] = decoder.decide(states[:, t], targets[:, t])
        window = {
            "observations": states[:, : t + 1],
            "actions": np.where(np.arange(t + 1)[:, None] == t, np.nan, actions[:, : t + 1]),  # the last is not read
            "returns_to_go": targets[:, : t + 1],
        }
        np.testing.assert_allclose(served.predict(window, {"decode": decode}), actions[:, t], rtol=0, atol=5e-6)


def windows(steps: int = 2, **changes: np.ndarray) -> dict[str, np.ndarray]:
    given = {
        "observations": np.zeros((1, steps, SHAPE.observation_dim)),
        "actions": np.zeros((1, steps, SHAPE.action_dim)),
        "returns_to_go": np.zeros((1, steps)),
    }
    return {**given, **changes}


def test_an_array_of_the_wrong_shape_is_an_error() -> None:
    served = ServedPolicy(tiny_policy("dm"))
    with pytest.raises(SpecError, match=r"actions: shape \(1, 3, 1\), but this policy takes \(1, 2, "):
        served.predict(windows(actions=np.zeros((1, 3, 1))))
    with pytest.raises(SpecError, match="returns_to_go: missing"):
        ServedPolicy(tiny_policy("dt")).predict(
            {name: values for name, values in windows().items() if name != "returns_to_go"}
        )


def test_windows_without_finite_numbers_or_without_windows_are_refused() -> None:
    policy = tiny_policy("dt")
    with pytest.raises(SpecError, match="observations: not all numbers are finite"):
        act_on_windows(policy, **windows(observations=np.full((1, 2, SHAPE.observation_dim), np.nan)))
    with pytest.raises(SpecError, match="returns_to_go: not all numbers are finite"):
        act_on_windows(policy, **windows(returns_to_go=np.full((1, 2), np.inf)))
    with pytest.raises(SpecError, match="actions: not all numbers are finite"):
        act_on_windows(policy, **windows(actions=np.full((1, 2, SHAPE.action_dim), np.nan)))
    with pytest.raises(SpecError, match=r"shape \(0, 2, \d+\), but windows are \(B, T, S\), with B and T at least 1"):
        act_on_windows(policy, **windows(observations=np.zeros((0, 2, SHAPE.observation_dim))))


def test_an_episode_longer_than_max_timesteps_is_an_error() -> None:
    served = ServedPolicy(tiny_policy("dt"))
    served.predict(windows(), {"first_timestep": SHAPE.max_timesteps - 2})
    with pytest.raises(SpecError, match="episodes have at most"):
        served.predict(windows(), {"first_timestep": SHAPE.max_timesteps - 1})


def test_parameters_from_mlflow_are_checked() -> None:
    served = ServedPolicy(tiny_policy("dm"))
    with pytest.raises(SpecError, match="unknown decode mode 'recurent', did you mean 'recurrent'"):
        served.predict(windows(), {"decode": "recurent"})
    with pytest.raises(SpecError, match="unknown parameter 'first_step', did you mean 'first_timestep'"):
        served.predict(windows(), {"first_step": 3})


def test_first_timestep_is_used_for_windows_that_begin_later() -> None:
    policy = tiny_policy("dt")
    given = windows(observations=np.ones((1, 2, SHAPE.observation_dim)))
    early, late = (act_on_windows(policy, **given, first_timestep=first) for first in (0, 5))
    assert np.abs(early - late).max() > 1e-4


def save_tiny(path: Path) -> None:
    """A checkpoint of an untrained DM of the tests' sizes."""
    trial = tiny_plan("runs").trials[0]
    recipe = policy_recipe(trial, SHAPE)
    origin = Origin(trial, "no data", recipe, ReferenceScores(0.0, 1.0, "test"))
    weights = to_tensors(snapshot(SequencePolicy(recipe)).weights)
    save_checkpoint(path, origin, {"step": 1, "score": 0.0, "weights": weights})


@pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType")  # MLflow's import, not ours
@pytest.mark.parametrize("loader", ["dmray.execution.served_policy", "dmray.inference.pyfunc"])
def test_stored_mlflow_models_still_load(tmp_path: Path, loader: str) -> None:
    """The MLmodel file names the loader: the old name is that of models logged by dmray 0.1."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from dmray.mlflow_mirror.models import LOADER

    assert LOADER == "dmray.inference.pyfunc"
    save_tiny(tmp_path / "policy.pt")
    model = Model()
    model.add_flavor("python_function", loader_module=loader, data="policy.pt", python_version="3.11.0")
    model.save(str(tmp_path / "MLmodel"))
    loaded = mlflow.pyfunc.load_model(str(tmp_path))
    assert loaded.predict(windows()).shape == (1, SHAPE.action_dim)
