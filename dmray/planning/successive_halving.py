"""Who goes on after a rung: asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934), as pure rules.

A trial is judged once at each rung, by the scores that are there when its own is. Of n of them the best floor(n / eta)
go on; while there are fewer than eta, everybody does. Ties go on. As in Ray Tune's ASHAScheduler, and otherwise than in
the paper, a trial that is not good enough is stopped at once; the paper waits with it and may promote it later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from dmray.records.records import LedgerRecord, RungDecision, TrialStopped
from dmray.specs import EarlyStoppingSpec, TrialSpec


def rungs_of(rule: EarlyStoppingSpec | None, trial: TrialSpec) -> tuple[int, ...]:
    """The steps after which `trial` may be stopped; none without a rule."""
    return rule.rungs(trial.training, trial.evaluation) if rule is not None else ()


def judge(rule: EarlyStoppingSpec, step: int, score: float, peers: Sequence[float], time_s: float) -> RungDecision:
    """The verdict on a trial with `score` at the rung `step`, where `peers` are the others' scores so far."""
    better = sum(peer > score for peer in peers)
    places = (len(peers) + 1) // rule.reduction_factor
    return RungDecision(
        time_s=time_s,
        step=step,
        score=score,
        peers=len(peers),
        better=better,
        cutoff=sorted([*peers, score], reverse=True)[places - 1] if places else None,
        within=rule.within,
        reduction_factor=rule.reduction_factor,
        verdict="stop" if _is_out(better, len(peers), rule.reduction_factor) else "go on",
    )


def holds(rule: EarlyStoppingSpec | None, trial: TrialSpec, judged: RungDecision) -> bool:
    """Whether a verdict to stop is still one under `rule`, None where a sweep stops nobody early any more.

    By the scores that were seen then, at a rung that still is one, among the same competitors.
    """
    return (
        rule is not None
        and judged.verdict == "stop"
        and judged.within == rule.within
        and judged.step in rungs_of(rule, trial)
        and _is_out(judged.better, judged.peers, rule.reduction_factor)
    )


def is_stopped(last: LedgerRecord | None, trial: TrialSpec, rule: EarlyStoppingSpec | None) -> TypeGuard[TrialStopped]:
    """Whether `trial`, whose ledger ends with `last`, was stopped early by a verdict that holds."""
    return isinstance(last, TrialStopped) and holds(rule, trial, last.rung)


def _is_out(better: int, peers: int, reduction_factor: int) -> bool:
    places = (peers + 1) // reduction_factor
    return places > 0 and better >= places
