"""Callbacks of Tune: they report actors that died, and end Tune when the sweep is paused or stopped.

An actor that died is one line at the driver; Ray's own message is in the trial's log.txt.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ray import tune

from dmray.coordination.commands import CommandWatcher
from dmray.on_ray.trainable_config import TrainableConfig
from dmray.records import SweepFolder
from dmray.trial.log import TrialLog

_log = logging.getLogger(__name__)


class TuneFailureCallback(tune.Callback):  # type: ignore[misc]
    """Reports processes of Tune that died: a trial's driver, or with executor "tune" its worker."""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = TrainableConfig.model_validate_json(trial.config["trainable"])
        _report(config, trial, f"attempt {trial.num_failures + 1} of {config.tune_restarts + 1} follows")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = TrainableConfig.model_validate_json(trial.config["trainable"])
        _report(config, trial, "no attempt is left")


class PauseStopper(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Ends Tune once all trials that ran when the command changed have saved and ended.

    Tune starts other trials in their places meanwhile; those see the changed command before they begin.
    """

    def __init__(self, folder: SweepFolder, command_number: int) -> None:
        self._command = CommandWatcher(folder, command_number)
        self._still_saving: set[str] | None = None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._command.should_continue():
            running = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
            self._still_saving = running if self._still_saving is None else self._still_saving & running

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._still_saving is not None and not self._still_saving


def _report(config: TrainableConfig, trial: Any, consequence: str) -> None:
    lines = _ray_message(trial)
    TrialLog(config.job.folder.log).write("its process ended: " + "\n".join(lines))
    what = lines[-1 if "ray::" in lines[0] else 0]  # the last line of a traceback has the error
    _log.warning("%s: its process ended: %s; %s", config.job.trial.trial_id, what.rstrip("."), consequence)


def _ray_message(trial: Any) -> list[str]:
    """The last entry of the file on this machine that Tune appends failures to."""
    written = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
    _, _, last = written.rpartition("Failure # ")
    return last.strip().splitlines()[1:] or ["Ray gives no reason"]
