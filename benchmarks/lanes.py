"""Milliseconds of a DM training step and of its decisions, with `dmray.models.lanes` and with plain numba loops.

    python benchmarks/lanes.py [--quick] [--rounds N] [--json FILE]

Shows whether the vector type of `dmray/models/lanes.py`, which builds on numba's internals, pays. The plain loops below
do the work of the same three modules (scan, convolution, acting) with the same polynomials in the same order, in
ordinary numba over float32 arrays: an inner loop over `BLOCK` channels, which LLVM turns into vector instructions by
itself. All else (matrix products, norms, sampling, optimizer) is the same code. Width 128, 6 layers, K 20, batches of
16, hopper's sizes (11 and 3), one thread, end to end, in turns, medians over the rounds. Both sides are first compared:
the losses of training steps and the actions of decisions agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from decode import MODES, decision
from numba import njit
from rich.console import Console
from rich.table import Table
from timing import in_turns, medians_ms, write_record
from training_step import BATCH, Ours

from dmray.models import conv_numba, lanes, scan_numba, steps_numba

CONTEXT, EPISODES = 20, 16
BLOCK = 128  # channels of an inner loop; with fewer, each loop's checks cost more; with more, states leave the L1 cache
CHUNK = scan_numba._CHUNK
SETTINGS: dict[str, Any] = {**lanes.FAST, "nogil": True}
INLINED: dict[str, Any] = {**lanes.FAST, "inline": "always"}

_ZERO, _ONE, _TWO, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
_LN_2, _LOG2_E = np.float32(0.693147180559945309), lanes.LOG2_E
_LEAST, _MOST, _BIAS, _FIELD = np.float32(-127), np.float32(128), np.float32(127), np.int32(23)
_P0, _P1, _P2, _P3, _P4 = lanes._P0, lanes._P1, lanes._P2, lanes._P3, lanes._P4
_T1, _T2, _T3, _T4, _T5, _T6 = lanes._T1, lanes._T2, lanes._T3, lanes._T4, lanes._T5, lanes._T6


@njit(**INLINED)
def exp2(x):  # type: ignore[no-untyped-def]
    x = min(max(x, _LEAST), _MOST)
    k = np.floor(x + _HALF)
    f = x - k
    power = np.int32(np.int32(k + _BIAS) << _FIELD).view(np.float32)  # 2^k: the bits of the exponent field
    return (((((f * _P4 + _P3) * f + _P2) * f + _P1) * f + _P0) * f + _ONE) * power


@njit(**INLINED)
def sigmoid(x):  # type: ignore[no-untyped-def]
    return _ONE / (exp2(x * -_LOG2_E) + _ONE)


@njit(**INLINED)
def softplus(x):  # type: ignore[no-untyped-def]
    positive = max(x, _ZERO)
    e = exp2((x - positive * _TWO) * _LOG2_E)
    s = e / (e + _TWO)
    q = s * s
    return positive + ((((((q * _T6 + _T5) * q + _T4) * q + _T3) * q + _T2) * q + _T1) * q + _ONE) * s * _TWO


@njit(**INLINED)
def block_of(numbers, start):  # type: ignore[no-untyped-def]
    """`BLOCK` numbers: indices from 0 on, of which LLVM sees that they are not negative."""
    return numbers[start : start + BLOCK]


@njit(**INLINED)
def row_of(rows, token, first):  # type: ignore[no-untyped-def]
    return block_of(rows.numbers, token * rows.stride + first)


@njit(**INLINED)
def enter(layer, token, first, step, entering, out):  # type: ignore[no-untyped-def]
    """The step size, what it lets in, and the skip connection."""
    u, delta = row_of(layer.u, token, first), row_of(layer.delta, token, first)
    bias, skip = block_of(layer.bias, first), block_of(layer.D, first)
    if layer.soft:
        for i in range(BLOCK):
            step[i] = softplus(delta[i] + bias[i])
    else:
        for i in range(BLOCK):
            step[i] = delta[i] + bias[i]
    for i in range(BLOCK):
        entering[i] = step[i] * u[i]
        out[i] = skip[i] * u[i]


@njit(**SETTINGS)
def scan_forward(layer, keep, y, states):  # type: ignore[no-untyped-def]
    windows, length, channels, size = layer.sizes
    B, C = layer.B, layer.C
    state = np.empty(size * BLOCK, np.float32)
    step, entering, out = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    chunks = (length - 1) // CHUNK + 1
    for b in range(windows):
        for first in range(0, channels, BLOCK):
            state[:] = _ZERO
            for t in range(length):
                token = b * length + t
                if keep and t % CHUNK == 0:
                    kept = ((b * chunks + t // CHUNK) * channels + first) * size
                    states[kept : kept + size * BLOCK] = state
                enter(layer, token, first, step, entering, out)
                for n in range(size):
                    into, of = B.numbers[token * B.stride + n], C.numbers[token * C.stride + n]
                    rates, h = block_of(layer.A, first * size + n * BLOCK), block_of(state, n * BLOCK)
                    for i in range(BLOCK):
                        h[i] = exp2(step[i] * rates[i]) * h[i] + entering[i] * into
                        out[i] += h[i] * of
                gates, shown = row_of(layer.z, token, first), block_of(y, token * channels + first)
                for i in range(BLOCK):
                    shown[i] = out[i] * gates[i] * sigmoid(gates[i])


@njit(**SETTINGS)
def scan_backward(layer, states, grad_y, grads):  # type: ignore[no-untyped-def]
    windows, length, channels, size = layer.sizes
    block, chunks = size * BLOCK, (length - 1) // CHUNK + 1
    decays, inner = np.empty(CHUNK * block, np.float32), np.empty((CHUNK + 1) * block, np.float32)
    steps, opening = np.empty(CHUNK * BLOCK, np.float32), np.empty(CHUNK * BLOCK, np.float32)
    carried = np.empty(channels * size, np.float32)
    grads.B[:] = _ZERO
    grads.C[:] = _ZERO
    for b in range(windows):
        carried[:] = _ZERO
        for chunk in range(chunks - 1, -1, -1):
            start, tokens = b * length + chunk * CHUNK, min(CHUNK, length - chunk * CHUNK)
            for first in range(0, channels, BLOCK):
                kept = ((b * chunks + chunk) * channels + first) * size
                inner[:block] = states[kept : kept + block]
                _again(layer, start, tokens, first, grad_y, grads, decays, inner, steps, opening)
                _back(layer, start, tokens, first, grads, decays, inner, steps, opening, carried)


@njit(**SETTINGS)
def _again(layer, start, tokens, first, grad_y, grads, decays, inner, steps, opening):  # type: ignore[no-untyped-def]
    """A chunk's forward pass, keeping its states and decays, and back through its gates."""
    _, _, channels, size = layer.sizes
    B, C = layer.B, layer.C
    entering, out, block = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), size * BLOCK
    for k in range(tokens):
        token, step = start + k, block_of(steps, k * BLOCK)
        enter(layer, token, first, step, entering, out)
        for n in range(size):
            into, of = B.numbers[token * B.stride + n], C.numbers[token * C.stride + n]
            place = k * block + n * BLOCK
            rates, decay = block_of(layer.A, first * size + n * BLOCK), block_of(decays, place)
            before, after = block_of(inner, place), block_of(inner, place + block)
            for i in range(BLOCK):
                decay[i] = exp2(step[i] * rates[i])
                after[i] = decay[i] * before[i] + entering[i] * into
                out[i] += after[i] * of
        gates, grad_rows = row_of(layer.z, token, first), row_of(grad_y, token, first)
        grad_gates, open_grads = block_of(grads.z, token * channels + first), block_of(opening, k * BLOCK)
        for i in range(BLOCK):
            opened = sigmoid(gates[i])
            grad_gates[i] = grad_rows[i] * out[i] * opened * (gates[i] * (_ONE - opened) + _ONE)
            open_grads[i] = grad_rows[i] * gates[i] * opened


