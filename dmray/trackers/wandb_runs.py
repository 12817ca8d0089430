"""Weights & Biases: one run a trial, online, or as files in the sweep's folder that `wandb sync` uploads.

W&B orders the rows of a run by a step that may only grow. Here it is the number of the record in the trial's ledger, so
W&B itself drops a row that it has already, and a run that is resumed says with its first free step how far it has come.
Metrics are drawn by `optimizer_step`, so an evaluation that ends late is drawn where it belongs.

Offline, W&B does not read back what an earlier process wrote. So a run that was not ended is written again from its
first record. When a run ends, its file is read with W&B's own reader: a full disk does not go unnoticed.

After a failed `wandb.init`, W&B's service process keeps the run's id in use, and W&B the API key that was refused; a
service process that ended is not started again. So a failed `init` ends W&B's session in this process, with all runs
that are open in it, and the next try starts a new one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from pydantic import Field, ValidationError

from dmray.errors import MissingPackageError, StorageError, TrackingError, TrackingUnavailableError
from dmray.files import write_atomic
from dmray.frozen import Spec
from dmray.mlflow_mirror.client import Deadlines, StoreError, first_line
from dmray.mlflow_mirror.layout import RUN_STATUS, STATUS, setting_values, trial_name
from dmray.records import SweepFolder
from dmray.records.disk import read_file
from dmray.specs import SweepSpec, TrialSpec, WandbSpec
from dmray.tasks import task_of
from dmray.trackers.run_mirror import Row, Run, Seen

if TYPE_CHECKING:
    import wandb

T = TypeVar("T")
STEP = "optimizer_step"
_CURE = "or leave out tracking.wandb"
_OFFLINE = "tracking.wandb.mode: offline writes files that `wandb sync` uploads later"
_CONNECT_S, _CHECK_S, _INIT_S, _FINISH_S = 5.0, 30.0, 60.0, 120.0
_LONGEST_SESSION_PAUSE_S = 3600.0  # between two ends of a session in which other runs are open
_EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}  # by MLflow's status; 255 is W&B's for Ctrl-C
_LONGEST_ID, _LONGEST_TAG, _LARGEST_SEEN = 128, 64, 4096
_ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false"}  # else W&B sends its own errors to itself, also offline


class _SeenFile(Spec):
    """`wandb/seen/<trial>.json`: `Seen` of a run that was ended, and where that run is."""

    records: Annotated[int, Field(ge=0)]
    num_bytes: Annotated[int, Field(ge=0)]
    status: str
    place: str


def mode_of(spec: WandbSpec) -> Literal["online", "offline"]:
    """online or offline: the sweep file's, else that of $WANDB_MODE, else online.

    Raises:
        TrackingError: $WANDB_MODE is another mode, or stands against the sweep file.
    """
    named = os.environ.get("WANDB_MODE") or None
    if named is not None and (named not in ("online", "offline") or spec.mode not in (None, named)):
        asked = f"tracking.wandb.mode is {spec.mode}" if spec.mode else "tracking.wandb needs online or offline"
        raise TrackingError(f"WANDB_MODE is '{named}' in the environment, but {asked}; unset WANDB_MODE, {_CURE}")
    return spec.mode or ("offline" if named == "offline" else "online")


def require_wandb(spec: WandbSpec) -> None:
    """Check the package and the mode, without the network.

    Raises:
        MissingPackageError: the package cannot be imported.
        TrackingError: as `mode_of`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import wandb  # noqa: F401
    except ImportError as cause:
        raise MissingPackageError(
            f'tracking.wandb: the package wandb cannot be imported ({cause}); pip install "dmray[wandb]", {_CURE}'
        ) from cause
    mode_of(spec)


def require_account(spec: WandbSpec) -> None:
    """Check that W&B answers and takes the API key of this machine; for runs offline nothing.

    Raises:
        TrackingError: there is no API key.
        TrackingUnavailableError: the server does not answer, or refuses the key.
    """
    import wandb

    if mode_of(spec) == "offline":
        return
    try:
        Deadlines(_CHECK_S).run(lambda: _connect(wandb.setup().settings.base_url))
        known = Deadlines(_CHECK_S).run(lambda: wandb.login(prompt=False))
    except (wandb.Error, StoreError, OSError) as cause:
        raise TrackingUnavailableError(
            f"tracking.wandb: W&B does not answer, or does not take the API key ({first_line(cause)}); check both with "
            f"`wandb login --verify`, {_CURE}; {_OFFLINE}"
        ) from cause
    if not known:
        raise TrackingError(
            f"tracking.wandb: no API key of W&B on this machine; run `wandb login` or set WANDB_API_KEY, {_CURE}; "
            f"{_OFFLINE}"
        )


