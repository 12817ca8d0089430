from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmray.datasets import (
    Episodes,
    FileRules,
    WindowSampler,
    find_mapped,
    in_available_memory,
    read_d4rl_hdf5,
    write_d4rl_hdf5,
    write_mapped,
)
from dmray.datasets.checked_rows import Allocate
from dmray.errors import DatasetError, StorageError
from dmray.fields import Field, Token

RULES = FileRules(observation_dim=3, action_dim=2, horizon=5)
ROWS = 23  # the last three are of an unfinished episode


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(ROWS, 3)),
        "actions": rng.normal(size=(ROWS, 2)).astype(np.float32),
        "rewards": rng.normal(size=(ROWS, 1)),
        "terminals": np.zeros(ROWS, np.int8),
        "timeouts": np.arange(ROWS) % 5 == 4,
    }
    write_d4rl_hdf5(tmp_path / "data.hdf5", arrays, {})
    return tmp_path / "data.hdf5"


def opened(file: Path, folder: Path) -> Episodes:
    found = find_mapped(folder)
    return found or write_mapped(folder, lambda allocate: read_d4rl_hdf5(file, RULES, allocate), "data.hdf5")


def test_mapped_episodes_are_the_files_own(file: Path, tmp_path: Path) -> None:
    plain = read_d4rl_hdf5(file, RULES)
    for _ in range(2):  # written, then found
        again = opened(file, tmp_path / "arrays")
        assert again.fingerprint == plain.fingerprint
        assert again.starts.tolist() == [0, 5, 10, 15, 20]


def test_a_second_opening_reads_nothing_but_the_arrays(file: Path, tmp_path: Path) -> None:
    opened(file, tmp_path / "arrays")
    file.unlink()
    assert opened(file, tmp_path / "arrays").num_transitions == 20


def test_arrays_stay_in_their_files_and_training_takes_them_as_they_are(file: Path, tmp_path: Path) -> None:
    opened(file, tmp_path / "arrays")
    episodes = opened(file, tmp_path / "arrays")
    for array in (episodes.observations, episodes.actions, episodes.rewards):
        assert isinstance(array.base, np.memmap)
    tokens = [Token(Field.STATE), Token(Field.ACTION)]
    sampler = WindowSampler(episodes, tokens, context_length=2, batch_size=4)
    for field, array in ((Field.STATE, episodes.observations), (Field.ACTION, episodes.actions)):
        assert np.shares_memory(sampler._fields[field].numpy(), array)