@njit(**SETTINGS)
def _back(layer, start, tokens, first, grads, decays, inner, steps, opening, carried):  # type: ignore[no-untyped-def]
    """Back through the recurrence over a chunk."""
    _, _, channels, size = layer.sizes
    B, C, block = layer.B, layer.C, size * BLOCK
    bias, skip = block_of(layer.bias, first), block_of(layer.D, first)
    grad_bias, grad_skip = block_of(grads.bias, first), block_of(grads.D, first)
    entering = np.empty(BLOCK, np.float32)
    grad_entering, grad_step = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for k in range(tokens - 1, -1, -1):
        token = start + k
        step, grad, u = block_of(steps, k * BLOCK), block_of(opening, k * BLOCK), row_of(layer.u, token, first)
        for i in range(BLOCK):
            entering[i] = step[i] * u[i]
            grad_entering[i] = _ZERO
            grad_step[i] = _ZERO
        for n in range(size):
            into, of = B.numbers[token * B.stride + n], C.numbers[token * C.stride + n]
            place, across = k * block + n * BLOCK, first * size + n * BLOCK
            before, after, decay = block_of(inner, place), block_of(inner, place + block), block_of(decays, place)
            rates, grad_rates, carry = block_of(layer.A, across), block_of(grads.A, across), block_of(carried, across)
            sum_in, sum_out = _ZERO, _ZERO
            for i in range(BLOCK):
                g = carry[i] + grad[i] * of
                sum_out += grad[i] * after[i]
                sum_in += g * entering[i]
                grad_entering[i] += g * into
                g = g * decay[i]
                carry[i] = g
                g = g * before[i]
                grad_step[i] += g * rates[i]
                grad_rates[i] += g * step[i]
            grads.B[token * size + n] += sum_in
            grads.C[token * size + n] += sum_out
        delta, place = row_of(layer.delta, token, first), token * channels + first
        grad_u, grad_delta = block_of(grads.u, place), block_of(grads.delta, place)
        for i in range(BLOCK):
            grad_u[i] = grad_entering[i] * step[i] + grad[i] * skip[i]
            grad_step[i] = grad_step[i] * _LN_2 + grad_entering[i] * u[i]
        if layer.soft:
            for i in range(BLOCK):
                grad_step[i] *= sigmoid(delta[i] + bias[i])
        for i in range(BLOCK):
            grad_delta[i] = grad_step[i]
            grad_bias[i] += grad_step[i]
            grad_skip[i] += grad[i] * u[i]


