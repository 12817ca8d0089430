"""The decode modes against the training forward on windows that begin where the acting state began."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmray.fields import Field
from dmray.policies import SequencePolicy, make_decoder
from dmray.policies.state_decoder import RestartSchedule
from dmray.specs import MethodName
from tests.policies.windows import METHODS, SHAPE, Fields, random_fields, tiny_policy, windows_of

STEPS = SHAPE.max_timesteps
MODES = ("window", "stream:1", "stream:2", "stream:3", "stream:4", "recurrent")
every_method = pytest.mark.parametrize("method", METHODS)


def first_seen(mode: str, context: int, timestep: int) -> int:
    """The first timestep that the decision at `timestep` sees, told from each state's life, step by step."""
    if mode == "window":
        return max(0, timestep - context + 1)
    if mode == "recurrent":
        return 0
    states = int(mode.removeprefix("stream:"))
    begun = [0] + [context * 10**6] * (states - 1)  # not begun yet
    for t in range(timestep + 1):
        for state in range(states):
            if t >= state * context // states and (t - state * context // states) % context == 0:
                begun[state] = t
    return min(begun)


def act(policy: SequencePolicy, mode: str, fields: Fields, steps: int = STEPS) -> np.ndarray:
    """Actions (E, steps, A) for the observations and returns-to-go of `fields`."""
    decoder = make_decoder(policy, mode, len(fields[Field.STATE]))
    states, targets = fields[Field.STATE].numpy(), fields[Field.RETURN_TO_GO].numpy()
    return np.stack([decoder.decide(states[:, t], targets[:, t, 0]) for t in range(steps)], axis=1)


@torch.no_grad()
def act_by_predict(policy: SequencePolicy, mode: str, given: Fields, steps: int = STEPS) -> np.ndarray:
    """The same by `predict` on right-padded windows; what is not decided yet holds noise."""
    fields = {name: values.clone().to(policy.state_mean.dtype) for name, values in given.items()}
    for t in range(steps):
        first = first_seen(mode, policy.recipe.model.context_length, t)
        for stage, layout in enumerate(policy.method.stages):
            windows = windows_of(fields, policy.tokens, first, STEPS, t - first + 1)
            decided = policy.predict(windows)[stage][:, t - first]
            if layout.target is Field.SUBGOAL:
                decided = decided * policy.state_std + policy.state_mean
            fields[layout.target][:, t] = decided
    return fields[Field.ACTION][:, :steps].numpy()


@given(st.sampled_from(METHODS), st.integers(1, 7), st.data())
@settings(max_examples=25, deadline=None)
def test_all_modes_agree_in_double_precision(method: MethodName, context: int, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["recurrent", *(f"stream:{m}" for m in range(1, context + 1))]))
    sizes = {"d_model": 8, "n_head": 2, "context_length": context, "d_state": 2, "d_conv": 3}
    layers, action_input = data.draw(st.integers(1, 2)), data.draw(st.sampled_from(["paper", "dt"]))
    policy = tiny_policy(method, action_input, n_layer=layers, **sizes).double()
    fields = random_fields(2, STEPS, seed=data.draw(st.integers(0, 99)))
    np.testing.assert_allclose(act(policy, mode, fields), act_by_predict(policy, mode, fields), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["dt", "dm", "dm+r"])  # the others decide their subgoals while acting
def test_recurrent_is_one_forward_over_the_whole_episode(method: MethodName) -> None:
    policy, fields = tiny_policy(method), random_fields(3, STEPS)
    fields[Field.ACTION][:] = torch.from_numpy(act(policy, "recurrent", fields))
    with torch.no_grad():
        (predicted,) = policy.predict(windows_of(fields, policy.tokens, 0, STEPS, STEPS))
    torch.testing.assert_close(predicted, fields[Field.ACTION], rtol=0, atol=1e-5)


@every_method
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_rows_may_be_dropped_at_any_timestep(method: MethodName, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["stream:1", "stream:2", "stream:3", "recurrent"]))
    policy, fields = tiny_policy(method, data.draw(st.sampled_from(["paper", "dt"]))), random_fields(5, STEPS)
    expected = act(policy, mode, fields)
    decoder, live = make_decoder(policy, mode, 5), np.arange(5)
    states, targets = fields[Field.STATE].numpy(), fields[Field.RETURN_TO_GO].numpy()
    for t in range(STEPS):
        actions = decoder.decide(states[live, t], targets[live, t, 0])
        np.testing.assert_allclose(actions, expected[live, t], rtol=0, atol=5e-6)
        kept = data.draw(st.sets(st.integers(0, len(live) - 1), min_size=max(1, len(live) - 1)))
        if len(kept) < len(live):
            rows = np.array(sorted(kept), dtype=np.int64)
            decoder.keep(rows)
            live = live[rows]


@every_method
@pytest.mark.parametrize("mode", MODES)
def test_a_timestep_takes_one_call_of_each_stages_backbone(
    method: MethodName, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, calls = tiny_policy(method), []
    kind, name = type(policy.stages[0].backbone), "last" if mode == "window" else "advance"
    call = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *given: calls.append(1) or call(*given))
    act(policy, mode, random_fields(2, STEPS))
    assert len(calls) == STEPS * len(policy.stages)


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_the_oldest_state_has_seen_almost_one_period_and_never_more(period: int, data: st.DataObject) -> None:
    states = data.draw(st.integers(1, period))
    schedule, begun = RestartSchedule(period, states), [0] * states
    for t in range(3 * period):
        if (state := schedule.restarted(t)) is not None:
            begun[state] = t
        oldest = schedule.oldest(t)
        seen = t - begun[oldest] + 1
        assert begun[oldest] == min(begun)
        assert seen == t + 1 if t < period else period - -(-period // states) + 1 <= seen <= period
        assert t - begun[oldest] + 1 == t - first_seen(f"stream:{states}", period, t) + 1
