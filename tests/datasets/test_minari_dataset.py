from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector.episode_buffer import EpisodeBuffer

from dmray.datasets import FileRules
from dmray.datasets.minari_dataset import MinariFacts, download_minari, minari_facts, read_minari
from dmray.errors import DatasetError

NAME = "mujoco/hopper/expert-v0"
HOPPER = FileRules(observation_dim=11, action_dim=3, horizon=1000)
SMALL = FileRules(observation_dim=3, action_dim=2, horizon=1000)
SPACES = {"observation_space": Box(-np.inf, np.inf, (3,)), "action_space": Box(-1, 1, (2,))}
CREDITS = dict.fromkeys(("algorithm_name", "author", "author_email", "code_permalink", "description"), "a test")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def no_network(dataset_id: str) -> None:
        raise AssertionError(f"the network was asked for {dataset_id}")

    monkeypatch.setattr(minari, "download_dataset", no_network)
    return tmp_path


def store(episodes: list[EpisodeBuffer], name: str = NAME, **metadata: Any) -> None:
    given: dict[str, Any] = {"env": "Hopper-v5", "eval_env": "Hopper-v5", **CREDITS, **metadata}
    minari.create_dataset_from_buffers(name, episodes, **given)


def small_episode(steps: int, seed: int = 0, **change: Any) -> EpisodeBuffer:
    """An episode that ends by truncation, every number of it different."""
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {
        "observations": rng.normal(size=(steps + 1, 3)),
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": rng.normal(size=steps),
        "terminations": np.zeros(steps, dtype=bool),
        "truncations": np.arange(1, steps + 1) == steps,
    }
    return EpisodeBuffer(**(given | change))


def stored(*steps: int) -> list[EpisodeBuffer]:
    """Small episodes of those lengths, put on disk."""
    episodes = [small_episode(count, seed) for seed, count in enumerate(steps)]
    store(episodes, **SPACES)
    return episodes


def hopper_episodes(count: int, most_steps: int) -> Iterator[EpisodeBuffer]:
    """What minari's DataCollector would note of random actions (it needs jax, so it is done by hand)."""
    environment = gymnasium.make("Hopper-v5", max_episode_steps=most_steps)
    environment.action_space.seed(0)
    for seed in range(count):
        observations, actions, rewards = [environment.reset(seed=seed)[0]], [], []
        terminations, truncations = [False], [False]
        while not (terminations[-1] or truncations[-1]):
            actions.append(environment.action_space.sample())
            observation, reward, terminated, truncated, _ = environment.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
        yield EpisodeBuffer(
            observations=observations,
            actions=actions,
            rewards=rewards,
            terminations=terminations[1:],
            truncations=truncations[1:],
        )
    environment.close()


def change_metadata(root: Path, **change: Any) -> None:
    file = root / NAME / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_what_was_collected_in_hopper_is_read() -> None:
    collected = list(hopper_episodes(count=6, most_steps=30))
    store(collected)
    episodes = read_minari(NAME, HOPPER)
    lengths = [len(episode.rewards) for episode in collected]
    assert {bool(episode.terminations[-1]) for episode in collected} == {True, False}, "falls and time limits"
    assert episodes.starts.tolist() == [0, *np.cumsum(lengths)]
    for name in ("observations", "actions", "rewards"):
        parts = [np.asarray(getattr(episode, name))[: len(episode.rewards)] for episode in collected]
        np.testing.assert_array_equal(getattr(episodes, name), np.concatenate(parts).astype(np.float32))
        assert getattr(episodes, name).dtype == np.float32


@pytest.mark.parametrize(
    ("terminated", "truncated", "split", "starts"),
    [
        ((), (), True, [0, 5, 9]),  # no flag at all: as it is stored
        ((1,), (), True, [0, 2, 5, 9]),  # a flag before the stored end ends an episode too
        ((1,), (), False, [0, 5, 9]),
        ((), (2,), False, [0, 3, 5, 9]),
        ((4,), (4,), True, [0, 5, 9]),
    ],
)
def test_flags_and_stored_ends_end_episodes(
    terminated: tuple[int, ...], truncated: tuple[int, ...], split: bool, starts: list[int]
) -> None:
    steps = np.arange(5)
    first = small_episode(5, terminations=np.isin(steps, terminated), truncations=np.isin(steps, truncated))
    store([first, small_episode(4, seed=1)], **SPACES)
    assert read_minari(NAME, FileRules(3, 2, 1000, split_on_terminals=split)).starts.tolist() == starts


