"""TensorBoard: one folder of event files a trial, in the folder `tensorboard` of the sweep.

    <sweep>/tensorboard/<trial_id>/events.out.tfevents.0.dmray     metrics, texts, and the row of the table HPARAMS
    <sweep>/tensorboard/<trial_id>/.seen.json                      how far it has come
    <sweep>/tensorboard/events.out.tfevents.0.dmray                which metrics the table HPARAMS shows

An event file is only appended to. `.seen.json` is written after that, and has the file's size: what a killed process or
a full disk left behind it is cut off before the next events, which are then the same again, since their times are those
of the records. The events are written with TensorBoard's own record writer; its `SummaryWriter` makes a new file at
each start, so that a crash in the middle would leave points twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, ValidationError

from dmray.errors import MissingPackageError, StorageError
from dmray.escaping import markdown
from dmray.files import make_folder, write_atomic
from dmray.frozen import Spec
from dmray.mlflow_mirror.client import StoreError
from dmray.mlflow_mirror.layout import BEST_SCORE, CONFIG, FINAL_SCORE, STATUS, setting_values
from dmray.progress.trial_status import DONE
from dmray.records import SweepFolder
from dmray.records.disk import read_file
from dmray.specs import TrialSpec, canonical_json
from dmray.trackers.run_mirror import Row, Run, Seen

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

EVENTS = "events.out.tfevents.0.dmray"  # TensorBoard reads what has "tfevents" in its name
_TABLE_METRICS = (FINAL_SCORE, BEST_SCORE, "eval/normalized_score", "train/loss")
FACTS = "dmray.facts"
_LARGEST_SEEN = 4096


def require_tensorboard() -> None:
    """Check that the package is installed.

    Raises:
        MissingPackageError: it is not.
    """
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as cause:
        raise MissingPackageError(
            f"tracking.tensorboard: the package tensorboard cannot be imported ({cause}); pip install "
            '"dmray[tensorboard]", or leave the field out'
        ) from cause


class _SeenFile(Spec):
    """`.seen.json`: `Seen`, the size of the event file, and the step and the time of its last event."""

    records: Annotated[int, Field(ge=0)] = 0
    num_bytes: Annotated[int, Field(ge=0)] = 0
    status: str = ""
    event_bytes: Annotated[int, Field(ge=0)] = 0
    step: Annotated[int, Field(ge=0)] = 0
    time_s: Annotated[float, Field(ge=0)] = 0.0


class TensorBoardRuns:
    """The runs of a sweep as folders of event files."""

    name = "TensorBoard"

    def __init__(self, folder: SweepFolder) -> None:
        require_tensorboard()
        self._folder = tensorboard_folder(folder)

    def seen(self, trial: TrialSpec) -> Seen:
        return EventFile(self._folder / trial.trial_id, trial).ended

    def open(self, trial: TrialSpec) -> Run:
        self._describe_table()
        return EventFile(self._folder / trial.trial_id, trial)

    def give_up_after(self, seconds: float) -> None:
        """Files need no time to give up: a call fails at once or is done."""

    def _describe_table(self) -> None:
        """Name the metrics of the table HPARAMS; without this it shows one column for each metric of any trial."""
        path = self._folder / EVENTS
        if not path.exists():
            from tensorboard.plugins.hparams.summary_v2 import Metric, hparams_config_pb

            table = hparams_config_pb([], [Metric(name) for name in _TABLE_METRICS], time_created_secs=0.0)
            write_atomic(path, _event(0.0, 0, table))


def tensorboard_folder(folder: SweepFolder) -> Path:
    """What `tensorboard --logdir` takes."""
    return folder.path / "tensorboard"


class EventFile:
    """The run of one trial. Nothing is made before the first `write`."""

    def __init__(self, folder: Path, trial: TrialSpec) -> None:
        self._path, self._seen_path, self._trial = folder / EVENTS, folder / ".seen.json", trial
        self._at = self._read_seen()
        self.records = self._at.records

    @property
    def ended(self) -> Seen:
        """How far the file has come."""
        return Seen(self._at.records, self._at.num_bytes, self._at.status)

    def write(self, rows: Sequence[Row], seen: Seen) -> None:
        step, time_s = (rows[-1].step, rows[-1].time_s) if rows else (self._at.step, self._at.time_s)
        events = [_event(row.time_s, row.step, _summary(row)) for row in rows]
        if self._at.event_bytes == 0:
            events = [*self._head(rows[0].time_s if rows else 0.0), *events]
        if seen.status != self._at.status:
            events.append(_event(time_s, step, _status(seen.status, time_s)))
        self._append(b"".join(events), seen, step, time_s)

    def end(self, seen: Seen) -> None:
        self.write([], seen)

    def _head(self, begun_s: float) -> list[bytes]:
        """The version of the format, the trial's row of the table HPARAMS, and its spec."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        params = {
            name: _plain(value) for name, value in {**setting_values(self._trial), "seed": self._trial.seed}.items()
        }
        row = hparams_pb(params, trial_id=self._trial.trial_id, start_time_secs=begun_s)
        spec = yaml.safe_dump(self._trial.model_dump(mode="json"), sort_keys=False)
        version = Event(wall_time=begun_s, file_version="brain.Event:2")
        return [_framed(version), _event(begun_s, 0, row), _event(begun_s, 0, _text(CONFIG, f"```\n{spec}```"))]

    def _append(self, content: bytes, seen: Seen, step: int, time_s: float) -> None:
        """Put `content` behind what is known to be whole, on the disk, and only then say that it is there."""
        make_folder(self._path.parent)
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as stream:
            if stream.seek(0, os.SEEK_END) < self._at.event_bytes:
                raise StoreError(f"{self._path}: was removed or cut", refused=True)  # the next try makes it anew
            stream.truncate(self._at.event_bytes)
            stream.seek(self._at.event_bytes)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        self._at = _SeenFile(**seen._asdict(), event_bytes=size, step=step, time_s=time_s)
        write_atomic(self._seen_path, self._at.model_dump_json().encode())

    def _read_seen(self) -> _SeenFile:
        """From the beginning if the file is missing or damaged, or the event file has lost its end."""
        try:
            seen = _SeenFile.model_validate_json(read_file(self._seen_path, _LARGEST_SEEN))
            return seen if self._path.stat().st_size >= seen.event_bytes else _SeenFile()
        except (FileNotFoundError, NotADirectoryError, StorageError, ValidationError):
            return _SeenFile()


