"""A file that is no stored policy is a CheckpointError that names it; a stored policy that is damaged is one too."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from dmray.errors import CheckpointError, SpecError
from dmray.inference import Policy, load_policy
from dmray.policies import PolicyShape, SequencePolicy, policy_recipe, snapshot
from dmray.tasks import task_of
from dmray.trial.checkpoints import Origin, load_checkpoint, save_checkpoint, to_tensors
from tests.sweeps import tiny_plan


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of DM that was not trained, as its trial stores it."""
    folder = tmp_path_factory.mktemp("stored")
    trial = tiny_plan(folder).trials[0]
    recipe = policy_recipe(trial, PolicyShape(4, 2, 1.0, 300))
    origin = Origin(trial, "fingerprint", recipe, task_of(trial.dataset).reference)
    weights = to_tensors(snapshot(SequencePolicy(recipe)).weights)
    file = folder / "final.pt"
    save_checkpoint(file, origin, {"step": 40, "score": 50.0, "weights": weights})
    return file


def changed(stored: Path, into: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The checkpoint with other content, and the checksum of that."""
    content = load_checkpoint(stored)
    change(content)
    origin = SimpleNamespace(as_dict=lambda: content["origin"])
    save_checkpoint(into / "changed.pt", cast(Origin, origin), content)
    return into / "changed.pt"


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_a_stored_policy_acts(stored: Path) -> None:
    policy = load_policy(stored)
    assert policy.start().act(np.zeros(4)).shape == (2,)


@pytest.mark.parametrize("kind", ["empty", "text", "zip", "list", "code"])
def test_a_file_of_another_kind_is_an_error_and_is_not_executed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "odd.pt"
    match kind:
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("hello")
        case "zip":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("a", "b")
        case "list":
            torch.save([1], file)
        case "code":
            torch.save(_Code(), file)
    with pytest.raises(CheckpointError, match=r"odd\.pt"):
        load_policy(file)
    assert not Path("executed").exists()


def _weights(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = content["weights"]
    return weights


HEAD = "stages.0.head.bias"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("step"),
        lambda content: content.update(step="40"),
        lambda content: content.update(step=True),
        lambda content: content["origin"].update(reference={}),
        lambda content: content["origin"]["reference"].update(minimum=float("nan")),
        lambda content: content["origin"]["reference"].update(maximum=-1e9),
        lambda content: _weights(content).pop(HEAD),
        lambda content: _weights(content).update({"more": torch.zeros(1)}),
        lambda content: _weights(content).update({HEAD: torch.zeros(3)}),
        lambda content: _weights(content).update({HEAD: torch.full((2,), torch.nan)}),
        lambda content: _weights(content).update({HEAD: torch.zeros(2, dtype=torch.bool)}),
        lambda content: _weights(content).update(state_std=torch.zeros(4)),
        lambda content: _weights(content).clear(),
        lambda content: content["origin"]["shape"].update(observation_dim=5),
        lambda content: content["origin"]["shape"].update(max_timesteps=10**12),
    ],
)
def test_a_damaged_stored_policy_is_an_error_that_names_the_file(
    stored: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(CheckpointError, match=r"changed\.pt: "):
        load_policy(changed(stored, tmp_path, change))


@pytest.mark.parametrize(
    "observation",
    [
        np.full(4, np.nan),
        np.full(4, 1e300),
        np.zeros(3),
        np.zeros((1, 4)),
        np.zeros(4, complex),
        ["0", "0", "0", "0"],
        [True] * 4,
        [[1], [2, 3]],
        None,
        torch.zeros(4, requires_grad=True),
    ],
)
def test_an_observation_that_is_no_finite_vector_is_an_error(stored: Path, observation: Any) -> None:
    with pytest.raises(SpecError, match="observations: "):
        load_policy(stored).start().act(observation)


def test_odd_settings_of_a_rollout_are_errors(stored: Path) -> None:
    policy: Policy = load_policy(stored)
    for call in (
        lambda: policy.start("2"),  # type: ignore[arg-type]
        lambda: policy.start(0),
        lambda: policy.start(decode=5),  # type: ignore[arg-type]
        lambda: policy.start(2).drop([0, 1]),
        lambda: policy.act_on_windows(np.zeros((1, 2, 4)), np.zeros((1, 2, 2)), first_timestep="0"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SpecError):
            call()
