"""The evaluations of stored checkpoints after the training, in MLflow: a run for each, below the trial's run.

Their level is "re-evaluation", so no view, mean or aggregate of trials has them.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmray.coordination.sweep_lock import folder_lock, store_lock
from dmray.errors import TrackingError, TrackingUnavailableError
from dmray.mlflow_mirror.layout import (
    COMMITTED,
    points_of,
    reevaluation_key,
    reevaluation_name,
    reevaluation_tags,
    trial_params,
)
from dmray.mlflow_mirror.store import RunStore, RunWanted, StoreError, SweepRuns, open_store
from dmray.planning.plan import Plan
from dmray.records import Reevaluation, SweepFolder, read_reevaluations
from dmray.specs import SweepSpec, TrialSpec
from dmray.storage import existing_sweep_store, is_url


def mirror_reevaluations(
    store: RunStore, runs: SweepRuns, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]
) -> int:
    """Add the runs that are missing, of trials that have a run; how many evaluations have none because of that.

    May be called again: a run that is FINISHED is complete.

    Raises:
        StoreError: MLflow does not answer, or refuses.
    """
    waiting = 0
    for trial in trials:
        records = read_reevaluations(folder, trial.trial_id)
        parent = runs.find(trial.trial_id) if records else None
        if parent is None:
            waiting += len(records)
            continue
        for record in records:
            _mirror(store, runs, record, trial, sweep, folder.sweep_id(), parent.run_id)
    return waiting


def add_reevaluations(plan: Plan, folder: SweepFolder, uri: str | None) -> int:
    """Bring the evaluations of a sweep that no driver runs to the MLflow at `uri`; as `mirror_reevaluations`.

    Raises:
        StorageError: the sweep's driver runs; it adds them at its end.
        TrackingError: MLflow does not answer, or refuses.
    """
    stored = is_url(plan.sweep.storage)
    with store_lock(existing_sweep_store(plan.sweep.storage, folder.name)) if stored else folder_lock(folder):
        store = open_store(uri, folder)
        try:
            runs = SweepRuns(store, folder.sweep_id())
            return mirror_reevaluations(store, runs, folder, plan.sweep, plan.trials)
        except StoreError as cause:
            kind = TrackingError if cause.refused else TrackingUnavailableError
            raise kind(f"MLflow does not take the evaluations: {cause}; run the command again") from cause


def _mirror(
    store: RunStore,
    runs: SweepRuns,
    record: Reevaluation,
    trial: TrialSpec,
    sweep: SweepSpec,
    sweep_id: str,
    parent: str,
) -> None:
    known = runs.find(reevaluation_key(record))
    if known is not None and known.status == "FINISHED":
        return
    params = {**trial_params(record.conditions.applied_to(trial)), "checkpoint": record.conditions.checkpoint}
    tags = reevaluation_tags(trial, record, sweep, sweep_id, parent)
    began_s = record.time_s - record.wall_s
    run = runs.ensure(RunWanted(reevaluation_name(trial, record), tags, params, began_s))
    if COMMITTED["evaluation"] not in run.metrics:
        store.log(run.run_id, points_of(record.evaluation, ()))
    store.set_status(run.run_id, "FINISHED", int(record.time_s * 1000))
