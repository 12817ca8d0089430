from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from dmray.errors import DatasetError
from dmray.rollout import replay_errors
from dmray.sources import open_dataset
from dmray.specs import DatasetSpec
from dmray.tasks import TASKS

TASK = TASKS["minari-hopper"]
SPEC = DatasetSpec(name="mine", task="minari-hopper", path="minari://mine/hopper/test-v0")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def collect(env_id: str = "Hopper-v5", episodes: int = 3, **metadata: Any) -> None:
    """Random episodes, stored as `mine/hopper/test-v0`."""
    environment = gymnasium.make(env_id)
    buffers = [_episode(environment, seed) for seed in range(episodes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # minari would like to know author, code and more
        minari.create_dataset_from_buffers("mine/hopper/test-v0", buffers, env=environment, **metadata)
    environment.close()


def _episode(environment: Any, seed: int) -> EpisodeBuffer:
    rng, observations = np.random.default_rng(seed), [environment.reset(seed=seed)[0]]
    actions, rewards, terminations = [], [], [False]
    while not terminations[-1] and len(actions) < 30:
        actions.append(rng.uniform(-1, 1, environment.action_space.shape).astype(np.float32))
        observation, reward, terminated, *_ = environment.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        terminations.append(terminated)
    ends = [False] * (len(actions) - 1) + [not terminations[-1]]
    return EpisodeBuffer(
        observations=np.array(observations),
        actions=np.array(actions),
        rewards=rewards,
        terminations=terminations[1:],
        truncations=ends,
    )


def test_a_minari_data_set_is_opened_with_its_own_reference_scores(tmp_path: Path) -> None:
    collect(ref_min_score=10.0, ref_max_score=110.0)
    opened = open_dataset(SPEC, TASK, tmp_path)
    assert opened.episodes.num_episodes == 3
    assert opened.task.reference.normalize(60.0) == 50.0
    assert "mine/hopper/test-v0" in opened.task.reference.source
    assert opened.task.protocol == "minari"


def test_without_reference_scores_the_scale_is_ours_and_says_so(tmp_path: Path) -> None:
    collect()
    reference = open_dataset(SPEC, TASK, tmp_path).task.reference
    assert reference == TASK.reference
    assert "dmray" in reference.source


def test_its_actions_replay_in_the_tasks_simulator(tmp_path: Path) -> None:
    collect(episodes=5)
    opened = open_dataset(SPEC, TASK, tmp_path)
    assert np.median(replay_errors(opened.task, opened.episodes, steps=8)[:, -1]) < 1e-3


def test_another_environments_data_set_is_refused(tmp_path: Path) -> None:
    collect("InvertedPendulum-v5")
    with pytest.raises(DatasetError, match=r"recorded in InvertedPendulum-v5, but .* in Hopper-v5"):
        open_dataset(SPEC, TASK, tmp_path)


def test_a_data_set_that_is_collected_anew_is_read_anew(tmp_path: Path) -> None:
    collect(episodes=2)
    assert open_dataset(SPEC, TASK, tmp_path).episodes.num_episodes == 2
    minari.delete_dataset("mine/hopper/test-v0")
    collect(episodes=4)
    assert open_dataset(SPEC, TASK, tmp_path).episodes.num_episodes == 4


def test_a_data_set_that_is_changed_in_place_is_read_anew_though_its_times_are_restored(tmp_path: Path) -> None:
    collect(episodes=2)
    before = open_dataset(SPEC, TASK, tmp_path).episodes
    file = tmp_path / "mine" / "hopper" / "test-v0" / "data" / "main_data.hdf5"
    times = file.stat()
    with h5py.File(file, "r+") as content:
        content["episode_0/rewards"][...] += 1
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = open_dataset(SPEC, TASK, tmp_path).episodes
    assert after.returns()[0] == pytest.approx(before.returns()[0] + before.lengths[0], rel=1e-5)


def test_a_folder_of_minari_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/proc/nowhere/data")
    with pytest.raises(DatasetError, match="name a folder that can be written in MINARI_DATASETS_PATH"):
        open_dataset(SPEC, TASK, tmp_path)