def _plain(value: Any) -> bool | int | float | str:
    """A value that the table HPARAMS can sort."""
    return value if isinstance(value, bool | int | float | str) else canonical_json(value)


def _framed(event: Any) -> bytes:
    """An event as a record of an event file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = BytesIO()
    RecordWriter(stream).write(event.SerializeToString())
    return stream.getvalue()


def _event(time_s: float, step: int, summary: Summary) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return _framed(Event(wall_time=time_s, step=step, summary=summary))


def _summary(row: Row) -> Summary:
    """The metrics as TensorBoard's simple values (float32), which `EventAccumulator.Scalars` reads, and the facts."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in row.values.items()])
    if row.facts:
        lines = [f"| {markdown(name)} | {markdown(text)} |" for name, text in row.facts.items()]
        summary.MergeFrom(_text(FACTS, "\n".join(["| | |", "|---|---|", *lines])))
    return summary


def _text(tag: str, text: str) -> Summary:
    from tensorboard.plugins.text.summary_v2 import text_pb

    summary: Summary = text_pb(tag, text)
    return summary


def _status(status: str, time_s: float) -> Summary:
    """The status as a text; that of a result also in the table HPARAMS, where it could not be taken back."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    summary = _text(STATUS, status)
    if status in DONE:
        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time_s)
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
        summary.value.add(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    return summary
