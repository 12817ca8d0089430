"""The policies that dmray brings, and the data that are recorded with them."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

from dmray.datasets import Episodes, FileRules, read_d4rl_hdf5, write_d4rl_hdf5
from dmray.errors import EngineError, SpecError
from dmray.methods import METHODS
from dmray.planning.plan import plan
from dmray.rollout import RecordedTransitions, record, replay_errors
from dmray.rollout.behaviours import (
    ACTION_NOISE,
    RECORDERS,
    LinearPolicies,
    Snapshots,
    load_snapshots,
    recorders,
    snapshot_file,
)
from dmray.specs import DatasetSpec, Generation, load_sweep
from dmray.tasks import TASKS, Task, task_of

ROOT = Path(__file__).parent.parent.parent
HOPPER = TASKS["hopper"]
SHIPPED = [TASKS[file.stem] for file in sorted(snapshot_file(HOPPER).parent.glob("*.npz"))]
BEHAVIOURS = ("medium", "expert", "medium-expert", "medium-replay")
for_shipped = pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)


@cache
def recorded(
    task: Task, behaviour: str, transitions: int = 4000, horizon: int = 1000, seed: int = 0
) -> RecordedTransitions:
    generation = Generation(behaviour=behaviour, transitions=transitions, seed=seed)
    return record(replace(task, horizon=horizon), generation)


def short(task: Task, behaviour: str, transitions: int = 300, seed: int = 0) -> RecordedTransitions:
    return recorded(task, behaviour, transitions, horizon=60, seed=seed)


def ends(data: RecordedTransitions) -> np.ndarray:
    return np.flatnonzero(data.terminals | data.timeouts) + 1


def returns(data: RecordedTransitions) -> np.ndarray:
    return np.array([part.sum(dtype=np.float64) for part in np.split(data.rewards, ends(data)[:-1])])


def same(one: RecordedTransitions, other: RecordedTransitions) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(one)
        if field.name != "goals"
    )


def as_episodes(data: RecordedTransitions, task: Task, folder: Path) -> Episodes:
    write_d4rl_hdf5(folder / "made.hdf5", data.as_arrays(), {})
    rules = FileRules(task.observation_dim, task.action_dim, task.horizon, split_on_terminals=task.splits_on_terminals)
    return read_d4rl_hdf5(folder / "made.hdf5", rules)


def test_the_tasks_with_policies_are_tasks_that_say_so() -> None:
    assert HOPPER in SHIPPED
    for task in SHIPPED:
        for behaviour in BEHAVIOURS:
            assert task_of(DatasetSpec(name="made", task=task.name, generate=Generation(behaviour=behaviour))) == task


@for_shipped
def test_a_shipped_file_says_how_it_was_made_and_has_no_more_than_recordings_use(task: Task) -> None:
    snapshots = load_snapshots(task)
    assert {"task", "method", "seed", "settings", "noise", "versions"} <= set(snapshots.about)
    assert snapshots.about["noise"] == ACTION_NOISE
    assert snapshots.used == list(range(len(snapshots.returns)))
    assert 0 < snapshots.medium < snapshots.expert
    with np.load(snapshot_file(task)) as file:
        assert all(file[name].dtype == np.float32 for name in ("weights", "mean", "std", "returns"))


def test_a_wheel_has_the_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    project = Distribution({"script_name": "setup.py"})
    apply_configuration(project, "pyproject.toml")
    build = project.get_command_obj("build_py")
    build.ensure_finalized()
    build.build_lib = "wheel"
    outputs = build.get_outputs(include_bytecode=False)
    files = {Path(path).name for path in outputs if path.startswith("wheel/dmray/rollout/behaviours/")}
    assert {f"{task.name}.npz" for task in SHIPPED} <= files


@for_shipped
def test_expert_earns_more_than_medium_and_medium_more_than_the_first_policy(task: Task) -> None:
    expert, medium = (returns(recorded(task, behaviour)).mean() for behaviour in ("expert", "medium"))
    assert expert > medium > load_snapshots(task).returns[0]


@for_shipped
def test_the_returns_in_a_file_are_those_of_the_recordings(task: Task) -> None:
    snapshots = load_snapshots(task)
    for behaviour, index in (("medium", snapshots.medium), ("expert", snapshots.expert)):
        way = snapshots.returns[snapshots.expert] - snapshots.returns[0]
        assert abs(returns(recorded(task, behaviour)).mean() - snapshots.returns[index]) < 0.35 * way


@for_shipped
def test_medium_replay_has_returns_from_the_first_policy_to_medium(task: Task) -> None:
    snapshots, found = load_snapshots(task), returns(recorded(task, "medium-replay", 12_000))
    way = snapshots.returns[snapshots.medium] - snapshots.returns[0]
    assert found.min() < snapshots.returns[0] + 0.4 * way
    assert found.max() - found.min() > 0.5 * way
    assert found.std() > 0.15 * way


@for_shipped
def test_medium_expert_is_half_medium_and_half_expert(task: Task) -> None:
    both = short(task, "medium-expert", 401)
    parts = short(task, "medium", 201), short(task, "expert", 200)
    assert same(both, RecordedTransitions.joined(parts))
    assert 0.4 < len(parts[0].rewards) / len(both.rewards) < 0.6


@for_shipped
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_seed_decides_every_value(task: Task, behaviour: str) -> None:
    one, other = short(task, behaviour), short(task, behaviour, seed=1)
    again = record(replace(task, horizon=60), Generation(behaviour=behaviour, transitions=300))
    assert same(one, again)
    assert one.observations[0].tolist() != other.observations[0].tolist()
    assert {array.dtype for array in (one.observations, one.actions, one.rewards)} == {np.dtype(np.float32)}


@for_shipped
def test_behaviours_of_one_seed_have_starts_of_their_own(task: Task) -> None:
    starts = [short(task, behaviour).observations[0].tolist() for behaviour in ("medium", "expert", "medium-replay")]
    assert len({tuple(start) for start in starts}) == 3


@for_shipped
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_recording_is_whole_episodes_with_d4rls_ends_and_replays(task: Task, behaviour: str, tmp_path: Path) -> None:
    data = short(task, behaviour)
    episodes = as_episodes(data, replace(task, horizon=60), tmp_path)
    assert episodes.num_transitions == len(data.rewards) >= 300
    lengths = np.diff(ends(data), prepend=0)
    assert lengths.max() <= 60
    assert not (data.terminals & data.timeouts).any()
    assert (lengths[data.timeouts[ends(data) - 1]] == 60).all(), "a timeout is the horizon, and nothing else"
    assert np.abs(data.actions).max() <= task.action_limit
    assert np.median(replay_errors(task, episodes, steps=10).max(axis=1)) < 1e-3


def test_a_robot_that_falls_ends_with_a_terminal_and_one_that_cannot_fall_at_the_horizon() -> None:
    assert recorded(HOPPER, "medium-replay").terminals.any()
    for task in SHIPPED:
        if task.family == "halfcheetah":
            assert not recorded(task, "medium-replay").terminals.any()


def test_an_episode_does_not_depend_on_how_many_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = short(HOPPER, "medium-replay")
    monkeypatch.setattr(recorders, "_AT_ONCE", 2)
    few = record(replace(HOPPER, horizon=60), Generation(behaviour="medium-replay", transitions=300))
    count = min(len(many.rewards), len(few.rewards))
    np.testing.assert_array_equal(few.actions[:count], many.actions[:count])
    np.testing.assert_array_equal(few.observations[:count], many.observations[:count])


def test_actions_have_the_documented_noise_and_stay_within_the_limit() -> None:
    rows = 4000
    gains, biases = np.zeros((rows, 2, 3)), np.tile([0.25, 7.0], (rows, 1))
    policies = LinearPolicies(gains, biases, 0.5, [np.random.default_rng(row) for row in range(rows)])
    actions = policies.decide(np.zeros((rows, 3)), np.zeros(rows))
    assert actions[:, 0].mean() == pytest.approx(0.25, abs=0.002)
    assert actions[:, 0].std() == pytest.approx(0.5 * ACTION_NOISE, rel=0.05)
    assert actions[:, 1].max() == 0.5
    assert 0.4 < (actions[:, 1] < 0.5).mean() < 0.6, "the noise comes after the clipping, so half of it is seen"


def test_a_rows_action_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(0)
    gains, biases, shown = rng.normal(size=(7, 3, 11)), rng.normal(size=(7, 3)), rng.normal(size=(7, 11))

    def policies(rows: list[int]) -> LinearPolicies:
        return LinearPolicies(gains[rows], biases[rows], 1.0, [np.random.default_rng(row) for row in rows])

    together, alone = policies([*range(7)]), policies([3])
    first = together.decide(shown, np.zeros(7))[3]
    np.testing.assert_array_equal(first, alone.decide(shown[[3]], np.zeros(1))[0])
    together.keep(np.array([3, 5]))
    np.testing.assert_array_equal(
        together.decide(shown[[3, 5]], np.zeros(2))[0], alone.decide(shown[[3]], np.zeros(1))[0]
    )


@pytest.mark.parametrize(
    ("found", "medium", "expert"),
    [
        ([0, 30, 50, 100, 90], 2, 3),
        ([0, 100], 1, 1),
        ([1000, 1100, 1200, 2000, 1900], 3, 3),  # a robot that is paid for standing: counted from the first return
        ([-50, 900, 10, 1000], 1, 3),
    ],
)
def test_medium_is_the_first_snapshot_with_two_fifths_of_the_way_to_the_best(
    found: list[float], medium: int, expert: int
) -> None:
    count = len(found)
    snapshots = Snapshots(
        np.zeros((count, 1, 1)), np.zeros((count, 1)), np.array(found), np.arange(count) * 10, about={}
    )
    assert (snapshots.medium, snapshots.expert) == (medium, expert)
    assert snapshots.used == sorted({*range(medium + 1), expert})


def test_between_two_snapshots_the_policy_is_in_between() -> None:
    gains, biases = np.array([0.0, 1.0, 3.0]).reshape(3, 1, 1), np.array([2.0, 4.0, 0.0]).reshape(3, 1)
    snapshots = Snapshots(gains, biases, np.array([0.0, 1.0, 2.0]), np.array([0, 100, 200]), about={})
    found = snapshots.at(np.array([0.0, 50.0, 100.0, 175.0, 200.0]))
    assert found[0].ravel().tolist() == [0.0, 0.5, 1.0, 2.5, 3.0]
    assert found[1].ravel().tolist() == [2.0, 3.0, 4.0, 1.0, 0.0]


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    def apply(arrays: dict[str, Any]) -> None:
        arrays[name] = change(arrays[name])

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("weights", lambda weights: weights[:, :2]),
            r"'weights' is float32 \(\d+, 2, 11\), not numbers",
        ),
        (changed("mean", lambda mean: mean * np.nan), "'mean' has a value that is not finite"),
        (changed("std", lambda std: np.zeros_like(std)), "'std' has a value that is not above 0"),
        (changed("env_steps", lambda steps: steps[::-1]), "'env_steps' must have two snapshots or more, in ascending"),
        (changed("returns", lambda found: -np.arange(len(found))), "no snapshot has a higher return than the first"),
        (changed("returns", lambda found: np.array(["x"] * len(found))), "'returns' is <U1"),
        (changed("about", lambda _: np.array(json.dumps({"task": "ant"}))), "'about' does not say that it is for 'hop"),
        (changed("about", lambda _: np.array("{")), "cannot be read"),
        (lambda arrays: arrays.pop("std"), "cannot be read .*std"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    with np.load(snapshot_file(HOPPER)) as file:
        arrays = dict(file)
    change(arrays)
    path = tmp_path / "hopper.npz"
    np.savez(path, **arrays)
    with pytest.raises(EngineError, match=message) as error:
        load_snapshots(HOPPER, path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith("write the file again by tools/train_behaviours.py")


@pytest.mark.parametrize("kept", [0, 1, 100, 1000])
def test_a_file_that_was_cut_off_is_one_sentence(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "hopper.npz"
    path.write_bytes(snapshot_file(HOPPER).read_bytes()[:kept])
    with pytest.raises(EngineError, match=r"hopper\.npz: cannot be read"):
        load_snapshots(HOPPER, path)


def test_a_file_with_python_objects_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "hopper.npz"
    np.savez(path, weights=np.array([object()], dtype=object))
    with pytest.raises(EngineError, match="cannot be read"):
        load_snapshots(HOPPER, path)


def test_a_task_without_a_file_is_told_which_have_one(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no such file, so 'hopper' has no policy to record; there are .*hopper"):
        load_snapshots(HOPPER, tmp_path / "hopper.npz")


def test_tasks_of_the_same_simulator_without_policies_are_refused() -> None:
    with pytest.raises(EngineError, match="unknown behaviour of minari-hopper 'expert', known: random"):
        record(TASKS["minari-hopper"], Generation())
    spec = DatasetSpec(name="made", task="minari-hopper", generate=Generation(behaviour="medium"))
    with pytest.raises(SpecError, match="task 'minari-hopper' cannot record it: unknown behaviour 'medium', known"):
        task_of(spec)


def test_the_table_in_the_documents_is_what_the_files_say() -> None:
    table = runpy.run_path(str(ROOT / "tools" / "behaviour_table.py"))["table"]()
    assert table in (ROOT / "docs" / "data.md").read_text(), "python tools/behaviour_table.py prints the table"


QUESTIONS = ("returns", "evolution", "fairness", "robustness", "architecture", "offline_benchmark")


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_sweeps_on_made_data_ask_for_the_return_of_the_best_policy_in_the_data(name: str) -> None:
    found = 0
    for trial in plan(load_sweep(ROOT / "sweeps" / f"{name}.yaml")).trials:
        task, made, targets = task_of(trial.dataset), trial.dataset.generate, trial.evaluation.target_returns
        if task not in SHIPPED or made is None or targets is None or not METHODS[trial.method].takes_target:
            continue
        snapshots = load_snapshots(task)
        best = snapshots.expert if "expert" in made.behaviour else snapshots.medium
        assert targets[0] == pytest.approx(float(snapshots.returns[best]), rel=0.03), trial.trial_id
        assert targets[1] == targets[0] / 2
        found += 1
    assert found > 0


def test_each_behaviour_of_the_family_has_a_recorder() -> None:
    assert tuple(RECORDERS) == BEHAVIOURS
