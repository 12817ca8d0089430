from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmray.errors import SpecError
from dmray.fields import Field
from dmray.methods import METHODS as METHODS_BY_NAME
from dmray.methods import ActionInput
from dmray.policies import make_decoder
from dmray.specs import MethodName
from tests.policies.acting import CONTEXT, STEPS, act, act_by_training_forward, every_mode, first_seen, observed
from tests.policies.windows import METHODS, SHAPE, random_fields, tiny_policy, windows_of

every_method = pytest.mark.parametrize("method", METHODS)
every_input = pytest.mark.parametrize("action_input", ["paper", "dt"])


@every_method
@every_input
@every_mode
def test_acting_equals_the_training_forward_on_the_padded_window(
    method: MethodName, action_input: ActionInput, decode: str
) -> None:
    """Of what the mode has seen: the last K timesteps, those since the oldest state began, or all."""
    policy, fields = tiny_policy(method, action_input), random_fields(3, STEPS)
    expected = act_by_training_forward(policy, fields, STEPS, decode)
    np.testing.assert_allclose(act(policy, fields, STEPS, decode), expected, rtol=0, atol=5e-6)


@every_method
@every_mode
def test_all_modes_agree_within_the_first_window(method: MethodName, decode: str) -> None:
    policy, fields = tiny_policy(method), random_fields(3, STEPS)
    ours, windows = act(policy, fields, STEPS, decode), act(policy, fields, STEPS)
    np.testing.assert_allclose(ours[:, :CONTEXT], windows[:, :CONTEXT], rtol=0, atol=5e-6)
    if method == "bc" or decode in (
        "window",
        f"stream:{CONTEXT}",
    ):  # the oldest of so many states has seen it all
        np.testing.assert_allclose(ours, windows, rtol=0, atol=5e-6)
    else:
        assert np.abs(ours[:, CONTEXT:] - windows[:, CONTEXT:]).max() > 1e-4, "and differ later"


@pytest.mark.parametrize(("streams", "least"), [(1, 1), (2, 3), (4, 4)])
def test_a_streams_context_stays_within_a_part_of_k_and_k(streams: int, least: int) -> None:
    seen = [t - first_seen(f"stream:{streams}", t) + 1 for t in range(CONTEXT, 10 * CONTEXT)]
    assert (min(seen), max(seen)) == (least, CONTEXT)


@pytest.mark.parametrize("method", ["dt", "dm", "dm+r"])  # the others decide their subgoals while acting
def test_one_training_forward_gives_all_decisions_of_the_first_window(method: MethodName) -> None:
    policy, fields = tiny_policy(method), random_fields(3, CONTEXT)
    fields[Field.ACTION][:] = torch.from_numpy(act(policy, fields, CONTEXT))
    with torch.no_grad():
        (predicted,) = policy.predict(windows_of(fields, policy.tokens, 0, CONTEXT, CONTEXT))
    torch.testing.assert_close(predicted, fields[Field.ACTION], rtol=0, atol=5e-6)


@every_method
@every_mode
def test_a_cohort_equals_single_episodes(method: MethodName, decode: str) -> None:
    policy, fields = tiny_policy(method), random_fields(4, STEPS)
    together = act(policy, fields, STEPS, decode)
    for row in range(4):
        alone = act(policy, {name: values[row : row + 1] for name, values in fields.items()}, STEPS, decode)
        np.testing.assert_allclose(together[row : row + 1], alone, rtol=0, atol=5e-6)


@every_method
@pytest.mark.parametrize("decode", ["window", "stream:2", "recurrent"])
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_dropping_rows_does_not_change_the_actions_of_the_others(
    method: MethodName, decode: str, data: st.DataObject
) -> None:
    policy, fields = tiny_policy(method, "dt"), random_fields(5, STEPS)
    expected = act(policy, fields, STEPS, decode)
    decoder, live = make_decoder(policy, decode, 5), np.arange(5)
    for t in range(STEPS):
        states, targets = observed(fields, t)
        actions = decoder.decide(states[live], targets[live])
        np.testing.assert_allclose(actions, expected[live, t], rtol=0, atol=5e-6)
        kept = data.draw(st.sets(st.integers(0, len(live) - 1), min_size=max(1, len(live) - 1)))
        if len(kept) < len(live):
            rows = np.array(sorted(kept), dtype=np.int64)
            decoder.keep(rows)
            live = live[rows]


def test_timesteps_before_the_window_have_no_effect() -> None:
    policy, fields = tiny_policy("dt"), random_fields(2, CONTEXT + 2)
    changed = {name: values.clone() for name, values in fields.items()}
    changed[Field.STATE][:, 0] += 1.0
    before, after = act(policy, fields, CONTEXT), act(policy, changed, CONTEXT)
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-4
    for t in range(CONTEXT, CONTEXT + 2):  # given the same actions, only the window counts
        fields[Field.ACTION][:, :CONTEXT] = changed[Field.ACTION][:, :CONTEXT] = 0.0
        windows = [windows_of(f, policy.tokens, t - CONTEXT + 1, CONTEXT, CONTEXT) for f in (fields, changed)]
        torch.testing.assert_close(*(policy.predict(w)[0] for w in windows), rtol=0, atol=0)


