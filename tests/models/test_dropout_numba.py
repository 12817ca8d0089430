from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from torch import Tensor

from dmray.models.dropout_numba import BLOCK, apply_mask, new_masks, numba_dropout, philox

ROWS, WIDTH = 400, 250  # the last block of a row is not full


@njit  # type: ignore[untyped-decorator]
def numbers(counter: int, stream: int, key_0: int, key_1: int) -> tuple[int, int, int, int]:
    return philox(counter, stream, key_0, key_1)  # type: ignore[no-any-return]


def factors(rate: float, stream: int = 0) -> Tensor:
    """The factors on a matrix, from torch's global RNG."""
    mask = new_masks(*[rate] * (stream + 1))[stream]
    return apply_mask(torch.ones(ROWS, WIDTH), mask)[0]


@pytest.mark.parametrize(
    ("counter", "stream", "key", "expected"),
    [
        (0, 0, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, 2**64 - 1, (2**32 - 1, 2**32 - 1), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x85A308D3243F6A88,
            0x0370734413198A2E,
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_gives_the_known_answers_of_random123(
    counter: int, stream: int, key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert numbers(np.uint64(counter), np.uint64(stream), np.uint64(key[0]), np.uint64(key[1])) == expected


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_rate_and_the_others_are_scaled(rate: float) -> None:
    torch.manual_seed(0)
    drawn = torch.stack([factors(rate) for _ in range(5)])
    assert set(drawn.unique().tolist()) == {0.0, float(np.float32(1 / (1 - rate)))}
    deviation = (rate * (1 - rate) / drawn.numel()) ** 0.5
    assert float((drawn == 0).double().mean()) == pytest.approx(rate, abs=4 * deviation)
    by_column = (drawn == 0).double().mean((0, 1))
    assert float((by_column - rate).abs().max()) < 5 * (rate * (1 - rate) / (5 * ROWS)) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_of_neighbours_rows_streams_and_calls_are_independent(rate: float) -> None:
    torch.manual_seed(0)
    first, call, stream = factors(rate), factors(rate), None
    torch.manual_seed(0)
    stream = factors(rate, stream=1)
    pairs = {f"{lag} columns": (first[:, lag:], first[:, :-lag]) for lag in (1, 2, 8, 16, 32, BLOCK)}
    pairs |= {f"{lag} rows": (first[lag:], first[:-lag]) for lag in (1, 2, 4)}
    pairs |= {"calls": (first, call), "streams": (first, stream)}
    for name, (one, other) in pairs.items():
        correlation = float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
        assert abs(correlation) < 4.5 / one.numel() ** 0.5, name
    assert len({row.numpy().tobytes() for row in torch.cat([first, call, stream])}) == 3 * ROWS


@given(st.integers(1, 4), st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_the_backward_pass_has_the_mask_of_the_forward_pass(rows: int, width: int) -> None:
    x = torch.rand(2, rows, width) + 1
    x.requires_grad_()
    y = numba_dropout(x, 0.4)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(x.detach() * grad, y.detach())


def test_torchs_seed_decides_the_masks_and_its_state_continues_them() -> None:
    torch.manual_seed(1)
    drawn = [factors(0.2) for _ in range(2)]
    state = torch.get_rng_state()
    drawn.append(factors(0.2))
    torch.manual_seed(1)
    assert all(torch.equal(factors(0.2), expected) for expected in drawn)
    torch.set_rng_state(state)
    assert torch.equal(factors(0.2), drawn[2])
    torch.manual_seed(2)
    assert not torch.equal(factors(0.2), drawn[0])


def test_without_dropout_nothing_is_drawn_or_copied() -> None:
    x, state = torch.randn(2, 3), torch.get_rng_state()
    assert numba_dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_nan_is_not_dropped() -> None:
    assert numba_dropout(torch.full((4, 70), torch.nan), 0.5).isnan().all()
