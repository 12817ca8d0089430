"""More training steps: the trial goes on from the shorter one, with the records of an undisturbed training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch

import dmray
from dmray.errors import StorageError
from dmray.planning.plan import plan
from dmray.policies import PolicySnapshot
from dmray.progress.changes import changes
from dmray.progress.extensions import find_extensions
from dmray.progress.trial_status import TrialStatus, trial_status, trial_statuses
from dmray.records import (
    AttemptStarted,
    EvaluationDone,
    SweepFolder,
    TrainingExtended,
    read_episode_table,
    read_ledger,
)
from dmray.rollout import EpisodeRecord, EvaluationRequest
from dmray.sources import open_dataset
from dmray.specs import SweepSpec
from dmray.tasks import task_of
from dmray.trial import extension
from dmray.trial.checkpoints import load_checkpoint
from dmray.trial.evaluation import EvaluationFuture
from dmray.trial.job import TrialJob
from dmray.trial.run import run_trial
from tests.sweeps import tiny_plan, tiny_sweep
from tests.trial.jobs import RULE, Killed, ScriptedService, StopAt, records_of, science

Storage = Callable[[str], Path]


class ByWeights:
    """Evaluations without a simulator: the returns follow from the weights alone."""

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        base = float(sum(np.abs(values).sum(dtype=np.float64) for values in snapshot.weights.values()))
        done: EvaluationFuture = Future()
        done.set_result(
            tuple(
                EpisodeRecord(index, index, target, base + index, 3)
                for target in request.target_returns
                for index in range(request.episodes)
            )
        )
        return done


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set, recorded once."""
    storage = tmp_path_factory.mktemp("recorded")
    trial = tiny_plan(storage).trials[0]
    open_dataset(trial.dataset, task_of(trial.dataset), storage / "datasets")
    return storage / "datasets"


@pytest.fixture
def storage(tmp_path: Path, recordings: Path) -> Callable[[str], Path]:
    """Storages that have the data set."""

    def made(name: str) -> Path:
        place = tmp_path / name
        if not place.exists():
            place.mkdir()
            (place / "datasets").symlink_to(recordings)
        return place

    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> TrialJob:
    """40 steps, undisturbed."""
    place = tmp_path_factory.mktemp("whole")
    (place / "datasets").symlink_to(recordings)
    return run(place, 40)


@pytest.fixture(autouse=True)
def _no_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmray.driver.local_runner.InlineEvaluation", ByWeights)


def trained(steps: int) -> dict[str, object]:
    return {"steps": steps, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 30}


def longer_job(storage: Path, steps: int = 40, **changed: object) -> TrialJob:
    """The job of the longer trial as a driver makes it."""
    made = tiny_plan(storage, training=trained(steps), **changed)
    folder = SweepFolder(storage, made.sweep.name)
    trial = next(each for each in made.trials if each.method == "dm")
    return TrialJob.of(trial, made.sweep, folder, find_extensions(made, folder).get(trial.trial_id))


def run(storage: Path, steps: int, **changed: object) -> TrialJob:
    work = longer_job(storage, steps, **changed)
    run_trial(work, ByWeights())
    return work


def weights(work: TrialJob, name: str) -> dict[str, torch.Tensor]:
    content = load_checkpoint(work.folder.checkpoint(name))
    found: dict[str, torch.Tensor] = content["trainer"]["policy"] if "trainer" in content else content["weights"]
    return found


