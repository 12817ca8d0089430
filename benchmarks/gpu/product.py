"""Section "product": a sweep on the card through Ray, as a user runs it.

Four short trials at an eighth of the GPU (DM and DT, two seeds) with GPU evaluation actors and MLflow on SQLite, with
executor "tune" and "train"; a training worker is killed with SIGKILL, the driver too, and `--resume` ends the sweep.
Checked: every trial finished, every record of a step is there once, GPU metrics were recorded, and a resumed trial's
losses are those of an undisturbed one up to what a GPU promises; its scores beside them, where actors may decide on
another device than the undisturbed sweep's. Last, four seeds of DM in one pack (`resources.trials_per_pack`), longer
ones: a trial is killed, then the process that trains the pack, then the driver.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from section import Section, section_from_options

from dmray import plan_sweep
from dmray.planning.plan import Plan
from dmray.progress.trial_status import trial_statuses
from dmray.records import AttemptStarted, EvaluationDone, SweepFolder, TrainProgress, counting, read_ledger

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    section = section_from_options(__doc__)
    executors = ["train", "tune"] if find_spec("ray") else []
    if not executors:
        section.add("sweeps on Ray", left_out="ray is not installed")
    with tempfile.TemporaryDirectory() as folder:
        whole = sweep_file(Path(folder), "whole", "tune", section)
        section.measure("undisturbed, without Ray", lambda: undisturbed(section, whole), needs_s=10)
        for executor in executors:
            broken = sweep_file(Path(folder), f"broken-{executor}", executor, section)
            section.measure(
                f"worker and driver killed, executor {executor}",
                lambda file=broken: disturbed(section, file, whole),
                needs_s=20,
            )
        if executors:
            packed = sweep_file(Path(folder), "packed", "tune", section, seats=4)
            section.measure(
                "a pack: trial, server and driver killed",
                lambda: disturbed(section, packed, whole, lambda driver: kill_pack(section, packed, driver)),
                needs_s=30,
            )


def sweep_file(folder: Path, name: str, executor: str, section: Section, seats: int = 1) -> Path:
    """`seats`: above 1, so many seeds of DM alone, in one pack."""
    gpu = section.device == "cuda"
    steps, seeds = (60, [0]) if section.toy else (2000, [0, 1])
    methods = ["dm", "dt"] if seats == 1 else ["dm"]
    steps = steps if seats == 1 else 6 * steps  # they train on while a killed process is replaced
    size = {"d_model": 16, "n_layer": 1, "context_length": 4} if section.toy else {"context_length": 20}
    content = {
        "name": name,
        "datasets": [
            {"name": "open-expert", "task": "maze2d-open", "generate": {"behaviour": "expert", "transitions": 2000}}
        ],
        "grid": [{"methods": methods, "models": [size]}],
        "seeds": seeds if seats == 1 else list(range(seats)),
        "training": {"steps": steps, "learning_rate": 1e-3, "warmup_steps": 100},
        "evaluation": {"episodes": 10, "every_steps": steps // 2, "cohort_size": 10, "target_returns": [50.0]},
        "resources": {
            "executor": executor,
            "cpus_per_trial": 1 if gpu else 0.25,
            "gpus_per_trial": 0.125 if gpu else 0,
            "evaluation_actors": 1,
            "cpus_per_evaluation_actor": 1 if gpu else 0.25,
            "gpus_per_evaluation_actor": 0.05 if gpu and executor == "tune" else 0,
        },
        "faults": {"checkpoint_every_steps": max(steps // 10, 10)},
        "tracking": {
            "log_every_steps": max(steps // 20, 10),
            **({} if find_spec("mlflow") else {"mlflow_uri": "off"}),
        },
        "storage": str(folder),
    }
    if seats > 1:
        content["resources"] |= {"trials_per_pack": seats, "gpus_per_trial": 0.125}  # type: ignore[operator]
        content["resources"] |= {} if gpu else {"device": "cpu"}  # type: ignore[operator]
    if gpu and executor == "train":  # room for the actor beside eight trials
        content["resources"]["gpus_per_trial"] = 0.11  # type: ignore[index]
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def run(file: Path, *options: str) -> subprocess.Popen[bytes]:
    log = file.with_suffix(".log").open("ab")
    command = [sys.executable, "-m", "dmray.sweep", str(file), *options]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "TMPDIR": str(file.parent),  # where pack servers have their folders
    }
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def ended(section: Section, driver: subprocess.Popen[bytes]) -> int:
    try:
        return driver.wait(max(section.left_s, 10))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)


def undisturbed(section: Section, file: Path) -> dict[str, Any]:
    started = time.monotonic()
    status = ended(section, run(file, "--local"))
    return {"exit_status": status, "seconds": time.monotonic() - started, **_facts(file)}


Driver = subprocess.Popen[bytes]


def kill_worker(section: Section, file: Path, driver: Driver) -> None:
    """Kill a worker that trains, and wait for the trial's next attempt."""
    plan, folder = _opened(file)
    os.kill(_worker(plan, folder), signal.SIGKILL)
    wait_until(section, lambda: _attempts(plan, folder) > len(plan.trials) or driver.poll() is not None)


