"""How long a cohort may take before its evaluation actor counts as hung: a multiple of what cohorts have taken."""

from __future__ import annotations

from dmray.rollout import Cohort, EpisodeRecord, EvaluationRequest

_SLOWER = 10.0  # than the slowest cohort so far, with every episode as long as the horizon
_SHORTEST_S = 60.0  # machines are busy for a while, and clocks of a busy machine are rough


class CohortDeadlines:
    """The slowest environment step of each trial so far, and what follows from it for the trial's next cohorts.

    A trial's policy and request do not change, so its cohorts differ in length only. The first cohort of a trial, and
    of an actor that still has to load a simulator, may take `timeout_s`.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._slowest_step_s: dict[str, float] = {}

    def measured(self, trial: str, records: tuple[EpisodeRecord, ...], seconds: float) -> None:
        """An actor rolled out a cohort of `trial` in `seconds`."""
        step_s = seconds / max(1, sum(record.length for record in records))
        self._slowest_step_s[trial] = max(step_s, self._slowest_step_s.get(trial, 0.0))

    def deadline_s(self, trial: str, request: EvaluationRequest, cohort: Cohort, warm: bool) -> float:
        """Seconds that `cohort` may take; `warm` is whether its actor has rolled out a cohort before."""
        slowest_step_s = self._slowest_step_s.get(trial)
        if slowest_step_s is None or not warm:
            return self._timeout_s
        longest_s = slowest_step_s * len(cohort.rows) * request.task.horizon
        return max(_SLOWER * longest_s, min(_SHORTEST_S, self._timeout_s))
