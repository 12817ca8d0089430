from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from dmray.errors import StorageError, StoreUnavailableError
from dmray.files import write_atomic
from dmray.records import SweepFolder, TrialFolder
from dmray.storage import Publisher, Store
from dmray.storage.publisher import PublishTiming
from tests.storage.conftest import S3
from tests.waiting import wait_until

FAST = PublishTiming(every_s=0.01, shortest_pause_s=0.01, longest_pause_s=0.05)
NEVER = PublishTiming(every_s=3600.0)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "tiny")


@pytest.fixture
def trial(folder: SweepFolder) -> TrialFolder:
    return folder.trial("one")


class Remembers(Store):
    """A store that remembers the order of what it is sent."""

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid4().hex[:8]}/tiny")
        self.names: list[str] = []

    def write(self, name: str, content: bytes) -> None:
        self.names.append(name)
        super().write(name, content)


def write_all(trial: TrialFolder, ledger: bytes) -> None:
    """In the order in which a trial writes them."""
    write_atomic(trial.best_checkpoint, b"content")
    write_atomic(trial.episode_table(20), b"content")
    write_atomic(trial.ledger, ledger)
    write_atomic(trial.last_checkpoint, b"content")
    write_atomic(trial.done, b"content")


def wait_until_sent(store: Store, name: str, content: bytes) -> None:
    wait_until(lambda: store.read(name) == content)


def wake_until_it_raises(publisher: Publisher) -> None:
    wait_until(publisher.wake)  # it returns nothing, so this ends with its error


def test_files_are_sent_before_the_ledger_that_mentions_them_and_the_marker_last(
    folder: SweepFolder, trial: TrialFolder
) -> None:
    store = Remembers()
    write_all(trial, b"one\n")
    Publisher(store, folder, trial, NEVER).close(0.0)
    assert store.names == [
        "trials/one/checkpoints/best.pt",
        "evaluations/one/step_000000020.parquet",
        "trials/one/ledger.jsonl",
        "trials/one/checkpoints/last.pt",
        "trials/one/DONE.json",
    ]


def test_only_what_has_changed_is_sent_again(folder: SweepFolder, trial: TrialFolder) -> None:
    store = Remembers()
    write_all(trial, b"one\n")
    publisher = Publisher(store, folder, trial, FAST)
    wait_until_sent(store, "trials/one/DONE.json", b"content")
    sent = len(store.names)
    write_atomic(trial.ledger, b"one\ntwo\n")
    wait_until_sent(store, "trials/one/ledger.jsonl", b"one\ntwo\n")
    publisher.close(0.0)
    assert store.names[sent:] == ["trials/one/ledger.jsonl"]


def test_an_incomplete_line_is_not_sent(folder: SweepFolder, trial: TrialFolder, url: str) -> None:
    write_all(trial, b"one\ntw")
    Publisher(Store(url), folder, trial, NEVER).close(0.0)
    assert Store(url).read("trials/one/ledger.jsonl") == b"one\n"


def test_wake_uploads_at_once_and_stop_uploads_nothing_more(folder: SweepFolder, trial: TrialFolder) -> None:
    store = Remembers()
    publisher = Publisher(store, folder, trial, NEVER)
    write_all(trial, b"one\n")
    publisher.wake()
    wait_until_sent(store, "trials/one/DONE.json", b"content")
    write_atomic(trial.ledger, b"one\ntwo\n")
    publisher.stop()
    assert store.read("trials/one/ledger.jsonl") == b"one\n"


@pytest.mark.parametrize("ledger_grows", [True, False])
def test_a_worker_whose_trial_runs_elsewhere_ends_without_overwriting_anything(
    folder: SweepFolder, trial: TrialFolder, url: str, ledger_grows: bool
) -> None:
    store = Store(url)
    publisher = Publisher(store, folder, trial, FAST)
    write_all(trial, b"one\n")
    wait_until_sent(store, "trials/one/DONE.json", b"content")
    store.write("trials/one/ledger.jsonl", b"one\ntheirs\n")
    if ledger_grows:
        write_atomic(trial.ledger, b"one\nours\n")
    write_atomic(trial.last_checkpoint, b"ours")
    with pytest.raises(StorageError, match="another worker runs this trial now"):
        wake_until_it_raises(publisher)
    with pytest.raises(StorageError, match="another worker"):
        publisher.close(60.0)
    assert store.read("trials/one/ledger.jsonl") == b"one\ntheirs\n"
    assert store.read("trials/one/checkpoints/last.pt") == b"content"


def test_a_write_whose_answer_was_lost_is_not_taken_for_another_worker(
    folder: SweepFolder, trial: TrialFolder, url: str
) -> None:
    store = Store(url)
    publisher = Publisher(store, folder, trial, NEVER)
    store.write("trials/one/ledger.jsonl", b"one\n")  # as this worker's own, which it never heard the end of
    write_all(trial, b"one\ntwo\n")
    publisher.close(0.0)
    assert store.read("trials/one/ledger.jsonl") == b"one\ntwo\n"


def test_a_store_that_does_not_answer_is_an_error_only_at_the_end(
    folder: SweepFolder, trial: TrialFolder, s3: S3, s3_url: str
) -> None:
    publisher = Publisher(Store(s3_url), folder, trial, FAST)
    s3.stop()
    try:
        write_all(trial, b"one\n")
        publisher.wake()
        with pytest.raises(StoreUnavailableError, match=r"does not answer.*--resume on this machine continues"):
            publisher.close(0.0)
    finally:
        s3.start()
    assert trial.ledger.read_bytes() == b"one\n"
