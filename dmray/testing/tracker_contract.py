"""What every tracker must do (`dmray.trackers.table.Tracker`): tests for a subclass that opens one and reads it.

class TestMyTracker(TrackerContract):
    def open(self, folder, sweep, trials): return MyTracker(...)
    def shown(self, folder): return {trial_id: Shown(...), ...}
    def break_down(self, folder): ...
    def repair(self, folder): ...
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from dmray.files import write_json
from dmray.mlflow_mirror.outage import Lag
from dmray.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    EvaluationDone,
    Ledger,
    LedgerRecord,
    SweepFolder,
    TargetResult,
    TrainProgress,
    TrialDone,
)
from dmray.specs import SweepSpec, TrainingSpec, TrialSpec
from dmray.trackers.table import Tracker

SECRET = "correct-horse"  # noqa: S105 - what must not be written
_T0 = 1_700_000_000.0  # seconds since the epoch; a record at step s is s seconds later


class Shown(NamedTuple):
    """What a tracker shows of one trial: (metric, step, value) of each point, and the latest value of each text.

    `params`: settings as texts. `facts`: what may change when a trial continues. `status`: dmray's.
    """

    points: Sequence[tuple[str, int, float]]
    params: Mapping[str, str]
    facts: Mapping[str, str]
    status: str


class TrackerContract:
    """Tests a tracker. `digits`: how many decimal digits of a value it keeps."""

    digits: ClassVar[int] = 15

    def open(self, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> Tracker:
        """A tracker of the sweep, new or after a kill of the last one."""
        raise NotImplementedError

    def shown(self, folder: SweepFolder) -> Mapping[str, Shown]:
        """What is there, by trial id, read with the tracker's own reader."""
        raise NotImplementedError

    def break_down(self, folder: SweepFolder) -> None:
        """From now on the tracker's place cannot be written."""
        raise NotImplementedError

    def repair(self, folder: SweepFolder) -> None:
        """It can be written again."""
        raise NotImplementedError

    def test_every_metric_is_there_at_its_step_exactly_once(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path)
        made.append(0, *_finished())
        assert self._closed(made).problem is None
        shown = self.shown(made.folder)[made.ids[0]]
        assert self._values(shown, "train/loss") == self._rounded((20, 0.05), (40, 0.025))
        assert self._values(shown, "eval/normalized_score") == self._rounded((20, 50.0), (40, 60.0))
        assert self._values(shown, "final/normalized_score") == self._rounded((40, 60.0))
        assert self._values(shown, "best/normalized_score") == self._rounded((40, 60.0))
        assert self._values(shown, "time/train_s") == self._rounded((40, 3.0))
        assert _repeated(shown) == {}

    def test_a_tracker_that_is_killed_after_each_record_ends_with_the_same_content(self, tmp_path: Path) -> None:
        undisturbed, disturbed = _Sweep(tmp_path / "one"), _Sweep(tmp_path / "two")
        undisturbed.append(0, *_finished())
        self._closed(undisturbed)
        for record in _finished():
            disturbed.append(0, record)
            assert self._open(disturbed).advance()  # and is left as it is
        assert self._closed(disturbed).problem is None
        one, two = (self.shown(made.folder)[made.ids[0]] for made in (undisturbed, disturbed))
        assert _repeated(two) == {}
        assert sorted(one.points) == sorted(two.points)
        assert (one.params, one.facts, one.status) == (two.params, two.facts, two.status)

    def test_a_ledger_that_grows_is_followed(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path)
        tracker = self._open(made)
        for record in _finished():
            made.append(0, record)
            assert tracker.advance()
        assert tracker.close().problem is None
        shown = self.shown(made.folder)[made.ids[0]]
        assert self._values(shown, "train/loss") == self._rounded((20, 0.05), (40, 0.025))
        assert (_repeated(shown), shown.status) == ({}, "finished")

    def test_closing_again_and_a_replay_change_nothing(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path)
        made.append(0, *_finished())
        made.append(1, _started(), _trained(20))
        tracker = self._open(made)
        tracker.close()
        before = self.shown(made.folder)
        tracker.close()
        self._closed(made)
        assert self.shown(made.folder) == before

    def test_of_a_step_that_was_repeated_after_a_crash_the_first_record_counts(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path)
        made.append(0, _started(), _trained(20, 0.5), _started(2), _trained(20, 0.7), _trained(40, 0.3))
        self._closed(made)
        assert self._values(self.shown(made.folder)[made.ids[0]], "train/loss") == self._rounded((20, 0.5), (40, 0.3))

    def test_settings_machine_and_error_of_a_trial_are_there(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path)
        made.append(0, _started(), _trained(20), _failed(21))
        self._closed(made)
        shown = self.shown(made.folder)[made.ids[0]]
        wanted = {"method": "dm", "dataset": "hopper-medium-v2", "seed": "0", "d_model": "128", "steps": "40"}
        assert {name: shown.params[name] for name in wanted} == wanted
        facts = {"host": "node-1", "git.commit": "c0ffee", "dmray.last_error": "OSError: disk full"}
        assert {name: shown.facts[name] for name in facts} == facts

    def test_statuses_are_those_of_the_ledgers(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path, seeds=6)
        tracker = self._open(made)
        made.append(0, *_finished())
        made.append(1, _started(), _trained(20), _failed(21))
        made.append(2, _started(), _trained(20))
        made.append(3, _started(), _trained(20), AttemptPaused(time_s=_T0 + 20, attempt=1, step=20))
        made.append(4, _started(), TrialDone(time_s=_T0 + 9, status="diverged", step=8, best_step=None, train_s=1.0))
        assert tracker.advance()
        tracker.close()
        shown = self.shown(made.folder)
        statuses = [shown[trial_id].status if trial_id in shown else None for trial_id in made.ids]
        assert statuses == ["finished", "failed", "interrupted", "paused", "diverged", None]

    def test_a_trial_that_failed_or_was_killed_goes_on_in_its_run(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path)
        made.append(0, _started(), _trained(20, 0.5), _failed(21))
        self._closed(made)
        made.append(0, _started(2), _trained(40, 0.3))
        self._closed(made)
        made.append(0, _started(3), _evaluated(40, 60.0), _done())
        self._closed(made)
        shown = self.shown(made.folder)[made.ids[0]]
        assert self._values(shown, "train/loss") == self._rounded((20, 0.5), (40, 0.3))
        assert (_repeated(shown), shown.status, shown.facts["dmray.attempt"]) == ({}, "finished", "3")

    def test_a_tracker_that_fails_is_a_warning_and_a_replay_gives_the_same_content(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        undisturbed, made = _Sweep(tmp_path / "one"), _Sweep(tmp_path / "two")
        for each in (undisturbed, made):
            each.append(0, _started(), _trained(20, 0.05))
        tracker = self._open(made)
        tracker.advance()
        self.break_down(made.folder)
        for each in (undisturbed, made):
            each.append(0, *_finished()[2:])
        with caplog.at_level(logging.WARNING, logger="dmray"):
            assert not tracker.advance()
            lag = tracker.close()
        assert lag.problem is not None
        assert f"{tracker.name} takes no records" in caplog.text
        assert f"python -m dmray.track replay {made.folder.path}" in caplog.text
        self.repair(made.folder)
        assert self._closed(made) == Lag(0, 0.0, None)
        self._closed(undisturbed)
        one, two = (self.shown(each.folder)[each.ids[0]] for each in (undisturbed, made))
        assert (_repeated(two), sorted(two.points)) == ({}, sorted(one.points))
        assert two.status == "finished"

    def test_a_damaged_ledger_fails_its_trial_alone(self, tmp_path: Path) -> None:
        made = _Sweep(tmp_path)
        made.append(0, _started(), _trained(20))
        with made.folder.trial(made.ids[0]).ledger.open("ab") as ledger:
            ledger.write(b"no record\n")
        made.append(1, *_finished())
        self._closed(made)
        self._closed(made)
        shown = self.shown(made.folder)
        assert [shown[trial_id].status for trial_id in made.ids[:2]] == ["failed", "finished"]
        assert "not a ledger record" in shown[made.ids[0]].facts["dmray.last_error"]

    def test_no_password_of_this_process_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = _Sweep(tmp_path)
        monkeypatch.setattr(sys, "argv", ["dmray.sweep", "--mlflow-uri", f"http://me:{SECRET}@host"])
        monkeypatch.setitem(os.environ, "WANDB_API_KEY", SECRET * 4)
        made.append(0, *_finished())
        self._closed(made)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert [path for path in files if SECRET.encode() in path.read_bytes()] == []

    def _open(self, made: _Sweep) -> Tracker:
        return self.open(made.folder, made.sweep, made.trials)

    def _closed(self, made: _Sweep) -> Lag:
        return self._open(made).close()

    def _values(self, shown: Shown, metric: str) -> list[tuple[int, float]]:
        return self._rounded(*sorted((step, value) for name, step, value in shown.points if name == metric))

    def _rounded(self, *points: tuple[int, float]) -> list[tuple[int, float]]:
        return [(step, float(f"{value:.{self.digits - 1}e}")) for step, value in points]


class _Sweep:
    """A sweep's folder with ledgers of known content."""

    def __init__(self, storage: Path, seeds: int = 2) -> None:
        content: dict[str, Any] = {
            "name": "contract",
            "datasets": ["hopper-medium-v2"],
            "grid": [{"methods": ["dm"]}],
            "seeds": list(range(seeds)),
            "training": {"steps": 40},
            "evaluation": {"episodes": 2, "every_steps": 20, "target_returns": [3600.0]},
        }
        self.sweep = SweepSpec.model_validate(content)
        self.folder = SweepFolder(storage, self.sweep.name)
        common: dict[str, Any] = {
            "dataset": self.sweep.datasets[0],
            "method": "dm",
            "model": {},
            "training": TrainingSpec.model_validate(self.sweep.training.written),
            "evaluation": self.sweep.evaluation,
        }
        self.trials = tuple(TrialSpec(**common, seed=seed) for seed in self.sweep.seeds)
        self.ids = [trial.trial_id for trial in self.trials]

    def append(self, trial: int, *records: LedgerRecord) -> None:
        files = self.folder.trial(self.ids[trial])
        ledger = Ledger(files.ledger)
        for record in records:
            if isinstance(record, AttemptStarted):
                record = record.model_copy(update={"trial_id": self.ids[trial]})
            ledger.append(record)
            if isinstance(record, TrialDone):
                write_json(files.done, record.model_dump(mode="json"))


def _repeated(shown: Shown) -> dict[tuple[str, int], int]:
    """The points that are there more than once."""
    counts = Counter((name, step) for name, step, _ in shown.points)
    return {point: count for point, count in counts.items() if count > 1}


def _finished() -> list[LedgerRecord]:
    first, second = ((_trained(step, 1.0 / step), _evaluated(step, 40.0 + step / 2)) for step in (20, 40))
    return [_started(), *first, *second, _done()]


def _started(attempt: int = 1) -> AttemptStarted:
    made = {"git": {"commit": "c0ffee", "dirty": False}, "hostname": "node-1", "dataset_fingerprint": "f00d"}
    return AttemptStarted(time_s=_T0, attempt=attempt, from_step=0, trial_id="", spec={}, provenance=made)


def _trained(step: int, loss: float = 0.5) -> TrainProgress:
    return TrainProgress(
        time_s=_T0 + step, step=step, loss=loss, stage_losses={}, grad_norm=1.0, learning_rate=1e-4, steps_per_s=10.0
    )


def _evaluated(step: int, score: float) -> EvaluationDone:
    result = TargetResult(
        target_return=3600.0,
        returns=[10 * score, 10 * score],
        lengths=[100, 100],
        return_mean=10 * score,
        return_std=0.0,
        normalized_mean=score,
        normalized_std=0.0,
        length_mean=100.0,
    )
    return EvaluationDone(time_s=_T0 + step + 0.5, step=step, decode="window", seed=0, targets=[result], wall_s=2.0)


def _failed(step: int) -> AttemptFailed:
    return AttemptFailed(time_s=_T0 + step, attempt=1, step=step, error="OSError: disk full", traceback="OSError\n")


def _done(step: int = 40) -> TrialDone:
    return TrialDone(time_s=_T0 + step + 1, status="finished", step=step, best_step=step, train_s=3.0)
