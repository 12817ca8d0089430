"""`faults.keep_checkpoints`: the weights after every N steps stay, whole, through kills, in stores and in the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dmray
from dmray.errors import CheckpointError, SpecError
from dmray.inference.policy import stored_checkpoints
from dmray.planning.cost import total_cost
from dmray.records import EvaluationDone
from dmray.storage import Publisher, SweepCopy, open_store
from dmray.trial.checkpoints import load_policy_snapshot
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import run_trial
from tests.sweeps import tiny_plan, tiny_sweep
from tests.trial.jobs import Killed, ScriptedService, StopAt, job, records_of

EVERY_10 = {"checkpoint_every_steps": 20, "keep_checkpoints": "every:10"}


@pytest.mark.parametrize(
    ("keep", "steps"), [("last_best", []), ("every:15", [15, 30]), ("every:40", [40]), ("all", [20, 40])]
)
def test_the_weights_of_these_steps_are_kept(tmp_path: Path, keep: str, steps: list[int]) -> None:
    work = job(tmp_path, faults={"checkpoint_every_steps": 20, "keep_checkpoints": keep})
    run_trial(work, ScriptedService([1.0, 2.0]))
    assert list(work.folder.numbered_checkpoints()) == [f"step:{step}" for step in steps]


def test_kept_weights_are_those_of_the_step_also_after_a_kill(tmp_path: Path) -> None:
    whole, broken = job(tmp_path / "whole", faults=EVERY_10), job(tmp_path / "broken", faults=EVERY_10)
    run_trial(whole, InlineEvaluation())
    with pytest.raises(Killed):
        run_trial(broken, InlineEvaluation(), StopAt(20))
    broken.folder.numbered_checkpoint(20).unlink()  # as if the kill had come before it
    run_trial(broken, InlineEvaluation())
    assert list(whole.folder.numbered_checkpoints()) == ["step:10", "step:20", "step:30", "step:40"]
    for name in ("step:10", "step:30", "step:40"):
        ours, theirs = (load_policy_snapshot(each.folder.checkpoint(name))[1].weights for each in (whole, broken))
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert [name for name in stored_checkpoints(whole.folder) if name.startswith("step")] != []
    [at_20] = [record for record in records_of(whole, EvaluationDone) if record.step == 20]
    policy = dmray.load_policy(whole.folder.path, checkpoint="step:20")
    assert policy.step == 20
    assert dmray.evaluate_policy(policy).scores[0].returns == at_20.first_target.returns
    with pytest.raises(CheckpointError, match="no checkpoint 'step:25'; there are step:10, step:20"):
        dmray.load_policy(whole.folder.path, checkpoint="step:25")


def test_a_store_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "cache"))
    work = job(tmp_path, faults=EVERY_10)
    run_trial(work, ScriptedService([1.0, 2.0]))
    store = open_store(f"file://{tmp_path}/store", "tiny")
    Publisher(store, work.sweep_folder, work.folder).close(10)
    copy = SweepCopy.for_reading(f"file://{tmp_path}/store", "tiny")
    names = copy.checkpoint_names()[work.trial.trial_id]
    assert {"step:10", "step:40", "best", "final"} <= set(names)
    copy.fetch_trial(copy.folder.trial(work.trial.trial_id))
    assert len(copy.folder.trial(work.trial.trial_id).numbered_checkpoints()) == 4


def test_the_disk_space_of_a_plan_counts_them() -> None:
    trials = tiny_plan("runs").trials
    base, kept = total_cost(trials, 10).disk_bytes, total_cost(trials, 10, 10).disk_bytes
    last_best_and_final = 5  # times the weights: the state has two moments beside them
    assert kept - base == pytest.approx(4 / last_best_and_final * base, rel=0.2)


@pytest.mark.parametrize("wrong", ["every", "every:0", "every:-5", "each", "last"])
def test_another_word_is_an_error_that_names_the_right_ones(wrong: str) -> None:
    with pytest.raises((SpecError, ValueError), match="give last_best, all, or every:N"):
        tiny_sweep("runs", faults={"keep_checkpoints": wrong})
