"""cluster/slurm.sbatch with stand-ins for Slurm's commands: what it starts, and what it does when its time is over."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from dmray.cli import report
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.on_ray.placement import DRIVER_RESOURCE
from dmray.planning.plan import Plan
from dmray.planning.trial_filter import TrialFilter
from dmray.records import AttemptStarted, SweepFolder, TrainProgress, read_ledger
from tests.cluster.slurm import SCRIPT, Job, options_of, script_with
from tests.mlflow_mirror.mlflow_server import free_port
from tests.sweeps import science_of, sweep_file, tiny_plan
from tests.waiting import wait_until

# A driver that notes its command line and variables, and ends as it is told: with END, at a SIGTERM with AT_SIGTERM.
DRIVER = """#!/bin/bash
[[ $1 == -m ]] || { [[ $2 != *get_node_ip_address* ]] || echo 10.0.0.7; exit 0; }
echo "python $*" >> "$STAND_IN_LOG"
echo "DMRAY_DATASETS=$DMRAY_DATASETS DMRAY_CACHE=$DMRAY_CACHE RAY_AUTH_MODE=${RAY_AUTH_MODE:-}" >> "$STAND_IN_LOG"
[[ -z ${END:-} ]] || exit "$END"
trap 'exit "${AT_SIGTERM:-143}"' TERM
touch "$STAND_IN_LOG.driver"
for ((i = 0; i < 6000; i++)); do sleep 0.05; done
"""
RAY = """#!/bin/bash
echo "ray $*" >> "$STAND_IN_LOG"
[[ $1 == start ]] || exit 0
trap 'exit 143' TERM
for ((i = 0; i < 6000; i++)); do sleep 0.05; done
"""
FILLED_IN = {"STORAGE": "/shared/runs", "DATA": "/shared/data", "VENV": "", "SWEEP": "tiny.yaml", "OPTIONS": "(-o a=1)"}


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Makes jobs, with a driver that is none of dmray unless `real`."""
    made: list[Job] = []

    def make(values: dict[str, str] | None = None, real: bool = False, **changes: Any) -> Job:
        commands = {} if real else {"python": DRIVER, "ray": RAY}
        text = script_with(**FILLED_IN | (values or {}))
        one = Job(tmp_path / f"job-{len(made)}", text, commands=commands, **changes)
        made.append(one)
        one.environment |= {"HOME": str(tmp_path)}
        one.start()
        return one

    yield make
    for one in made:
        one.kill()


def processes_of(one: Job) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["environ"]) if str(one.folder) in str(each.info["environ"])]


def driver_runs(one: Job) -> bool:
    return (one.folder / "calls.driver").exists()


def test_the_job_asks_for_a_signal_to_the_script_before_the_limit_and_may_be_requeued() -> None:
    options = options_of(SCRIPT.read_text())
    assert options["signal"] == "B:USR1@180"
    assert {"requeue", "no-kill"} <= set(options)
    assert (options["open-mode"], options["ntasks-per-node"], options["nodes"]) == ("append", "1", "1")


@pytest.mark.parametrize("status", [0, 1])
def test_a_sweep_that_is_complete_or_failed_is_not_requeued(job: Callable[..., Job], status: int) -> None:
    one = job(environment={"END": str(status)})
    assert one.end() == status, one.log
    assert one.calls == [
        "python -m dmray.sweep tiny.yaml --storage /shared/runs --resume -o a=1",
        f"DMRAY_DATASETS=/shared/data DMRAY_CACHE={one.folder}/node/dmray-{_user()} RAY_AUTH_MODE=",
    ]


@pytest.mark.parametrize(
    ("signalled", "at_sigterm", "status", "requeued"),
    [
        ("limit", "143", 143, True),
        ("limit", "0", 0, False),  # it was complete
        ("limit", "1", 1, False),
        ("cancelled", "143", 143, False),
    ],
)
def test_at_the_time_limit_the_driver_saves_and_the_job_is_requeued_unless_the_sweep_has_ended(
    job: Callable[..., Job], signalled: str, at_sigterm: str, status: int, requeued: bool
) -> None:
    one = job(environment={"AT_SIGTERM": at_sigterm})
    wait_until(lambda: driver_runs(one))
    one.reach_time_limit() if signalled == "limit" else one.process.terminate()
    assert one.end() == status, one.log
    assert ("scontrol requeue 4711" in one.calls) is requeued
    assert ("job 4711 is requeued" in one.log) is requeued


