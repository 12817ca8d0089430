"""Which trial a stopped process works for. (tests/on_ray/test_liveness.py freezes processes of a sweep on Ray.)"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmray.on_ray import frozen_processes
from dmray.on_ray.frozen_processes import FrozenProcesses, Stopped
from dmray.records import AttemptStarted
from dmray.trial.job import TrialJob
from tests.progress.ledgers import begun


def test_a_damaged_ledger_does_not_hide_the_worker_of_another_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_job_id=lambda: "job")
    monkeypatch.setattr(frozen_processes.ray, "get_runtime_context", lambda: context)

    def attempt(trial_id: str, pid: int) -> Any:
        return AttemptStarted(time_s=20.0, attempt=1, from_step=0, trial_id=trial_id, spec={}, provenance={"pid": pid})

    plan, folder = begun(tmp_path)
    damaged, whole = plan.trial_ids
    plan, folder = begun(tmp_path, [attempt(damaged, 6)], [attempt(whole, 7)])
    with folder.trial(damaged).ledger.open("ab") as ledger:
        ledger.write(b"{}\n")
    jobs = [TrialJob.of(trial, plan.sweep, folder) for trial in plan.trials]
    processes = FrozenProcesses(folder, jobs, 1.0, "node", core=(), own_ray=True)
    assert processes._job_of(Stopped("node", 7, created=10.0, title="")) == jobs[1]
    assert processes._job_of(Stopped("node", 7, created=30.0, title="")) is None, "a later process with this id"
