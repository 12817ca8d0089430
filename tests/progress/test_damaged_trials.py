"""A trial folder that is damaged is one failed trial, with its sentence, in every view; the others are not affected."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmray.errors import StorageError
from dmray.planning.manifest import read_manifest
from dmray.progress.progress import Follower
from dmray.progress.summary import follower_of, summarize
from dmray.progress.trial_status import TrialStatus, failures, read_history, restore_done_markers, trial_statuses
from dmray.records import SweepFolder
from dmray.records import ledger as ledger_module
from dmray.reporting.results import collect
from tests.progress.ledgers import begun, done, evaluated, started, trained


def a_line(text: bytes) -> Callable[[Path], object]:
    return lambda ledger: ledger.write_bytes(ledger.read_bytes() + text + b"\n")


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(ledger: Path) -> None:
        ledger.unlink()
        make(ledger)

    return replace


RECORD = b'{"time_s":%s,"kind":"paused","attempt":1,"step":%s}'
DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeros": a_line(b"\0" * 100),
    "no UTF-8": a_line(b'{"kind": "\xff\xfe"}'),
    "deep": a_line(b"[" * 100_000),
    "late": a_line(RECORD % (b"1e300", b"1")),
    "infinite": a_line(RECORD % (b"1e999", b"1")),
    "no number": a_line(RECORD % (b"NaN", b"1")),
    "before 1970": a_line(RECORD % (b"-1", b"1")),
    "huge step": a_line(RECORD % (b"1", b"9" * 400)),
    "negative step": a_line(RECORD % (b"1", b"-4")),
    "huge light step": a_line(b'{"time_s":1,"kind":"evaluation","step":1e30}'),
    "escape codes": a_line(b'{"kind": "\\u001b[31m"}'),
    "folder": instead(lambda ledger: ledger.mkdir()),
    "pipe": instead(os.mkfifo),
    "dangling link": instead(lambda ledger: ledger.symlink_to("nowhere")),
    "link to itself": instead(lambda ledger: ledger.symlink_to(ledger.name)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_a_failure_of_its_trial_in_every_view(tmp_path: Path, damage: str) -> None:
    plan, folder = begun(tmp_path, [started(), trained(20)], [started(), evaluated(40), done(40)])
    first, second = plan.trials
    ledger = folder.trial(first.trial_id).ledger
    DAMAGES[damage](ledger)
    statuses = trial_statuses(plan, folder)
    assert statuses == {first.trial_id: TrialStatus.FAILED, second.trial_id: TrialStatus.FINISHED}
    message = failures(plan, folder)[first.trial_id]
    assert str(ledger) in message
    assert "\n" not in message
    assert message.isprintable()
    restore_done_markers(plan, folder)
    summary = summarize(follower_of(folder))
    assert [row.error is not None and str(ledger) in row.error for row in summary.failures] == [True]
    assert summary.statuses["finished"] == 1
    results = collect(folder)
    assert [result.status for result in results.trials] == [TrialStatus.FAILED, TrialStatus.FINISHED]
    assert results.trials[0].error == read_history(folder.trial(first.trial_id), first).error


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_LONGEST_LINE", 100_000)
    plan, folder = begun(tmp_path, [started()])
    with folder.trial(plan.trial_ids[0]).ledger.open("ab") as stream:
        stream.write(b"x" * 200_000)
    assert "a line of more than 100,000 bytes" in failures(plan, folder)[plan.trial_ids[0]]


def test_a_folder_in_the_place_of_a_trial_and_the_reverse_are_told(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path)
    trial = folder.trial(plan.trial_ids[0])
    trial.path.parent.mkdir(parents=True)
    trial.path.write_text("no folder")
    assert "cannot be read (Not a directory)" in failures(plan, folder)[plan.trial_ids[0]]
    assert len(summarize(follower_of(folder)).failures) == 1


def test_a_view_recovers_when_the_ledger_is_right_again(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started(), trained(20)])
    ledger = folder.trial(plan.trial_ids[0]).ledger
    follower = Follower(folder, plan.trials)
    assert follower.update().steps == 20
    content = ledger.read_bytes()
    ledger.write_bytes(content[: content.index(b"\n") + 1])
    history = follower.update().trials[plan.trial_ids[0]]
    assert history.damage is not None
    assert "was cut to" in history.damage
    ledger.write_bytes(content)
    assert follower.update().steps == 20
    assert follower.update().trials[plan.trial_ids[0]].status is TrialStatus.STARTED


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b'{"sweep": ', b"\xff\xfe", b"[" * 100_000, b'{"identity_version": 1e400}', b"{}"]
)
def test_a_torn_manifest_is_told_with_the_cure(tmp_path: Path, content: bytes) -> None:
    _, folder = begun(tmp_path)
    folder.manifest.write_bytes(content)
    with pytest.raises(StorageError, match=r"sweep\.json: not the manifest of a sweep.*with --resume") as told:
        read_manifest(folder)
    assert "\n" not in str(told.value)


def test_a_manifest_that_is_a_pipe_is_told_at_once(tmp_path: Path) -> None:
    _, folder = begun(tmp_path)
    folder.manifest.unlink()
    os.mkfifo(folder.manifest)
    with pytest.raises(StorageError, match="a pipe, not a file"):
        follower_of(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 32, b"../../x"])
def test_a_damaged_id_of_a_sweep_is_told(tmp_path: Path, content: bytes) -> None:
    folder = SweepFolder(tmp_path, "tiny")
    folder.path.mkdir()
    folder.identity.write_bytes(content)
    with pytest.raises(StorageError, match="not the id of a sweep"):
        folder.sweep_id()


@pytest.mark.parametrize("offset_s", [-86_400.0, -30.0, 5.0, 30.0, 86_400.0])
def test_clocks_that_differ_give_no_odd_rates(tmp_path: Path, offset_s: float) -> None:
    now = time.time() + offset_s
    _, folder = begun(tmp_path, [started(0, now - 20), trained(10, now - 10), trained(20, now)])
    rates = follower_of(folder).update().rates(time.time())
    assert 0 <= rates.steps_per_s <= 1.1


def test_a_clock_that_goes_back_gives_no_odd_rates(tmp_path: Path) -> None:
    now = time.time()
    _, folder = begun(tmp_path, [started(0, now), trained(10, now - 20), trained(20, now - 10)])
    rates = follower_of(folder).update().rates(now)
    assert 0 < rates.steps_per_s <= 1.1
