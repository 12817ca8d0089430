"""One cell's run in MLflow: all seeds of one setting, with the mean and the spread of their scores."""

from __future__ import annotations

from collections.abc import Sequence

from dmray.mlflow_mirror.metric_points import CELL_SENTINEL, seed_group_points
from dmray.mlflow_mirror.store import RunStore, StoredRun
from dmray.mlflow_mirror.trial_mirror import TrialMirror


class SeedGroupMirror:
    """Follows the mirrors of its trials.

    A mean over the seeds that early stopping left is no result. So a cell of which seeds were stopped has no
    aggregates, and where seeds may yet be stopped (`whole_only`) a cell has none before all have ended.
    """

    def __init__(self, trials: Sequence[TrialMirror], whole_only: bool = False) -> None:
        self.trials, self._whole_only = tuple(trials), whole_only
        self.forget()

    def forget(self) -> None:
        """Start over: nothing that is believed about the store is kept."""
        self.run_id: str | None = None
        self._status: str | None = None
        self._seeds: set[int] = set()  # the numbers of finished seeds that have an aggregate

    def adopt(self, store: RunStore, run: StoredRun) -> None:
        """Take over the run, new or from before."""
        self.run_id, self._status = run.run_id, run.status
        self._seeds = store.steps(run.run_id, CELL_SENTINEL) if CELL_SENTINEL in run.metrics else set()

    def update(self, store: RunStore) -> None:
        """Log the aggregates when another seed has finished; a cell ends with its last trial."""
        assert self.run_id is not None
        finished = [trial for trial in self.trials if trial.state == "finished" and trial.final is not None]
        if finished and len(finished) not in self._seeds and self.comparable:
            last = [trial.final for trial in finished if trial.final is not None]
            best = [trial.best for trial in finished if trial.best is not None]
            store.log(self.run_id, seed_group_points(last, best, max(trial.ended_s for trial in finished)))
            self._seeds.add(len(finished))
        self._set_status(store, "FINISHED" if all(trial.ended for trial in self.trials) else "RUNNING")

    @property
    def comparable(self) -> bool:
        """Whether the scores of its finished seeds may stand for it."""
        stopped = any(trial.state == "stopped" for trial in self.trials)
        return not stopped and (not self._whole_only or all(trial.ended for trial in self.trials))

    def stop(self, store: RunStore) -> None:
        """The sweep ends here."""
        if self.run_id is not None:
            self._set_status(store, end_status(self.trials))

    def _set_status(self, store: RunStore, status: str) -> None:
        if status != self._status and self.run_id is not None:
            store.set_status(self.run_id, status, end_ms(self.trials))
            self._status = status


def end_ms(trials: Sequence[TrialMirror]) -> int | None:
    """When the last of `trials` that has ended did; None when none has."""
    return int(max((trial.ended_s for trial in trials), default=0.0) * 1000) or None


def end_status(trials: Sequence[TrialMirror]) -> str:
    """How something that consists of `trials` has ended, when it ends now."""
    if all(trial.ended for trial in trials):
        return "FINISHED"
    return "FAILED" if any(trial.state == "failed" for trial in trials) else "KILLED"
