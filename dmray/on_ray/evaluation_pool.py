"""Evaluation actors that all trials of a sweep share, behind one dispatcher.

A cohort (a fixed set of episodes) is the unit of work, and its result is a pure function of weights, request and
cohort. So the answer does not depend on how many actors serve, which one serves, or how often one dies. The driver
process of the sweep owns the dispatcher and the dispatcher owns the actors; each ends with its owner. Weights are in
Ray's object store, which sends them to a node once.

A trial waits for the dispatcher, the dispatcher for actors. An actor that does not finish a cohort in time is killed
and counts as one that died; the driver watches the dispatcher (liveness.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dmray.on_ray.cohort_deadlines import CohortDeadlines
from dmray.policies import PolicySnapshot
from dmray.rollout import Cohort, EpisodeRecord, EvaluationRequest, cohorts, run_cohort
from dmray.specs import FaultSpec, ResourcesSpec
from dmray.trial.evaluation import EvaluationFuture

_log = logging.getLogger(__name__)
T = TypeVar("T")
NAMESPACE = "dmray"
_RETRY_AFTER_S = 0.5
_IDLE_S = 120.0  # starting an actor again takes seconds, starting a node that an autoscaler removed takes minutes
_MOST_ACTORS_LOST = 5  # by one cohort, which may be what kills them
_SAY_EVERY_S = 60.0


class FairQueue(Generic[T]):
    """A queue for asyncio in which the n-th item of an owner never waits for the (n+1)-th of another.

    An owner that comes later begins where the others are: turns that it did not use before are lost. An item
    that is put back keeps its turn.
    """

    def __init__(self) -> None:
        self._queue: asyncio.PriorityQueue[tuple[int, int, T]] = asyncio.PriorityQueue()
        self._last_turn: dict[str, int] = {}
        self._turn, self._arrivals = 0, 0

    def put(self, owner: str, item: T) -> None:
        turn = max(self._last_turn.get(owner, 0), self._turn) + 1
        self._last_turn[owner] = turn
        self._insert(turn, item)

    def put_back(self, item: T) -> None:
        """Queue `item`, which was handed out, before all that wait."""
        self._insert(self._turn, item)

    async def get(self) -> T:
        self._turn, _, item = await self._queue.get()
        return item

    async def wait_until_filled(self, poll_s: float) -> None:
        """Wait until something is queued, without taking it."""
        while self._queue.empty():
            await asyncio.sleep(poll_s)

    def _insert(self, turn: int, item: T) -> None:
        self._arrivals += 1
        self._queue.put_nowait((turn, self._arrivals, item))


class RolloutActor:
    """Rolls out one cohort at a time on one CPU, its policy on `device`."""

    def __init__(self, device: str, deterministic: bool) -> None:
        import torch

        from dmray.training import be_deterministic

        torch.set_num_threads(1)  # the batches are small, and one thread gives one answer on every machine
        be_deterministic(deterministic)
        self._device = device

    def rollout(
        self, snapshot: PolicySnapshot, request: EvaluationRequest, cohort: Cohort
    ) -> tuple[EpisodeRecord, ...]:
        return run_cohort(snapshot.build().to(self._device), request, cohort)

    def process_id(self) -> int:
        """The actor's process, once it runs."""
        return os.getpid()


@dataclass
class _Work:
    trial: str
    snapshot: Any
    request: EvaluationRequest
    cohort: Cohort
    answer: asyncio.Future[tuple[EpisodeRecord, ...]]
    actors_lost: int = 0


