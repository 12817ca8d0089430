"""Data sets in a bucket: put there once, fetched once by each machine, not needed on the driver's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
from typer.testing import CliRunner, Result

from dmray.cli import data
from dmray.cli.submit import _check_paths
from dmray.downloads import MANIFEST_NAME, InterruptedDownloadError, Manifest
from dmray.driver import preflight
from dmray.errors import DatasetError, StorageError, StoreUnavailableError
from dmray.files import cache_folder
from dmray.planning.needed_files import needed_files
from dmray.records import SweepFolder
from dmray.rollout import record
from dmray.sources import locate, open_dataset, phase_of_locating, write_recording
from dmray.specs import DatasetSpec, Generation
from dmray.storage import Store, StoredFile
from dmray.storage import data_store as data_store_module
from dmray.tasks import TASKS
from dmray.trial.job import TrialJob
from tests.storage.conftest import S3
from tests.sweeps import tiny_plan, tiny_sweep

OPEN = TASKS["maze2d-open"]
PUBLISHED, FILE = DatasetSpec(name="maze2d-open-v0"), "maze2d-open-sparse.hdf5"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(data.app, list(arguments))


def recorded(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_recording(path, record(OPEN, Generation(behaviour="expert", transitions=300, seed=seed)), OPEN, "a test")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine that puts data into the bucket: it has the published file."""
    use(monkeypatch, tmp_path / "home")
    recorded(tmp_path / "home/.d4rl/datasets" / FILE)
    return tmp_path / "home"


def use(monkeypatch: pytest.MonkeyPatch, machine: Path, **variables: str) -> None:
    monkeypatch.delenv("DMRAY_DATASETS", raising=False)
    for name, value in {"HOME": str(machine), "DMRAY_CACHE": str(machine / "cache"), **variables}.items():
        monkeypatch.setenv(name, value)


def copies() -> list[str]:
    return sorted(path.name for path in cache_folder().glob("data/*/*") if path.suffix == ".hdf5")


