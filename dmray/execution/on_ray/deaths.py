"""A worker's death is one line at the driver; Ray's own words about it go to the trial's log.txt."""

from __future__ import annotations

import logging
from typing import Any

from ray import train, tune

from dmray.execution.on_ray.trainable import TrainableConfig
from dmray.execution.trial_log import TrialLog

_log = logging.getLogger(__name__)


class TuneDeaths(tune.Callback):  # type: ignore[misc]
    """Tells of processes that Tune started: a trial's driver, or with executor "tune" its worker."""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        given = _note(trial)
        again = f"attempt {trial.num_failures + 1} of {given.tune_restarts + 1} follows"
        _log.warning("%s: %s; %s", given.job.trial.trial_id, _what(trial), again)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        given = _note(trial)
        _log.warning("%s: %s; given up, all attempts are spent", given.job.trial.trial_id, _what(trial))


class TrainDeaths(train.UserCallback):  # type: ignore[misc]
    """Notes the workers that Ray Train lost, in the process that started them."""

    def __init__(self, log: TrialLog) -> None:
        self._log = log

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for cause in worker_exceptions.values():
            self._log.write(f"its worker ended: {type(cause).__name__}: {cause}")


def _note(trial: Any) -> TrainableConfig:
    given = TrainableConfig.model_validate_json(trial.config["trainable"])
    TrialLog(given.job.folder.log).write(f"its process ended: {trial.get_error()}")
    return given


def _what(trial: Any) -> str:
    cause = trial.get_pickled_error()
    return f"its process ended ({type(cause).__name__})"
