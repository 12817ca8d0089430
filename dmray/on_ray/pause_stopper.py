"""How Tune ends when the sweep is paused or stopped."""

from __future__ import annotations

from typing import Any

from ray import tune

from dmray.coordination.commands import CommandWatcher
from dmray.records import SweepFolder


class PauseStopper(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Ends the experiment once all trials that ran when the order changed have saved and left.

    Those that Tune starts meanwhile in their places find the order changed before they begin.
    """

    def __init__(self, folder: SweepFolder, command_number: int) -> None:
        self._order = CommandWatcher(folder, command_number)
        self._leaving: set[str] | None = None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._order.should_continue():
            running = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
            self._leaving = running if self._leaving is None else self._leaving & running

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._leaving is not None and not self._leaving