@njit(**INLINED)
def convolve_into(total, start, begin, x, stride, taps):  # type: ignore[no-untyped-def]
    """Add the taps from `begin` on; tap j reads the row `start + j` of x."""
    channels = len(total)
    for j in range(begin, len(taps) // channels):
        row, tap = x[(start + j) * stride :], taps[j * channels :]
        for i in range(channels):
            total[i] += tap[i] * row[i]


@njit(**SETTINGS)
def conv_forward(sizes, x, taps, bias, y):  # type: ignore[no-untyped-def]
    windows, length, channels, num_taps = sizes
    total = np.empty(channels, np.float32)
    for b in range(windows):
        for t in range(length):
            total[:] = bias
            start = b * length + t - num_taps + 1
            convolve_into(total, start, max(0, num_taps - 1 - t), x.numbers, x.stride, taps)
            row = y[(b * length + t) * channels :]
            for i in range(channels):
                row[i] = total[i] * sigmoid(total[i])


@njit(**SETTINGS)
def conv_backward(sizes, grad_y, x, taps, bias, grad_x, grad_taps, grad_bias):  # type: ignore[no-untyped-def]
    windows, length, channels, num_taps = sizes
    total = np.empty(channels, np.float32)
    for b in range(windows):
        for t in range(length):
            total[:] = bias
            start, begin = b * length + t - num_taps + 1, max(0, num_taps - 1 - t)
            convolve_into(total, start, begin, x.numbers, x.stride, taps)
            grads = grad_y.numbers[(b * length + t) * grad_y.stride :]
            for i in range(channels):
                opened = sigmoid(total[i])
                total[i] = grads[i] * opened * (total[i] * (_ONE - opened) + _ONE)
                grad_bias[i] += total[i]
            for j in range(begin, num_taps):
                row, grad_row = x.numbers[(start + j) * x.stride :], grad_x[(start + j) * channels :]
                tap, grad_tap = taps[j * channels :], grad_taps[j * channels :]
                for i in range(channels):
                    grad_tap[i] += total[i] * row[i]
                    grad_row[i] += total[i] * tap[i]


@njit(**SETTINGS)
def steps_convolve(sizes, both, taps, filters, bias, x, gone):  # type: ignore[no-untyped-def]
    rows, tokens, num_taps, channels = sizes
    filters, before = filters.reshape(-1), num_taps - 1
    entered, total = np.empty((before + tokens) * channels, np.float32), np.empty(channels, np.float32)
    for b in range(rows):
        absent = gone[2] if gone[0] <= b < gone[1] else 0
        kept = b * before * channels
        entered[: before * channels] = taps[kept : kept + before * channels]
        for t in range(tokens):
            place, given = (before + t) * channels, (b * tokens + t) * 2 * channels
            if t < absent:
                entered[place : place + channels] = _ZERO
            else:
                entered[place : place + channels] = both[given : given + channels]
        for t in range(tokens):
            row = x[(b * tokens + t) * channels :]
            if t < absent:
                row[:channels] = _ZERO
            else:
                total[:] = bias
                convolve_into(total, t, 0, entered, channels, filters)
                for i in range(channels):
                    row[i] = total[i] * sigmoid(total[i])
        taps[kept : kept + before * channels] = entered[tokens * channels :]


@njit(**SETTINGS)
def steps_recur(batch, rates, bias, skip, both, mixed, steps, hidden, x):  # type: ignore[no-untyped-def]
    rows, tokens = batch
    size, channels = rates.shape
    rates = rates.reshape(-1)
    step, entering, out = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    for b in range(rows):
        for t in range(tokens):
            token = b * tokens + t
            row, steps_row = x[token * channels :], steps[token * channels :]
            for i in range(channels):
                step[i] = softplus(steps_row[i] + bias[i])
                entering[i] = step[i] * row[i]
                out[i] = skip[i] * row[i]
            for n in range(size):
                into, of = mixed[token, n], mixed[token, size + n]
                rate, h = rates[n * channels :], hidden[(b * size + n) * channels :]
                for i in range(channels):
                    h[i] = exp2(step[i] * rate[i]) * h[i] + entering[i] * into
                    out[i] += h[i] * of
            gates = both[token * 2 * channels + channels :]
            for i in range(channels):
                row[i] = out[i] * gates[i] * sigmoid(gates[i])


@njit(**SETTINGS)
def steps_gate(opened, gated):  # type: ignore[no-untyped-def]
    rows, width = gated.shape
    opened, gated = opened.reshape(-1), gated.reshape(-1)
    for row in range(rows):
        values, gates = opened[row * 2 * width :], opened[row * 2 * width + width :]
        into = gated[row * width :]
        for i in range(width):
            into[i] = values[i] * gates[i] * sigmoid(gates[i])


PLAIN: Mapping[ModuleType, Mapping[str, Any]] = {
    scan_numba: {
        "_forward": scan_forward,
        "_backward": scan_backward,
        "LANES": BLOCK,
    },  # LANES: the layout of the rates
    conv_numba: {"_forward": conv_forward, "_backward": conv_backward},
    steps_numba: {"_convolve": steps_convolve, "_recur": steps_recur, "_gate": steps_gate},
}
OURS = {module: {name: getattr(module, name) for name in names} for module, names in PLAIN.items()}


@contextmanager
def plain_loops() -> Iterator[None]:
    """Put the plain loops in the places of those with lanes."""
    _put(PLAIN)
    try:
        yield
    finally:
        _put(OURS)


def _put(loops: Mapping[ModuleType, Mapping[str, Any]]) -> None:
    for module, names in loops.items():
        for name, value in names.items():
            setattr(module, name, value)


def with_plain_loops(build: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """The case that `build` makes, built and run with the plain loops."""
    with plain_loops():
        case = build()

    def run() -> Any:
        with plain_loops():
            return case()

    return run


def training_step() -> Callable[[], torch.Tensor]:
    """One optimizer step; the losses of the policy's stages before it."""
    ours = Ours("dm", CONTEXT)
    return lambda: ours.trainer.step().stage_losses


def check(build: Callable[[], Callable[[], Any]], what: str) -> None:
    """Both kinds of loops give the same numbers, step after step, up to float32 rounding."""
    with_lanes, plain = build(), with_plain_loops(build)
    for _ in range(3):
        np.testing.assert_allclose(np.asarray(plain()), np.asarray(with_lanes()), rtol=2e-4, atol=2e-5, err_msg=what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if options.quick else options.rounds
    builds: dict[str, Callable[[], Callable[[], Any]]] = {
        "training step": training_step,
        **{
            f"decision, {mode}": partial(decision, "dm", mode, CONTEXT, EPISODES, max_timesteps=1_000_000)
            for mode in MODES
        },
    }
    table = Table(title=f"DM, K {CONTEXT}, 1 thread, ms, medians of {rounds}", box=None)
    for heading in ("", "lanes", "plain numba", "plain / lanes"):
        table.add_column(heading, justify="right" if heading else "left")
    results = []
    for name, build in builds.items():
        check(build, name)
        cases = {"lanes": build(), "plain numba": with_plain_loops(build)}
        seconds = in_turns(cases, rounds, turn_s=0.0 if options.quick else 0.5)
        ms = medians_ms(seconds)
        results.append({"what": name, "ms": ms, "all_s": seconds})
        table.add_row(name, *(f"{value:.2f}" for value in ms.values()), f"{ms['plain numba'] / ms['lanes']:.2f}")
    Console().print(table)
    settings = {"d_model": 128, "n_layer": 6, "context_length": CONTEXT, "batch_size": BATCH, "episodes": EPISODES}
    write_record(options.json, {**settings, "rounds": rounds, "lanes": lanes.LANES, "block": BLOCK}, results)


if __name__ == "__main__":
    main()
