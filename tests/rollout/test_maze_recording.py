from __future__ import annotations

from dataclasses import fields
from typing import Literal

import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import RecordedTransitions, make_engine, record
from dmray.rollout.mazes import LAYOUTS, WaypointController, cell_of
from dmray.specs import Generation
from dmray.tasks import TASKS

TASK = TASKS["maze2d-umaze"]
UMAZE = LAYOUTS["umaze"]
Behaviour = Literal["play", "expert", "mixed"]


def recorded(
    behaviour: Behaviour, transitions: int = 1200, seed: int = 0, task: str = TASK.name
) -> RecordedTransitions:
    return record(TASKS[task], Generation(behaviour=behaviour, transitions=transitions, seed=seed))


def pieces(transitions: RecordedTransitions) -> list[slice]:
    ends = np.flatnonzero(transitions.timeouts) + 1
    return [slice(start, end) for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]


@pytest.mark.parametrize("behaviour", ["play", "expert", "mixed"])
def test_arrays_are_of_d4rls_shapes_and_types(behaviour: Behaviour) -> None:
    data = recorded(behaviour)
    assert {field.name: getattr(data, field.name).shape for field in fields(data)} == {
        "observations": (1200, 4),
        "actions": (1200, 2),
        "rewards": (1200,),
        "terminals": (1200,),
        "timeouts": (1200,),
        "goals": (1200, 2),
    }
    flags, numbers = (data.terminals, data.timeouts), (data.observations, data.actions, data.rewards, data.goals)
    assert all(array.dtype == np.bool_ for array in flags)
    assert all(array.dtype == np.float32 for array in numbers)


@pytest.mark.parametrize("behaviour", ["play", "expert", "mixed"])
def test_the_seed_decides_every_value(behaviour: Behaviour) -> None:
    first, again, other = recorded(behaviour), recorded(behaviour), recorded(behaviour, seed=1)
    for field in fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert (first.observations != other.observations).any()


@pytest.mark.parametrize("behaviour", ["play", "expert", "mixed"])
def test_nothing_terminates_and_the_last_transition_is_a_timeout(behaviour: Behaviour) -> None:
    data = recorded(behaviour)
    assert not data.terminals.any()
    assert data.timeouts[-1]


def test_actions_are_noisy_and_within_the_limit() -> None:
    data = recorded("expert")
    assert np.abs(data.actions).max() == 1.0
    settled = np.concatenate([np.arange(piece.stop - 100, piece.stop) for piece in pieces(data)])
    wanted = WaypointController(UMAZE).act(data.observations[settled].astype(np.float64), data.goals[settled])
    noise = data.actions[settled] - wanted
    assert 0.4 < noise.std() < 0.52  # a standard deviation of .5, less what is cut off beyond the limit


def test_expert_is_whole_episodes_to_the_goal() -> None:
    data = recorded("expert", transitions=700)
    assert [piece.stop - piece.start for piece in pieces(data)] == [TASK.horizon] * 3
    assert (data.goals == UMAZE.goal).all()
    assert all(data.rewards[piece][-100:].all() for piece in pieces(data))


def test_an_experts_episode_starts_anywhere_and_pays_what_the_engine_pays() -> None:
    data = recorded("expert")
    starts = {tuple(cell) for cell in cell_of(data.observations[[piece.start for piece in pieces(data)], :2]).tolist()}
    assert len(starts) > 1
    first = pieces(data)[0]
    engine = make_engine(TASK, 1)
    engine.reset([0])
    engine._points.place(data.observations[first.start : first.start + 1].astype(np.float64))  # type: ignore[attr-defined]
    steps = [engine.step(data.actions[t : t + 1], np.array([0])) for t in range(30)]
    replayed = np.concatenate([step.observations for step in steps])
    # The recording keeps the start in float32, so the replay starts up to 1e-7 off.
    np.testing.assert_allclose(replayed, data.observations[1:31], atol=1e-5)
    assert [step.rewards[0] for step in steps] == data.rewards[:30].tolist()


def test_play_changes_its_target_at_timeouts_without_a_reset() -> None:
    data = recorded("play")  # less than one lane's length: a single stream
    assert len(data.rewards) == 1200
    assert len(pieces(data)) > 5
    moved = np.abs(np.diff(data.observations[:, :2], axis=0)).max(axis=1)
    assert moved.max() < 0.06  # 5 a second for .01 s, and a little
    changes = (np.diff(data.goals, axis=0) != 0).any(axis=1)
    np.testing.assert_array_equal(changes, data.timeouts[:-1])


def test_play_reaches_each_target_before_it_takes_another() -> None:
    data = recorded("play")
    reached = np.flatnonzero(data.timeouts)[:-1]
    distances = np.linalg.norm(data.observations[reached + 1, :2] - data.goals[reached], axis=1)
    assert distances.max() <= 0.1 + 1e-6


def test_play_visits_every_cell() -> None:
    cells = {tuple(cell) for cell in cell_of(recorded("play", 6000).observations[:, :2]).tolist()}
    assert cells == {tuple(cell) for cell in UMAZE.free_cells.tolist()}


def test_lanes_of_play_are_pieces_of_their_own() -> None:
    data = recorded("play", transitions=4001)  # three lanes
    jumps = np.flatnonzero(np.abs(np.diff(data.observations[:, :2], axis=0)).max(axis=1) > 0.06)
    assert len(jumps) > 0
    assert data.timeouts[jumps].all()
    assert data.timeouts[-1]  # though the last lane was cut by one to end at the number asked for
    assert len(data.rewards) == 4001


@pytest.mark.parametrize("behaviour", ["play", "expert", "mixed"])
def test_rewards_are_for_the_evaluation_goal_whatever_the_target(behaviour: Behaviour) -> None:
    data = recorded(behaviour)
    inside = np.flatnonzero(~data.timeouts[:-1])  # where the next row is the state that the step ended in
    near = np.linalg.norm(data.observations[inside + 1, :2] - UMAZE.goal, axis=1) <= 0.5
    np.testing.assert_array_equal(data.rewards[inside], near)


def test_mixed_is_half_expert_and_half_play() -> None:
    mixed, expert = recorded("mixed"), recorded("expert", transitions=600)
    np.testing.assert_array_equal(mixed.observations[:600], expert.observations)
    assert (mixed.goals[600:] != UMAZE.goal).any()


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_experts_of_every_maze_earn_most_of_what_there_is(name: str) -> None:
    task = TASKS[f"maze2d-{name}"]
    data = recorded("expert", transitions=8 * task.horizon, task=task.name)
    returns = data.rewards.reshape(8, task.horizon).sum(axis=1)
    assert returns.min() > 0.4 * task.horizon


@pytest.mark.parametrize("name", ["minari-hopper", "antmaze-umaze"])
def test_a_task_of_another_family_is_refused(name: str) -> None:
    with pytest.raises(EngineError, match=f"unknown behaviour of {name} 'expert', known: random"):
        record(TASKS[name], Generation())
