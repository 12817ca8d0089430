"""The process that trains the packed trials of one GPU. Trials are clients: processes of their own with own records.

The main thread does all work with tensors. Each client has a thread that waits for its requests, so a client that is
frozen or dies in the middle of a message delays nobody. A client asks for the steps to its next record; its pack takes
them in slices of at most a second, in which all seats step that have asked. Packs are on streams of their own, so their
slices run at the same time on a GPU.

An error in a step ends the process: on a GPU nothing can be trusted after it. Its clients then fail, and their next
attempts start another process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from dmray.errors import DatasetError, DmrayError, StorageError
from dmray.file_lock import file_lock
from dmray.files import write_json
from dmray.packs.channel import Channel, Message, listen
from dmray.planning.packing import pack_key
from dmray.processes import started_at
from dmray.sources import open_dataset
from dmray.specs import Spec, TrialSpec
from dmray.tasks import task_of
from dmray.training import Pack, be_deterministic
from dmray.training.build import build_policy, build_sampler

START_LOCK, SOCKET, PID, LOG = "start.lock", "socket", "pid.json", "log.txt"
_PATIENCE_S, _MOST_PATIENCE_S = 0.05, 1.0  # for seats that have not asked: since a client was last heard, and in all
# Long enough that a slice is what clients ask for: seats that have started together then stay together. After this time
# they are told what was done, so that they look for commands.
_SLICE_S = 1.0
_POLL_S = 5e-4  # while a GPU works
_SEND_S = 60.0
_LAST_WORDS_S = 1.0
_SLOW = 20.0  # times the usual, and a step is still not a hang: the machine is busy
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class PackSettings(Spec):
    """What all packs of a server have in common. It ends after `idle_s` seconds without a client."""

    seats: int
    device: Literal["cpu", "cuda"]
    capture: Literal["auto", "off"]
    deterministic: bool
    torch_threads: int
    idle_s: float = 20.0


class Slice(NamedTuple):
    """A number of steps that these seats take together."""

    seats: frozenset[int]
    steps: int


def next_slice(occupied: frozenset[int], left: Mapping[int, int], waited_s: float, step_s: float) -> Slice | None:
    """The steps to take now for seats that have asked for `left` steps; None: wait for the other occupied seats.

    `waited_s`: since a client of the pack was last heard. `step_s`: what a step takes, 0 if that is not known yet.
    """
    if not left or (occupied - left.keys() and waited_s < _PATIENCE_S):
        return None
    most = max(1, int(_SLICE_S / step_s)) if step_s else 1
    return Slice(frozenset(left), min(most, *left.values()))


@dataclass
class _Asked:
    """A client's request for steps: how many are left, and the metrics (steps, 2, S) of those that were taken."""

    left: int
    answer: Future[Tensor]
    begun: float = field(default_factory=time.monotonic)
    parts: list[Tensor] = field(default_factory=list)


class _Running(NamedTuple):
    """A slice, and the requests that it is for: a seat may have another trial when it ends."""

    steps: int
    asked: dict[int, _Asked]
    begun: float
    metrics: Tensor
    event: torch.cuda.Event | None


class _Host:
    """A pack and what its clients have asked for. Used by the main thread only."""

    def __init__(self, pack: Pack) -> None:
        self.pack, self.asked, self.heard = pack, dict[int, _Asked](), time.monotonic()
        self.running: _Running | None = None
        self._waiting_since, self.step_s = time.monotonic(), 0.0

    def ask(self, seat: int, steps: int, answer: Future[Tensor]) -> None:
        self.heard = time.monotonic()
        if not self.asked:
            self._waiting_since = self.heard
        self.asked[seat] = _Asked(steps, answer)

    def leave(self, seat: int) -> None:
        self.asked.pop(seat, None)
        self.pack.leave(seat)

    def move(self) -> None:
        """End the slice that runs if it is done, and start the next one."""
        if self.running is not None:
            if self.running.event is not None and not self.running.event.query():  # type: ignore[no-untyped-call]
                return
            self._end(self.running)
        now = time.monotonic()
        waited_s = _PATIENCE_S if now - self._waiting_since > _MOST_PATIENCE_S else now - self.heard
        left = {seat: asked.left for seat, asked in self.asked.items()}
        step_s = self.step_s if self.pack.is_set_up else 0.0
        if (found := next_slice(self.pack.occupied, left, waited_s, step_s)) is not None:
            metrics = self.pack.advance(found.seats, found.steps)
            asked = {seat: self.asked[seat] for seat in found.seats}
            self.running = _Running(found.steps, asked, now, metrics, self.pack.event())

    def _end(self, done: _Running) -> None:
        self.running, now = None, time.monotonic()
        self.heard = self._waiting_since = now
        self.step_s = (now - done.begun) / done.steps
        for seat, asked in done.asked.items():
            asked.left -= done.steps
            asked.parts.append(done.metrics[:, seat])
            if self.asked.get(seat) is asked and (asked.left == 0 or now - asked.begun > _SLICE_S):
                del self.asked[seat]
                asked.answer.set_result(torch.cat(asked.parts))


