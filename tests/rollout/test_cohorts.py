from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.models import TransformerConfig
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy
from dmray.rollout import (
    Cohort,
    EpisodeRecord,
    EvaluationRequest,
    Row,
    Step,
    cohorts,
    episode_seed,
    make_engine,
    roll_out,
    run_cohort,
)
from dmray.tasks import TASKS

TASK = replace(TASKS["maze2d-umaze"], horizon=6)


def request(
    episodes: int = 5, cohort_size: int = 2, targets: tuple[float | None, ...] = (2.0, 1.0)
) -> EvaluationRequest:
    return EvaluationRequest(
        task=TASK, episodes=episodes, seed=3, decode="window", target_returns=targets, cohort_size=cohort_size
    )


class CountingEngine:
    """Episode e lasts `lengths[e]` steps, ended by the task or (even lengths) by the horizon; step t pays t + e / 8."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.elapsed = np.array(lengths), np.zeros(len(lengths), dtype=np.int64)
        self.stepped: list[list[int]] = []

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self.seeds = list(seeds)
        return self._observations(np.arange(len(self.lengths)))

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        assert len(actions) == len(live)
        self.stepped.append(live.tolist())
        self.elapsed[live] += 1
        ended = self.elapsed[live] == self.lengths[live]
        by_horizon = self.lengths[live] % 2 == 0
        rewards = self.elapsed[live] + live / 8
        return Step(self._observations(live), rewards, ended & ~by_horizon, ended & by_horizon)

    def close(self) -> None: ...

    def _observations(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([rows, self.elapsed[rows]], axis=1).astype(np.float32)


class ScriptedDecoder:
    """Knows which row of the cohort each of its rows is, and checks that it is shown those."""

    def __init__(self, num_rows: int, action: float = 0.0) -> None:
        self.rows, self.action = np.arange(num_rows), action
        self.returns_to_go: list[dict[int, float]] = []
        self.kept: list[list[int]] = []

    def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
        assert observations[:, 0].tolist() == self.rows.tolist()
        self.returns_to_go.append(dict(zip(self.rows.tolist(), returns_to_go.tolist(), strict=True)))
        return np.full((len(self.rows), 2), self.action, dtype=np.float32)

    def keep(self, rows: np.ndarray) -> None:
        self.kept.append(rows.tolist())
        self.rows = self.rows[rows]


def rolled_out(
    lengths: Sequence[int], targets: tuple[float | None, ...] = (10.0,)
) -> tuple[tuple[EpisodeRecord, ...], ScriptedDecoder, CountingEngine]:
    asked = request(episodes=len(lengths), cohort_size=len(lengths), targets=targets)
    decoder, engine = ScriptedDecoder(len(lengths)), CountingEngine(lengths)
    return roll_out(decoder, engine, asked, cohorts(asked)[0]), decoder, engine


@pytest.mark.parametrize("cohort_size", [1, 2, 5, 50])
def test_every_index_is_rolled_out_once_under_every_target(cohort_size: int) -> None:
    rows = [row for cohort in cohorts(request(cohort_size=cohort_size)) for row in cohort.rows]
    assert len(rows) == 10
    assert set(rows) == {Row(index, target) for index in range(5) for target in (2.0, 1.0)}


def test_a_cohort_holds_up_to_cohort_size_indices_under_all_targets() -> None:
    assert [len(cohort.rows) for cohort in cohorts(request())] == [4, 4, 2]
    assert {row.index for row in cohorts(request())[1].rows} == {2, 3}


def test_an_index_has_the_same_seed_under_every_target_and_its_own_among_indices() -> None:
    asked = request(episodes=2, cohort_size=2, targets=(None, 5.0))
    engine = CountingEngine([1, 1, 1, 1])
    roll_out(ScriptedDecoder(4), engine, asked, cohorts(asked)[0])
    assert engine.seeds == [episode_seed(3, index) for index in (0, 1, 0, 1)]
    assert engine.seeds[0] != engine.seeds[1]


def test_seeds_are_of_31_bits_and_do_not_repeat() -> None:
    seeds = [episode_seed(base, index) for base in range(20) for index in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert 2**30 < max(seeds) < 2**31
    assert min(seeds) >= 0


def test_the_seed_of_an_episode_stays_what_it_was() -> None:
    assert (episode_seed(0, 0), episode_seed(0, 1), episode_seed(1, 0)) == (1878776328, 336614359, 820705584)


def test_returns_and_lengths_are_sums_over_each_rows_own_steps() -> None:
    records, _, _ = rolled_out([3, 1, 2])
    assert [record.length for record in records] == [3, 1, 2]
    assert [record.episode_return for record in records] == [1 + 2 + 3, 1 + 1 / 8, (1 + 1 / 4) + (2 + 1 / 4)]
    assert [record.index for record in records] == [0, 1, 2]


def test_rows_that_ended_are_neither_stepped_nor_batched() -> None:
    _, decoder, engine = rolled_out([3, 1, 2])
    assert engine.stepped == [[0, 1, 2], [0, 2], [0]]
    assert decoder.kept == [[0, 2], [0]]


def test_the_return_to_go_is_what_is_left_of_the_target_in_raw_units() -> None:
    _, decoder, _ = rolled_out([3, 1, 2], targets=(10,))
    assert [shown[0] for shown in decoder.returns_to_go] == [10.0, 9.0, 7.0]
    assert [shown[2] for shown in decoder.returns_to_go[:2]] == [10.0, 10.0 - 1.25]


def test_a_record_bears_its_own_target() -> None:
    asked = request(episodes=1, cohort_size=1, targets=(5.0, None))
    records = roll_out(ScriptedDecoder(2), CountingEngine([1, 1]), asked, cohorts(asked)[0])
    assert [record.target_return for record in records] == [5.0, None]


def test_an_action_that_is_not_finite_ends_the_evaluation_before_the_simulator_sees_it() -> None:
    asked, engine = request(episodes=1, cohort_size=1, targets=(None,)), CountingEngine([3])
    with pytest.raises(FloatingPointError, match="maze2d-umaze: the policy decided an action that is not finite"):
        roll_out(ScriptedDecoder(1, action=float("nan")), engine, asked, cohorts(asked)[0])
    assert engine.stepped == []


def test_requests_cohorts_and_records_cross_a_process() -> None:
    asked = request()
    for value in (asked, cohorts(asked), EpisodeRecord(0, 1, None, 2.0, 3)):
        assert pickle.loads(pickle.dumps(value)) == value


def tiny_policy() -> SequencePolicy:
    import torch

    torch.manual_seed(0)
    shape = PolicyShape(observation_dim=4, action_dim=2, action_limit=1.0, max_timesteps=TASK.horizon)
    model = TransformerConfig(d_model=8, n_layer=1, context_length=3)
    return SequencePolicy(PolicyRecipe("dt", model, "paper", shape, return_scale=1.0)).eval()


def test_a_policys_cohort_is_the_same_whether_or_not_others_ran_before() -> None:
    policy, asked = tiny_policy(), request()
    together = [run_cohort(policy, asked, cohort) for cohort in cohorts(asked)]
    alone = run_cohort(policy, asked, cohorts(asked)[-1])
    assert alone == together[-1]
    assert {record.length for records in together for record in records} == {TASK.horizon}
    assert sum(map(len, together)) == 10


def test_an_episode_does_not_depend_on_how_many_are_asked_for() -> None:
    few, many = request(episodes=4), request(episodes=9)
    policy = tiny_policy()
    assert run_cohort(policy, few, cohorts(few)[1]) == run_cohort(policy, many, cohorts(many)[1])


def test_the_policys_actions_move_the_point() -> None:
    asked = request(episodes=1, cohort_size=1, targets=(2.0,))
    shown: list[np.ndarray] = []

    class Pushing(ScriptedDecoder):
        def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
            shown.append(observations.copy())
            return np.array([[0.0, 0.2]], dtype=np.float32)

    with closing(make_engine(TASK, 1)) as engine:
        roll_out(Pushing(1), engine, asked, Cohort((Row(0, 2.0),)))
    assert len(shown) == TASK.horizon
    assert shown[-1][0, 3] > shown[0][0, 3] + 0.1


def test_a_task_without_an_engine_ends_with_its_name() -> None:
    asked = replace(request(), task=replace(TASK, name="mars", engine="rover"))
    with pytest.raises(EngineError, match="mars"):
        run_cohort(tiny_policy(), asked, cohorts(asked)[0])
