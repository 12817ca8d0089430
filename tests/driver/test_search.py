"""A search as it runs: rounds from ledgers, through kills, stops and failures."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import dmray
from dmray.cli import status
from dmray.coordination.commands import send_command
from dmray.driver.session import run_sweep
from dmray.errors import StorageError
from dmray.planning.manifest import read_manifest, write_manifest
from dmray.planning.plan import Plan
from dmray.planning.trial_filter import TrialFilter
from dmray.progress.changes import changes
from dmray.progress.summary_view import text
from dmray.progress.sweep_handle import find_sweep
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import SweepFolder
from dmray.specs import TrialSpec
from tests.mlflow_mirror.examples import failed, started, whole_trial, write_ledger
from tests.sweeps import TINY_SEARCH, science_of, tiny_plan

# Runs a sweep undisturbed, then in another folder by forked children, so that imports and compilations are made once.
# Before its n-th record a child kills itself as by kill -9, for the n of each further argument (0: never).
DRIVERS = """
import os, signal, sys
from pathlib import Path
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.records import Ledger, SweepFolder
from tests.sweeps import TINY_SEARCH, tiny_plan

append, left = Ledger.append, 0

def counted(self, record):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return append(self, record)

def drive(storage):
    plan = tiny_plan(storage, early_stopping={"grace_steps": 5, "reduction_factor": 2}, **TINY_SEARCH)
    run_sweep(plan, SweepFolder(storage, "tiny"), LocalRunner(), lambda sweep: sweep.report, resume=True)

Ledger.append = counted
undisturbed, killed, *numbers = sys.argv[1:]
drive(Path(undisturbed))
for number in numbers:
    child = os.fork()
    if child == 0:
        left = int(number)
        drive(Path(killed))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_search_that_is_killed_at_random_moments_ends_with_the_same_records_and_choice(tmp_path: Path) -> None:
    draw = random.Random(3)
    kills = [draw.randint(2, 12), draw.randint(8, 24), draw.randint(8, 24)]
    paths = [str(tmp_path / name) for name in ("undisturbed", "killed")]
    command = [sys.executable, "-c", DRIVERS, *paths, *map(str, kills), "0"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2], check=False
    )
    assert ran.stdout.split() == ["-9", "-9", "-9", "0"], ran.stderr
    undisturbed, killed = (SweepFolder(Path(path), "tiny") for path in paths)
    expected = read_manifest(undisturbed)
    assert read_manifest(killed).trials == expected.trials
    assert len(expected.trials) == 6 + 1
    assert science_of(killed, expected.trial_ids) == science_of(undisturbed, expected.trial_ids)
    states = trial_statuses(expected, killed)
    assert states == trial_statuses(expected, undisturbed)
    assert TrialStatus.STOPPED_EARLY in states.values(), "early stopping takes part"
    assert {trial.name for trial in (killed.path / "trials").iterdir()} == set(expected.trial_ids)