def same_as_undisturbed(extended: TrialJob, whole: TrialJob) -> None:
    assert extended.trial == whole.trial
    assert science(extended) == science(whole)
    for name in ("last", "best", "final"):
        ours, theirs = weights(extended, name), weights(whole, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    tables = [sorted(path.name for path in each.folder.evaluations.iterdir()) for each in (extended, whole)]
    assert tables[0] == tables[1]
    for name in tables[0]:
        assert read_episode_table(extended.folder.evaluations / name).equals(
            read_episode_table(whole.folder.evaluations / name)
        )


def test_20_steps_extended_to_40_equal_40_undisturbed_with_all_records(storage: Storage, whole: TrialJob) -> None:
    short = run(storage("a"), 20)
    before = {path: path.read_bytes() for path in short.folder.path.rglob("*") if path.is_file()}
    extended = run(storage("a"), 40)
    assert extended.extends == short.trial.trial_id
    same_as_undisturbed(extended, whole)
    assert {path: path.read_bytes() for path in before} == before, "the shorter trial stays as it is"
    [mark] = records_of(extended, TrainingExtended)
    assert (mark.trial_id, mark.step) == (short.trial.trial_id, 20)
    first, second = records_of(extended, AttemptStarted)
    assert (first.trained_as, first.trial_id) == (short.trial.trial_id, extended.trial.trial_id)
    assert (second.trained_as, second.attempt, second.from_step) == (None, 2, 20)
    assert trial_status(extended.trial, extended.folder) is TrialStatus.FINISHED


def test_a_trial_is_extended_again_and_again(storage: Storage, whole: TrialJob) -> None:
    for steps in (10, 20):
        run(storage("a"), steps)
    last = run(storage("a"), 40)
    assert weights(last, "final").keys() == weights(whole, "final").keys()
    assert all(torch.equal(weights(last, "final")[key], value) for key, value in weights(whole, "final").items())
    assert [mark.step for mark in records_of(last, TrainingExtended)] == [10, 20]
    assert [record.step for record in records_of(last, EvaluationDone)] == [10, 20, 40], "scores along the way stay"


@pytest.mark.parametrize("killed_at", ["best.pt", "last.pt", "ledger.jsonl"])
def test_a_kill_while_a_trial_is_extended_loses_nothing(
    storage: Storage, whole: TrialJob, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    place = storage("a")
    run(place, 20)
    written = extension.write_atomic

    def dying(path: Path, content: bytes | memoryview) -> None:
        if path.name == killed_at:
            raise Killed
        written(path, content)

    for name in ("dmray.trial.extension.write_atomic", "dmray.trial.checkpoints.write_atomic"):
        monkeypatch.setattr(name, dying)
    with pytest.raises(Killed):
        run(place, 40)
    monkeypatch.undo()
    with pytest.raises(Killed):
        run_trial(longer_job(place), ByWeights(), StopAt(30))
    extended = longer_job(place)
    assert extended.extends is None, "it has begun: an ordinary resume"
    run_trial(extended, ByWeights())
    assert [record.from_step for record in records_of(extended, AttemptStarted)] == [0, 20, 30]
    assert science(extended) == science(whole)


def test_a_trial_that_was_interrupted_is_extended_from_its_last_checkpoint(storage: Storage, whole: TrialJob) -> None:
    with pytest.raises(Killed):
        run_trial(longer_job(storage("a"), 20), ByWeights(), StopAt(10))
    extended = run(storage("a"), 40)
    assert [mark.step for mark in records_of(extended, TrainingExtended)] == [10]
    same_as_undisturbed(extended, whole)


def test_a_trial_that_was_stopped_early_stays_stopped_while_the_decision_holds(storage: Storage) -> None:
    place = storage("a")
    changed = {
        "grid": [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": n, "context_length": 4} for n in (1, 2)]}],
        "early_stopping": RULE | {"grace_steps": 10},
        "evaluation": {"episodes": 2, "every_steps": 10, "cohort_size": 2},
    }

    def jobs(steps: int) -> list[TrialJob]:
        made = tiny_plan(place, training=trained(steps), **changed)
        folder = SweepFolder(place, made.sweep.name)
        found = find_extensions(made, folder)
        return [TrialJob.of(trial, made.sweep, folder, found.get(trial.trial_id)) for trial in made.trials]

    good, bad = jobs(20)
    run_trial(good, ScriptedService([9.0, 9.0]))
    assert run_trial(bad, ScriptedService([1.0])).kind == "stopped"
    assert run_trial(jobs(40)[1], ScriptedService([])).kind == "stopped"
    assert trial_status(jobs(40)[1].trial, jobs(40)[1].folder, bad.early_stopping) is TrialStatus.STOPPED_EARLY


def test_what_cannot_be_continued_is_said_and_starts_at_step_0(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    place = storage("a")
    short = run(place, 20)
    short.folder.last_checkpoint.unlink()
    extended = run(place, 40)
    assert "last.pt is missing" in caplog.text
    assert "it starts at step 0" in caplog.text
    assert [record.from_step for record in records_of(extended, AttemptStarted)] == [0]


def test_a_failed_beginning_is_recorded_and_tried_again(storage: Storage) -> None:
    place = storage("a")
    short = run(place, 20)
    whole = short.folder.last_checkpoint.read_bytes()
    short.folder.last_checkpoint.write_bytes(whole[:-1])
    with pytest.raises(Exception, match=r"last\.pt: not a dmray checkpoint as it was written"):
        run(place, 40)
    broken = longer_job(place)
    assert trial_status(broken.trial, broken.folder) is TrialStatus.FAILED
    short.folder.last_checkpoint.write_bytes(whole)
    extended = run(place, 40)
    assert [record.from_step for record in records_of(extended, AttemptStarted)] == [0, 20]


def test_only_more_steps_of_the_same_trial_are_an_extension(storage: Storage) -> None:
    place = storage("a")
    run(place, 20)
    assert longer_job(place, 40).extends is not None
    assert longer_job(place, 10).extends is None, "fewer steps are a new trial"
    assert longer_job(place, 40, seeds=[1]).extends is None
    other = tiny_plan(place, training=trained(40) | {"batch_size": 4})
    assert find_extensions(other, SweepFolder(place, "tiny")) == {}


def sweep(place: Path | str, steps: int) -> SweepSpec:
    return tiny_sweep(
        place,
        grid=[{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
        training=trained(steps),
        tracking={"log_every_steps": 10, "mlflow_uri": "off"},
    )


def test_resume_with_more_steps_extends_a_sweep_whose_report_has_each_trial_once(storage: Storage) -> None:
    place = storage("a")
    dmray.run_sweep(sweep(place, 20), local=True, progress=False)
    with pytest.raises(StorageError, match="1 trials can go on to step 40; do that with --resume"):
        dmray.run_sweep(sweep(place, 40), local=True, progress=False)
    made, folder = plan(sweep(place, 40)), SweepFolder(place, "tiny")
    statuses = trial_statuses(made, folder)
    difference = changes(made, folder, statuses, find_extensions(made, folder, statuses))
    assert str(difference) == "0 done kept, 1 continued with more training steps"
    results = dmray.run_sweep(sweep(place, 40), local=True, progress=False, resume=True)
    assert results.succeeded
    assert results.curves.step.tolist() == [20, 40]
    assert len(results.trials) == 1


def test_a_trial_in_an_object_store_is_extended_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"memory://{uuid4().hex[:8]}/runs"
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "first"))
    dmray.run_sweep(sweep(storage, 20), local=True, progress=False)
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "second"))
    results = dmray.run_sweep(sweep(storage, 40), local=True, progress=False, resume=True)
    [folder], [trial_id] = results.folders, results.trials.trial_id
    records = read_ledger(folder.trial(trial_id).ledger)
    assert [record.from_step for record in records if isinstance(record, AttemptStarted)] == [0, 20]
    assert [record.step for record in records if isinstance(record, EvaluationDone)] == [20, 40]
    assert sorted(set(dmray.load_results(f"{storage}/tiny").episodes.step)) == [20, 40]
