"""What Ray costs a sweep: how busy trial slots are, processes, memory and CPU time of a trial, by executor.

    python benchmarks/sweep_overhead.py [--seconds 20] [--json FILE]

A sweep of short trials of two sizes (DM and DT, two models, two seeds: about `--seconds` and more), two at a time,
evaluated by one actor, with each executor in turn. A slot is busy while a trial that it holds trains: from the first
record of an attempt, which is written before its first step, to the trial's end. Start-up (processes, imports, the data
set) and hand-over count as idle; the time before the first trial begins (Ray's own start) is told apart. Memory is the
proportional set size (PSS) of the processes below the driver, by kind, at its highest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table
from timing import write_record

from dmray.driver.local_runner import LocalRunner
from dmray.planning.plan import plan
from dmray.records import AttemptStarted, SweepFolder, TrialDone, read_ledger
from dmray.specs import SweepSpec

SLOTS = 2
HEAD_SLOTS = 16  # the head of a cluster with so many trials at once
MODELS = [{"d_model": 64, "n_layer": layers, "context_length": 5} for layers in (2, 4)]
ON_THE_HEAD = {"Tune trial", "helpers"}  # with executor train; workers are elsewhere
KINDS = {
    "ray::ImplicitFunc": "Tune trial",
    "ray::run_in_tune": "Tune trial",
    "ray::run_through_train": "Tune trial",
    "ray::RayTrainWorker": "Train worker",
    "ray::RolloutActor": "evaluation actor",
    "ray::Dispatcher": "dispatcher",
    "ray::IDLE": "idle",
    "ray::DashboardAgent": "of the node",
    "ray::RuntimeEnvAgent": "of the node",
    "ray::_AutoscalingCoordinator": "of the node",
    "ray::": "helpers",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a short trial trains")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp") as storage:
        steps = int(steps_per_second(Path(storage)) * given.seconds)
        results = [measure(Path(storage), executor, steps) for executor in ("tune", "train")]
    show(results)
    write_record(given.json, {"slots": SLOTS, "seconds": given.seconds, "steps": steps}, results)


def sweep(storage: Path, name: str, executor: str, steps: int) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "name": name,
            "storage": str(storage),
            "datasets": [{"name": "open", "task": "maze2d-open", "generate": {"transitions": 3000}}],
            "grid": [{"methods": ["dm", "dt"], "models": MODELS}],
            "seeds": [0, 1],
            "training": {"steps": steps, "batch_size": 32},
            "evaluation": {"episodes": 10, "every_steps": max(steps // 4, 1), "target_returns": [50.0]},
            "resources": {"executor": executor, "cpus_per_trial": 0.5, "max_concurrent_trials": SLOTS},
            "tracking": {"mlflow_uri": "off"},
        }
    )


def steps_per_second(storage: Path) -> float:
    """Of one trial in this process."""
    planned = plan(sweep(storage, "rate", "train", 300))
    folder = SweepFolder(storage, "rate")
    LocalRunner().run(planned, planned.trials[:1], folder)
    done = read_ledger(folder.trial(planned.trial_ids[0]).ledger)[-1]
    assert isinstance(done, TrialDone)
    return done.step / done.train_s / SLOTS  # the cores are shared with another trial and an actor


def measure(storage: Path, executor: str, steps: int) -> dict[str, Any]:
    """Run the sweep through the command line, and watch it."""
    spec = sweep(storage, executor, executor, steps)
    file = storage / f"{executor}.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    start = time.time()
    driver = psutil.Popen([sys.executable, "-m", "dmray.sweep", str(file)], stdout=subprocess.DEVNULL)
    memory, processes = watch(driver)
    assert driver.returncode == 0, "the sweep failed"
    busy = [busy_time(read_ledger(path)) for path in SweepFolder(storage, executor).path.glob("trials/*/ledger.jsonl")]
    first, last = min(begin for begin, _ in busy), max(end for _, end in busy)
    on_the_head = ON_THE_HEAD if executor == "train" else set()
    per_trial = sum(memory.get(kind, 0) for kind in on_the_head) / SLOTS
    return {
        "executor": executor,
        "trials": len(busy),
        "ray_start_s": first - start,
        "wall_s": last - first,
        "slots_busy": sum(end - begin for begin, end in busy) / (SLOTS * (last - first)),
        "idle_s_per_trial": (SLOTS * (last - first) - sum(end - begin for begin, end in busy)) / len(busy),
        "processes": processes,
        "pss_mib": {kind: value / 2**20 for kind, value in sorted(memory.items())},
        "head_gib_with_16_slots": (per_trial * HEAD_SLOTS + memory.get("dispatcher", 0)) / 2**30,
    }


def busy_time(records: list[Any]) -> tuple[float, float]:
    return (
        next(record.time_s for record in records if isinstance(record, AttemptStarted)),
        next(record.time_s for record in records if isinstance(record, TrialDone)),
    )


def watch(driver: psutil.Popen) -> tuple[dict[str, int], int]:
    """The highest PSS by kind of process, and the most of Ray's processes at once, until the driver ends."""
    highest: dict[str, int] = defaultdict(int)
    most = 0
    while driver.poll() is None:
        now: dict[str, int] = defaultdict(int)
        count = 0
        for process in descendants(driver):
            kind, size = kind_and_size(process)
            if kind:
                now[kind] += size
                count += kind != "idle"
        most = max(most, count)
        for kind, size in now.items():
            highest[kind] = max(highest[kind], size)
        time.sleep(2.0)
    return dict(highest), most


def descendants(driver: psutil.Popen) -> list[psutil.Process]:
    try:
        return driver.children(recursive=True)
    except psutil.Error:
        return []


def kind_and_size(process: psutil.Process) -> tuple[str, int]:
    try:
        title = " ".join(process.cmdline())
        kind = next((kind for prefix, kind in KINDS.items() if title.startswith(prefix)), "")
        return kind, process.memory_full_info().pss if kind else 0
    except psutil.Error:
        return "", 0


def show(results: list[dict[str, Any]]) -> None:
    table = Table("executor", "slots busy", "idle s per trial", "Ray's start s", "processes", "head GiB, 16 slots")
    for row in results:
        table.add_row(
            row["executor"],
            f"{row['slots_busy']:.1%}",
            f"{row['idle_s_per_trial']:.1f}",
            f"{row['ray_start_s']:.1f}",
            str(row["processes"]),
            f"{row['head_gib_with_16_slots']:.1f}",
        )
    Console().print(table)
    for row in results:
        Console().print(f"{row['executor']}: PSS MiB", {kind: round(value) for kind, value in row["pss_mib"].items()})


if __name__ == "__main__":
    main()
