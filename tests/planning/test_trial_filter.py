from __future__ import annotations

from pathlib import Path

import pytest

from dmray.errors import SpecError, StorageError
from dmray.planning.plan import Plan, plan
from dmray.planning.trial_filter import TrialFilter, select_trials, shard_of
from dmray.progress.trial_status import TrialStatus, to_run
from dmray.specs import load_sweep
from tests.sweeps import tiny_plan

FULL = plan(load_sweep(Path(__file__).parents[2] / "sweeps" / "full_benchmark.yaml"))


@pytest.mark.parametrize(
    ("only", "count"),
    [
        ("method=dm", 108),
        ("method=dm|dt", 216),
        ("method=dm*", 216),  # dm and dm+r
        ("dataset=hopper-*,method=dm,seed=0|1", 8),
        ("task=hopper , seed = 3", 20),
        ("d_model=128", 540),
        ("trial=hopper-medium-v2-dm-s0-*", 1),
    ],
)
def test_an_expression_selects_trials(only: str, count: int) -> None:
    assert len(select_trials(FULL, TrialFilter(only))) == count


def test_selected_trials_keep_the_plans_order() -> None:
    assert select_trials(FULL, TrialFilter("seed=0|2")) == tuple(trial for trial in FULL.trials if trial.seed in {0, 2})


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("methd=dm", "unknown key 'methd', did you mean 'method'"),
        ("method", "'method': write it as key=pattern"),
        ("method=", "write it as key=pattern"),
        ("", "write it as key=pattern"),
        ("seed=0,seed=1", r"write seed=0\|1"),
        ("dataset=hoper-medium-v2", "no trial has dataset=hoper-medium-v2, did you mean 'hopper-medium-v2'"),
        ("seed=99", "no trial has seed=99, there are 0, 1, 2, 3"),
        ("dataset=maze2d-*,task=hopper", "no trial that matches the terms before it has task=hopper"),
    ],
)
def test_a_wrong_expression_is_an_error_with_the_most_similar_valid_word(only: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        select_trials(FULL, TrialFilter(only))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_are_disjoint_and_complete(count: int) -> None:
    parts = [
        {trial.trial_id for trial in select_trials(FULL, TrialFilter(shard=f"{i + 1}/{count}"))} for i in range(count)
    ]
    assert sum(map(len, parts)) == 540
    assert set().union(*parts) == set(FULL.trial_ids)


def test_shards_are_even_and_do_not_depend_on_the_other_trials() -> None:
    sizes = [len(select_trials(FULL, TrialFilter(shard=f"{i}/4"))) for i in (1, 2, 3, 4)]
    assert min(sizes) > 100
    part = Plan(FULL.sweep, FULL.trials[:50])
    assert set(select_trials(part, TrialFilter(shard="2/4"))) == {
        t for t in part.trials if shard_of(t.trial_id, 4) == 2
    }


@pytest.mark.parametrize(
    "shard", ["0/4", "5/4", "1", "a/b", "1/0", "-1/3", "1/1e3", "\u0663/\u0664", "²/4", " 1/4", "1/" + "9" * 5000, ""]
)
def test_an_impossible_shard_is_an_error(shard: str) -> None:
    with pytest.raises(SpecError, match="i from 1 to n"):
        select_trials(FULL, TrialFilter(shard=shard))


@pytest.mark.parametrize(
    ("trial_filter", "resume", "expected"),
    [
        (TrialFilter(), True, ["failed", "started", "waiting"]),
        (TrialFilter(retry_failed=True), False, ["failed"]),
        (TrialFilter(retry_failed=True), True, ["failed"]),
        (TrialFilter("seed=4"), False, ["waiting"]),  # none of these trials was started
        (TrialFilter("seed=0|1"), False, []),
        (TrialFilter("seed=0|2", retry_failed=True), False, ["failed"]),
    ],
)
def test_which_trials_a_start_runs(
    tmp_path: Path, trial_filter: TrialFilter, resume: bool, expected: list[str]
) -> None:
    planned = tiny_plan(tmp_path, seeds=[0, 1, 2, 3, 4], grid=[{"methods": ["dm"]}])
    states = dict(
        zip(planned.trial_ids, map(TrialStatus, ["finished", "diverged", "failed", "started", "waiting"]), strict=True)
    )
    assert [states[trial.trial_id] for trial in to_run(planned, states, resume, trial_filter)] == expected


def test_a_second_start_without_resume_is_an_error(tmp_path: Path) -> None:
    planned = tiny_plan(tmp_path)
    states = dict(zip(planned.trial_ids, (TrialStatus.FAILED, TrialStatus.WAITING), strict=True))
    with pytest.raises(StorageError, match="or --retry-failed for the failed"):
        to_run(planned, states, resume=False)


def test_started_trials_continue_only_with_resume(tmp_path: Path) -> None:
    planned = tiny_plan(tmp_path)
    states = dict.fromkeys(planned.trial_ids, TrialStatus.WAITING) | {planned.trial_ids[0]: TrialStatus.STARTED}
    with pytest.raises(StorageError, match="was started before: 0 of 2 trials are done; continue with --resume"):
        to_run(planned, states, resume=False)
    assert to_run(planned, states, resume=True) == planned.trials
