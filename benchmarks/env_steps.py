"""Environment steps a second: our engines, the gymnasium loop that a user would write, and bare `mj_step`.

    python benchmarks/env_steps.py [--json FILE]

All three in this process on one thread, in turns, random actions, medians over the rounds. A step is one decision of
the policy. Ours steps 100 episodes together; the loop steps one environment; the floor is a bare loop over 100 states
that sets the controls and calls `mj_step`, and observes, pays and ends nothing. Episodes that end are begun again (the
floor after as many steps as ours lasted on average), and the time of resets is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import closing, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import mujoco
import numpy as np
from rich.console import Console
from rich.table import Table

from dmray.rollout import make_engine
from dmray.rollout.simulators.antmaze import ant_in_maze
from dmray.tasks import TASKS

EPISODES = 100


@dataclass(frozen=True)
class Family:
    """What stands for a family, and the steps that each of the three is timed over."""

    task: str
    loop_id: str  # gymnasium's environment of the same family
    substeps: int
    steps: int
    promised: str = ""


FAMILIES = (
    Family("hopper", "Hopper-v4", 4, 40_000, "0.7 of the floor"),
    Family("halfcheetah", "HalfCheetah-v4", 5, 60_000, "0.7 of the floor"),
    Family("walker2d", "Walker2d-v4", 4, 30_000, "0.7 of the floor"),
    Family("ant", "Ant-v4", 5, 15_000, "0.7 of the floor"),
    Family("maze2d-medium", "PointMaze_Medium-v3", 1, 100_000, "5 x the loop"),
    Family("antmaze-medium", "AntMaze_Medium-v4", 5, 10_000, "0.7 of the floor"),
    Family("kitchen-complete", "FrankaKitchen-v1", 40, 1_500),
)


def ours(family: Family) -> tuple[float, float]:
    """Steps a second of one engine, and the mean episode length."""
    task, rng = TASKS[family.task], np.random.default_rng(0)
    with closing(make_engine(task, EPISODES)) as engine:
        done, ended, seconds, seed = 0, 0, 0.0, 0
        live = np.arange(0)
        while done < family.steps:
            if not live.size:
                engine.reset(range(seed, seed + EPISODES))
                live, seed = np.arange(EPISODES), seed + EPISODES
            actions = rng.uniform(-1, 1, (len(live), task.action_dim)).astype(np.float32)
            start = time.perf_counter()
            step = engine.step(actions, live)
            seconds += time.perf_counter() - start
            done += len(live)
            over = step.terminated | step.truncated
            ended, live = ended + int(over.sum()), live[~over]
    return done / seconds, done / ended if ended else task.horizon


def loop(family: Family) -> float:
    """Steps a second of one gymnasium environment."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        environment = gymnasium.make(family.loop_id)
    assert environment.action_space.shape is not None
    environment.reset(seed=0)
    done, seconds, steps = 0, 0.0, family.steps // 4
    while done < steps:
        action = rng.uniform(-1, 1, environment.action_space.shape)
        start = time.perf_counter()
        *_, terminated, truncated, _ = environment.step(action)
        seconds += time.perf_counter() - start
        done += 1
        if terminated or truncated:
            environment.reset()
    environment.close()
    return done / seconds


def floor(family: Family, episode_length: float) -> float:
    """Steps a second of a bare loop over 100 states: set the controls, `mj_step`, nothing else."""
    model, rng = _model(family), np.random.default_rng(0)
    states = [mujoco.MjData(model) for _ in range(EPISODES)]
    low, high = model.actuator_ctrlrange.T
    start_positions = _start_positions(family, model)
    done, seconds = 0, 0.0
    while done < family.steps:
        for data in states:
            mujoco.mj_resetData(model, data)
            data.qpos[:] = start_positions
        rounds = max(1, int(min(episode_length, (family.steps - done) / EPISODES)))
        for controls in rng.uniform(low, high, (rounds, EPISODES, model.nu)):
            start = time.perf_counter()
            for data, control in zip(states, controls, strict=True):
                data.ctrl[:] = control
                mujoco.mj_step(model, data, family.substeps)
            seconds += time.perf_counter() - start
        done += rounds * EPISODES
    return done / seconds


def _model(family: Family) -> Any:
    if family.task.startswith("antmaze"):
        return ant_in_maze("medium")
    return _reference(family).model


def _start_positions(family: Family, model: Any) -> np.ndarray:
    if family.task.startswith(("antmaze", "maze2d")):
        return np.array(model.qpos0)
    return np.array(_reference(family).init_qpos)


def _reference(family: Family) -> Any:
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        environment: Any = gymnasium.make(family.loop_id).unwrapped
    return getattr(environment, "point_env", getattr(environment, "robot_env", environment))


def measure(family: Family, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"ours": [], "loop": [], "floor": []}
    length = 0.0
    for _ in range(rounds):
        rate, length = ours(family)
        rates["ours"].append(rate)
        rates["loop"].append(loop(family))
        rates["floor"].append(floor(family, length))
    middle = {name: median(values) for name, values in rates.items()}
    return {
        "family": family.task,
        "engine": TASKS[family.task].engine,
        "steps_per_s": middle,
        "all": rates,
        "of_floor": middle["ours"] / middle["floor"],
        "of_loop": middle["ours"] / middle["loop"],
        "mean_episode_length": length,
        "promised": family.promised,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="families whose name begins so")
    options = parser.parse_args()
    import gymnasium_robotics

    _registered: Callable[[Any], None] = gymnasium.register_envs
    _registered(gymnasium_robotics)
    results = [measure(family, options.rounds) for family in FAMILIES if family.task.startswith(options.only)]
    table = Table(title=f"env steps a second, 1 thread, medians of {options.rounds}", box=None)
    for heading in ("task", "engine", "ours", "gymnasium loop", "mj_step", "ours / loop", "ours / mj_step", "aim"):
        table.add_column(heading, justify="left" if heading in ("task", "engine", "aim") else "right")
    for result in results:
        rates = result["steps_per_s"]
        table.add_row(
            result["family"],
            result["engine"],
            *(f"{rates[name]:,.0f}" for name in ("ours", "loop", "floor")),
            f"{result['of_loop']:.2f}",
            f"{result['of_floor']:.2f}",
            result["promised"],
        )
    Console().print(table)
    machine = {"cpu": platform.processor(), "cores": os.cpu_count(), "mujoco": mujoco.__version__}
    options.json.write_text(json.dumps({"machine": machine, "episodes": EPISODES, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
