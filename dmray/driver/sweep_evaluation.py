"""Evaluate a whole sweep again without training: from the stored checkpoints to the report and MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dmray.errors import StorageError, TrackingError
from dmray.inference.evaluation import EvaluationChanges
from dmray.inference.reevaluation import (
    ReevaluationPlan,
    ReevaluationResult,
    plan_reevaluation,
    reevaluate,
)
from dmray.mlflow_mirror.reevaluations import add_reevaluations
from dmray.planning.manifest import read_manifest
from dmray.planning.plan import Plan
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.progress.sweep_handle import locate
from dmray.records import Reevaluation, SweepFolder, read_reevaluations, write_reevaluation
from dmray.specs import NO_MLFLOW, TrialSpec
from dmray.storage import SweepCopy, is_url
from dmray.storage.outages import retry_while_unavailable
from dmray.trial.evaluation import EvaluationService

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)
_MOST_LISTED = 10  # early stopping may leave hundreds
ReportWriter = Callable[[SweepFolder], Path]


class OpenService(NamedTuple):
    """A service, and how many processes evaluate."""

    service: EvaluationService
    workers: int


MakeService = Callable[[Plan, SweepFolder], AbstractContextManager[OpenService]]


@dataclass(frozen=True)
class SweepEvaluation:
    """The results of `dmray.evaluate_sweep`.

    `records`: of all selected checkpoints under these settings, `kept` of them from an earlier call. `left_out`:
    sentences about trials without such a checkpoint. `failed`: why a checkpoint has no result, by trial id and
    checkpoint. `report`: the folder of the sweep's report. `mlflow`: what MLflow lacks, in a sentence; None: nothing.
    """

    name: str
    records: tuple[Reevaluation, ...] = field(repr=False)
    kept: int
    left_out: tuple[str, ...]
    failed: dict[tuple[str, str], str]
    report: Path
    mlflow: str | None

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per checkpoint: its trial and the result for the first target return."""
        import pandas as pd

        settings = ("checkpoint", "step", "decode", "episodes", "action_noise", "observation_noise")
        columns = ("trial_id", *settings, "normalized_score", "return_mean")
        rows = [
            (
                record.trial_id,
                record.conditions.checkpoint,
                record.step,
                record.conditions.decode,
                record.conditions.episodes,
                record.conditions.action_noise,
                record.conditions.observation_noise,
                record.evaluation.first_target.normalized_mean,
                record.evaluation.first_target.return_mean,
            )
            for record in self.records
        ]
        return pd.DataFrame(rows, columns=list(columns))


def evaluate_sweep(
    source: str,
    make_service: MakeService,
    write_report: ReportWriter,
    *,
    checkpoint: str,
    changes: EvaluationChanges,
    storage: str | None = None,
    only: str | None = None,
    deterministic: bool | None = None,
    mlflow_uri: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SweepEvaluation:
    """Evaluate the checkpoints of the finished trials that have no result under these settings, then write the report.

    `source`, `storage`: the sweep, as in `locate`. None for `deterministic` and `mlflow_uri`: as the sweep has it.

    Raises:
        SpecError, EngineError: as `plan_reevaluation`; also if `only` is malformed or matches no trial.
        StorageError: there is no sweep, none of its trials has such a checkpoint, or its folder cannot be written.
        StoreUnavailableError: the object store does not answer.
    """
    at, name = locate(source, storage)
    copy = SweepCopy.downloaded(at, name) if is_url(at) else None
    folder = copy.folder if copy else SweepFolder(Path(at), name)
    plan = _with_settings(read_manifest(folder), at, deterministic)
    trials = select_trials(plan, TrialFilter(only))
    names = copy.checkpoint_names() if copy else {}

    def save(record: Reevaluation) -> None:
        path, content = write_reevaluation(folder, record)
        if copy is not None:
            retry_while_unavailable(lambda: copy.send(path, content))

    def fetch(trial: TrialSpec) -> None:
        if copy is not None:
            retry_while_unavailable(lambda: copy.fetch_trial(folder.trial(trial.trial_id)))

    stored = (lambda trial: names.get(trial.trial_id, [])) if copy else None
    planned = plan_reevaluation(folder, trials, checkpoint, changes, plan.sweep, stored)
    _say_what_is_done(planned)
    result = ReevaluationResult()
    if planned.todo:
        folder.make_writable()
        with make_service(plan, folder) as (service, workers):
            result = reevaluate(
                folder,
                planned.todo,
                service,
                most_open=1 if workers == 1 else 2 * workers,
                save=save,
                fetch=fetch,
                on_progress=on_progress,
            )
    report = write_report(folder)
    if copy is not None:
        retry_while_unavailable(copy.push)
    wanted = {(work.trial.trial_id, work.conditions.digest) for work in planned.works}
    found = (record for trial in trials for record in read_reevaluations(folder, trial.trial_id))
    return SweepEvaluation(
        name=name,
        records=tuple(record for record in found if (record.trial_id, record.conditions.digest) in wanted),
        kept=len(planned.kept),
        left_out=planned.left_out,
        failed=result.failed,
        report=report,
        mlflow=_mirrored(plan, folder, mlflow_uri),
    )


def _with_settings(plan: Plan, storage: str, deterministic: bool | None) -> Plan:
    changes = {} if deterministic is None else {"deterministic": deterministic}
    resources = plan.sweep.resources.model_copy(update=changes)
    return Plan(plan.sweep.model_copy(update={"resources": resources, "storage": storage}), plan.trials)


def _say_what_is_done(planned: ReevaluationPlan) -> None:
    for sentence in planned.left_out[:_MOST_LISTED]:
        _log.warning("left out: %s", sentence)
    if len(planned.left_out) > _MOST_LISTED:
        _log.warning("left out: and %d more", len(planned.left_out) - _MOST_LISTED)
    if not planned.works:
        raise StorageError(
            "no finished trial has such a checkpoint, so there is nothing to evaluate: "
            + "; ".join(planned.left_out[:3])
            + (f"; and {len(planned.left_out) - 3} more" if len(planned.left_out) > 3 else "")
        )
    _log.info("%d checkpoints to evaluate, %d are done", len(planned.todo), len(planned.kept))


def _mirrored(plan: Plan, folder: SweepFolder, mlflow_uri: str | None) -> str | None:
    """Bring the results to MLflow; what it lacks, in a sentence."""
    uri = mlflow_uri or plan.sweep.tracking.mlflow_uri
    replay = f"python -m dmray.track replay {plan.sweep.storage}/{folder.name}"
    if uri == NO_MLFLOW:
        return None
    if uri is None and is_url(plan.sweep.storage):
        return f"MLflow's file of this sweep is on the driver's machine; to add the results there: {replay}"
    try:
        waiting = add_reevaluations(plan, folder, uri)
    except StorageError as busy:
        return f"MLflow gets the results when the sweep's driver ends ({busy}); if it has none later: {replay}"
    except TrackingError as problem:
        return f"{problem}; to add the results later: {replay}"
    return f"MLflow has no runs of {waiting} of the results' trials; to add both: {replay}" if waiting else None
