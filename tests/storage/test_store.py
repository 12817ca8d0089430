from __future__ import annotations

from pathlib import Path

import pytest

from dmray.errors import MissingPackageError, StorageError, StoreUnavailableError
from dmray.records import SweepFolder
from dmray.storage import Store, is_url, split_url, sweep_folder
from dmray.storage.place import object_name
from tests.storage.conftest import S3


def test_objects_are_put_whole_read_listed_and_removed(url: str) -> None:
    store = Store(url)
    store.require_writable()
    assert store.list("trials") == {}
    assert (store.read("trials/a/x"), store.version("trials/a/x")) == (None, None)
    store.write("trials/a/x", b"one")
    store.write("trials/b", b"")
    first = store.list("trials")
    assert first.keys() == {"trials/a/x", "trials/b"}
    assert store.version("trials/a/x") == first["trials/a/x"], "a listing and a question say the same"
    store.write("trials/a/x", b"three")
    second = store.list("trials")
    assert second["trials/b"] == first["trials/b"]
    assert second["trials/a/x"] != first["trials/a/x"]
    assert store.sizes("trials") == {"trials/a/x": 5, "trials/b": 0}
    assert store.folders("trials") == ("a",)
    assert store.read("trials/a/x") == b"three"
    assert store.read("trials/a/x", 2) == b"ree"
    store.remove("trials/a/x")
    store.remove("trials/a/x")
    store.remove_all("trials")
    store.remove_all("trials")
    assert store.list("") == {}


def test_an_object_is_created_once(url: str) -> None:
    store = Store(url)
    assert store.create("name", b"first")
    assert not store.create("name", b"second")
    assert store.read("name") == b"first"


def test_a_missing_bucket_is_named(s3: S3) -> None:
    with pytest.raises(StorageError, match="bucket does not exist; create the bucket"):
        Store("s3://no-such-bucket/runs").require_writable()
    with pytest.raises(StorageError, match="create the bucket"):
        Store("s3://no-such-bucket/runs").list("trials")


def test_missing_credentials_are_named(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
        Store("s3://sweeps/runs").require_writable()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_does_not_answer_is_a_transient_error(s3: S3) -> None:
    store = Store("s3://sweeps/runs")
    s3.stop()
    try:
        with pytest.raises(StoreUnavailableError, match="does not answer") as told:
            store.read("x")
    finally:
        s3.start()
    assert isinstance(told.value, OSError), "another attempt may do better"
    assert store.read("x") is None


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("s4://bucket/runs", StorageError, "unknown scheme 's4://', did you mean 's3://'"),
        ("gs://bucket/runs", MissingPackageError, "pip install gcsfs"),
    ],
)
def test_a_wrong_scheme_and_a_missing_package_are_named(url: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Store(url)


def test_folders_stay_folders_and_urls_get_one_for_each_role(tmp_path: Path) -> None:
    assert not is_url(str(tmp_path))
    assert sweep_folder(str(tmp_path), "tiny", "worker") == SweepFolder(tmp_path, "tiny")
    places = {sweep_folder(url, "tiny", role).path for url in ("s3://a/b", "s3://a/c") for role in ("worker", "driver")}
    assert len(places) == 4
    assert sweep_folder("s3://a/b/", "tiny", "driver") == sweep_folder("s3://a/b", "tiny", "driver")


def test_the_url_of_a_sweep_is_split_into_storage_and_name() -> None:
    assert split_url("s3://bucket/prefix/quickstart/") == ("s3://bucket/prefix", "quickstart")
    for wrong in ("s3://bucket", "s3://"):
        with pytest.raises(StorageError, match="not the URL of a sweep"):
            split_url(wrong)


def test_episode_tables_are_outside_trials_so_that_listing_trials_stays_cheap(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "tiny")
    trial = folder.trial("one")
    assert object_name(folder, trial.episode_table(20)) == "evaluations/one/step_000000020.parquet"
    assert object_name(folder, trial.last_checkpoint) == "trials/one/checkpoints/last.pt"
    assert object_name(folder, folder.manifest) == "sweep.json"
