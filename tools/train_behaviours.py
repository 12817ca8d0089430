"""Train the small policies of hopper, halfcheetah, walker2d and ant that `dmray data make --behaviour` records.

    python tools/train_behaviours.py hopper --steps 8e6 [--seed 0] [--out dmray/rollout/behaviours]
    python tools/train_behaviours.py hopper --from PATH     # no search: the file from an earlier one's file or state

Augmented random search, version V2-t (Mania et al. 2018, arXiv 1803.07055): a linear policy on standardised
observations, improved by the best of N random directions. Step sizes, noise, N and the number of directions used are
those of the paper's table 9; the survival bonus is left out of the return that directions are ranked by, as there.

OUT/<task>.npz has the arrays that `dmray/rollout/behaviours/snapshots.py` describes, of the snapshots that recordings
use. There are `SNAPSHOTS` moments, closer to each other at the start, where returns change most; each snapshot's return
is the mean of `EPISODES` episodes with the noise of recordings. The result depends on the seed and the simulator only.
A search that was stopped continues where it saved last.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from dmray.rollout import EvaluationRequest, cohorts, make_engine, roll_out
from dmray.rollout.behaviours import ACTION_NOISE, LinearPolicies, Snapshots, linear_policies, load_snapshots
from dmray.tasks import TASKS, Task

SNAPSHOTS, EPISODES = 24, 20
ARRAYS = ("weights", "mean", "std", "returns", "env_steps")


@dataclass(frozen=True)
class Settings:
    """Of the search: `directions` are tried in each update, the `best` of them are used."""

    step_size: float
    noise: float
    directions: int
    best: int
    survival_bonus: float


SETTINGS = {
    "hopper": Settings(0.01, 0.025, 8, 4, 1.0),
    "halfcheetah": Settings(0.02, 0.03, 32, 4, 0.0),
    "walker2d": Settings(0.03, 0.025, 40, 30, 1.0),
    "ant": Settings(0.015, 0.025, 60, 20, 1.0),
}


class Statistics:
    """Running mean and deviation of observations."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(size), np.zeros(size)

    def add(self, rows: np.ndarray) -> None:
        mean, squares, count = rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0), len(rows)
        total, difference = self.count + count, mean - self.mean
        self.squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Infinite for a number that never changes, so that the policy does not see it."""
        std = np.sqrt(self.squares / max(self.count - 1, 1))
        return np.where(std < 1e-7, np.inf, std)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(SETTINGS))
    parser.add_argument("--steps", type=float, default=8e6, help="environment steps of the search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("dmray/rollout/behaviours"))
    parser.add_argument("--from", dest="source", type=Path, help="the file or the state of an earlier search")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    task, settings = TASKS[options.task], SETTINGS[options.task]
    if options.source is None:
        Search(task, settings, options.seed, int(options.steps), options.out).run()
    else:
        write(options.out / f"{task.name}.npz", task, searched(options.source), settings, options.seed)


def searched(path: Path) -> dict[str, np.ndarray]:
    """The snapshots in a file, or in the state, of a search."""
    with np.load(path) as file:
        prefix = "snapshots/" if f"snapshots/{ARRAYS[0]}" in file else ""
        return {name: file[f"{prefix}{name}"] for name in ARRAYS}


def write(path: Path, task: Task, arrays: dict[str, np.ndarray], settings: Settings, seed: int) -> None:
    """Measure the returns of all snapshots as they are recorded, and write those that recordings use."""
    kept = {name: values if name == "env_steps" else values.astype(np.float32) for name, values in arrays.items()}
    gains, biases = linear_policies(kept["weights"], kept["mean"], kept["std"])
    returns = [mean_return(task, gains[i], biases[i]) for i in range(len(gains))]
    kept["returns"] = np.array(returns, dtype=np.float32)
    about = {
        "task": task.name, "method": "augmented random search V2-t (arXiv 1803.07055)", "seed": seed,
        "settings": asdict(settings), "noise": ACTION_NOISE, "episodes": EPISODES,
        "versions": {name: version(name) for name in ("mujoco", "envpool", "numpy")},
    }  # fmt: skip
    used = Snapshots(gains, biases, kept["returns"], kept["env_steps"], about).used
    np.savez_compressed(path, about=json.dumps(about), **{name: values[used] for name, values in kept.items()})
    written = load_snapshots(task, path)
    for index in range(len(written.returns)):
        name = {written.medium: "medium", written.expert: "expert"}.get(index, "")
        print(f"{written.env_steps[index]:>12,} steps: return {written.returns[index]:7.0f}  {name}")
    print(f"{path}: {path.stat().st_size:,} bytes")


def mean_return(task: Task, gains: np.ndarray, biases: np.ndarray) -> float:
    """The mean return of `EPISODES` episodes of a policy (A, O), (A,) with the noise of recordings."""
    request = EvaluationRequest(task, EPISODES, 0, "", (None,), EPISODES)
    (cohort,) = cohorts(request)
    rngs = [np.random.default_rng(index) for index in range(EPISODES)]
    many = np.repeat(gains[None], EPISODES, axis=0), np.repeat(biases[None], EPISODES, axis=0)
    with closing(make_engine(task, EPISODES)) as engine:
        records = roll_out(LinearPolicies(*many, task.action_limit, rngs), engine, request, cohort)
    return float(np.mean([record.episode_return for record in records]))


class Search:
    """One search, with the snapshots that it has taken."""

    def __init__(self, task: Task, settings: Settings, seed: int, steps: int, out: Path) -> None:
        self.task, self.settings, self.seed, self.steps = task, settings, seed, steps
        self.file, self.state_file = out / f"{task.name}.npz", out / f".{task.name}-search-{seed}.npz"
        self.weights = np.zeros((task.action_dim, task.observation_dim))
        self.statistics = Statistics(task.observation_dim)
        self.updates, self.env_steps = 0, 0
        self.snapshots: list[dict[str, Any]] = []

    def run(self) -> None:
        self._continue()
        due, saved, started, before = 0.0, time.monotonic(), time.monotonic(), self.env_steps
        while self.env_steps < self.steps:
            due = self.steps * (len(self.snapshots) / SNAPSHOTS) ** 2
            if self.env_steps >= due:
                self._snapshot()
                rate = (self.env_steps - before) / (time.monotonic() - started)
                print(
                    f"{self.env_steps:,} steps: return {self.snapshots[-1]['returns']:.0f} ({rate:,.0f}/s)", flush=True
                )
            self._update()
            if time.monotonic() - saved > 60:
                self._save_state()
                saved = time.monotonic()
        self._snapshot()
        self._save_state()
        arrays = {name: np.array([snapshot[name] for snapshot in self.snapshots]) for name in ARRAYS}
        write(self.file, self.task, arrays, self.settings, self.seed)

    def _update(self) -> None:
        settings, rng = self.settings, np.random.default_rng([self.seed, self.updates])
        deltas = rng.standard_normal((settings.directions, *self.weights.shape))
        tried = np.concatenate([self.weights + settings.noise * deltas, self.weights - settings.noise * deltas])
        seeds = rng.integers(2**31, size=len(tried)).tolist()
        returns, lengths, seen = try_all(self.task, tried, self.statistics.mean, self.statistics.std, seeds)
        scores = (returns - settings.survival_bonus * lengths).reshape(2, -1)
        best = np.argsort(-scores.max(0))[: settings.best]
        deviation = scores[:, best].std()
        if deviation > 0:
            gains = (scores[0, best] - scores[1, best]) / (settings.best * deviation)
            self.weights = self.weights + settings.step_size * np.einsum("d,dao->ao", gains, deltas[best])
        self.statistics.add(seen)
        self.updates += 1
        self.env_steps += int(lengths.sum())

    def _snapshot(self) -> None:
        policy = self.weights.copy(), self.statistics.mean.copy(), self.statistics.std
        gains, biases = linear_policies(*(part[None] for part in policy))
        measured = (mean_return(self.task, gains[0], biases[0]), self.env_steps)
        self.snapshots.append(dict(zip(ARRAYS, (*policy, *measured), strict=True)))

    def _save_state(self) -> None:
        part = self.state_file.with_suffix(".part.npz")
        state = {"weights": self.weights, "count": self.statistics.count, "mean": self.statistics.mean}
        state |= {"squares": self.statistics.squares, "updates": self.updates, "env_steps": self.env_steps}
        for name in ARRAYS:
            state[f"snapshots/{name}"] = np.array([snapshot[name] for snapshot in self.snapshots])
        np.savez(part, **state)
        part.replace(self.state_file)

    def _continue(self) -> None:
        if not self.state_file.exists():
            return
        with np.load(self.state_file) as state:
            self.weights, self.updates, self.env_steps = (
                state["weights"],
                int(state["updates"]),
                int(state["env_steps"]),
            )
            self.statistics.count, self.statistics.mean = int(state["count"]), state["mean"]
            self.statistics.squares = state["squares"]
            parts = [state[f"snapshots/{name}"] for name in ARRAYS]
        self.snapshots = [dict(zip(ARRAYS, values, strict=True)) for values in zip(*parts, strict=True)]


def try_all(
    task: Task, weights: np.ndarray, mean: np.ndarray, std: np.ndarray, seeds: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One episode of each policy (P, A, O). Returns (P,) returns and lengths, and all observations (steps, O)."""
    returns, lengths = np.zeros(len(weights)), np.zeros(len(weights), dtype=np.int64)
    live, seen = np.arange(len(weights)), []
    with closing(make_engine(task, len(weights))) as engine:
        observations = engine.reset(seeds).astype(np.float64)
        while live.size:
            seen.append(observations)
            actions = np.einsum("pao,po->pa", weights[live], (observations - mean) / std)
            step = engine.step(np.clip(actions, -task.action_limit, task.action_limit).astype(np.float32), live)
            returns[live] += step.rewards
            lengths[live] += 1
            running = ~(step.terminated | step.truncated)
            observations, live = step.observations[running].astype(np.float64), live[running]
    return returns, lengths, np.concatenate(seen)


if __name__ == "__main__":
    main()
