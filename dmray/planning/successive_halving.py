"""Which trials continue after a rung: asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934).

Pure functions. A trial is compared once at each rung, with the scores that are known when its own is. Of n scores the
best floor(n / eta) continue; while there are fewer than eta scores, every trial continues. Ties continue. A trial that
is not good enough is stopped at once, as in Ray Tune's ASHAScheduler; in the paper it waits and may continue later.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmray.records.identity import ResultIdentity
from dmray.records.records import RungDecision
from dmray.specs import EarlyStoppingSpec, TrialSpec


def rungs_of(rule: EarlyStoppingSpec | None, trial: TrialSpec) -> tuple[int, ...]:
    """The steps after which `trial` may be stopped; none without a rule."""
    return rule.rungs(trial.training, trial.evaluation) if rule is not None else ()


def competitors_of(rule: EarlyStoppingSpec, trial: TrialSpec, identity: ResultIdentity) -> str:
    """The id of the group of trials in which `trial` competes.

    Scores on other data, with another simulator or other code are not compared, so they stop no trial.
    """
    same = identity.shared if rule.within == "dataset" else identity  # methods come from several packages
    return f"{rule.competitors_of(trial)}-{same.digest}"


def decide(rule: EarlyStoppingSpec, step: int, score: float, peers: Sequence[float], time_s: float) -> RungDecision:
    """Whether a trial with `score` at the rung `step` continues; `peers` are the other trials' scores so far."""
    num_better = sum(peer > score for peer in peers)
    places = (len(peers) + 1) // rule.reduction_factor
    return RungDecision(
        time_s=time_s,
        step=step,
        score=score,
        num_peers=len(peers),
        num_better=num_better,
        cutoff=sorted([*peers, score], reverse=True)[places - 1] if places else None,
        within=rule.within,
        reduction_factor=rule.reduction_factor,
        action="stop" if _is_out(num_better, len(peers), rule.reduction_factor) else "continue",
    )


def decision_holds(rule: EarlyStoppingSpec | None, trial: TrialSpec, decision: RungDecision) -> bool:
    """Whether a decision to stop `trial` still holds under `rule` (None: the sweep has no early stopping any more).

    It holds if `rule` has the same rung and the same competitors, and stops the trial by the scores known then.
    """
    return (
        rule is not None
        and decision.action == "stop"
        and decision.within == rule.within
        and decision.step in rungs_of(rule, trial)
        and _is_out(decision.num_better, decision.num_peers, rule.reduction_factor)
    )


def _is_out(num_better: int, num_peers: int, reduction_factor: int) -> bool:
    places = (num_peers + 1) // reduction_factor
    return places > 0 and num_better >= places
