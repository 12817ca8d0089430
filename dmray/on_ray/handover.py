"""How trials get to the worker of a slot, one after the other, and what comes back.

A slot is one Tune actor with one run of Ray Train. `Handover` is in the actor's process: Tune's thread calls `run` for
each trial, and the thread of Ray Train's controller tells what became of the worker. `Received` is in the worker's
process. Neither of them knows Ray, so tests need none.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dmray.on_ray.trainable_config import TrainableConfig
from dmray.trial.log import TrialLog

Report = Callable[[dict[str, Any]], None]
RunTrial = Callable[[TrainableConfig, Report], bool]  # whether the process is fit for another trial
_TRIAL, _END = "trial", "end"  # keys of a report: whose it is; in the last one, whether the worker takes another trial


class WorkerSpentError(Exception):
    """A trial failed in a worker, which ends so that the next trial gets a new process. (CUDA errors stay in one.)"""


@dataclass
class _Held:
    """The trial that the slot works at."""

    config: TrainableConfig
    worker_failures: int = 0

    @property
    def trial_id(self) -> str:
        return self.config.job.trial.trial_id


class Handover:
    """Gives the trial that Tune runs to the worker that Ray Train keeps, again if the worker dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._send: Callable[[str], None] | None = None  # None while there is no worker
        self._held: _Held | None = None
        self._ended: Exception | None = None
        self._news: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()  # None: the trial's end

    @property
    def has_worker(self) -> bool:
        """Whether a trial that is given now begins at once."""
        return self._send is not None

    @property
    def has_ended(self) -> bool:
        """Whether Ray Train's run is over, so that nobody would take another trial."""
        return self._ended is not None

    def run(self, config: TrainableConfig) -> Iterator[dict[str, Any]]:
        """Have the worker run a trial to its end; what it reports. Ray Train must run in another thread.

        Raises what ended Ray Train's run: the worker died more often than the trial's fault budget allows.
        """
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._held = _Held(config)
            if self._send is not None:
                self._send(config.model_dump_json())
        while (news := self._news.get()) is not None:
            if isinstance(news, Exception):
                raise news
            yield news

    def worker_started(self, send: Callable[[str], None]) -> None:
        """Ray Train has a worker, the first one or another one. `send` takes a trial there, and must not wait."""
        with self._lock:
            self._send = send
            if self._held is not None:
                send(self._held.config.model_dump_json())

    def reported(self, report: dict[str, Any]) -> None:
        """The worker has reported."""
        with self._lock:
            if self._held is None or report[_TRIAL] != self._held.trial_id:
                return
            if _END not in report:
                self._news.put({name: value for name, value in report.items() if name != _TRIAL})
                return
            self._held = None
            if not report[_END]:
                self._send = None
            self._news.put(None)

    def worker_failed(self, causes: list[Exception], preempted: bool) -> bool:
        """Decide, when the worker died or raised, whether Ray Train starts another one.

        It counts for the trial that the worker held, unless its machine was taken away.
        """
        with self._lock:
            held, had_worker, self._send = self._held, self._send is not None, None
            if held is None or not had_worker:
                return True
            for cause in causes:
                TrialLog(held.config.job.folder.log).write(f"its worker ended: {type(cause).__name__}: {cause}")
            held.worker_failures += not preempted
            return held.worker_failures <= held.config.faults.worker_restarts

    def train_ended(self, cause: Exception) -> None:
        """Ray Train's run is over."""
        with self._lock:
            self._send, self._ended = None, cause
            if self._held is not None:
                self._held = None
                self._news.put(cause)


class Received:
    """The trials that reach a worker's process."""

    def __init__(self) -> None:
        self._trials: queue.SimpleQueue[str] = queue.SimpleQueue()

    def put(self, trial: str) -> None:
        """Another trial, a `TrainableConfig` as JSON."""
        self._trials.put(trial)

    def run_all(self, run_trial: RunTrial, report: Report) -> None:
        """Run each trial that comes. It never returns: Ray ends the process with the slot.

        Raises:
            WorkerSpentError: a trial failed.
            Exception: what `run_trial` raises: a transient error, after which another worker tries the trial again.
        """
        while True:
            config = TrainableConfig.model_validate_json(self._trials.get())
            trial_id = config.job.trial.trial_id
            fit = run_trial(config, lambda metrics, trial_id=trial_id: report({_TRIAL: trial_id, **metrics}))  # type: ignore[misc]
            report({_TRIAL: trial_id, _END: fit})
            if not fit:
                raise WorkerSpentError(f"trial {trial_id} failed; its ledger says why")
