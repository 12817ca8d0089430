"""Files that are not what they seem: each is refused in one sentence that names file, array and what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dmray.datasets import FileRules, check_is_d4rl, read_d4rl_hdf5
from dmray.errors import DatasetError
from dmray.escaping import printable

RULES = FileRules(observation_dim=3, action_dim=2, horizon=20)
ROWS = 60
Change = Callable[[h5py.File], None]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "actions": rng.normal(size=(ROWS, 2)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "terminals": np.zeros(ROWS, bool),
        "timeouts": np.arange(ROWS) % 20 == 19,
    }


def write(path: Path, change: Change = lambda file: None, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays().items():
            file.create_dataset(name, data=array, **options)
        change(file)
    return path


def refused(path: Path) -> str:
    """The message, without the file's path at its beginning."""
    with pytest.raises(DatasetError) as error:
        read_d4rl_hdf5(path, RULES)
    message = str(error.value)
    assert message.startswith(f"{printable(str(path))}: ")
    assert "\n" not in message
    return message.removeprefix(f"{printable(str(path))}: ")


def instead(name: str, put: Callable[[h5py.File, str], Any]) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        put(file, name)

    return change


def of_data(array: Any) -> Callable[[h5py.File, str], Any]:
    return lambda file, name: file.create_dataset(name, data=array)


def _external_link(file: h5py.File, name: str) -> None:
    file[name] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft_link(file: h5py.File, name: str) -> None:
    file[name] = h5py.SoftLink("/observations")


def _loop(file: h5py.File, name: str) -> None:
    file["other"] = h5py.SoftLink(f"/{name}")
    file[name] = h5py.SoftLink("/other")


def _external_storage(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (ROWS,), "u1", external=[("/etc/passwd", 0, ROWS)])


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((ROWS,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "rewards", (ROWS,))
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (_external_link, "is a link to another file ('/etc/passwd'); copy the array"),
        (_soft_link, "is a link to '/observations'"),
        (_loop, "is a link to '/other'"),
        (_external_storage, "lies in another file ('/etc/passwd', external storage)"),
        (_virtual, "is put together from other arrays (a virtual dataset)"),
        (lambda file, name: file.create_group(name), "is a group, not an array"),
        (lambda file, name: file.create_dataset(name, data=h5py.Empty("f4")), "is empty"),
        (of_data(1.0), "are a single value, but there must be one for each of the 60 rows"),
        (of_data(np.zeros((ROWS, 2))), "are 60x2, but there must be one for each of the 60 rows"),
        (of_data(np.zeros((ROWS, 0))), "are 60x0, but there must be one for each"),
        (of_data(np.zeros((ROWS, 1, 1))), "are 60x1x1, but there must be one for each"),
        (of_data(np.zeros(ROWS - 1)), "has 59 rows, observations 60"),
        (of_data(np.zeros(0)), "has 0 rows, observations 60"),
    ],
)
@pytest.mark.parametrize("name", ["rewards", "terminals", "timeouts"])
def test_what_is_not_one_value_a_row_in_the_file_itself_is_refused(
    tmp_path: Path, name: str, put: Callable[[h5py.File, str], Any], message: str
) -> None:
    assert f"{name} {message}" in refused(write(tmp_path / "x.hdf5", instead(name, put))).replace(f"{name}: ", name)


@pytest.mark.parametrize("name", ["observations", "actions"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(ROWS), "are 60, the task has"),
        (np.zeros((ROWS, 0)), "are 60x0, the task has"),
        (np.zeros((ROWS, 3, 1)), "are 60x3x1, the task has"),
        (np.float32(0), "are a single value, the task has"),
    ],
)
def test_rows_of_another_width_are_refused(tmp_path: Path, name: str, array: Any, message: str) -> None:
    assert message in refused(write(tmp_path / "x.hdf5", instead(name, of_data(array))))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    def empty(file: h5py.File) -> None:
        for name, array in arrays().items():
            del file[name]
            file.create_dataset(name, data=array[:0])

    assert "observations have no rows" in refused(write(tmp_path / "x.hdf5", empty))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.dtype("S4"), "they are text (|S4)"),
        (h5py.string_dtype(), "they are text or objects of any length"),
        (h5py.vlen_dtype(np.float32), "they are text or objects of any length"),
        (np.dtype([("a", "f4"), ("b", "f4")]), "they are compound values"),
        (np.dtype("c8"), "they are complex numbers"),
        (np.dtype(bool), "they are true or false"),
        (np.dtype("V4"), "they are compound values"),
        (h5py.enum_dtype({"low": 0, "high": 1}), "they are an enumeration"),
        (h5py.ref_dtype, "they are text or objects of any length"),
    ],
)
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, name: str, dtype: Any, message: str) -> None:
    shape = arrays()[name].shape
    path = write(tmp_path / "x.hdf5", instead(name, lambda file, name: file.create_dataset(name, shape, dtype)))
    assert f"{name} must be numbers, but {message}" in refused(path)


