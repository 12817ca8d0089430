"""A ledger read for its scores says what its records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmray.errors import StorageError
from dmray.records import EvaluationDone, Ledger, LedgerRecord, Score, read_ledger, summarize_ledger
from dmray.records.ledger_summary import _EVALUATION
from dmray.records.scores import best_score, last_score
from tests.mlflow_mirror.examples import done, evaluated, failed, started, trained, whole_trial


def written(path: Path, records: list[LedgerRecord]) -> Path:
    ledger = Ledger(path / "ledger.jsonl")
    for record in records:
        ledger.append(record)
    return ledger.path


@pytest.mark.parametrize(
    "records",
    [
        whole_trial(50, 60),
        [started(), trained(10), evaluated(20, 30, 20), evaluated(40, 90, 10), evaluated(20, 99, 99), done(40)],
        [started(), evaluated(20, 60, 20), evaluated(40, 60, 10).model_copy(update={"quick": True})],
    ],
)
def test_scores_are_those_of_the_records(tmp_path: Path, records: list[LedgerRecord]) -> None:
    path = written(tmp_path, records)
    first: dict[int, Score] = {}
    for record in read_ledger(path):
        if isinstance(record, EvaluationDone):
            first.setdefault(record.step, Score.of(record))
    found = summarize_ledger(path)
    assert list(found.scores) == [first[step] for step in sorted(first)]
    assert found.scores.last == last_score(first.values())
    assert found.scores.best == best_score(first.values())


def test_evaluations_are_read_by_the_fast_pattern(tmp_path: Path) -> None:
    path = written(tmp_path, [evaluated(20, 30, 20)])
    assert _EVALUATION.match(path.read_bytes().strip() + b"\n"), "the ledger's format and the pattern have parted"


def test_what_else_a_report_needs(tmp_path: Path) -> None:
    path = written(tmp_path, [started(), trained(30), failed(30), started(2, 20), trained(35)])
    found = summarize_ledger(path)
    assert (found.begun, found.attempts, found.steps, found.failed, found.ended) == (True, 2, 35, False, None)
    assert found.error == "OSError: disk full"
    assert found.provenance["hostname"] == "node-1"
    assert summarize_ledger(written(tmp_path / "other", [started(), failed(30)])).failed
    assert not summarize_ledger(tmp_path / "none.jsonl").begun


def test_the_mean_of_the_last_ten(tmp_path: Path) -> None:
    path = written(tmp_path, [evaluated(20 * n, n, n) for n in range(1, 13)])
    assert summarize_ledger(path).scores.mean_of_last(10) == pytest.approx(sum(range(3, 13)) / 10)


def test_a_torn_line_is_ignored_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = written(tmp_path, [evaluated(20, 30, 20)])
    with path.open("ab") as stream:
        stream.write(b'{"time_s":1.0,"kind":"eval')
    assert len(summarize_ledger(path).scores) == 1
    with path.open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(StorageError, match=r"ledger.jsonl:2: not a ledger record"):
        summarize_ledger(path)
