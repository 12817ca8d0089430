from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmray.models import SCAN_BACKENDS, default_scan_backend, selective_scan
from dmray.models.scan_numba import numba_recurrence
from dmray.models.scan_torch import loop_recurrence, stored_recurrence

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # u, delta, A, B, C, D, z, delta_bias
sizes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**16))


def inputs_of(size: tuple[int, int, int, int, int], dtype: torch.dtype) -> Inputs:
    windows, length, channels, states, seed = size
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    u, delta, z = (normal(windows, length, channels) for _ in range(3))
    B, C = (normal(windows, length, states) for _ in range(2))
    return u, delta, -normal(channels, states).exp(), B, C, normal(channels), z, normal(channels)


def forward_and_gradients(backend: str, inputs: Inputs, softplus: bool = True) -> list[Tensor]:
    u, delta, A, B, C, D, z, bias = leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = SCAN_BACKENDS[backend](u, delta, A, B, C, D, z, bias, softplus)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


@given(sizes, st.booleans())
@settings(max_examples=25, deadline=None)
def test_stored_states_give_the_loops_outputs_and_gradients(
    size: tuple[int, int, int, int, int], softplus: bool
) -> None:
    inputs = inputs_of(size, torch.float64)
    expected = forward_and_gradients("loop", inputs, softplus)
    for ours, loop in zip(forward_and_gradients("torch", inputs, softplus), expected, strict=True):
        torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-10)


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_the_compiled_scan_gives_the_loops_outputs_and_gradients(size: tuple[int, int, int, int, int]) -> None:
    exact = forward_and_gradients("loop", inputs_of(size, torch.float64))
    ours = forward_and_gradients("numba", inputs_of(size, torch.float32))
    for single, double in zip(ours, exact, strict=True):
        scale = max(1.0, float(double.abs().max()))
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5 * scale)


def test_the_stored_scan_passes_gradcheck() -> None:
    leaves = [x.requires_grad_() for x in inputs_of((2, 5, 3, 2, 0), torch.float64)]
    assert torch.autograd.gradcheck(partial(SCAN_BACKENDS["torch"], delta_softplus=True), leaves)


def test_the_scan_is_the_recurrence_written_in_the_paper() -> None:
    u, delta, A, B, C, D, z, bias = inputs_of((2, 6, 3, 4, 1), torch.float64)
    step = torch.log1p((delta + bias).exp())
    y = SCAN_BACKENDS["loop"](u, delta, A, B, C, D, z, bias, True)
    for b in range(2):
        for d in range(3):
            h = torch.zeros(4, dtype=torch.float64)
            for t in range(6):
                h = (step[b, t, d] * A[d]).exp() * h + step[b, t, d] * B[b, t] * u[b, t, d]
                expected = (C[b, t] @ h + D[d] * u[b, t, d]) * z[b, t, d] * torch.sigmoid(z[b, t, d])
                torch.testing.assert_close(y[b, t, d], expected, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_compiled_scan_gives_the_same_numbers() -> None:
    u, delta, A, B, C, *_ = inputs_of((3, 7, 5, 4, 2), torch.float32)
    delta = delta.exp()
    y = numba_recurrence(u, delta, A, B, C)
    tracked = numba_recurrence(u.clone().requires_grad_(), delta, A, B, C)
    assert tracked.requires_grad
    assert not y.requires_grad
    torch.testing.assert_close(y, tracked.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("exponent", [-1e4, -88.5, -86.9, -20.0, -1.0, -1e-3, -1e-7, 0.0])
def test_the_compiled_exponential_is_exact_to_single_precision(exponent: float) -> None:
    # Two tokens, one channel, one state: y_1 = exp(delta_1 A) * delta_0 u_0 with u_1 = 0.
    u, delta = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[1.0], [1.0]]])
    one = torch.ones(1, 2, 1)
    y = numba_recurrence(u, delta, torch.tensor([[exponent]]), one, one)
    expected = torch.tensor(exponent, dtype=torch.float64).exp()
    assert float(y[0, 1, 0]) == pytest.approx(float(expected), rel=3e-7, abs=2e-38)


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_the_compiled_scan_does_not_hide_what_is_not_a_number(place: int) -> None:
    inputs = list(inputs_of((1, 4, 8, 4, 3), torch.float32)[:5])
    inputs[1] = inputs[1].exp()
    inputs[place].view(-1)[0] = torch.nan
    assert torch.isnan(numba_recurrence(*inputs)).any()


def test_recurrences_take_strided_inputs() -> None:
    u, delta, A, B, C, *_ = inputs_of((2, 5, 4, 3, 4), torch.float32)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (u, delta.exp(), A, B, C)]
    expected = loop_recurrence(*strided)
    for recurrence in (stored_recurrence, numba_recurrence):
        torch.testing.assert_close(recurrence(*strided), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_inputs_are_scanned_in_the_dtype_of_the_rates() -> None:
    u, delta, A, B, C, D, z, bias = inputs_of((2, 5, 4, 3, 5), torch.float32)
    u, delta, B, C, z = (x.bfloat16() for x in (u, delta, B, C, z))
    y = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True)
    u, delta, B, C, z = (x.float() for x in (u, delta, B, C, z))
    widened = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, widened.bfloat16())


def test_every_default_is_in_the_table_and_cpu_training_is_compiled() -> None:
    assert default_scan_backend(torch.device("cpu"), torch.float32) == "numba"
    for device in ("cpu", "cuda"):
        for dtype in (torch.float32, torch.float64):
            assert default_scan_backend(torch.device(device), dtype) in SCAN_BACKENDS
