from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmray.models import MambaConfig
from dmray.models.mamba import Mamba
from dmray.models.mamba_block import selective_steps
from dmray.models.scan_reference import reference_scan

CONFIG = MambaConfig(d_model=16, n_layer=2, d_state=4)


def network() -> Mamba:
    torch.manual_seed(0)
    made = Mamba(CONFIG)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return made.eval()


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, CONFIG.d_model, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def in_pieces(made: Mamba, tokens: Tensor, sizes: list[int]) -> Tensor:
    state = made.begin(len(tokens))
    return torch.cat([made.advance(piece, state) for piece in tokens.split(sizes, dim=1)], dim=1)


@pytest.mark.parametrize("d_model", [8, 40, 64])  # inner widths below, between and of whole vectors
@pytest.mark.parametrize("rows", [1, 3])
def test_the_compiled_steps_equal_pytorchs_in_double_precision(d_model: int, rows: int) -> None:
    torch.manual_seed(0)
    made = Mamba(MambaConfig(d_model=d_model, n_layer=2)).eval()
    tokens = torch.randn(rows, 7, d_model)
    compiled, plain = made.begin(rows), made.double().begin(rows)
    assert compiled.compiled is not None
    assert plain.compiled is None
    made.float()
    for piece in tokens.split([2, 1, 4], dim=1):
        with torch.no_grad():
            ours = made.advance(piece, compiled)
            expected = made.double().advance(piece.double(), plain)
        made.float()
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=2e-6)
    for layer, other in zip(compiled.layers, plain.layers, strict=True):
        inner = other.hidden.shape[-1]
        torch.testing.assert_close(layer.hidden[..., :inner].double(), other.hidden, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(layer.taps[..., :inner].double(), other.taps, rtol=1e-5, atol=2e-6)


def test_nan_stays_in_its_row() -> None:
    made, tokens = network(), random_tokens(3, 4)
    tokens[1, 1, 0] = float("nan")
    ours = in_pieces(made, tokens, [1, 1, 2])
    assert ours[1, 1:].isnan().all()
    assert ours[1, 0].isfinite().all()
    assert ours[[0, 2]].isfinite().all()


def test_a_deterministic_run_uses_pytorchs_steps() -> None:
    made = network()
    torch.use_deterministic_algorithms(True)
    try:
        assert made.begin(2).compiled is None
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("rows", "tokens", "channels", "size"), [(1, 1, 1, 1), (2, 3, 33, 4), (3, 2, 64, 16)])
def test_steps_continue_from_the_scans_state(rows: int, tokens: int, channels: int, size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    u, z, delta = (torch.randn(rows, tokens + 2, channels, generator=draw) for _ in range(3))
    B, C = (torch.randn(rows, tokens + 2, size, generator=draw) for _ in range(2))
    A, delta = -torch.rand(channels, size, generator=draw) * 16, delta.exp()
    nothing, opened = torch.zeros(channels), torch.full_like(z, 40.0)  # a gate of 40 multiplies by 40
    expected = reference_scan(u, delta, A, B, C, nothing, opened, nothing, False) / 40.0
    hidden = torch.zeros(rows, size, channels)
    parts = [
        selective_steps(u[:, cut], delta[:, cut], A, B[:, cut], C[:, cut], hidden)
        for cut in (slice(0, 2), slice(2, None))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_a_state_with_another_number_of_rows_is_an_error() -> None:
    made = network()
    with pytest.raises(AssertionError, match="another number of rows"):
        made.advance(random_tokens(3, 1), made.begin(2))


@pytest.mark.parametrize("d_conv", [1, 2, 5])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_advance_equals_forward_for_any_number_of_taps(d_conv: int, dtype: torch.dtype, atol: float) -> None:
    torch.manual_seed(0)
    made = Mamba(MambaConfig(d_model=16, n_layer=1, d_conv=d_conv)).to(dtype).eval()
    tokens = random_tokens(2, 9).to(dtype)
    with torch.no_grad():
        expected = made(tokens)
    torch.testing.assert_close(in_pieces(made, tokens, [1, 1, 2, 5]), expected, rtol=0, atol=atol)