def _connect(url: str) -> None:
    """Raise OSError if nothing answers at `url`. (W&B's own attempts take minutes.) Not asked through a proxy."""
    parts = urlsplit(url)
    if parts.scheme not in getproxies():
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
        except OSError as cause:
            raise OSError(f"cannot connect to {url}: {cause}") from cause


class WandbRuns:
    """The runs of a sweep in a project of W&B; `folder` gets W&B's own files, in its folder `wandb`."""

    name = "W&B"

    def __init__(self, spec: WandbSpec, folder: SweepFolder, sweep: SweepSpec) -> None:
        self._spec, self._folder, self._sweep_id = spec, folder, folder.sweep_id()
        self._group = spec.group or sweep.name
        self._offline = mode_of(spec) == "offline"
        self._place = "/".join([mode_of(spec), spec.entity or "", spec.project, self._group])
        self._deadlines = Deadlines(_FINISH_S + _INIT_S)
        self._open: dict[str, WandbRun] = {}
        self._pause_s, self._next_end = _INIT_S, 0.0

    def seen(self, trial: TrialSpec) -> Seen:
        try:
            found = _SeenFile.model_validate_json(read_file(self._seen_path(trial), _LARGEST_SEEN))
        except (FileNotFoundError, NotADirectoryError, StorageError, ValidationError):
            return Seen()
        return Seen(found.records, found.num_bytes, found.status) if found.place == self._place else Seen()

    def open(self, trial: TrialSpec) -> Run:
        run_id = run_id_of(trial, self._sweep_id)
        if (abandoned := self._open.pop(trial.trial_id, None)) is not None:
            abandoned.abandon()
        if self._offline:
            self._remove_files(run_id)
        try:
            run = self._call(lambda: self._init(trial, run_id))
        except StoreError:
            self._end_session()
            raise
        opened = WandbRun(run, self, trial)
        self._open[trial.trial_id] = opened
        return opened

    def give_up_after(self, seconds: float) -> None:
        self._deadlines.give_up_after(seconds)

    def _init(self, trial: TrialSpec, run_id: str) -> wandb.Run:
        import wandb

        self._folder.path.mkdir(parents=True, exist_ok=True)
        tags = [trial.method, trial.dataset.name, task_of(trial.dataset).family]
        run = wandb.init(
            entity=self._spec.entity,
            project=self._spec.project,
            group=self._group,
            id=run_id,
            name=trial_name(trial),
            tags=list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags)),
            config={**setting_values(trial), "seed": trial.seed, "trial_id": trial.trial_id},
            resume="allow",
            reinit="create_new",  # several runs at once
            settings=_settings(self._folder.path, "offline" if self._offline else "online"),
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        return run

    def is_open(self, run: WandbRun) -> bool:
        return self._open.get(run.trial.trial_id) is run

    def _end_session(self) -> None:
        """End W&B's session in this process, so that the next `init` can succeed. The open runs are opened again.

        While other runs are open, the pause between two such ends grows: one run that always fails should not stop
        them. A session that has a run of the user's own program is left alone.
        """
        import wandb

        now = time.monotonic()
        if wandb.run is not None or (self._open and now < self._next_end):
            return
        if self._open:
            self._next_end, self._pause_s = now + self._pause_s, min(2 * self._pause_s, _LONGEST_SESSION_PAUSE_S)
        for run in self._open.values():
            run.abandon()
        self._open.clear()
        with suppress(StoreError):  # as that of a service process that was killed
            self._call(_tear_down)

    def _call(self, call: Callable[[], T], upload: bool = False) -> T:
        """The result of a call into W&B, whose failures become `StoreError`."""
        try:
            result: T = self._deadlines.run(call, upload)
        except StoreError:
            raise
        except Exception as cause:  # W&B raises errors of its own, of its connection and of its service process
            raise StoreError(f"{type(cause).__name__}: {first_line(cause)}") from cause
        return result

    def ended(self, run: WandbRun, seen: Seen) -> None:
        """The run's end was taken: check the file if there is one, and note how far it has come."""
        run_id = run_id_of(run.trial, self._sweep_id)
        if self._offline:
            self._check_file(run_id, run.num_rows)
        else:
            self._remove_files(run_id)  # W&B has it all, and so has the ledger
        self._open.pop(run.trial.trial_id, None)
        content = _SeenFile(**seen._asdict(), place=self._place).model_dump_json()
        write_atomic(self._seen_path(run.trial), content.encode())

    def _check_file(self, run_id: str, num_rows: int) -> None:
        """Raise `StoreError` if the offline file lacks rows."""
        found = [path for folder in self._files(run_id) for path in folder.glob("run-*.wandb")]
        present = sum(record["type"] == "history" for path in found for record in read_wandb_file(path))
        if present != num_rows:
            raise StoreError(f"{self._folder.path}/wandb: the file of run {run_id} has {present} of {num_rows} rows")

    def _files(self, run_id: str) -> list[Path]:
        """The folders that W&B made for the run: one for each process that wrote to it."""
        return sorted((self._folder.path / "wandb").glob(f"*run-*-{run_id}"))

    def _remove_files(self, run_id: str) -> None:
        for folder in self._files(run_id):
            shutil.rmtree(folder)

    def _seen_path(self, trial: TrialSpec) -> Path:
        return self._folder.path / "wandb" / "seen" / f"{trial.trial_id}.json"


