"""What `dmray explain` finds out about a trial, and how it says it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dmray.coordination.commands import CommandKind, send_command
from dmray.coordination.sweep_lock import folder_lock
from dmray.datasets import WARNING
from dmray.errors import StorageError
from dmray.planning.manifest import write_manifest
from dmray.progress.explanation import Explanation, _Place, attempts_of, changed_fields, explain, next_steps
from dmray.progress.explanation_view import lines
from dmray.progress.sweep_handle import find_sweep
from dmray.records import AttemptPaused, LedgerRecord, SweepFolder, TrialStopped
from dmray.records.phase import PhaseWriter
from tests.mlflow_mirror.examples import write_ledger
from tests.progress.ledgers import OUT, again, begun, done, evaluated, failed, scored, started, trained
from tests.sweeps import tiny_plan

RESUME = "python -m dmray.sweep a.yaml --local --resume"


def explained(storage: Path, *records: LedgerRecord, alive: bool = False) -> Explanation:
    """The first trial of a sweep whose ledger has these records."""
    plan, folder = begun(storage, list(records)) if records else begun(storage)
    send_command(folder, "run", RESUME)
    return look(folder, plan.trial_ids[0], alive)


def look(folder: SweepFolder, key: str, alive: bool = False) -> Explanation:
    with find_sweep(str(folder.path)) as found:
        if not alive:
            return explain(found, key)
        with folder_lock(folder):
            return explain(found, key)


def commands(explanation: Explanation) -> list[str | None]:
    return [step.command for step in explanation.next_steps]


def test_a_trial_that_has_not_begun_is_explained_by_the_plan(tmp_path: Path) -> None:
    waiting = explained(tmp_path)
    assert (waiting.status, waiting.step, waiting.steps, waiting.attempts) == ("waiting", 0, 40, ())
    assert waiting.files == {}
    assert commands(waiting) == [RESUME]
    assert "  no attempt has begun" in list(lines(waiting, 80))


def test_a_running_trial_has_a_speed_an_eta_and_a_phase(tmp_path: Path) -> None:
    now = time.time()
    records = [started(0, now - 60), trained(20, now - 20)]
    plan, folder = begun(tmp_path, records)
    command = send_command(folder, "run", RESUME)
    PhaseWriter(folder.trial(plan.trial_ids[0]).phase, command.number, print).enter("waiting_for_evaluations")
    running = look(folder, plan.trial_ids[0], alive=True)
    assert (running.status, running.steps_per_s, running.eta_s, running.pending_evaluations) == ("running", 10, 2, 1)
    assert running.phase is not None
    assert running.phase.name == "waiting_for_evaluations"
    assert commands(running) == [f"dmray logs {folder.path} {running.trial} --follow"]
    stopped = look(folder, plan.trial_ids[0])
    assert (stopped.status, stopped.eta_s, stopped.phase) == ("interrupted", None, None)
    assert commands(stopped) == [RESUME]


def test_a_failed_trial_says_why_where_and_how_to_run_it_again(tmp_path: Path) -> None:
    trace = "\n".join(f"frame {number}" for number in range(30)) + "\nOSError: disk [full]\n"
    failure = failed(5).model_copy(update={"traceback": trace})
    explanation = explained(tmp_path, started(), trained(3), failure)
    assert (explanation.status, explanation.error) == ("failed", "OSError: disk [full]")
    assert explanation.trace[-1] == "OSError: disk [full]"
    assert "frame 0" not in explanation.trace
    retry = f"python -m dmray.sweep a.yaml --local --retry-failed --only trial={explanation.trial}"
    assert commands(explanation)[-1] == retry
    shown = list(lines(explanation, 80))
    assert shown[shown.index("Why it failed") + 1] == "  OSError: disk [full]"
    assert f"    {retry}" in shown, "a command is never broken"


def test_a_hang_shows_the_stack_of_the_thread_that_hung(tmp_path: Path) -> None:
    stacks = "Thread 1 (most recent call first):\n" + "  File x\n" * 40
    hang = failed(5).model_copy(update={"error": "TrainingHang: no training step", "traceback": stacks})
    assert explained(tmp_path, started(), hang).trace[0] == "Thread 1 (most recent call first):"


def test_a_trial_that_was_stopped_early_names_the_rung_and_the_scores(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, early_stopping={"grace_steps": 20, "reduction_factor": 2, "within": "dataset"})
    decision = OUT.model_copy(update={"within": "dataset"})
    stopped = TrialStopped(time_s=2.0, attempt=1, step=20, decision=decision)
    _, folder = begun(tmp_path, [started(), scored(20, 3.0), decision, stopped])
    write_manifest(plan, folder)
    send_command(folder, "run", RESUME)
    explanation = look(folder, plan.trial_ids[0])
    assert explanation.status == "stopped_early"
    assert explanation.decisions == (
        "stopped there: its score at step 20 was 3.0; it needed 5.0, and 2 of 3 other trials had a higher one",
    )
    assert commands(explanation) == [f"{RESUME} -o early_stopping=null"]


def test_a_stopped_selection_trial_is_called_so_and_is_not_to_be_continued(tmp_path: Path) -> None:
    plan = tiny_plan(
        tmp_path,
        early_stopping={"grace_steps": 20, "reduction_factor": 2, "within": "dataset"},
        training={"steps": 40, "learning_rate": [1e-3, 1e-2]},
        search={"algorithm": "grid", "seeds": [100]},
    )
    decision = OUT.model_copy(update={"within": "dataset"})
    folder = SweepFolder(tmp_path, "tiny")
    write_manifest(plan, folder)
    records = [started(), scored(20, 3.0), decision, TrialStopped(time_s=2.0, attempt=1, step=20, decision=decision)]
    write_ledger(folder, plan.trials[0], records)
    explanation = look(folder, plan.trial_ids[0])
    assert (explanation.status, explanation.is_selection) == ("stopped_early", True)
    assert any("a selection trial of the search" in line for line in lines(explanation, 200))
    assert commands(explanation) == [None], "later rounds were proposed by its end"


def test_a_finished_trial_has_scores_and_files(tmp_path: Path) -> None:
    finished = explained(tmp_path, started(), scored(20, 9.0), scored(40, 4.0), done(40))
    assert finished.last_score is not None
    assert finished.best_score is not None
    assert (finished.last_score["normalized_score"], finished.best_score["step"]) == (4.0, 20)
    assert list(finished.files) == ["ledger.jsonl"]
    assert commands(finished) == [
        f"dmray evaluate {tmp_path}/tiny/trials/{finished.trial}",
        f"dmray report {tmp_path}/tiny",
    ]


def test_warnings_about_the_data_are_apart_from_notes(tmp_path: Path) -> None:
    notes = {"dataset_notes": [f"{WARNING}numbers are far", "2 rows dropped"], "policy": {"parameters": 1234}}
    told = explained(tmp_path, started().model_copy(update={"provenance": notes}))
    assert (told.data_warnings, told.data_notes, told.parameters) == (("numbers are far",), ("2 rows dropped",), 1234)


@pytest.mark.parametrize("odd", [{"dataset_notes": 3}, {"policy": "x"}, {"hostname": {}, "device": []}])
def test_odd_provenance_is_left_out(tmp_path: Path, odd: dict[str, object]) -> None:
    told = explained(tmp_path, started().model_copy(update={"provenance": odd}))
    assert (told.data_notes, told.parameters, told.attempts[0].host) == ((), None, None)
    assert list(lines(told, 80))


def test_each_attempt_says_how_it_ended() -> None:
    records: Sequence[LedgerRecord] = [
        started(0, 0.0),
        trained(10, 5.0),
        AttemptPaused(time_s=9.0, attempt=1, step=12),
        again(2, 12),
        failed(20).model_copy(update={"attempt": 2}),
        failed(0).model_copy(update={"attempt": 3}),
        again(4, 12),
        evaluated(20),
    ]
    found = attempts_of(records, runs=False)
    assert [(each.number, each.ended, each.from_step) for each in found] == [
        (1, "paused", 0),
        (2, "failed", 12),
        (3, "failed", None),
        (4, "interrupted", 12),
    ]
    assert (found[0].lasted_s, found[0].step, found[1].host) == (9.0, 12, "far")
    assert attempts_of(records, runs=True)[-1].ended == "running"


def test_only_settings_that_are_not_the_default_are_named(tmp_path: Path) -> None:
    changed = list(changed_fields(tiny_plan(tmp_path).trials[0]))
    assert "training.steps 40 (default 1000000)" in changed
    assert not any(each.startswith(("training.grad_clip", "evaluation.decode")) for each in changed)


@pytest.mark.parametrize(
    ("evaluation", "changed"),
    [({}, []), ({"target_returns": [7.0]}, ["evaluation.target_returns [7.0] (default [280.0,140.0])"])],
)
def test_the_target_returns_of_the_task_are_the_default(
    tmp_path: Path, evaluation: dict[str, object], changed: list[str]
) -> None:
    (trial, *_) = tiny_plan(tmp_path, datasets=["maze2d-umaze-v1"], evaluation=evaluation).trials
    assert [each for each in changed_fields(trial) if "return" in each] == changed


@pytest.mark.parametrize(
    ("status", "order", "alive", "command"),
    [
        ("waiting", "run", True, "dmray status runs/a"),
        ("waiting", "pause", True, "dmray resume runs/a"),
        ("paused", "pause", True, "dmray resume runs/a"),
        ("paused", "stop", True, RESUME),
        ("paused", "run", False, RESUME),
        ("interrupted", None, False, RESUME),
        ("diverged", "run", False, None),
    ],
)
def test_the_next_step_follows_from_the_status(
    tmp_path: Path, status: str, order: CommandKind | None, alive: bool, command: str | None
) -> None:
    trial = tiny_plan(tmp_path).trials[0]
    first, *_ = next_steps(status, _Place("runs/a", "t", RESUME, alive), order, trial, None)
    assert first.command == command


def test_a_resume_command_that_is_no_command_line_is_left_out() -> None:
    assert _Place("runs/a", "t", "it's", False).retry == "python -m dmray.sweep FILE --retry-failed --only trial=t"
    given = _Place("runs/a", "t", "python -m dmray.sweep a.yaml --only seed=0 --resume", False)
    assert given.retry == "python -m dmray.sweep a.yaml --only seed=0 --retry-failed"


def test_a_trial_that_left_the_sweep_file_is_explained_by_its_ledger(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started().model_copy(update={"spec": _spec(tmp_path)})])
    write_manifest(tiny_plan(tmp_path, seeds=[7]), folder)
    assert look(folder, plan.trial_ids[0]).method == "dm"
    assert look(folder, plan.trial_ids[0][3:-3]).method == "dm"
    with pytest.raises(StorageError, match="there is no trial 'nothing'"):
        look(folder, "nothing")
    with pytest.raises(StorageError, match=r"'-s' is in the ids of [0-9]+ trials; give more of one:"):
        look(folder, "-s")


def _spec(storage: Path) -> dict[str, object]:
    return tiny_plan(storage).trials[0].model_dump(mode="json")


@pytest.mark.parametrize("width", [60, 80])
def test_only_paths_and_commands_are_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    shown = list(lines(explained(tmp_path, started(), scored(20, 1.0), failed(25)), width))
    assert [line for line in shown if len(line) > width and str(tmp_path) not in line and "python -m" not in line] == []
    headings = [line for line in shown[1:] if not line.startswith(" ")]
    assert headings == ["What it is", "How far it is", "What happened", "Why it failed", "Files", "What to do next"]
