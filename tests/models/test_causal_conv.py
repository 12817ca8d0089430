from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmray.models.causal_conv import causal_conv_silu, reference_conv_silu
from dmray.models.conv_numba import numba_conv_silu

sizes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70), st.integers(1, 5))


def inputs_of(size: tuple[int, int, int, int]) -> list[Tensor]:
    windows, length, channels, taps = size
    torch.manual_seed(0)
    return [torch.randn(windows, length, channels), torch.randn(channels, 1, taps), torch.randn(channels)]


def outputs_and_gradients(function: object, inputs: list[Tensor]) -> list[Tensor]:
    assert callable(function)
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_the_compiled_convolution_gives_pytorchs_outputs_and_gradients(size: tuple[int, int, int, int]) -> None:
    inputs = inputs_of(size)
    exact = outputs_and_gradients(reference_conv_silu, [x.double() for x in inputs])
    for ours, expected in zip(outputs_and_gradients(numba_conv_silu, inputs), exact, strict=True):
        assert ours.shape == expected.shape
        assert float((ours - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-9


def test_a_slice_of_channels_is_not_copied() -> None:
    whole, weight, bias = torch.randn(2, 7, 128), torch.randn(64, 1, 4), torch.randn(64)
    for part in (whole[..., :64], whole[..., 64:], whole[:, ::2, :64], whole[:, :1, :64], whole[..., ::2]):
        torch.testing.assert_close(numba_conv_silu(part, weight, bias), numba_conv_silu(part.clone(), weight, bias))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_in_an_input_gives_nan_in_the_output(place: int) -> None:
    inputs = inputs_of((1, 4, 8, 4))
    inputs[place].view(-1)[-1] = torch.nan
    y = numba_conv_silu(*inputs)
    assert y.isnan().any()
    assert not y.isnan().all()


def test_half_precision_inputs_give_half_precision_outputs() -> None:
    x, weight, bias = inputs_of((2, 5, 64, 4))
    y = causal_conv_silu(x.bfloat16(), weight, bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, numba_conv_silu(x.bfloat16().float(), weight, bias).bfloat16())