class PackServer:
    """Serves clients that connect to `listening`, with its files in `folder`."""

    def __init__(self, settings: PackSettings, folder: Path, listening: socket.socket) -> None:
        self._settings, self._folder, self._listening = settings, folder, listening
        # Not a SimpleQueue: its `get` may wait for ever if the time is over when it looks at the clock (Python 3.11).
        self._tasks: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._hosts: dict[str, list[_Host]] = {}
        self._num_clients, self._left_alone = 0, time.monotonic()
        self._lock = threading.Lock()
        self._round_at, self._opens_pack = time.monotonic(), False

    def silent_s(self) -> float:
        """For how long the main thread has been at something that takes less time; 0 while a pack is being set up."""
        hosts = [host for same in list(self._hosts.values()) for host in list(same) if host.pack.occupied]
        if self._opens_pack or not all(host.pack.is_set_up for host in hosts):
            return 0.0
        begun = [self._round_at, *(running.begun for host in hosts if (running := host.running) is not None)]
        may_take_s = _SLOW * max((host.step_s for host in hosts), default=0.0)
        return max(0.0, time.monotonic() - min(begun) - may_take_s)

    def run(self) -> None:
        """Serve until no client has been there for some time. Raises what a training step raised."""
        threading.Thread(target=self._accept, name="dmray-packs-accept", daemon=True).start()
        hosts: list[_Host] = []
        try:
            while not self._may_end():
                self._round_at = time.monotonic()
                self._do_tasks(hosts)
                hosts = [host for same in self._hosts.values() for host in same]
                for host in hosts:
                    host.move()
        except BaseException as cause:
            for host in hosts:
                for asked in host.asked.values():
                    asked.answer.set_exception(cause)
            time.sleep(_LAST_WORDS_S)  # the clients' threads tell them
            raise
        finally:
            self._listening.close()

    def _do_tasks(self, hosts: list[_Host]) -> None:
        """Do what clients want done, after waiting for it as long as no pack has anything to do."""
        works = any(host.running for host in hosts)
        waits = any(host.asked for host in hosts)
        timeout_s = _POLL_S if works else _PATIENCE_S / 10 if waits else 0.5
        with contextlib.suppress(queue.Empty):
            while True:
                task, answer = self._tasks.get(timeout=timeout_s)
                timeout_s = 0.0
                try:
                    answer.set_result(task())
                except Exception as cause:  # noqa: BLE001 - the client is told
                    answer.set_exception(cause)

    def _may_end(self) -> bool:
        with self._lock:
            alone_s = time.monotonic() - self._left_alone if self._num_clients == 0 else 0.0
        if alone_s < self._settings.idle_s:
            return False
        try:  # clients connect under this lock, so none is about to
            with file_lock(self._folder / START_LOCK, 0.0, "a client connects"):
                if self._num_clients:
                    return False
                for name in (SOCKET, PID, LOG):
                    (self._folder / name).unlink(missing_ok=True)
                return True
        except StorageError:
            return False

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:  # the server ends
                return
            with self._lock:
                self._num_clients += 1
            threading.Thread(target=self._serve, args=(Channel(connected),), daemon=True).start()

    def _serve(self, channel: Channel) -> None:
        """A client's thread."""
        client = _Client(self)
        try:
            while True:
                request = channel.receive(None)
                try:
                    answer = client.answer(request)
                except Exception as cause:  # noqa: BLE001 - the client is told
                    if not isinstance(cause, DmrayError):
                        _log.exception("a request failed")
                    answer = {"error": [type(cause).__name__, str(cause)]}
                channel.send(answer, _SEND_S)
        except OSError:  # the client is gone
            pass
        finally:
            channel.close()
            client.leave()
            with self._lock:
                self._num_clients -= 1
                self._left_alone = time.monotonic()

    def do(self, task: Callable[[], _T]) -> _T:
        """What `task` returns, done by the main thread."""
        answer: Future[_T] = Future()
        self._tasks.put((task, answer))
        return answer.result()

    def join(self, trial: TrialSpec, fingerprint: str, recordings: Path, weights: dict[str, Tensor]) -> _Place:
        """A seat for a trial, in a pack that has a free one or in a new one. By the main thread."""
        key = f"{pack_key(trial)} {fingerprint}"
        same = self._hosts.setdefault(key, [])
        host = next((host for host in same if len(host.pack.occupied) < host.pack.seats), None)
        if host is None:
            self._forget_empty()
            self._opens_pack = True
            try:
                host = _Host(self._new_pack(trial, fingerprint, recordings))
            finally:
                self._opens_pack, self._round_at = False, time.monotonic()
            self._hosts.setdefault(key, []).append(host)
        host.heard = time.monotonic()
        return _Place(host, host.pack.join(trial.seed, trial.training.learning_rate, weights))

    def _new_pack(self, trial: TrialSpec, fingerprint: str, recordings: Path) -> Pack:
        settings = self._settings
        episodes = (opened := open_dataset(trial.dataset, task_of(trial.dataset), recordings)).episodes
        if episodes.fingerprint != fingerprint:
            raise DatasetError(
                f"data set {trial.dataset.name}: its content has changed since this trial opened it (fingerprint "
                f"{fingerprint}, now {episodes.fingerprint}); start the sweep again when nobody writes the file"
            )
        policy = build_policy(trial, opened.task, episodes)
        sampler = build_sampler(trial, policy, episodes, settings.device)
        return Pack(policy, sampler, trial.training, settings.seats, settings.device, settings.capture)

    def _forget_empty(self) -> None:
        """Free the memory of packs without trials, before a new pack takes some."""
        kept = {key: [host for host in same if host.pack.occupied] for key, same in self._hosts.items()}
        self._hosts = {key: same for key, same in kept.items() if same}


