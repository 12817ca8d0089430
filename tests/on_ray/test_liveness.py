"""Processes that are stopped, and a Ray that is lost: nothing waits for them for ever."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import ray

from dmray.driver.local_runner import LocalRunner
from dmray.errors import ClusterLostError, StorageError
from dmray.on_ray import RayRunner, evaluation_pool, liveness
from dmray.on_ray.cohort_deadlines import CohortDeadlines
from dmray.on_ray.evaluation_pool import Dispatcher
from dmray.on_ray.frozen_processes import Persistent
from dmray.on_ray.liveness import RayWatch
from dmray.on_ray.trainable import is_transient
from dmray.progress.trial_status import TrialStatus, failures, trial_statuses
from dmray.records import AttemptFailed, AttemptStarted, SweepFolder, read_ledger
from dmray.rollout import EpisodeRecord, cohorts
from dmray.specs import FaultSpec, ResourcesSpec
from tests.on_ray.evaluations import policy_and_request
from tests.sweeps import science_of, sweep_file, tiny_plan
from tests.waiting import wait_until


def test_only_what_is_seen_in_every_look_for_long_enough_is_told() -> None:
    persistent = Persistent(timeout_s=10.0)
    assert persistent.look(["a", "b"], 0.0) == []
    assert persistent.look(["a"], 6.0) == []
    assert persistent.look(["a", "b"], 12.0) == ["a"], "b was gone in between"
    assert persistent.look(["a", "b"], 18.0) == [], "a starts again"
    assert persistent.look(["a", "b"], 24.0) == ["b"]


def test_a_machine_that_slept_makes_nothing_late() -> None:
    persistent = Persistent(timeout_s=10.0)
    persistent.look(["a"], 0.0)
    assert persistent.look(["a"], 5000.0) == []


def test_a_cohort_may_take_a_multiple_of_the_slowest_one_of_its_trial(tmp_path: Path) -> None:
    _, request = policy_and_request(tmp_path)
    cohort, horizon = cohorts(request)[0], request.task.horizon
    deadlines = CohortDeadlines(timeout_s=1000.0)
    rows = len(cohort.rows)
    assert deadlines.deadline_s("a", request, cohort, warm=True) == 1000.0, "nothing is measured"
    records = tuple(EpisodeRecord(index, 0, None, 0.0, 100) for index in range(rows))
    deadlines.measured("a", records, seconds=rows * 100 * 0.02)
    deadlines.measured("a", records, seconds=rows * 100 * 0.01)  # faster: the slowest counts
    assert deadlines.deadline_s("a", request, cohort, warm=True) == pytest.approx(10 * 0.02 * rows * horizon)
    assert deadlines.deadline_s("a", request, cohort, warm=False) == 1000.0, "a new actor loads its simulator"
    assert deadlines.deadline_s("b", request, cohort, warm=True) == 1000.0, "another policy"
    deadlines.measured("c", records, seconds=1e-6)
    assert deadlines.deadline_s("c", request, cohort, warm=True) == 60.0


class FakeActor:
    """Answers with `records`; never, if there are none."""

    def __init__(self, records: tuple[EpisodeRecord, ...] | None) -> None:
        self.records, self.rollout = records, self

    async def remote(self, *_: object) -> tuple[EpisodeRecord, ...]:
        if self.records is None:
            await asyncio.Event().wait()
        return self.records or ()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    killed: list[object] = []
    monkeypatch.setattr(evaluation_pool.ray, "kill", killed.append)
    return killed


def dispatched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, actors: list[FakeActor]) -> tuple[Any, list[str]]:
    """What a dispatcher answers that gets these actors, one after the other; and its warnings."""

    async def started(self: Dispatcher, place: int) -> FakeActor:
        self._actors[place] = (actors[0], 0)
        return actors.pop(0)

    async def run() -> tuple[Any, list[str]]:
        dispatcher = Dispatcher(ResourcesSpec(), idle_s=60.0, timeout_s=0.05)
        try:
            (answer,) = await asyncio.gather(dispatcher.evaluate("t", [None], request), return_exceptions=True)
            return answer, await dispatcher.take_warnings()
        finally:
            for place in dispatcher._places:
                place.cancel()

    monkeypatch.setattr(Dispatcher, "_started", started)
    monkeypatch.setattr(evaluation_pool, "_RETRY_AFTER_S", 0.01)
    _, request = policy_and_request(tmp_path, episodes=3)
    return asyncio.run(run())


def test_an_actor_that_misses_the_deadline_is_replaced_and_its_episodes_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, killed: list[object]
) -> None:
    records = (EpisodeRecord(0, 0, None, 1.0, 10),)
    hung = FakeActor(None)
    answer, warnings = dispatched(monkeypatch, tmp_path, [hung, FakeActor(records)])
    assert answer == records
    assert killed == [hung]
    [warning] = warnings
    assert warning.startswith("an evaluation actor did not finish 3 episodes of maze2d-open in 0 s; it is replaced, ")


def test_a_cohort_that_hangs_every_actor_fails_for_the_trial_which_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, killed: list[object]
) -> None:
    answer, warnings = dispatched(monkeypatch, tmp_path, [FakeActor(None) for _ in range(6)])
    assert isinstance(answer, TimeoutError)
    assert is_transient(answer)
    assert len(killed) == len(warnings) == 5


class SilentRay(RayWatch):
    """A watch that finds what it is told to find."""

    ended: str | None = None

    def _connect(self) -> None:
        self._processes: dict[str, Any] = {}

    def _core_ended(self) -> str | None:
        return self.ended

    def _core_does_not_answer(self) -> str | None:
        return None


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_lost_ray_ends_the_wait_of_the_sweeps_thread(tmp_path: Path, in_main_thread: bool) -> None:
    outcome: list[object] = []

    def sweep() -> None:
        watch = SilentRay(SweepFolder(tmp_path, "tiny"), [], FaultSpec(frozen_timeout_s=1.0), own_ray=False)
        try:
            with watch.ending_in_time(), watch.watching():
                watch.ended = "the raylet ended"
                while not outcome:
                    threading.Event().wait(0.05)
        except ClusterLostError as lost:
            outcome.append(str(lost))

    if in_main_thread:
        sweep()
    else:
        thread = threading.Thread(target=sweep)
        thread.start()
        thread.join(30.0)
    assert outcome == ["the raylet ended"]


def test_a_look_that_fails_does_not_end_the_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = SilentRay(SweepFolder(tmp_path, "tiny"), [], FaultSpec(frozen_timeout_s=0.5), own_ray=False)
    looks: list[int] = []

    def fail() -> None:
        looks.append(len(looks))
        watch.ended = "the raylet ended" if len(looks) > 1 else None
        raise StorageError("the ledger of another trial is damaged")

    watch._look_at_dispatcher = fail  # type: ignore[method-assign]
    with pytest.raises(ClusterLostError, match="the raylet ended"), watch.ending_in_time(), watch.watching():
        wait_until(lambda: False, 30.0)
    assert len(looks) == 2
    assert "the ledger of another trial is damaged" in caplog.text


@pytest.mark.parametrize("gone", ["terminal", "storage"])
def test_a_process_that_must_end_ends_where_nobody_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("gone")

    statuses: list[int] = []
    monkeypatch.setattr(liveness, "_ENDING_S", 0.0)
    monkeypatch.setattr(liveness.os, "_exit", statuses.append)
    monkeypatch.setattr(*((liveness, "read_command", fail) if gone == "storage" else (sys.stderr, "write", fail)))
    watch = SilentRay(SweepFolder(tmp_path, "tiny"), [], FaultSpec(), own_ray=False)
    with pytest.raises(OSError, match="gone"):
        watch._force_the_end()
    assert statuses == [1]


@pytest.mark.parametrize(("own_ray", "what"), [(True, "not start"), (False, "not let this driver join")])
def test_a_ray_that_does_not_start_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_ray: bool, what: str
) -> None:
    monkeypatch.setattr(liveness, "_START_OR_END_S", 0.3)
    watch = RayWatch(SweepFolder(tmp_path, "tiny"), [], FaultSpec(frozen_timeout_s=1.0), own_ray)
    with pytest.raises(ClusterLostError, match=f"does {what}: it takes longer than"), watch.ending_in_time():
        wait_until(lambda: False, 30.0)


@pytest.fixture
def stopped_gcs(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = tmp_path / f"dmray-{os.getuid()}" / "gcs_server"
    program.parent.mkdir()
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        yield process
        process.kill()


class Started(NamedTuple):
    process: subprocess.Popen[bytes]


def test_a_gcs_that_is_stopped_while_ray_starts_ends_the_sweep(
    tmp_path: Path, stopped_gcs: subprocess.Popen[bytes]
) -> None:
    watch = RayWatch(SweepFolder(tmp_path, "tiny"), [], FaultSpec(frozen_timeout_s=0.5), own_ray=True)
    said = f"does not start: process {stopped_gcs.pid} is stopped"
    with pytest.raises(ClusterLostError, match=said), watch.ending_in_time():
        wait_until(lambda: False, 30.0)
    assert stopped_gcs.wait(30.0) == -signal.SIGKILL


def test_processes_that_end_while_they_are_looked_at_are_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(ended.pid)
    ended.communicate(b"\n")
    monkeypatch.setattr(liveness, "session_processes", lambda: [process])
    assert liveness._stopped_core() == []


def test_a_gcs_that_is_stopped_while_ray_ends_is_killed(
    tmp_path: Path, stopped_gcs: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_force: list[bool] = []
    monkeypatch.setattr(SilentRay, "_force_the_end", lambda watch: by_force.append(watch._left.wait(30.0)))
    watch = SilentRay(SweepFolder(tmp_path, "tiny"), [], FaultSpec(frozen_timeout_s=0.5), own_ray=True)
    with watch.ending_in_time():
        with watch.watching():
            pass
        assert stopped_gcs.wait(30.0) == -signal.SIGKILL
    wait_until(lambda: by_force, 10.0)
    assert by_force == [True], "the block was left in time"


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_frozen_actor_worker_and_dispatcher_change_nothing_that_is_recorded(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With executor "tune"; tests/on_ray/test_nodes.py takes a Ray Train worker away with its machine."""
    changes = {
        "grid": [{"methods": ["hdm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
        "datasets": [
            {"name": "open-expert", "task": "maze2d-open", "generate": {"behaviour": "expert", "transitions": 1500}},
            "maze2d-umaze-v1",  # not there: its trials fail, the others go on
        ],
        "training": {"steps": 600, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
        "evaluation": {"episodes": 4, "every_steps": 150, "cohort_size": 2, "target_returns": [50.0]},
        "resources": {"executor": "tune", "cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5},
        "faults": {"checkpoint_every_steps": 50, "frozen_timeout_s": 1.0},
    }
    here, there = (tiny_plan(tmp_path / name, **changes) for name in ("local", "ray"))
    local, remote = (SweepFolder(tmp_path / name, "tiny") for name in ("local", "ray"))
    LocalRunner().run(here, here.trials, local)
    ledger = remote.trial(there.trial_ids[0]).ledger
    others = set(ray.util.list_named_actors())
    frozen: list[int] = []

    def freeze(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        frozen.append(pid)
        wait_until(lambda: _gone(pid), 120.0)

    def freeze_all() -> None:
        wait_until((ledger.parent / "checkpoints" / "last.pt").exists, 250.0)
        (name,) = set(ray.util.list_named_actors()) - others
        dispatcher = ray.get_actor(name)
        freeze(ray.get(dispatcher.process_ids.remote())[0])
        attempts = [record for record in read_ledger(ledger) if isinstance(record, AttemptStarted)]
        freeze(attempts[-1].provenance["pid"])
        freeze(ray.get(dispatcher.process_id.remote()))

    monkey = threading.Thread(target=freeze_all)
    monkey.start()
    RayRunner().run(there, there.trials, remote)
    monkey.join(300.0)
    assert len(frozen) == 3
    assert list(trial_statuses(there, remote).values()) == [TrialStatus.FINISHED, TrialStatus.FAILED]
    assert all("maze2d-umaze-sparse-v1.hdf5" in error for error in failures(there, remote).values())
    assert all(f"process {pid} (ray::" in caplog.text for pid in frozen)
    [told] = [line for line in caplog.text.splitlines() if "attempt 2 of 4 follows" in line]
    assert f"{there.trial_ids[0]}: its process ended: The actor died" in told
    assert "ended: " in (ledger.parent / "log.txt").read_text()
    [failure] = [record for record in read_ledger(ledger) if isinstance(record, AttemptFailed)]
    assert failure.error == f"WorkerFrozen: process {frozen[1]} was stopped (SIGSTOP) for 1 s and was killed"
    assert science_of(remote, there.trial_ids[:1]) == science_of(local, here.trial_ids[:1])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("core", "hit", "why"), [("raylet", "SIGKILL", "ended"), ("gcs_server", "SIGSTOP", "silent")])
def test_a_sweep_whose_ray_is_lost_ends_and_says_how_to_continue(tmp_path: Path, core: str, hit: str, why: str) -> None:
    file = sweep_file(
        tmp_path,
        training={"steps": 100_000, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
        resources={"executor": "tune", "cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5},
        faults={"checkpoint_every_steps": 50, "frozen_timeout_s": 2.0},
    )
    folder = SweepFolder(tmp_path, "tiny")
    command = [sys.executable, "-m", "dmray.sweep", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweep:

        def trains() -> bool:
            assert sweep.poll() is None, sweep.communicate()[1]
            return bool(list(folder.path.glob("trials/*/checkpoints/last.pt")))

        wait_until(trains, 300.0)
        processes = psutil.Process(sweep.pid).children(recursive=True)
        (victim,) = [process for process in processes if process.name() == core]
        victim.send_signal(getattr(signal, hit))
        _, said = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, said
    assert "Traceback" not in said
    expected = f"raylet (process {victim.pid}) ended" if why == "ended" else "does not answer"
    assert f"error: Ray on the driver's machine {os.uname().nodename}" in said
    assert expected in said
    assert f"Continue with:\n  python -m dmray.sweep {file} --resume" in said
    wait_until(lambda: all(_gone(process.pid) for process in processes), 120.0)


def _gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
