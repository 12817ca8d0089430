from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dmray.datasets import Windows
from dmray.errors import CheckpointError, SpecError
from dmray.fields import Field
from dmray.methods import ActionInput
from dmray.policies import SequencePolicy, from_authors
from dmray.specs import MethodName
from tests.golden import make_golden
from tests.policies.windows import PAPER, windows_of

Golden = dict[str, np.ndarray]
Networks = dict[str, dict[str, Tensor]]
every_method = pytest.mark.parametrize("method", PAPER)


def golden(method: MethodName) -> Golden:
    with np.load(Path(make_golden.__file__).parent / f"{method}.npz") as file:
        return dict(file)


def networks(method: MethodName) -> Networks:
    found: Networks = {}
    for key, value in golden(method).items():
        kind, _, rest = key.partition("/")
        if kind == "weights":
            stage, name = rest.split("/")
            found.setdefault(stage, {})[name] = torch.from_numpy(value).float()
    return found


def loaded(method: MethodName, weights: Networks, action_input: ActionInput = "paper") -> SequencePolicy:
    held = golden(method)
    policy = from_authors(
        method,
        weights,
        n_head=make_golden.CASES[method].heads or None,
        action_input=action_input,
        action_limit=make_golden.ACTION_LIMIT,
    )
    policy.set_statistics(held["inputs/mean"], held["inputs/std"])
    return policy


def windows(policy: SequencePolicy, held: Golden, dtype: torch.dtype) -> Windows:
    fields = {field: torch.from_numpy(held[f"inputs/{field}"]).to(dtype) for field in Field}
    first, length = make_golden.FIRST, make_golden.LENGTH - make_golden.FIRST
    return windows_of(fields, policy.tokens, first, length, length)


@every_method
def test_golden_files_are_what_the_script_makes(method: MethodName) -> None:
    held, made = golden(method), make_golden.make(method)
    assert held.keys() == made.keys()
    for key, value in made.items():
        tolerance = 1e-12 if key.startswith("outputs") else 0.0  # exp and products differ in the last bit by machine
        np.testing.assert_allclose(held[key], value, rtol=0, atol=tolerance)
        assert held[key].dtype == value.dtype


