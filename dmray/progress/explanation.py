"""All that is known of one trial, for `dmray explain`: what it is, how far, what happened, and what to do next."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from dmray.coordination.commands import CommandKind
from dmray.coordination.sweep_lock import Driver
from dmray.errors import StorageError
from dmray.escaping import plain
from dmray.methods import METHODS
from dmray.planning.manifest import read_manifest
from dmray.progress.news import why_stopped
from dmray.progress.progress import pending_evaluations
from dmray.progress.summary import CurrentPhase, eta_of, live_phase, speed_of
from dmray.progress.sweep_handle import SweepHandle, find_trial
from dmray.progress.trial_status import INTERRUPTED, RUNNING, TrialHistory, read_history, with_liveness
from dmray.records import LedgerTail, LightRecord, Score, TrialFolder, best_score, last_score
from dmray.records.disk import open_file
from dmray.specs import EarlyStoppingSpec, Spec, TrialSpec, canonical_json
from dmray.tasks import task_of

_LOG_LINES, _LOG_BYTES = 12, 65_536
_HANG = "TrainingHang"
_WARNING = "warning: "  # that of `dmray.datasets`, which loads torch
T = TypeVar("T")


@dataclass(frozen=True)
class Attempt:
    """One run of the trial's worker. `ended`: a status, or running or interrupted. Times are Unix times.

    `started_s` and `from_step` are None where it failed before its record.
    """

    number: int
    started_s: float | None
    from_step: int | None
    host: str | None
    device: str | None
    ended: str
    step: int
    lasted_s: float
    error: str | None


class NextStep(NamedTuple):
    """What to do, and the shell command that does it, if there is one."""

    what: str
    command: str | None = None


@dataclass(frozen=True)
class Explanation:
    """One trial.

    `is_selection`: it served to choose a setting in a search. `settings` are all fields of its model, training and
    evaluation; `changed` those that are not the default, as sentences. `parameters` is None before the first attempt.
    `eta_s`, `steps_per_s`: None where it does not run. `decisions` are early stopping's, in words. `log` has the last
    lines of log.txt, `trace` those of the last failure. `files` are sizes in bytes, by name.
    """

    trial: str
    sweep: str
    folder: str
    driver: Driver | None
    status: str
    phase: CurrentPhase | None
    dataset: str
    task: str
    method: str
    method_label: str
    seed: int
    is_selection: bool
    parameters: int | None
    settings: Mapping[str, Mapping[str, Any]]
    changed: tuple[str, ...]
    step: int
    steps: int
    steps_per_s: float | None
    eta_s: float | None
    evaluations: int
    pending_evaluations: int
    last_score: Mapping[str, float] | None
    best_score: Mapping[str, float] | None
    attempts: tuple[Attempt, ...]
    started_over: tuple[str, ...]
    data_warnings: tuple[str, ...]
    data_notes: tuple[str, ...]
    decisions: tuple[str, ...]
    error: str | None
    trace: tuple[str, ...]
    log: tuple[str, ...]
    files: Mapping[str, int]
    next_steps: tuple[NextStep, ...]


def explain(found: SweepHandle, key: str) -> Explanation:
    """The trial of that id, or the only one whose id begins or ends so, whether it has begun or not.

    Raises:
        StorageError: there is no such trial or several, or the sweep was not started. A store refuses access.
        StoreUnavailableError: the store does not answer.
    """
    driver, command = found.driver_and_command()
    found.read_manifest()
    plan = read_manifest(found.folder)
    planned = {trial.trial_id: trial for trial in plan.trials}
    folder = find_trial(found, key, planned)
    files = found.read_trial(folder)
    rule = plan.sweep.early_stopping
    records, spec = _records(folder), planned.get(folder.path.name)
    trial = spec if spec is not None else _recorded_spec(folder, records)
    history = read_history(folder, trial, rule)
    alive = driver is not None and driver.alive
    phase = live_phase(history, folder, command.number if command else 0) if alive else None
    status = RUNNING if phase is not None and history.done is None else with_liveness(history.status, alive)
    now_s, runs = time.time(), status == RUNNING
    notes = [str(note) for note in _of_kind(list, history.provenance.get("dataset_notes")) or []]
    failure = history.last_failure if history.done is None else None
    place = _Place(found.where, folder.path.name, command.resume_command if command else "", alive)
    order = command.kind if command else None
    return Explanation(
        trial=trial.trial_id,
        sweep=found.folder.name,
        folder=f"{found.where}/trials/{folder.path.name}",
        driver=driver,
        status=status,
        phase=CurrentPhase.of(phase, now_s) if phase is not None else None,
        dataset=trial.dataset.name,
        task=task_of(trial.dataset).name,
        method=trial.method,
        method_label=METHODS[trial.method].label,
        seed=trial.seed,
        is_selection=plan.sweep.is_selection(trial),
        parameters=_of_kind(int, (_of_kind(dict, history.provenance.get("policy")) or {}).get("parameters")),
        settings={name: getattr(trial, name).model_dump(mode="json") for name in ("model", "training", "evaluation")},
        changed=tuple(changed_fields(trial)),
        step=history.step,
        steps=history.end_step,
        steps_per_s=speed_of(history) if runs else None,
        eta_s=eta_of(history) if runs else None,
        evaluations=len(history.scores),
        pending_evaluations=pending_evaluations(history) if runs else 0,
        last_score=_score(last_score(history.scores.values())),
        best_score=_score(best_score(history.scores.values())),
        attempts=tuple(attempts_of(records, runs)),
        started_over=tuple(record.reason for record in records if record.kind == "started_over"),
        data_warnings=tuple(note.removeprefix(_WARNING) for note in notes if note.startswith(_WARNING)),
        data_notes=tuple(note for note in notes if not note.startswith(_WARNING)),
        decisions=tuple(_decisions(history)),
        error=history.error,
        trace=tuple(_trace(failure.error, failure.traceback)) if failure is not None else (),
        log=_end_of_log(folder),
        files=files,
        next_steps=tuple(next_steps(status, place, order, trial, rule, plan.sweep.is_selection(trial))),
    )


def changed_fields(trial: TrialSpec) -> Iterator[str]:
    """The settings of a trial that are not the default, as `training.steps 40 (default 1000000)`."""
    task = task_of(trial.dataset)
    for name in ("model", "training"):
        yield from _changed(name, getattr(trial, name), {})
    of_task = {"target_returns": task.target_returns, "return_scale": task.return_scale}
    yield from _changed("evaluation", trial.evaluation, of_task)


def _changed(path: str, spec: Spec, defaults: Mapping[str, Any]) -> Iterator[str]:
    """`defaults`: of the fields whose default is not that of their class."""
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if isinstance(value, Spec):
            yield from _changed(f"{path}.{name}", value, {})
        elif not field.is_required():
            default = defaults.get(name, field.get_default(call_default_factory=True))
            if value != default:
                yield f"{path}.{name} {shown(value)} (default {shown(default)})"


def shown(value: Any) -> str:
    """A setting as a sweep file has it."""
    return value if isinstance(value, str) else canonical_json(value)


def attempts_of(records: Iterable[LightRecord], runs: bool) -> list[Attempt]:
    """The attempts that the records of a trial tell, in their order; `runs`: the last one is at work."""
    found: list[list[LightRecord]] = []
    for record in records:
        number = getattr(record, "attempt", None)
        if record.kind == "attempt" or (record.kind == "failure" and number != _number(found)):
            found.append([])
        if found:
            found[-1].append(record)
    ends = [RUNNING if runs and place == len(found) - 1 else INTERRUPTED for place in range(len(found))]
    return [_attempt(each, end) for each, end in zip(found, ends, strict=True)]


def _number(found: Sequence[Sequence[LightRecord]]) -> int | None:
    return getattr(found[-1][0], "attempt", None) if found else None


def _attempt(records: Sequence[LightRecord], without_end: str) -> Attempt:
    first, last = records[0], records[-1]
    start = first if first.kind == "attempt" else None
    failures = [record for record in records if record.kind == "failure"]
    ended = {"failure": "failed", "paused": "paused", "stopped": "stopped early"}.get(last.kind, without_end)
    return Attempt(
        number=getattr(first, "attempt", 0),
        started_s=start.time_s if start is not None else None,
        from_step=start.from_step if start is not None else None,
        host=_of_kind(str, start.provenance.get("hostname")) if start is not None else None,
        device=_of_kind(str, start.provenance.get("device")) if start is not None else None,
        ended=last.status if last.kind == "done" else ended,
        step=max(getattr(record, "step", getattr(record, "from_step", 0)) for record in records),
        lasted_s=max(0.0, last.time_s - first.time_s),
        error=failures[-1].error if failures else None,
    )


class _Place(NamedTuple):
    """Where a trial is, for commands. `alive`: a driver runs the sweep."""

    sweep: str
    trial: str
    resume_command: str
    alive: bool

    @property
    def resume(self) -> str:
        return self.resume_command or "python -m dmray.sweep FILE --resume"

    @property
    def retry(self) -> str:
        """The command that runs this trial alone again after it failed."""
        try:
            words = [word for word in shlex.split(self.resume) if word != "--resume"]
        except ValueError:  # a file that was edited: no command
            words = ["python", "-m", "dmray.sweep", "FILE"]
        only = [] if "--only" in words or any(word.startswith("--only=") for word in words) else ["--only"]
        return shlex.join([*words, "--retry-failed", *only, *([f"trial={self.trial}"] if only else [])])

    def command(self, name: str, *words: str) -> str:
        return shlex.join(["dmray", name, *words])


def next_steps(
    status: str,
    place: _Place,
    order: CommandKind | None,
    trial: TrialSpec,
    rule: EarlyStoppingSpec | None,
    is_selection: bool = False,
) -> Iterator[NextStep]:
    """What a user can do about a trial of this status."""
    logs = ("logs", place.sweep, place.trial)
    match status:
        case "running":
            yield NextStep("follow its log", place.command(*logs, "--follow"))
        case "failed":
            yield NextStep("read its whole log", place.command(*logs))
            when = "when the driver has ended, run it again" if place.alive else "correct the cause, then run it again"
            yield NextStep(when, place.retry)
        case "finished":
            folder = f"{place.sweep}/trials/{place.trial}"
            yield NextStep("evaluate its policy again", place.command("evaluate", folder))
            yield NextStep("compare it with the other trials", place.command("report", place.sweep))
        case "diverged":
            rate = shown(trial.training.learning_rate)
            yield NextStep(f"its loss was not finite: try a learning rate below {rate}, which makes a new trial")
            yield NextStep("read its log", place.command(*logs))
        case "stopped_early" if is_selection:
            yield NextStep("leave it as it is: its setting is not chosen, and later rounds of the search rely on that")
        case "stopped_early" if rule is not None:
            yield NextStep(
                "leave it as it is, or continue all trials that early stopping ended",
                f"{place.resume} -o early_stopping=null",
            )
        case _ if not place.alive:
            yield NextStep("continue the sweep", place.resume)
        case _ if order == "pause":
            yield NextStep("the sweep is paused: let it continue", place.command("resume", place.sweep))
        case _ if order in ("stop", "kill"):
            yield NextStep("the sweep is being stopped: when the driver has ended, continue it", place.resume)
        case _:
            yield NextStep("it starts when there is room for it: watch the sweep", place.command("status", place.sweep))


def _of_kind(kind: type[T], value: object) -> T | None:
    """A value of a ledger's provenance, which may hold anything; None if it is not of that kind."""
    return value if isinstance(value, kind) else None


