"""What random actions score in each task: near 0 where D4RL's reference minimum is a random policy's return.

python benchmarks/random_policy.py [--episodes 100] [--only kitchen]
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dmray.errors import EngineError
from dmray.rollout import EvaluationRequest, cohorts, make_engine, roll_out
from dmray.rollout.recording import RandomActions
from dmray.tasks import TASKS, Task


def random_returns(task: Task, episodes: int) -> np.ndarray:
    """Undiscounted returns, (episodes,)."""
    request = EvaluationRequest(task, episodes, 0, "random", (None,), 100)
    returns = []
    for cohort in cohorts(request):
        with closing(make_engine(task, len(cohort.rows))) as engine:
            records = roll_out(RandomActions.of(request, cohort), engine, request, cohort)
        returns.extend(record.episode_return for record in records)
    return np.array(returns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--only", default="", help="tasks whose name begins so")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    table = Table(title=f"random actions, {options.episodes} episodes", box=None)
    for heading in ("task", "return", "standard error", "reference minimum", "normalized score"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    results: list[dict[str, Any]] = []
    for name, task in TASKS.items():
        if not name.startswith(options.only):
            continue
        try:
            returns = random_returns(task, options.episodes)
        except EngineError as missing:
            Console(stderr=True).print(f"{name}: left out: {missing}", highlight=False, soft_wrap=True)
            continue
        mean, error = float(returns.mean()), float(returns.std() / np.sqrt(len(returns)))
        score = task.reference.normalize(mean)
        results.append({"task": name, "return": mean, "standard_error": error, "normalized": score})
        table.add_row(name, f"{mean:,.2f}", f"{error:,.2f}", f"{task.reference.minimum:,.2f}", f"{score:.2f}")
    Console().print(table)
    options.json.write_text(json.dumps({"episodes": options.episodes, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
