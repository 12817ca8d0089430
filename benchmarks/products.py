"""The matrix products of a call alone: the limit that a step or a decision of the same network cannot go below.

A call is run once while PyTorch's products are recorded by their shapes, those of the backward pass included. Then they
run on random matrices, into results that exist already, and nothing else does. Products of one shape share their
matrices, which therefore stay in the caches. Attention is recorded as its two products, each whole, as if nothing were
masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

Factors = tuple[Tensor, Tensor]
# where the two factors are among the arguments
_FACTORS = {"mm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "baddbmm_": (1, 2)}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []  # result, left, right
        self._made: dict[object, tuple[Tensor, Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for left, right in _factors(func.overloadpacket.__name__, args):
            shape = left.shape, left.stride(), right.shape, right.stride()
            if shape not in self._made:
                result = torch.empty(*left.shape[:-1], right.shape[-1])
                self._made[shape] = result, _random_like(left), _random_like(right)
            self.products.append(self._made[shape])
        return func(*args, **(kwargs or {}))


def _factors(name: str, args: Any) -> Iterator[Factors]:
    if name in _FACTORS:
        left, right = _FACTORS[name]
        yield args[left], args[right]
    elif name == "linear":  # seen whole under `torch.inference_mode`, as attention is
        yield args[0].flatten(0, -2), args[1].t()
    elif name == "scaled_dot_product_attention":
        query, key, value = args[:3]
        yield query, key.transpose(-1, -2)
        yield query.new_empty(*query.shape[:-1], key.shape[-2]), value


def bare_products(call: Callable[[], object]) -> Callable[[], None]:
    """A function that computes the products of `call` and nothing else."""
    call()
    with sdpa_kernel(SDPBackend.MATH), _Recorder() as recorder:
        call()
    assert recorder.products, "the call has no products"

    @torch.inference_mode()
    def run() -> None:
        for result, left, right in recorder.products:
            torch.matmul(left, right, out=result)

    return run


def _random_like(given: Tensor) -> Tensor:
    """With the shape and the strides of `given`, so that a transposed matrix stays transposed."""
    return torch.empty_strided(given.shape, given.stride(), dtype=given.dtype).normal_()
