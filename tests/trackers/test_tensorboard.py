"""What TensorBoard gets beside the contract of trackers, and event files that were torn, cut or removed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dmray.errors import MissingPackageError
from dmray.records import SweepFolder
from dmray.specs import TrackingSpec
from dmray.trackers.run_mirror import RunMirror
from dmray.trackers.table import check_trackers
from dmray.trackers.tensorboard_runs import EVENTS, TensorBoardRuns, tensorboard_folder
from tests.mlflow_mirror.examples import example_sweep, started, trained, trials_of, whole_trial, write_ledger
from tests.trackers.readers import hparams_status, tensorboard_shown

pytest.importorskip("tensorboard", reason='pip install "dmray[tensorboard]"')

SWEEP = example_sweep()
TRIAL, *_ = TRIALS = trials_of(SWEEP)


def mirror(folder: SweepFolder) -> RunMirror:
    return RunMirror(TensorBoardRuns(folder), folder, SWEEP, TRIALS)


def events_of(folder: SweepFolder) -> Path:
    return tensorboard_folder(folder) / TRIAL.trial_id / EVENTS


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The event file of a whole trial."""
    folder = SweepFolder(tmp_path_factory.mktemp("undisturbed"), "example")
    write_ledger(folder, TRIAL, whole_trial(50, 60))
    mirror(folder).close()
    return events_of(folder).read_bytes()


def test_a_torn_end_is_cut_off_whatever_its_length(tmp_path: Path, undisturbed: bytes) -> None:
    """A process was killed while it wrote, before it said so: the file has any part of the next events."""
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIAL, whole_trial(50, 60)[:3])
    assert mirror(folder).advance()
    begun, seen = events_of(folder).read_bytes(), events_of(folder).with_name(".seen.json").read_bytes()
    write_ledger(folder, TRIAL, whole_trial(50, 60)[3:])
    for length in (0, 1, 11, 12, 200):
        events_of(folder).write_bytes(begun + undisturbed[-length - 1 : -1])
        events_of(folder).with_name(".seen.json").write_bytes(seen)
        assert mirror(folder).close().problem is None
        shown = tensorboard_shown(folder)[TRIAL.trial_id]
        losses = [(step, pytest.approx(value)) for name, step, value in shown.points if name == "train/loss"]
        assert losses == [(20, 0.05), (40, 0.025)]
        assert shown.status == "finished"


@pytest.mark.parametrize("lost", ["a part of the events", "the events", "the place", "both"])
def test_what_was_lost_is_made_anew_with_the_same_bytes(tmp_path: Path, undisturbed: bytes, lost: str) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIAL, whole_trial(50, 60))
    mirror(folder).close()
    if lost == "a part of the events":
        events_of(folder).write_bytes(undisturbed[:300])
    if lost in ("the events", "both"):
        events_of(folder).unlink()
    if lost in ("the place", "both"):
        events_of(folder).with_name(".seen.json").unlink()
    assert mirror(folder).close().problem is None
    assert events_of(folder).read_bytes() == undisturbed


def test_a_folder_that_is_removed_while_the_trial_runs_comes_back(tmp_path: Path, undisturbed: bytes) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIAL, [started()])
    tracker = mirror(folder)
    write_ledger(folder, TRIAL, whole_trial(50, 60)[1:3])
    assert tracker.advance()
    events_of(folder).unlink()
    write_ledger(folder, TRIAL, whole_trial(50, 60)[3:])
    assert tracker.close().problem is None
    shown = tensorboard_shown(folder)[TRIAL.trial_id]
    assert [step for name, step, _ in shown.points if name == "train/loss"] == [20, 40]


def test_the_table_of_settings_has_a_status_only_once_it_is_final(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIAL, [started(), trained(20)])
    mirror(folder).close()
    assert hparams_status(events_of(folder).parent) is None
    write_ledger(folder, TRIAL, whole_trial(50, 60)[2:])
    mirror(folder).close()
    assert hparams_status(events_of(folder).parent) == "STATUS_SUCCESS"


def test_the_table_of_settings_shows_the_scores(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIAL, [started()])
    mirror(folder).close()
    found = EventAccumulator(str(tensorboard_folder(folder) / EVENTS)).Reload()
    content = found.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    table = metadata.parse_experiment_plugin_data(content)
    assert [each.name.tag for each in table.metric_infos][:2] == ["final/normalized_score", "best/normalized_score"]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(MissingPackageError, match=r'pip install "dmray\[tensorboard\]"'):
        check_trackers(TrackingSpec(tensorboard=True))
