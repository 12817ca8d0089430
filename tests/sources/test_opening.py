from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmray.datasets import write_d4rl_hdf5
from dmray.errors import DatasetError, StorageError
from dmray.rollout import make_engine
from dmray.sources import file_rules, locate, open_dataset, open_file, recorded_file
from dmray.specs import DatasetSpec, Generation
from dmray.tasks import TASKS, Task

OPEN = TASKS["maze2d-open"]


def arrays(task: Task, rows: int = 60, **changes: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    given = {
        "observations": rng.normal(size=(rows, task.observation_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, task.action_dim)).astype(np.float32),
        "rewards": np.zeros(rows, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 20 == 19,
    }
    return given | changes


def file_of(task: Task, folder: Path, **changes: Any) -> Path:
    path = folder / f"{task.name}.hdf5"
    write_d4rl_hdf5(path, arrays(task, **changes), {})
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without data sets."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DMRAY_DATASETS", raising=False)
    monkeypatch.delenv("DMRAY_MIRRORS", raising=False)
    return tmp_path


def test_a_published_file_is_found_in_d4rls_own_folder(home: Path) -> None:
    folder = home / ".d4rl" / "datasets"
    folder.mkdir(parents=True)
    file_of(TASKS["hopper"], folder).rename(folder / "hopper_medium-v2.hdf5")
    opened = open_dataset(DatasetSpec(name="hopper-medium-v2"), TASKS["hopper"], home)
    assert opened.episodes.num_episodes == 3


def test_the_named_folder_comes_before_d4rls_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, own = home / "named", home / ".d4rl" / "datasets"
    for folder in (named, own):
        folder.mkdir(parents=True)
        (folder / "hopper_medium-v2.hdf5").write_bytes(b"")
    monkeypatch.setenv("DMRAY_DATASETS", str(named))
    assert Path(locate(DatasetSpec(name="hopper-medium-v2"), TASKS["hopper"], home)).parent == named


def test_a_missing_file_is_fetched_from_a_mirror_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = home / "mirror"
    mirror.mkdir()
    file_of(TASKS["hopper"], mirror).rename(mirror / "hopper_medium-v2.hdf5")
    monkeypatch.setenv("DMRAY_MIRRORS", mirror.as_uri())
    monkeypatch.setenv("DMRAY_OFFLINE", "0")
    for _ in range(2):
        place = Path(locate(DatasetSpec(name="hopper-medium-v2"), TASKS["hopper"], home))
        assert place == home / ".d4rl" / "datasets" / "hopper_medium-v2.hdf5"
        assert place.is_file()


def test_offline_a_missing_file_is_named_with_where_it_was_looked_for(home: Path) -> None:
    with pytest.raises(DatasetError) as error:
        locate(DatasetSpec(name="hopper-medium-v2"), TASKS["hopper"], home)
    assert "hopper_medium-v2.hdf5" in str(error.value)
    assert ".d4rl/datasets" in str(error.value)


@pytest.mark.parametrize("name", ["maze2d-open", "antmaze-umaze"])
def test_random_episodes_of_a_task_are_recorded_once_and_open(name: str, tmp_path: Path) -> None:
    task = replace(TASKS[name], horizon=30)
    spec = DatasetSpec(name="made", task=name, generate=Generation(behaviour="random", transitions=90))
    opened = open_dataset(spec, task, tmp_path)
    files = [path for path in tmp_path.iterdir() if path.suffix == ".hdf5"]
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    assert open_dataset(spec, task, tmp_path).episodes.fingerprint == opened.episodes.fingerprint
    assert files[0].stat().st_mtime_ns == written
    assert opened.episodes.lengths.tolist() == [30, 30, 30]
    assert opened.task == task


def _fingerprint(path: str, task: Task, cache: str, answers: Any) -> None:
    os.environ["DMRAY_CACHE"] = cache
    answers.put(open_file(Path(path), task).episodes.fingerprint)


def test_processes_that_open_a_file_together_share_one_copy(tmp_path: Path) -> None:
    path, cache = file_of(OPEN, tmp_path), tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=_fingerprint, args=(str(path), OPEN, str(cache), answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert answers.get(timeout=60) == answers.get(timeout=60)
    for worker in workers:
        worker.join()
    assert len([folder for folder in (cache / "arrays").iterdir() if folder.is_dir()]) == 1


def test_arrays_and_recordings_that_are_there_are_read_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DatasetSpec(name="made", task=OPEN.name, generate=Generation(behaviour="random", transitions=90))
    before = open_dataset(spec, OPEN, tmp_path).episodes.fingerprint
    monkeypatch.setattr("dmray.sources.opening.file_lock", None)
    monkeypatch.setattr("dmray.sources.recordings.file_lock", None)
    assert open_dataset(spec, OPEN, tmp_path).episodes.fingerprint == before


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    before = open_file(file_of(OPEN, tmp_path), OPEN).episodes
    after = open_file(file_of(OPEN, tmp_path, rewards=np.ones(60, np.float32)), OPEN).episodes
    assert (before.rewards.sum(), after.rewards.sum()) == (0, 60)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", "/proc/nowhere")
    with pytest.raises(StorageError, match="set DMRAY_CACHE"):
        open_file(file_of(OPEN, tmp_path), OPEN)


@pytest.mark.parametrize(("contact", "dim", "zeros"), [(0.0, 27, 0), (1.0, 111, 84)])
def test_ants_contact_forces_decide_what_the_policy_sees(tmp_path: Path, contact: float, dim: int, zeros: int) -> None:
    ant = TASKS["ant"]
    wide = np.random.default_rng(0).normal(size=(60, 111)).astype(np.float32)
    wide[:, 27:] *= contact
    opened = open_file(file_of(ant, tmp_path, observations=wide), ant)
    assert opened.episodes.observations.shape[1] == opened.task.observation_dim == dim
    assert opened.task.zero_dims == zeros
    assert len(opened.episodes.notes) == 1
    engine = make_engine(opened.task, 1)
    assert engine.reset([0]).shape == (1, dim)
    engine.close()


def test_actions_that_no_policy_can_give_back_are_noted(tmp_path: Path) -> None:
    hopper = TASKS["hopper"]
    within, beyond = (np.full((60, hopper.action_dim), value, np.float32) for value in (1.0000001, 1.0))
    beyond[:7, 1] = -5
    assert open_file(file_of(hopper, tmp_path, actions=within), hopper).episodes.notes == ()
    (note,) = open_file(file_of(hopper, tmp_path, actions=beyond), hopper).episodes.notes
    assert note == "actions: 7 of 60 go beyond ±1, where policies end and simulators clip"


def test_antmaze_files_do_not_split_on_terminals_and_others_do(tmp_path: Path) -> None:
    terminals = np.isin(np.arange(60), [3, 4, 5])
    for name, episodes in (("antmaze-umaze", 3), ("hopper", 6)):
        opened = open_file(file_of(TASKS[name], tmp_path, terminals=terminals), TASKS[name])
        assert opened.episodes.num_episodes == episodes


def test_maze2d_timeouts_split_though_nothing_is_reset(tmp_path: Path) -> None:
    spec = DatasetSpec(name="made", task="maze2d-open", generate=Generation(behaviour="play", transitions=600))
    episodes = open_dataset(spec, OPEN, tmp_path).episodes
    assert episodes.num_episodes > 3
    before, after = episodes.observations[episodes.starts[1:-1] - 1], episodes.observations[episodes.starts[1:-1]]
    assert np.abs(after - before)[:, :2].max() < 0.06, "the point goes on where it was"


@pytest.mark.parametrize("length", [1, 2000])
def test_an_episode_may_be_one_step_or_longer_than_the_horizon(tmp_path: Path, length: int) -> None:
    task = TASKS["hopper"]
    timeouts = np.arange(2000) % length == length - 1
    opened = open_file(file_of(task, tmp_path, rows=2000, timeouts=timeouts), task)
    assert set(opened.episodes.lengths.tolist()) == {length}


def test_files_without_timeouts_are_cut_at_the_horizon(tmp_path: Path) -> None:
    task = replace(TASKS["hopper"], horizon=25)
    given = arrays(task)
    del given["timeouts"]
    write_d4rl_hdf5(tmp_path / "v0.hdf5", given, {})
    assert open_file(tmp_path / "v0.hdf5", task).episodes.lengths.tolist() == [25, 25]


def test_medium_expert_keeps_the_order_of_its_file(tmp_path: Path) -> None:
    task = TASKS["hopper"]
    rewards = np.repeat([1.0, 2.0, 5.0], 20).astype(np.float32)
    opened = open_file(file_of(task, tmp_path, rewards=rewards), task)
    assert opened.episodes.returns().tolist() == [20, 40, 100]


@pytest.mark.parametrize("name", ["kitchen-complete", "kitchen-partial", "kitchen-mixed"])
def test_kitchen_files_are_paid_once_for_each_of_the_tasks_elements(name: str) -> None:
    rules = file_rules(TASKS[name])
    names = {"kitchen-mixed": ["microwave", "kettle", "bottom burner", "light switch"]}
    expected = names.get(name, ["microwave", "kettle", "light switch", "slide cabinet"])
    assert sorted(subtask.name for subtask in rules.pay_once) == sorted(expected)
    assert max(column for subtask in rules.pay_once for column in subtask.columns) < 30


def test_only_kitchen_is_paid_once() -> None:
    assert [name for name, task in TASKS.items() if file_rules(task).pay_once] == [
        "kitchen-complete",
        "kitchen-partial",
        "kitchen-mixed",
    ]


def test_recordings_of_two_tasks_are_two_files(tmp_path: Path) -> None:
    made = Generation(behaviour="expert", transitions=150)
    assert recorded_file(made, OPEN, tmp_path) != recorded_file(made, TASKS["maze2d-umaze"], tmp_path)