def test_facts_are_the_metadatas() -> None:
    store([small_episode(4)], **SPACES, ref_min_score=-20.5, ref_max_score=3234)
    assert minari_facts(NAME) == MinariFacts(NAME, "Hopper-v5", 3, 2, 1000, -20.5, 3234.0)
    score = minari.get_normalized_score(minari.load_dataset(NAME), np.array(1000.0))
    assert score == (1000 - -20.5) / (3234 - -20.5)


@pytest.mark.filterwarnings("ignore:(`eval_env` is set to None|env_spec is None):UserWarning")
def test_facts_that_the_metadata_lack_are_none() -> None:
    store([small_episode(4)], **SPACES, env=None, eval_env=None)
    assert minari_facts(NAME) == MinariFacts(NAME, None, 3, 2, None, None, None)


def test_arrays_come_from_the_caller() -> None:
    stored(3, 4)
    given = {}

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        given[name] = np.empty(shape, dtype=np.float32)
        return given[name]

    episodes = read_minari(NAME, SMALL, allocate)
    assert {name: array.shape for name, array in given.items()} == {
        "observations": (7, 3), "actions": (7, 2), "rewards": (7,)
    }  # fmt: skip
    assert all(getattr(episodes, name) is array for name, array in given.items())


def test_memory_stays_close_to_the_size_of_the_arrays() -> None:
    stored(*[500] * 40)
    minari_facts(NAME)  # modules loaded
    tracemalloc.start()
    episodes = read_minari(NAME, SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * (episodes.observations.nbytes + episodes.actions.nbytes + episodes.rewards.nbytes)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (FileRules(4, 2, 1000), "observations have 3 numbers a row, the task has 4"),
        (FileRules(3, 1, 1000), "actions have 2 numbers a row, the task has 1"),
    ],
)
def test_another_tasks_data_set_is_refused(rules: FileRules, message: str) -> None:
    stored(4)
    with pytest.raises(DatasetError, match=f"^{NAME}: {message}"):
        read_minari(NAME, rules)


@pytest.mark.parametrize(
    ("name", "array", "found", "wanted"),
    [
        ("observations", np.zeros((4, 3)), "4x3", "5x3"),  # as many as actions
        ("observations", np.zeros((6, 3)), "6x3", "5x3"),
        ("observations", np.zeros((5, 4)), "5x4", "5x3"),  # not as the metadata say
        ("actions", np.zeros((5, 2)), "5x2", "4x2"),
        ("rewards", np.zeros((4, 1)), "4x1", "4"),
        ("terminations", np.zeros(3, dtype=bool), "3", "4"),
        ("truncations", np.zeros(5, dtype=bool), "5", "4"),
    ],
)
def test_an_episode_of_the_wrong_shape_is_named(name: str, array: np.ndarray, found: str, wanted: str) -> None:
    store([small_episode(2), small_episode(4, **{name: array})], **SPACES)
    with pytest.raises(DatasetError, match=f"^{NAME}: episode 1: {name} are {found}, not {wanted};"):
        read_minari(NAME, SMALL)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_a_value_that_is_not_finite_in_float32_is_named(name: str, value: float) -> None:
    array = np.array(getattr(small_episode(4), name), dtype=np.float64)
    array.reshape(len(array), -1)[2, -1] = value
    store([small_episode(3), small_episode(4, **{name: array})], **SPACES)
    with pytest.raises(DatasetError, match=f"^{NAME}: episode 1: {name} row 2 is not finite"):
        read_minari(NAME, SMALL)


