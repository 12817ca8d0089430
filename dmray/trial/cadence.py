"""When a quick evaluation is enough: a pure rule, named in the docs and recorded with each evaluation (`quick`)."""

from __future__ import annotations

import math

from dmray.records import TargetResult

_STANDARD_ERRORS = 2.0


def may_be_best(quick: TargetResult, best: float | None) -> bool:
    """Whether all episodes are worth running: nothing was evaluated whole yet (`best` None), or the quick score and two
    of its standard errors reach the best whole score. Scores are normalized.

    A single episode has no standard error, and rules nothing out.
    """
    episodes = len(quick.returns)
    if best is None or episodes == 1:
        return True
    standard_error = quick.normalized_std / math.sqrt(episodes - 1)
    return quick.normalized_mean + _STANDARD_ERRORS * standard_error >= best