def test_a_job_that_slurm_does_not_requeue_says_how_to_continue(job: Callable[..., Job]) -> None:
    one = job(environment={"SCONTROL_STATUS": "1"})
    wait_until(lambda: driver_runs(one))
    one.reach_time_limit()
    assert one.end() == 1
    assert "the sweep is saved, and continues with: sbatch cluster/slurm.sbatch" in one.log


@pytest.mark.parametrize(
    ("values", "changes", "problem"),
    [
        ({"STORAGE": "/CHANGE-ME/runs"}, {}, "STORAGE=/CHANGE-ME/runs: fill in the values"),
        ({"DATA": "/CHANGE-ME/data"}, {}, "DATA=/CHANGE-ME/data: fill in"),
        ({"MAX_RESTARTS": "3"}, {"restarts": 4}, "restarted 4 times, more than MAX_RESTARTS=3"),
        ({}, {"array": (9, 8), "environment": {"SLURM_ARRAY_TASK_MAX": "9"}}, "counted from 1: sbatch --array=1-N"),
    ],
)
def test_what_cannot_go_well_is_refused_before_anything_starts(
    job: Callable[..., Job], values: dict[str, str], changes: dict[str, Any], problem: str
) -> None:
    one = job(values, **changes)
    assert one.end() == 1
    assert problem in one.log
    assert one.calls == []


def test_each_task_of_an_array_runs_its_shard_in_a_storage_of_its_own(job: Callable[..., Job]) -> None:
    one = job(array=(3, 8), environment={"END": "0"})
    assert one.end() == 0, one.log
    assert one.calls[0].endswith("--storage /shared/runs/shard-3 --resume -o a=1 --shard 3/8")


def test_in_a_container_everything_of_dmray_and_ray_runs_in_it(job: Callable[..., Job]) -> None:
    values = {"CONTAINER": "(apptainer exec --nv --bind /shared dmray-gpu.sif)", "MLFLOW": "http://mlflow:5000"}
    one = job(values, environment={"END": "0"})
    assert one.end() == 0, one.log
    command = "python -m dmray.sweep tiny.yaml --storage /shared/runs --resume -o a=1 --mlflow-uri http://mlflow:5000"
    assert one.calls[:2] == [f"apptainer exec --nv --bind /shared dmray-gpu.sif {command}", command]


def test_several_nodes_are_one_ray_with_a_token_that_ends_with_the_driver(job: Callable[..., Job]) -> None:
    from ray.scripts.scripts import start

    one = job({"HEAD_IP": "127.0.0.1"}, nodes=2)
    wait_until(lambda: driver_runs(one) and any("--head" in call for call in one.calls))
    one.reach_time_limit()
    assert one.end() == 143, one.log
    calls = one.calls
    (srun,) = [call for call in calls if call.startswith("srun")]
    assert srun.startswith(
        "srun --nodes=2 --ntasks-per-node=1 --cpus-per-task=16 --kill-on-bad-exit=0 --no-kill bash -c"
    )
    (head,) = [shlex.split(call) for call in calls if call.startswith("ray start") and "--head" in call]
    assert {"--port=24711", "--dashboard-host=127.0.0.1", "--num-cpus=16", "--block"} <= set(head)
    assert any(DRIVER_RESOURCE in word for word in head)
    known = {flag for option in start.params for flag in option.opts}
    assert {word.partition("=")[0] for word in head if word.startswith("--")} <= known
    assert "ray get-auth-token --generate" in calls
    (driver,) = [call for call in calls if call.startswith("python")]
    assert driver.endswith("--address 127.0.0.1:24711")
    assert calls[calls.index(driver) + 1].endswith("RAY_AUTH_MODE=token")
    assert "scontrol requeue 4711" in calls
    wait_until(lambda: not processes_of(one))


def test_the_address_of_the_head_is_rays_own_unless_it_is_given(job: Callable[..., Job]) -> None:
    one = job(nodes=2, environment={"END": "0"})
    assert one.end() == 0, one.log
    assert next(call for call in one.calls if call.startswith("python")).endswith("--address 10.0.0.7:24711")


CHANGES: dict[str, Any] = {
    "training": {"steps": 300, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 2, "every_steps": 300, "cohort_size": 2, "target_returns": [50.0]},
    "faults": {"checkpoint_every_steps": 50},
}


