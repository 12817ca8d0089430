from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dmray.errors import SpecError, StorageError
from dmray.planning.cost import network_flops
from dmray.planning.plan import plan
from dmray.planning.trial_filter import TrialFilter, select_trials, shards_of
from dmray.progress.trial_status import TrialStatus, in_other_shards, moved_text, to_run
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


@pytest.mark.parametrize(
    ("only", "count"),
    [
        ("learning_rate=1e-*", 4),
        ("learning_rate=0.0001", 2),
        ("learning_rate=1e-04", 2),
        ("learning_rate=3.162e-5", 2),
        ("learning_rate=3.16228e-5", 2),
    ],
)
def test_a_pattern_is_compared_with_a_number_as_the_plan_shows_it(tmp_path: Path, only: str, count: int) -> None:
    training = {"steps": 2, "learning_rate": {"log_uniform": [1e-5, 1e-4], "points": 3}}
    planned = tiny_plan(tmp_path, seeds=[0], training=training)
    assert len(select_trials(planned, TrialFilter(only))) == count
    with pytest.raises(SpecError, match=r"there are 1e-5, 3\.162e-5, 1e-4$"):
        select_trials(planned, TrialFilter("learning_rate=0.*"))


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


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 16])
def test_shards_have_equal_shares_of_training_and_of_evaluation(count: int) -> None:
    shards = shards_of(FULL.trials, count)
    flops = {trial.trial_id: network_flops(trial) for trial in FULL.trials}
    for kind in ("training", "evaluation"):
        loads = [
            sum(getattr(flops[name], kind) for name, shard in shards.items() if shard == number)
            for number in range(1, count + 1)
        ]
        assert max(loads) < 1.05 * sum(loads) / count, kind


def test_a_trial_of_a_large_network_is_alone_in_its_shard(tmp_path: Path) -> None:
    small = {"d_model": 16, "n_layer": 1, "context_length": 4}
    grid = [{"methods": ["dm"], "models": [small, small | {"d_state": 8}, small | {"d_model": 128}]}]
    trials = tiny_plan(tmp_path, grid=grid).trials
    shards = shards_of(trials, 2)
    assert [shards[trial.trial_id] for trial in trials] == [2, 2, 1]


def test_shards_depend_on_the_trials_alone(tmp_path: Path) -> None:
    shards = shards_of(FULL.trials, 4)
    assert shards_of(tuple(reversed(FULL.trials)), 4) == shards
    changed = load_sweep(
        Path(__file__).parents[2] / "sweeps" / "full_benchmark.yaml",
        ["order=cheap_first", "resources.evaluation_actors=3", "storage=elsewhere"],
    )
    assert shards_of(plan(changed).trials, 4) == shards


def test_only_selects_within_a_shard_of_the_whole_plan() -> None:
    shards = shards_of(FULL.trials, 4)
    selected = select_trials(FULL, TrialFilter("dataset=hopper-*", "2/4"))
    assert selected == tuple(t for t in FULL.trials if t.dataset.name.startswith("hopper") and shards[t.trial_id] == 2)
    assert len(selected) in {19, 20, 21}  # of 80: equal trials are dealt out in turn


@pytest.mark.parametrize(
    ("trial_filter", "message"),
    [
        (TrialFilter(shard="1/541"), "the sweep has 540 trials, so some shards would be empty; use at most 540 shards"),
        (TrialFilter("trial=hopper-medium-v2-dm-s0-*", "{other}/4"), "none of the 1 trials of --only .* in this shard"),
    ],
)
def test_an_empty_shard_is_an_error(trial_filter: TrialFilter, message: str) -> None:
    (one,) = select_trials(FULL, TrialFilter("trial=hopper-medium-v2-dm-s0-*"))
    other = shards_of(FULL.trials, 4)[one.trial_id] % 4 + 1
    with pytest.raises(SpecError, match=message):
        select_trials(FULL, replace(trial_filter, shard=(trial_filter.shard or "").format(other=other)))


def test_a_trial_that_was_begun_here_and_moved_to_another_shard_is_named(tmp_path: Path) -> None:
    planned = tiny_plan(tmp_path, seeds=[0, 1, 2], grid=[{"methods": ["dm"]}])
    states = dict(zip(planned.trial_ids, map(TrialStatus, ["started", "finished", "waiting"]), strict=True))
    of_begun = shards_of(planned.trials, 3)[planned.trial_ids[0]]
    own, another = TrialFilter(shard=f"{of_begun}/3"), TrialFilter(shard=f"{of_begun % 3 + 1}/3")
    assert in_other_shards(planned, states, own) == ()
    assert in_other_shards(planned, states, TrialFilter()) == ()
    moved = in_other_shards(planned, states, another)
    assert moved == planned.trials[:1]
    assert f"(1: {planned.trial_ids[0]})" in moved_text(moved, another)


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