def test_the_observation_after_the_last_action_is_not_looked_at() -> None:
    observations = np.vstack([np.ones((4, 3)), np.full((1, 3), np.nan)])
    store([small_episode(4, observations=observations)], **SPACES)
    np.testing.assert_array_equal(read_minari(NAME, SMALL).observations, np.ones((4, 3)))


def test_goal_conditioned_observations_are_refused_with_the_reason() -> None:
    parts = ("observation", "achieved_goal", "desired_goal")
    goals = Dict({name: Box(-np.inf, np.inf, (3,)) for name in parts})
    episode = small_episode(4, observations={name: np.zeros((5, 3), dtype=np.float32) for name in parts})
    store([episode], **SPACES | {"observation_space": goals})
    for read in (minari_facts, lambda name: read_minari(name, SMALL)):
        with pytest.raises(DatasetError, match=r"observations are a Dict \(.*desired_goal.*\).*another protocol"):
            read(NAME)


def test_actions_that_are_not_numbers_in_a_row_are_refused() -> None:
    store([small_episode(4, actions=np.zeros(4, dtype=np.int64))], **SPACES | {"action_space": Discrete(2)})
    with pytest.raises(DatasetError, match="actions are Discrete;"):
        read_minari(NAME, SMALL)


def test_a_missing_data_set_is_told_with_the_nearest_one(root: Path) -> None:
    with pytest.raises(DatasetError, match="there are: none"):
        read_minari(NAME, SMALL)
    stored(3)
    with pytest.raises(DatasetError) as error:
        minari_facts("mujoco/hoper/expert-v0")
    for part in (str(root), f"did you mean '{NAME}'?", "minari download mujoco/hoper", "MINARI_DATASETS_PATH"):
        assert part in str(error.value)


def test_missing_minari_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    for call in (minari_facts, download_minari, lambda name: read_minari(name, SMALL)):
        with pytest.raises(DatasetError, match=r'pip install "minari\[hdf5\]"'):
            call(NAME)


