"""What the benchmarks of this folder share: timing in turns, and the record beside the table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dmray.records import provenance

_ENOUGH_S, _FEWEST = 60.0, 3


def in_turns(
    cases: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2, turn_s: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each case, `rounds` times, one after the other in each round, so that all meet the same machine.

    A turn calls its case again until `turn_s` are over, and the mean counts: as in use, what a case reads is in the
    caches that it left, not in those that the case before it filled. Slow cases, of which a minute is spent, get fewer
    rounds, at least three.
    """
    for case in cases.values():
        for _ in range(warm_up):
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    begun = time.perf_counter()
    for number in range(rounds):
        if number >= _FEWEST and time.perf_counter() - begun > _ENOUGH_S:
            break
        for name, case in cases.items():
            start, calls, spent = time.perf_counter(), 0, 0.0
            while not calls or spent < turn_s:
                case()
                _wait()
                calls, spent = calls + 1, time.perf_counter() - start
            seconds[name].append(spent / calls)
    return seconds


def medians_ms(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: 1e3 * median(values) for name, values in seconds.items()}


def write_record(path: Path, settings: Mapping[str, Any], results: list[dict[str, Any]]) -> None:
    """JSON with the machine, the versions, the settings as resolved and every measurement."""
    record = {"made_by": provenance(), "torch_threads": torch.get_num_threads(), "settings": settings}
    path.write_text(json.dumps({**record, "results": results}, indent=1) + "\n")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
