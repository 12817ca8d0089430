"""Evaluation actors that all trials of a sweep share, behind one dispatcher.

A cohort (a fixed set of episodes) is the unit of work, so the answer does not depend on how many actors serve, which
one serves, or how often one dies: the work is a pure function of weights, request and cohort, done at least once.
Actors and dispatcher belong to the sweep's driver process and end with it.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dmray.execution.evaluation import EvaluationFuture
from dmray.policies import PolicySnapshot
from dmray.rollout import Cohort, EpisodeRecord, EvaluationRequest, cohorts, run_cohort
from dmray.specs import ResourcesSpec

NAMESPACE = "dmray"
_OUTSIDE_ANY_GROUP = PlacementGroupSchedulingStrategy(placement_group=None)  # else a trial's group would capture them
_AGAIN_AFTER_S = 0.5


class RolloutActor:
    """Rolls out one cohort at a time on one CPU."""

    def __init__(self, deterministic: bool = False) -> None:
        import torch

        from dmray.training import be_deterministic

        torch.set_num_threads(1)  # the batches are small, and one thread gives one answer on every machine
        be_deterministic(deterministic)

    def rollout(
        self, snapshot: PolicySnapshot, request: EvaluationRequest, cohort: Cohort
    ) -> tuple[EpisodeRecord, ...]:
        return run_cohort(snapshot.build(), request, cohort)

    def process_id(self) -> int:
        """The actor's process, once it runs."""
        return os.getpid()


class Dispatcher:
    """One queue of cohorts for all actors, first come, first served; what a dead actor left goes back to the queue."""

    def __init__(self, actor_names: list[str]) -> None:
        self._queue: asyncio.Queue[_Work] = asyncio.Queue()
        loop = asyncio.get_event_loop()
        actors = [ray.get_actor(name, namespace=NAMESPACE) for name in actor_names]
        # Two calls in flight an actor: the next cohort's weights arrive while one is rolled out.
        self._servers = [loop.create_task(self._serve(actor)) for actor in actors for _ in range(2)]

    async def evaluate(self, boxed_snapshot: list[Any], request: EvaluationRequest) -> tuple[EpisodeRecord, ...]:
        """Every cohort of `request`; the snapshot comes as a reference in a list, so that it is not fetched here."""
        loop = asyncio.get_event_loop()
        works = [_Work(boxed_snapshot[0], request, cohort, loop.create_future()) for cohort in cohorts(request)]
        for work in works:
            self._queue.put_nowait(work)
        done = await asyncio.gather(*(work.answer for work in works))
        return tuple(record for records in done for record in records)

    async def _serve(self, actor: Any) -> None:
        while True:
            work = await self._queue.get()
            try:
                answer = await actor.rollout.remote(work.snapshot, work.request, work.cohort)
            except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError):
                self._queue.put_nowait(work)
                await asyncio.sleep(_AGAIN_AFTER_S)
            except Exception as cause:  # noqa: BLE001 - it belongs to the trial that asked, which raises it
                if not work.answer.done():
                    work.answer.set_exception(cause)
            else:
                if not work.answer.done():
                    work.answer.set_result(answer)


@dataclass
class _Work:
    snapshot: Any
    request: EvaluationRequest
    cohort: Cohort
    answer: asyncio.Future[tuple[EpisodeRecord, ...]]


@dataclass(frozen=True)
class EvaluationPool:
    """Handles that keep the pool alive in the driver process; workers find it by `dispatcher_name`."""

    actors: tuple[Any, ...]
    dispatcher: Any
    dispatcher_name: str

    @classmethod
    def start(cls, resources: ResourcesSpec, attempt: str) -> EvaluationPool:
        """Create the actors and wait until each runs, so that their CPUs are taken before the first trial starts."""
        names = [f"rollout-{attempt}-{number}" for number in range(resources.evaluation_actors)]
        always = {
            "namespace": NAMESPACE,
            "scheduling_strategy": _OUTSIDE_ANY_GROUP,
            "max_restarts": -1,
            "max_task_retries": -1,
        }
        rollout = ray.remote(num_cpus=resources.cpus_per_evaluation_actor, **always)(RolloutActor)
        actors = tuple(rollout.options(name=name).remote(resources.deterministic) for name in names)
        ray.get([actor.process_id.remote() for actor in actors])
        dispatcher_name = f"dispatcher-{attempt}"
        dispatch = ray.remote(num_cpus=0, max_concurrency=1000, **always)(Dispatcher)
        dispatcher = dispatch.options(name=dispatcher_name).remote(names)
        return cls(actors, dispatcher, dispatcher_name)


class RemoteEvaluation:
    """The pool as a worker sees it (an `EvaluationService`)."""

    def __init__(self, dispatcher_name: str) -> None:
        self._dispatcher = ray.get_actor(dispatcher_name, namespace=NAMESPACE)

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        reference = self._dispatcher.evaluate.remote([ray.put(snapshot)], request)
        future: EvaluationFuture = reference.future()
        return future
