"""A trial's side of a pack: the interface of `dmray.training.Trainer`, with the network in another process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import torch

import dmray.errors
from dmray.errors import DmrayError, PackServerError
from dmray.file_lock import file_lock
from dmray.packs.channel import Channel, Message, connect, session_folder
from dmray.packs.server import LOG, PID, SOCKET, START_LOCK, PackSettings
from dmray.policies import SequencePolicy
from dmray.processes import started_at
from dmray.specs import TrialSpec
from dmray.training import StepMetrics
from dmray.training.pack import UNCOMPILED
from dmray.training.trainer import warm_up

_START_S, _HELLO_S, _CONNECT_S = 300.0, 30.0, 10.0
_ANSWER_S = 900.0  # the first steps of any pack of the process are compiled, and the others wait meanwhile
_LOOK_EVERY_S = 60.0  # for whether the process is frozen or hangs; one that compiles still answers a greeting
_SILENT_S = 120.0  # of its main thread, while no pack is set up; as the dispatcher of evaluations may take
_IN_FIRST = "import os, sys; os.fork() and os._exit(0); from dmray.packs.server import main; main()"
_OF_A_STATE = {"RuntimeError", "TypeError", "ValueError", "KeyError"}
_log = logging.getLogger(__name__)


class PackedTrainer:
    """Trains a trial in a pack, with the steps that a `Trainer` of its own would take (up to rounding).

    `policy` has the initial weights, on the CPU. The process that has the network is started if it does not run.

    Raises (every method that talks to that process):
        PackServerError: it ended or does not answer.
    """

    device = "cpu"  # of everything that it returns

    def __init__(
        self, trial: TrialSpec, policy: SequencePolicy, fingerprint: str, recordings: Path, server: ServerPlace
    ) -> None:
        self._spec, self._policy, self._server = trial.training, policy, server
        self._steps_done = self._weights_of = 0
        torch.manual_seed(trial.seed)  # as a trainer does; nothing draws from it
        self._channel = server.connect()
        self._ends = weakref.finalize(self, self._channel.close)
        joined = self._ask(
            "join",
            {
                "trial": trial.model_dump_json(),
                "fingerprint": fingerprint,
                "recordings": str(recordings),
                "weights": policy.state_dict(),
            },
        )
        self.captured, self.compiled = bool(joined["captured"]), bool(joined["compiled"])
        self.is_set_up = bool(joined["is_set_up"])
        self.scan_backend: str | None = joined["scan_backend"]
        self.gpu_uuid: str | None = joined["gpu_uuid"]

    @property
    def policy(self) -> SequencePolicy:
        """The policy with the weights after the last step, on the CPU."""
        if self._weights_of != self._steps_done:
            self._policy.load_state_dict(self._ask("weights"))
            self._weights_of = self._steps_done
        return self._policy

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken so far, over all attempts."""
        return self._steps_done

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._spec.learning_rate * warm_up(self._steps_done, self._spec.warmup_steps)

    def advance(self, most: int) -> StepMetrics:
        """Take at least one and at most `most` steps: as many as take about a second. Metrics are (steps, stages)."""
        answer = self._ask("advance", most)
        metrics = StepMetrics(answer["stage_losses"], answer["grad_norms"])
        self._steps_done += len(metrics.stage_losses)
        self.is_set_up = bool(answer["is_set_up"])
        if self.compiled and not answer["compiled"]:
            _log.warning("%s; the reason is in %s", UNCOMPILED, self._server.folder / LOG)
        self.compiled = bool(answer["compiled"])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The content of `Trainer.state_dict`."""
        state = self._ask("state")
        self._policy.load_state_dict(state["policy"])
        self._weights_of = self._steps_done
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state_dict` of a packed or unpacked trainer with the same recipe, spec and seed."""
        self._ask("load", state)
        self._policy.load_state_dict(state["policy"])
        self._steps_done = self._weights_of = state["step"]

    def close(self) -> None:
        """Leave the seat."""
        self._ends()

    def _ask(self, kind: str, content: Any = None) -> Message:
        deadline = time.monotonic() + _ANSWER_S
        try:
            self._channel.send({kind: content}, _ANSWER_S)
            while not self._channel.has_answer(_LOOK_EVERY_S):
                if time.monotonic() > deadline or not self._server.answers():
                    raise TimeoutError
            answer = self._channel.receive(_ANSWER_S)
        except TimeoutError as cause:
            self._server.kill()
            raise self._server.error("did not answer in time and was killed") from cause
        except OSError as cause:
            raise self._server.error(f"ended ({cause})") from cause
        if "error" in answer:
            self._raise(kind, *answer["error"])
        return answer

    def _raise(self, kind: str, name: str, message: str) -> None:
        known = getattr(dmray.errors, name, None)
        if isinstance(known, type) and issubclass(known, DmrayError):
            raise known(message)
        if kind == "load" and name in _OF_A_STATE:
            raise RuntimeError(message)
        raise self._server.error(f"failed ({name}: {message})")


