"""Section "right": are the GPU's numbers those of the CPU and of double precision?

Both scan kernels against float64; 200 captured steps against plain ones, and a run that is resumed in the middle; a
seat of a pack against a trainer of its own, with and without its neighbours; the golden files of the authors' networks;
decode modes; bfloat16; the tests that need a GPU (marker `gpu`).
"""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from section import SMALL, Section, pack_of, policy_of, section_from_options, trainer_of, wait_for
from torch import Tensor

from dmray.methods import METHODS
from dmray.models.scan_reference import reference_scan
from dmray.models.selective_scan import selective_scan
from dmray.policies import make_decoder, snapshot
from dmray.testing.scan_contract import NAMES, scan_inputs

ROOT = Path(__file__).parent.parent.parent
PAPER = ("dm", "dm+r", "hdm", "dt", "hdt")


def main() -> None:
    section = section_from_options(__doc__)
    sizes = SMALL if section.toy else {}
    for backend in ("triton", "mamba_ssm") if section.device == "cuda" else ("numba",):
        section.measure(f"scan {backend} against float64", lambda backend=backend: scan_errors(section, backend))
    methods = ("dm", "hdt") if section.toy else PAPER
    for method in methods:
        section.measure(f"captured {method}", lambda method=method: captured_against_plain(section, method, sizes))
    for method in methods:
        section.measure(f"resumed {method}", lambda method=method: resumed_against_whole(section, method, sizes))
    for method in ("dm", "dt") if section.toy else ("dm", "hdm", "dt"):
        for compiled in (False, True) if section.device == "cuda" else (False,):
            section.measure(
                f"packed {method}{', compiled' if compiled else ''}",
                lambda method=method, compiled=compiled: packed_against_single(section, method, sizes, compiled),
                needs_s=30 if compiled else 4,
            )
    for method in methods:
        section.measure(f"golden {method}", lambda method=method: golden(section, method))
    for method in methods:
        for mode in ("window", "stream:2", "recurrent"):
            section.measure(
                f"decode {method} {mode}", lambda method=method, mode=mode: decoded(section, method, mode, sizes)
            )
    for method in ("dm", "dt"):
        section.measure(f"bfloat16 {method}", lambda method=method: bfloat16(section, method, sizes))
    if section.device == "cuda":
        section.measure("tests marked gpu", lambda: marked_tests(section), needs_s=15)


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """|ours - exact| / |exact|; NaN stays NaN."""
    return float((ours.double().cpu() - exact.double().cpu()).norm() / exact.double().norm().cpu().clamp(min=1e-30))


def scan_errors(section: Section, backend: str) -> dict[str, Any]:
    """Relative errors of the output and of all gradients at the size of a trial's batch."""
    if backend == "mamba_ssm" and find_spec("mamba_ssm") is None:
        return {"left_out": "mamba_ssm is not installed"}
    size = (2, 8, 16, 4) if section.toy else (16, 40, 256, 16)

    def results(dtype: torch.dtype, scan: Any) -> list[Tensor]:
        leaves = [x.to(section.device).requires_grad_() for x in scan_inputs(size, dtype)]
        y = scan(*leaves)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
        return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]

    exact = results(torch.float64, lambda *given: reference_scan(*given, True))
    ours = results(torch.float32, lambda *given: selective_scan(*given, True, backend))
    errors = {name: relative_error(x, y) for name, x, y in zip(("y", *NAMES), ours, exact, strict=True)}
    return {"size": size, "worst": max(errors.values()), "right": max(errors.values()) < 1e-5, "errors": errors}


