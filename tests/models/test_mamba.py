from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmray.models import MambaConfig
from dmray.models.configs import Evolution
from dmray.models.mamba import Mamba
from dmray.models.mamba_block import MambaMixer

TINY = MambaConfig(d_model=8, n_layer=2, d_state=3)


def test_the_mixers_parameters_are_named_and_shaped_as_in_mamba_ssm() -> None:
    shapes = {name: tuple(value.shape) for name, value in MambaMixer(MambaConfig(d_model=128)).state_dict().items()}
    assert shapes == {
        "A_log": (256, 16),
        "D": (256,),
        "in_proj.weight": (512, 128),
        "conv1d.weight": (256, 1, 4),
        "conv1d.bias": (256,),
        "x_proj.weight": (40, 256),
        "dt_proj.weight": (256, 8),
        "dt_proj.bias": (256,),
        "out_proj.weight": (128, 256),
    }


SIZES = [
    MambaConfig(d_model=8, d_state=3),
    MambaConfig(d_model=40, d_state=2, d_conv=3, expand=1),  # the step size has rank 3
    MambaConfig(d_model=17, d_state=16, d_conv=1, expand=3),
]


@pytest.mark.parametrize("spec", SIZES)
def test_with_weights_of_mamba_ssm_the_mixer_is_the_step_by_step_recurrence(spec: MambaConfig) -> None:
    weights = mamba_ssm_weights(spec)
    hidden = torch.randn(2, 7, spec.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mixer = MambaMixer(spec).double()
    mixer.load_state_dict(weights)  # strict: these names and no others
    ours = output_and_gradients(mixer, dict(mixer.named_parameters()), hidden)
    exact = output_and_gradients(partial(step_by_step, weights), weights, hidden)
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        assert float(value.abs().max()) > 1e-4, name
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-10)


