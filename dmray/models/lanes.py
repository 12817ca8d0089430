"""Vector instructions for numba's compiled loops: a value of `LANES` float32 numbers.

LLVM vectorizes a plain loop only if it can show that the arrays do not overlap, which it checks at each loop. These
values need no such check. One value occupies several vector registers. With plain numba loops in its place a training
step of DM takes 1.3 times as long and a decision 1.2 to 1.3 times (`benchmarks/lanes.py`, side by side).

Arrays must be flat, contiguous and float32. Offsets count numbers and are not checked against the array's length.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

# four of the registers of AVX-512, of AVX2: enough independent work to fill the pipelines
_AVX512 = bool(get_host_cpu_features().get("avx512f"))
LANES = 64 if _AVX512 else 32
FOLDED = 16  # a sum over lanes is kept in this many numbers until its end: fewer shuffles
# Sums may be reordered. NaN stays NaN, so that a diverged run is noticed. NumPy's division has no branch for zero.
FAST: dict[str, Any] = {"fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}
INLINED: dict[str, Any] = {**FAST, "inline": "always"}

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
LOG2_E = np.float32(1.44269504088896341)
# 2^f = 1 + f p(f) on |f| <= 1/2, fitted for the least largest relative error: 1e-7, with rounding 2e-7
_P0, _P1, _P2 = np.float32(0.69314697758), np.float32(0.24022242083), np.float32(0.05550733745)
_P3, _P4 = np.float32(0.00967151281), np.float32(0.00132647272)
# 1/3, 1/5, ... of the series of log1p(e) = 2 artanh(e / (2 + e)), whose argument is at most 1/3
_T1, _T2, _T3 = np.float32(1 / 3), np.float32(1 / 5), np.float32(1 / 7)
_T4, _T5, _T6 = np.float32(1 / 9), np.float32(1 / 11), np.float32(1 / 13)
_F32, _I32 = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


class Lanes(types.Type):  # type: ignore[misc]
    """The numba type of a value of `LANES` numbers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


lanes = Lanes()


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, element: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), element.as_pointer())


def _spread(builder: Any, number: Any, element: Any = _F32) -> Any:
    vector = ir.VectorType(element, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(_INTS, [0] * LANES))


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, offset: Any) -> Any:
    """`array[offset : offset + LANES]`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _VECTOR)
        return builder.load(address, align=4)

    return lanes(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """`array[offset : offset + LANES] = value`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _VECTOR)
        builder.store(args[2], address, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def fold_into(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Add `value` to the partial sums in `array[offset : offset + FOLDED]`."""
    folded = ir.VectorType(_F32, FOLDED)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], folded)
        total = builder.load(address, align=4)
        for first in range(0, LANES, FOLDED):
            places = ir.Constant(ir.VectorType(_I32, FOLDED), list(range(first, first + FOLDED)))
            total = builder.fadd(total, builder.shuffle_vector(args[2], args[2], places))
        builder.store(total, address, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def spread(typing_context: Any, number: Any) -> Any:
    """`number` (float32) in every lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _spread(builder, args[0])

    return lanes(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def at_least(typing_context: Any, value: Any, bound: Any) -> Any:
    """The maximum of each lane and `bound`; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, bound = args[0], _spread(builder, args[1])
        return builder.select(builder.fcmp_ordered(">", bound, value), bound, value)

    return lanes(lanes, types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _rounded(typing_context: Any, value: Any) -> Any:
    """Each lane's nearest integer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.rint.v{LANES}f32"
        )
        return builder.call(function, args)

    return lanes(lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def _scaled(typing_context: Any, value: Any, exponent: Any) -> Any:
    """value * 2^k for integer k, for values about 1: 0 or almost 0 where k is below -126, infinite above 127."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return (_scaled_by_instruction if _AVX512 else _scaled_by_bits)(builder, *args)

    return lanes(lanes, lanes), generate


def _scaled_by_bits(builder: Any, value: Any, exponent: Any) -> Any:
    bias, most, none, place = (ir.Constant(_INTS, [number] * LANES) for number in (127, 255, 0, 23))
    biased = builder.add(builder.fptosi(exponent, _INTS), bias)
    biased = builder.select(builder.icmp_signed(">", none, biased), none, biased)
    biased = builder.select(builder.icmp_signed("<", most, biased), most, biased)
    return builder.fmul(value, builder.bitcast(builder.shl(biased, place), _VECTOR))


def _scaled_by_instruction(builder: Any, value: Any, exponent: Any) -> Any:
    """AVX-512 has one for it; LLVM has a function for one register."""
    register, mask = ir.VectorType(_F32, 16), ir.IntType(16)
    kind = ir.FunctionType(register, [register, register, register, mask, _I32])
    scale = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.mask.scalef.ps.512")
    parts = []
    for first in range(0, LANES, 16):
        places = ir.Constant(ir.VectorType(_I32, 16), list(range(first, first + 16)))
        given = [builder.shuffle_vector(each, each, places) for each in (value, exponent)]
        parts.append(builder.call(scale, [*given, ir.Constant(register, ir.Undefined), mask(-1), _I32(4)]))
    while len(parts) > 1:
        pairs, width = zip(parts[::2], parts[1::2], strict=True), parts[0].type.count
        places = ir.Constant(ir.VectorType(_I32, 2 * width), list(range(2 * width)))
        parts = [builder.shuffle_vector(left, right, places) for left, right in pairs]
    return parts[0]


def _arithmetic(symbol: Any, instruction: str) -> None:
    """Define `symbol` for two vectors, and for a vector and a number."""

    @type_callable(symbol)  # type: ignore[untyped-decorator]
    def _(context: Any) -> Any:
        def result(left: Any, right: Any) -> Any:
            either = isinstance(left, Lanes) or isinstance(right, Lanes)
            return lanes if either and all(x in (lanes, types.float32) for x in (left, right)) else None

        return result

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = (
            x if isinstance(given, Lanes) else _spread(builder, x)
            for x, given in zip(args, signature.args, strict=True)
        )
        return getattr(builder, instruction)(*vectors)

    for operands in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(symbol, *operands)(generate)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@njit(**INLINED)  # type: ignore[untyped-decorator]
def at(rows: Any, row: Any, first: Any) -> Any:
    """Channels `first` to `first + LANES - 1` of a row of `dmray.models.flat_rows.Rows`."""
    return load(rows.numbers, row * rows.stride + first)


@njit(**INLINED)  # type: ignore[untyped-decorator]
def put(rows: Any, row: Any, first: Any, value: Any) -> None:
    """Write `value` where `at` reads."""
    store(rows.numbers, row * rows.stride + first, value)


@njit(**INLINED)  # type: ignore[untyped-decorator]
def exp2(x: Any) -> Any:
    """2^x; the error relative to the result is at most 2e-7."""
    k = _rounded(x)
    f = x - k
    return _scaled(((((f * _P4 + _P3) * f + _P2) * f + _P1) * f + _P0) * f + _ONE, k)


@njit(**INLINED)  # type: ignore[untyped-decorator]
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _ONE / (exp2(x * -LOG2_E) + _ONE)


@njit(**INLINED)  # type: ignore[untyped-decorator]
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), with small relative error also where the result is small."""
    positive = at_least(x, _ZERO)
    e = exp2((x - positive * _TWO) * LOG2_E)  # of -|x|
    s = e / (e + _TWO)
    q = s * s
    return positive + ((((((q * _T6 + _T5) * q + _T4) * q + _T3) * q + _T2) * q + _T1) * q + _ONE) * s * _TWO