def kill_pack(section: Section, file: Path, driver: Driver) -> None:
    """Kill one trial of the pack, then the process that trains it, each time waiting for the next attempts."""
    plan, folder = _opened(file)
    kill_worker(section, file, driver)
    attempts = _attempts(plan, folder)
    servers = [json.loads(path.read_text())["pid"] for path in file.parent.glob("dmray-packs-*/*/pid.json")]
    for server in servers:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
    if len(servers) != 1:
        raise RuntimeError(f"{len(servers)} pack servers instead of 1")
    wait_until(section, lambda: _attempts(plan, folder) >= attempts + 4 or driver.poll() is not None)


def disturbed(
    section: Section, file: Path, whole: Path, kill: Callable[[Driver], None] | None = None
) -> dict[str, Any]:
    plan, folder = _opened(file)
    started = time.monotonic()
    driver = run(file)
    try:
        wait_until(section, lambda: bool(_steps(plan, folder)) or driver.poll() is not None)
        begun_s = time.monotonic() - started
        if driver.poll() is not None:
            raise RuntimeError(f"the sweep ended with status {driver.returncode}")
        if kill is None:
            kill_worker(section, file, driver)
        else:
            kill(driver)
    except (RuntimeError, TimeoutError) as problem:
        raise type(problem)(f"{problem}; the log's end: {_end_of_log(file)}") from None
    finally:
        with suppress(ProcessLookupError):
            os.kill(driver.pid, signal.SIGKILL)
        driver.wait(10)
    resumed = time.monotonic()
    status = ended(section, run(file, "--resume"))
    facts = _facts(file)
    return {
        "exit_status": status,
        "seconds_to_first_record": begun_s,
        "seconds_after_resume": time.monotonic() - resumed,
        **facts,
        "loss_off_from_undisturbed": _off(file, whole, _losses),
        "score_off_from_undisturbed": _off(file, whole, _scores),
        "right": status == 0 and facts["complete"] and (facts["gpu_recorded"] or section.device == "cpu"),
        "log_end": _end_of_log(file),
    }


def _end_of_log(file: Path) -> list[str]:
    return file.with_suffix(".log").read_text(errors="replace").splitlines()[-8:]


def wait_until(section: Section, true: Callable[[], bool]) -> None:
    while not true():
        if section.left_s < 5:
            raise TimeoutError("what was waited for did not come in time")
        time.sleep(0.1)


def _opened(file: Path) -> tuple[Plan, SweepFolder]:
    plan = plan_sweep(file)
    return plan, SweepFolder(Path(plan.sweep.storage), plan.sweep.name)


def _records(plan: Plan, folder: SweepFolder) -> dict[str, list[Any]]:
    ledgers = {trial_id: folder.trial(trial_id).ledger for trial_id in plan.trial_ids}
    return {trial_id: list(read_ledger(ledger)) for trial_id, ledger in ledgers.items() if ledger.exists()}


def _steps(plan: Plan, folder: SweepFolder) -> list[int]:
    return [r.step for records in _records(plan, folder).values() for r in records if isinstance(r, TrainProgress)]


def _attempts(plan: Plan, folder: SweepFolder) -> int:
    return sum(isinstance(r, AttemptStarted) for records in _records(plan, folder).values() for r in records)


def _worker(plan: Plan, folder: SweepFolder) -> int:
    """The process of a trial that trains."""
    for records in _records(plan, folder).values():
        if any(isinstance(record, TrainProgress) for record in records):
            attempt = next(record for record in reversed(records) if isinstance(record, AttemptStarted))
            return int(attempt.provenance["pid"])
    raise RuntimeError("no trial trains")


def _facts(file: Path) -> dict[str, Any]:
    plan, folder = _opened(file)
    statuses = [str(status) for status in trial_statuses(plan, folder).values()]
    every, steps = plan.sweep.tracking.log_every_steps, plan.trials[0].training.steps
    once = all(
        [r.step for r in counting(records) if isinstance(r, TrainProgress)] == list(range(every, steps + 1, every))
        for records in _records(plan, folder).values()
    )
    records = [r for records in _records(plan, folder).values() for r in records]
    gpu = [r for r in records if isinstance(r, TrainProgress) and "gpu" in str(r)]
    return {
        "complete": set(statuses) == {"finished"} and once,
        "statuses": {status: statuses.count(status) for status in set(statuses)},
        "each_step_once": once,
        "gpu_recorded": bool(gpu),
        "example": str(gpu[-1])[:300] if gpu else "",
    }


def _off(file: Path, whole: Path, values: Callable[[Any], float | None]) -> float | None:
    """The largest difference of a record's value at the same step of the same trial."""
    found = []
    for each in (file, whole):
        plan, folder = _opened(each)
        found.append({
            (trial_id, r.step): value
            for trial_id, records in _records(plan, folder).items()
            for r in counting(records)
            if (value := values(r)) is not None
        })  # fmt: skip
    ours, theirs = found
    return max((abs(value - theirs[place]) for place, value in ours.items() if place in theirs), default=None)


def _losses(record: Any) -> float | None:
    return float(record.loss) if isinstance(record, TrainProgress) else None


def _scores(record: Any) -> float | None:
    return float(record.first_target.normalized_mean) if isinstance(record, EvaluationDone) else None


if __name__ == "__main__":
    main()