def test_a_reader_that_fails_or_is_killed_leaves_nothing_that_is_taken_for_data(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "arrays"

    def broken(allocate: Allocate) -> Episodes:
        allocate("observations", (ROWS, 3))
        raise DatasetError("the file is broken")

    with pytest.raises(DatasetError, match="the file is broken"):
        write_mapped(folder, broken, "data.hdf5")
    assert not folder.exists()
    killed = f"""
import os, signal
from pathlib import Path
from dmray.datasets import write_mapped
def read(allocate):
    allocate("observations", (5, 3))[:] = 1
    os.kill(os.getpid(), signal.SIGKILL)
write_mapped(Path({str(folder)!r}), read, 'data.hdf5')
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    assert not folder.exists()
    assert opened(file, folder).num_transitions == 20


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "not json"])
def test_arrays_that_are_not_as_they_were_written_are_not_used(file: Path, tmp_path: Path, damage: str) -> None:
    opened(file, tmp_path / "arrays")
    rewards, about = tmp_path / "arrays" / "rewards.npy", tmp_path / "arrays" / "about.json"
    content = rewards.read_bytes()
    if damage == "cut":  # to read a mapped page behind the end would kill the process
        os.truncate(rewards, 1)
    elif damage == "changed":
        rewards.write_bytes(content[:130] + bytes([content[130] ^ 1]) + content[131:])
    elif damage == "gone":
        rewards.unlink()
    else:
        about.write_text("[]")
    assert find_mapped(tmp_path / "arrays") is None
    assert opened(file, tmp_path / "arrays").fingerprint == read_d4rl_hdf5(file, RULES).fingerprint


def test_a_disk_without_room_is_said_before_the_first_byte(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("dmray.space.shutil.disk_usage", lambda path: usage._replace(total=10**6, free=20_100))
    with pytest.raises(StorageError, match=r"observations of data.hdf5, 23x3 numbers, needs 276 bytes, .* DMRAY_CACHE"):
        opened(file, tmp_path / "arrays")
    assert not (tmp_path / "arrays").exists()


def test_a_disk_that_cannot_reserve_the_place_of_an_array_is_said(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"No space left on device\); free some space, or set DMRAY_CACHE"):
        opened(file, tmp_path / "arrays")
    assert [path.name for path in tmp_path.iterdir()] == ["data.hdf5"]


def test_where_a_file_system_reserves_nothing_every_block_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    assert opened(file, tmp_path / "arrays").fingerprint == read_d4rl_hdf5(file, RULES).fingerprint


@pytest.mark.parametrize("rows", [3 * 10**8, 10**15, 2**61])
def test_sizes_that_no_machine_has_are_refused_with_the_size(tmp_path: Path, rows: int) -> None:
    def declares(allocate: Allocate) -> Episodes:
        allocate("observations", (rows, 2**30))
        raise AssertionError("allocated")

    with pytest.raises(StorageError, match=rf"observations of huge, {rows:,}x1,073,741,824 numbers, needs .* GiB"):
        write_mapped(tmp_path / "arrays", declares, "huge")
    with pytest.raises(StorageError, match=r"needs .* GiB of memory, but .* are free"):
        declares(in_available_memory("huge"))


def test_a_reader_with_arrays_of_its_own_is_mapped_too(file: Path, tmp_path: Path) -> None:
    plain = read_d4rl_hdf5(file, RULES)
    again = write_mapped(tmp_path / "arrays", lambda _: plain, "mine")
    assert again.fingerprint == plain.fingerprint


def test_notes_are_kept(tmp_path: Path) -> None:
    plain = Episodes(np.zeros((2, 3)), np.zeros((2, 2)), np.zeros(2), np.array([0, 2]), notes=("as told",))
    write_mapped(tmp_path / "arrays", lambda _: plain, "mine")
    found = find_mapped(tmp_path / "arrays")
    assert found is not None
    assert found.notes == ("as told",)


def test_reading_a_large_file_takes_little_more_memory_than_its_arrays(tmp_path: Path) -> None:
    rows, width = 400_000, 60
    big = tmp_path / "big.hdf5"
    script = f"""
import resource, h5py, numpy as np
from pathlib import Path
from dmray.datasets import FileRules, read_d4rl_hdf5, write_mapped
from dmray.datasets.statistics import Statistics
import dmray.datasets.windows
path, rows, width = Path({str(big)!r}), {rows}, {width}
with h5py.File(path, "w") as file:
    stored = file.create_dataset("observations", (rows, width), dtype="f8")
    for start in range(0, rows, 10_000):
        stored[start : start + 10_000] = np.random.default_rng(start).normal(size=(10_000, width))
    file["actions"] = np.zeros((rows, 2), np.float32)
    file["rewards"] = np.zeros(rows, np.float32)
    file["terminals"] = np.zeros(rows, bool)
    file["timeouts"] = np.arange(rows) % 1000 == 999
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rules = FileRules(width, 2, 1000)
episodes = write_mapped(path.parent / "arrays", lambda allocate: read_d4rl_hdf5(path, rules, allocate), "big")
Statistics.of(episodes)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    arrays_mib = rows * width * 4 / 2**20
    # Once as it is written and once as it is read: both are pages of files, which the system takes back at will.
    assert float(done.stdout) < 2.6 * arrays_mib