class _Place(NamedTuple):
    host: _Host
    seat: int


class _Client:
    """What a client's thread knows of it."""

    def __init__(self, server: PackServer) -> None:
        self._server = server
        self._place: _Place | None = None

    def answer(self, request: Message) -> Message:
        """The answer to a request: a dictionary with one key, its kind."""
        ((kind, content),) = request.items()
        if kind == "hello":
            return {"pid": os.getpid(), "silent_s": self._server.silent_s()}
        if kind == "join":
            return self._join(content)
        assert self._place is not None, "the first request is to join"
        (host, seat), server = self._place, self._server
        match kind:
            case "advance":
                steps: Future[Tensor] = Future()
                server.do(lambda: host.ask(seat, content, steps))
                taken = steps.result()
                facts = {"is_set_up": host.pack.is_set_up, "compiled": host.pack.compiled}
                return {"stage_losses": taken[:, 0], "grad_norms": taken[:, 1], **facts}
            case "load":
                return {"loaded": server.do(lambda: host.pack.load_state_dict(seat, content))}
            case "state":
                return server.do(lambda: host.pack.state_dict(seat))
            case _:
                assert kind == "weights", kind
                return dict(server.do(lambda: host.pack.weights(seat)))

    def leave(self) -> None:
        if self._place is not None:
            host, seat = self._place
            self._server.do(lambda: host.leave(seat))

    def _join(self, content: Message) -> Message:
        trial = TrialSpec.model_validate_json(content["trial"])
        recordings, fingerprint = Path(content["recordings"]), content["fingerprint"]
        self._place = self._server.do(lambda: self._server.join(trial, fingerprint, recordings, content["weights"]))
        pack = self._place.host.pack
        return {
            "captured": pack.captured,
            "compiled": pack.compiled,
            "scan_backend": pack.scan_backend,
            "gpu_uuid": pack.gpu_uuid,
            "is_set_up": pack.is_set_up,
        }


def main() -> None:
    """`folder settings ready`: serve in `folder`; write to the file descriptor `ready` once clients can connect."""
    folder, settings, ready = Path(sys.argv[1]), PackSettings.model_validate_json(sys.argv[2]), int(sys.argv[3])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})  # workers block them
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(settings.torch_threads)
    be_deterministic(settings.deterministic)
    write_json(folder / PID, {"pid": os.getpid(), "started_at": started_at(os.getpid())})
    listening = listen(folder / SOCKET)
    os.write(ready, b"ready")
    os.close(ready)
    _log.info("process %d trains packs of %d trials: %s", os.getpid(), settings.seats, sys.argv[2])
    PackServer(settings, folder, listening).run()