def test_importing_the_reader_does_not_import_minari() -> None:
    code = "import sys, dmray.datasets.minari_dataset; print('minari' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_file_is_named(root: Path, size: int) -> None:
    stored(200, 200)
    file = root / NAME / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DatasetError, match=f"^{NAME}: .*remove {root / NAME} and fetch it again"):
        read_minari(NAME, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 8}, "metadata say 8 steps, its episodes hold 7"),
        ({"total_steps": 6}, "episode 1 has 4 steps, by its metadata 1 to 3 are left"),
        ({"total_steps": 0}, "holds no episode"),
        ({"total_episodes": 3}, "its metadata say 3 episodes, its file holds 2"),
        ({"minari_version": "9.0.0"}, "does not support the dataset generated by Minari 9.0.0"),
    ],
)
def test_metadata_that_the_file_does_not_keep_are_refused(root: Path, change: dict[str, Any], message: str) -> None:
    stored(3, 4)
    change_metadata(root, **change)
    with pytest.raises(DatasetError, match=message):
        read_minari(NAME, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 10**11}, r"its metadata say 600,000,000,000 numbers \(2.4e\+03 GB\), its files hold"),
        ({"total_steps": -1}, "metadata.json: total_steps is -1, not a number from 0 to"),
        ({"total_steps": 7.0}, "metadata.json: total_steps is 7.0, not a number"),
        ({"total_steps": True}, "metadata.json: total_steps is True"),
        ({"total_episodes": "2"}, "metadata.json: total_episodes is '2'"),
        ({"total_episodes": 10**12}, "metadata.json: total_episodes is 1000000000000"),
        ({"total_episodes": 1}, "its metadata say 1 episodes, its file holds 2"),
        ({"observation_space": None}, "metadata.json: observation_space is None, not text"),
        ({"observation_space": "{"}, "metadata.json: observation_space is not JSON"),
        ({"observation_space": "[]"}, r"metadata.json: observation_space is \[\], not a JSON object"),
        ({"action_space": '{"type": "Box", "shape": ["2"]}'}, "its actions have '2' numbers a row"),
        ({"action_space": '{"type": "Box", "shape": [1000000000]}'}, "its actions have 1000000000 numbers a row"),
        ({"action_space": '{"type": "Box", "shape": [2]}'}, "KeyError: 'dtype'"),
        ({"env_spec": 5}, "metadata.json: env_spec is 5, not text"),
        ({"env_spec": "{}"}, "remove .* and fetch it again"),
        ({"ref_min_score": "low"}, "metadata.json: ref_min_score is 'low', not a finite number"),
        ({"ref_min_score": 3.0, "ref_max_score": 3.0}, "ref_min_score 3 is not below ref_max_score 3"),
        ({"data_format": "zip"}, "remove .* and fetch it again"),
        ({"data_format": ["hdf5"]}, r"metadata.json: data_format is \['hdf5'\], not text"),
        ({"minari_version": None}, "remove .* and fetch it again"),
    ],
)
def test_metadata_of_another_type_or_size_are_refused(root: Path, change: dict[str, Any], message: str) -> None:
    stored(3, 4)
    change_metadata(root, **change)
    with pytest.raises(DatasetError, match=f"^{NAME}: .*{message}|^{NAME}: {message}") as error:
        read_minari(NAME, SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"total', b"\xff\xfe", b"[" * 100_000])
def test_metadata_that_are_no_json_object_are_refused(root: Path, content: bytes) -> None:
    stored(3)
    (root / NAME / "data" / "metadata.json").write_bytes(content)
    with pytest.raises(DatasetError, match=f"^{NAME}: metadata.json: is .*remove {root / NAME} and fetch it again"):
        read_minari(NAME, SMALL)


def test_an_environment_that_metadata_name_is_not_made(root: Path) -> None:
    stored(3)
    file = root / NAME / "data" / "metadata.json"
    given = json.loads(file.read_text())
    del given["observation_space"]
    file.write_text(json.dumps(given | {"env_spec": '{"id": "X-v0", "entry_point": "antigravity:fly"}'}))
    with pytest.raises(DatasetError, match="observation_space is missing"):
        minari_facts(NAME)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a//b-v0", "a\0b-v0", "a/.hidden/b-v0", "~/x"])
def test_an_id_does_not_leave_the_folder_of_data_sets(root: Path, name: str) -> None:
    (root.parent / "x" / "data").mkdir(parents=True, exist_ok=True)
    for call in (minari_facts, download_minari, lambda name: read_minari(name, SMALL)):
        with pytest.raises(DatasetError, match="an id is made of names and '/'"):
            call(name)


def change_file(root: Path, name: str, put: Callable[[h5py.File, str], Any]) -> None:
    with h5py.File(root / NAME / "data" / "main_data.hdf5", "r+") as file:
        del file[name]
        put(file, name)


def _link(file: h5py.File, name: str) -> None:
    file[name] = h5py.ExternalLink("/etc/passwd", "/x")


@pytest.mark.parametrize(
    ("name", "put", "message"),
    [
        ("episode_1/rewards", _link, "episode_1/rewards is a link to another file"),
        ("episode_1", _link, "episode_1/observations is a link to another file"),
        (
            "episode_1/rewards",
            lambda file, name: file.create_dataset(name, (4,), "u1", external=[("/etc/passwd", 0, 4)]),
            "episode_1/rewards lies in another file",
        ),
        ("episode_1/rewards", lambda file, name: None, "episode 1: no array 'rewards'"),
        ("episode_1/rewards", lambda file, name: file.create_group(name), "episode_1/rewards is a group"),
        (
            "episode_1/rewards",
            lambda file, name: file.create_dataset(name, data=1.0),
            "episode 1: rewards are a single value",
        ),
        (
            "episode_1/rewards",
            lambda file, name: file.create_dataset(name, (4,), "S3"),
            "episode 1: rewards must be numbers, but they are text",
        ),
        (
            "episode_1/observations",
            lambda file, name: file.create_dataset(name, (5, 3), "c8"),
            "episode 1: observations must be numbers, but they are complex",
        ),
        (
            "episode_1/terminations",
            lambda file, name: file.create_dataset(name, data=[0.0, np.nan, 0.0, 0.0]),
            "episode 1: terminations row 1 is nan, not 0 or 1",
        ),
        (
            "episode_1/truncations",
            lambda file, name: file.create_dataset(name, (4,), h5py.string_dtype()),
            "episode 1: truncations must be 0 or 1, but they are text",
        ),
        (
            "episode_1/actions",
            lambda file, name: file.create_dataset(name, (4, 2), "f4"),
            "episode_1/actions declares 4 rows .*, but no row was ever written",
        ),
    ],
)
def test_episodes_pass_the_checks_of_all_hdf5_files(
    root: Path, name: str, put: Callable[[h5py.File, str], Any], message: str
) -> None:
    stored(3, 4)
    change_file(root, name, put)
    with pytest.raises(DatasetError, match=f"^{NAME}: .*{message}|^{NAME}: {message}") as error:
        read_minari(NAME, SMALL)
    assert "\n" not in str(error.value)


def test_episodes_in_other_formats_pass_the_same_checks_of_values(root: Path) -> None:
    flags = np.array([0.0, 0.5, 0.0, 0.0])
    observations = np.ones((5, 3), np.float32)
    for change in ({}, {"truncations": flags}):
        shutil.rmtree(root / NAME, ignore_errors=True)
        store([small_episode(4, observations=observations, **change)] * 2, **SPACES, data_format="arrow")
        if not change:
            assert read_minari(NAME, SMALL).num_transitions == 8
    with pytest.raises(DatasetError, match=f"^{NAME}: episode 0: truncations row 1 is 0.5, not 0 or 1"):
        read_minari(NAME, SMALL)


def test_episodes_that_are_split_are_noted() -> None:
    ends = np.arange(5) == 2
    store([small_episode(5, truncations=ends), small_episode(4, seed=1)], **SPACES)
    assert read_minari(NAME, SMALL).notes == ("episodes: 1 have an end before their last step, and are split there",)


def test_a_data_set_that_is_there_is_not_downloaded_again() -> None:
    stored(3)
    download_minari(NAME)  # the network is a failing test here


def test_reading_a_data_set_that_is_there_writes_nothing_beside_it(root: Path) -> None:
    store([small_episode(4)])
    before = sorted(path.name for path in root.iterdir())
    download_minari(NAME)
    assert sorted(path.name for path in root.iterdir()) == before


def test_a_data_set_whose_lock_cannot_be_written_is_read_without_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store([small_episode(4)])
    (root / ".dmray-download.lock").touch()
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith(".lock"))  # a read-only file system
    monkeypatch.setattr("dmray.datasets.minari_dataset.file_lock", None)
    download_minari(NAME)


def test_a_download_that_broke_off_is_told_with_its_folder(root: Path) -> None:
    stored(3)
    (root / NAME / "data" / "main_data.hdf5").unlink()
    with pytest.raises(DatasetError, match=f"remove {root / NAME} and fetch it again"):
        download_minari(NAME)


def test_processes_that_start_together_download_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(3)
    shutil.move(root / NAME, root / "server")
    asked = []

    def download(dataset_id: str) -> None:
        asked.append(dataset_id)
        (root / dataset_id).mkdir()
        time.sleep(0.2)  # half there
        shutil.copytree(root / "server", root / dataset_id, dirs_exist_ok=True)

    monkeypatch.setattr(minari, "download_dataset", download)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(download_minari, [NAME] * 3))
    assert asked == [NAME]
    assert read_minari(NAME, SMALL).num_transitions == 3


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ConnectionError("no route to host"), r"ConnectionError: no route to host.*MINARI_DATASETS_PATH"),
        (ValueError("Couldn't find any version"), "ValueError: Couldn't find any version"),
        (ImportError("huggingface_hub is not installed"), r'pip install "minari\[hdf5,hf\]"'),
    ],
)
def test_a_download_that_fails_is_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    def download(dataset_id: str) -> None:
        raise failure

    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(DatasetError, match=message):
        download_minari(NAME)
