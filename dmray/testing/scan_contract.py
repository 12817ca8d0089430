"""The tests that every implementation of the selective scan must pass. Subclass the suite and set the backend."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from dmray.models.scan_reference import Scan
from dmray.models.selective_scan import SCAN_BACKENDS, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
# windows, tokens, channels, states: typical sizes, all ones, odd sizes, sizes of more than one block
SIZES = ((2, 40, 64, 16), (1, 1, 1, 1), (3, 7, 5, 3), (2, 17, 70, 2), (1, 33, 130, 5))
TOLERANCE = 1e-5  # relative to each tensor's norm; single precision compared with double


def scan_inputs(size: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Random u, delta, A, B, C, D, z, delta_bias of these sizes. Step sizes are positive also without softplus."""
    windows, length, channels, states = size
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    u, z, delta = (normal(windows, length, channels) for _ in range(3))
    B, C = (normal(windows, length, states) for _ in range(2))
    A, D, bias = -normal(channels, states).exp(), normal(channels), normal(channels).exp()
    return [x.to(dtype) for x in (u, delta.abs(), A, B, C, D, z, bias)]


class ScanContract:
    """Tests `backend` on `device` with inputs of `sizes`."""

    backend: ClassVar[str]
    device: ClassVar[str] = "cpu"
    sizes: ClassVar[tuple[tuple[int, int, int, int], ...]] = SIZES

    def scan(self, inputs: list[Tensor], softplus: bool = True) -> Tensor:
        u, delta, A, B, C, D, z, bias = (x.to(self.device) for x in inputs)
        return selective_scan(u, delta, A, B, C, D, z, bias, softplus, self.backend).to(inputs[0].device)

    @pytest.mark.parametrize("softplus", [True, False])
    def test_outputs_and_all_gradients_are_the_references(self, softplus: bool) -> None:
        for size in self.sizes:
            exact = _outputs_and_gradients(SCAN_BACKENDS["reference"](), scan_inputs(size, torch.float64), softplus)
            ours = self._outputs_and_gradients(scan_inputs(size), softplus)
            for name, single, double in zip(("y", *NAMES), ours, exact, strict=True):
                _close(single, double, f"{name} at {size}")

    def test_rates_may_be_zero(self) -> None:
        inputs = scan_inputs((2, 9, 5, 3))
        inputs[2].zero_()
        double = [x.double() for x in inputs]
        exact = _outputs_and_gradients(SCAN_BACKENDS["reference"](), double, True)
        for name, ours, other in zip(("y", *NAMES), self._outputs_and_gradients(inputs), exact, strict=True):
            _close(ours, other, name)

    def test_without_gradients_the_numbers_are_the_same(self) -> None:
        inputs = scan_inputs((2, 19, 6, 4))
        tracked = self.scan([x.requires_grad_() for x in inputs])
        with torch.no_grad():
            untracked = self.scan(inputs)
        assert tracked.requires_grad
        assert not untracked.requires_grad
        _close(untracked, tracked.detach(), "y")

    @pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
    def test_the_gradient_of_one_input_alone_is_that_of_all(self, place: int) -> None:
        inputs = scan_inputs((2, 9, 5, 3))
        expected = self._outputs_and_gradients(inputs, True)[1 + place]
        alone = [x.clone().requires_grad_(position == place) for position, x in enumerate(inputs)]
        (gradient,) = torch.autograd.grad(_weighted(self.scan(alone)), [alone[place]])
        _close(gradient, expected, NAMES[place])

    def test_strides_do_not_matter(self) -> None:
        inputs = scan_inputs((3, 11, 6, 4))
        strided = [torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0] for x in inputs]
        strided[2] = inputs[2].t().contiguous().t()
        assert not any(x.is_contiguous() for x in strided)
        for ours, expected in zip(
            self._outputs_and_gradients(strided), self._outputs_and_gradients(inputs), strict=True
        ):
            _close(ours, expected, "strided")

    @pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
    def test_nan_in_an_input_gives_nan_in_the_output(self, place: int) -> None:
        inputs = scan_inputs((1, 4, 8, 4), seed=3)
        inputs[place].view(-1)[0] = torch.nan
        y, *gradients = self._outputs_and_gradients(inputs)
        assert y.isnan().any()
        assert any(gradient.isnan().any() for gradient in gradients)
        assert not y[:, :, 4].isnan().all() or place in (
            3,
            4,
        )  # B and C reach every channel; else only the first is lost

    def test_inputs_stay_as_they_are(self) -> None:
        inputs = scan_inputs((2, 9, 5, 3))
        before = [x.clone() for x in inputs]
        self._outputs_and_gradients(inputs)
        assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))

    def test_the_same_inputs_give_the_same_output_bits(self) -> None:
        inputs = scan_inputs((2, 9, 5, 3))
        assert torch.equal(self.scan(inputs), self.scan(inputs))

    def test_an_output_sees_no_later_token_and_no_other_window(self) -> None:
        inputs = scan_inputs((2, 20, 5, 3))
        changed = [x.clone() for x in inputs]
        changed[0][1, 12] += 1.0
        difference = (self.scan(inputs) - self.scan(changed)).abs().amax(-1)
        assert float(difference[0].max()) == 0.0
        assert float(difference[1, :12].max()) == 0.0
        assert float(difference[1, 12:].min()) > 0.0

    def test_half_precision_inputs_are_scanned_in_the_dtype_of_the_rates(self) -> None:
        inputs = scan_inputs((2, 5, 4, 3))
        narrow = [x.bfloat16() if position in (0, 1, 3, 4, 6) else x for position, x in enumerate(inputs)]
        y = self.scan(narrow)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, self.scan([x.float() for x in narrow]).bfloat16())

    def test_an_input_without_tokens_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="at least one token"):
            self.scan(scan_inputs((2, 0, 4, 3)))

    def _outputs_and_gradients(self, inputs: list[Tensor], softplus: bool = True) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        y = self.scan(leaves, softplus)
        return [y.detach(), *torch.autograd.grad(_weighted(y), leaves)]


def _outputs_and_gradients(scan: Scan, inputs: list[Tensor], softplus: bool) -> list[Tensor]:
    u, delta, A, B, C, D, z, bias = leaves = [x.detach().requires_grad_() for x in inputs]
    y = scan(u, delta, A, B, C, D, z, bias, softplus)
    return [y.detach(), *torch.autograd.grad(_weighted(y), leaves)]


def _weighted(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum()


def _close(ours: Tensor, exact: Tensor, what: str) -> None:
    assert ours.shape == exact.shape, what
    error = float((ours.double() - exact.double()).norm())
    bound = TOLERANCE * float(exact.double().norm())
    assert error <= max(bound, 1e-9), f"{what}: off by {error:.1e}, allowed {bound:.1e}"
