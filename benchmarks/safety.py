"""What it costs that records survive a power cut, that checkpoints have a checksum, and that processes are watched.

    python benchmarks/safety.py [--rounds 15] [--json FILE]

Beside a training step: the flush of the ledger, the digests of ledger and checkpoint and the check for finite weights,
which come once in `faults.checkpoint_every_steps` steps (a checkpoint with them and without, in turns), and the timers
of every step. Beside an evaluation: the check of the weights that an actor gets for each cohort. Beside the driver: its
looks at 40 processes, as a share of one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
import torch
from rich.console import Console
from rich.table import Table
from timing import in_turns, write_record

from dmray.on_ray.frozen_processes import stopped_among
from dmray.planning.measuring import reference_trial
from dmray.policies import PolicyShape, PolicySnapshot, SequencePolicy, policy_recipe, snapshot
from dmray.records import Ledger, LedgerPrefix, TrainProgress, TrialFolder
from dmray.rollout import EvaluationRequest, cohorts, run_cohort
from dmray.specs import FaultSpec
from dmray.tasks import TASKS
from dmray.trial import checkpoints
from dmray.trial.watchdog import Watchdog

SIZES = {"64 x 2, K 5": (64, 2, 5), "128 x 6, K 20": (128, 6, 20)}
_STEPS, _PROCESSES, _EPISODES = 50, 40, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(name, *size, given.rounds) for name, size in SIZES.items()]
    look_ms = 1e3 * median(timed(look, given.rounds))
    show(results, look_ms)
    settings = {"checkpoint_every_steps": every(), "look_every_s": 5.0, "processes": _PROCESSES, "episodes": _EPISODES}
    write_record(given.json, settings, [*results, {"look_ms": look_ms}])


def measure(name: str, d_model: int, n_layer: int, context_length: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a training step, of a checkpoint and of a cohort, with the checks and without."""
    from dmray.planning.measuring import _trainer

    size = {"d_model": d_model, "n_layer": n_layer, "context_length": context_length}
    trial = reference_trial("mamba", size)
    trainer = _trainer(trial, "cpu")
    step_ms = 1e3 * median(timed(trainer.step, _STEPS))
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        origin = checkpoints.Origin(trial, "f", trainer.policy.recipe, TASKS["hopper"].reference)
        record = TrainProgress(
            time_s=0.0, step=1, loss=0.5, stage_losses={}, grad_norm=1.0, learning_rate=1e-4, steps_per_s=10.0
        )

        def save(prefix: Callable[[], LedgerPrefix], finite: Callable[[], bool]) -> None:
            for _ in range(10):
                ledger.append(record)
            content = {"trainer": trainer.state_dict(), "ledger": tuple(prefix()), "finite": finite()}
            checkpoints.save_checkpoint(Path(folder) / "last.pt", origin, content)

        def checked() -> None:
            save(ledger.sync, lambda: checkpoints.is_finite(trainer.policy.state_dict()))

        def unchecked() -> None:
            with patch.object(checkpoints, "_digest", lambda body: bytes(32)):
                save(lambda: LedgerPrefix(0, 0, ""), lambda: True)

        saves = in_turns({"checked": checked, "unchecked": unchecked}, rounds)
        extra_ms = 1e3 * median(a - b for a, b in zip(saves["checked"], saves["unchecked"], strict=True))
        watchdog = Watchdog(TrialFolder(Path(folder)), 3600.0)
        with watchdog.watching():
            timer_ms = median(timed(lambda: [watchdog.step() for _ in range(1000)], rounds))  # of 1,000 calls, in s
    cohort_ms, check_ms = evaluation(trial, rounds)
    return {
        "size": name,
        "step_ms": step_ms,
        "checkpoint_ms": 1e3 * median(saves["checked"]),
        "checks_ms": extra_ms,
        "timer_ms": timer_ms,
        "share_of_training": (extra_ms / every() + timer_ms) / step_ms,
        "cohort_ms": cohort_ms,
        "weights_check_ms": check_ms,
        "share_of_evaluation": check_ms / cohort_ms,
    }


def evaluation(trial: Any, rounds: int) -> tuple[float, float]:
    """A cohort of full episodes in maze2d, from the snapshot on; and what is checked of its weights."""
    task = TASKS["maze2d-open"]
    shape = PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
    stored = snapshot(SequencePolicy(policy_recipe(trial, shape)))
    request = EvaluationRequest(task, _EPISODES, 0, "recurrent", (None,), _EPISODES)
    started = time.perf_counter()
    run_cohort(stored.build(), request, cohorts(request)[0])
    cohort_ms = 1e3 * (time.perf_counter() - started)

    def unchecked() -> None:
        with patch.multiple(PolicySnapshot, _check_size=lambda self: None, _check_weights=lambda self, expected: None):
            stored.build()

    builds = in_turns({"checked": stored.build, "unchecked": unchecked}, rounds)
    return cohort_ms, 1e3 * median(a - b for a, b in zip(builds["checked"], builds["unchecked"], strict=True))


def look() -> None:
    pids = psutil.pids()[:_PROCESSES]
    stopped_among("node", (pids * _PROCESSES)[:_PROCESSES])


def timed(call: Callable[[], object], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def every() -> int:
    return FaultSpec().checkpoint_every_steps


def show(results: list[dict[str, Any]], look_ms: float) -> None:
    table = Table(title=f"DM; checkpoints every {every():,} steps; cohorts of {_EPISODES} episodes, decode recurrent")
    for heading in (
        "",
        "training step",
        "checkpoint",
        "its checks",
        "share of training",
        "cohort",
        "share of evaluation",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for result in results:
        table.add_row(
            result["size"],
            *(f"{result[name]:.2f} ms" for name in ("step_ms", "checkpoint_ms", "checks_ms")),
            f"{result['share_of_training']:.3%}",
            f"{result['cohort_ms']:.0f} ms",
            f"{result['share_of_evaluation']:.3%}",
        )
    console = Console()
    console.print(table)
    console.print(f"a look at {_PROCESSES} processes: {look_ms:.1f} ms, every 5 s: {look_ms / 5000:.2%} of a core")


if __name__ == "__main__":
    main()
