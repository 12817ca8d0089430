"""Evaluate the stored checkpoints of a whole sweep again, without training: what is left to do, and doing it.

`plan_reevaluation` decides by the records alone: which checkpoints of which trials, and which of them have their result
already. `reevaluate` loads the weights, hands them to an evaluation service, and writes a file for each result
(`dmray.records.reevaluations`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dmray.errors import CheckpointError, DmrayError, EngineError, SpecError
from dmray.inference.evaluation import EvaluationChanges, evaluation_request
from dmray.inference.policy import load_policy, require_checkpoint_name, stored_checkpoints
from dmray.methods import METHODS
from dmray.policies import PolicySnapshot, check_decoder
from dmray.progress.trial_status import TrialStatus, trial_status
from dmray.records import Conditions, Reevaluation, SweepFolder, has_reevaluation, provenance, read_done_marker
from dmray.records.identity import code_of
from dmray.rollout import EvaluationRequest, make_engine
from dmray.specs import SweepSpec, TrialSpec
from dmray.specs.decode import parse_decode
from dmray.tasks import task_of
from dmray.trial.build import evaluation_provenance
from dmray.trial.evaluation import EvaluationFuture, EvaluationService, summarize

_log = logging.getLogger(__name__)
_POLL_S = 1.0
CHECKPOINTS = ("final", "best", "all")


class Work(NamedTuple):
    """A checkpoint to evaluate."""

    trial: TrialSpec
    conditions: Conditions


@dataclass(frozen=True)
class ReevaluationPlan:
    """`kept`: the evaluations that are there already. `left_out`: sentences about trials without such a checkpoint."""

    todo: tuple[Work, ...]
    kept: tuple[Work, ...]
    left_out: tuple[str, ...]

    @property
    def works(self) -> tuple[Work, ...]:
        return (*self.kept, *self.todo)


@dataclass
class ReevaluationResult:
    """The results so far; `failed`: why a checkpoint has none, by trial id and checkpoint."""

    records: list[Reevaluation] = field(default_factory=list)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)


def plan_reevaluation(
    folder: SweepFolder,
    trials: Sequence[TrialSpec],
    checkpoint: str,
    changes: EvaluationChanges,
    sweep: SweepSpec,
    stored: Callable[[TrialSpec], Sequence[str]] | None = None,
) -> ReevaluationPlan:
    """The checkpoints of the trials that have finished, and which of them have their result under these settings.

    Selection trials of a search are left out: they are in no comparison.

    `sweep`: the sweep of `trials`. `stored`: the names of a trial's checkpoints, for "all"; None: those in its folder.

    Raises:
        SpecError: the checkpoint or the decode mode is unknown, the decode mode does not fit a trial's context, or
            target returns are given and no trial takes any.
        EngineError: a task has no simulator here.
    """
    require_checkpoint_name(checkpoint, CHECKPOINTS)
    _require_effect(trials, changes)
    todo: list[Work] = []
    kept: list[Work] = []
    selection = sum(map(sweep.is_selection, trials))
    left_out = [f"{selection} selection trials of the search, which are in no comparison"] if selection else []
    for trial in trials:
        if sweep.is_selection(trial):
            continue
        status = trial_status(trial, folder.trial(trial.trial_id), sweep.early_stopping_of(trial))
        marker = read_done_marker(folder.trial(trial.trial_id))
        if status is not TrialStatus.FINISHED:
            left_out.append(f"{trial.trial_id}: has not finished ({status.label})")
            continue
        if marker is None or marker.ledger is None:
            left_out.append(f"{trial.trial_id}: its DONE.json is missing; --resume of the sweep writes it again")
            continue
        there = stored(trial) if stored else stored_checkpoints(folder.trial(trial.trial_id))
        names = there if checkpoint == "all" else [name for name in there if name == checkpoint]
        if not names:
            left_out.append(f"{trial.trial_id}: no checkpoint {checkpoint}; it has {', '.join(there) or 'none'}")
        for name in names:
            conditions = _conditions(trial, name, marker.ledger.digest, changes, sweep.resources.deterministic)
            there_already = has_reevaluation(folder, trial.trial_id, conditions)
            (kept if there_already else todo).append(Work(trial, conditions))
    for task in {task_of(work.trial.dataset) for work in todo}:
        make_engine(task, 1).close()
    return ReevaluationPlan(tuple(todo), tuple(kept), tuple(left_out))


def reevaluate(
    folder: SweepFolder,
    works: Sequence[Work],
    service: EvaluationService,
    *,
    most_open: int,
    save: Callable[[Reevaluation], None],
    fetch: Callable[[TrialSpec], None] = lambda trial: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReevaluationResult:
    """Evaluate `works`, at most `most_open` at a time, and `save` each result as soon as it is there.

    `fetch` brings a trial's checkpoints to `folder` before they are read. A checkpoint that cannot be read, or whose
    evaluation fails, is in `failed`; the others go on.

    Raises:
        EngineError: a process of the evaluation died. What was saved is kept.
    """
    result, pending = ReevaluationResult(), dict[EvaluationFuture, _Submitted]()
    made = provenance()

    def collect() -> None:
        done, _ = wait(pending, _POLL_S, FIRST_COMPLETED)
        for future in done:
            submitted = pending.pop(future)
            if (record := _record_of(submitted, future, made, result)) is not None:
                save(record)
                result.records.append(record)
            on_progress(len(result.records) + len(result.failed), len(works))

    on_progress(0, len(works))
    for work in works:
        while len(pending) >= most_open:
            collect()
        try:
            fetch(work.trial)
            submitted = _load(folder, work)
            pending[service.submit(submitted.snapshot, submitted.request)] = submitted
        except (CheckpointError, SpecError) as problem:
            result.failed[work.trial.trial_id, work.conditions.checkpoint] = str(problem)
            _log.warning("%s", problem)
    while pending:
        collect()
    return result


class _Submitted(NamedTuple):
    work: Work
    snapshot: PolicySnapshot
    request: EvaluationRequest
    step: int
    since: float


def _load(folder: SweepFolder, work: Work) -> _Submitted:
    wanted = work.conditions
    policy = load_policy(folder.trial(work.trial.trial_id).checkpoint(wanted.checkpoint))
    if policy.trial.trial_id != work.trial.trial_id:
        raise CheckpointError(
            f"{folder.trial(work.trial.trial_id).checkpoint(wanted.checkpoint)}: is of another trial, "
            f"{policy.trial.trial_id}; put the trial's own checkpoint back"
        )
    targets = tuple(target for target in wanted.target_returns if target is not None)
    request = evaluation_request(
        policy,
        episodes=wanted.episodes,
        decode=wanted.decode,
        target_returns=targets or None,
        seed=wanted.seed,
        cohort_size=wanted.cohort_size,
        action_noise=wanted.action_noise,
        observation_noise=wanted.observation_noise,
    )
    return _Submitted(work, policy.snapshot, request, policy.step, time.perf_counter())


def _record_of(
    submitted: _Submitted, future: EvaluationFuture, made: dict[str, Any], result: ReevaluationResult
) -> Reevaluation | None:
    work = submitted.work
    try:
        episodes = future.result()
    except BrokenExecutor as cause:
        raise EngineError(
            f"a process of the evaluation died ({cause}), most likely because memory is short; run the command again "
            "with fewer --workers: finished evaluations are kept"
        ) from cause
    except Exception as problem:  # noqa: BLE001 - the other checkpoints are results nevertheless
        expected = isinstance(problem, DmrayError | FloatingPointError | OSError)
        what = f"{work.trial.trial_id}, checkpoint {work.conditions.checkpoint}: {type(problem).__name__}: {problem}"
        result.failed[work.trial.trial_id, work.conditions.checkpoint] = what
        _log.warning("%s", what, exc_info=None if expected else problem)
        return None
    trial = work.conditions.applied_to(work.trial)
    return Reevaluation(
        time_s=time.time(),
        trial_id=work.trial.trial_id,
        conditions=work.conditions,
        step=submitted.step,
        targets=summarize(submitted.request, episodes),
        wall_s=time.perf_counter() - submitted.since,
        provenance={**made, **evaluation_provenance(trial, submitted.request.task)},
    )


def _conditions(
    trial: TrialSpec, checkpoint: str, ledger: str, changes: EvaluationChanges, deterministic: bool
) -> Conditions:
    evaluation, task = trial.evaluation, task_of(trial.dataset)
    targets: tuple[float | None, ...] = (None,)
    if METHODS[trial.method].takes_target:
        targets = changes.target_returns or evaluation.target_returns or task.target_returns
    return Conditions(
        checkpoint=checkpoint,
        ledger=ledger,
        decode=changes.decode or evaluation.decode,
        episodes=changes.episodes or evaluation.episodes,
        seed=evaluation.seed if changes.seed is None else changes.seed,
        cohort_size=changes.cohort_size or evaluation.cohort_size,
        target_returns=targets,
        deterministic=deterministic,
        simulator=evaluation_provenance(trial, task)["simulator"],
        code=code_of(provenance()),
        action_noise=_given(changes.action_noise, evaluation.action_noise),
        observation_noise=_given(changes.observation_noise, evaluation.observation_noise),
    )


def _given(change: float | None, otherwise: float) -> float:
    return otherwise if change is None else change


def _require_effect(trials: Sequence[TrialSpec], changes: EvaluationChanges) -> None:
    if changes.target_returns is not None and not any(METHODS[trial.method].takes_target for trial in trials):
        methods = ", ".join(sorted({trial.method for trial in trials}))
        raise SpecError(f"target return {changes.target_returns[0]:g}: no trial takes a target return ({methods})")
    if changes.decode is not None:
        shortest = min(trials, key=lambda trial: trial.model.context_length)
        try:
            problem = parse_decode(changes.decode).problem(shortest.model.context_length)
        except ValueError as unknown:
            raise SpecError(str(unknown)) from None
        check_decoder(changes.decode)
        if problem is not None:
            raise SpecError(f"decode {changes.decode}: {problem} ({shortest.trial_id})")
