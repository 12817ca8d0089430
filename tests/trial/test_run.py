from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmray.errors import CheckpointError, DatasetError
from dmray.mlflow_mirror.layout import attempt_tags
from dmray.policies import PolicySnapshot
from dmray.records import (
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    TargetResult,
    TrainProgress,
    read_episode_table,
)
from dmray.records.ledger import DoneMarker
from dmray.rollout import EvaluationRequest
from dmray.trial.checkpoints import load_checkpoint, load_policy_snapshot
from dmray.trial.evaluation import EvaluationFuture, InlineEvaluation
from dmray.trial.pending_evaluations import may_be_best
from dmray.trial.run import run_trial
from tests.sweeps import tiny_plan
from tests.trial.jobs import Killed, ScriptedService, StopAt, job, records_of, science


@pytest.mark.parametrize("method", ["dt", "dm", "dm+r", "hdt", "hdm"])
def test_a_trial_records_its_cadence_and_ends_with_a_done_marker(tmp_path: Path, method: str) -> None:
    model = {"d_model": 16, "n_layer": 1, "context_length": 4}
    work = job(tmp_path, method, grid=[{"methods": [method], "models": [model]}])
    done = run_trial(work, InlineEvaluation())
    assert (done.status, done.step) == ("finished", 40)
    assert [record.step for record in records_of(work, TrainProgress)] == [10, 20, 30, 40]
    evaluations = records_of(work, EvaluationDone)
    assert [record.step for record in evaluations] == [20, 40]
    assert [len(record.first_target.returns) for record in evaluations] == [4, 4]
    assert evaluations[0].first_target.target_return == (50.0 if method in ("dt", "dm+r") else None)
    assert DoneMarker.model_validate_json(work.folder.done.read_bytes()).end == done
    assert records_of(work, AttemptStarted)[0].provenance["dataset_fingerprint"]


