"""Early stopping by scores that workers exchange through a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmray.records import SweepFolder, TrialStopped
from dmray.storage import Store, sweep_folder
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.run import run_trial
from tests.storage.contents import from_steps, ledger_in_store, read
from tests.sweeps import science_of, tiny_plan
from tests.trial.jobs import ONE_METHOD


def test_trials_on_s3_are_stopped_by_scores_of_others_and_continue_on_another_machine(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, alone = tiny_plan(s3_url, **ONE_METHOD), tiny_plan(tmp_path / "alone", **ONE_METHOD)
    folder = sweep_folder(s3_url, "tiny", "driver")
    first, second = (TrialJob.of(trial, plan.sweep, folder) for trial in plan.trials[::2])
    assert run_trial(first, InlineEvaluation()).kind == "done"
    stopped = run_trial(second, InlineEvaluation())
    assert isinstance(stopped, TrialStopped)
    assert stopped.decision.num_peers == 1
    assert ledger_in_store(second)[-1] == stopped
    posted = Store(f"{s3_url}/tiny").list("rungs")
    assert sorted(Path(name).stem for name in posted) == sorted(plan.trial_ids[::2])
    assert not second.folder.ledger.exists(), "the working folder is empty"

    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "another"))
    run_trial(second.model_copy(update={"early_stopping": None}), InlineEvaluation())
    assert from_steps(second) == [0, 20]
    never_stopped = TrialJob.of(alone.trials[2], alone.sweep, SweepFolder(tmp_path / "alone", "tiny"))
    run_trial(never_stopped, InlineEvaluation())
    ids = plan.trial_ids[2:]
    assert science_of(read(plan), ids) == science_of(never_stopped.sweep_folder, ids)
