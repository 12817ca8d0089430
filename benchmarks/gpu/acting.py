"""Section "acting": seconds and CPU-seconds of 100 full Hopper episodes with the policy on the GPU.

By method, decode mode, number of actors (processes) on the card, and physics threads of an actor; the same on the CPU
for comparison. Episodes do not end before 1,000 steps. "whole" runs all of them; the others run some steps and count
the mean of those after the first K for the rest.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from section import SMALL, Section, policy_of, section_from_options

from dmray.policies import make_decoder, snapshot
from dmray.rollout import EvaluationRequest, cohorts, roll_out
from dmray.rollout.simulators.envpool import EnvpoolEngine, EpisodePool
from dmray.tasks import TASKS, Task

EPISODES, COHORT = 100, 50


def main() -> None:
    section = section_from_options(__doc__)
    modes = ("window",) if section.toy else ("window", "stream:2", "recurrent")
    cases = [("dm", "window", 1, 1, True), ("dm", "window", 1, 4, True)]
    cases += [(method, mode, 1, 1, False) for method in ("dm", "hdm", "dt", "hdt") for mode in modes]
    cases += [("dm", mode, actors, 1, False) for mode in modes for actors in (4, 8)]
    pool: list[Actor] = []
    if section.toy:
        cases = [("dm", "window", 1, 1, True), ("dt", "window", 2, 2, False)]
    for method, mode, actors, threads, whole in cases:
        for device in dict.fromkeys((section.device, "cpu")):
            if device == "cpu" and section.device == "cuda" and (actors > 1 or threads > 1 or whole):
                continue
            part = "whole" if whole else "part"
            what = f"{method} {mode}, {actors} actors on {device}, {threads} physics threads, {part}"
            section.measure(
                what,
                lambda c=(method, mode, actors, threads, whole), d=device: evaluate(section, pool, d, *c),
                needs_s=8,
            )
    for actor in pool:
        actor.process.kill()


def evaluate(
    section: Section, pool: list[Actor], device: str, method: str, mode: str, actors: int, threads: int, whole: bool
) -> dict[str, Any]:
    """All cohorts of the evaluation, shared by the actors. Wall seconds of the slowest actor; CPU seconds of all."""
    while len(pool) < actors:
        pool.append(Actor())
    horizon = 10 if section.toy else 1000 if whole else 120
    episodes, size = (4, 2) if section.toy else (EPISODES, COHORT if actors <= 2 else -(-EPISODES // actors))
    task = replace(TASKS["hopper"], horizon=horizon)
    target = 3600.0 if method in ("dt", "dm+r") else None
    request = EvaluationRequest(task, episodes, 0, mode, (target,), size)
    numbers = [list(range(number, len(cohorts(request)), actors)) for number in range(actors)]
    weights = snapshot(policy_of(method, SMALL if section.toy else {}))
    for actor, mine in zip(pool, numbers, strict=False):
        actor.pipe.send((weights, request, mine, device, threads))
    for actor in pool[:actors]:
        actor.receive(60)  # built and warm
    for actor in pool[:actors]:
        actor.pipe.send("go")
    each = [actor.receive(max(section.left_s, 30)) for actor in pool[:actors]]
    wall, cpu = max(one[0] for one in each), sum(one[1] for one in each)
    return {"seconds": wall, "cpu_seconds": cpu, "cpu_share": cpu / wall / actors, "steps_run": horizon}


class Actor:
    """A process of one thread, as an evaluation actor."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_act, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self, timeout_s: float) -> Any:
        if not self.pipe.poll(timeout_s):
            raise TimeoutError("an evaluation process does not answer")
        answer = self.pipe.recv()
        if isinstance(answer, str) and answer != "ready":
            raise RuntimeError(answer)
        return answer


def _act(pipe: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while True:
        weights, request, mine, device, threads = pipe.recv()
        try:
            short = replace(request, episodes=2, cohort_size=2, task=replace(request.task, horizon=3))
            _rolled_out(weights, short, 0, device, threads)
            pipe.send("ready")
            assert pipe.recv() == "go"
            parts = [_rolled_out(weights, request, number, device, threads) for number in mine]
            pipe.send((sum(part[0] for part in parts), sum(part[1] for part in parts)))
        except Exception as error:  # noqa: BLE001 - the parent reports it
            pipe.send(f"{type(error).__name__}: {error}")


class FullLength(EnvpoolEngine):
    """Hopper that goes on after a fall."""

    def __init__(self, task: Task, num_episodes: int, threads: int) -> None:
        super().__init__(task, num_episodes)
        options = {"terminate_when_unhealthy": False}
        self._pool = EpisodePool(task, task.env_id, num_episodes, options, threads)


def _rolled_out(
    weights: Any, request: EvaluationRequest, number: int, device: str, threads: int
) -> tuple[float, float]:
    """Wall and CPU seconds of a cohort over Hopper's full horizon."""
    marks: list[tuple[float, float]] = []
    wall, cpu = time.perf_counter(), time.process_time()

    def mark(*_: object) -> None:
        marks.append((time.perf_counter() - wall, time.process_time() - cpu))

    policy, cohort = weights.build().to(device), cohorts(request)[number]
    with closing(FullLength(request.task, len(cohort.rows), threads)) as engine:
        roll_out(make_decoder(policy, request.decode, len(cohort.rows)), engine, request, cohort, watch=mark)
    mark()
    done = len(marks) - 1
    first = min(policy.recipe.model.context_length, done - 1) if done > 1 else done
    early, late, end = (np.array(marks[place]) for place in (first - 1, done - 1, done))
    rest = max(TASKS["hopper"].horizon - done, 0)
    total = end + rest * (late - early) / max(1, done - first)
    return float(total[0]), float(total[1])


if __name__ == "__main__":
    main()
