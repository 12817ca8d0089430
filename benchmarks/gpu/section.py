"""What the sections share: their options, a record that is written after each result, trainers, and rates of steps."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from training_step import random_episodes

from dmray.datasets import WindowSampler
from dmray.methods import METHODS, PolicyShape
from dmray.policies import PolicyRecipe, SequencePolicy
from dmray.specs import TrainingSpec
from dmray.training import Pack, Trainer

HOPPER = PolicyShape(11, 3, 1.0, 1000)
SMALL = {"d_model": 16, "n_layer": 1, "context_length": 4}
Step = Callable[[], object]


class OutOfTimeError(Exception):
    """The section's time is over."""


@dataclass
class Section:
    """One run of a section: the device, its time, and its results so far.

    `toy`: sizes of a rehearsal on a CPU, whose figures mean nothing.
    """

    out: Path
    device: str
    toy: bool
    ends_s: float
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        return self.ends_s - time.monotonic()

    def add(self, what: str, **values: Any) -> None:
        """Record a result, write all results so far, and print it in one line."""
        self.results.append({"what": what, **values})
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(part, self.out)
        print(f"{what}:", *(f"{name}={_short(value)}" for name, value in values.items()), flush=True)

    def measure(self, what: str, measurement: Callable[[], dict[str, Any]], needs_s: float = 1.0) -> None:
        """Record what `measurement` returns, or its error. It is left out if less than `needs_s` seconds are left."""
        if self.left_s < needs_s:
            self.add(what, left_out=f"{self.left_s:.0f} s left, {needs_s:.0f} needed")
            return
        started = time.monotonic()
        try:
            values = measurement()
        except Exception as error:  # noqa: BLE001 - the next measurement does not depend on this one
            traceback.print_exc()
            self.add(what, error=f"{type(error).__name__}: {error}"[:1500])
        else:
            self.add(what, **values, took_s=time.monotonic() - started)


def section_from_options(description: str | None) -> Section:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("section.json"), help="the JSON file of the results")
    parser.add_argument("--seconds", type=float, default=120.0, help="start no measurement after this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--toy", action="store_true", help="a rehearsal with tiny sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    return Section(options.out, options.device, options.toy, time.monotonic() + options.seconds)


def policy_of(method: str, sizes: dict[str, Any], seed: int = 0) -> SequencePolicy:
    torch.manual_seed(seed)
    return SequencePolicy(PolicyRecipe(method, METHODS[method].config(**sizes), "paper", HOPPER, 1000.0))


def trainer_of(
    method: str,
    sizes: dict[str, Any],
    device: str,
    capture: Literal["auto", "off"] = "auto",
    *,
    batch_size: int = 16,
    seed: int = 0,
    **training: Any,
) -> Trainer:
    """A trial's trainer on random episodes of Hopper's sizes."""
    policy = policy_of(method, sizes, seed).to(device)
    context = policy.recipe.model.context_length
    sampler = WindowSampler(
        random_episodes(), policy.tokens, context_length=context, batch_size=batch_size, device=device
    )
    return Trainer(policy, sampler, TrainingSpec(batch_size=batch_size, **training), seed, device, capture)


def pack_of(
    method: str,
    sizes: dict[str, Any],
    device: str,
    seats: int,
    *,
    first: int = 0,
    compiled: bool | None = None,
    **training: Any,
) -> Pack:
    """A pack whose seats are all taken, by trials of the seeds from `first` on."""
    policy, spec = policy_of(method, sizes), TrainingSpec(batch_size=16, **training)
    context = policy.recipe.model.context_length
    sampler = WindowSampler(random_episodes(), policy.tokens, context_length=context, batch_size=16, device=device)
    pack = Pack(policy, sampler, spec, seats, device, compiled=compiled)
    for seed in range(first, first + seats):
        pack.join(seed, spec.learning_rate, policy_of(method, sizes, seed).state_dict())
    return pack


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def steps_per_s(step: Step, device: str, budget_s: float, warm_up: int = 6) -> float:
    """The median rate over chunks of steps. The device is waited for at the end of each chunk only."""
    for _ in range(warm_up):  # a graph is recorded at the fourth step
        step()
    wait_for(device)
    started = time.perf_counter()
    step()
    wait_for(device)
    chunk = max(1, min(100, int(budget_s / 10 / (time.perf_counter() - started))))
    rates: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(rates) < 3 or time.perf_counter() < ends:
        begun = time.perf_counter()
        for _ in range(chunk):
            step()
        wait_for(device)
        rates.append(chunk / (time.perf_counter() - begun))
    return median(rates)


def peak_memory_mib(device: str) -> float:
    """The most GPU memory that this process has had since the last call."""
    if device != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_reserved() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
