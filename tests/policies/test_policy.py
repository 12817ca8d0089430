from __future__ import annotations

import pickle

import pytest
import torch

from dmray.fields import Field, Token
from dmray.methods import ActionInput
from dmray.models import MambaConfig
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy, snapshot
from dmray.specs import MethodName
from tests.policies.windows import METHODS, SHAPE, config_of, random_fields, tiny_policy, windows_of

every_method = pytest.mark.parametrize("method", METHODS)
every_input = pytest.mark.parametrize("action_input", ["paper", "dt"])


def test_hdm_on_hopper_has_the_papers_number_of_parameters() -> None:
    shape = PolicyShape(observation_dim=11, action_dim=3, action_limit=1.0, max_timesteps=1000)
    policy = SequencePolicy(PolicyRecipe("hdm", MambaConfig(), "paper", shape, return_scale=1000.0))
    counts = [sum(p.numel() for p in stage) for stage in policy.stage_parameters()]
    assert dict(zip(policy.stage_names, counts, strict=True)) == {"subgoal": 1_000_203, "action": 999_683}


@every_method
def test_stages_share_no_parameter_and_have_them_all(method: MethodName) -> None:
    policy = tiny_policy(method)
    ours = [id(parameter) for stage in policy.stage_parameters() for parameter in stage]
    assert sorted(ours) == sorted(id(parameter) for parameter in policy.parameters())


@every_method
def test_only_transformers_have_a_timestep_embedding(method: MethodName) -> None:
    named = [name for name, _ in tiny_policy(method).named_parameters() if "timesteps" in name]
    assert bool(named) == (method in ("dt", "hdt", "dt-r"))


@every_method
def test_initial_weights_depend_on_recipe_and_seed(method: MethodName) -> None:
    recipe = tiny_policy(method).recipe
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.flatten() for p in SequencePolicy(recipe).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_return_conditioned_methods_take_a_target() -> None:
    assert [method for method in METHODS if tiny_policy(method).takes_target] == ["dt", "dm+r"]


@every_method
@every_input
def test_windows_need_the_stages_tokens_and_labels(method: MethodName, action_input: ActionInput) -> None:
    names = tiny_policy(method, action_input).tokens
    assert Token(Field.ACTION) in names
    assert (Token(Field.ACTION, 1) in names) == (action_input == "paper" and method != "bc")
    assert (Token(Field.SUBGOAL) in names) == (method in ("hdt", "hdm"))


@every_method
@every_input
@pytest.mark.parametrize("field", [Field.ACTION, Field.SUBGOAL, Field.STATE, Field.RETURN_TO_GO])
def test_a_prediction_does_not_depend_on_later_timesteps_or_its_target(
    method: MethodName, action_input: ActionInput, field: Field
) -> None:
    policy = tiny_policy(method, action_input)
    fields, place = random_fields(2, 6), 2
    changed = {name: values.clone() for name, values in fields.items()}
    changed[field][:, place] += 1.0
    before, after = (policy.predict(windows_of(f, policy.tokens, 0, 6, 6)) for f in (fields, changed))
    for name, old, new in zip(policy.stage_names, before, after, strict=True):
        difference = (old - new).detach().abs().amax((0, 2))
        assert float(difference[:place].max()) < 1e-6
        if name == field.value:
            assert float(difference[place]) < 1e-6
        used = any(token.field is field for token in policy.method.stages[policy.stage_names.index(name)].tokens)
        remembered = used and method != "bc"
        assert bool(difference[place + 2] > 1e-5) == remembered
        if field is Field.ACTION and action_input == "paper":  # the published quirk: not even the action before
            assert float(difference[place + 1]) < 1e-6


@every_method
def test_padding_changes_neither_losses_nor_valid_predictions(method: MethodName) -> None:
    policy, fields = tiny_policy(method), random_fields(3, 4)
    padded = windows_of(fields, policy.tokens, 0, 7, 4)
    bare = windows_of(fields, policy.tokens, 0, 4, 4)
    torch.testing.assert_close(policy.stage_losses(padded), policy.stage_losses(bare), rtol=1e-6, atol=1e-6)
    for long, short in zip(policy.predict(padded), policy.predict(bare), strict=True):
        torch.testing.assert_close(long[:, :4], short, rtol=0, atol=2e-6)


