"""Runs trials one after the other in this process, without Ray: for debugging, and for a handful of small trials."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dmray.coordination.commands import TrialPaused
from dmray.driver.store_session import Refresh
from dmray.planning.plan import Plan
from dmray.progress.extensions import find_extensions
from dmray.records import SweepFolder
from dmray.specs import TrialSpec
from dmray.training.determinism import restore_torch_settings
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.run import run_trial

_log = logging.getLogger(__name__)


class LocalRunner:
    """The same trials, records and files as on Ray. There is no watchdog: a trial that hangs blocks the sweep.

    The calling process has its own torch settings back afterwards.
    """

    def run(
        self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: Refresh = lambda: None
    ) -> list[TrialSpec]:
        """Run `todo`. The error of a trial that fails is in its ledger; the next trial runs."""
        extended = find_extensions(plan, folder)
        jobs = [
            TrialJob.of(trial, plan.sweep, folder, extended.get(trial.trial_id)) for trial in todo
        ]  # all under the command that holds now
        paused = []
        for trial, job in zip(todo, jobs, strict=True):
            try:
                with restore_torch_settings():
                    run_trial(job.model_copy(update={"no_progress_timeout_s": None}), InlineEvaluation())
            except TrialPaused:
                paused.append(trial)
            except Exception as cause:  # noqa: BLE001 - recorded by run_trial with its traceback
                _log.warning("%s failed: %s", trial.trial_id, cause)
        return paused