def mamba_ssm_weights(spec: MambaConfig) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of `mamba_ssm.Mamba`."""
    draw = torch.Generator().manual_seed(0)
    inner, rank, states = spec.expand * spec.d_model, -(-spec.d_model // 16), spec.d_state
    shapes = {
        "A_log": (inner, states),
        "D": (inner,),
        "in_proj.weight": (2 * inner, spec.d_model),
        "conv1d.weight": (inner, 1, spec.d_conv),
        "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * states, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "out_proj.weight": (spec.d_model, inner),
    }
    weights = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: value / value[0].numel() ** 0.5 for name, value in weights.items()}


def step_by_step(weights: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """One token after the other: the last inputs of the convolution, (B, I, taps), and a state, (B, I, N), are kept."""
    taps, rates = weights["conv1d.weight"][:, 0], -weights["A_log"].exp()
    (inner, states), rank = rates.shape, weights["dt_proj.weight"].shape[1]
    recent, state = hidden.new_zeros(len(hidden), *taps.shape), hidden.new_zeros(len(hidden), inner, states)
    outputs = []
    for token in hidden.unbind(1):
        projected = token @ weights["in_proj.weight"].T
        x, gate = projected[:, :inner], projected[:, inner:]
        recent = torch.cat([recent[:, :, 1:], x[:, :, None]], dim=2)
        x = (recent * taps).sum(2) + weights["conv1d.bias"]
        x = x * torch.sigmoid(x)
        selected = x @ weights["x_proj.weight"].T
        enters, read = selected[:, rank : rank + states], selected[:, rank + states :]
        step = (1 + (selected[:, :rank] @ weights["dt_proj.weight"].T + weights["dt_proj.bias"]).exp()).log()
        state = (step[:, :, None] * rates).exp() * state + (step * x)[:, :, None] * enters[:, None]
        y = (state * read[:, None]).sum(2) + weights["D"] * x
        outputs.append(y * gate * torch.sigmoid(gate) @ weights["out_proj.weight"].T)
    return torch.stack(outputs, dim=1)


def output_and_gradients(
    function: Callable[[Tensor], Tensor], weights: dict[str, Tensor], hidden: Tensor
) -> dict[str, Tensor]:
    """The output, and gradients of a sum that weighs each of its numbers differently."""
    leaves = {"hidden": hidden.clone().requires_grad_(), **{k: v.requires_grad_() for k, v in weights.items()}}
    output = function(leaves["hidden"])
    weighed = (output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)).sum()
    gradients = torch.autograd.grad(weighed, list(leaves.values()))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


EVOLUTIONS = get_args(Evolution)


@pytest.mark.parametrize("evolution", EVOLUTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_each_evolution_is_the_recurrence_with_its_rates_and_step_sizes(
    evolution: Evolution, dtype: torch.dtype, tolerance: float
) -> None:
    spec = MambaConfig(d_model=8, d_state=3, evolution=evolution)
    hidden = torch.randn(2, 7, spec.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mixer, weights = MambaMixer(spec).to(dtype), mamba_ssm_weights(spec)
    given = dict(weights)
    match evolution:
        case "frozen":
            given["A_log"] = weights["A_log"] = mixer.state_dict()["A_log"].double()
        case "shared":
            given["A_log"] = weights["A_log"][:, :1]
            weights["A_log"] = given["A_log"].repeat(1, 3)
        case "no-decay":
            weights["A_log"] = torch.full_like(weights["A_log"], -math.inf)  # A = 0
        case "memoryless":
            weights["A_log"] = torch.full_like(weights["A_log"], math.inf)  # the state is 0 at the next token
        case "constant-step":
            given["x_proj.weight"] = weights["x_proj.weight"][1:]  # the step size has rank 1
            weights["dt_proj.weight"] = torch.zeros_like(weights["dt_proj.weight"])
    mixer.load_state_dict({name: given[name] for name in mixer.state_dict()})
    with torch.no_grad():
        ours = mixer(hidden.to(dtype)).double()
    torch.testing.assert_close(ours, step_by_step(weights, hidden), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("evolution", EVOLUTIONS[1:])
def test_what_an_evolution_does_not_use_is_no_parameter_and_all_others_start_as_with_learned(
    evolution: Evolution,
) -> None:
    made = {}
    for name in ("learned", evolution):
        torch.manual_seed(0)
        made[name] = MambaMixer(MambaConfig(d_model=32, d_state=3, evolution=name))
    names = {name: set(dict(mixer.named_parameters())) for name, mixer in made.items()}
    missing = {"constant-step": {"dt_proj.weight"}, "shared": set[str]()}.get(evolution, {"A_log"})
    assert names["learned"] - names[evolution] == missing
    stored, learned = made[evolution].state_dict(), made["learned"].state_dict()
    assert set(learned) - set(stored) == (missing if evolution != "frozen" else set())
    for name, value in stored.items():
        expected = learned[name][2:] if (evolution, name) == ("constant-step", "x_proj.weight") else learned[name]
        if (evolution, name) != ("shared", "A_log"):
            assert torch.equal(value, expected), name


def test_a_shared_rate_starts_at_minus_one_to_minus_n_over_the_channels() -> None:
    mixer = MambaMixer(MambaConfig(d_model=4, d_state=3, evolution="shared"))
    rates = mixer.rates()
    torch.testing.assert_close(rates[:, 0], -torch.tensor([1.0, 2, 3, 1, 2, 3, 1, 2]))
    assert torch.equal(rates, rates[:, :1].repeat(1, 3))


@pytest.mark.parametrize(("d_conv", "reach"), [(1, 0), (4, 3)])
def test_without_memory_an_output_depends_on_the_tokens_of_the_convolution_only(d_conv: int, reach: int) -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(MambaConfig(d_model=8, d_state=3, d_conv=d_conv, evolution="memoryless"))
    tokens = torch.randn(1, 9, 8)
    changed = tokens.clone()
    changed[:, 2] += 1.0
    differs = (mixer(tokens) - mixer(changed)).detach().abs().amax((0, 2)) > 0
    assert differs.nonzero().flatten().tolist() == list(range(2, 3 + reach))


def test_step_sizes_start_between_a_thousandth_and_a_tenth() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(MambaConfig(d_model=256))
    steps = F.softplus(mixer.dt_proj.bias.detach())
    assert 1e-3 * 0.999 < float(steps.min()) < 2e-3
    assert 5e-2 < float(steps.max()) < 1e-1 * 1.001
    assert float(steps.log().mean()) == pytest.approx(math.log(1e-2), abs=0.2)  # log-uniform
    assert float(mixer.dt_proj.weight.detach().abs().max()) <= 16**-0.5


def test_decay_rates_start_at_minus_one_to_minus_n_and_skips_at_one() -> None:
    mixer = MambaMixer(TINY)
    torch.testing.assert_close(mixer.A_log.exp(), torch.tensor([1.0, 2.0, 3.0]).repeat(16, 1))
    assert torch.equal(mixer.D.detach(), torch.ones(16))


@pytest.mark.parametrize("name", ["mixer.out_proj.weight", "mlp.fc2.weight"])
def test_residual_projections_start_smaller_by_the_root_of_their_number(name: str) -> None:
    torch.manual_seed(0)
    spec = MambaConfig(d_model=64, n_layer=3)
    weight = dict(Mamba(spec).layers[0].named_parameters())[name]
    bound = 1 / math.sqrt(weight.shape[1]) / math.sqrt(2 * 3)  # of PyTorch's own initialisation, scaled
    assert 0.98 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize(("width", "hidden"), [(8, 128), (128, 128), (129, 256)])
def test_the_gated_mlps_width_is_d_model_rounded_up_to_a_multiple_of_128(width: int, hidden: int) -> None:
    model = Mamba(MambaConfig(d_model=width, n_layer=1))
    assert tuple(model.get_parameter("layers.0.mlp.fc1.weight").shape) == (2 * hidden, width)
    assert tuple(model.get_parameter("layers.0.mlp.fc2.weight").shape) == (width, hidden)


@given(st.integers(1, 12), st.data())
@settings(max_examples=20, deadline=None)
def test_an_output_depends_on_all_earlier_tokens_and_on_no_later_one(length: int, data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = Mamba(TINY)
    tokens = torch.randn(2, length, 8)
    place = data.draw(st.integers(0, length - 1))
    changed = tokens.clone()
    changed[:, place] += 1.0
    difference = (model(tokens) - model(changed)).detach().abs().amax((0, 2))
    assert float(difference[:place].sum()) == 0.0
    assert float(difference[place:].min()) > 0.0


@pytest.mark.parametrize("evolution", EVOLUTIONS)
def test_under_autocast_the_residual_path_stays_float32(evolution: Evolution) -> None:
    model, seen = Mamba(TINY.model_copy(update={"evolution": evolution})), []
    for module in (*model.layers, model.norm_f):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(2, 5, 8))
    assert seen == [torch.float32] * 3
