"""A bucket may have odd objects: none is written elsewhere, ends a reader, or is waited for."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from dmray.errors import StorageError, StoreUnavailableError
from dmray.records import SweepFolder
from dmray.storage import ReadOnlyView, Store, SweepCopy, sweep_folder
from dmray.storage.sweep_copy import fetch_from_store
from tests.sweeps import tiny_plan

_ODD = (
    *("trials/ledger.jsonl", "trials/x/ledger.jsonl/DONE.json", "trials//ledger.jsonl"),
    *("trials/../../outside/ledger.jsonl", "report/../../../outside.md", "evaluations/../../outside/x.parquet"),
    *("evaluations/x", "evaluations/x/y/z.parquet", "trials/a/ledger.jsonl\n/DONE.json"),
)


@pytest.fixture
def memory() -> Store:
    return Store(f"memory://{uuid4().hex[:8]}/runs/tiny")


@pytest.mark.parametrize("name", _ODD)
def test_an_object_of_an_odd_name_is_ignored_and_written_nowhere(name: str, memory: Store, tmp_path: Path) -> None:
    memory.write("trials/a/ledger.jsonl", b"x\n")
    memory.write(name, b"odd")
    folder = SweepFolder(tmp_path / "runs", "tiny")
    copy = SweepCopy(memory, folder)
    copy.download()
    copy.fetch_report()
    copy.fetch_episode_tables()
    ReadOnlyView(memory, SweepFolder(tmp_path / "view", "tiny")).fetch_records(lambda trial: False)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {f"{place}/tiny/trials/a/ledger.jsonl" for place in ("runs", "view")} | {"runs/tiny/.pulled.json"}


def test_a_file_in_the_place_of_a_folder_is_ignored(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/runs/tiny")
    for name in ("trials", "report", "evaluations"):
        store.write(name, b"odd")
    copy = SweepCopy(store, SweepFolder(tmp_path / "copy", "tiny"))
    copy.download()
    copy.fetch_episode_tables()
    ReadOnlyView(store, SweepFolder(tmp_path / "view", "tiny")).fetch_records(lambda trial: False)
    assert not list(tmp_path.glob("view/**/*"))


def test_an_address_that_leaves_the_folder_of_trials_is_refused(memory: Store) -> None:
    with pytest.raises(StorageError, match="not the URL of a trial"):
        fetch_from_store(f"{memory.url}/trials/../x")


def test_a_pipe_a_device_and_a_folder_in_place_of_an_object_are_refused_at_once(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/runs/tiny")
    store.write("x", b"")
    os.mkfifo(tmp_path / "runs/tiny/pipe")
    (tmp_path / "runs/tiny/zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "."):
        with pytest.raises(StorageError, match="not a file; remove it") as refused:
            store.read(name)
        assert not isinstance(refused.value, StoreUnavailableError), "it would be tried again"
    with pytest.raises(StorageError) as refused:
        store.write("x/y", b"")
    assert not isinstance(refused.value, StoreUnavailableError)


def test_a_copy_that_cannot_be_written_names_the_setting(memory: Store, tmp_path: Path) -> None:
    memory.write(SweepFolder(tmp_path, "tiny").manifest.name, b"{}")
    (tmp_path / "tiny").write_text("a file in the place of the folder")
    with pytest.raises(StorageError, match="set DMRAY_CACHE to another folder"):
        SweepCopy(memory, SweepFolder(tmp_path, "tiny")).download()
    (tmp_path / "view").write_text("")
    with pytest.raises(StorageError, match="set TMPDIR to another folder"):
        ReadOnlyView(memory, SweepFolder(tmp_path, "view")).fetch("sweep.json")


def test_a_storage_that_is_a_link_to_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="choose another folder with --storage"):
        sweep_folder(str(tmp_path / "loop"), "tiny", "driver").make_writable()


def test_a_plan_has_records_of_its_own_trials_only(memory: Store, tmp_path: Path) -> None:
    """Names with spaces or letters of other alphabets are names."""
    trial = tiny_plan(tmp_path).trials[0].trial_id
    for name in (f"trials/{trial}/ledger.jsonl", "trials/é x/ledger.jsonl"):
        memory.write(name, b"")
    assert set(memory.list("trials")) == {f"trials/{trial}/ledger.jsonl", "trials/é x/ledger.jsonl"}
