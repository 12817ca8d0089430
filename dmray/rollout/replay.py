"""Whether a file and a simulator agree: recorded actions, replayed from the state that an observation shows."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from dmray.datasets import Episodes
from dmray.errors import EngineError
from dmray.rollout.engine import VectorEngine, make_engine
from dmray.tasks import Task

_REFERENCE = {"envpool": "gymnasium"}  # the engine that can be put into a state, for one that cannot and is its equal


@runtime_checkable
class Placeable(VectorEngine, Protocol):
    """An engine whose state can be rebuilt from an observation (positions that no observation shows are zero)."""

    def place(self, observations: np.ndarray) -> np.ndarray:
        """Begin all episodes at `observations` (E, S) and not where their seeds say; returns what they show."""


def replay_errors(task: Task, episodes: Episodes, steps: int = 20, most_episodes: int = 100) -> np.ndarray:
    """Per episode, the largest difference of any number after 1 ... `steps` steps, (episodes, steps) float64.

    Of the first `most_episodes` episodes that are long enough. Numbers that no simulator shows are not compared. A
    file's float32 start is off by 1e-7, which a few episodes with hard contacts make 1e-3 of within 20 steps.

    Raises:
        EngineError: the task's observations do not hold its simulator's state, or no episode is long enough.
    """
    bare = task.without_zeros()
    firsts = episodes.starts[:-1][episodes.lengths > steps][:most_episodes]
    if not firsts.size:
        raise EngineError(f"{task.name}: no episode is longer than {steps} steps, so none can be replayed")
    every = np.arange(len(firsts))
    engine = make_engine(replace(bare, engine=_REFERENCE.get(bare.engine, bare.engine)), len(firsts))
    if not isinstance(engine, Placeable):
        raise EngineError(f"{task.name}: its observations do not hold the simulator's state, so none can be replayed")
    errors = np.zeros((len(firsts), steps))
    with closing(engine):
        engine.reset(every.tolist())
        engine.place(episodes.observations[firsts, : bare.observation_dim].astype(np.float64))
        for step in range(steps):
            shown = engine.step(episodes.actions[firsts + step], every).observations
            expected = episodes.observations[firsts + step + 1, : bare.observation_dim]
            errors[:, step] = np.abs(shown - expected).max(axis=1)
    return errors
