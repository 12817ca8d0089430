from __future__ import annotations

import mmap
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dmray.datasets import write_d4rl_hdf5
from dmray.downloads import verify
from dmray.errors import DatasetError, StorageError
from dmray.rollout import make_engine
from dmray.sources import content as content_module
from dmray.sources import file_rules, locate, open_dataset, open_file, recorded_file
from dmray.sources import opening as opening_module
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


def write_plain(path: Path, given: dict[str, np.ndarray]) -> None:
    """Not compressed: other values have the same size."""
    with h5py.File(path, "w") as file:
        for name, array in given.items():
            file[name] = array


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


@pytest.mark.parametrize("place", ["/proc/nowhere", "{file}/below", "~nobody-of-that-name/cache"])
def test_without_a_folder_for_a_cache_arrays_are_read_into_memory_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    path = file_of(OPEN, tmp_path)
    expected = open_file(path, OPEN).episodes.fingerprint
    monkeypatch.setenv("DMRAY_CACHE", place.format(file=path))
    with caplog.at_level("WARNING"):
        episodes = open_file(path, OPEN).episodes
    assert episodes.fingerprint == expected
    assert not isinstance(episodes.rewards.base, np.memmap)
    (message,) = caplog.messages
    assert "Each process reads" in message
    assert "set DMRAY_CACHE to a folder that can be written" in message


def test_a_cache_on_a_full_disk_is_said_with_the_folder_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(OPEN, tmp_path)
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "cache"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("dmray.space.shutil.disk_usage", lambda path: usage._replace(total=10**6, free=20_100))
    with pytest.raises(StorageError, match=rf"^{tmp_path}/cache/arrays.*observations of .* needs .* set DMRAY_CACHE"):
        open_file(path, OPEN)


def test_a_file_is_read_without_writing_beside_it(tmp_path: Path) -> None:
    path = file_of(OPEN, tmp_path)
    for cached in (True, False):
        open_file(path, OPEN, cached=cached)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def aged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file's times be so old that its digest is remembered: move the clock, since nothing can move ctime."""
    now_ns = path.stat().st_ctime_ns + 3600 * 10**9
    monkeypatch.setattr("dmray.sources.content.time.time_ns", lambda: now_ns)


