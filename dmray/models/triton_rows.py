"""What the Triton kernels share: rows of tensors that are parts of wider ones, and groups of windows.

Shapes: W windows, L tokens, G groups of W / G windows.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def rows_of(*tensors: Tensor) -> tuple[list[Tensor], list[int]]:
    """Tensors (W, L, ...) and the distance between their tokens, copied only where tokens are not evenly spaced.

    A part of the last dimension of a contiguous tensor, as `chunk` and `split` return it, is not copied.
    """
    even = [x.stride(2) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)) for x in tensors]
    rows = [x if is_even else x.contiguous() for x, is_even in zip(tensors, even, strict=True)]
    return rows, [x.stride(1) for x in rows]


def sum_of_groups(parts: Tensor, groups: int) -> Tensor:
    """(W, ...) -> (G, ...): the sums over the windows of each group."""
    return parts.view(groups, -1, *parts.shape[1:]).sum(1)


def to_groups(seats: int, tensors: Sequence[Tensor], in_dims: Sequence[int | None]) -> list[Tensor]:
    """What `torch.func.vmap` gives to an operator's rule, with the seats as further windows or groups in front."""
    each = [
        x.movedim(dim, 0) if dim is not None else x.expand(seats, *x.shape)
        for x, dim in zip(tensors, in_dims, strict=False)
    ]
    return [x.flatten(0, 1) for x in each]
