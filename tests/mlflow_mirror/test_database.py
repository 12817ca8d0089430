"""MLflow's SQLite file: made by one process, whatever its folder is called; refused with the cure; moved."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dmray.errors import TrackingError, TrackingUnavailableError
from dmray.mlflow_mirror import database
from dmray.mlflow_mirror.database import check_tables, sqlite_uri
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.models import download_checkpoint
from dmray.mlflow_mirror.store import MlflowStore, StoreError, open_store
from dmray.records import SweepFolder
from tests.mlflow_mirror.examples import example_sweep, trials_of, whole_trial, write_ledger
from tests.mlflow_mirror.mlflow_server import free_port

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's dependencies warn about each other


@pytest.fixture
def storage(tmp_path: Path, mlflow_storage: Path) -> Path:
    """A storage with a fresh database of MLflow; a copy, since making one takes a second."""
    copied(mlflow_storage / "mlflow.db", tmp_path / "storage")
    return tmp_path / "storage"


def copied(database: Path, storage: Path) -> Path:
    storage.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as first, closing(sqlite3.connect(storage / "mlflow.db")) as copy:
        first.backup(copy)
    return storage / "mlflow.db"


def changed(storage: Path, statement: str) -> Path:
    with closing(sqlite3.connect(storage / "mlflow.db")) as connection:
        connection.execute(statement)
        connection.commit()
    return storage / "mlflow.db"


def refusal(storage: Path, kind: type[TrackingError] = TrackingError) -> str:
    """What is said of the database in `storage`: one sentence that names the file."""
    with pytest.raises(kind) as caught:
        open_store(None, SweepFolder(storage, "x"))
    message = str(caught.value)
    assert str(storage / "mlflow.db") in message
    assert "\n" not in message
    return message


def test_two_sweeps_may_begin_at_once_on_a_fresh_storage(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dmray.mlflow_mirror.store import open_store;"
        "from dmray.records import SweepFolder; open_store(None, SweepFolder(Path(sys.argv[1]), sys.argv[2]))"
    )
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "fresh"), name], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in ("one", "two")
    ]
    for process in begun:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    assert sorted(path.name for path in (tmp_path / "fresh").iterdir() if "part" in path.name) == []


def test_a_process_that_was_killed_while_making_it_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    (tmp_path / ".mlflow.db.12345678.part-wal").touch()
    assert open_store(None, SweepFolder(tmp_path, "x")).find_runs("a", "b") == []
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize("name", ["p%41", "q?x=1", "a b#c", "ü'\"漢", "new\nline", "co:lon@at", "x" * 200])
def test_the_database_lies_in_the_storage_whatever_its_name(name: str, tmp_path: Path, storage: Path) -> None:
    place = tmp_path / "places" / name
    place.mkdir(parents=True)
    shutil.copy(storage / "mlflow.db", place)
    store: Any = open_store(None, SweepFolder(place, "sweep"))
    run_id = store.create_run("a run", {}, 1)
    store.save(run_id, "content", "folder/file.txt")
    assert [path.relative_to(place).parts[:2] for path in place.rglob("file.txt")] == [("mlartifacts", "sweep")]
    with closing(sqlite3.connect(place / "mlflow.db")) as connection:
        assert connection.execute("SELECT name FROM runs").fetchall() == [("a run",)]
    assert [path.name for path in place.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["p%41", "q?x=1", "co:lon"])
def test_a_fresh_database_is_made_in_a_storage_with_an_odd_name(name: str, tmp_path: Path) -> None:
    open_store(None, SweepFolder(tmp_path / "places" / name, "sweep"))
    assert (tmp_path / "places" / name / "mlflow.db").stat().st_size > 10_000
    assert [path.name for path in (tmp_path / "places").iterdir()] == [name]


def test_an_address_with_a_question_mark_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="write %3F for a '\\?'"):
        open_store(f"sqlite:///{tmp_path}/q?x=1/mlflow.db", SweepFolder(tmp_path, "x"))
    assert list(tmp_path.iterdir()) == []


def test_an_older_database_names_the_command_that_upgrades_it(storage: Path) -> None:
    changed(storage, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert f"older MLflow (schema 451aebb31d03): back it up, then run: mlflow db upgrade {sqlite_uri(storage)}" in (
        refusal(storage)
    )


def test_a_newer_database_asks_for_a_newer_mlflow(storage: Path) -> None:
    changed(storage, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert "was made by a newer MLflow than" in refusal(storage)


def test_the_database_of_another_program_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    before = (tmp_path / "mlflow.db").read_bytes()
    assert "the database of another program (it has the tables recipes" in refusal(tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    assert "is a folder" in refusal(tmp_path)


def test_a_link_to_itself_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").symlink_to("mlflow.db")
    for uri in (None, f"sqlite:///{tmp_path / 'mlflow.db'}"):
        with pytest.raises(TrackingError, match="is a link to itself or to nowhere; remove it"):
            open_store(uri, SweepFolder(tmp_path, "x"))


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mlflow.db")
    assert "is no ordinary file" in refusal(tmp_path)
    assert (tmp_path / "mlflow.db").is_fifo()


def test_reading_a_policy_from_a_database_that_is_not_there_makes_none(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlfow.db"
    with pytest.raises(TrackingError, match="there is no file"):
        download_checkpoint("0" * 32, "final", tmp_path, uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_database_that_was_cut_off_is_told(share: float, storage: Path) -> None:
    path = changed(storage, "PRAGMA user_version = 1")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "it is damaged or cut off: move it away" in refusal(storage)


def test_a_damaged_page_is_told(storage: Path) -> None:
    path = changed(storage, "PRAGMA user_version = 1")
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 9] = os.urandom(4096 * 6)
    path.write_bytes(content)
    assert "it is damaged or cut off: move it away" in refusal(storage)


def test_a_database_that_is_locked_for_long_is_told(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_WAIT_FOR_LOCK_S", 0.1)
    with closing(sqlite3.connect(storage / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "(database is locked)" in refusal(storage, TrackingUnavailableError)


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("attempt to write a readonly database", "make the file and its folder writable"),
        ("database or disk is full", "free some space"),
        ("disk I/O error", "check the disk and its free space"),
        ("unable to open database file", "name another with --mlflow-uri"),
    ],
)
def test_what_sqlite_says_is_told_with_the_cure(
    said: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise sqlite3.OperationalError(said)

    monkeypatch.setattr(database, "_make", fail)
    message = refusal(tmp_path)
    assert f"({said}): {cure}" in message
    assert "--mlflow-uri off" in message


def test_a_disk_that_is_full_is_an_outage(storage: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event

    store: Any = open_store(None, SweepFolder(storage, "x"))
    run_id = store.create_run("a run", {}, 1)
    engine = SqlAlchemyStore._engine_map[sqlite_uri(storage / "mlflow.db")]
    engine.dispose()
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(StoreError, match="database or disk is full") as caught:
        store.log(run_id, tags={f"t{number}": "x" * 4000 for number in range(90)})
    assert not caught.value.refused


def test_a_disk_that_is_full_at_the_start_is_told_with_the_cure(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, name: str, artifacts: Path | None) -> str:
        raise StoreError("(sqlite3.OperationalError) database or disk is full")

    monkeypatch.setattr(MlflowStore, "_ensure", fail)
    assert "does not work: (sqlite3.OperationalError) database or disk is full; free some space" in refusal(storage)


def test_a_storage_that_was_moved_keeps_its_artifacts_in_the_new_place(storage: Path, tmp_path: Path) -> None:
    sweep = example_sweep(name="moved")
    trials, folder = trials_of(sweep), SweepFolder(storage, "moved")
    write_ledger(folder, trials[0], whole_trial(50))
    assert MlflowMirror.open(None, folder, sweep, trials).close().records == 0
    open_store(None, SweepFolder(storage, "another"))
    place = tmp_path / "new place"
    storage.rename(place)
    folder = SweepFolder(place, "moved")
    write_ledger(folder, trials[1], whole_trial(60))
    assert MlflowMirror.open(None, folder, sweep, trials).close().records == 0
    assert not storage.exists()
    with closing(sqlite3.connect(place / "mlflow.db")) as connection:
        for table, column in database._ADDRESSES:
            found = [value for (value,) in connection.execute(f"SELECT {column} FROM {table}") if value]
            assert [value for value in found if storage.as_uri() in value] == []
    store: Any = open_store(None, folder)
    for run in store.find_runs("dmray.level", "trial"):
        assert "dataset" in Path(store._client.download_artifacts(run.run_id, "config.yaml")).read_text()
    assert not storage.exists()


def test_a_copy_of_a_storage_leaves_the_first_one_alone(storage: Path, tmp_path: Path) -> None:
    open_store(None, SweepFolder(storage, "copied"))
    copied_to = tmp_path / "copy"
    shutil.copytree(storage, copied_to)
    store: Any = open_store(None, SweepFolder(copied_to, "copied"))
    store.save(store.create_run("a run", {}, 1), "content", "file.txt")
    assert len(list(copied_to.rglob("file.txt"))) == 1
    assert list(storage.rglob("file.txt")) == []


def test_artifacts_that_somebody_put_elsewhere_stay_there(storage: Path, tmp_path: Path) -> None:
    open_store(None, SweepFolder(storage, "elsewhere"))
    elsewhere = "s3://bucket/mlartifacts/elsewhere"
    changed(storage, f"UPDATE experiments SET artifact_location = '{elsewhere}' WHERE name = 'dmray/elsewhere'")
    store: Any = open_store(None, SweepFolder(storage, "elsewhere"))
    assert store._client.get_experiment_by_name("dmray/elsewhere").artifact_location == elsewhere


def test_a_database_server_with_older_tables_names_the_command(storage: Path) -> None:
    uri = sqlite_uri(storage / "mlflow.db")
    check_tables(uri)  # as they should be
    changed(storage, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(TrackingError, match="mlflow db upgrade sqlite:///"):
        check_tables(uri)


def test_a_database_server_that_refuses_is_told_at_once() -> None:
    with pytest.raises(TrackingUnavailableError, match="cannot use postgresql://me:\\*\\*\\*@") as caught:
        check_tables(f"postgresql://me:hidden@127.0.0.1:{free_port()}/x")
    assert "hidden" not in str(caught.value)