@pytest.mark.parametrize(("method", "killed_at"), [("dm", 10), ("dm", 20), ("dm", 30), ("dm", 40), ("dt", 30)])
def test_a_killed_trial_continues_to_the_same_result(tmp_path: Path, method: str, killed_at: int) -> None:
    whole, broken = job(tmp_path / "whole", method), job(tmp_path / "broken", method)
    run_trial(whole, InlineEvaluation())
    with pytest.raises(Killed):
        run_trial(broken, InlineEvaluation(), StopAt(killed_at))
    run_trial(broken, InlineEvaluation())
    assert [record.from_step for record in records_of(broken, AttemptStarted)] == [0, killed_at]
    assert science(broken) == science(whole)
    ours, theirs = (load_checkpoint(one.folder.last_checkpoint)["trainer"]["policy"] for one in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_kill_between_checkpoints_repeats_work_and_records_each_step_once(tmp_path: Path) -> None:
    whole, broken = (job(tmp_path / name, faults={"checkpoint_every_steps": 15}) for name in ("whole", "broken"))
    run_trial(whole, InlineEvaluation())

    class DiesAfterTwo(InlineEvaluation):
        count = 0

        def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
            self.count += 1
            if self.count == 2:  # step 40, ten steps after the checkpoint of step 30
                raise Killed
            return super().submit(snapshot, request)

    with pytest.raises(Killed):
        run_trial(broken, DiesAfterTwo())
    run_trial(broken, InlineEvaluation())
    assert [record.from_step for record in records_of(broken, AttemptStarted)] == [0, 30]
    assert science(broken) == science(whole)


def test_open_evaluations_travel_in_the_checkpoint_and_are_submitted_again(tmp_path: Path) -> None:
    work = job(tmp_path)
    slow = ScriptedService([1.0], at_once=False)
    with pytest.raises(Killed):
        run_trial(work, slow, StopAt(30))
    again = ScriptedService([7.0, 8.0])
    run_trial(work, again)
    assert [record.step for record in records_of(work, EvaluationDone)] == [20, 40]
    first, resubmitted = slow.submitted[0][0].weights, again.submitted[0][0].weights
    assert all(np.array_equal(first[name], resubmitted[name]) for name in first)


def test_training_waits_when_too_many_evaluations_are_open(tmp_path: Path) -> None:
    resources = {"max_pending_evaluations": 1}
    evaluation = {"episodes": 2, "every_steps": 10, "cohort_size": 2}
    work = job(tmp_path, resources=resources, evaluation=evaluation)

    class Watched(ScriptedService):
        most_open = 0

        def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
            future = super().submit(snapshot, request)
            still_open = [item for item in self.submitted if not item[1].done()]
            self.most_open = max(self.most_open, len(still_open))
            if len(still_open) > 1:  # the trainer is about to wait for the oldest: let it end
                still_open[0][1].set_result(still_open[0][2])
            if len(self.submitted) == 4:
                future.set_result(self.submitted[-1][2])
            return future

    service = Watched([1.0, 2.0, 3.0, 4.0], at_once=False)
    run_trial(work, service)
    assert service.most_open == 2
    assert [record.first_target.return_mean for record in records_of(work, EvaluationDone)] == [
        1.0,
        2.0,
        3.0,
        4.0,
    ]


@pytest.mark.parametrize(
    ("returns", "best_step"), [([1.0, 2.0, 3.0, 2.5], 30), ([3.0, 3.0, 1.0, 3.0], 10), ([0.0, 0.0, 0.0, 9.0], 40)]
)
def test_the_best_checkpoint_is_the_first_with_the_highest_score(
    tmp_path: Path, returns: list[float], best_step: int
) -> None:
    work = job(tmp_path, evaluation={"episodes": 2, "every_steps": 10})
    service = ScriptedService(returns)
    assert run_trial(work, service).best_step == best_step
    assert load_checkpoint(work.folder.best_checkpoint)["step"] == best_step
    trial, stored = load_policy_snapshot(work.folder.best_checkpoint)
    assert trial == work.trial
    evaluated = service.submitted[best_step // 10 - 1][0].weights
    assert all(np.array_equal(stored.weights[name], evaluated[name]) for name in evaluated)


def test_a_stored_best_policy_gives_its_recorded_score_again(tmp_path: Path) -> None:
    work = job(tmp_path)
    done = run_trial(work, InlineEvaluation())
    recorded = next(record for record in records_of(work, EvaluationDone) if record.step == done.best_step)
    trial, stored = load_policy_snapshot(work.folder.best_checkpoint)
    from dmray.tasks import task_of
    from dmray.trial.evaluation import request_for, summarize

    request = request_for(trial, task_of(trial.dataset), takes_target=False)
    assert summarize(request, InlineEvaluation().submit(stored, request).result()) == recorded.targets


def test_a_loss_that_is_not_finite_is_a_result(tmp_path: Path) -> None:
    work = job(tmp_path, training={"steps": 40, "batch_size": 8, "learning_rate": 1e38, "warmup_steps": 0})
    done = run_trial(work, InlineEvaluation())
    assert done.status == "diverged"
    assert run_trial(work, InlineEvaluation()) == done


def test_a_finished_trial_is_not_run_again(tmp_path: Path) -> None:
    work = job(tmp_path)
    run_trial(work, InlineEvaluation())
    before = work.folder.ledger.read_bytes()
    run_trial(work, ScriptedService([]))
    assert work.folder.ledger.read_bytes() == before


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    ours, other = job(tmp_path, seeds=[0]), job(tmp_path, seeds=[1])
    for one in (ours, other):
        with pytest.raises(Killed):
            run_trial(one, InlineEvaluation(), StopAt(10))
    ours.folder.last_checkpoint.write_bytes(other.folder.last_checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another spec"):
        run_trial(ours, InlineEvaluation())
    failure = records_of(ours, AttemptFailed)[-1]
    assert failure.error.startswith("CheckpointError")
    assert "Traceback" in failure.traceback


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    work = job(tmp_path)
    with pytest.raises(Killed):
        run_trial(work, InlineEvaluation(), StopAt(10))
    content = work.folder.last_checkpoint.read_bytes()
    work.folder.last_checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"last\.pt: not a dmray checkpoint"):
        run_trial(work, InlineEvaluation())


def test_a_data_set_that_changed_under_a_trial_is_refused(tmp_path: Path) -> None:
    first, second = (
        job(tmp_path / name, datasets=[{"name": "mine", "task": "maze2d-open", "generate": {"transitions": count}}])
        for name, count in (("a", 1500), ("b", 3000))
    )
    for one in (first, second):
        with pytest.raises(Killed):
            run_trial(one, InlineEvaluation(), StopAt(10))
    files = [next(one.sweep_folder.datasets.glob("*.hdf5")) for one in (first, second)]
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(CheckpointError, match="another content of the data set"):
        run_trial(first, InlineEvaluation())


def test_a_missing_data_set_says_what_to_download_to_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_DATASETS", str(tmp_path / "here"))
    work = job(tmp_path, datasets=["maze2d-umaze-v1"])
    with pytest.raises(DatasetError, match=r"maze2d-umaze-sparse-v1.hdf5: not in .*here, .*download of http"):
        run_trial(work, InlineEvaluation())


def test_a_lagging_evaluation_is_left_out_where_the_spec_says_so_but_never_the_last(tmp_path: Path) -> None:
    resources = {"max_pending_evaluations": 1, "when_evaluations_lag": "skip"}
    work = job(tmp_path, resources=resources, evaluation={"episodes": 2, "every_steps": 10, "cohort_size": 2})

    class NeverReady(ScriptedService):
        def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
            future = super().submit(snapshot, request)
            if len(self.submitted) == 2:  # the last one: everything may end
                for _, each, episodes in self.submitted:
                    each.set_result(episodes)
            return future

    run_trial(work, NeverReady([1.0, 2.0], at_once=False))
    assert [record.step for record in records_of(work, EvaluationSkipped)] == [20, 30]
    assert [record.step for record in records_of(work, EvaluationDone)] == [10, 40]


QUICK = {"episodes": 6, "every_steps": 10, "cohort_size": 6, "quick_episodes": 3}


@pytest.mark.parametrize(
    ("returns", "quick"),
    [
        ([1.0, 1.0, 0.5, 0.4, 0.1], [False, True, True, False]),  # falling: one look each, the last one whole
        ([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0], [False, False, False, False]),  # rising: each may be the best
    ],
)
def test_a_quick_look_is_enough_unless_the_best_may_have_changed(
    tmp_path: Path, returns: list[float], quick: list[bool]
) -> None:
    work = job(tmp_path, evaluation=QUICK)
    service = ScriptedService(returns)
    run_trial(work, service)
    assert not service.returns, "as many evaluations as expected"
    evaluations = records_of(work, EvaluationDone)
    assert [record.quick for record in evaluations] == quick
    assert [len(record.first_target.returns) for record in evaluations] == [3 if each else 6 for each in quick]
    assert load_checkpoint(work.folder.best_checkpoint)["step"] == (10 if quick[1] else 40)


def test_quick_looks_do_not_change_what_whole_evaluations_say(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", evaluation=QUICK | {"quick_episodes": None})
    quick = job(tmp_path / "quick", evaluation=QUICK)
    for one in (whole, quick):
        run_trial(one, InlineEvaluation())
    expected = {record.step: record for record in records_of(whole, EvaluationDone)}
    for record in records_of(quick, EvaluationDone):
        ours, theirs = record.first_target.returns, expected[record.step].first_target.returns
        assert len(ours) == (3 if record.quick else 6)
        if not record.quick:
            assert ours == theirs
    assert not records_of(quick, EvaluationDone)[-1].quick


@pytest.mark.parametrize(
    ("mean", "std", "episodes", "best", "expected"),
    [
        (50.0, 0.0, 20, None, True),  # nothing to compare with yet
        (50.0, 0.0, 20, 50.1, False),
        (50.0, 0.0, 20, 50.0, True),
        (50.0, 10.0, 20, 54.5, True),  # two standard errors are 4.59
        (50.0, 10.0, 20, 54.7, False),
        (0.0, 0.0, 1, 90.0, True),  # one episode tells nothing
    ],
)
def test_the_rule_of_quick_looks(mean: float, std: float, episodes: int, best: float | None, expected: bool) -> None:
    result = TargetResult(
        target_return=None,
        returns=[mean] * episodes,
        lengths=[1] * episodes,
        return_mean=mean,
        return_std=std,
        normalized_mean=mean,
        normalized_std=std,
        length_mean=1.0,
    )
    assert may_be_best(result, best) is expected


def test_each_evaluation_has_a_table_of_its_episodes(tmp_path: Path) -> None:
    work = job(tmp_path, "dt")
    run_trial(work, InlineEvaluation())
    for record in records_of(work, EvaluationDone):
        table = read_episode_table(work.folder.episode_table(record.step))
        rows, about = table.to_pylist(), {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        assert [row["episode_return"] for row in rows] == record.first_target.returns
        assert [row["index"] for row in rows] == [0, 1, 2, 3]
        assert len({row["seed"] for row in rows}) == 4
        assert {row["target_return"] for row in rows} == {50.0}
        assert all(row["success"] == (row["episode_return"] >= 1) for row in rows)
        assert (about["protocol"], about["decode"], about["step"]) == ("made", "window", str(record.step))


def test_the_final_weights_are_kept_by_themselves(tmp_path: Path) -> None:
    work = job(tmp_path)
    run_trial(work, InlineEvaluation())
    final, last = (load_checkpoint(path) for path in (work.folder.final_checkpoint, work.folder.last_checkpoint))
    assert final["step"] == 40
    assert all(torch.equal(final["weights"][name], value) for name, value in last["trainer"]["policy"].items())


def test_what_the_data_decided_is_recorded(tmp_path: Path) -> None:
    work = job(tmp_path)
    run_trial(work, InlineEvaluation())
    made = records_of(work, AttemptStarted)[0].provenance
    assert made["task"]["engine"] == "maze2d"
    assert made["task"]["reference"]["maximum"] == 20.66
    assert made["dataset_notes"] == []


def test_a_relative_path_means_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = {"name": "mine", "task": "maze2d-open", "path": "data/mine.hdf5"}
    plan = tiny_plan(tmp_path, datasets=[dataset])
    work = job(tmp_path, datasets=[dataset])
    assert work.trial.dataset.path == str(tmp_path / "data" / "mine.hdf5")
    assert work.trial.trial_id == plan.trials[0].trial_id


@pytest.mark.parametrize(
    ("method", "deterministic", "backend"), [("dm", False, "numba"), ("dm", True, "reference"), ("dt", False, None)]
)
def test_a_run_records_what_computed_its_scan(
    method: str, deterministic: bool, backend: str | None, tmp_path: Path
) -> None:
    work = job(tmp_path, method).model_copy(update={"deterministic": deterministic})
    try:
        run_trial(work, InlineEvaluation())
    finally:
        torch.use_deterministic_algorithms(False)
    (started,) = records_of(work, AttemptStarted)
    assert started.provenance["scan_backend"] == backend
    assert attempt_tags(started).get("mamba.backend") == backend


def test_being_deterministic_does_not_change_which_trial_it_is(tmp_path: Path) -> None:
    plans = [tiny_plan(tmp_path / str(flag), resources={"deterministic": flag}) for flag in (False, True)]
    assert plans[0].trials == plans[1].trials
