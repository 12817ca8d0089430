"""What a user does, through the command line: run, kill -9 the driver in the middle, resume, look at the result."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import dmray
from dmray.cli import sweep
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import AttemptPaused, AttemptStarted, SweepFolder, read_ledger
from tests.sweeps import science_of, sweep_file, tiny_plan
from tests.waiting import wait_until

CHANGES = {
    "grid": [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
    "training": {"steps": 300, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 4, "every_steps": 100, "cohort_size": 2, "target_returns": [50.0]},
    "resources": {"cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5},
    "tracking": {"log_every_steps": 20, "flush_every_s": 0.5},
}


def command(sweep_file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dmray.sweep", str(sweep_file), *options]


def run(sweep_file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(sweep_file, *options), capture_output=True, text=True, timeout=300)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's queries, not ours
def test_a_sweep_whose_driver_is_killed_resumes_to_the_result_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Without Ray; tests/on_ray/test_chaos.py kills the driver of a sweep on Ray."""
    import mlflow

    whole, broken = (sweep_file(tmp_path / name, **CHANGES) for name in ("whole", "broken"))
    assert dmray.run_sweep(whole, local=True, mlflow_uri="off", progress=False).succeeded
    (trial_id,) = tiny_plan(tmp_path, **CHANGES).trial_ids
    folder = SweepFolder(tmp_path / "broken", "tiny")
    plan = tiny_plan(tmp_path / "broken", **CHANGES)
    start = command(broken, "--local")
    with subprocess.Popen(start, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        wait_until(folder.trial(plan.trial_ids[0]).last_checkpoint.exists, timeout_s=200.0)
        driver.send_signal(signal.SIGKILL)

    resumed = run(broken, "--local", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    told = [line[20:] for line in resumed.stderr.splitlines() if line[20:].startswith(trial_id)]
    first, *evaluations, last = told
    assert first.startswith(f"{trial_id}: attempt 2 started on")
    assert last.startswith(f"{trial_id}: finished at step 300")
    steps = [f"{trial_id}: evaluation at step {step}:" for step in range(100, 301, 100)][-len(evaluations) :]
    assert [line[: len(begin)] for line, begin in zip(evaluations, steps, strict=True)] == steps, "one line a change"
    assert set(trial_statuses(plan, folder).values()) == {TrialStatus.FINISHED}
    assert science_of(folder, plan.trial_ids) == science_of(SweepFolder(tmp_path / "whole", "tiny"), plan.trial_ids)
    attempts = [r for r in read_ledger(folder.trial(plan.trial_ids[0]).ledger) if isinstance(r, AttemptStarted)]
    assert attempts[-1].from_step > 0, "the killed trial continued from its checkpoint"

    client = mlflow.MlflowClient(f"sqlite:///{folder.mlflow_database}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "dmray/tiny"]
    runs = client.search_runs([experiment.experiment_id], "tags.`dmray.level` = 'trial'")
    assert len(runs) == 1, "a trial has one run"
    for one in runs:
        assert one.info.status == "FINISHED"
        steps = [metric.step for metric in client.get_metric_history(one.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(20, 301, 20)), "each step once"


def interfaces(processes: list[psutil.Process]) -> set[str]:
    """The addresses at which processes listen."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.ray
def test_sigterm_to_a_sweep_on_ray_saves_ends_everything_and_continues_to_the_same_numbers(tmp_path: Path) -> None:
    """Sent to all processes of the sweep, as Slurm does."""
    short = CHANGES | {"training": {"steps": 1000, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5}}
    short |= {"tracking": {"log_every_steps": 100, "mlflow_uri": "off"}}
    short |= {"evaluation": {"episodes": 4, "every_steps": 500, "cohort_size": 2, "target_returns": [50.0]}}
    file, whole = sweep_file(tmp_path / "ended", **short), sweep_file(tmp_path / "whole", **short)
    folder, plan = SweepFolder(tmp_path / "ended", "tiny"), tiny_plan(tmp_path / "ended", **short)
    trial = folder.trial(plan.trial_ids[0])
    sockets = Path(tempfile.mkdtemp(prefix="dmr", dir="/tmp"))  # a short path, for Unix sockets
    home = {"HOME": "/nonexistent", "RAY_ADDRESS": "10.255.255.1:6379", "RAY_TMPDIR": str(sockets)}
    driver = subprocess.Popen(
        command(file),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | home,
        start_new_session=True,
    )
    try:
        wait_until(lambda: trial.last_checkpoint.exists() or driver.poll() is not None, timeout_s=250.0)
        processes = psutil.Process(driver.pid).children(recursive=True)
        listening = interfaces(processes)
        (session,) = (sockets / f"dmray-{os.getuid()}").iterdir()
        private = stat.S_IMODE((session / "auth_token").stat().st_mode)
        os.killpg(driver.pid, signal.SIGTERM)
        _, errors = driver.communicate(timeout=100)
    finally:
        driver.kill()
    assert driver.returncode == 143, errors
    assert f"Continue with:\n  python -m dmray.sweep {file} --resume" in errors
    assert all(phase in errors for phase in ("starting Ray", "starting the evaluation actors (1)", "ending Ray"))
    assert not any(word in errors for word in ("Traceback", "*** SIGTERM", "(unknown)")), errors
    assert isinstance(read_ledger(trial.ledger)[-1], AttemptPaused), "saved at the step at which it was"
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert private == 0o600
    assert not [process for process in processes if process.is_running()]
    assert not list((sockets / f"dmray-{os.getuid()}").iterdir())
    shutil.rmtree(sockets)

    for one, options in ((file, ["--local", "--resume"]), (whole, ["--local"])):
        done = run(one, *options)
        assert done.returncode == 0, done.stderr
    assert science_of(folder, plan.trial_ids) == science_of(SweepFolder(tmp_path / "whole", "tiny"), plan.trial_ids)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=["ctrl-c", "hang-up"])
def test_a_signal_stops_a_local_sweep_saves_and_says_how_to_resume(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    """At a hang-up the terminal is gone: output is lost, and nothing else is."""
    long = CHANGES | {"training": {"steps": 1_000_000, "batch_size": 8}, "tracking": {"mlflow_uri": "off"}}
    file = sweep_file(tmp_path / "it's a folder", **long)
    driver = subprocess.Popen(command(file, "--local"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stderr is not None
    try:
        plan = tiny_plan(tmp_path / "it's a folder", **long)
        trial = SweepFolder(tmp_path / "it's a folder", "tiny").trial(plan.trial_ids[0])
        wait_until(trial.last_checkpoint.exists, timeout_s=200.0)
        if signum == signal.SIGHUP:
            driver.stderr.close()
        driver.send_signal(signum)
        driver.wait(timeout=100)
        errors = "" if driver.stderr.closed else driver.stderr.read()
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == status
    assert isinstance(read_ledger(trial.ledger)[-1], AttemptPaused)
    if signum == signal.SIGINT:
        assert f"python -m dmray.sweep {shlex.quote(str(file))} --local --resume" in errors


def test_the_full_benchmark_plans_quickly_without_loading_torch_or_ray() -> None:
    path = Path(__file__).parent.parent / "sweeps" / "full_benchmark.yaml"
    planned = run(path, "--plan")
    assert planned.returncode == 0
    assert "540 trials" in planned.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "datasets=[hoper-medium-v2]"], "hopper-medium-v2"),
        (
            ["-o", "datasets=[antmaze-umaze-v2]"],
            "DMRAY_OFFLINE forbids a download of http://",
        ),
        (
            ["-o", "datasets=[{name: mine, task: hopper, path: none.hdf5}]"],
            f"{Path('none.hdf5').absolute()}: no such file",
        ),
        (["--storage", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["--storage", "/etc/passwd"], "/etc/passwd is a file; choose another folder with --storage"),
        (["--mlflow-uri", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
        (["--address", "auto", "--local"], "--address auto: --local does not use Ray"),
    ],
)
@pytest.mark.filterwarnings("default")  # MLflow's dependencies warn about each other
def test_a_mistake_is_one_clear_message_and_a_failed_exit_status(
    tmp_path: Path, options: list[str], message: str
) -> None:
    told = CliRunner().invoke(sweep.app, [str(sweep_file(tmp_path)), *options])
    assert isinstance(told.exception, SystemExit), "an error that is no mistake of the user"
    assert told.exit_code == 1
    assert message in told.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "grid.0.methods=[dmm]"], "did you mean 'dm'?"),
        (["--address", "127.0.0.1:9"], "no Ray cluster"),
    ],
)
def test_a_mistake_ends_the_process_without_a_traceback(tmp_path: Path, options: list[str], message: str) -> None:
    done = run(sweep_file(tmp_path), *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_trial_is_told_and_fails_the_command(tmp_path: Path) -> None:
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(b"not HDF5")
    file = sweep_file(tmp_path, datasets=[{"name": "mine", "task": "maze2d-open", "path": str(broken)}])
    done = run(file, "--local")
    assert done.returncode == 1
    assert str(broken) in done.stderr