@every_method
def test_only_policies_with_a_target_depend_on_it(method: MethodName) -> None:
    policy, fields = tiny_policy(method), random_fields(2, 3)
    changed = {**fields, Field.RETURN_TO_GO: fields[Field.RETURN_TO_GO] + 20.0}
    assert bool((act(policy, fields, 3) != act(policy, changed, 3)).any()) == policy.takes_target


def test_actions_are_single_precision_rows_for_the_environment() -> None:
    actions = make_decoder(tiny_policy("hdm"), "window", 3).decide(np.zeros((3, 3)), np.zeros(3))
    assert actions.dtype == np.float32
    assert actions.shape == (3, SHAPE.action_dim)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        ("windows", "did you mean 'window'"),
        ("recurent", "did you mean 'recurrent'"),
        ("stream", "for example stream:2"),
        ("stream:0", "for example stream:2"),
        ("stream:2\n", "for example stream:2"),
        ("stream:" + "9" * 5000, "for example stream:2"),
        ("steam:3", "did you mean 'stream:3'"),
        ("steam", "did you mean 'stream:2'"),
        ("window:3", "did you mean 'window'"),
        ("xyz", "known: window, stream:2, recurrent"),
        ("stream:5", r"at most context_length \(4\) states"),
    ],
)
def test_an_unknown_decode_mode_is_an_error_with_the_most_similar_name(decode: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_decoder(tiny_policy("dm"), decode, 1)


@every_mode
def test_acting_in_training_mode_is_an_error(decode: str) -> None:
    with pytest.raises(AssertionError, match="evaluation mode"):
        make_decoder(tiny_policy("dt").train(), decode, 1)


@every_mode
def test_acting_longer_than_max_timesteps_is_an_error(decode: str) -> None:
    policy = tiny_policy("dm")
    decoder = make_decoder(policy, decode, 1)
    for _ in range(SHAPE.max_timesteps):
        decoder.decide(np.zeros((1, 3)), np.zeros(1))
    with pytest.raises(AssertionError, match="longer than max_timesteps"):
        decoder.decide(np.zeros((1, 3)), np.zeros(1))


@every_mode
def test_a_hierarchical_policys_subgoals_can_be_read_in_raw_units(decode: str) -> None:
    """They are what the first stage predicts, and the next decision builds on them."""
    policy, fields = tiny_policy("hdm"), random_fields(3, STEPS)
    decoder = make_decoder(policy, decode, 3)
    decoder.decide(*observed(fields, 0))
    windows = windows_of(fields, policy.tokens, 0, 1, 1)
    with torch.no_grad():
        expected = policy.predict(windows)[0][:, 0] * policy.state_std + policy.state_mean
    np.testing.assert_allclose(decoder.subgoals(), expected, atol=1e-5)


def test_a_policy_of_one_stage_has_no_subgoals() -> None:
    fields = random_fields(2, 1)
    decoder = make_decoder(tiny_policy("dm"), "window", 2)
    decoder.decide(*observed(fields, 0))
    assert decoder.subgoals() is None


@every_method
@every_input
@every_mode
def test_known_actions_replace_decisions(method: MethodName, action_input: ActionInput, decode: str) -> None:
    """A decoder that is shown another one's episode decides its next action, whatever it would have done itself."""
    policy, fields = tiny_policy(method, action_input), random_fields(2, STEPS)
    done = act(policy, fields, STEPS, decode)
    for last in (0, CONTEXT - 1, STEPS - 1):
        decoder = make_decoder(policy, decode, 2)
        for t in range(last):
            np.testing.assert_array_equal(decoder.decide(*observed(fields, t), done[:, t]), done[:, t])
        np.testing.assert_allclose(decoder.decide(*observed(fields, last)), done[:, last], rtol=0, atol=5e-6)
    other = make_decoder(policy, decode, 2)
    other.decide(*observed(fields, 0), done[:, 0] + 3.0)
    other.decide(*observed(fields, 1), done[:, 1])  # what reads the state sees the last action a timestep later
    changes = bool(np.abs(other.decide(*observed(fields, 2)) - done[:, 2]).max() > 1e-6)
    assert changes == METHODS_BY_NAME[method].sees_actions, "they count where actions are among the tokens"


def test_the_first_timestep_matters_only_to_policies_with_timestep_embeddings() -> None:
    for method, matters in (("dt", True), ("dm", False)):
        fields = random_fields(1, 1)
        actions = [make_decoder(tiny_policy(method), "stream:2", 1, t).decide(*observed(fields, 0)) for t in (0, 3)]
        assert (np.abs(actions[0] - actions[1]).max() > 1e-4) == matters
