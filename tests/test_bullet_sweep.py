"""The paper's bullet tasks through every step of a sweep: record, train, evaluate, report, evaluate again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dmray.cli import evaluate
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import Runner, run_sweep
from dmray.on_ray import RayRunner
from dmray.planning.plan import Plan
from dmray.progress.trial_status import TrialStatus
from dmray.records import AttemptStarted, SweepFolder, read_ledger
from dmray.reporting import write_report
from tests.rollout.bullet import needs_bullet
from tests.sweeps import science_of, tiny_plan

CHANGES: dict[str, Any] = {
    "datasets": [
        {
            "name": "bullet-hopper-made",
            "task": "bullet-hopper",
            "generate": {"behaviour": "random", "transitions": 500},
        }
    ],
    "evaluation": {"episodes": 4, "every_steps": 20, "cohort_size": 2, "target_returns": [50.0]},
    "resources": {"executor": "tune", "cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5},
}


def run(plan: Plan, runner: Runner, folder: SweepFolder) -> None:
    states = run_sweep(
        plan, folder, runner, lambda sweep: write_report(sweep).folder, resume=False, console=Console(quiet=True)
    )
    assert set(states.values()) == {TrialStatus.FINISHED}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, tuple[str, ...]]:
    """DM and DT, trained and evaluated in this process."""
    storage = tmp_path_factory.mktemp("bullet")
    plan = tiny_plan(storage, **CHANGES)
    folder = SweepFolder(storage, "tiny")
    run(plan, LocalRunner(), folder)
    return folder, plan.trial_ids


@needs_bullet
def test_a_stored_policy_gives_its_recorded_returns_to_the_last_digit(ran: tuple[SweepFolder, tuple[str, ...]]) -> None:
    folder, trial_ids = ran
    for trial_id in trial_ids:
        done = CliRunner().invoke(evaluate.app, [str(folder.trial(trial_id).path)])
        assert done.exit_code == 0, done.output
        assert "bullet-hopper (d4rl-bullet" in done.output
        assert "The sweep recorded the same returns, to the last digit" in done.output


@needs_bullet
def test_record_and_report_name_protocol_and_release(ran: tuple[SweepFolder, tuple[str, ...]]) -> None:
    from importlib.metadata import version

    folder, trial_ids = ran
    (attempt,) = (r for r in read_ledger(folder.trial(trial_ids[0]).ledger) if isinstance(r, AttemptStarted))
    assert attempt.provenance["versions"]["pybullet"] == version("pybullet")
    report = (folder.report / "report.md").read_text()
    assert "bullet-hopper-made (d4rl-bullet, " in report
    assert f"pybullet: {version('pybullet')}" in report


@needs_bullet
@pytest.mark.ray
def test_on_ray_it_has_the_results_of_the_local_one(
    ray_session: None, ran: tuple[SweepFolder, tuple[str, ...]], tmp_path: Path
) -> None:
    folder, trial_ids = ran
    plan = tiny_plan(tmp_path, **CHANGES)
    run(plan, RayRunner(), SweepFolder(tmp_path, "tiny"))
    assert science_of(SweepFolder(tmp_path, "tiny"), trial_ids) == science_of(folder, trial_ids)
