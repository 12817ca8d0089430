"""The head and the target of the network that predicts subgoals, and subgoals from another source than that network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmray.datasets import Statistics, subgoal_rows
from dmray.errors import CheckpointError, SpecError
from dmray.fields import Field, Token
from dmray.methods import METHODS, SubgoalHead, SubgoalTarget
from dmray.policies import make_decoder, snapshot
from tests.datasets.examples import episodes_of
from tests.policies.acting import STEPS, act, act_by_training_forward, every_mode, observed
from tests.policies.windows import policy_with, random_fields, tiny_policy, windows_of

both_methods = pytest.mark.parametrize("method", ["hdt", "hdm"])


class Given:
    """Subgoals of a list, one entry a timestep; (E, S) each."""

    def __init__(self, values: torch.Tensor) -> None:
        self.rows, self.values, self.timestep = np.arange(len(values)), values.numpy(), -1

    def subgoals(self, observations: np.ndarray) -> np.ndarray:
        self.timestep += 1
        assert len(observations) == len(self.rows)
        chosen: np.ndarray = self.values[self.rows, self.timestep]
        return chosen

    def keep(self, rows: np.ndarray) -> None:
        self.rows = self.rows[rows]


@pytest.mark.parametrize(
    ("head", "limited"), [("published", {"hdm"}), ("tanh", {"hdm", "hdt"}), ("linear", set[str]())]
)
@both_methods
def test_the_head_decides_whether_subgoals_are_limited(method: str, head: SubgoalHead, limited: set[str]) -> None:
    policy = policy_with(method, head)
    with torch.no_grad():
        policy.stages[0].get_parameter("head.bias").fill_(20.0)
    windows = windows_of(random_fields(2, 3), policy.tokens, 0, 3, 3)
    subgoal, action = policy.predict(windows)
    assert bool((subgoal.abs() <= 1.0).all()) == (method in limited)
    assert bool((action.abs() <= policy.recipe.shape.action_limit).all())


def test_a_head_is_for_methods_with_subgoals_and_the_published_one_changes_nothing() -> None:
    for name in METHODS:
        assert METHODS[name].with_subgoal_head("published") is METHODS[name]
    assert METHODS["dm"].with_subgoal_head("linear") == METHODS["dm"]
    assert METHODS["hdm"].with_subgoal_head("tanh") == METHODS["hdm"] != METHODS["hdm"].with_subgoal_head("linear")


@both_methods
def test_a_difference_is_the_label_less_the_present_state_in_inputs_and_targets(method: str) -> None:
    policy, fields = policy_with(method, target="difference"), random_fields(3, 4)
    windows = windows_of(fields, policy.tokens, 0, 4, 4)
    assert Token(Field.STATE, 1) in policy.tokens
    mean, std = torch.tensor([0.1, 0.2, -0.3]), torch.tensor([2.0, 0.5, 1.0])
    labels = (fields[Field.SUBGOAL] - fields[Field.STATE] - mean) / std
    subgoal, _ = policy.predict(windows)
    torch.testing.assert_close(policy.stage_losses(windows)[0], (subgoal - labels).square().mean())
    moved = {**fields, Field.SUBGOAL: fields[Field.SUBGOAL] + 1.0, Field.STATE: fields[Field.STATE] + 1.0}
    before, after = policy._encoded(windows), policy._encoded(windows_of(moved, policy.tokens, 0, 4, 4))
    for lag in (0, 1):
        torch.testing.assert_close(before[Token(Field.SUBGOAL, lag)][:, 1:], after[Token(Field.SUBGOAL, lag)][:, 1:])


def test_the_encoding_of_a_subgoal_can_be_undone() -> None:
    states, present = torch.randn(2, 5, 3).unbind()
    for target in ("state", "difference"):
        policy = policy_with("hdm", target=target)
        torch.testing.assert_close(policy.subgoal_states(policy.encode_subgoal(states, present), present), states)


@both_methods
@every_mode
def test_acting_with_differences_equals_the_training_forward(method: str, decode: str) -> None:
    policy, fields = policy_with(method, "linear", "difference"), random_fields(3, STEPS)
    expected = act_by_training_forward(policy, fields, STEPS, decode)
    np.testing.assert_allclose(act(policy, fields, STEPS, decode), expected, rtol=0, atol=5e-6)


def test_only_policies_with_differences_have_their_statistics_and_damaged_ones_are_refused() -> None:
    assert set(tiny_policy("hdm").state_dict()) == set(policy_with("hdm", "linear").state_dict())
    policy = policy_with("hdm", target="difference")
    stored = snapshot(policy)
    torch.testing.assert_close(stored.build().difference_std, policy.difference_std)
    stored.weights["difference_std"][0] = 0.0
    with pytest.raises(CheckpointError, match="'difference_std' has a deviation that is not positive"):
        stored.check_finite()


def test_statistics_of_differences_are_those_of_labels_less_states() -> None:
    episodes = episodes_of([5, 7], rewards=list(range(12)))
    differences = (episodes.observations[subgoal_rows(episodes)] - episodes.observations).astype(np.float64)
    found = Statistics.of_differences(episodes)
    np.testing.assert_allclose(found.mean, differences.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.std, differences.std(axis=0) + 1e-6, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", ["state", "difference"])
@every_mode
def test_a_policy_that_is_given_its_own_subgoals_acts_as_with_its_own(target: SubgoalTarget, decode: str) -> None:
    policy, fields = policy_with("hdm", "linear", target), random_fields(3, STEPS)
    own = make_decoder(policy, decode, 3)
    actions, subgoals = [], []
    for t in range(STEPS):
        actions.append(own.decide(*observed(fields, t)))
        subgoals.append(torch.as_tensor(own.subgoals()))
    told = make_decoder(policy, decode, 3, source=Given(torch.stack(subgoals, dim=1)))
    for t in range(STEPS):
        np.testing.assert_allclose(told.decide(*observed(fields, t)), actions[t], rtol=0, atol=2e-5)
        np.testing.assert_allclose(told.subgoals(), subgoals[t], rtol=0, atol=2e-5)


@every_mode
def test_given_subgoals_change_the_actions_and_follow_the_rows_that_are_kept(decode: str) -> None:
    policy, fields = policy_with("hdt"), random_fields(3, 6)
    given = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(1))
    whole, part = (make_decoder(policy, decode, 3, source=Given(given)) for _ in range(2))
    for t in range(6):
        observations, returns = observed(fields, t)
        expected = whole.decide(observations, returns)
        if t == 3:
            part.keep(np.array([2, 0]))
        rows = [0, 1, 2] if t < 3 else [2, 0]
        np.testing.assert_allclose(part.decide(observations[rows], returns[rows]), expected[rows], rtol=0, atol=5e-6)
        np.testing.assert_allclose(part.subgoals(), given[rows, t], rtol=0, atol=2e-6)
    assert np.abs(act(policy, fields, 6, decode)[:, 5] - expected).max() > 1e-3


def test_a_method_without_subgoals_cannot_be_given_any() -> None:
    with pytest.raises(SpecError, match="method 'dm' has no subgoals, so it cannot be given any"):
        make_decoder(tiny_policy("dm"), "window", 3, source=Given(torch.zeros(3, 1, 3)))
