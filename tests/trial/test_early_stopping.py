"""Trials that are stopped early, and go on when they may."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dmray.cli.status import _exit_status
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.errors import StoreUnavailableError
from dmray.on_ray import RayRunner
from dmray.planning.plan import Plan
from dmray.planning.successive_halving import competitors_of
from dmray.progress.summary import follower_of, summarize
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import (
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    RungDecision,
    SweepFolder,
    TrialStopped,
    identity_of,
)
from dmray.reporting import write_report
from dmray.sources import open_dataset
from dmray.tasks import task_of
from dmray.trial.build import attempt_started, build_trainer
from dmray.trial.checkpoints import load_checkpoint
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.run import _Attempt, run_trial
from dmray.trial.rung_board import RungBoard
from tests.sweeps import science_of, tiny_plan
from tests.trial.jobs import ONE_METHOD, RULE, Killed, ScriptedService, StopAt, job, records_of


def work_on(storage: Path, **changes: Any) -> TrialJob:
    return job(storage, **ONE_METHOD | changes)


def competitors(work: TrialJob, **changes: Any) -> str:
    """Of the trial's first attempt, here and now; `changes` to its provenance."""
    assert work.early_stopping is not None
    opened = open_dataset(work.trial.dataset, task_of(work.trial.dataset), work.sweep_folder.datasets)
    trainer, origin = build_trainer(work, opened.task, opened.episodes)
    made = attempt_started(work, 1, trainer, origin, opened).provenance | changes
    return competitors_of(work.early_stopping, work.trial, identity_of(work.trial, made))


def post(work: TrialJob, *scores: float, step: int = 20, **changes: Any) -> None:
    """Scores of others."""
    for number, score in enumerate(scores):
        RungBoard(work).post(competitors(work, **changes), step, f"other-{number}", score)


def run(plan: Plan, resume: bool = False) -> dict[str, TrialStatus]:
    folder = SweepFolder(Path(plan.sweep.storage), plan.sweep.name)

    def reported(folder: SweepFolder) -> Path:
        return write_report(folder).folder

    console = Console(file=io.StringIO())
    return run_sweep(plan, folder, LocalRunner(), reported, resume=resume, console=console)


def test_a_trial_that_is_not_among_the_best_saves_and_stops_without_being_done(tmp_path: Path) -> None:
    work = work_on(tmp_path)
    post(work, 1e6)
    stopped = run_trial(work, InlineEvaluation())
    assert isinstance(stopped, TrialStopped)
    assert (stopped.step, stopped.decision.step, stopped.decision.num_peers, stopped.decision.action) == (
        20,
        20,
        1,
        "stop",
    )
    assert records_of(work, TrialStopped) == [stopped]
    assert load_checkpoint(work.folder.last_checkpoint)["trainer"]["step"] == 20
    assert not work.folder.done.exists()
    before = work.folder.ledger.read_bytes()
    assert run_trial(work, ScriptedService([])) == stopped, "a worker that Ray starts again finds it so"
    assert work.folder.ledger.read_bytes() == before


def test_a_trial_among_the_best_continues_and_its_score_is_there_for_others(tmp_path: Path) -> None:
    work = work_on(tmp_path)
    post(work, -1e6)
    done = run_trial(work, InlineEvaluation())
    assert done.kind == "done"
    (decision,) = records_of(work, RungDecision)
    assert (decision.action, decision.cutoff) == ("continue", decision.score)
    posted = RungBoard(work).scores(competitors(work), 20)
    assert posted == {"other-0": -1e6, work.trial.trial_id: decision.score}


@pytest.mark.parametrize(
    "changed", [{"dataset_fingerprint": "f00d"}, {"code": "0ther"}, {"simulator": {"mujoco": "1"}}]
)
def test_scores_on_other_data_or_of_other_code_stop_no_trial(tmp_path: Path, changed: dict[str, Any]) -> None:
    work = work_on(tmp_path)
    post(work, 1e6, 1e6, **changed)
    assert run_trial(work, ScriptedService([1.0, 1.0])).kind == "done"
    assert [record.num_peers for record in records_of(work, RungDecision)] == [0]


