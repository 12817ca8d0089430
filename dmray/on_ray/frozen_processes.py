"""Finds the processes of a sweep that are stopped (SIGSTOP), and kills them: Ray replaces what died, not what waits."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psutil
import ray
from ray._private import state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dmray.on_ray.session_folder import session_processes
from dmray.progress.trial_status import read_history
from dmray.records import SweepFolder
from dmray.trial.job import TrialJob
from dmray.trial.watchdog import mark_frozen

_log = logging.getLogger(__name__)
_FEWEST_LOOKS = 3  # in a row: a machine that was suspended as a whole stopped all processes, this one too


class Stopped(NamedTuple):
    """A process that is stopped. `created` tells it from a later process with the same id."""

    node: str
    pid: int
    created: float
    title: str


class Persistent:
    """Which of some things were seen in every look for `timeout_s`, and in three looks at least."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since: dict[Any, tuple[float, int]] = {}

    def look(self, seen: Iterable[Any], now: float) -> list[Any]:
        """What is seen at `now`, a monotonic time; those that have been seen for long enough, which start again."""
        before = self._since
        self._since = {item: (before.get(item, (now, 0))[0], before.get(item, (now, 0))[1] + 1) for item in seen}
        lasting = [
            item
            for item, (since, looks) in self._since.items()
            if now - since >= self._timeout_s and looks >= _FEWEST_LOOKS
        ]
        for item in lasting:
            del self._since[item]
        return lasting


class FrozenProcesses:
    """The processes of a sweep on all machines: those that stay stopped for `timeout_s` are killed.

    `own_ray`: Ray was started on this machine for this sweep, so all of its processes are the sweep's, except `core`
    (process ids of Ray's own). Else the sweep's are its actors. `node`: Ray's id of this machine.
    """

    def __init__(
        self,
        folder: SweepFolder,
        jobs: Sequence[TrialJob],
        timeout_s: float,
        node: str,
        core: Iterable[int],
        own_ray: bool,
    ) -> None:
        self._folder, self._jobs, self._timeout_s = folder, jobs, timeout_s
        self._node, self._core, self._own_ray = node, set(core), own_ray
        self._ray_job = ray.get_runtime_context().get_job_id()
        self._lasting = Persistent(timeout_s)
        self._asked: dict[str, Any] = {}  # by node: the answer that it owes
        self._last_answer: dict[str, list[Stopped]] = {}
        self.seen: set[psutil.Process] = set()  # the processes of our own Ray at the last look

    def look(self) -> None:
        """Look once. Raises what Ray and the system say of processes that end meanwhile."""
        for frozen in self._lasting.look(self._stopped_here() + self._stopped_elsewhere(), time.monotonic()):
            job = self._job_of(frozen)
            _log.warning(
                "process %d (%s)%s has been stopped (SIGSTOP) for %.0f s; it is killed, and another continues its work",
                frozen.pid,
                frozen.title,
                f", the worker of {job.trial.trial_id}," if job else "",
                self._timeout_s,
            )
            job_json = job.model_dump_json() if job else None
            if frozen.node == self._node:
                end_frozen(frozen, job_json, self._timeout_s)
            else:
                there = NodeAffinitySchedulingStrategy(frozen.node, soft=False)
                _end_frozen_there.options(scheduling_strategy=there).remote(frozen, job_json, self._timeout_s)

    def _stopped_here(self) -> list[Stopped]:
        if not self._own_ray:
            return stopped_among(self._node, self._actor_processes().get(self._node, []))
        self.seen = set(session_processes())
        return stopped_among(self._node, sorted({process.pid for process in self.seen} - self._core))

    def _stopped_elsewhere(self) -> list[Stopped]:
        """By the last answer of each node. Nodes without actors of the sweep are not asked, so they can be removed."""
        if self._own_ray:
            return []
        others = {node: pids for node, pids in self._actor_processes().items() if node != self._node}
        for node, answer in list(self._asked.items()):
            if ray.wait([answer], timeout=0)[0]:
                del self._asked[node]
                with contextlib.suppress(RayError):  # the node is gone
                    self._last_answer[node] = ray.get(answer)
        self._last_answer = {node: answer for node, answer in self._last_answer.items() if node in others}
        for node, pids in others.items():
            if node not in self._asked:
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                self._asked[node] = _stopped_there.options(scheduling_strategy=there).remote(node, pids)
        return [item for answer in self._last_answer.values() for item in answer]

    def _actor_processes(self) -> dict[str, list[int]]:
        """The ids of the processes of this job's actors, by node."""
        found: dict[str, list[int]] = {}
        for actor in state.actors().values():
            if actor["JobID"] == self._ray_job and actor["State"] == "ALIVE" and actor["Pid"]:
                found.setdefault(actor["Address"]["NodeID"], []).append(actor["Pid"])
        return found

    def _job_of(self, process: Stopped) -> TrialJob | None:
        """The trial whose worker that process is, as its ledger says."""
        for job in self._jobs:
            folder = self._folder.trial(job.trial.trial_id)
            last = None if folder.done.exists() else read_history(folder, job.trial).last_attempt
            if last is not None and last.provenance.get("pid") == process.pid and last.time_s >= process.created:
                return job
        return None


def stopped_among(node: str, pids: Iterable[int]) -> list[Stopped]:
    """Those of `pids`, processes of this machine, that are stopped."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_STOPPED:
                title = " ".join(process.cmdline()).strip()
                found.append(Stopped(node, pid, process.create_time(), title))
    return found


def end_frozen(frozen: Stopped, job_json: str | None, stopped_for_s: float) -> None:
    """Kill a process of this machine, if it is still stopped; a trial's next attempt finds what happened."""
    if frozen not in stopped_among(frozen.node, [frozen.pid]):
        return
    if job_json is not None:
        mark_frozen(TrialJob.model_validate_json(job_json).folder, frozen.pid, stopped_for_s)
    with contextlib.suppress(ProcessLookupError):
        os.kill(frozen.pid, signal.SIGKILL)


_stopped_there = ray.remote(num_cpus=0, max_retries=0)(stopped_among)
_end_frozen_there = ray.remote(num_cpus=0, max_retries=0)(end_frozen)
