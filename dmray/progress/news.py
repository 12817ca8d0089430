"""What has happened in a sweep since the last look, as lines for a log: one for each change of a trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dmray.progress.progress import SweepProgress
from dmray.progress.summary import Summary
from dmray.progress.trial_status import TrialHistory, TrialStatus
from dmray.records import AttemptFailed, LightRecord, RungDecision, Score, best_score, last_score

_LONG_S = 10.0  # a phase that takes longer is a line
_SAID_BY_RECORDS = ("training", "evaluating", "waiting_for_evaluations")


class Seen(NamedTuple):
    """What was told of a trial so far."""

    status: TrialStatus = TrialStatus.WAITING
    attempts: int = 0
    num_scores: int = 0
    failure: AttemptFailed | None = None
    last: LightRecord | None = None

    @classmethod
    def of(cls, history: TrialHistory) -> Seen:
        return cls(history.status, history.attempts, len(history.scores), history.last_failure, history.last)


def news_of(seen: Seen, history: TrialHistory) -> Iterator[str]:
    """The changes of one trial, in the order of their records, without its name.

    The records of a shorter trial that it continues are no news.
    """
    failure = history.last_failure
    if (
        failure is not None
        and failure is not seen.failure
        and history.inherited_attempts < failure.attempt < history.attempts
    ):
        yield f"attempt {failure.attempt} failed at step {failure.step:,}: {failure.error}"
    if history.attempts > max(seen.attempts, history.inherited_attempts):
        yield _started(history)
    scores = list(history.scores.values())
    known = seen.num_scores if seen.num_scores <= len(scores) else 0  # fewer: it started over
    for place in range(max(known, history.inherited_scores), len(scores)):
        yield _evaluated(scores[place], scores[:place])
    if history.status is not seen.status or (history.last is not seen.last and _has_ended(history)):
        yield from _end(history)


def _has_ended(history: TrialHistory) -> bool:
    return history.status not in (TrialStatus.STARTED, TrialStatus.WAITING)


def _started(history: TrialHistory) -> str:
    attempt = history.last_attempt
    if attempt is None:
        return f"attempt {history.attempts} started"
    host, device = attempt.provenance.get("hostname"), attempt.provenance.get("device")
    where = (f" on {host}" if host else "") + (f" ({device})" if device else "")
    if history.attempts == 1:
        return f"started{where}"
    return f"attempt {history.attempts} started{where} at step {attempt.from_step:,} of {history.end_step:,}"


def _evaluated(score: Score, before: Sequence[Score]) -> str:
    best = best_score(before)
    if score.quick:
        rank = "over fewer episodes"
    elif best is None or score.normalized > best.normalized:
        rank = "the best so far"
    else:
        rank = f"best {best.normalized:z.1f} at step {best.step:,}"
    return f"evaluation at step {score.step:,}: normalized score {score.normalized:z.1f} ({rank})"


def _end(history: TrialHistory) -> Iterator[str]:
    match history.status:
        case TrialStatus.FINISHED | TrialStatus.DIVERGED:
            yield f"{history.status.label} at step {history.end_step:,}{_scores(history)}"
        case TrialStatus.PAUSED if history.last is None or history.last.kind != "extended":  # that is a beginning
            yield f"paused at step {history.step:,}"
        case TrialStatus.FAILED:
            yield f"failed at step {history.step:,}: {history.error}"
        case TrialStatus.STOPPED_EARLY if history.stopped is not None:
            yield f"stopped early at step {history.stopped.step:,}: {why_stopped(history.stopped.decision)}"


def why_stopped(decision: RungDecision) -> str:
    """Early stopping's decision against a trial, in words."""
    needed = "" if decision.cutoff is None else f"; it needed {decision.cutoff:z.1f}"
    return (
        f"its score at step {decision.step:,} was {decision.score:z.1f}{needed}, "
        f"and {decision.num_better} of {decision.num_peers} other trials had a higher one"
    )


def _scores(history: TrialHistory) -> str:
    last, best = last_score(history.scores.values()), best_score(history.scores.values())
    if last is None or best is None:
        return ""
    return f"; last score {last.normalized:z.1f}, best {best.normalized:z.1f} at step {best.step:,}"


class News:
    """Remembers what was told of a sweep. The first look tells nothing: what was there before is no news."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] | None = None
        self._phases: dict[str, str] = {}  # the phase that was told, by trial

    def since(self, progress: SweepProgress, summary: Summary) -> list[str]:
        """The changes since the last call."""
        before, self._seen = self._seen, {name: Seen.of(history) for name, history in progress.trials.items()}
        if before is None:
            return []
        lines = [
            f"{name}: {each}" for name, history in progress.trials.items() for each in news_of(before[name], history)
        ]
        return [*lines, *self._long_phases(summary)]

    def _long_phases(self, summary: Summary) -> Iterator[str]:
        """Phases that take long, once each; those of the driver that it does not log itself."""
        phases = {row.trial: row.phase for row in summary.running}
        if summary.phase is not None and summary.phase.name == "starting_trials":
            phases["the sweep"] = summary.phase
        for who, phase in phases.items():
            if phase is None or phase.name in _SAID_BY_RECORDS or phase.elapsed_s < _LONG_S:
                continue
            if self._phases.get(who) != phase.words:
                self._phases[who] = phase.words
                yield f"{who}: {phase}"