def filled_in(folder: Path, options: str) -> dict[str, str]:
    file = sweep_file(folder, **CHANGES)
    venv = Path(sys.executable).parents[1]
    values = {"SWEEP": file, "STORAGE": folder / "runs", "DATA": folder / "data", "VENV": venv}
    return {**{name: shlex.quote(str(value)) for name, value in values.items()}, "OPTIONS": options}


def until_it_trains(folder: SweepFolder, trials: tuple[str, ...]) -> None:
    def trains() -> bool:
        ledgers = [folder.trial(each).ledger for each in trials]
        return any(isinstance(each, TrainProgress) for path in ledgers if path.exists() for each in read_ledger(path))

    wait_until(trains, timeout_s=500)


def no_report(folder: SweepFolder) -> Path:
    return folder.report


def undisturbed(folder: Path) -> tuple[Plan, list[object]]:
    plan, where = tiny_plan(folder, **CHANGES), SweepFolder(folder, "tiny")
    run_sweep(plan, where, LocalRunner(), no_report, resume=False)
    return plan, science_of(where, plan.trial_ids)


@pytest.mark.chaos
def test_shards_of_an_array_one_of_them_requeued_at_its_limit_have_the_records_of_an_undisturbed_run(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    values = filled_in(tmp_path, "(--local)")
    plan, expected = undisturbed(tmp_path / "undisturbed")
    shards = [SweepFolder(tmp_path / f"runs/shard-{number}", "tiny") for number in (1, 2)]
    first = job(values, real=True, array=(1, 2))
    until_it_trains(shards[0], plan.trial_ids)
    first.reach_time_limit()
    assert first.end() == 143, first.log
    assert first.calls == ["scontrol requeue 4711"]
    again = job(values, real=True, array=(1, 2), restarts=1)
    assert again.end() == 0, again.log
    second = tiny_plan(shards[1].storage, **CHANGES)  # as the script would; without another start of Python
    run_sweep(second, shards[1], LocalRunner(), no_report, resume=True, trial_filter=TrialFilter(shard="2/2"))
    place = {trial: shard for shard in shards for trial in plan.trial_ids if shard.trial(trial).done.exists()}
    assert sorted(place) == sorted(plan.trial_ids)
    assert [each for trial in plan.trial_ids for each in science_of(place[trial], (trial,))] == expected
    attempts = [each for trial in plan.trial_ids for each in read_ledger(place[trial].trial(trial).ledger)]
    assert len([each for each in attempts if isinstance(each, AttemptStarted)]) == 3
    folders = [str(shard.path) for shard in shards]
    shown = CliRunner().invoke(report.app, [*folders, "--into", str(tmp_path / "report")])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "report/report.html").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(1800)
def test_two_nodes_of_ray_save_at_the_limit_and_the_requeued_job_has_the_records_of_an_undisturbed_run(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    values = filled_in(tmp_path, "(-o resources.executor=tune -o resources.cpus_per_trial=0.5)")
    plan, expected = undisturbed(tmp_path / "undisturbed")
    folder = SweepFolder(tmp_path / "runs", "tiny")
    changes: dict[str, Any] = {"nodes": 2, "real": True, "job_id": free_port()}  # ports and a folder follow from it
    first = job(values, **changes)
    until_it_trains(folder, plan.trial_ids)
    first.reach_time_limit()
    assert first.end() == 143, first.log
    assert f"scontrol requeue {changes['job_id']}" in first.calls
    again = job(values, restarts=1, **changes)
    assert again.end() == 0, again.log
    assert science_of(folder, plan.trial_ids) == expected
    assert not Path(f"/tmp/dmray-{changes['job_id']}").exists(), "Ray's files are removed"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    checked = subprocess.run(
        ["shellcheck", "--severity=warning", str(SCRIPT)], capture_output=True, text=True, check=False, timeout=60
    )
    assert checked.stdout == ""


def test_every_value_at_the_top_is_used() -> None:
    text = SCRIPT.read_text()
    names = re.findall(r"(?m)^([A-Z_]+)=", text.partition("set -euo pipefail")[0])
    assert {"SWEEP", "STORAGE", "DATA", "MLFLOW", "VENV", "CONTAINER", "CACHE", "OPTIONS", "HEAD_IP"} <= set(names)
    body = text.partition("set -euo pipefail")[2]
    assert [name for name in names if not re.search(rf"\b{name}\b", body)] == []


def _user() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
