from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import VectorEngine, make_engine
from dmray.rollout.simulators.bullet import BulletEngine, bullet_environment
from dmray.tasks import Task
from dmray.testing.engine_contract import EngineContract
from tests.rollout.bullet import bullet, needs_bullet

ROBOTS = ("hopper", "halfcheetah", "walker2d", "ant")


def test_a_missing_package_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("d4rl", "d4rl.gym_bullet", "gym", "pybullet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=r'^bullet-hopper: .* cannot be imported .*: "make bullet" installs it, see'):
        make_engine(bullet("hopper"), 1)


# The engine's own part, with an environment that speaks gym's old interface and needs no package.


class Countdown:
    """The episode of seed s ends by itself on step s; a step pays its action; the observation is (seed, sum)."""

    observation_space = SimpleNamespace(shape=(2,))
    action_space = SimpleNamespace(shape=(1,))

    def __init__(self) -> None:
        self._seed, self._steps, self._sum, self.closed = 0, 0, 0.0, 0

    def seed(self, seed: int) -> None:
        self._seed = seed

    def reset(self) -> np.ndarray:
        self._steps, self._sum = 0, 0.0
        return np.array([self._seed, 0.0])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, object]]:
        self._steps += 1
        self._sum += float(action[0])
        return np.array([self._seed, self._sum]), float(action[0]), self._steps >= self._seed, {}

    def close(self) -> None:
        self.closed += 1


COUNTDOWN = replace(bullet("hopper"), name="countdown", observation_dim=2, action_dim=1, horizon=4)


def countdown(episodes: int) -> BulletEngine:
    return BulletEngine(COUNTDOWN, episodes, lambda _: Countdown())


class TestTheSeam(EngineContract):
    task = replace(COUNTDOWN, horizon=1000)

    def make(self, task: Task, num_episodes: int) -> VectorEngine:
        return BulletEngine(task, num_episodes, lambda _: Countdown())


def test_rows_answer_in_the_order_asked_with_their_own_clipped_actions() -> None:
    engine = countdown(3)
    assert engine.reset([10, 20, 30])[:, 0].tolist() == [10, 20, 30]
    step = engine.step(np.array([[0.5], [-7.0]], dtype=np.float32), np.array([2, 0]))
    assert step.observations.tolist() == [[30, 0.5], [10, -1]]
    assert step.rewards.tolist() == [0.5, -1]


def test_an_end_at_the_horizon_is_a_termination_and_no_truncation() -> None:
    engine, live = countdown(3), np.arange(3)
    engine.reset([3, 4, 5])
    ends = [engine.step(np.zeros((3, 1), dtype=np.float32), live) for _ in range(COUNTDOWN.horizon)]
    assert [step.terminated.tolist() for step in ends[2:]] == [[True, False, False], [True, True, False]]
    assert [step.truncated.tolist() for step in ends[2:]] == [[False] * 3, [False, False, True]]


def test_every_environment_is_closed_once() -> None:
    made: list[Countdown] = []

    def make(_: Task) -> Countdown:
        made.append(Countdown())
        return made[-1]

    engine = BulletEngine(COUNTDOWN, 3, make)
    engine.close()
    engine.close()
    assert [environment.closed for environment in made] == [1, 1, 1]


def test_other_sizes_than_the_tasks_are_refused() -> None:
    with pytest.raises(EngineError, match=r"bullet-hopper: declared .* sizes \(15, 3\), but .* has \(2, 1\)"):
        BulletEngine(bullet("hopper"), 1, lambda _: Countdown())


# d4rl's environments.


@needs_bullet
class TestBulletHopper(EngineContract):
    task = bullet("hopper")


@needs_bullet
class TestBulletHalfCheetah(EngineContract):
    task = bullet("halfcheetah")


@needs_bullet
class TestBulletWalker2d(EngineContract):
    task = bullet("walker2d")


@needs_bullet
class TestBulletAnt(EngineContract):
    task = bullet("ant")