class Fake:
    """Runs no training: a trial ends with a score, or fails. `fails`: those that do."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.fails: set[str] = set()

    def run(self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: object) -> list[TrialSpec]:
        self.ran.append([trial.trial_id for trial in todo])
        for trial in todo:
            score = 50 - 1000 * trial.training.learning_rate
            broken = trial.trial_id in self.fails
            write_ledger(folder, trial, [started(), failed(3)] if broken else whole_trial(score))
        return []


def planned(storage: Path) -> tuple[Plan, SweepFolder]:
    return tiny_plan(storage, **TINY_SEARCH), SweepFolder(storage, "tiny")


def report(sweep: SweepFolder) -> Path:
    return sweep.report


def test_the_manifest_has_every_round_before_its_trials_run(tmp_path: Path) -> None:
    (plan, folder), fake = planned(tmp_path), Fake()
    states = run_sweep(plan, folder, fake, report, resume=False)
    assert [len(ran) for ran in fake.ran] == [2, 2, 2, 1]
    assert list(states) == [trial_id for ran in fake.ran for trial_id in ran]
    assert read_manifest(folder).trial_ids == tuple(states)
    again = Fake()
    run_sweep(plan, folder, again, report, resume=True)
    assert again.ran == []


@pytest.mark.parametrize(
    ("ended", "known", "ran"),
    [
        (2, {TrialStatus.FINISHED: 2, TrialStatus.WAITING: 2}, [2, 2, 1]),
        (1, {TrialStatus.FINISHED: 1, TrialStatus.WAITING: 1}, [1, 2, 2, 1]),
    ],
    ids=["between rounds", "within a round"],
)
def test_a_search_that_is_stopped_continues_where_it_was(
    tmp_path: Path, ended: int, known: dict[TrialStatus, int], ran: list[int]
) -> None:
    plan, folder = planned(tmp_path)

    class Stopping(Fake):
        def run(self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: object) -> list[TrialSpec]:
            super().run(plan, todo[:ended], folder, refresh)
            send_command(folder, "stop")
            return list(todo[ended:])

    states = run_sweep(plan, folder, Stopping(), report, resume=False)
    assert Counter(states.values()) == known, "the next round is planned once this one has ended"
    assert read_manifest(folder).trial_ids == tuple(states)
    fake = Fake()
    run_sweep(plan, folder, fake, report, resume=True)
    assert [len(each) for each in fake.ran] == ran


def test_what_failed_in_a_round_counts_as_failed_until_it_is_retried(tmp_path: Path) -> None:
    (plan, folder), fake = planned(tmp_path), Fake()
    first = plan.trial_ids[0]
    fake.fails = {first}
    states = run_sweep(plan, folder, fake, report, resume=False)
    assert states[first] is TrialStatus.FAILED
    assert [len(ran) for ran in fake.ran] == [2, 2, 2, 1]
    resumed = Fake()
    assert run_sweep(plan, folder, resumed, report, resume=True) == states
    assert resumed.ran == [], "later rounds were proposed by this failure"
    retried = Fake()
    states = run_sweep(plan, folder, retried, report, resume=True, trial_filter=TrialFilter(retry_failed=True))
    assert retried.ran == [[first]]
    assert states[first] is TrialStatus.FINISHED


def test_a_search_of_which_nothing_finished_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (plan, folder), fake = planned(tmp_path), Fake()

    class Broken(set[str]):
        def __contains__(self, trial: object) -> bool:
            return True

    fake.fails = Broken()
    run_sweep(plan, folder, fake, report, resume=False)
    assert "search: no setting of dm on open-expert finished, so none is chosen" in caplog.text
    assert [len(ran) for ran in fake.ran] == [2, 2, 2]


def test_a_status_that_is_watched_gets_the_trials_of_later_rounds(tmp_path: Path) -> None:
    (plan, folder), watched = planned(tmp_path), []

    class Watched(Fake):
        def run(self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: object) -> list[TrialSpec]:
            watched.append(view.read().trials)
            return super().run(plan, todo, folder, refresh)

    run_sweep(plan, folder, Fake(), report, resume=False, trial_filter=TrialFilter(retry_failed=True))  # runs nothing
    with find_sweep(str(folder.path), None) as found:
        view = status._View(found)
        assert view.read().trials == 2
        run_sweep(plan, folder, Watched(), report, resume=True)
    assert watched == [2, 4, 6, 7]


def test_the_manifest_keeps_the_search(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path)
    run_sweep(plan, folder, Fake(), report, resume=False)
    content = json.loads(folder.manifest.read_text())["sweep"]
    assert content["training"]["learning_rate"] == {"log_uniform": [1e-4, 1e-1]}
    assert content["search"]["seeds"] == [100]


def test_trials_that_a_later_round_may_propose_are_not_called_gone(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path)
    run_sweep(plan, folder, Fake(), report, resume=False)
    longer = tiny_plan(tmp_path, **{**TINY_SEARCH, "training": {**TINY_SEARCH["training"], "steps": 20}})
    said = str(changes(longer, folder, trial_statuses(longer, folder)))
    assert said.endswith("2 new (training.steps 10 -> 20), 7 gone or not proposed yet (their folders stay)")


def test_selection_trials_are_not_evaluated_again(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path)
    run_sweep(plan, folder, Fake(), report, resume=False)
    [chosen] = [trial for trial in read_manifest(folder).trials if trial.seed == 0]
    with pytest.raises(StorageError, match="no finished trial has such a checkpoint") as nothing:
        dmray.evaluate_sweep(folder.path, local=True)  # Fake leaves no weights
    assert "s100" not in str(nothing.value)
    assert chosen.trial_id in str(nothing.value)
    with pytest.raises(StorageError, match="6 selection trials of the search, which are in no comparison"):
        dmray.evaluate_sweep(folder.path, only="seed=100", local=True)


def test_after_a_kill_between_two_rounds_status_says_that_the_search_is_not_over(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path)
    run_sweep(plan, folder, Fake(), report, resume=False)
    trials = read_manifest(folder).trials
    for known, is_open in ((2, True), (6, True), (7, False)):
        write_manifest(replace(plan, trials=trials[:known]), folder)
        with find_sweep(str(folder.path), None) as found:
            summary = status._View(found).read()
        assert (summary.trials, summary.search_open, summary.done) == (known, is_open, not is_open)
        assert ("the search is not over" in text(summary)) is is_open