def _records(folder: TrialFolder) -> list[LightRecord]:
    """Those before the first damage; the trial's history says what is damaged."""
    found: list[LightRecord] = []
    with contextlib.suppress(StorageError):
        for record in LedgerTail(folder.ledger, light=True).records():
            found.append(record)
    return found


def _recorded_spec(folder: TrialFolder, records: Iterable[LightRecord]) -> TrialSpec:
    """Of a trial that the sweep file does not have any more."""
    for record in records:
        if record.kind == "attempt":
            try:
                return TrialSpec.model_validate(record.spec)
            except ValueError:
                break
    raise StorageError(
        f"{folder.path}: the sweep has no such trial, and its ledger does not say what it is; remove the folder, or "
        "restore the ledger from a copy"
    )


def _score(score: Score | None) -> dict[str, float] | None:
    return {"step": score.step, **score.values} if score is not None else None


def _decisions(history: TrialHistory) -> Iterator[str]:
    for step, decision in sorted(history.decisions.items()):
        if decision.action == "stop":
            holds = "stopped there" if history.stopped is not None else "to stop, but the rule has changed since"
            yield f"{holds}: {why_stopped(decision)}"
        else:
            yield (
                f"continued after the rung at step {step:,}: score {decision.score:z.1f}, "
                f"{decision.num_better} of {decision.num_peers} other trials had a higher one"
            )


def _trace(error: str, traceback: str) -> list[str]:
    """The lines of a traceback that say most: its end; of a hang the beginning, which has the thread that hung."""
    lines = plain(traceback).splitlines()
    return lines[:_LOG_LINES] if error.startswith(_HANG) else lines[-_LOG_LINES:]


def _end_of_log(folder: TrialFolder) -> tuple[str, ...]:
    try:
        with open_file(folder.log) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = stream.read(_LOG_BYTES).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError, StorageError):
        return ()
    return tuple(plain(text).splitlines()[-_LOG_LINES:])