def old_episode(environment: Any, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, rewards and ends of a whole number of steps, on and on after a fall."""
    environment.seed(seed)
    rng, observations, rest = np.random.default_rng(seed), [environment.reset()], []
    for _ in range(steps):
        observation, *pay = environment.step(rng.uniform(-1, 1, environment.action_space.shape).astype(np.float32))
        observations.append(observation)
        rest.append(pay)
    rewards, ends, _ = zip(*rest, strict=True)
    return np.stack(observations), np.array(rewards), np.array(ends)


@needs_bullet
@pytest.mark.parametrize("robot", ROBOTS)
def test_a_reset_leaves_nothing_of_a_long_episode(robot: str) -> None:
    fresh, used = bullet_environment(bullet(robot)), bullet_environment(bullet(robot))
    with closing(fresh), closing(used):
        for before in (700, 1, 33):
            old_episode(used, before, before)
        expected, actual = old_episode(fresh, 5, 400), old_episode(used, 5, 400)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_bullet
@pytest.mark.parametrize("robot", ROBOTS)
def test_an_episode_is_d4rls_own_bit_for_bit_after_the_first_of_an_environment(robot: str) -> None:
    ours = bullet_environment(bullet(robot))  # first: it silences the imports
    import gym

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = gym.make(bullet(robot).env_id, disable_env_checker=True).unwrapped
    with closing(ours), closing(theirs.wrapped_env):
        first = old_episode(theirs, 9, 100)
        expected, actual = old_episode(theirs, 9, 100), old_episode(ours, 9, 100)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[1][0] != actual[1][0], "d4rl pays the first step of all as any other now: bullet_environment can too"
    np.testing.assert_array_equal(first[1][1:], actual[1][1:])


@needs_bullet
@pytest.mark.parametrize(
    ("robot", "rounds", "tolerance"),  # four standard errors of the mean, rounded
    [("hopper", 10, 1.2), ("walker2d", 10, 1.3), ("halfcheetah", 1, 160.0), ("ant", 1, 260.0)],
)
def test_a_random_policy_earns_the_return_that_counts_as_nothing(robot: str, rounds: int, tolerance: float) -> None:
    task, rows, rng = bullet(robot), 10, np.random.default_rng(0)
    returns = np.zeros((rounds, rows))
    with closing(make_engine(task, rows)) as engine:
        for number in range(rounds):
            engine.reset(range(rows * number, rows * (number + 1)))
            live = np.arange(rows)
            while live.size:
                step = engine.step(rng.uniform(-1, 1, (live.size, task.action_dim)).astype(np.float32), live)
                returns[number, live] += step.rewards
                live = live[~(step.terminated | step.truncated)]
    assert task.reference is not None
    assert abs(returns.mean() - task.reference.minimum) < tolerance


@needs_bullet
def test_no_time_limit_but_the_tasks_own_is_kept() -> None:
    with closing(make_engine(replace(bullet("halfcheetah"), horizon=1002), 1)) as engine:
        engine.reset([0])
        ends = [engine.step(np.zeros((1, 6), dtype=np.float32), np.array([0])) for _ in range(1002)]
    assert [bool(step.terminated[0]) for step in ends] == [False] * 1002
    assert [bool(step.truncated[0]) for step in ends] == [False] * 1001 + [True]


@needs_bullet
def test_closing_frees_the_simulation() -> None:
    import pybullet

    environment: Any = bullet_environment(bullet("hopper"))
    client = environment.wrapped_env.physicsClientId
    assert pybullet.isConnected(physicsClientId=client)
    environment.close()
    assert not pybullet.isConnected(physicsClientId=client)


@needs_bullet
def test_an_unknown_environment_is_refused_with_its_task() -> None:
    with pytest.raises(EngineError, match="bullet-hopper: d4rl has no environment 'bullet-hoper-medium-v0'"):
        make_engine(replace(bullet("hopper"), env_id="bullet-hoper-medium-v0"), 1)


@needs_bullet
def test_old_packages_neither_warn_nor_change_where_modules_are_found() -> None:
    code = (
        "import sys, numpy as np\n"
        "from dmray.rollout import make_engine\n"
        "from tests.rollout.bullet import bullet\n"
        "path, engine = list(sys.path), make_engine(bullet('hopper'), 1)\n"
        "engine.reset([0]); engine.step(np.zeros((1, 3)), np.array([0])); engine.close()\n"
        "assert sys.path == path\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("pybullet build time")]  # printed by C
    assert (done.returncode, said) == (0, [])
