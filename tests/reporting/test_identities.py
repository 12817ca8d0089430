"""Results of different data, simulators or code share no group, mean, comparison, MLflow run or alias."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmray.driver import session
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.model_registry import FinishedTrial, best_policies
from dmray.planning.plan import Plan
from dmray.progress.changes import changed_conditions
from dmray.progress.trial_status import TrialStatus
from dmray.records import AttemptStarted, LedgerRecord, SweepFolder
from dmray.reporting import SweepResults, collect, write_report
from dmray.reporting.across import results_by_protocol
from dmray.reporting.frames import Results
from dmray.reporting.notes import warnings_of
from tests.mlflow_mirror.examples import (
    done,
    evaluated,
    example_sweep,
    failed,
    started,
    trained,
    trials_of,
    whole_trial,
    write_ledger,
    write_manifest,
)
from tests.mlflow_mirror.fake_store import FakeStore

SWEEP = example_sweep(seeds=[0, 1, 2], datasets=["hopper-medium-v2", "walker2d-medium-v2"])
TRIALS = trials_of(SWEEP)
Kind = tuple[str, str, str | None, str | None]


def attempt(kind: Kind, number: int = 1) -> AttemptStarted:
    """`kind`: fingerprint, release of envpool, code, package of the method."""
    data, envpool, code, package = kind
    before = started(number)
    made: dict[str, Any] = {
        **before.provenance,
        "dataset_fingerprint": data,
        "simulator": {"envpool": envpool},
        "task": {"engine": "envpool", "horizon": 1000},
        "plugins": {"method": package},
    }
    if code is not None:
        made["code"] = code
    return before.model_copy(update={"provenance": made})


def finished(kind: Kind, *scores: float) -> list[LedgerRecord]:
    return [attempt(kind), *whole_trial(*scores)[1:]]


kinds = st.tuples(
    st.sampled_from(["a" * 64, "b" * 64]),
    st.sampled_from(["0.8.4", "0.9.0"]),
    st.sampled_from(["c" * 64, "d" * 64, None]),
    st.sampled_from(["", "toy 1.0", "toy 1.1"]),
)
OLD, NEW = ("a" * 64, "0.8.4", "c" * 64, ""), ("b" * 64, "0.8.4", "c" * 64, "")


def kinds_of(trial_ids: Iterable[str], ran: dict[str, Kind]) -> set[Kind]:
    return {ran[trial_id] for trial_id in trial_ids if trial_id in ran}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.none() | kinds, min_size=len(TRIALS), max_size=len(TRIALS)))
def test_no_group_has_two_kinds(drawn: list[Kind | None]) -> None:
    with tempfile.TemporaryDirectory() as storage:
        folder = SweepFolder(Path(storage), "example")
        write_manifest(folder, SWEEP)
        ran = {trial.trial_id: kind for trial, kind in zip(TRIALS, drawn, strict=True) if kind is not None}
        for place, trial in enumerate(TRIALS):
            if trial.trial_id in ran:
                write_ledger(folder, trial, finished(ran[trial.trial_id], 10 + place, 20 + place))
        results = collect(folder)
        check_report(results, ran)
        check_frames(Results((folder,), results), ran)
        check_mlflow(folder, ran)


def check_report(results: SweepResults, ran: dict[str, Kind]) -> None:
    names = [(comparison.name, comparison.protocol) for comparison in results.comparisons]
    assert len(set(names)) == len(names)
    for comparison in results.comparisons:
        assert len({kind[:3] for kind in kinds_of((t.trial.trial_id for t in comparison.trials), ran)}) <= 1
        labels = [group.label for group in comparison.seed_groups]
        assert len(set(labels)) == len(labels)
        for group in comparison.seed_groups:
            assert len(kinds_of((t.trial.trial_id for t in group.trials), ran)) <= 1
    assert sum(len(comparison.trials) for comparison in results.comparisons) == len(results.trials)
    for across in results_by_protocol(results.comparisons):
        of_data: dict[str, set[Kind]] = {}
        for comparison in across.comparisons:
            found = kinds_of((t.trial.trial_id for t in comparison.trials), ran)
            of_data.setdefault(comparison.dataset.name, set()).update(found)
        assert len({kind[1:3] for found in of_data.values() for kind in found}) <= 1
        assert all(len({kind[0] for kind in found}) <= 1 for found in of_data.values())
    if len({kind[0] for kind in kinds_of((t.trial_id for t in TRIALS if "hopper" in t.trial_id), ran)}) > 1:
        assert any(w.startswith("hopper-medium-v2: its trials ran with 2 contents") for w in warnings_of(results))


def check_frames(results: Results, ran: dict[str, Kind]) -> None:
    for _, rows in results.trials.groupby("seed_group_id"):
        assert len(kinds_of(rows.trial_id, ran)) <= 1
    identity = [name for name in results.scores if name.endswith("_identity")]
    assert not results.scores.duplicated(["dataset", "label", *identity]).any()


def check_mlflow(folder: SweepFolder, ran: dict[str, Kind]) -> None:
    store = FakeStore()
    mirror = MlflowMirror(store, folder, SWEEP, TRIALS)
    mirror.close()
    runs = dict(store.runs)
    members: dict[str, list[str]] = {}
    averaged: dict[tuple[str, str], list[str]] = {}
    for run in store.level("trial"):
        members.setdefault(run.tags["mlflow.parentRunId"], []).append(run.tags["dmray.trial_key"])
        averaged.setdefault((run.tags["dataset"], run.tags["model"]), []).append(run.tags["dmray.trial_key"])
    for group, trials in [*members.items(), *averaged.items()]:
        assert len(kinds_of(trials, ran)) == 1, group
    for run_id, trials in members.items():
        assert runs[run_id].tags["dmray.level"] == "seed group"
        assert runs[run_id].latest()["agg/n_seeds"] == len(trials)
    policies = mirror.register()
    assert len({(policy.model, policy.alias) for policy in policies}) == len(policies)
    of_methods = {(trial.method, trial.dataset.name, ran[trial.trial_id]) for trial in TRIALS if trial.trial_id in ran}
    assert len(policies) == len(of_methods)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


def test_a_data_set_that_changed_between_two_starts_has_two_tables_and_a_sentence(folder: SweepFolder) -> None:
    sweep = example_sweep()
    write_manifest(folder, sweep)
    for trial in trials_of(sweep):
        write_ledger(folder, trial, finished(OLD if trial.seed == 0 else NEW, 50, 60 + trial.seed))
    first, second = collect(folder).comparisons
    assert (first.name, second.name) == ("hopper-medium-v2 (data aaaaaa)", "hopper-medium-v2 (data bbbbbb)")
    assert [len(group.trials) for group in (*first.seed_groups, *second.seed_groups)] == [1, 1, 1, 1]
    markdown = write_report(folder).markdown.read_text(encoding="utf-8")
    top = markdown[: markdown.index("##")]
    assert "its trials ran with 2 contents of the data set: aaaaaa (2 trials), bbbbbb (2 trials)" in top


def test_what_changed_between_two_protocols_is_said_by_name(folder: SweepFolder) -> None:
    sweep = example_sweep()
    write_manifest(folder, sweep)
    later = (OLD[0], "0.9.0", *OLD[2:])
    for trial in trials_of(sweep):
        begun, *rest = finished(OLD if trial.seed == 0 else later, 50, 60)
        assert isinstance(begun, AttemptStarted)
        task = {"engine": "envpool", "horizon": 1000 if trial.seed == 0 else 600}
        made = {**begun.provenance, "task": task}
        write_ledger(folder, trial, [begun.model_copy(update={"provenance": made}), *rest])
    results = collect(folder)
    one, two = (each.identity.values()["protocol"] for each in results.comparisons if each.identity)
    (said,) = warnings_of(results)
    assert said.startswith(
        f"hopper-medium-v2: its trials ran with 2 protocols (evaluation, task, simulator): {one} (2 trials), {two} "
        f"(2 trials). What differs: envpool 0.8.4 in {one}, 0.9.0 in {two}; horizon 1000 in {one}, 600 in {two}. Their "
        "results are apart"
    )


def test_other_code_is_said_by_its_versions_and_commit(folder: SweepFolder) -> None:
    sweep = example_sweep()
    write_manifest(folder, sweep)
    for trial in trials_of(sweep):
        begun, *rest = finished(OLD if trial.seed == 0 else (*OLD[:2], "d" * 64, ""), 50, 60)
        assert isinstance(begun, AttemptStarted)
        git = {"commit": "c0ffee1" if trial.seed == 0 else "beefed2", "dirty": False}
        write_ledger(folder, trial, [begun.model_copy(update={"provenance": {**begun.provenance, "git": git}}), *rest])
    (said,) = warnings_of(collect(folder))
    assert re.search(r"What differs: git commit c0ffee1 in \w{6}, beefed2 in \w{6}\. Their", said)


def test_two_ways_to_evaluate_are_named_with_what_differs(folder: SweepFolder, tmp_path: Path) -> None:
    other = SweepFolder(tmp_path / "other", "example")
    evaluation = {"episodes": 3, "every_steps": 20, "target_returns": [3600.0], "decode": "stream:2"}
    for place, sweep in ((folder, example_sweep()), (other, example_sweep(evaluation=evaluation))):
        write_manifest(place, sweep)
        write_ledger(place, trials_of(sweep)[0], finished(OLD, 50, 60))
    (said,) = warnings_of(collect(folder, other))
    assert said == (
        "hopper-medium-v2: the sweep files evaluate it in 2 ways, which have separate tables and are not compared. "
        "What differs: decode mode stream:2 in table 1, window in table 2; episodes 3 in table 1, 2 in table 2."
    )


def test_one_data_set_under_two_names_is_said(folder: SweepFolder) -> None:
    write_manifest(folder, SWEEP)
    for trial in TRIALS:
        write_ledger(folder, trial, finished(OLD if trial.seed == 0 else NEW, 50, 60))
    said = [each for each in warnings_of(collect(folder)) if "have the same content" in each]
    assert len(said) == 2
    assert said[0].startswith("hopper-medium-v2, walker2d-medium-v2: the data sets have the same content (data aaaaaa)")


def test_a_trial_that_continued_with_other_code_is_apart_and_said(folder: SweepFolder) -> None:
    sweep = example_sweep()
    write_manifest(folder, sweep)
    first, _, second, _ = trials_of(sweep)
    other = (*OLD[:2], "d" * 64, "")
    write_ledger(folder, first, finished(OLD, 50, 60))
    mixed = [attempt(OLD), trained(20), evaluated(20, 1, 1), failed(30), attempt(other, 2), trained(40), done()]
    write_ledger(folder, second, mixed)
    results = collect(folder)
    assert [len(group.trials) for c in results.comparisons for group in c.seed_groups if group.method == "dm"] == [1, 1]
    assert any(w.startswith("1 trial has attempts of several kinds") for w in warnings_of(results))


def test_an_attempt_that_left_no_record_does_not_count(folder: SweepFolder) -> None:
    sweep = example_sweep()
    write_manifest(folder, sweep)
    write_ledger(folder, trials_of(sweep)[0], [attempt(NEW), failed(0), *finished(OLD, 50, 60)])
    assert warnings_of(collect(folder)) == []


def test_a_ledger_without_a_code_is_apart_from_one_with_it(folder: SweepFolder) -> None:
    sweep = example_sweep()
    write_manifest(folder, sweep)
    first, _, second, _ = trials_of(sweep)
    write_ledger(folder, first, finished(OLD, 50, 60))
    write_ledger(folder, second, finished((*OLD[:2], None, ""), 50, 60))
    names = [comparison.name for comparison in collect(folder).comparisons]
    assert any(name.startswith("hopper-medium-v2 (code unknown-") for name in names), names


def test_builds_of_one_release_are_one_code(folder: SweepFolder) -> None:
    """A sweep may have machines with and without a GPU."""
    sweep = example_sweep()
    write_manifest(folder, sweep)
    first, _, second, _ = trials_of(sweep)
    for trial, torch in ((first, "2.6.0+cpu"), (second, "2.6.0+cu124")):
        begun, *rest = finished(OLD, 50, 60)
        assert isinstance(begun, AttemptStarted)
        made = {**begun.provenance, "versions": {**begun.provenance["versions"], "torch": torch}}
        write_ledger(folder, trial, [begun.model_copy(update={"provenance": made}), *rest])
    assert len(collect(folder).comparisons) == 1


def test_champions_of_other_data_have_their_own_alias() -> None:
    from dmray.records import identity_of

    trials = [trial for trial in TRIALS if trial.method == "dm" and "hopper" in trial.trial_id]
    ran = [
        FinishedTrial(trial, f"run{trial.seed}", 50.0, identity_of(trial, attempt(kind).provenance))
        for trial, kind in zip(trials, (OLD, NEW, NEW), strict=True)
    ]
    assert {policy.alias for policy in best_policies(ran, "x")} == {
        "hopper-medium-v2--data_aaaaaa",
        "hopper-medium-v2--data_bbbbbb",
    }
    assert {policy.alias for policy in best_policies(ran[1:], "x")} == {"hopper-medium-v2"}


def test_a_sweep_that_continues_on_other_data_says_so_and_what_to_do(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = example_sweep()
    trials = trials_of(sweep)
    write_ledger(folder, trials[0], finished(OLD, 50, 60))
    monkeypatch.setattr("dmray.driver.session.provenance", lambda: attempt(OLD).provenance)
    states = {trial.trial_id: TrialStatus.WAITING for trial in trials} | {trials[0].trial_id: TrialStatus.FINISHED}
    with caplog.at_level(logging.WARNING):
        session.warn_of_changes(Plan(sweep, trials), folder, states, {"hopper-medium-v2": "b" * 64})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "hopper-medium-v2: the content of the data set has changed since 1 trial ran (fingerprint aaaaaa, now bbbbbb)"
    )
    assert "delete the folders of these trials, or put the old file back: hopper-medium-v2-dm-s0" in message


def test_a_sweep_that_continues_on_the_same_data_with_the_same_code_says_nothing(folder: SweepFolder) -> None:
    sweep = example_sweep()
    write_ledger(folder, trials_of(sweep)[0], finished(OLD, 50, 60))
    made = attempt(OLD).provenance
    assert changed_conditions(Plan(sweep, trials_of(sweep)), folder, {"hopper-medium-v2": "a" * 64}, made) == []
