"""Trials that one worker of Ray Train takes one after the other: what is told, what is counted, what is done again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmray.on_ray.handover import Handover, Received, WorkerSpentError
from dmray.on_ray.trainable_config import TrainableConfig
from dmray.specs import FaultSpec, ResourcesSpec
from dmray.trial.job import TrialJob
from tests.trial.jobs import job

RESTARTS = 2
DIED = RuntimeError("the worker died")


@pytest.fixture
def handover() -> Handover:
    return Handover()


def config(storage: Path, method: str = "dm") -> TrainableConfig:
    return TrainableConfig(
        job=job(storage, method),
        resources=ResourcesSpec(),
        faults=FaultSpec(worker_restarts=RESTARTS),
        dispatcher_name="none",
        ray_storage=str(storage),
    )


class Trial:
    """A thread as Tune's, which runs one trial; and what the handover told it."""

    def __init__(self, handover: Handover, config: TrainableConfig) -> None:
        self.told: list[Any] = []
        self._news: Iterator[dict[str, Any]] = handover.run(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.told += self._news
        except RuntimeError as cause:
            self.told.append(cause)

    def ended(self) -> list[Any]:
        self._thread.join(20.0)
        assert not self._thread.is_alive(), "the trial does not end"
        return self.told


class Worker:
    """What reaches a worker: the ids of its trials."""

    def __init__(self, handover: Handover) -> None:
        self._came = threading.Semaphore(0)
        self.trials: list[str] = []
        handover.worker_started(self._send)

    def _send(self, text: str) -> None:
        self.trials.append(TrainableConfig.model_validate_json(text).job.trial.trial_id)
        self._came.release()

    def next(self) -> str:
        assert self._came.acquire(timeout=20.0), "no trial came"
        return self.trials[-1]


def end(trial: str, fit: bool = True) -> dict[str, Any]:
    return {"trial": trial, "end": fit}


def test_one_worker_takes_trial_after_trial_and_each_is_told_its_own_reports(
    handover: Handover, tmp_path: Path
) -> None:
    first = Trial(handover, config(tmp_path))
    worker = Worker(handover)  # starts while the first trial waits
    one = worker.next()
    handover.reported({"trial": one, "step": 5, "normalized_score": None})
    handover.reported(end(one))
    assert first.ended() == [{"step": 5, "normalized_score": None}]
    second = Trial(handover, config(tmp_path, "dt"))
    two = worker.next()
    handover.reported({"trial": one, "step": 9, "normalized_score": None})  # late
    handover.reported(end(two))
    assert second.ended() == []
    assert worker.trials == [one, two]
    assert one != two


def test_a_trial_whose_worker_died_goes_to_the_next_worker_until_its_own_budget_is_spent(
    handover: Handover, tmp_path: Path
) -> None:
    for method in ("dm", "dt"):  # the second trial has a budget of its own
        worker, trial_config = Worker(handover), config(tmp_path, method)
        trial_config.job.folder.path.mkdir(parents=True)
        trial = Trial(handover, trial_config)
        for _ in range(RESTARTS):
            worker.next()
            assert handover.worker_failed([DIED], preempted=False), "another worker starts"
            assert not handover.has_worker
            worker = Worker(handover)
        name = worker.next()
        assert trial_config.job.folder.log.read_text().count("its worker ended: RuntimeError: the worker died") == 2
        if method == "dm":
            handover.reported(end(name))
            assert trial.ended() == []
    assert not handover.worker_failed([DIED], preempted=False)
    handover.train_ended(DIED)
    assert trial.ended() == [DIED]
    assert handover.has_ended
    assert Trial(handover, config(tmp_path)).ended() == [DIED], "nobody would take it"


def test_a_machine_that_was_taken_away_and_a_worker_without_a_trial_count_for_no_trial(
    handover: Handover, tmp_path: Path
) -> None:
    Worker(handover)
    for _ in range(RESTARTS + 1):
        assert handover.worker_failed([DIED], preempted=False), "it held none"
        Worker(handover)
    trial = Trial(handover, config(tmp_path))
    for _ in range(RESTARTS + 1):
        worker = Worker(handover)
        worker.next()
        assert handover.worker_failed([DIED], preempted=True)
    handover.reported(end(Worker(handover).next()))
    assert trial.ended() == []


def test_after_a_failed_trial_the_next_one_waits_for_another_worker(handover: Handover, tmp_path: Path) -> None:
    spent = Worker(handover)
    first = Trial(handover, config(tmp_path))
    handover.reported(end(spent.next(), fit=False))
    assert first.ended() == []
    second = Trial(handover, config(tmp_path, "dt"))
    for _ in range(RESTARTS + 1):
        assert handover.worker_failed([WorkerSpentError()], preempted=False), "the second trial is not to blame"
    fresh = Worker(handover)
    handover.reported(end(fresh.next()))
    assert second.ended() == []
    assert len(spent.trials) == 1


def test_a_worker_runs_what_it_receives_and_ends_itself_after_a_failed_trial(tmp_path: Path) -> None:
    received, reports, ran = Received(), [], []
    jobs = [config(tmp_path, method) for method in ("dm", "dt", "dm")]
    for each in jobs:
        received.put(each.model_dump_json())

    def run(given: TrainableConfig, report: Any) -> bool:
        ran.append(given.job)
        report({"step": len(ran)})
        return len(ran) < 2

    ids = [each.job.trial.trial_id for each in jobs]
    with pytest.raises(WorkerSpentError, match=ids[1]):
        received.run_all(run, reports.append)
    expected: list[TrialJob] = [each.job for each in jobs[:2]]
    assert ran == expected
    assert reports == [{"trial": ids[0], "step": 1}, end(ids[0]), {"trial": ids[1], "step": 2}, end(ids[1], fit=False)]
