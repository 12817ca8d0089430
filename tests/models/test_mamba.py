from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmray.models import Mamba, MambaMixer
from dmray.specs import ModelSpec

TINY = ModelSpec(d_model=8, n_layer=2, d_state=3)


def test_the_mixers_parameters_are_named_and_shaped_as_in_mamba_ssm() -> None:
    shapes = {name: tuple(value.shape) for name, value in MambaMixer(ModelSpec(d_model=128)).state_dict().items()}
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


def test_the_mixer_computes_what_the_paper_writes() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(TINY).double()
    hidden = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(hidden), slow_mixer(mixer, hidden), rtol=1e-10, atol=1e-10)


def slow_mixer(mixer: MambaMixer, hidden: Tensor) -> Tensor:
    """Token by token; D inner channels, N states."""
    x, z = (hidden @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    A = -mixer.A_log.exp()
    rows = []
    for window, gate in zip(x, z, strict=True):
        h, outputs = torch.zeros_like(A), []
        for t in range(len(window)):
            taps = [(mixer.conv1d.weight[:, 0, 3 - j], window[t - j]) for j in range(4) if t >= j]
            u = F.silu(torch.stack([w * v for w, v in taps]).sum(0) + mixer.conv1d.get_parameter("bias"))
            low_rank, B, C = torch.split(mixer.x_proj.weight @ u, list(mixer.splits))
            delta = F.softplus(mixer.dt_proj(low_rank))
            h = (delta[:, None] * A).exp() * h + (delta * u)[:, None] * B
            outputs.append((h @ C + mixer.D * u) * F.silu(gate[t]))
        rows.append(torch.stack(outputs))
    return torch.stack(rows) @ mixer.out_proj.weight.T


def test_step_sizes_start_between_a_thousandth_and_a_tenth() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(ModelSpec(d_model=256))
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
    spec = ModelSpec(d_model=64, n_layer=3)
    weight = dict(Mamba(spec).layers[0].named_parameters())[name]
    bound = 1 / math.sqrt(weight.shape[1]) / math.sqrt(2 * 3)  # of PyTorch's own initialisation, scaled
    assert 0.98 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize(("width", "hidden"), [(8, 128), (128, 128), (129, 256)])
def test_the_gated_mlp_is_as_wide_as_the_model_in_whole_128s(width: int, hidden: int) -> None:
    model = Mamba(ModelSpec(d_model=width, n_layer=1))
    assert tuple(model.get_parameter("layers.0.mlp.fc1.weight").shape) == (2 * hidden, width)
    assert tuple(model.get_parameter("layers.0.mlp.fc2.weight").shape) == (width, hidden)


@given(st.integers(1, 12), st.data())
@settings(max_examples=20, deadline=None)
def test_an_output_sees_no_later_token_and_all_before(length: int, data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = Mamba(TINY)
    tokens = torch.randn(2, length, 8)
    place = data.draw(st.integers(0, length - 1))
    changed = tokens.clone()
    changed[:, place] += 1.0
    difference = (model(tokens) - model(changed)).detach().abs().amax((0, 2))
    assert float(difference[:place].sum()) == 0.0
    assert float(difference[place:].min()) > 0.0


def test_under_autocast_the_residual_path_stays_float32() -> None:
    model, seen = Mamba(TINY), []
    for module in (*model.layers, model.norm_f):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(2, 5, 8))
    assert seen == [torch.float32] * 3
