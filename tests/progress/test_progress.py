from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from dmray.coordination.commands import send_command
from dmray.coordination.sweep_lock import folder_lock
from dmray.files import write_json
from dmray.progress.progress import RATE_WINDOW_S, Follower, SweepProgress
from dmray.progress.summary import Summary, follower_of, summarize
from dmray.progress.summary_view import ProgressView, SweepView, line, text
from dmray.records import (
    AttemptPaused,
    Ledger,
    SweepFolder,
)
from tests.progress.ledgers import begun, done, evaluated, failed, started, trained
from tests.sweeps import tiny_plan


def driven(folder: SweepFolder) -> Summary:
    """What is seen while a driver is at work."""
    with folder_lock(folder):
        return summarize(follower_of(folder))


def test_rates_are_by_the_clocks_of_the_records_of_the_last_ten_minutes(tmp_path: Path) -> None:
    progress = SweepProgress.of(tiny_plan(tmp_path).trials)
    first, second = progress.trials
    assert progress.rates(0.0) == (0.0, 0.0, 0.0)
    progress.take(first, [started(), trained(20, 10.0), evaluated(20, 10.0)])
    rates = progress.rates(20.0)
    assert rates.steps_per_s == pytest.approx(1.0)
    assert rates.evaluations_per_h == pytest.approx(180.0)
    work = progress.work_left()
    progress.take(second, [trained(30, 20.0)])  # its reading begins here: who knows when these 30 were done
    assert progress.rates(20.0).steps_per_s == pytest.approx(1.0)
    assert progress.work_left() < work
    assert progress.rates(21.0 + RATE_WINDOW_S).steps_per_s == 0.0


def test_work_done_again_after_a_crash_counts_once(tmp_path: Path) -> None:
    progress = SweepProgress.of(tiny_plan(tmp_path).trials)
    progress.take(next(iter(progress.trials)), [started(), trained(20), started(10), trained(20), trained(30)])
    assert progress.rates(10.0).steps_per_s == pytest.approx(3.0)


def test_states_are_counted_and_named(tmp_path: Path) -> None:
    _, folder = begun(tmp_path, [started(), done(40, time.time())], [started(), failed(5)])
    summary = driven(folder)
    assert line(summary).startswith("1/2 trials done, 0 running, 1 failed, 45/80 steps")
    assert [row.error for row in summary.failures] == ["OSError: disk [full]"]
    assert summary.ended
    assert not summary.done


def test_a_trial_whose_driver_is_gone_does_not_run(tmp_path: Path) -> None:
    _, folder = begun(tmp_path, [started(), trained(30)])
    assert driven(folder).statuses["running"] == 1
    summary = summarize(follower_of(folder))
    assert (summary.statuses["running"], summary.statuses["interrupted"], summary.eta_s) == (0, 1, None)
    assert not summary.at_work


def test_open_evaluations_are_those_due_and_not_recorded(tmp_path: Path) -> None:
    now = time.time()
    _, folder = begun(tmp_path, [started(0, now - 10), trained(40, now), evaluated(20, now)])
    summary = driven(folder)
    assert summary.pending_evaluations == 1
    assert summary.evaluations_per_h == pytest.approx(360, rel=0.5)
    assert summary.eta_s is not None


def test_a_paused_sweep_says_so_and_by_whom(tmp_path: Path) -> None:
    _, folder = begun(tmp_path, [started(), AttemptPaused(time_s=0.0, attempt=1, step=17)])
    order = send_command(folder, "pause")
    with folder_lock(folder):
        summary = summarize(follower_of(folder))
        shown = text(summary)
    assert f"process {os.getpid()}" in shown
    assert f"paused by {order.sent_by}" in shown
    assert "1 paused" in shown
    assert summary.steps == 17


def test_only_what_has_grown_is_read(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started(), trained(10)], [started()])
    Ledger(folder.trial(plan.trial_ids[1]).ledger).append(done(40))
    write_json(folder.trial(plan.trial_ids[1]).done, done(40).model_dump(mode="json"))
    follower = Follower(folder, plan.trials)
    assert follower.update().steps == 50
    folder.trial(plan.trial_ids[1]).ledger.write_text("nobody reads this any more")
    ledger = Ledger(folder.trial(plan.trial_ids[0]).ledger)
    ledger.append(trained(20))
    assert follower.update().steps == 60


def test_a_long_ledger_is_read_from_its_end(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started()])
    ledger = Ledger(folder.trial(plan.trial_ids[0]).ledger)
    for step in range(1, 40):
        ledger.append(trained(step).model_copy(update={"stage_losses": {"x" * 4000: 1.0}}))
    before = ledger.path.read_bytes()
    ledger.path.write_bytes(b"#" + before[1:])  # the first line is no record any more
    assert Follower(folder, plan.trials).update().steps == 39


def test_the_terminal_view_names_running_and_failed_trials(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started(), trained(20)], [started(), failed(3)])
    console = Console(width=140, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(SweepView(driven(folder), with_driver=True))
    shown = console.export_text()
    assert all(trial_id in shown for trial_id in plan.trial_ids)
    assert "OSError: disk [full]" in shown
    console.file.close()


def test_a_summary_is_json(tmp_path: Path) -> None:
    _, folder = begun(tmp_path, [started(), trained(20)])
    assert json.loads(json.dumps(asdict(driven(folder))))["driver"]["alive"] is True


def test_a_log_gets_plain_lines_from_the_ledgers(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started(), trained(20)])
    console = Console(record=True, width=200, force_terminal=False)
    with ProgressView(Follower(folder, plan.trials), console, summary_every_s=60):
        pass
    assert "20/80 steps" in console.export_text()