class Dispatcher:
    """Gives the cohorts of all trials to all actors in fair turns; the cohort of an actor that died goes to another.

    An actor that died is replaced, and so is one that takes longer for a cohort than `CohortDeadlines` allows. An actor
    without work for `idle_s` is ended, so that a cluster can shrink, and started again when there is work; one actor
    always stays.
    """

    def __init__(self, resources: ResourcesSpec, idle_s: float, timeout_s: float) -> None:
        self._resources = resources
        self._deadlines = CohortDeadlines(timeout_s)
        self._warnings: list[str] = []
        self._queue: FairQueue[_Work] = FairQueue()
        self._actors: dict[int, tuple[Any, int]] = {}  # by place: the actor and its process
        self._filled = [asyncio.Event() for _ in range(resources.evaluation_actors)]
        idle = [None, *(idle_s for _ in self._filled[1:])]
        self._places = [asyncio.ensure_future(self._keep(place, limit)) for place, limit in enumerate(idle)]

    async def process_id(self) -> int:
        return os.getpid()

    async def take_warnings(self) -> list[str]:
        """What the user should know, each once. (Only the driver process has the user's terminal.)"""
        taken, self._warnings = self._warnings, []
        return taken

    async def process_ids(self) -> list[int]:
        """Of the actors that run, once each place has been filled for the first time."""
        await asyncio.gather(*(filled.wait() for filled in self._filled))
        return [process for _, process in self._actors.values()]

    async def evaluate(
        self, trial: str, boxed_snapshot: list[Any], request: EvaluationRequest
    ) -> tuple[EpisodeRecord, ...]:
        """Every cohort of `request`; the snapshot comes as a reference in a list, so that it is not fetched here."""
        loop = asyncio.get_running_loop()
        works = [_Work(trial, boxed_snapshot[0], request, cohort, loop.create_future()) for cohort in cohorts(request)]
        for work in works:
            self._queue.put(trial, work)
        done = await asyncio.gather(*(work.answer for work in works))
        return tuple(record for records in done for record in records)

    async def _keep(self, place: int, idle_s: float | None) -> None:
        """Have an actor at `place` whenever there is work for it."""
        while True:
            actor = await self._started(place)
            await self._feed(actor, idle_s)
            del self._actors[place]
            ray.kill(actor)  # it is idle or does not answer: its CPU is freed in both cases
            await self._queue.wait_until_filled(_RETRY_AFTER_S)

    async def _started(self, place: int) -> Any:
        resources = self._resources
        rollout = ray.remote(RolloutActor).options(
            num_cpus=resources.cpus_per_evaluation_actor,
            num_gpus=resources.gpus_per_evaluation_actor,
            scheduling_strategy="SPREAD",
        )
        while True:
            actor = rollout.remote(resources.evaluation_device, resources.deterministic)
            try:
                self._actors[place] = (actor, await actor.process_id.remote())
            except RayActorError:
                await asyncio.sleep(_RETRY_AFTER_S)
            else:
                self._filled[place].set()
                return actor

    async def _feed(self, actor: Any, idle_s: float | None) -> None:
        """Hand work to `actor` until it dies or misses a deadline, or there has been none for `idle_s`."""
        warm = False
        while True:
            try:
                work = await asyncio.wait_for(self._queue.get(), idle_s)
            except TimeoutError:
                return
            try:
                answer = await self._rolled_out(actor, work, warm)
            except (RayActorError, _DeadlineMissedError) as lost:
                self._lost(work, lost)
                return
            except Exception as cause:  # noqa: BLE001 - the trial that asked raises it
                if not work.answer.done():
                    work.answer.set_exception(cause)
            else:
                warm = True
                if not work.answer.done():  # the trial that asked may be gone
                    work.answer.set_result(answer)

    async def _rolled_out(self, actor: Any, work: _Work, warm: bool) -> tuple[EpisodeRecord, ...]:
        """The records of a cohort.

        Raises:
            _DeadlineMissedError: `actor` takes too long.
        """
        deadline_s = self._deadlines.deadline_s(work.trial, work.request, work.cohort, warm)
        rollout = asyncio.ensure_future(_awaited(actor.rollout.remote(work.snapshot, work.request, work.cohort)))
        started = time.monotonic()
        done, _ = await asyncio.wait([rollout], timeout=deadline_s)
        if not done:
            rollout.cancel()
            raise _DeadlineMissedError(
                f"an evaluation actor did not finish {len(work.cohort.rows)} episodes of {work.request.task.name} in "
                f"{deadline_s:z.0f} s"
            )
        answer: tuple[EpisodeRecord, ...] = rollout.result()
        self._deadlines.measured(work.trial, answer, time.monotonic() - started)
        return answer

    def _lost(self, work: _Work, cause: RayActorError | _DeadlineMissedError) -> None:
        work.actors_lost += 1
        again = work.actors_lost < _MOST_ACTORS_LOST
        what = str(cause) if isinstance(cause, _DeadlineMissedError) else "an evaluation actor died"
        then = (
            "its episodes run again" if again else f"the {work.actors_lost}th for the same episodes, which are given up"
        )
        self._warnings.append(f"{what}; it is replaced, and {then}")
        if again:
            self._queue.put_back(work)
        elif not work.answer.done():
            work.answer.set_exception(cause)


class _DeadlineMissedError(TimeoutError):  # an OSError, so a trial that gets it is tried again
    """An evaluation actor took too long for a cohort."""


async def _awaited(reference: Any) -> Any:
    return await reference


@dataclass(frozen=True)
class EvaluationPool:
    """The handle that keeps the pool alive in the driver process; workers find the pool by `dispatcher_name`."""

    dispatcher: Any
    dispatcher_name: str

    @classmethod
    def start(
        cls, resources: ResourcesSpec, attempt: str, idle_s: float = _IDLE_S, faults: FaultSpec | None = None
    ) -> EvaluationPool:
        """Create the actors and wait until each runs, so that their CPUs are taken before the first trial starts."""
        name = f"dispatcher-{attempt}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        dispatch = ray.remote(Dispatcher).options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            max_concurrency=1000,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=here,  # the driver's machine, which is not taken away
        )
        timeout_s = (faults or FaultSpec()).evaluation_timeout_s
        pool = cls(dispatch.remote(resources, idle_s, timeout_s), name)
        started = pool.dispatcher.process_ids.remote()
        while not ray.wait([started], timeout=_SAY_EVERY_S)[0]:  # an autoscaler may take minutes to add machines
            _log.warning("waiting for the cluster to start %d evaluation actors", resources.evaluation_actors)
        ray.get(started)
        return pool

    def process_ids(self) -> list[int]:
        """Of the actors that run."""
        pids: list[int] = ray.get(self.dispatcher.process_ids.remote())
        return pids


class RemoteEvaluation:
    """The pool as one trial's worker sees it (an `EvaluationService`)."""

    def __init__(self, dispatcher_name: str) -> None:
        self._dispatcher = ray.get_actor(dispatcher_name, namespace=NAMESPACE)
        self._trial = uuid4().hex  # the owner in the fair queue

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        reference = self._dispatcher.evaluate.remote(self._trial, [ray.put(snapshot)], request)
        future: EvaluationFuture = reference.future()
        return future
