"""Every view of a sweep gives a trial the same status, whatever its ledger holds."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmray.files import write_json
from dmray.mlflow_mirror.layout import RUN_STATUS
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.planning.plan import Plan
from dmray.progress.progress import Follower
from dmray.progress.summary import follower_of, summarize
from dmray.progress.trial_status import (
    ENDED,
    TrialHistory,
    TrialStatus,
    failures,
    read_history,
    restore_done_markers,
    to_run,
    trial_statuses,
    with_liveness,
)
from dmray.records import (
    AttemptPaused,
    EvaluationSkipped,
    LedgerRecord,
    SweepFolder,
    TrialDone,
    TrialStopped,
    read_done_marker,
)
from dmray.records import ledger as ledger_module
from dmray.records.fast_decoder import decode_light
from dmray.records.records import ledger_line
from dmray.reporting import collect
from dmray.reporting.early_stopping import early_stopping_blocks
from dmray.specs import SweepSpec
from tests.mlflow_mirror.examples import (
    T0,
    decided,
    done,
    evaluated,
    example_sweep,
    failed,
    of_trial,
    started,
    stopped_trial,
    trained,
    trials_of,
    whole_trial,
    write_ledger,
    write_manifest,
)
from tests.mlflow_mirror.fake_store import FakeStore

RULE = {"grace_steps": 20, "reduction_factor": 2, "within": "dataset"}
RULES: list[dict[str, Any] | None] = [
    RULE,
    None,
    RULE | {"reduction_factor": 3},  # by which nobody of two is stopped
    RULE | {"within": "method"},  # others would compete
]


def sweep_with(rule: dict[str, Any] | None) -> SweepSpec:
    grid = [{"methods": ["dm", "dt"], "models": [{"d_model": 64}, {"d_model": 128}, {"d_model": 256}]}]
    return example_sweep(early_stopping=rule, grid=grid, seeds=[0])


def paused(step: int) -> AttemptPaused:
    return AttemptPaused(time_s=T0 + step, attempt=1, step=step)


def skipped(step: int) -> EvaluationSkipped:
    return EvaluationSkipped(time_s=T0 + step, step=step)


def stopped(step: int, *peers: float) -> TrialStopped:
    decision = decided(20, 10, *peers)
    return TrialStopped(time_s=T0 + step, attempt=1, step=step, decision=decision)


def records() -> st.SearchStrategy[LedgerRecord]:
    """Any valid record."""
    steps = st.sampled_from([0, 10, 20, 40])
    score = st.floats(-10, 110)
    return st.one_of(
        st.builds(started, st.integers(1, 3), steps),
        st.builds(trained, steps),
        st.builds(lambda step, value: evaluated(step, value, value), steps, score),
        st.builds(skipped, steps),
        st.builds(failed, steps),
        st.builds(paused, steps),
        st.builds(lambda step, *peers: decided(step, 10, *peers), steps, score),
        st.builds(lambda step, *peers: stopped(step, *peers), steps, st.sampled_from([5.0, 50.0])),
        st.builds(done, steps, st.sampled_from(["finished", "diverged"])),
    )


MARKERS = ("as written", "missing", "empty", "damaged")


@settings(max_examples=80, deadline=None)
@given(
    ledger=st.lists(records(), max_size=8),
    torn=st.integers(0, 40),
    rule=st.sampled_from(RULES),
    marker=st.sampled_from(MARKERS),
)
def test_all_views_give_one_status(
    ledger: list[LedgerRecord], torn: int, rule: dict[str, Any] | None, marker: str
) -> None:
    with tempfile.TemporaryDirectory() as storage:
        sweep = sweep_with(rule)
        plan, folder = Plan(sweep, trials_of(sweep)), SweepFolder(Path(storage), "example")
        trial = plan.trials[0]
        write_manifest(folder, sweep)
        path = write_ledger(folder, trial, ledger)
        tail = ledger_line.dump_json(trained(40))[:torn]
        with path.open("ab") as stream:
            stream.write(tail)
        ends = [record for record in ledger if isinstance(record, TrialDone)]
        if ends and marker == "as written":
            write_json(folder.trial(trial.trial_id).done, ends[0].model_dump(mode="json"))
        elif ends or marker != "as written":
            spoil(folder.trial(trial.trial_id).done, marker)

        expected = read_history(folder.trial(trial.trial_id), trial, sweep.early_stopping)
        status = expected.status
        statuses = trial_statuses(plan, folder)
        assert statuses[trial.trial_id] is status
        left = to_run(plan, statuses, resume=True)
        assert (trial in left) == (status not in ENDED)
        assert (trial.trial_id in failures(plan, folder)) == (status is TrialStatus.FAILED)

        progress = Follower(folder, plan.trials, sweep.early_stopping).update()
        assert progress.trials[trial.trial_id].status is status
        shown = summarize(follower_of(folder))
        assert shown.statuses[with_liveness(status, alive=False)] == len(plan.trials) - 5 * (
            status is not TrialStatus.WAITING
        )

        results = collect(folder)
        result = results.trials[0]
        assert result.status is status
        assert (result.attempts, result.error, result.steps) == (
            expected.attempts,
            expected.error,
            expected.done.step if expected.done else expected.step,
        )
        if section := list(early_stopping_blocks(results)):
            number = int(status is TrialStatus.STOPPED_EARLY)
            assert f"{number} of 6 trials were stopped" in str(section)

        store = FakeStore()
        mirror = MlflowMirror(store, folder, sweep, plan.trials)
        assert mirror.close().problem is None
        runs = [run for run in store.level("trial") if run.tags["dmray.trial_key"] == trial.trial_id]
        assert [run.tags["dmray.status"] for run in runs] == [with_liveness(status, alive=False)] * bool(ledger)
        assert [run.status for run in runs] == [RUN_STATUS[with_liveness(status, alive=False)]] * bool(ledger)


def spoil(marker: Path, how: str) -> None:
    marker.unlink(missing_ok=True)
    if how != "missing":
        marker.write_bytes(b"" if how == "empty" else b'{"kind": "done", "sta')


@settings(max_examples=100, deadline=None)
@given(ledger=st.lists(records(), min_size=1, max_size=8), cut=st.integers(0, 7), rule=st.sampled_from(RULES))
def test_the_end_of_a_ledger_tells_the_status_of_the_whole(
    ledger: list[LedgerRecord], cut: int, rule: dict[str, Any] | None
) -> None:
    """A view that begins in mid-ledger may miss a result alone, and for that there is the marker."""
    sweep = sweep_with(rule)
    trial = trials_of(sweep)[0]
    whole, end = (TrialHistory(trial, sweep.early_stopping) for _ in range(2))
    for record in ledger:
        whole.take(of_trial(record, trial))
    for record in ledger[min(cut, len(ledger) - 1) :]:
        end.take(decode_light(ledger_line.dump_json(of_trial(record, trial))))
    assert end.status is whole.status or (whole.done is not None and end.done != whole.done)


@pytest.mark.parametrize(
    ("ledger", "rule", "status"),
    [
        ([], RULE, "waiting"),
        ([started()], RULE, "started"),
        ([started(), trained(20), paused(20)], RULE, "paused"),
        ([started(), failed(5)], RULE, "failed"),
        ([started(), failed(5), started(2)], RULE, "started"),
        (stopped_trial(10, 50), RULE, "stopped_early"),
        (stopped_trial(10, 50), None, "paused"),
        (stopped_trial(10, 50), RULE | {"reduction_factor": 3}, "paused"),
        ([*stopped_trial(10, 50), started(2, 20)], RULE, "started"),
        (whole_trial(50, 60), RULE, "finished"),
        ([started(), done(20, "diverged", None)], RULE, "diverged"),
    ],
)
def test_the_status_of_a_ledger(ledger: list[LedgerRecord], rule: dict[str, Any] | None, status: str) -> None:
    sweep = sweep_with(rule)
    history = TrialHistory(trials_of(sweep)[0], sweep.early_stopping)
    for record in ledger:
        history.take(of_trial(record, history.trial))
    assert history.status == status


def test_a_history_has_the_facts_that_views_show() -> None:
    history = TrialHistory(trials_of(sweep_with(RULE))[0])
    for record in [started(), trained(30), evaluated(20, 7, 6), failed(30), started(2, 20), evaluated(20, 9, 9)]:
        history.take(of_trial(record, history.trial))
    assert (history.attempts, history.step, history.evaluated_step) == (2, 30, 20)
    assert history.error == "OSError: disk full"
    assert history.provenance["hostname"] == "node-1"
    assert history.last_score is not None
    assert history.last_score.normalized == 7, "the first evaluation of a step counts"
    history.take(done())
    assert (history.error, history.end_step) == (None, 40)


def test_the_first_decision_at_a_rung_counts() -> None:
    history = TrialHistory(trials_of(sweep_with(RULE))[0])
    for record in (started(), decided(20, 10), decided(20, 10, 50)):
        history.take(of_trial(record, history.trial))
    assert history.decisions == {20: decided(20, 10)}


@pytest.mark.parametrize("how", ["empty", "damaged"])
def test_a_damaged_marker_is_named_and_stops_no_other_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    ledger_module.warn_once.cache_clear()
    sweep = example_sweep(seeds=[0])
    plan, folder = Plan(sweep, trials_of(sweep)), SweepFolder(tmp_path, "example")
    first, second = plan.trials
    write_ledger(folder, first, whole_trial(50, 60))
    marker = folder.trial(first.trial_id).done
    spoil(marker, how)
    with caplog.at_level(logging.WARNING):
        statuses = trial_statuses(plan, folder)
    assert f"{marker}: not a done marker" in caplog.text
    assert statuses == {first.trial_id: TrialStatus.FINISHED, second.trial_id: TrialStatus.WAITING}
    assert to_run(plan, statuses, resume=False) == (second,)
    restore_done_markers(plan, folder)
    restored = read_done_marker(folder.trial(first.trial_id))
    assert restored is not None
    assert restored.end == done(40)


def test_a_trial_with_a_damaged_marker_and_no_end_in_its_ledger_is_run_again(tmp_path: Path) -> None:
    sweep = example_sweep(seeds=[0])
    plan, folder = Plan(sweep, trials_of(sweep)), SweepFolder(tmp_path, "example")
    write_ledger(folder, plan.trials[0], [started(), trained(20)])
    spoil(folder.trial(plan.trial_ids[0]).done, "empty")
    assert to_run(plan, trial_statuses(plan, folder), resume=True) == plan.trials


def test_a_marker_whose_end_the_ledger_lacks_is_named_and_the_trial_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger_module.warn_once.cache_clear()
    sweep = example_sweep(seeds=[0])
    plan, folder = Plan(sweep, trials_of(sweep)), SweepFolder(tmp_path, "example")
    write_manifest(folder, sweep)
    first = plan.trials[0]
    path = write_ledger(folder, first, whole_trial(50, 60))
    path.write_bytes(path.read_bytes()[: path.read_bytes().rindex(b"\n", 0, -1) + 1])  # a power cut took the last line
    assert trial_statuses(plan, folder)[first.trial_id] is TrialStatus.STARTED
    assert f"{folder.trial(first.trial_id).done}: says that the trial finished at step 40" in caplog.text
    assert "its ledger has no end" in caplog.text
    assert to_run(plan, trial_statuses(plan, folder), resume=True) == plan.trials
    assert collect(folder).trials[0].status is TrialStatus.STARTED
    assert Follower(folder, plan.trials).update().trials[first.trial_id].status is TrialStatus.STARTED
