"""Policies from Python: loaded, acting step by step and on windows, evaluated, drawn."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import dmray
from dmray.errors import CheckpointError, SpecError
from dmray.inference import Rollout, evaluation_request
from dmray.rollout import episode_seed, make_engine
from dmray.tasks import TASKS
from dmray.trial.checkpoints import Origin, load_checkpoint, save_checkpoint
from tests.policies.windows import SHAPE, tiny_policy

MODES = ("window", "stream:2", "recurrent")
OPEN = TASKS["maze2d-open"]
every_mode = pytest.mark.parametrize("decode", MODES)


def rollout(method: str, episodes: int | None = 2, decode: str = "window", target: float = 8.0) -> Rollout:
    targets = np.full(episodes or 1, target)
    return Rollout(tiny_policy(method), decode, targets, zero_dims=0, single=episodes is None)  # type: ignore[arg-type]


def test_a_loaded_policy_says_what_it_is(trial_folders: dict[str, Path]) -> None:
    dm, dt = (dmray.load_policy(trial_folders[method]) for method in ("dm", "dt"))
    assert str(dm) == "DM of open-expert, seed 0, after 40 steps"
    assert (dm.takes_target, dm.target_returns) == (False, ())
    assert (dt.takes_target, dt.target_returns) == (True, (50.0,))
    assert (dt.task.name, dt.observation_dim, dt.action_dim, dt.context_length) == ("maze2d-open", 4, 2, 4)
    assert dt.max_timesteps >= OPEN.horizon
    assert not dt.predicts_subgoals


@pytest.mark.parametrize("method", ["dm", "dt"])
@every_mode
def test_a_users_loop_gets_the_returns_of_an_evaluation(
    trial_folders: dict[str, Path], method: str, decode: str
) -> None:
    """Episodes that end are dropped one by one; the returns-to-go follow the rewards."""
    policy = dmray.load_policy(trial_folders[method])
    evaluation = dmray.evaluate_policy(policy, episodes=3, decode=decode, cohort_size=3)
    returns = np.zeros(3)
    with closing(make_engine(policy.task, 3)) as engine:
        observations = engine.reset([episode_seed(0, index) for index in range(3)])
        acting = policy.start(3, decode=decode)
        actions = acting.act(observations)
        while acting.live.size:
            step = engine.step(actions, acting.live)
            returns[acting.live] += step.rewards
            going = acting.drop(step.terminated | step.truncated)
            if going.size:
                actions = acting.act(step.observations[going], step.rewards[going])
    assert returns.tolist() == [episode.episode_return for episode in evaluation.episodes]


def test_a_single_episode_has_no_first_axis() -> None:
    one, two = rollout("hdt", episodes=None), rollout("hdt", episodes=2)
    observation = np.array([0.1, 0.2, 0.3])
    for _ in range(3):
        action, actions = one.act(observation), two.act(np.stack([observation, observation]))
        assert action.shape == (SHAPE.action_dim,)
        np.testing.assert_allclose(actions, np.stack([action, action]), rtol=0, atol=5e-6)
        assert one.subgoals is not None
        np.testing.assert_allclose(two.subgoals, np.stack([one.subgoals] * 2), rtol=0, atol=5e-6)


def test_rewards_are_subtracted_from_the_target() -> None:
    acting = rollout("dt", target=8.0)
    acting.act(np.zeros((2, 3)))
    acting.act(np.zeros((2, 3)), [1.0, 3.0])
    assert acting.returns_to_go.tolist() == [7.0, 5.0]
    assert acting.drop([True, False]).tolist() == [1]
    acting.act(np.zeros((1, 3)), [0.5])
    assert (acting.live.tolist(), acting.returns_to_go.tolist()) == ([1], [4.5])
    assert rollout("dm").subgoals is None


def test_wrong_arrays_are_errors() -> None:
    acting = rollout("dt")
    with pytest.raises(SpecError, match=r"observations: shape \(3,\), but this rollout takes \(2, 3\)"):
        acting.act(np.zeros(3))
    with pytest.raises(SpecError, match="the first call of act takes only observations"):
        acting.act(np.zeros((2, 3)), [1.0, 1.0])
    acting.act(np.zeros((2, 3)))
    with pytest.raises(SpecError, match="rewards: missing"):
        acting.act(np.zeros((2, 3)))
    with pytest.raises(SpecError, match=r"rewards: shape \(1,\)"):
        acting.act(np.zeros((2, 3)), 1.0)
    with pytest.raises(SpecError, match=r"ended: shape \(3,\)"):
        acting.drop([True] * 3)


@pytest.mark.parametrize("method", ["dm", "dt"])
def test_after_an_error_a_rollout_is_as_before(method: str) -> None:
    acting = rollout(method, target=8.0 if method == "dt" else 0.0)
    acting.act(np.zeros((2, 3)))
    for observations, rewards, problem in (
        (np.zeros((2, 2)), [1.0, 1.0], "observations: shape"),
        (np.full((2, 3), np.nan), [1.0, 1.0], "observations: not all numbers are finite"),
        ([[0.0], [0.0, 0.0]], [1.0, 1.0], "observations: not an array of numbers"),
        (np.zeros((2, 3)), [1.0, np.inf], "rewards: not all numbers are finite"),
        (np.zeros((2, 3)), [1.0, 1.0, 1.0], r"rewards: shape \(3,\)"),
        (np.zeros((2, 3)), "ab", "rewards: not an array of numbers"),
    ):
        with pytest.raises(SpecError, match=problem):
            acting.act(observations, rewards)
    acting.act(np.zeros((2, 3)), [1.0, 1.0])
    assert acting.returns_to_go.tolist() == ([7.0, 7.0] if method == "dt" else [0.0, 0.0])
    assert acting.timestep == 2


@pytest.mark.parametrize("method", ["dm", "dt"])
def test_when_every_episode_has_ended_there_is_nothing_to_act_in(method: str) -> None:
    acting = rollout(method)
    acting.act(np.zeros((2, 3)))
    assert acting.drop([True, True]).size == 0
    with pytest.raises(SpecError, match=r"every episode has ended; begin new ones with policy\.start"):
        acting.act(np.zeros((0, 3)), np.zeros(0))


def test_an_episode_longer_than_max_timesteps_is_an_error() -> None:
    acting = rollout("dm", episodes=None)
    for _ in range(SHAPE.max_timesteps):
        acting.act(np.zeros(3))
    with pytest.raises(SpecError, match=f"at most {SHAPE.max_timesteps} timesteps"):
        acting.act(np.zeros(3))


def test_arguments_of_start_are_checked(trial_folders: dict[str, Path]) -> None:
    dm, dt = (dmray.load_policy(trial_folders[method]) for method in ("dm", "dt"))
    with pytest.raises(SpecError, match="DM takes no target return"):
        dm.start(target_return=5)
    with pytest.raises(SpecError, match="3 numbers for 2 episodes"):
        dt.start(2, target_return=[1, 2, 3])
    with pytest.raises(SpecError, match="did you mean 'stream:2'"):
        dt.start(2, decode="strem:2")
    with pytest.raises(SpecError, match="must be at least 1"):
        dt.start(0)
    with pytest.raises(SpecError, match="target_return nan: not a finite number"):
        dt.start(target_return=float("nan"))
    with pytest.raises(SpecError, match="unknown dec"):
        dt.start(decode="")
    assert dt.start(2, target_return=[1, 2]).returns_to_go.tolist() == [1.0, 2.0]


def test_a_source_that_is_not_a_policy_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint; give a file"):
        dmray.load_policy(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint 'best'; there are none"):
        dmray.load_policy(tmp_path, checkpoint="best")
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(SpecError, match=r"checkpoint best: .*a\.pt is one file; give the trial's folder"):
        dmray.load_policy(tmp_path / "a.pt", checkpoint="best")


def test_a_policy_of_a_package_that_is_not_installed_says_so(trial_folders: dict[str, Path], tmp_path: Path) -> None:
    stored = load_checkpoint(trial_folders["dm"] / "checkpoints" / "final.pt")
    spec = stored["origin"]["spec"].replace('"method":"dm"', '"method":"far-away"')
    origin = SimpleNamespace(as_dict=lambda: stored["origin"] | {"spec": spec})
    save_checkpoint(tmp_path / "final.pt", cast(Origin, origin), {**stored, "origin": origin.as_dict()})
    with pytest.raises(CheckpointError, match=r"unknown method 'far-away'.*install that package"):
        dmray.load_policy(tmp_path / "final.pt")


def test_how_to_evaluate_and_draw_is_checked(trial_folders: dict[str, Path]) -> None:
    policy = trial_folders["dt"]
    for problem, wrong in (
        ("give at least one, and each once", {"target_returns": []}),
        ("must be a finite number", {"target_returns": [float("nan")]}),
        ("workers 0: must be at least 1", {"workers": 0}),
    ):
        with pytest.raises(SpecError, match=problem):
            dmray.evaluate_policy(policy, episodes=1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="policy 5: neither a policy"):
        dmray.evaluate_policy(5, "maze2d-umaze")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="not an array of numbers"):
        dmray.evaluate_policy(lambda observations: "left", "maze2d-umaze", episodes=1)  # type: ignore[arg-type, return-value]
    with pytest.raises(SpecError, match="pictures -1: must be at least 0"):
        dmray.draw_episodes(policy, -1)
    with pytest.raises(SpecError, match="only a policy of load_policy can be drawn"):
        dmray.draw_episodes(lambda observations: observations, 1, task="maze2d-umaze")  # type: ignore[arg-type]


def test_an_evaluation_has_scores_and_a_record_of_each_episode(trial_folders: dict[str, Path]) -> None:
    evaluation = dmray.evaluate_policy(trial_folders["dt"], episodes=3, target_returns=[10.0, 20.0])
    assert [score.target_return for score in evaluation.scores] == [10.0, 20.0]
    assert len(evaluation.episodes) == 6
    assert evaluation.normalized == evaluation.scores[0].normalized_mean
    assert evaluation.request.decode == "window"
    assert [row["index"] for row in evaluation.rows] == [0, 1, 2] * 2


def test_a_policy_without_settings_reproduces_the_recorded_scores(
    ran: dmray.SweepRun, trial_folders: dict[str, Path]
) -> None:
    last = ran.trials.set_index("method").last_normalized_score
    assert dmray.evaluate_policy(trial_folders["dm"]).normalized == last["dm"]


def test_a_function_is_evaluated_in_the_task_that_is_named() -> None:
    seen: list[int] = []

    def push(observations: np.ndarray) -> np.ndarray:
        seen.append(len(observations))
        return np.tile([1.0, 0.0], (len(observations), 1))

    counts: list[tuple[int, int]] = []
    evaluation = dmray.evaluate_policy(
        push, "maze2d-open", episodes=3, cohort_size=2, progress=lambda done, total: counts.append((done, total))
    )
    assert counts == [(2, 3), (3, 3)]
    assert set(seen) == {1, 2}
    assert [episode.length for episode in evaluation.episodes] == [OPEN.horizon] * 3


def test_invalid_evaluations_are_errors_before_anything_runs(trial_folders: dict[str, Path]) -> None:
    policy = dmray.load_policy(trial_folders["dm"])
    with pytest.raises(SpecError, match="did you mean 'maze2d-open'"):
        dmray.evaluate_policy(policy, "maze2d-opn")
    with pytest.raises(CheckpointError, match=r"DM of open-expert.*cannot act in hopper, which has 11 and 3"):
        dmray.evaluate_policy(policy, "hopper")
    with pytest.raises(SpecError, match="episodes 0: must be at least 1"):
        dmray.evaluate_policy(policy, episodes=0)
    with pytest.raises(SpecError, match="decode stream:9: takes at most context_length"):
        dmray.evaluate_policy(policy, decode="stream:9")
    with pytest.raises(SpecError, match="needs a task"):
        dmray.evaluate_policy(lambda observations: observations)
    with pytest.raises(SpecError, match=r"returned actions of shape \(2, 4\), but maze2d-open needs \(2, 2\)"):
        dmray.evaluate_policy(lambda observations: observations, "maze2d-open", episodes=2)
    with pytest.raises(SpecError, match="evaluated in this process"):
        dmray.evaluate_policy(lambda observations: observations, "maze2d-open", workers=2)
    with pytest.raises(SpecError, match="decode modes are for policies"):
        dmray.evaluate_policy(lambda observations: observations, "maze2d-open", decode="window")


def test_a_policy_acts_in_another_task_of_its_sizes(trial_folders: dict[str, Path]) -> None:
    policy = dmray.load_policy(trial_folders["dt"])
    request = evaluation_request(policy, "maze2d-umaze")
    assert request.task == TASKS["maze2d-umaze"]
    assert request.target_returns == request.task.target_returns


def test_drawings_are_written_into_the_given_folder(trial_folders: dict[str, Path], tmp_path: Path) -> None:
    paths = dmray.draw_episodes(trial_folders["dt"], 1, into=tmp_path, episodes=2)
    assert [path.parent for path in paths] == [tmp_path / "pictures"] * 2
    assert all(path.stat().st_size > 1000 for path in paths)
