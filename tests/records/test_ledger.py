from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmray.errors import StorageError
from dmray.records import Ledger, LedgerRecord, LedgerTail, distinct, read_ledger
from tests.mlflow_mirror.examples import done, evaluated, failed, started, trained

RECORDS = [started(), trained(20), evaluated(20, 50, 40), failed(25), started(2, 20), trained(40), done()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trial" / "ledger.jsonl"


def write(path: Path, records: list[Any]) -> bytes:
    ledger = Ledger(path)
    for record in records:
        ledger.append(record)
    return path.read_bytes()


def test_what_is_appended_is_read_back(path: Path) -> None:
    write(path, RECORDS)
    assert read_ledger(path) == RECORDS


def test_a_missing_ledger_is_an_empty_one(path: Path) -> None:
    assert read_ledger(path) == []


def test_after_a_kill_at_any_byte_the_whole_lines_are_kept_and_writing_goes_on(path: Path) -> None:
    content = write(path, RECORDS)
    last_line = content.rindex(b"\n", 0, -1) + 1
    for size in [0, 1, *range(last_line, len(content))]:
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        assert read_ledger(path) == RECORDS[:whole]
        Ledger(path).append(trained(99))
        assert read_ledger(path) == [*RECORDS[:whole], trained(99)]


def test_a_torn_line_longer_than_a_block_is_removed(path: Path) -> None:
    content = write(path, RECORDS[:2])
    path.write_bytes(content + b'{"kind": "' + b"x" * 200_000)
    Ledger(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("garbage", [b"\0\0\0\n", b"{}\n", b'{"kind": "train", "step": 1}\n', b"\n"])
def test_garbage_in_the_middle_is_named_by_file_and_line(path: Path, garbage: bytes) -> None:
    content = write(path, RECORDS[:2])
    path.write_bytes(content + garbage + content)
    with pytest.raises(StorageError, match=r"ledger\.jsonl:3: not a ledger record"):
        read_ledger(path)


def test_a_full_disk_leaves_the_ledger_as_it_was(path: Path) -> None:
    import resource
    import signal

    content = write(path, RECORDS[:2])
    ledger, limits = Ledger(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 10, limits[1]))  # the next line fits in part only
    try:
        with pytest.raises(StorageError, match=r"File too large.*free some space"):
            ledger.append(trained(40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == content


def test_a_tail_gives_each_whole_line_once(path: Path) -> None:
    tail = LedgerTail(path)
    assert tail.read() == []
    content = write(path, RECORDS[:2])
    assert tail.read() == RECORDS[:2]
    assert tail.read() == []
    line = write(path, [RECORDS[2]])[len(content) :]
    path.write_bytes(content + line[:-5])
    assert tail.read() == []
    path.write_bytes(content + line)
    assert tail.read() == [RECORDS[2]]


def test_a_tail_can_be_read_in_parts(path: Path) -> None:
    write(path, RECORDS)
    tail = LedgerTail(path)
    parts = [tail.read(at_most=3) for _ in range(4)]
    assert [len(part) for part in parts] == [3, 3, 1, 0]
    assert [record for part in parts for record in part] == RECORDS


def test_the_first_record_of_a_kind_and_step_counts() -> None:
    records: list[LedgerRecord] = [
        started(),
        trained(20, 0.5),
        trained(20, 0.7),
        evaluated(20, 1, 1),
        started(2),
        evaluated(20, 2, 2),
    ]
    assert distinct(records) == [started(), trained(20, 0.5), evaluated(20, 1, 1), started(2)]


def test_only_the_first_end_counts() -> None:
    assert distinct([done(40), done(40, "diverged"), done(60)]) == [done(40)]