@pytest.mark.parametrize("name", ["terminals", "timeouts"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "row 7 is nan, not 0 or 1"), (np.inf, "row 7 is inf"), (0.5, "row 7 is 0.5"), (-1, "row 7 is -1")],
)
def test_flags_that_are_not_0_or_1_are_refused(tmp_path: Path, name: str, value: float, message: str) -> None:
    flags = arrays()[name].astype(np.float64)
    flags[7] = value
    assert f"{name} {message}" in refused(write(tmp_path / "x.hdf5", instead(name, of_data(flags))))


def test_a_byte_of_a_flag_that_is_neither_false_nor_true_is_refused(tmp_path: Path) -> None:
    flags = arrays()["timeouts"].view(np.uint8).copy()
    flags[7] = 7
    path = write(tmp_path / "x.hdf5", instead("timeouts", of_data(flags.view(bool))))
    assert "timeouts row 7 is 7, not 0 or 1" in refused(path)


@pytest.mark.parametrize("dtype", [np.dtype("S5"), h5py.string_dtype(), np.dtype("c8"), np.dtype(("f4", (2,)))])
def test_text_or_vectors_for_flags_are_refused(tmp_path: Path, dtype: Any) -> None:
    put = lambda file, name: file.create_dataset(name, (ROWS,), dtype)  # noqa: E731
    assert "timeouts must be 0 or 1, but they are" in refused(write(tmp_path / "x.hdf5", instead("timeouts", put)))


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", "f8"])
def test_flags_may_be_numbers_in_one_column(tmp_path: Path, dtype: str) -> None:
    column = arrays()["timeouts"].astype(dtype)[:, None]
    path = write(tmp_path / "x.hdf5", instead("timeouts", of_data(column)))
    assert read_d4rl_hdf5(path, RULES).starts.tolist() == [0, 20, 40, 60]


def _sparse(rows: int) -> Change:
    def change(file: h5py.File) -> None:
        for name, array in arrays().items():
            del file[name]
            file.create_dataset(name, (rows, *array.shape[1:]), array.dtype, chunks=(64, *array.shape[1:]))
            file[name][:ROWS] = array

    return change


def test_more_rows_than_the_file_can_hold_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", _sparse(4_000_000_000))
    assert path.stat().st_size < 100_000

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        raise AssertionError(f"{name} {shape} was allocated")

    with pytest.raises(DatasetError, match=r"observations declares 4000000000x3 values \(48 GB of memory\), but has"):
        read_d4rl_hdf5(path, RULES, allocate)


def test_a_huge_chunk_is_refused(tmp_path: Path) -> None:
    def put(file: h5py.File, name: str) -> None:
        file.create_dataset(name, (ROWS,), "f4", chunks=(500_000_000,), maxshape=(None,), compression="gzip")

    assert "(2 GB of memory), but has 0 bytes" in refused(write(tmp_path / "x.hdf5", instead("rewards", put)))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_rows_that_were_never_written_are_refused(tmp_path: Path, name: str) -> None:
    put = lambda file, name: file.create_dataset(name, arrays()[name].shape, "f4")  # noqa: E731
    assert f"{name} declares 60 rows" in (message := refused(write(tmp_path / "x.hdf5", instead(name, put))))
    assert "no row was ever written" in message
    assert "only 1 of its 5 chunks were ever written" in refused(write(tmp_path / "y.hdf5", _sparse(300)))


