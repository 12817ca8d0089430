"""A worker's death is one line at the driver; Ray's own words about it go to the trial's log.txt."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ray import train, tune

from dmray.on_ray.trainable import TrainableConfig
from dmray.trial.log import TrialLog

_log = logging.getLogger(__name__)


class TuneFailureCallback(tune.Callback):  # type: ignore[misc]
    """Tells of processes that Tune started: a trial's driver, or with executor "tune" its worker."""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        given = TrainableConfig.model_validate_json(trial.config["trainable"])
        _tell(given, trial, f"attempt {trial.num_failures + 1} of {given.tune_restarts + 1} follows")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        given = TrainableConfig.model_validate_json(trial.config["trainable"])
        _tell(given, trial, "given up, all attempts are spent")


class TrainFailureCallback(train.UserCallback):  # type: ignore[misc]
    """Notes the workers that Ray Train lost, in the process that started them."""

    def __init__(self, log: TrialLog) -> None:
        self._log = log

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for cause in worker_exceptions.values():
            self._log.write(f"its worker ended: {type(cause).__name__}: {cause}")


def _tell(given: TrainableConfig, trial: Any, then: str) -> None:
    lines = _ray_message(trial)
    TrialLog(given.job.folder.log).write("its process ended: " + "\n".join(lines))
    what = lines[-1 if "ray::" in lines[0] else 0]  # a traceback says it last
    _log.warning("%s: its process ended: %s; %s", given.job.trial.trial_id, what.rstrip("."), then)


def _ray_message(trial: Any) -> list[str]:
    """The last entry of the file that Tune appends failures to, here, before it is synchronised."""
    written = Path(trial.error_file).read_text() if trial.error_file else ""
    _, _, last = written.rpartition("Failure # ")
    return last.strip().splitlines()[1:] or ["for a reason that Ray does not tell"]
