"""Watches, from the driver process, what the driver and its trials wait for: Ray itself, and each process of the sweep.

Ray notices processes that die. It does not notice processes that are stopped (SIGSTOP), and its driver waits for ever
if the raylet of its machine dies. Here:

* The raylet of the driver's machine or the GCS ended, or does not answer for `frozen_timeout_s`: the sweep ends with
  `ClusterLostError`, whatever the driver's thread waits for. (Other machines are Ray's business: it runs their trials
  again elsewhere.)
* Another process of the sweep is stopped for `frozen_timeout_s`: it is killed, and replaced like one that died.
* The dispatcher of evaluations does not answer for two minutes: it is restarted.
* Ray neither starts nor ends within three minutes, or its GCS or raylet is stopped meanwhile: its processes are
  killed, and the sweep ends with `ClusterLostError`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc
import psutil
import ray
from ray._private import worker as ray_worker
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
from ray.exceptions import RayError

from dmray.coordination.commands import read_command
from dmray.errors import ClusterLostError
from dmray.interruption import interrupt_thread
from dmray.on_ray.frozen_processes import FrozenProcesses, Persistent, Stopped, stopped_among
from dmray.on_ray.session_folder import session_processes
from dmray.periodic_thread import PeriodicThread
from dmray.records import SweepFolder
from dmray.specs import FaultSpec
from dmray.trial.job import TrialJob

_log = logging.getLogger(__name__)
_PING_S = 5.0
_DISPATCHER_START_S = 120.0  # a new one must import torch first
_DEFAULT_TIMEOUT_S = 30.0  # for Ray itself, if frozen_timeout_s is null
_ENDING_S = 20.0  # what ending may take once Ray is lost, before the process is ended by force
_START_OR_END_S = 180.0  # what Ray's start, or its end, may take on a busy machine; 10 s are usual
_CORE = ("gcs_server", "raylet")
_NODE_IS_DEAD = 1  # GcsNodeInfo.DEAD


class _Stage(NamedTuple):
    """The start or the end of Ray: since when, and which of its processes have been stopped meanwhile."""

    what: str
    since: float
    stopped: Persistent


class RayWatch:
    """Watches Ray and the sweep's processes in a thread while its block runs.

    `own_ray`: Ray was started on this machine for this sweep, so all of its processes are the sweep's.
    """

    def __init__(self, folder: SweepFolder, jobs: Sequence[TrialJob], faults: FaultSpec, own_ray: bool) -> None:
        self._folder, self._jobs, self._own_ray = folder, jobs, own_ray
        self._kills = faults.frozen_timeout_s is not None
        self._timeout_s = faults.frozen_timeout_s or _DEFAULT_TIMEOUT_S
        self._look_every_s = min(5.0, max(0.2, self._timeout_s / 6))
        self._silent = Persistent(self._timeout_s)
        self._frozen: FrozenProcesses | None = None
        self._dispatcher: Any = None
        self._dispatcher_may_take_s = max(2 * self._timeout_s, _DISPATCHER_START_S)
        self._dispatcher_asked: tuple[Any, float] | None = None
        self._lost: str | None = None
        self._stop = threading.Event()
        self._waiting_thread = threading.get_ident()
        self._thread = PeriodicThread(self._look, self._look_every_s, name="dmray-ray-watch")
        self._processes: dict[str, list[Any]] = {}  # of Ray, by name, if they were started here
        self._ip = "127.0.0.1"
        self._left = threading.Event()
        self._stage: _Stage | None = None  # None: Ray is in use

    @contextlib.contextmanager
    def ending_in_time(self) -> Iterator[None]:
        """Bound the time in which Ray starts, ends, and is left after it was lost. The block connects to Ray and leaves
        it. If nothing else helps, this process is ended by force.

        Raises:
            ClusterLostError: Ray does not start.
        """
        self._stage = self._begun("start")
        self._left.clear()
        guard = PeriodicThread(self._guard, self._look_every_s, name="dmray-ray-guard")
        guard.start()
        try:
            yield
        except BaseException as raised:  # the interrupt is the caller's own kind
            if self._lost is None or isinstance(raised, ClusterLostError):
                raise
            raise ClusterLostError(self._lost) from raised
        finally:
            self._left.set()
            guard.stop()

    def follow(self, dispatcher: Any) -> None:
        """Watch the dispatcher of evaluations too, and log its warnings."""
        self._dispatcher = dispatcher

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs; Ray is connected.

        Raises:
            ClusterLostError: Ray ended, or does not answer any more.
        """
        self._waiting_thread = threading.get_ident()
        try:
            self._connect()
        except Exception as cause:
            self._lost = self._core_ended() or f"Ray on {socket.gethostname()} is lost: it does not answer ({cause!r})"
            raise ClusterLostError(self._lost) from cause
        self._stage = None
        self._thread.start()
        try:
            yield
        except BaseException as raised:
            self._stop.set()
            if self._lost is None and isinstance(raised, Exception):
                self._lost = self._core_ended() or self._core_does_not_answer()
            if self._lost is None:
                raise
        finally:
            self._stop.set()
            self._thread.stop(2 * _PING_S)
            self._lost = self._lost or self._core_ended()
            if self._lost is not None and self._own_ray:
                self._end_own_ray()
            self._stage = self._begun("end")
        if self._lost is not None:
            raise ClusterLostError(self._lost)

    def _connect(self) -> None:
        node = ray_worker._global_node
        self._processes = {name: node.all_processes.get(name, []) for name in _CORE} if node else {}
        self._node = ray.get_runtime_context().get_node_id()
        self._gcs = ray_worker.global_worker.gcs_client
        [here] = [item for item in ray.nodes() if item["NodeID"] == self._node]
        self._ip = here["NodeManagerAddress"]
        channel = init_grpc_channel(f"{self._ip}:{here['NodeManagerPort']}")
        self._raylet = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        if self._kills:
            core = [info.process.pid for infos in self._processes.values() for info in infos]
            self._frozen = FrozenProcesses(self._folder, self._jobs, self._timeout_s, self._node, core, self._own_ray)

    def _begun(self, what: str) -> _Stage:
        return _Stage(what, time.monotonic(), Persistent(self._timeout_s))

    def _look(self) -> None:
        if self._lost is not None:
            return
        lost = self._core_ended() or self._core_does_not_answer_for_long()
        if lost is not None:
            self._give_up(lost)
            return
        try:
            self._look_at_dispatcher()
            if self._frozen is not None:
                self._frozen.look()
        except (RayError, psutil.Error, OSError) as problem:  # of processes that end meanwhile; looked at again
            _log.debug("a look at the sweep's processes failed: %s", problem)

    def _guard(self) -> None:
        """While Ray starts or ends, see to it that this does not take for ever."""
        stage = self._stage
        if stage is None:
            return
        now = time.monotonic()
        lasting = stage.stopped.look(_stopped_core() if self._own_ray else [], now)
        if (not lasting and now - stage.since <= _START_OR_END_S) or self._stage is not stage:
            return
        self._stage = None
        why = (
            f"process {lasting[0].pid} is stopped (SIGSTOP)"
            if lasting
            else f"it takes longer than {_START_OR_END_S:z.0f} s"
        )
        where = f"Ray on {socket.gethostname()}" if self._own_ray else "the Ray cluster"
        what = stage.what if self._own_ray else f"let this driver {'join' if stage.what == 'start' else 'leave'}"
        self._lost = self._lost or f"{where} does not {what}: {why}"
        threading.Thread(target=self._force_the_end, name="dmray-last-words", daemon=True).start()
        if self._own_ray:
            self._end_own_ray()
        if stage.what == "start":
            interrupt_thread(self._waiting_thread)

    def _give_up(self, lost: str) -> None:
        """End what the sweep's thread waits for; by force, if that does not help."""
        self._lost = lost
        if self._stop.is_set():
            return
        threading.Thread(target=self._force_the_end, name="dmray-last-words", daemon=True).start()
        if self._own_ray:
            self._end_own_ray()  # calls to processes that are stopped fail now, instead of waiting
        interrupt_thread(self._waiting_thread)

    def _force_the_end(self) -> None:
        if self._left.wait(_ENDING_S):
            return
        try:
            command = read_command(self._folder)
            continues = f" Continue with:\n  {command.resume_command}" if command else ""
            sys.stderr.write(f"error: {self._lost}\nEnded; nothing is lost.{continues}\n")
            sys.stderr.flush()
        finally:  # also where the storage or the terminal is gone
            os._exit(1)

    def _end_own_ray(self) -> None:
        """Kill all processes of Ray on this machine; those that lost their raylet may be stopped and never notice."""
        seen = self._frozen.seen if self._frozen is not None else set()
        for process in {*session_processes(), *seen}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil checks that the id was not given to another process

    def _core_ended(self) -> str | None:
        for name, infos in self._processes.items():
            for info in infos:
                if info.process.poll() is not None:
                    return self._sentence(f"{_label(name)} (process {info.process.pid}) ended")
        return None

    def _core_does_not_answer_for_long(self) -> str | None:
        silent = self._core_does_not_answer()
        return silent if self._silent.look([silent] if silent else [], time.monotonic()) else None

    def _core_does_not_answer(self) -> str | None:
        try:
            nodes = self._gcs.get_all_node_info(timeout=_PING_S)
        except RayError:
            return self._sentence(f"{_label('gcs_server')} at {self._gcs.address} does not answer")
        states = {node.hex(): info.state for node, info in nodes.items()}
        if states.get(self._node) == _NODE_IS_DEAD:
            return self._sentence("the cluster counts this machine as dead")
        try:
            self._raylet.GetAgentPIDs(node_manager_pb2.GetAgentPIDsRequest(), timeout=_PING_S)
        except grpc.RpcError:
            return self._sentence(f"{_label('raylet')} does not answer")
        return None

    def _sentence(self, what: str) -> str:
        return f"Ray on the driver's machine {socket.gethostname()} ({self._ip}) is lost: {what}"

    def _look_at_dispatcher(self) -> None:
        if self._dispatcher is None:
            return
        now = time.monotonic()
        if self._dispatcher_asked is None:
            self._dispatcher_asked = self._dispatcher.take_warnings.remote(), now
            return
        answer, asked_at = self._dispatcher_asked
        if ray.wait([answer], timeout=0)[0]:
            self._dispatcher_asked = None
            for warning in ray.get(answer):
                _log.warning("%s", warning)
        elif self._kills and now - asked_at > self._dispatcher_may_take_s:
            self._dispatcher_may_take_s *= 2  # it may be a machine on which it starts too slowly
            self._dispatcher_asked = self._dispatcher.take_warnings.remote(), now
            _log.warning("the dispatcher of evaluations does not answer for %.0f s; restarting it", now - asked_at)
            ray.kill(self._dispatcher, no_restart=False)


def _stopped_core() -> list[Stopped]:
    """The GCS and the raylet of the Ray that this process has started or is starting, if they are stopped."""
    core = []
    for process in session_processes():
        with contextlib.suppress(psutil.Error):  # it ends meanwhile
            core += [process.pid] if process.name() in _CORE else []
    return stopped_among("", core)


def _label(process: str) -> str:
    return "the GCS (the head of Ray)" if process == "gcs_server" else "the raylet"