class ServerPlace:
    """Where the server with these settings runs for those who share `name`; starts it.

    `name`: whatever tells apart those that may not share a server. The GPUs that this process sees are added to it.
    """

    def __init__(self, name: str, settings: PackSettings) -> None:
        self._settings = settings
        shared = f"{name} {os.environ.get('CUDA_VISIBLE_DEVICES')} {settings.model_dump_json()}"
        self.folder = session_folder(hashlib.sha256(shared.encode()).hexdigest()[:16])

    def connect(self) -> Channel:
        """A connection to the server, which is started if none answers.

        Raises:
            PackServerError: it does not start.
        """
        with file_lock(self.folder / START_LOCK, _START_S, "another trial is starting the process for packed trials"):
            channel = self._connected()
            if channel is None:
                self._start()
                channel = self._connected()
            if channel is None:
                raise self.error("started and does not answer")
            return channel

    def answers(self) -> bool:
        """Whether the server answers a greeting and does not hang; one that does not answer, or hangs, is killed."""
        if (channel := self._connected()) is not None:
            channel.close()
        return channel is not None

    def error(self, what: str) -> PackServerError:
        """`what`: what happened to the server."""
        return PackServerError(
            f"the process that trains packed trials {what}; the trial is tried again from its last checkpoint, and "
            f"the log is {self.folder / LOG} on this machine"
        )

    def kill(self) -> None:
        """End a server that does not answer; another one is started by the next trial that needs it."""
        if (pid := self._pid()) is not None:
            _log.warning("process %d, which trains packed trials, does not answer and is killed", pid)
            os.kill(pid, signal.SIGKILL)

    def _pid(self) -> int | None:
        """The id of the server's process, if it still runs."""
        try:
            known = json.loads((self.folder / PID).read_text(encoding="utf-8"))
            pid = int(known["pid"])
        except (OSError, ValueError, KeyError):
            return None
        return pid if pid != os.getpid() and started_at(pid) == known["started_at"] else None

    def _connected(self) -> Channel | None:
        try:
            channel = connect(self.folder / SOCKET, _CONNECT_S)
        except OSError:
            return None
        try:
            channel.send({"hello": None}, _HELLO_S)
            if channel.receive(_HELLO_S)["silent_s"] > _SILENT_S:
                raise TimeoutError
        except OSError as problem:
            channel.close()
            if isinstance(problem, TimeoutError):
                self.kill()
            return None
        return channel

    def _start(self) -> None:
        ready, theirs = os.pipe()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # CUDA has 8 queues otherwise, which packs on streams would share
        }
        command = [sys.executable, "-c", _IN_FIRST, str(self.folder), self._settings.model_dump_json(), str(theirs)]
        try:
            with (self.folder / LOG).open("ab") as log:
                # The first process ends at once: Ray ends the children of a worker, and others need this one.
                subprocess.run(  # noqa: S603 - this interpreter
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs,),
                    start_new_session=True,
                    check=True,
                    timeout=_START_S,
                )
            os.close(theirs)
            theirs = -1
            readable, _, _ = select.select([ready], [], [], _START_S)
            if not readable or os.read(ready, 5) != b"ready":
                raise self.error("does not start" if readable else f"has not started within {_START_S:g} s")
        except (OSError, subprocess.SubprocessError) as cause:
            if isinstance(cause, PackServerError):
                raise
            raise self.error(f"cannot be started ({cause})") from cause
        finally:
            os.close(ready)
            if theirs >= 0:
                os.close(theirs)