@every_method
def test_a_batch_equals_its_single_rows(method: MethodName) -> None:
    policy, fields = tiny_policy(method), random_fields(4, 5)
    together = policy.predict(windows_of(fields, policy.tokens, 0, 5, 5))
    for row in range(4):
        one = {name: values[row : row + 1] for name, values in fields.items()}
        for batch, single in zip(together, policy.predict(windows_of(one, policy.tokens, 0, 5, 5)), strict=True):
            torch.testing.assert_close(batch[row : row + 1], single, rtol=0, atol=2e-6)


def test_losses_are_mean_squares_over_valid_timesteps_in_encoded_units() -> None:
    policy, fields = tiny_policy("hdm"), random_fields(3, 4)
    windows = windows_of(fields, policy.tokens, 0, 6, 4)
    subgoal, action = policy.predict(windows)
    labels = (fields[Field.SUBGOAL] - torch.tensor([0.5, -1.0, 2.0])) / torch.tensor([0.5, 2.0, 1.5])
    expected = torch.stack(
        [(subgoal[:, :4] - labels).square().mean(), (action[:, :4] - fields[Field.ACTION]).square().mean()]
    )
    torch.testing.assert_close(policy.stage_losses(windows), expected, rtol=1e-6, atol=1e-6)


def test_encoding_is_z_scores_for_states_and_subgoals_and_a_scale_for_returns() -> None:
    policy, raw = tiny_policy("hdm"), torch.tensor([1.5, 1.0, 2.0])
    for field in (Field.STATE, Field.SUBGOAL):
        torch.testing.assert_close(policy.encode(field, raw), torch.tensor([2.0, 1.0, 0.0]))
    torch.testing.assert_close(policy.encode(Field.RETURN_TO_GO, torch.tensor([25.0])), torch.tensor([2.5]))
    assert policy.encode(Field.ACTION, raw) is raw


def test_actions_are_within_the_limit_and_can_reach_it() -> None:
    policy = tiny_policy("dm")
    with torch.no_grad():
        policy.stages[0].get_parameter("head.bias").fill_(20.0)
    (action,) = policy.predict(windows_of(random_fields(2, 3), policy.tokens, 0, 3, 3))
    torch.testing.assert_close(action, torch.full_like(action, SHAPE.action_limit))


@pytest.mark.parametrize(("method", "squashed"), [("hdm", True), ("hdt", False)])
def test_only_hdms_subgoals_are_squashed(method: MethodName, squashed: bool) -> None:
    policy = tiny_policy(method)
    with torch.no_grad():
        policy.stages[0].get_parameter("head.bias").fill_(20.0)
    subgoal, _ = policy.predict(windows_of(random_fields(2, 3), policy.tokens, 0, 3, 3))
    assert bool((subgoal.abs() <= 1.0).all()) == squashed


def test_statistics_of_another_task_are_an_error() -> None:
    with pytest.raises(AssertionError, match="another task"):
        tiny_policy("dm").set_statistics(torch.zeros(1), torch.ones(1))


@every_method
def test_a_pickled_snapshot_builds_the_same_policy(method: MethodName) -> None:
    policy = tiny_policy(method)
    windows = windows_of(random_fields(2, 4), policy.tokens, 0, 4, 4)
    built = pickle.loads(pickle.dumps(snapshot(policy))).build()
    assert not built.training
    for ours, theirs in zip(policy.predict(windows), built.predict(windows), strict=True):
        assert torch.equal(ours, theirs)


def test_a_snapshot_of_read_only_arrays_builds() -> None:
    taken = snapshot(tiny_policy("dm"))  # as Ray's object store hands them out
    for values in taken.weights.values():
        values.flags.writeable = False
    assert taken.build().recipe == taken.recipe


def test_building_a_snapshot_leaves_torchs_rng_alone() -> None:
    weights = snapshot(tiny_policy("dt"))
    before = torch.get_rng_state()
    weights.build()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_snapshot_and_what_it_builds_share_no_memory_with_the_policy() -> None:
    policy = tiny_policy("dm")
    taken = snapshot(policy)
    name = "stages.0.head.bias"
    before = taken.weights[name].copy()
    with torch.no_grad():
        policy.get_parameter(name).add_(1.0)
        taken.build().get_parameter(name).add_(1.0)
    assert (taken.weights[name] == before).all()


def test_biases_around_mamba_start_at_zero_as_the_authors_have_them() -> None:
    recipe = PolicyRecipe("dm", config_of("dm"), "paper", SHAPE, 1.0)
    biases = {name: value for name, value in SequencePolicy(recipe).named_parameters() if name.endswith("bias")}
    around = [value for name, value in biases.items() if "embeddings" in name or "head" in name]
    assert len(around) == 3
    assert all(float(value.detach().abs().max()) == 0.0 for value in around)