def test_flags_that_were_never_written_are_false(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", instead("terminals", lambda file, name: file.create_dataset(name, (ROWS,), bool)))
    assert read_d4rl_hdf5(path, RULES).num_episodes == 3


def test_well_packed_zeros_are_read(tmp_path: Path) -> None:
    """gzip packs zeros about as well as anything real can be packed."""

    def large(file: h5py.File) -> None:
        del file["observations"]
        zeros = np.zeros((ROWS, 300_000), np.float32)  # 72 MB
        stored = file.create_dataset("observations", data=zeros, chunks=(1, 300_000), compression="gzip")
        assert stored.id.get_storage_size() < 80_000

    assert read_d4rl_hdf5(write(tmp_path / "x.hdf5", large), FileRules(300_000, 2, 20)).num_episodes == 3


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", chunks=True, compression="lzf")
    content = path.read_bytes()
    assert content.count(b"lzf") == 5, "the filter's name stands in the file, its number before it"
    path.write_bytes(content.replace((32000).to_bytes(2, "little"), (32999).to_bytes(2, "little")))
    assert "is compressed with 'lzf', which h5py lacks here" in refused(path)


HOLD = """
import h5py, sys
with h5py.File(sys.argv[1], "r+"):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_is_being_written_is_not_called_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5")
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        message = refused(path)
        writer.communicate("", timeout=60)
    assert message == "another process is writing it; wait until it has closed the file, then start again"
    assert read_d4rl_hdf5(path, RULES).num_episodes == 3


def test_a_file_whose_writer_was_killed_is_told_with_the_cure(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "open.hdf5", "w", libver="latest") as file:
        for name, array in arrays().items():
            file[name] = array
        file.flush()
        (tmp_path / "x.hdf5").write_bytes((tmp_path / "open.hdf5").read_bytes())
    assert "or its writer was killed" in (message := refused(tmp_path / "x.hdf5"))
    assert "`h5clear -s x.hdf5`" in message


def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    def rename(file: h5py.File) -> None:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("\x1b[2J\nno", "/x")
        file["reward\x1b[2J"] = 1.0
        file.id.links.create_soft(b"\xff", b"x")

    assert "another file ('\\x1b[2J\\nno')" in refused(write(tmp_path / "x.hdf5", rename))


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.hdf5")
    assert refused(tmp_path / "pipe.hdf5") == "is not a regular file; give an HDF5 file"
    assert refused(tmp_path) == "is a folder; give an HDF5 file"
    assert re.fullmatch("cannot be read: .*embedded null .*", refused(tmp_path / "x\0y"))  # each Python has its words
    (tmp_path / "page.hdf5").write_text("<html>404")
    assert refused(tmp_path / "page.hdf5").startswith("not a readable HDF5 file, perhaps truncated")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rewards": "reward"}, "no array 'rewards', is its 'reward' meant? Then rename it"),
        ({"observations": "obs"}, "no array 'observations', is its 'obs' meant?"),
        ({"observations": "data/observations"}, "no array 'observations'"),
        ({"actions": "Actions"}, "no array 'actions', is its 'Actions' meant?"),
        ({"terminals": "dones"}, "only 'dones', which does not tell falls from time limits"),
        ({"timeouts": "dones"}, "no array 'timeouts', but 'dones' (60) may say where episodes end"),
        ({"timeouts": "infos/episode_ids"}, "no array 'timeouts', but 'infos/episode_ids' (60) may say"),
        ({"timeouts": "timesteps"}, "no array 'timeouts', but 'timesteps' (60) may say"),
        ({"timeouts": "time_outz"}, "no array 'timeouts', but 'time_outz' (60) may say"),
    ],
)
def test_an_array_with_a_name_that_is_nearly_right_is_named(
    tmp_path: Path, given: dict[str, str], message: str
) -> None:
    def rename(file: h5py.File) -> None:
        for name, other in given.items():
            if "/" in other:
                file.require_group(other.split("/")[0])
            file.move(name, other)

    path = write(tmp_path / "x.hdf5", rename)
    assert message in refused(path)
    if "timeouts" not in given:
        with pytest.raises(DatasetError, match="no array"):
            check_is_d4rl(path)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("timeouts", "truncations"),
        ("timeouts", "truncated"),
        ("timeouts", "Timeout"),
        ("timeouts", "infos/TimeLimit.truncated"),
        ("terminals", "terminations"),
    ],
)
def test_flags_with_another_known_name_are_read_with_a_note(tmp_path: Path, name: str, other: str) -> None:
    def rename(file: h5py.File) -> None:
        file.require_group("infos")
        file.move(name, other)

    expected = read_d4rl_hdf5(write(tmp_path / "x.hdf5"), RULES)
    episodes = read_d4rl_hdf5(write(tmp_path / "y.hdf5", rename), RULES)
    assert episodes.fingerprint == expected.fingerprint
    assert (expected.notes, episodes.notes) == ((), (f"{name}: read from '{other}'",))


def test_two_arrays_that_may_be_the_timeouts_are_an_error_if_they_differ(tmp_path: Path) -> None:
    def same(file: h5py.File) -> None:
        file["truncations"] = file["timeouts"][:]

    def different(file: h5py.File) -> None:
        file["truncations"] = np.arange(ROWS) % 10 == 9

    def both(file: h5py.File) -> None:
        file.move("timeouts", "truncations")
        file["truncated"] = file["truncations"][:]

    assert read_d4rl_hdf5(write(tmp_path / "x.hdf5", same), RULES).notes == ()
    assert "timeouts and 'truncations' differ in 3 rows" in refused(write(tmp_path / "y.hdf5", different))
    assert "both 'truncated' and 'truncations' may be meant" in refused(write(tmp_path / "z.hdf5", both))


def test_an_array_that_is_not_read_but_looks_like_one_that_is_read_is_noted(tmp_path: Path) -> None:
    def add(file: h5py.File) -> None:
        file["reward"] = np.ones(ROWS)
        file["next_observations"] = np.ones((ROWS, 3))

    notes = read_d4rl_hdf5(write(tmp_path / "x.hdf5", add), RULES).notes
    assert notes == ("rewards: 'reward', which the file has as well, is not read",)


def test_a_file_without_timeouts_is_always_noted_and_its_breaks_are_a_warning(tmp_path: Path) -> None:
    def without(breaks: tuple[int, ...]) -> Change:
        def change(file: h5py.File) -> None:
            del file["timeouts"]
            following = np.roll(file["observations"][:], -1, axis=0)
            following[list(breaks)] += 1
            file["next_observations"] = following

        return change

    cut = "timeouts: there are none, so episodes are cut after 20 steps, the task's horizon"
    assert read_d4rl_hdf5(write(tmp_path / "x.hdf5", without((19, 59))), RULES).notes == (cut,)
    notes = read_d4rl_hdf5(write(tmp_path / "y.hdf5", without((5, 30))), RULES).notes
    assert notes[0] == cut
    assert notes[1].startswith("warning: rows: at 2 places inside episodes the next row is not what")


@pytest.mark.parametrize(
    ("last_end", "note"),
    [
        (58, "rows: the last 1 of 60 (1.7%) belong to no episode that ends, and are dropped"),
        (49, "warning: rows: the last 10 of 60 (16.7%) belong to no episode that ends, and are dropped"),
    ],
)
def test_rows_of_no_episode_that_ends_are_noted(tmp_path: Path, last_end: int, note: str) -> None:
    ends = np.isin(np.arange(ROWS), (19, 39, last_end))
    assert read_d4rl_hdf5(write(tmp_path / "x.hdf5", instead("timeouts", of_data(ends))), RULES).notes == (note,)


def test_episodes_longer_than_an_evaluation_are_noted_and_a_warning_if_no_timeout_is_set(tmp_path: Path) -> None:
    def ends(timeouts: int, terminals: int) -> Change:
        def change(file: h5py.File) -> None:
            file["timeouts"][:] = np.arange(ROWS) == timeouts
            file["terminals"][:] = np.arange(ROWS) == terminals

        return change

    (note,) = read_d4rl_hdf5(write(tmp_path / "x.hdf5", ends(59, 9)), RULES).notes
    assert note == "episodes: 1 of 2 have more than the 20 steps of an evaluation (the longest 50)"
    (note,) = read_d4rl_hdf5(write(tmp_path / "y.hdf5", ends(-1, 59)), RULES).notes
    assert note.startswith("warning: episodes: 1 of 1 have more than")
    assert "no timeout is set" in note


def test_rewards_whose_sum_float32_does_not_hold_are_refused(tmp_path: Path) -> None:
    rewards = np.where(np.arange(ROWS) >= 40, 1e38, 0).astype(np.float32)
    message = refused(write(tmp_path / "x.hdf5", instead("rewards", of_data(rewards))))
    assert "the rewards of episode 2 (from row 40) add up to 2e+39, more than float32 holds" in message


@pytest.mark.parametrize("position", range(0, 2400, 48))
def test_a_file_with_a_damaged_header_is_read_or_refused_in_one_sentence(tmp_path: Path, position: int) -> None:
    path = write(tmp_path / "x.hdf5", chunks=True, compression="gzip")
    content = bytearray(path.read_bytes())
    content[position : position + 8] = b"\xff" * 8
    path.write_bytes(content)
    problem = None
    try:
        episodes = read_d4rl_hdf5(path, RULES)
    except DatasetError as error:
        problem = str(error)
    if problem is None:
        assert np.isfinite(episodes.observations).all()
    else:
        assert problem.startswith(f"{printable(str(path))}: ")
        assert "\n" not in problem