def test_two_machines_that_share_nothing_fetch_once_and_train_on_the_same_batches_and_the_driver_has_no_file(
    s3_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = recorded(home / "mine.hdf5", seed=1)
    put = run("fetch", PUBLISHED.name, str(own), "--to", f"{s3_url}/")
    assert put.exit_code == 0, put.output
    assert f"{PUBLISHED.name}: {s3_url}/{FILE}" in put.output
    datasets: list[dict[str, Any]] = [
        {"name": PUBLISHED.name},
        {"name": "mine", "task": OPEN.name, "path": f"{s3_url}/mine.hdf5"},
    ]

    use(monkeypatch, tmp_path / "driver", DMRAY_DATASETS=s3_url)
    caplog.set_level("INFO", "dmray")
    plan = tiny_plan(s3_url, datasets=datasets, training={"steps": 1, "batch_size": 2})
    assert preflight.check(plan.trials, tmp_path) == {}
    assert [record.getMessage() for record in caplog.records if "not here" in record.getMessage()] == [
        f"{PUBLISHED.name}: {s3_url}/{FILE} is read by the machines that train on it, not here",
        f"mine: {s3_url}/mine.hdf5 is read by the machines that train on it, not here",
    ]
    assert copies() == []

    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.storage.data_node", json.dumps(datasets)],
            env={**os.environ, "HOME": str(tmp_path / name), "DMRAY_CACHE": str(tmp_path / name / "cache")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    outputs = [node.communicate(timeout=300)[0].splitlines() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    workers = [[json.loads(line) for line in lines] for lines in outputs]
    for node in workers:
        assert sorted(address for worker in node for address in worker["fetched"]) == sorted(
            [f"{s3_url}/{FILE}", f"{s3_url}/mine.hdf5"]
        )
    (first, *others) = [worker["seen"] for node in workers for worker in node]
    assert len(others) == 3
    assert others == [first] * 3
    assert first["mine"] != first[PUBLISHED.name]
    use(monkeypatch, home)
    assert open_dataset(PUBLISHED, OPEN, tmp_path).episodes.fingerprint == first[PUBLISHED.name][0]


@pytest.fixture
def stored(s3_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> StoredFile:
    """The published file in the bucket, on a machine that has no copy of it."""
    assert run("fetch", PUBLISHED.name, "--to", s3_url).exit_code == 0
    use(monkeypatch, home.parent / "node", DMRAY_DATASETS=s3_url)
    return StoredFile(s3_url, FILE)


def test_plan_phase_and_preflight_know_what_is_in_the_bucket_and_what_is_here(
    stored: StoredFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (before,) = needed_files([PUBLISHED], tmp_path)
    assert (before.state, before.source) == ("download", stored.address)
    assert before.size_bytes == stored.pinned().size
    assert phase_of_locating(PUBLISHED, OPEN, tmp_path) == "fetching_data"
    path = Path(locate(PUBLISHED, OPEN, tmp_path))
    assert path.stat().st_size == before.size_bytes
    assert Manifest(path.parent).get(FILE) == stored.pinned()
    assert [each.state for each in needed_files([PUBLISHED], tmp_path)] == ["here"]
    assert phase_of_locating(PUBLISHED, OPEN, tmp_path) == "opening_data"
    plan = tiny_plan(tmp_path, datasets=[PUBLISHED.name])
    assert list(preflight.check(plan.trials, tmp_path)) == [PUBLISHED.name], "a copy that is here is read"


@pytest.mark.parametrize("pin_it", [False, True])
def test_a_changed_file_under_the_same_name_is_refused_or_is_another_copy_if_it_was_pinned_anew(
    stored: StoredFile, tmp_path: Path, pin_it: bool
) -> None:
    before = stored.fetch()
    content = bytearray(before.read_bytes())
    other = recorded(tmp_path / "other" / FILE, seed=2)
    store = Store(stored.url)
    if pin_it:
        refused = run("fetch", str(other), "--to", stored.url)
        assert refused.exit_code == 1
        assert f"is pinned there, but {other} has" in refused.output
        store.remove(MANIFEST_NAME)
        assert run("fetch", str(other), "--to", stored.url).exit_code == 0
        after = stored.fetch()
        assert (after.read_bytes(), before.read_bytes()) == (other.read_bytes(), bytes(content))
        return
    content[-1] ^= 1
    store.write(FILE, bytes(content))
    with pytest.raises(DatasetError, match=rf"{stored.address}: sha256 is .*, but .* is pinned beside it"):
        stored.fetch()
    store.write(FILE, bytes(content[:-1]))
    with pytest.raises(DatasetError, match="is pinned, but the file is missing or has another size; put it there"):
        stored.fetch()
    plan = tiny_plan(tmp_path, datasets=[PUBLISHED.name])
    with pytest.raises(DatasetError, match="another size"):
        preflight.check(plan.trials, tmp_path)


def test_what_a_killed_fetch_left_is_not_taken_for_the_file(
    stored: StoredFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(address: str, path: Path, *rest: Any) -> None:
        fetch(address, path, *rest)
        path.write_bytes(path.read_bytes()[:-100])
        raise KeyboardInterrupt

    fetch = data_store_module.fetch_pinned
    monkeypatch.setattr(data_store_module, "fetch_pinned", killed)
    with pytest.raises(KeyboardInterrupt):
        stored.fetch()
    assert copies() == [FILE]
    assert stored.copy() is None
    monkeypatch.setattr(data_store_module, "fetch_pinned", fetch)
    with h5py.File(stored.fetch()) as file:
        assert "observations" in file


def test_a_file_whose_upload_was_killed_is_not_pinned_and_is_put_again(
    s3_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write

    def killed(self: Store, name: str, content: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        data.fetch([PUBLISHED.name], to=s3_url)
    monkeypatch.setattr(Store, "write", write)
    stored = StoredFile(s3_url, FILE)
    with pytest.raises(DatasetError, match=rf"not in {MANIFEST_NAME} there; put it there: python -m dmray.data fetch"):
        stored.fetch()
    assert run("fetch", PUBLISHED.name, "--to", s3_url).exit_code == 0
    assert run("fetch", PUBLISHED.name, "--to", s3_url).exit_code == 0, "once more changes nothing"
    assert stored.fetch().read_bytes() == (home / ".d4rl/datasets" / FILE).read_bytes()


def test_a_bucket_that_does_not_answer_is_a_transient_error_and_a_place_without_the_file_says_what_to_do(
    stored: StoredFile, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(*_: object) -> None:
        raise InterruptedDownloadError("received 3 bytes instead of 7")

    with monkeypatch.context() as patch:
        patch.setattr(data_store_module, "fetch_pinned", broken_off)
        with pytest.raises(StoreUnavailableError, match=rf"{stored.address}: received 3 bytes"):
            stored.fetch()
    stored.fetch()
    s3.stop()
    try:
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            stored.fetch()
    finally:
        s3.start()
    cure = f"maze2d-large-sparse-v1.hdf5: not in dmray-manifest.json there; .* fetch maze2d-large-v1 --to {stored.url}"
    with pytest.raises(DatasetError, match=cure):
        locate(DatasetSpec(name="maze2d-large-v1"), TASKS["maze2d-large"], tmp_path)
    (needed,) = needed_files([DatasetSpec(name="maze2d-large-v1")], tmp_path)
    assert needed.state == "missing"


def test_verify_and_stats_read_the_bucket_that_dmray_datasets_names(stored: StoredFile) -> None:
    shown = run("verify", PUBLISHED.name, "--no-replay")
    assert shown.exit_code == 0, shown.output
    assert f"pinned in {stored.url}" in shown.output
    assert run("stats", PUBLISHED.name).exit_code == 0


def test_a_shared_folder_is_filled_with_pinned_files_and_read_in_place(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, own = tmp_path / "shared", recorded(home / "mine.hdf5", seed=1)
    put = run("fetch", PUBLISHED.name, str(own), "--to", str(shared))
    assert put.exit_code == 0, put.output
    use(monkeypatch, tmp_path / "login", DMRAY_MIRRORS=f"file://{home}/.d4rl/datasets", DMRAY_OFFLINE="0")
    assert run("fetch", PUBLISHED.name, "--to", str(tmp_path / "mirrored")).exit_code == 0
    assert Manifest(tmp_path / "mirrored").get(FILE) is not None
    use(monkeypatch, tmp_path / "node", DMRAY_DATASETS=str(shared), DMRAY_OFFLINE="1")
    assert locate(PUBLISHED, OPEN, tmp_path) == str(shared / FILE)
    assert open_dataset(PUBLISHED, OPEN, tmp_path).episodes.num_transitions > 100
    entry = Manifest(shared).get("mine.hdf5")
    assert entry is not None
    assert run("fetch", str(own), "--to", str(shared)).exit_code == 0, "once more changes nothing"
    refused = run("fetch", str(recorded(tmp_path / "mine.hdf5", seed=2)), "--to", str(shared))
    assert (refused.exit_code, "pinned" in refused.output) == (1, True)
    assert Manifest(shared).get("mine.hdf5") == entry
    (shared / FILE).write_bytes(own.read_bytes())
    with pytest.raises(DatasetError, match="when it was fetched; remove it and fetch it again"):
        open_dataset(PUBLISHED, OPEN, tmp_path)


def test_files_without_a_place_and_data_sets_of_minari_are_refused(home: Path, s3_url: str) -> None:
    alone = run("fetch", str(home / ".d4rl/datasets" / FILE))
    assert (alone.exit_code, "--to" in alone.output) == (1, True)
    folders = run("fetch", "minari-hopper-medium-v0", "--to", s3_url)
    assert (folders.exit_code, "MINARI_DATASETS_PATH" in folders.output) == (1, True)


def test_workers_and_jobs_get_the_url_of_a_file_as_it_is(tmp_path: Path) -> None:
    url = "s3://bucket/data/mine.hdf5"
    sweep = tiny_sweep(tmp_path, datasets=[{"name": "mine", "task": OPEN.name, "path": url}])
    plan = tiny_plan(tmp_path, datasets=[{"name": "mine", "task": OPEN.name, "path": url}])
    assert TrialJob.of(plan.trials[0], sweep, SweepFolder(tmp_path, "tiny")).trial.dataset.path == url
    _check_paths(tmp_path / "a.yaml", sweep)


def test_a_url_with_a_password_is_refused(s3_url: str) -> None:
    with pytest.raises(StorageError, match="leave the credentials out"):
        StoredFile("s3://key:secret@bucket/data", FILE).pinned()