def test_training_continues_until_the_decision_is_made(tmp_path: Path) -> None:
    work = work_on(tmp_path, training={"steps": 80, "batch_size": 8, "warmup_steps": 5})
    post(work, 1e6)
    service = ScriptedService([1.0, 1.0], at_once=False)

    def ready_at_30(step: int, score: float | None) -> None:
        if step == 30:
            service.submitted[0][1].set_result(service.submitted[0][2])

    stopped = run_trial(work, service, ready_at_30)
    assert isinstance(stopped, TrialStopped)
    assert (stopped.step, stopped.decision.step) == (40, 20)
    assert list(load_checkpoint(work.folder.last_checkpoint)["open_evaluations"]) == [40]


def test_a_trial_that_came_to_its_end_first_is_done_and_nothing_is_decided(tmp_path: Path) -> None:
    work = work_on(tmp_path)
    post(work, 1e6)

    class ReadyAtTheEnd(ScriptedService):
        def submit(self, *asked: Any) -> Any:
            future = super().submit(*asked)
            if len(self.submitted) == 2:
                for _, each, episodes in self.submitted:
                    each.set_result(episodes)
            return future

    assert run_trial(work, ReadyAtTheEnd([1.0, 1.0], at_once=False)).kind == "done"
    assert records_of(work, RungDecision) == []
    assert work.trial.trial_id in RungBoard(work).scores(competitors(work), 20)


def test_a_decision_is_made_once_whatever_happens_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_on(tmp_path, faults={"checkpoint_every_steps": 15})
    post(work, 1e6)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_Attempt, "_stop", killed)
        with pytest.raises(Killed):
            run_trial(work, InlineEvaluation())
    assert len(records_of(work, RungDecision)) == 1
    assert records_of(work, TrialStopped) == []
    post(work, -1e6)  # it would continue now
    stopped = run_trial(work, ScriptedService([]))
    assert isinstance(stopped, TrialStopped)
    assert stopped.step == 15, "nothing is trained again only to be stopped"
    assert len(records_of(work, RungDecision)) == 1


def test_a_trial_that_died_before_the_decision_is_decided_by_its_recorded_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_on(tmp_path, faults={"checkpoint_every_steps": 20})
    post(work, 1e6)
    with pytest.raises(Killed):
        run_trial(work, InlineEvaluation(), StopAt(20))
    assert len(records_of(work, EvaluationDone)) == 1
    assert records_of(work, RungDecision) == []
    assert isinstance(run_trial(work, ScriptedService([])), TrialStopped)


