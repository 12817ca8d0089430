"""Milliseconds of one selective scan by each backend that is here: forward alone, and forward with backward.

    python benchmarks/scan.py [--quick] [--device cuda] [--json FILE]

In one process on one thread, in turns of a tenth of a second, medians over the rounds. `reference` is our step loop in
plain PyTorch, beside it what other packages run where mamba-ssm's kernels do not (`other_scans`), up to
`LONGEST_OF_OTHERS` tokens, beyond which they take minutes. What is not installed is left out, and said. The error is
that of the output against the reference in double precision, relative to its norm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from other_scans import mamba_ssm_reference_scan, transformers_scan
from rich.console import Console
from rich.table import Table
from timing import in_turns, medians_ms, write_record
from torch import Tensor

from dmray.errors import DmrayError
from dmray.models.scan_reference import Scan
from dmray.models.selective_scan import SCAN_BACKENDS
from dmray.testing.scan_contract import scan_inputs

# windows, tokens, channels, states. First the layer of the paper's main setting: 20 timesteps of state and action.
QUICK = ((16, 40, 256, 16), (16, 60, 256, 16))
SIZES = (*QUICK, (16, 180, 256, 16), (16, 600, 256, 16), (50, 40, 256, 16), (1, 40, 256, 16))
LONGEST_OF_OTHERS = 180
_TURN_S = 0.1


OTHERS: Mapping[str, Callable[[], Scan]] = {
    "transformers": transformers_scan,
    "mamba-ssm selective_scan_ref": mamba_ssm_reference_scan,
}
SCANS: Mapping[str, Callable[[], Scan]] = {**SCAN_BACKENDS, **OTHERS}
_load = cache(lambda name: SCANS[name]())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two sizes, five rounds")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 5 if options.quick else options.rounds
    console = Console(width=120)
    backends = [name for name in SCANS if _works(name, options.device, console)]
    table = Table(title=f"one scan, {options.device}, 1 thread, ms, medians of {rounds}", box=None)
    for heading in ("B x L x D x N", "backend", "forward", "with backward", "reference / this", "error"):
        table.add_column(heading, justify="left" if heading == "backend" else "right")
    results = []
    for size in QUICK if options.quick else SIZES:
        shown = [name for name in backends if name not in OTHERS or size[1] <= LONGEST_OF_OTHERS]
        result = measure(size, shown, options.device, rounds)
        results.append(result)
        for name in shown:
            ours, whole = result["forward_ms"][name], result["with_backward_ms"]
            ratio = f"{whole['reference'] / whole[name]:.1f}"
            shape = " x ".join(map(str, size)) if name == shown[0] else ""
            table.add_row(shape, name, f"{ours:.2f}", f"{whole[name]:.2f}", ratio, f"{result['error'][name]:.0e}")
    console.print(table)
    write_record(options.json, {"device": options.device, "rounds": rounds, "dtype": "float32"}, results)


def measure(size: tuple[int, int, int, int], backends: list[str], device: str, rounds: int) -> dict[str, Any]:
    inputs = [x.to(device).requires_grad_() for x in scan_inputs(size)]
    grad_y = torch.ones_like(inputs[0])
    forward = in_turns({name: partial(_forward, name, inputs) for name in backends}, rounds, turn_s=_TURN_S)
    backward = {name: partial(_with_backward, name, inputs, grad_y) for name in backends}
    whole = in_turns(backward, rounds, turn_s=_TURN_S)
    exact = _forward("reference", [x.double() for x in inputs])
    errors = {name: float((_forward(name, inputs) - exact).norm() / exact.norm()) for name in backends}
    return {
        "size": dict(zip(("windows", "tokens", "channels", "states"), size, strict=True)),
        "forward_ms": medians_ms(forward),
        "with_backward_ms": medians_ms(whole),
        "error": errors,
        "all_s": {"forward": forward, "with_backward": whole},
    }


@torch.no_grad()
def _forward(backend: str, inputs: list[Tensor]) -> Tensor:
    return _scan(backend, inputs)


def _with_backward(backend: str, inputs: list[Tensor], grad_y: Tensor) -> None:
    torch.autograd.grad(_scan(backend, inputs), inputs, grad_y)


def _scan(backend: str, inputs: list[Tensor]) -> Tensor:
    y: Tensor = _load(backend)(*inputs, True)
    return y


def _works(backend: str, device: str, console: Console) -> bool:
    tiny = [x.to(device) for x in scan_inputs((1, 2, 3, 2))]
    attempt: Callable[[], Tensor] = partial(_forward, backend, tiny)
    try:
        attempt()
    except (AssertionError, DmrayError, ImportError, RuntimeError) as missing:
        console.print(f"{backend} is left out: {missing}", markup=False)
        return False
    return True


if __name__ == "__main__":
    main()
