from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from dmray.execution.progress import ProgressView, SweepProgress, line, render
from dmray.tracking import AttemptFailed, AttemptStarted, Ledger, SweepFolder, TrainProgress, TrialDone
from tests.execution.sweeps import tiny_plan


def started(step: int = 0) -> AttemptStarted:
    return AttemptStarted(time_s=0.0, attempt=1, from_step=step, trial_id="x", spec={}, provenance={})


def trained(step: int) -> TrainProgress:
    return TrainProgress(
        time_s=0.0, step=step, loss=0.5, stage_losses={}, grad_norm=1.0, learning_rate=1e-3, steps_per_s=10.0
    )


def failed(step: int) -> AttemptFailed:
    return AttemptFailed(time_s=0.0, attempt=1, step=step, error="OSError: disk full", traceback="")


def done(step: int) -> TrialDone:
    return TrialDone(time_s=0.0, status="finished", step=step, best_step=None, train_s=1.0)


def test_the_rate_and_the_eta_follow_the_ledgers(tmp_path: Path) -> None:
    progress = SweepProgress.of(tiny_plan(tmp_path))
    first, second = progress.trials.values()
    progress.measure(0.0)
    assert progress.eta_s is None
    first.advance(started())
    first.advance(trained(20))
    progress.measure(10.0)
    assert progress.steps_per_s == pytest.approx(2.0)
    assert progress.eta_s == pytest.approx(30.0)  # 60 of 80 steps are left
    second.advance(started(10))
    assert (progress.steps, progress.count("running")) == (30, 2)


def test_states_are_counted(tmp_path: Path) -> None:
    progress = SweepProgress.of(tiny_plan(tmp_path))
    first, second = progress.trials.values()
    first.advance(started())
    first.advance(done(40))
    second.advance(started())
    second.advance(failed(5))
    assert line(progress).startswith("1/2 trials done, 0 running, 1 failed, 40/80 steps")
    second.advance(started(5))
    assert progress.count("failed") == 0


def test_the_live_view_names_running_and_failed_trials(tmp_path: Path) -> None:
    progress = SweepProgress.of(tiny_plan(tmp_path))
    (first, second), ids = progress.trials.values(), list(progress.trials)
    first.advance(started())
    second.advance(failed(3))
    console = Console(width=140, record=True)
    console.print(render(progress))
    text = console.export_text()
    assert ids[0] in text
    assert "failed" in text


def test_a_log_gets_plain_lines_from_the_ledgers(tmp_path: Path) -> None:
    plan, folder = tiny_plan(tmp_path), SweepFolder(tmp_path, "tiny")
    ledger = Ledger(folder.trial(plan.trial_ids[0]).ledger)
    ledger.append(started())
    ledger.append(trained(20))
    console = Console(record=True, width=140, force_terminal=False)
    with ProgressView(plan, folder, console, log_every_s=60):
        pass
    assert "20/80 steps" in console.export_text()