def rewards_times_ten(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["rewards"][...] = file["rewards"][...] * 10


def restored(path: Path, change: Callable[[Path], None]) -> None:
    """Change the file and give it its times back, as `cp -p`, `rsync -t` and backups do."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("way", ["in place", "replaced", "moved over", "mapped", "link"])
def test_a_change_with_the_old_size_and_time_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, old: bool
) -> None:
    rewards = np.linspace(1, 2, 60, dtype=np.float32)
    path = file_of(OPEN, tmp_path, rewards=rewards)
    write_plain(path, arrays(OPEN, rewards=rewards))
    other = tmp_path / "other"
    shutil.copy(path, other)
    rewards_times_ten(other)
    assert path.stat().st_size == other.stat().st_size
    if way == "link":
        path.rename(tmp_path / "first")
        path.symlink_to("first")
    if old:
        aged(path, monkeypatch)
    before = open_file(path, OPEN).episodes
    assert before.rewards.sum() == pytest.approx(rewards.sum())

    def change(path: Path) -> None:
        if way == "in place":
            rewards_times_ten(path)
        elif way == "replaced":
            path.write_bytes(other.read_bytes())
        elif way == "moved over":
            other.rename(path)
        elif way == "mapped":
            content = other.read_bytes()
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
                pages[:] = content
        else:
            os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            path.unlink()
            path.symlink_to("other")

    restored(path, change)
    if old:
        aged(path, monkeypatch)
    after = open_file(path, OPEN).episodes
    assert after.rewards.sum() == pytest.approx(10 * rewards.sum())
    assert after.fingerprint != before.fingerprint


def test_an_old_file_is_hashed_once_and_its_copy_shares_its_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "cache"))
    path, hashed = file_of(OPEN, tmp_path), []
    digest = content_module._digest
    monkeypatch.setattr(content_module, "_digest", lambda files: hashed.append(files) or digest(files))
    aged(path, monkeypatch)
    for _ in range(3):
        open_file(path, OPEN)
    assert len(hashed) == 1
    copy = tmp_path / "elsewhere" / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    open_file(copy, OPEN)
    assert len(hashed) == 2
    folders = [folder for folder in (tmp_path / "cache" / "arrays").iterdir() if folder.is_dir()]
    assert len(folders) == 1


@pytest.mark.parametrize("kind", ["fuse.sshfs", "9p", "cifs", "vfat"])
def test_file_systems_without_a_ctime_of_their_own_are_hashed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = file_of(OPEN, tmp_path)
    aged(path, monkeypatch)
    device = path.stat().st_dev
    monkeypatch.setattr(content_module, "_file_systems", lambda: {f"{os.major(device)}:{os.minor(device)}": kind})
    assert not content_module._lasting([path], content_module.facts_of([path]))


def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(OPEN, tmp_path)
    read = opening_module.read_d4rl_hdf5

    def meanwhile(path: Path, *rest: Any) -> Any:
        restored(path, rewards_times_ten)
        return read(path, *rest)

    write_plain(path, arrays(OPEN, rewards=np.ones(60, np.float32)))
    monkeypatch.setattr(opening_module, "read_d4rl_hdf5", meanwhile)
    with pytest.raises(DatasetError, match="changed while it was read; wait until it is written"):
        open_file(path, OPEN)


def test_a_fetched_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    path = file_of(OPEN, tmp_path)
    verify(path.name, tmp_path)
    open_file(path, OPEN)
    restored(path, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"))
    with pytest.raises(DatasetError, match="is pinned in"):
        open_file(path, OPEN)


def test_arrays_that_another_version_of_the_reader_read_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "cache"))
    path = file_of(OPEN, tmp_path)
    for version in ("old", "new"):
        monkeypatch.setattr(opening_module, "_reader", lambda version=version: version)
        open_file(path, OPEN)
    assert len([folder for folder in (tmp_path / "cache" / "arrays").iterdir() if folder.is_dir()]) == 2


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


def test_a_recording_that_has_no_room_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Generation(behaviour="random", transitions=10**9)
    monkeypatch.setattr("dmray.space.free_bytes", lambda path: 2**30)
    with pytest.raises(StorageError, match=r"recording of 1,000,000,000 transitions of maze2d-open needs .* GiB"):
        recorded_file(made, OPEN, tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from dmray.errors import StorageError
from dmray.sources import recorded_file
from dmray.specs import Generation
from dmray.tasks import TASKS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    recorded_file(Generation(behaviour="random", transitions=900), TASKS["maze2d-open"], Path(sys.argv[1]))
except StorageError as error:
    print(error)
"""


def test_a_disk_that_fills_while_a_recording_is_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written (File too large); free some space, or choose a folder on another disk" in done.stdout
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_without_a_home_folder_published_files_are_looked_for_in_the_named_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("DMRAY_DATASETS", raising=False)
    with pytest.raises(StorageError, match=r"hopper-medium-v2: there is no home folder .* DMRAY_DATASETS"):
        locate(DatasetSpec(name="hopper-medium-v2"), TASKS["hopper"], tmp_path)
    monkeypatch.setenv("DMRAY_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match="DMRAY_OFFLINE"):
        locate(DatasetSpec(name="hopper-medium-v2"), TASKS["hopper"], tmp_path)
    monkeypatch.setenv("DMRAY_DATASETS", "~nobody-of-that-name/data")
    with pytest.raises(StorageError, match=r"^DMRAY_DATASETS=~nobody-of-that-name/data: .* write the whole path"):
        locate(DatasetSpec(name="hopper-medium-v2"), TASKS["hopper"], tmp_path)


def test_a_part_of_a_data_set_is_mapped_and_apart_from_the_whole(tmp_path: Path) -> None:
    file = tmp_path / "mine.hdf5"
    with h5py.File(file, "w") as stored:
        for name, values in arrays(OPEN, rows=200).items():
            stored[name] = values
    dataset = DatasetSpec(name="mine", task="maze2d-open", path=str(file))
    whole = open_dataset(dataset, OPEN, tmp_path).episodes
    part = open_dataset(dataset.model_copy(update={"fraction": 0.5}), OPEN, tmp_path).episodes
    again = open_dataset(dataset.model_copy(update={"fraction": 0.5}), OPEN, tmp_path).episodes
    assert (whole.num_episodes, part.num_episodes) == (10, 5)
    assert part.fingerprint == again.fingerprint != whole.fingerprint
    assert isinstance(part.observations.base, np.memmap | mmap.mmap)
    assert any(note.startswith("fraction 0.5: 5 of 10 episodes") for note in part.notes)
