"""The report of a large sweep: 3,000 trials of 1,000 evaluations of 100 episodes each, in a folder made up for it.

    python benchmarks/report.py [--trials 3000] [--evaluations 1000] [--json FILE]

25 data sets, 5 methods, 6 sizes, 4 seeds; ledgers are written as trials write them (about 2.5 MB each, so 7 GB in all,
in the folder for temporary files) and deleted again. Wall-clock seconds and the peak memory of the command `python -m
dmray.report` with all its processes, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from timing import write_record

from dmray.planning.manifest import write_manifest
from dmray.planning.plan import Plan, plan
from dmray.records import AttemptStarted, EvaluationDone, SweepFolder, TargetResult, TrialDone
from dmray.specs import SweepSpec
from dmray.tasks import DATASETS

TARGET_S, TARGET_GIB = 60.0, 2.0
EPISODES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--evaluations", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        folder = SweepFolder(Path(storage), "large")
        size = make_up(folder, options.trials, options.evaluations)
        wall_s, peak = report(folder)
    row = {"trials": options.trials, "evaluations": options.evaluations, "ledgers_gib": size / 2**30}
    row |= {"wall_s": wall_s, "peak_gib": peak / 2**30}
    write_record(options.json, {"target_s": TARGET_S, "target_gib": TARGET_GIB, "episodes": EPISODES}, [row])
    table = Table(title="one report", box=None)
    for heading in row:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def make_up(folder: SweepFolder, num_trials: int, evaluations: int) -> int:
    """The bytes of ledgers written."""
    sweep = SweepSpec.model_validate(
        {
            "name": "large",
            "datasets": list(itertools.islice(DATASETS, 25)),
            "grid": [{"methods": ["dt", "dm", "dm+r", "hdt", "hdm"], "models": [{"n_layer": n} for n in range(1, 7)]}],
            "seeds": [0, 1, 2, 3],
        }
    )
    trials = plan(sweep).trials[:num_trials]
    write_manifest(Plan(sweep, trials), folder)
    rng, written = np.random.default_rng(0), 0
    before, after = _halves(rng)
    started = AttemptStarted(time_s=0.0, attempt=1, from_step=0, trial_id="", spec={}, provenance={})
    ended = TrialDone(time_s=0.0, status="finished", step=1000 * evaluations, best_step=None, train_s=3600.0)
    for trial in trials:
        scores = rng.normal(50 + 5 * len(trial.method), 10, evaluations)
        lines = [started.model_dump_json()]
        lines += [before.replace("123456789", f"{1000 * (n + 1)}") + f"{x}" + after for n, x in enumerate(scores)]
        text = "\n".join([*lines, ended.model_dump_json()]) + "\n"
        path = folder.trial(trial.trial_id).ledger
        path.parent.mkdir(parents=True)
        written += path.write_text(text)
    return written


def _halves(rng: np.random.Generator) -> tuple[str, str]:
    """An evaluation's line, cut where its mean score stands."""
    result = TargetResult(
        target_return=None,
        returns=rng.normal(1500, 300, EPISODES).tolist(),
        lengths=rng.integers(300, 1000, EPISODES).tolist(),
        return_mean=1500.0,
        return_std=300.0,
        normalized_mean=0.123456789,
        normalized_std=10.0,
        length_mean=700.0,
    )
    line = EvaluationDone(time_s=0.0, step=123456789, decode="window", seed=0, targets=[result], wall_s=5.0)
    before, after = line.model_dump_json().split("0.123456789")
    return before, after


def report(folder: SweepFolder) -> tuple[float, int]:
    """Seconds and bytes."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "dmray.report", str(folder.path)]
    with psutil.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(_resident(each) for each in [process, *process.children(recursive=True)]))
            time.sleep(0.1)
    assert process.returncode == 0, "the report failed"
    return time.perf_counter() - start, peak


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    main()
