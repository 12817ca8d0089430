"""The tests that every `VectorEngine` must pass. Subclass the suite in a test file and set a task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import ClassVar

import numpy as np

from dmray.rollout import Step, VectorEngine, make_engine
from dmray.tasks import Task


class EngineContract:
    """Tests the engine of `task`. Override `make` for an engine that `make_engine` does not know."""

    task: ClassVar[Task]

    def make(self, task: Task, num_episodes: int) -> VectorEngine:
        return make_engine(task, num_episodes)

    def test_shapes_and_dtypes_are_the_tasks_for_any_number_of_episodes(self) -> None:
        for episodes in (1, 3):
            with closing(self.make(self.task, episodes)) as engine:
                observations = engine.reset(range(episodes))
                _is(observations, np.float32, episodes, self.task.observation_dim)
                step = engine.step(self._actions(0, episodes), np.arange(episodes))
                _is(step.observations, np.float32, episodes, self.task.observation_dim)
                _is(step.rewards, np.float64, episodes)
                _is(step.terminated, np.bool_, episodes)
                _is(step.truncated, np.bool_, episodes)

    def test_the_same_seed_gives_the_same_episode_after_any_other_episodes(self) -> None:
        with closing(self.make(self.task, 2)) as engine:
            first = self._episode(engine, [7, 8])
            self._episode(engine, [1, 2])
            _same(first, self._episode(engine, [7, 8]))

    def test_another_seed_gives_another_episode(self) -> None:
        with closing(self.make(self.task, 2)) as engine:
            assert (engine.reset([7, 8]) != engine.reset([8, 9])).any(axis=1).all()

    def test_each_row_begins_from_its_own_seed_in_any_order_up_to_the_largest(self) -> None:
        seeds = [2**31 - 1, 9, 4, 9]
        with closing(self.make(self.task, 4)) as many, closing(self.make(self.task, 1)) as one:
            np.testing.assert_array_equal(many.reset(seeds), np.concatenate([one.reset([seed]) for seed in seeds]))

    def test_an_episode_does_not_depend_on_the_other_rows(self) -> None:
        with closing(self.make(self.task, 3)) as many, closing(self.make(self.task, 1)) as one:
            beside, alone = self._episode(many, [5, 6, 7]), self._episode(one, [6])
            _same([_row(step, 1) for step in beside], alone)

    def test_only_live_rows_advance_and_results_are_in_the_order_of_the_rows(self) -> None:
        with closing(self.make(self.task, 3)) as engine, closing(self.make(self.task, 1)) as one:
            engine.reset([5, 6, 7])
            forward = engine.step(self._actions(0, 3)[[2, 0]], np.array([2, 0]))
            engine.step(self._actions(1, 3)[[0]], np.array([0]))
            late = engine.step(self._actions(0, 3)[[1]], np.array([1]))
            for position, (seed, row) in enumerate([(7, 2), (5, 0)]):
                one.reset([seed])
                _same([one.step(self._actions(0, 3)[[row]], np.array([0]))], [_row(forward, position)])
            one.reset([6])
            _same([one.step(self._actions(0, 3)[[1]], np.array([0]))], [late])

    def test_the_horizon_truncates_at_its_step_and_not_before(self) -> None:
        with closing(self.make(replace(self.task, horizon=3), 2)) as engine:
            for _ in range(2):
                steps = self._episode(engine, [5, 6], steps=3)
                assert not any(step.terminated.any() for step in steps), "the suite needs episodes of three steps"
                assert [step.truncated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2]

    def test_the_horizon_counts_each_rows_own_steps(self) -> None:
        with closing(self.make(replace(self.task, horizon=2), 2)) as engine:
            engine.reset([5, 6])
            engine.step(self._actions(0, 1), np.array([0]))
            assert engine.step(self._actions(1, 2), np.array([0, 1])).truncated.tolist() == [True, False]

    def test_an_episode_ends_in_one_way_only(self) -> None:
        with closing(self.make(replace(self.task, horizon=1), 4)) as engine:
            step = self._episode(engine, range(4), steps=1)[0]
            assert (step.terminated ^ step.truncated).all()

    def test_actions_are_clipped_to_the_tasks_limit(self) -> None:
        limit = self.task.action_limit
        with closing(self.make(self.task, 1)) as engine:
            steps = []
            for scale in (1.0, 3.0):
                engine.reset([5])
                actions = np.full((1, self.task.action_dim), limit * scale, dtype=np.float32)
                steps.append(engine.step(actions, np.array([0])))
            _same(steps[:1], steps[1:])

    def test_an_engine_can_be_closed_twice(self) -> None:
        engine = self.make(self.task, 2)
        engine.close()
        engine.close()

    def _actions(self, salt: int, rows: int) -> np.ndarray:
        """Random actions (rows, A). Row r's depend on `salt` and r only."""
        rngs = [np.random.default_rng([salt, row]) for row in range(rows)]
        limit = self.task.action_limit
        return np.stack([rng.uniform(-limit, limit, self.task.action_dim) for rng in rngs]).astype(np.float32)

    def _episode(self, engine: VectorEngine, seeds: Sequence[int], steps: int = 5) -> list[Step]:
        """The first `steps` steps of all rows. The actions of a row depend on its seed."""
        engine.reset(seeds)
        live = np.arange(len(seeds))
        return [
            engine.step(np.concatenate([self._actions(1000 * seed + t, 1) for seed in seeds]), live)
            for t in range(steps)
        ]


def _is(array: np.ndarray, dtype: type[np.generic], *shape: int) -> None:
    assert array.shape == shape
    assert array.dtype == dtype


def _row(step: Step, row: int) -> Step:
    return Step(*(values[[row]] for values in step))


def _same(one: Sequence[Step], other: Sequence[Step]) -> None:
    """Assert that the steps are equal, bit for bit."""
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for name, values in left._asdict().items():
            np.testing.assert_array_equal(values, getattr(right, name), err_msg=name)
