from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dmray.datasets import Episodes, FileRules, Statistics, read_d4rl_hdf5, write_d4rl_hdf5
from dmray.errors import DatasetError

RULES = FileRules(observation_dim=3, action_dim=2, horizon=4)


def arrays(
    count: int = 10, terminals: tuple[int, ...] = (), timeouts: tuple[int, ...] | None = (4, 9)
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "observations": rng.normal(size=(count, 3)).astype(np.float32),
        "actions": rng.normal(size=(count, 2)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": np.isin(np.arange(count), terminals),
    }
    if timeouts is not None:
        given["timeouts"] = np.isin(np.arange(count), timeouts)
    return given


def read(path: Path, given: dict[str, Any], rules: FileRules = RULES) -> Episodes:
    write_d4rl_hdf5(path, given, {"note": "made by a test"})
    return read_d4rl_hdf5(path, rules)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.hdf5"


def test_what_is_written_is_read(path: Path) -> None:
    given = arrays()
    episodes = read(path, given)
    np.testing.assert_array_equal(episodes.observations, given["observations"])
    np.testing.assert_array_equal(episodes.actions, given["actions"])
    np.testing.assert_array_equal(episodes.rewards, given["rewards"])
    assert episodes.starts.tolist() == [0, 5, 10]
    assert [entry.name for entry in path.parent.iterdir()] == ["data.hdf5"], "nothing else is left"


@pytest.mark.parametrize(
    ("terminals", "timeouts", "rules", "starts"),
    [
        ((2,), (4, 9), RULES, [0, 3, 5, 10]),  # a fall and a timeout both end an episode
        ((1, 2, 3), (4, 9), FileRules(3, 2, 4, split_on_terminals=False), [0, 5, 10]),  # antmaze: timeouts only
        ((6,), None, RULES, [0, 4, 7]),  # no timeouts: at the horizon, counted from each start
        ((4,), (4, 9), RULES, [0, 5, 10]),  # both at once end one episode
        ((), (4, 7), RULES, [0, 5, 8]),  # an unfinished tail is dropped
        ((), (4, 7), FileRules(3, 2, 4, keep_unfinished=True), [0, 5, 8, 10]),
        ((0, 1, 9), (), RULES, [0, 1, 2, 10]),  # episodes of one step
    ],
)
def test_rows_become_episodes(
    path: Path, terminals: tuple[int, ...], timeouts: tuple[int, ...] | None, rules: FileRules, starts: list[int]
) -> None:
    assert read(path, arrays(10, terminals, timeouts), rules).starts.tolist() == starts


ANT_LIKE = FileRules(observation_dim=3, action_dim=2, horizon=5, appendix_dim=4)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_appended_numbers_that_never_change_are_dropped(path: Path, value: float) -> None:
    given = arrays()
    wide = np.hstack([given["observations"], np.full((10, 4), value, np.float32)])
    episodes = read(path, given | {"observations": wide}, ANT_LIKE)
    np.testing.assert_array_equal(episodes.observations, given["observations"])
    assert episodes.notes == ("observations: the last 4 of 7 numbers never change, and are dropped",)


def test_appended_numbers_that_say_something_are_kept(path: Path) -> None:
    given = arrays()
    wide = np.hstack([given["observations"], np.zeros((10, 4), np.float32)])
    wide[7, 5] = 1e-3
    episodes = read(path, given | {"observations": wide}, ANT_LIKE)
    np.testing.assert_array_equal(episodes.observations, wide)
    assert episodes.notes == ("observations: the last 4 of 7 numbers are zeros when the policy acts",)


def test_files_without_the_appendix_are_as_good(path: Path) -> None:
    episodes = read(path, arrays(), ANT_LIKE)
    assert (episodes.observations.shape, episodes.notes) == ((10, 3), ())


def test_a_wrong_number_is_told_with_both_right_ones(path: Path) -> None:
    with pytest.raises(DatasetError, match="observations are 10x5, the task has 3 or 7 numbers a row"):
        read(path, arrays() | {"observations": np.zeros((10, 5), np.float32)}, ANT_LIKE)


def test_returns_to_go_count_the_own_reward_and_stop_at_the_episodes_end(path: Path) -> None:
    given = arrays() | {"rewards": np.arange(10, dtype=np.float32)}
    episodes = read(path, given)
    assert episodes.returns_to_go().tolist() == [10, 10, 9, 7, 4, 35, 30, 24, 17, 9]
    assert episodes.returns().tolist() == [10, 35]
    assert episodes.lengths.tolist() == [5, 5]


def test_the_fingerprint_is_of_the_content(path: Path, tmp_path: Path) -> None:
    given = arrays()
    first = read(path, given).fingerprint
    with h5py.File(tmp_path / "plain.hdf5", "w") as file:
        for name, array in given.items():
            file[name] = array
    assert read_d4rl_hdf5(tmp_path / "plain.hdf5", RULES).fingerprint == first
    for name in ("observations", "actions", "rewards"):
        changed = given | {name: given[name] + np.float32(1e-3)}
        assert read(path, changed).fingerprint != first
    assert read(path, arrays(timeouts=(3, 9))).fingerprint != first


def test_statistics_are_the_states_own(path: Path) -> None:
    given = arrays()
    given["observations"][:, 2] = 7.0
    statistics = Statistics.of(read(path, given))
    np.testing.assert_allclose(statistics.mean, given["observations"].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.std[:2], given["observations"].std(axis=0)[:2], rtol=1e-4)
    assert statistics.std[2] == np.float32(1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros(9, np.float32)}, "rewards has 9 rows, observations 10"),
        ({"timeouts": np.zeros(11, bool)}, "timeouts has 11 rows"),
        ({"observations": np.zeros((10, 4), np.float32)}, "observations are 10x4, the task has 3 numbers a row"),
        ({"actions": np.zeros((10, 3), np.float32)}, "actions are 10x3"),
        ({"timeouts": np.zeros(10, bool)}, "no episode ends in its 10 rows"),
    ],
)
def test_a_damaged_file_is_named_with_its_array(path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError) as error:
        read(path, arrays() | change)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_row(path: Path, name: str, value: float) -> None:
    given = arrays()
    given[name].reshape(10, -1)[6, -1] = value
    with pytest.raises(DatasetError, match=f"{name} row 6 is not finite"):
        read(path, given)


def test_a_missing_array_is_named(path: Path) -> None:
    given = arrays()
    del given["actions"]
    with pytest.raises(DatasetError, match="no array 'actions'"):
        read(path, given)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(DatasetError, match=r"data\.hdf5: no such file"):
        read_d4rl_hdf5(path, RULES)


def test_a_truncated_file_is_named(path: Path) -> None:
    read(path, arrays(1000, timeouts=(999,)))
    content = path.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:size])
        with pytest.raises(DatasetError, match="not a readable HDF5 file"):
            read_d4rl_hdf5(path, RULES)
