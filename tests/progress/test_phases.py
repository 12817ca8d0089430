"""What a driver and its workers say that they do, and who believes it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import pytest

from dmray.coordination.commands import send_command
from dmray.coordination.sweep_lock import folder_lock
from dmray.progress.summary import follower_of, summarize
from dmray.progress.summary_view import text
from dmray.records import AttemptPaused, Ledger, phase
from dmray.records.phase import PHASES, PhaseName, PhaseWriter, read_phase
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import phase_of_first_step, run_trial
from tests.mlflow_mirror.examples import of_trial
from tests.progress.ledgers import begun, started
from tests.trial.jobs import job

SHORT: dict[str, Any] = {
    "training": {"steps": 4, "batch_size": 4},
    "evaluation": {"episodes": 1, "every_steps": 2, "cohort_size": 1, "target_returns": [50.0]},
}


def test_every_phase_has_words() -> None:
    assert set(PHASES) == set(get_args(PhaseName))


def test_a_phase_is_said_once_and_its_end_if_it_took_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    writer = PhaseWriter(tmp_path / "phase", 7, said.append)
    for _ in range(2):
        writer.enter("checking")
    writer.enter("opening_data", "mine", if_slow=True)
    writer.enter("training")
    assert said == ["checking data sets and simulators"]
    monkeypatch.setattr(phase, "_WORTH_SAYING_S", 0.0)
    writer.enter("opening_data", "mine", if_slow=True)
    writer.leave()
    assert said[1] == "opening the data set (mine): took 0.0 s"
    assert not (tmp_path / "phase").exists()


def test_a_phase_counts_under_its_own_command_only(tmp_path: Path) -> None:
    PhaseWriter(tmp_path / "phase", 7, print).enter("building")
    found = read_phase(tmp_path / "phase", 7)
    assert found is not None
    assert (found.name, 0 <= found.elapsed_s(time.time()) < 60) == ("building", True)
    assert read_phase(tmp_path / "phase", 8) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "sleeping", "time_s": 0, "command": 7}', b"x" * 9000])
def test_a_file_that_has_no_phase_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "phase").write_bytes(content)
    assert read_phase(tmp_path / "phase", 7) is None


def test_a_phase_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    writer = PhaseWriter(tmp_path / "missing" / "phase", 7, said.append)
    writer.enter("building")
    writer.leave()
    assert said == ["building the networks"]
    assert not (tmp_path / "missing").exists()


def test_a_trial_that_is_set_up_runs_and_says_what_it_does(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path)
    command = send_command(folder, "run", "again")
    trial = folder.trial(plan.trial_ids[0])
    trial.path.mkdir(parents=True)
    PhaseWriter(trial.phase, command.number, print).enter("recording_data", "open-expert")
    with folder_lock(folder):
        (row,) = summarize(follower_of(folder)).running
        shown = text(summarize(follower_of(folder)))
    assert row.phase is not None
    assert (row.trial, row.phase.name, row.eta_s) == (plan.trial_ids[0], "recording_data", None)
    assert f"running: {row.trial}: recording the data set (open-expert), 0:00:0" in shown
    assert summarize(follower_of(folder)).running == (), "without a driver nobody does it"


@pytest.mark.parametrize("how", ["ended", "another command"])
def test_an_old_phase_is_not_believed(tmp_path: Path, how: str) -> None:
    plan, folder = begun(tmp_path, [started()])
    command = send_command(folder, "run", "again")
    trial = folder.trial(plan.trial_ids[0])
    PhaseWriter(trial.phase, command.number, print).enter("building")
    paused = AttemptPaused(time_s=time.time() + 1, attempt=1, step=0)
    if how == "ended":
        Ledger(trial.ledger).append(of_trial(paused, plan.trials[0]))
    else:
        send_command(folder, "pause")
    with folder_lock(folder):
        summary = summarize(follower_of(folder))
    assert [row.phase for row in summary.running] == ([] if how == "ended" else [None])


def test_the_driver_says_what_it_does_while_no_trial_runs(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path)
    command = send_command(folder, "run", "again")
    with folder_lock(folder):
        PhaseWriter(folder.phase, command.number, print).enter("starting_actors", "2")
        assert "now: starting the evaluation actors (2), 0:00:0" in text(summarize(follower_of(folder)))
        PhaseWriter(folder.phase, command.number, print).enter("starting_trials")
        assert "now: starting the first trials" in text(summarize(follower_of(folder)))
        ended = [started(), AttemptPaused(time_s=time.time() + 1, attempt=1, step=0)]
        for record in ended:  # while it runs, and between two trials
            Ledger(folder.trial(plan.trial_ids[0]).ledger).append(of_trial(record, plan.trials[0]))
            assert "now:" not in text(summarize(follower_of(folder)))
    assert "now:" not in text(summarize(follower_of(folder)))


def test_a_trial_writes_its_phases_and_logs_those_before_training(tmp_path: Path) -> None:
    work, seen = job(tmp_path, "dt", **SHORT), []

    class Looks(InlineEvaluation):
        def submit(self, *given: object) -> object:  # type: ignore[override]
            seen.append(read_phase(work.folder.phase, work.command_number))
            return super().submit(*given)  # type: ignore[arg-type]

    run_trial(work, Looks())  # type: ignore[arg-type]
    assert [each.words for each in seen if each] == ["evaluating (step 2)", "evaluating (step 4)"]
    lines = [line[20:] for line in work.folder.log.read_text().splitlines()]
    order = ["recording the data set (open-expert)", "building the networks"]
    assert [line for line in lines if line in order] == order


@pytest.mark.parametrize(
    ("captured", "backend", "phase"),
    [
        (True, "mamba-ssm", ("capturing", "")),
        (True, None, ("capturing", "")),
        (False, "numba", ("compiling", "numba")),
        (False, "triton", ("compiling", "triton")),
        (False, "reference", ("training", "")),
        (False, None, ("training", "")),
    ],
)
def test_the_first_step_says_if_it_compiles_or_captures(
    captured: bool, backend: str | None, phase: tuple[str, str]
) -> None:
    assert phase_of_first_step(captured, backend) == phase
    assert phase_of_first_step(captured, backend, compiled=True) == ("compiling", "torch.compile")