def captured_against_plain(section: Section, method: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Losses and gradient norms of the same steps with and without a CUDA graph."""
    count = 20 if section.toy else 200
    runs = []
    for capture in ("off", "auto"):
        trainer = trainer_of(method, sizes, section.device, capture)  # type: ignore[arg-type]
        runs.append(torch.stack([torch.stack([*trainer.step()]) for _ in range(count)]).cpu())
    plain, captured = runs
    off = ((captured - plain).abs() / plain.abs().clamp(min=1e-6)).amax((1, 2))
    return {
        "steps": count,
        "first_step_off": float(off[0]),
        "worst_off": float(off.max()),
        "bits_equal": bool(torch.equal(plain, captured)),
        "right": bool(torch.isfinite(off).all()) and float(off.max()) < 2e-2,  # rounding grows over 200 steps
    }


def resumed_against_whole(section: Section, method: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """20 + 20 steps through a state dict against 40 steps, captured."""
    whole, resumed = (trainer_of(method, sizes, section.device) for _ in range(2))
    for _ in range(20):
        whole.step()
    state = copy.deepcopy(whole.state_dict())
    expected = torch.stack([torch.stack([*whole.step()]) for _ in range(20)]).cpu()
    for _ in range(6):
        resumed.step()
    resumed.load_state_dict(state)
    found = torch.stack([torch.stack([*resumed.step()]) for _ in range(20)]).cpu()
    off = float(((found - expected).abs() / expected.abs().clamp(min=1e-6)).max())
    return {"worst_off": off, "bits_equal": bool(torch.equal(found, expected)), "right": off < 1e-2}


def packed_against_single(section: Section, method: str, sizes: dict[str, Any], compiled: bool) -> dict[str, Any]:
    """A seat among four against itself while the others take no steps, and against a trainer of its own.

    The latter without dropout: a pack draws other masks.
    """
    count, seat = (5 if section.toy else 50), 2

    def steps_of(sizes: dict[str, Any], crowded: bool) -> torch.Tensor:
        pack = pack_of(method, sizes, section.device, 4, compiled=compiled)
        metrics = pack.advance(pack.occupied if crowded else [seat], count)
        wait_for(section.device)
        return metrics[:, seat]

    independent = bool(torch.equal(steps_of(sizes, True), steps_of(sizes, False)))
    if "dropout" in METHODS[method].config.model_fields:
        sizes = sizes | {"dropout": 0.0}
    single = trainer_of(method, sizes, section.device, seed=seat)
    expected = torch.stack([torch.stack([*single.step()]) for _ in range(count)]).cpu()
    off = ((steps_of(sizes, True) - expected).abs() / expected.abs().clamp(min=1e-6)).amax((1, 2))
    return {
        "steps": count,
        "first_step_off": float(off[0]),
        "worst_off": float(off.max()),
        "independent_of_neighbours": independent,
        "right": independent and bool(torch.isfinite(off).all()) and float(off.max()) < 2e-2,
    }


def golden(section: Section, method: str) -> dict[str, Any]:
    """The outputs that the authors' networks have for their weights (tests/golden), in float32."""
    sys.path.insert(0, str(ROOT))
    from tests.policies.test_authors import golden as golden_file
    from tests.policies.test_authors import loaded, networks, windows

    held = golden_file(method)
    policy = loaded(method, networks(method)).to(section.device)
    given = windows(policy, held, torch.float32)
    moved = type(given)(*(_moved(value, section.device) for value in given))
    predicted = policy.predict(moved)
    worst = max(
        float((ours.detach().cpu() - torch.from_numpy(held[f"outputs/paper/{stage}"]).float()).abs().max())
        for stage, ours in zip(policy.stage_names, predicted, strict=True)
    )
    return {"worst_off": worst, "right": worst < 1e-5}


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {name: each.to(device) for name, each in value.items()}
    return value.to(device)


def decoded(section: Section, method: str, mode: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The actions of 60 decisions for 20 episodes, on this device and on the CPU."""
    steps, rows = (6, 3) if section.toy else (60, 20)
    weights = snapshot(policy_of(method, sizes))
    draw = torch.Generator().manual_seed(0)
    seen = torch.randn(steps, rows, 11, generator=draw).numpy()
    actions = []
    for device in ("cpu", section.device):
        decoder = make_decoder(weights.build().to(device), mode, rows)
        targets = torch.full((rows,), 3600.0).double().numpy()
        actions.append(torch.stack([torch.from_numpy(decoder.decide(each, targets).copy()) for each in seen]))
    worst = float((actions[0] - actions[1]).abs().max())
    return {"worst_off": worst, "right": worst < 1e-3}


def bfloat16(section: Section, method: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The loss after 100 steps in bfloat16 and in float32."""
    count = 10 if section.toy else 100
    losses = {}
    for dtype in ("float32", "bfloat16"):
        trainer = trainer_of(method, sizes, section.device, dtype=dtype, learning_rate=1e-3, warmup_steps=10)
        last = [trainer.step().stage_losses for _ in range(count)][-10:]
        wait_for(section.device)
        losses[dtype] = float(torch.stack(last).mean())
    return {**losses, "right": abs(losses["bfloat16"] / losses["float32"] - 1) < 0.05}


def marked_tests(section: Section) -> dict[str, Any]:
    """Every test of the suite that needs a GPU."""
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
    command = [sys.executable, "-m", "pytest", "tests/models", "tests/training", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(section.left_s, 10))
    return {"right": ended.returncode == 0, "said": ended.stdout.strip().splitlines()[-12:]}


if __name__ == "__main__":
    assert set(PAPER) <= set(METHODS)
    main()