@every_method
@pytest.mark.parametrize("action_input", ["paper", "dt"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_with_the_authors_weights_we_compute_the_published_formulas(
    method: MethodName, action_input: ActionInput, dtype: torch.dtype, tolerance: float
) -> None:
    held, policy = golden(method), loaded(method, networks(method), action_input).to(dtype)
    predicted = policy.predict(windows(policy, held, dtype))
    for stage, ours in zip(policy.stage_names, predicted, strict=True):
        expected = torch.from_numpy(held[f"outputs/{action_input}/{stage}"]).to(dtype)
        torch.testing.assert_close(ours.detach(), expected, rtol=0, atol=tolerance)


def test_golden_files_differ_by_action_input() -> None:
    held = golden("dt")
    assert np.abs(held["outputs/paper/action"] - held["outputs/dt/action"]).max() > 0.01


@every_method
def test_sizes_are_read_from_the_weights(method: MethodName) -> None:
    case, recipe = make_golden.CASES[method], loaded(method, networks(method)).recipe
    model, shape = recipe.model, recipe.shape
    assert (model.d_model, model.n_layer) == (case.d_model, case.n_layer)
    assert (shape.observation_dim, shape.action_dim) == (make_golden.STATES, make_golden.ACTIONS)
    assert shape.action_limit == make_golden.ACTION_LIMIT
    if case.heads:
        assert (model.n_head, shape.max_timesteps) == (case.heads, make_golden.TIMESTEPS)
    else:
        assert (model.d_state, model.d_conv, model.expand) == (case.d_state, case.d_conv, case.expand)


def test_settings_that_are_not_in_the_weights_default_to_the_published_ones() -> None:
    recipe = from_authors("dt", networks("dt")).recipe
    assert (getattr(recipe.model, "n_head"), recipe.model.context_length, recipe.action_input) == (1, 20, "paper")  # noqa: B009
    assert (recipe.shape.action_limit, recipe.return_scale) == (1.0, 1000.0)


def test_a_policy_of_the_authors_weights_is_ready_to_act_and_shares_no_memory_with_them() -> None:
    weights = networks("dm")
    state = torch.get_rng_state()
    policy = from_authors("dm", weights)
    assert not policy.training
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        policy.get_parameter("stages.0.head.bias").add_(1.0)
    assert torch.equal(weights["action"]["predict_action.0.bias"], networks("dm")["action"]["predict_action.0.bias"])


UNREAD = [
    ("dt", "action", "transformer.wte.weight"),
    ("dt", "action", "transformer.h.0.attn.bias"),
    ("dt", "action", "transformer.h.1.attn.masked_bias"),
    ("dt", "action", "predict_state.weight"),
    ("dt", "action", "predict_return.bias"),
    ("hdt", "subgoal", "embed_return.weight"),
    ("hdt", "action", "transformer.h.1.attn.bias"),
]


@pytest.mark.parametrize(("method", "stage", "name"), UNREAD)
def test_weights_that_do_not_affect_actions_are_ignored(method: MethodName, stage: str, name: str) -> None:
    weights = networks(method)
    weights[stage][name] = torch.full((1, 1), torch.nan)
    for ours, plain in zip(
        loaded(method, weights).parameters(), loaded(method, networks(method)).parameters(), strict=True
    ):
        assert torch.equal(ours, plain)


def test_an_unknown_weight_is_an_error_with_the_most_similar_name() -> None:
    weights = networks("hdm")
    weights["subgoal"]["backbone.layers.1.mixer.A_logs"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"hdm, subgoal: unknown '.*A_logs', did you mean '.*layers\.1.*A_log'"):
        from_authors("hdm", weights)


@pytest.mark.parametrize("name", ["embed_state.weight", "embed_action.bias", "backbone.layers.1.mixer.D"])
def test_a_missing_weight_is_an_error(name: str) -> None:
    weights = networks("dm")
    del weights["action"][name]
    with pytest.raises(CheckpointError, match=f"dm, action: '{name}' is missing; the most similar given name is '.+'"):
        from_authors("dm", weights)


@pytest.mark.parametrize(
    ("name", "shape", "right"),
    [
        ("transformer.h.0.mlp.c_fc.weight", (80, 20), "(20, 80)"),  # a linear layer's, not GPT-2's
        ("embed_action.bias", (19,), "(20,)"),
        ("embed_state.weight", (20,), "2 axes"),
    ],
)
def test_a_wrong_shape_is_an_error_with_the_right_shape(name: str, shape: tuple[int, ...], right: str) -> None:
    weights = networks("dt")
    weights["action"][name] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match="has shape") as caught:
        from_authors("dt", weights)
    assert name in str(caught.value)
    assert right in str(caught.value)


def test_stages_are_named_as_the_policy_names_them() -> None:
    weights = networks("hdm")
    with pytest.raises(CheckpointError, match="hdm: unknown 'actions', did you mean 'action'"):
        from_authors("hdm", {"subgoal": weights["subgoal"], "actions": weights["action"]})
    with pytest.raises(CheckpointError, match="hdm: 'subgoal' is missing"):
        from_authors("hdm", {"action": weights["action"]})


def test_networks_of_different_sizes_are_an_error() -> None:
    mixed = {"subgoal": networks("hdm")["subgoal"], "action": networks("dm")["action"]}
    with pytest.raises(CheckpointError, match="hdm, action: d_state is 6, but 16 in 'hdm, subgoal'"):
        from_authors("hdm", mixed)


def test_an_unknown_method_is_an_error_with_the_most_similar_name() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'hdm'"):
        from_authors("hdms", {})  # type: ignore[arg-type]


def test_weights_of_another_kind_are_refused_by_name() -> None:
    weights = networks("dm")
    name = "embed_state.weight"
    value = weights["action"][name]
    odd: list[tuple[object, str]] = [
        (value.bool(), "has dtype torch.bool"),
        (value.int(), "has dtype torch.int32"),
        (value.to(torch.complex64), "has dtype torch.complex64"),
        (value.clone().fill_(torch.nan), "is not finite"),
        (value.double() * 1e300, "is not finite"),
        (value.tolist(), "is a list, but must be a tensor"),
        (value[:0], "must have"),
    ]
    for changed, problem in odd:
        with pytest.raises(CheckpointError, match=rf"dm, action: .*{problem}"):
            from_authors("dm", {"action": {**weights["action"], name: changed}})  # type: ignore[dict-item]


def test_layers_that_are_numbered_with_a_gap_are_refused_before_any_is_built() -> None:
    weights = networks("dm")["action"]
    more = {name.replace("layers.0.", "layers.99999."): value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"layers .*99999 are given"):
        from_authors("dm", {"action": {**weights, **more}})


@pytest.mark.parametrize("name", ["n_head", "activation", "return_scale"])
def test_a_setting_that_the_method_does_not_have_is_an_error(name: str) -> None:
    value = {"n_head": 1, "activation": "relu", "return_scale": 1000.0}[name]
    with pytest.raises(SpecError, match=f"^{name} .*: method 'dm' has no such setting; leave it out$"):
        from_authors("dm", networks("dm"), **{name: value})  # type: ignore[arg-type]
    with_returns = name == "return_scale"
    from_authors("dm+r" if with_returns else "dt", networks("dm+r" if with_returns else "dt"), **{name: value})  # type: ignore[arg-type]


def test_odd_arguments_are_errors_that_name_them() -> None:
    weights = networks("dt")
    for given in (None, [], {"action": None}, {"action": {1: torch.zeros(1)}}):
        with pytest.raises(CheckpointError):
            from_authors("dt", given)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="n_head 7 does not divide d_model"):
        from_authors("dt", weights, n_head=7)
    for name, value in (("n_head", 0), ("context_length", "5"), ("action_limit", float("nan")), ("return_scale", 0)):
        with pytest.raises(SpecError, match=name):
            from_authors("dt", weights, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1).expand(2**20, 2**10), torch.eye(3).to_sparse(), torch.zeros(3, device="meta")],
)
def test_a_weight_without_a_number_for_each_element_is_refused(value: Tensor) -> None:
    weights = networks("dm")
    stage = next(iter(weights))
    weights[stage]["embed_ln.weight"] = value
    with pytest.raises(CheckpointError, match=r"'embed_ln\.weight' .*: not a number in memory for each element"):
        loaded("dm", weights)


def test_a_network_of_no_width_is_refused() -> None:
    weights = networks("dm")
    for stage in weights.values():
        stage["embed_ln.weight"] = torch.zeros(0)
    with pytest.raises(CheckpointError, match="d_model"):
        loaded("dm", weights)