class WandbRun:
    """The run of one trial, open in this process. `num_rows`: the rows that were logged."""

    def __init__(self, run: wandb.Run, runs: WandbRuns, trial: TrialSpec) -> None:
        self.trial = trial
        self._run, self._runs = run, runs
        self.records = run.starting_step  # 0 for a new run, and offline
        self.num_rows = 0
        self._status = ""

    def write(self, rows: Sequence[Row], seen: Seen) -> None:
        if not self._runs.is_open(self):
            raise StoreError("the session of W&B ended after a failure; the run is opened again", refused=True)
        self._runs._call(lambda: self._write(rows, seen))

    def _write(self, rows: Sequence[Row], seen: Seen) -> None:
        for row in rows:
            if row.facts:
                self._run.config.update(dict(row.facts), allow_val_change=True)
            if row.values:
                point = {**row.values, STEP: row.step, "_timestamp": row.time_s}
                self._run.log(point, step=row.record, commit=True)
                self.num_rows += 1
        if seen.status != self._status:
            self._run.summary[STATUS] = self._status = seen.status

    def end(self, seen: Seen) -> None:
        self.write([], seen)
        code = _EXIT_CODES[RUN_STATUS[seen.status]]
        self._runs._call(lambda: self._run.finish(exit_code=code), upload=True)
        self._runs.ended(self, seen)

    def abandon(self) -> None:
        """End the run in this process after a failure, well or not."""
        with suppress(StoreError):
            self._runs._call(lambda: self._run.finish(exit_code=_EXIT_CODES["KILLED"]), upload=True)


def _tear_down() -> None:
    import wandb

    with suppress(SystemExit):  # W&B exits with its service process's status
        wandb.teardown()


def run_id_of(trial: TrialSpec, sweep_id: str) -> str:
    """The same for each start of a sweep's folder; another one for the same trial in another folder."""
    return f"{trial.trial_id[-(_LONGEST_ID - 9) :]}-{sweep_id[:8]}"


def read_wandb_file(path: Path) -> list[dict[str, Any]]:
    """The records of a file of W&B, read by W&B's own program; a torn end is left out.

    Raises:
        StoreError: it cannot be read.
    """
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(path)]
    try:
        done = subprocess.run([*command, str(path.parent)], capture_output=True, timeout=_CHECK_S, check=False)  # noqa: S603 - W&B's own
        if done.returncode:
            raise StoreError(f"{path}: {first_line(RuntimeError(done.stderr.decode(errors='replace')))}")
        return [json.loads(line) for line in done.stdout.splitlines()]
    except (OSError, ValueError, subprocess.TimeoutExpired) as cause:
        raise StoreError(f"{path}: cannot be read ({first_line(cause)})") from cause


def _settings(folder: Path, mode: Literal["online", "offline"]) -> wandb.Settings:
    """Nothing of this process goes into the runs: not its arguments, which may hold a password, its code or output."""
    import wandb

    return wandb.Settings(
        mode=mode,
        root_dir=str(folder),
        program="dmray",
        silent=True,
        console="off",
        symlink=False,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,  # the trial may run on another machine, whose load is in system/*
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=_INIT_S,
        finish_timeout=_FINISH_S,
        finish_timeout_raises=True,
    )
