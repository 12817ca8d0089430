"""540 trivial trials through the whole path in one process: what dmray itself costs a trial.

    python benchmarks/many_trials.py [--trials 540] [--json FILE]

Each trial has a spec, opens its data set, trains two steps of a network of width 16, is evaluated in one episode of
maze2d-open (150 steps), writes ledger, table, checkpoints and done marker. Then the sweep is resumed: nothing is left
to run. Without MLflow. CPU seconds are of all threads of the process; `slowest` are functions by own time, of a profile
of 40 more trials.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import os
import pstats
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timing import write_record

from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.planning.plan import Plan, plan
from dmray.progress.trial_status import DONE, trial_statuses
from dmray.records import SweepFolder
from dmray.specs import SweepSpec

TARGET_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--trials", type=int, default=540, help="an even number")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as storage:
        os.environ["DMRAY_CACHE"] = f"{storage}/cache"
        planned = trivial(Path(storage), options.trials // 2, first_seed=0)
        first, again = timed(planned), timed(planned)
        slowest = profiled(trivial(Path(storage), 20, first_seed=10**6))
    results = [{"what": "all trials", **first}, {"what": "resumed, nothing to run", **again}]
    write_record(options.json, {"trials": len(planned.trials), "target_s": TARGET_S}, [*results, {"slowest": slowest}])
    table = Table(title=f"{len(planned.trials)} trials in one process", box=None)
    for heading in ("", "wall s", "CPU s", "CPU s a trial"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in results:
        table.add_row(str(row["what"]), *(f"{row[key]:.3g}" for key in ("wall_s", "cpu_s", "cpu_s_per_trial")))
    Console().print(table)


def trivial(storage: Path, num_seeds: int, first_seed: int) -> Plan:
    """DM and DT under `num_seeds` seeds."""
    maze = {"task": "maze2d-open", "generate": {"behaviour": "expert", "transitions": 1500}}
    content = {
        "name": f"many-{first_seed}",
        "datasets": [{"name": "open-expert", **maze}],
        "grid": [{"methods": ["dm", "dt"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
        "seeds": range(first_seed, first_seed + num_seeds),
        "training": {"steps": 2, "batch_size": 4, "warmup_steps": 1},
        "evaluation": {"episodes": 1, "every_steps": 2, "target_returns": [50.0]},
        "tracking": {"mlflow_uri": "off"},
        "storage": str(storage),
    }
    return plan(SweepSpec.model_validate(content))


def timed(planned: Plan) -> dict[str, float]:
    """Seconds of the sweep from survey to report; every trial must have ended well."""
    folder = SweepFolder(Path(planned.sweep.storage), planned.sweep.name)
    wall, cpu = time.perf_counter(), time.process_time()
    run_sweep(planned, folder, LocalRunner(), lambda sweep: sweep.path, resume=True, console=Console(quiet=True))
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    states = trial_statuses(planned, folder)
    assert all(state in DONE for state in states.values()), states
    return {"wall_s": wall_s, "cpu_s": cpu_s, "cpu_s_per_trial": cpu_s / len(planned.trials)}


def profiled(planned: Plan) -> list[dict[str, object]]:
    profile = cProfile.Profile()
    profile.runcall(timed, planned)
    rows = [
        {"where": f"{Path(file).name}:{line} {name}", "calls": calls, "own_s": round(own, 3)}
        for (file, line, name), (_, calls, own, _, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    ]
    return sorted(rows, key=lambda row: -row["own_s"])[:15]  # type: ignore[operator]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
