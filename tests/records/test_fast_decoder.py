"""A light record says what the record says, but for the numbers of single episodes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dmray.errors import StorageError
from dmray.records import METRICS, Ledger, LedgerRecord, LedgerTail, Score, read_ledger
from dmray.records.fast_decoder import LightEvaluationDone, LightTrainProgress
from tests.mlflow_mirror.examples import decided, done, evaluated, failed, started, stopped_trial, trained

RECORDS: list[LedgerRecord] = [
    *(started(), trained(20), evaluated(20, 50, 40), decided(20, 50, 60), failed(25), started(2, 20)),
    evaluated(40, 30, targets=[None]).model_copy(update={"quick": True}),
    *(*stopped_trial(10, 50), done()),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for record in RECORDS:
        ledger.append(record)
    return ledger.path


def test_every_metric_of_a_light_record_is_that_of_the_record(path: Path) -> None:
    light = LedgerTail(path, light=True).read()
    assert [record.kind for record in light] == [record.kind for record in RECORDS]
    measured = 0
    for record, whole in zip(light, read_ledger(path), strict=True):
        assert (record.time_s, getattr(record, "step", None)) == (whole.time_s, getattr(whole, "step", None))
        for metric in METRICS.get(whole.kind, ()):  # type: ignore[call-overload]
            assert list(metric.values(record)) == list(metric.values(whole))
            measured += 1
    assert measured > 20


def test_evaluations_and_training_records_are_read_fast_and_without_episodes(path: Path) -> None:
    light = LedgerTail(path, light=True).read()
    assert {type(record) for record in light if record.kind == "evaluation"} == {LightEvaluationDone}
    assert {type(record) for record in light if record.kind == "train"} == {LightTrainProgress}
    assert not hasattr(light[2].targets[0], "returns")  # type: ignore[union-attr]
    assert Score.of(light[2]) == Score.of(RECORDS[2])  # type: ignore[arg-type]


def test_light_records_cross_processes(path: Path) -> None:
    light = LedgerTail(path, light=True).read()
    assert pickle.loads(pickle.dumps(light)) == light


@pytest.mark.parametrize(
    "garbage", [b"\0\0\0\n", b"{}\n", b'{"kind": "train", "step": 1}\n', b"\n", b'{"kind":"eval\n']
)
def test_a_damaged_line_is_named_by_file_and_line(path: Path, garbage: bytes) -> None:
    before = len(RECORDS)
    path.write_bytes(path.read_bytes() + garbage)
    with pytest.raises(StorageError, match=rf"ledger\.jsonl:{before + 1}: not a ledger record"):
        LedgerTail(path, light=True).read()


def test_an_evaluation_without_targets_is_no_record(path: Path) -> None:
    line = evaluated(20, 1, 1).model_copy(update={"targets": []}).model_dump_json()
    path.write_text(line + "\n")
    with pytest.raises(StorageError, match=r"ledger\.jsonl:1: not a ledger record"):
        LedgerTail(path, light=True).read()
