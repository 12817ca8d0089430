"""A cohort is the published one-environment loop, faster: same episodes, same decisions, same returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy
from dmray.rollout import EpisodeRecord, EvaluationRequest, Step, cohorts, episode_seed, make_engine, run_cohort
from dmray.rollout.simulators.envpool import EpisodePool
from dmray.specs import MethodName
from dmray.tasks import TASKS, Task
from dmray.testing.one_env_loop import Environment, one_env_loop
from tests.policies.windows import config_of

MAZE = TASKS["maze2d-open"]
HOPPER = replace(TASKS["hopper"], horizon=50)
ACTIONS_AGREE_TO = 1e-6
Episode = tuple[np.ndarray, Environment, Callable[[], None]]  # first observation, the environment, and its end


def policy_for(task: Task, method: MethodName) -> SequencePolicy:
    """A small policy whose weights are far from where they start, so that its actions depend on what it sees."""
    torch.manual_seed(1)
    shape = PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
    model = config_of(method, d_model=32, n_layer=1, context_length=6, d_state=4, dropout=0.1)
    policy = SequencePolicy(PolicyRecipe(method, model, "paper", shape, task.return_scale))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    policy.set_statistics(torch.full((task.observation_dim,), 0.5), torch.full((task.observation_dim,), 1.5))
    return policy.eval()


def asked(task: Task, method: MethodName) -> EvaluationRequest:
    """Two episodes: of two indices, or of one under two targets."""
    targets: tuple[float | None, ...] = (100.0, 40.0) if method == "dt" else (None,)
    return EvaluationRequest(task, 2 // len(targets), 5, "window", targets, cohort_size=2)


@dataclass
class Watched:
    """What each row of a cohort saw and did, step by step."""

    observations: list[list[np.ndarray]]
    actions: list[list[np.ndarray]]
    rewards: list[list[float]]

    @classmethod
    def of(cls, policy: SequencePolicy, request: EvaluationRequest) -> tuple[Watched, tuple[EpisodeRecord, ...]]:
        (cohort,) = cohorts(request)
        seen = cls([[] for _ in cohort.rows], [[] for _ in cohort.rows], [[] for _ in cohort.rows])

        def watch(rows: np.ndarray, observations: np.ndarray, actions: np.ndarray, step: Step) -> None:
            for place, row in enumerate(rows.tolist()):
                seen.observations[row].append(observations[place])
                seen.actions[row].append(actions[place])
                seen.rewards[row].append(float(step.rewards[place]))

        return seen, run_cohort(policy, request, cohort, watch)


def maze(seed: int) -> Episode:
    """One maze and nothing beside it."""
    engine = make_engine(MAZE, 1)

    def step(action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        done = engine.step(action[None], np.zeros(1, dtype=np.int64))
        return done.observations[0], float(done.rewards[0]), bool(done.truncated[0])

    return engine.reset([seed])[0], step, engine.close


def hopper(seed: int) -> Episode:
    """gymnasium's Hopper in the state that envpool begins the episode of `seed` in."""
    shown = {"exclude_current_positions_from_observation": False}
    with closing(EpisodePool(HOPPER, HOPPER.env_id, 1, shown)) as pool:
        start = pool.reset([seed])[0]
    bare: Any = gymnasium.make(gymnasium.spec(HOPPER.env_id), disable_env_checker=True).unwrapped
    bare.reset(seed=0)
    bare.data.qacc_warmstart[:] = 0
    bare.set_state(start[: bare.model.nq], start[bare.model.nq :])
    steps = 0

    def step(action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        nonlocal steps
        steps += 1
        observation, reward, fell, *_ = bare.step(np.clip(action, -1, 1).astype(np.float64))
        return observation.astype(np.float32), float(np.float32(reward)), bool(fell) or steps == HOPPER.horizon

    return start[1:].astype(np.float32), step, bare.close


@pytest.fixture
def plain_scan() -> Iterator[Callable[[], None]]:
    """Turns the reference scan on, which is the loop's; off again afterwards."""
    yield lambda: torch.use_deterministic_algorithms(True)
    torch.use_deterministic_algorithms(False)


CASES = [(MAZE, maze, "dm"), (MAZE, maze, "hdm"), (MAZE, maze, "dt"), (MAZE, maze, "hdt"), (HOPPER, hopper, "hdm")]
every_case = pytest.mark.parametrize(("task", "make", "method"), CASES, ids=lambda case: getattr(case, "name", None))


@every_case
def test_physics_are_the_one_env_loops_bit_for_bit_and_decisions_to_1e_6(
    task: Task, make: Callable[[int], Episode], method: MethodName, plain_scan: Callable[[], None]
) -> None:
    """The loop decides at each step; what is done is what the cohort did, so that both see the same."""
    policy, request = policy_for(task, method), asked(task, method)
    seen, records = Watched.of(policy, request)
    plain_scan()
    for row, record in enumerate(records):
        first, environment, close = make(record.seed)
        shown, paid, led = [first], [], iter(seen.actions[row])

        def follow(decided: np.ndarray) -> tuple[np.ndarray, float, bool]:
            observation, reward, ended = environment(next(led))  # noqa: B023
            shown.append(observation)  # noqa: B023
            paid.append(reward)  # noqa: B023
            return observation, reward, ended

        steps = list(one_env_loop(policy, first, follow, task.horizon, record.target_return))
        close()
        np.testing.assert_array_equal(shown[:-1], seen.observations[row])
        assert paid == seen.rewards[row]
        assert len(steps) == record.length
        np.testing.assert_allclose([s.action for s in steps], seen.actions[row], rtol=0, atol=ACTIONS_AGREE_TO)
    assert np.std(seen.actions[0], axis=0).max() > 1e-3, "the policy reacts"


@pytest.mark.parametrize(
    ("task", "make", "method"), [CASES[0], CASES[3], CASES[4]], ids=["maze-dm", "maze-hdt", "hopper-hdm"]
)
def test_left_to_itself_the_one_env_loop_ends_with_the_same_returns(
    task: Task, make: Callable[[int], Episode], method: MethodName, plain_scan: Callable[[], None]
) -> None:
    """Whole maze episodes, exactly; fifty steps of Hopper, whose rewards are real numbers, to 1e-3."""
    policy, request = policy_for(task, method), asked(task, method)
    _, records = Watched.of(policy, request)
    plain_scan()
    for record in records:
        first, environment, close = make(record.seed)
        steps = list(one_env_loop(policy, first, environment, task.horizon, record.target_return))
        close()
        assert len(steps) == record.length
        tolerance = 1e-3 if task is HOPPER else 0.0
        assert sum(step.reward for step in steps) == pytest.approx(record.episode_return, rel=0, abs=tolerance)


@pytest.mark.parametrize("decode", ["window", "stream:2", "recurrent"])
@pytest.mark.parametrize("method", ["dt", "dm+r"])
def test_targets_as_rows_of_one_cohort_are_separate_runs(method: MethodName, decode: str) -> None:
    """Batches of another size round otherwise: actions agree to 1e-6 until the maze amplifies that, returns do not."""
    task, early = replace(MAZE, horizon=60), 20
    policy = policy_for(task, method)
    together = EvaluationRequest(task, 3, 5, decode, (100.0, 40.0, 1.0), cohort_size=3)
    seen, records = Watched.of(policy, together)
    actions = np.array(seen.actions)
    for number, target in enumerate(together.target_returns):
        rows = slice(3 * number, 3 * number + 3)
        alone, each = Watched.of(policy, replace(together, target_returns=(target,)))
        assert each == records[rows]
        np.testing.assert_allclose(
            np.array(alone.actions)[:, :early], actions[rows, :early], rtol=0, atol=ACTIONS_AGREE_TO
        )
    assert not np.allclose(actions[0], actions[6], atol=1e-3), "the target matters"
    assert [record.seed for record in records[:3]] == [episode_seed(5, index) for index in range(3)]