def test_without_the_rule_a_stopped_trial_goes_on_to_the_numbers_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole, work = work_on(tmp_path / "whole", early_stopping=None), work_on(tmp_path / "stopped")
    run_trial(whole, InlineEvaluation())
    post(work, 1e6)
    run_trial(work, InlineEvaluation())
    free = work.model_copy(update={"early_stopping": None})
    assert run_trial(free, InlineEvaluation()).kind == "done"
    assert [record.from_step for record in records_of(work, AttemptStarted)] == [0, 20]
    ids = (work.trial.trial_id,)
    assert science_of(work.sweep_folder, ids) == science_of(whole.sweep_folder, ids)
    ours, theirs = (load_checkpoint(one.folder.last_checkpoint)["trainer"]["policy"] for one in (work, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_store_that_is_away_delays_the_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_on(tmp_path)
    post(work, 1e6)
    answers, scores = [False, True], RungBoard.scores

    def scores_later(self: RungBoard, group: str, step: int) -> dict[str, float]:
        if not answers.pop(0):
            raise StoreUnavailableError("the store does not answer")
        return scores(self, group, step)

    monkeypatch.setattr(RungBoard, "scores", scores_later)
    monkeypatch.setattr("dmray.trial.early_stopping._RETRY_AFTER_S", 0.0)
    stopped = run_trial(work, InlineEvaluation())
    assert isinstance(stopped, TrialStopped)
    assert (stopped.step, stopped.decision.step) == (30, 20)


def test_an_evaluation_that_decides_is_whole_and_never_left_out(tmp_path: Path) -> None:
    rule = RULE | {"grace_steps": 10, "reduction_factor": 3}
    resources = {"max_pending_evaluations": 1, "when_evaluations_lag": "skip"}
    evaluation = {"episodes": 4, "every_steps": 10, "cohort_size": 4, "quick_episodes": 2}
    work = work_on(tmp_path, early_stopping=rule, resources=resources, evaluation=evaluation)

    class NeverReady(ScriptedService):
        def submit(self, snapshot: Any, request: Any) -> Any:
            future = super().submit(snapshot, request)
            if len(self.submitted) > 1:  # of steps 10 and 30, then of 40
                for _, each, episodes in self.submitted:
                    if not each.done():
                        each.set_result(episodes)
            return future

    run_trial(work, NeverReady([3.0, 2.0, 1.0], at_once=False))
    assert [record.step for record in records_of(work, EvaluationSkipped)] == [20]
    assert [(record.step, record.quick) for record in records_of(work, EvaluationDone)] == [
        (10, False),
        (30, False),
        (40, False),
    ]
    assert [record.step for record in records_of(work, RungDecision)] == [10, 30]


class ScoresByLayers(InlineEvaluation):
    """Two layers are better than one, three are worse: which trial is stopped does not depend on what toys learn."""

    def submit(self, snapshot: Any, request: Any) -> Any:
        score = {1: 1.0, 2: 2.0, 3: 0.0}[snapshot.recipe.model.n_layer]
        return ScriptedService([score]).submit(snapshot, request)


def test_a_sweep_whose_trials_were_stopped_has_ended_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmray.driver.local_runner.InlineEvaluation", ScoresByLayers)
    plan = tiny_plan(tmp_path, **ONE_METHOD)
    folder = SweepFolder(tmp_path, "tiny")
    states = run(plan)
    assert list(states.values()) == [TrialStatus.FINISHED, TrialStatus.FINISHED, TrialStatus.STOPPED_EARLY]
    summary = summarize(follower_of(folder))
    assert (summary.statuses["stopped_early"], summary.steps, summary.total_steps) == (1, 100, 100)
    assert (summary.done, _exit_status(summary)) == (True, 0)
    ledgers = [folder.trial(trial_id).ledger.read_bytes() for trial_id in plan.trial_ids]
    assert run(plan) == states
    assert [folder.trial(trial_id).ledger.read_bytes() for trial_id in plan.trial_ids] == ledgers

    report = (folder.report / "report.md").read_text()
    assert "1 of 3 trials were stopped. This saved 20 of 120 optimizer steps (17%)." in report
    assert "| step 20 | 3 | 1 | 20 |" in report
    assert "| DM (n_layer 3) | 0 of 1 | - | - | - | - | - | 1 stopped early |" in report

    free = tiny_plan(tmp_path, **ONE_METHOD | {"early_stopping": None})
    assert list(trial_statuses(free, folder).values()) == [
        TrialStatus.FINISHED,
        TrialStatus.FINISHED,
        TrialStatus.PAUSED,
    ]
    assert set(run(free, resume=True).values()) == {TrialStatus.FINISHED}
    assert "| DM (n_layer 3) | 1 of 1 |" in (folder.report / "report.md").read_text()


@pytest.mark.ray
@pytest.mark.chaos
def test_a_stopped_trial_has_ended_on_ray(ray_session: None, tmp_path: Path) -> None:
    resources = {"executor": "tune", "cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5}
    waits = {"max_pending_evaluations": 1}  # else the toy is at its end before its first decision
    training = {"steps": 80, "batch_size": 8, "warmup_steps": 5}
    plan = tiny_plan(tmp_path, **ONE_METHOD, resources=resources | waits, training=training)
    folder = SweepFolder(tmp_path, "tiny")
    post(TrialJob.of(plan.trials[0], plan.sweep, folder), 1e6)
    assert RayRunner().run(plan, plan.trials[:1], folder) == [], "it has not left"
    assert trial_statuses(plan, folder)[plan.trial_ids[0]] is TrialStatus.STOPPED_EARLY
