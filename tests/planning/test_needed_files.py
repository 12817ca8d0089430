from __future__ import annotations

from pathlib import Path

import pytest

from dmray.driver.plan_view import render_needed_files
from dmray.planning.needed_files import NeededFile, _published_sizes, needed_files
from dmray.specs import DatasetSpec, Generation
from dmray.tasks import DATASETS, recording_path, task_of


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMRAY_DATASETS", str(tmp_path / "downloads"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DMRAY_OFFLINE", "0")
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads"


def needed(dataset: DatasetSpec, recordings: Path) -> NeededFile:
    (found,) = needed_files([dataset], recordings)
    return found


def test_a_published_file_is_a_download_of_a_known_size_until_it_is_here(downloads: Path, tmp_path: Path) -> None:
    hopper = DatasetSpec(name="hopper-medium-v2")
    before = needed(hopper, tmp_path)
    assert (before.state, before.size_bytes) == ("download", 152_756_557)
    assert before.source == DATASETS[hopper.name].url
    (downloads / "hopper_medium-v2.hdf5").write_bytes(b"12345")
    after = needed(hopper, tmp_path)
    assert (after.state, after.size_bytes) == ("here", 5)


@pytest.mark.parametrize("name", ["kitchen-mixed-v0", "minari-hopper-medium-v0"])
def test_a_size_that_nobody_has_published_is_not_invented(name: str, downloads: Path, tmp_path: Path) -> None:
    assert needed(DatasetSpec(name=name), tmp_path).size_bytes is None


def test_a_file_of_ones_own_is_here_or_missing_and_a_recording_is_here_or_made(downloads: Path, tmp_path: Path) -> None:
    own = DatasetSpec(name="mine", task="hopper", path=str(tmp_path / "mine.hdf5"))
    made = Generation(behaviour="expert", transitions=100)
    recorded = DatasetSpec(name="recorded", task="maze2d-umaze", generate=made)
    assert [each.state for each in needed_files([own, recorded], tmp_path)] == ["missing", "record"]
    Path(own.path or "").touch()
    recording_path(made, task_of(recorded), tmp_path).touch()
    assert [each.state for each in needed_files([own, recorded], tmp_path)] == ["here", "here"]


def test_sizes_are_of_data_sets_of_the_catalog() -> None:
    sizes = _published_sizes()
    assert set(sizes) <= set(DATASETS)
    assert all(10**6 < size < 10**9 for size in sizes.values())


def test_the_plan_lists_what_is_downloaded_from_where_and_how_much_in_80_columns() -> None:
    files = [
        NeededFile("hopper-medium-v2", "here", 5, "/data/hopper_medium-v2.hdf5"),
        NeededFile("hopper-expert-v2", "download", 2**20, "http://server/gym/hopper_expert-v2.hdf5"),
        NeededFile("bullet-halfcheetah-medium-expert-v0", "download", 2**20, "http://server/gym/halfcheetah.hdf5"),
        NeededFile("kitchen-mixed-v0", "download", None, "http://server/kitchen/mixed.hdf5"),
        NeededFile("recorded", "record", None, "100 transitions of maze2d-umaze, expert"),
        NeededFile("mine", "missing", None, "mine.hdf5"),
    ]
    text = render_needed_files(files, "/data")
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines() == [
        "data: 1 of 6 files is here",
        "  3 to download (2 with 2.0 MiB and 1 of unknown size) to /data",
        "  from http://server/gym",
        "    hopper-expert-v2                         1.0 MiB",
        "    bullet-halfcheetah-medium-expert-v0      1.0 MiB",
        "  from http://server/kitchen",
        "    kitchen-mixed-v0                    size unknown",
        "  1 to record",
        "    recorded: 100 transitions of maze2d-umaze, expert",
        "  1 MISSING: the sweep does not start",
        "    mine: mine.hdf5",
    ]


def test_what_may_not_be_downloaded_is_missing(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMRAY_OFFLINE", "1")
    (found,) = needed_files([DatasetSpec(name="hopper-medium-v2")], tmp_path)
    assert (found.state, found.source.partition(" a download of ")[0]) == (
        "missing",
        f"not in {downloads}, and DMRAY_OFFLINE forbids",
    )
