"""Closed loop: the scores of the low network when its subgoals come from elsewhere than its high network.

Shapes: E live episodes, M remembered states, S observation_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np

from dmray.analysis.subgoal_measures import LABEL, PREDICTED, PRESENT
from dmray.datasets import Episodes
from dmray.inference import Policy, evaluation_request
from dmray.inference.evaluation import computing_as_an_actor
from dmray.policies import SubgoalSource, make_decoder
from dmray.rollout import cohorts, make_engine, roll_out

RANDOM = "random state"
FED = (PREDICTED, LABEL, RANDOM, PRESENT)
_REMEMBERED = 20_000  # states of the data set that are searched for the nearest one


class Remembered(NamedTuple):
    """States of a data set with their labels, raw: `states`, `labels` (M, S); and the deviation of the states (S,)."""

    states: np.ndarray
    labels: np.ndarray
    std: np.ndarray


def remember(episodes: Episodes, label_rows: np.ndarray, std: np.ndarray, seed: int) -> Remembered:
    """Up to 20,000 states of the data set, drawn uniformly, without the last one of each episode."""
    usable = np.ones(episodes.num_transitions, bool)
    usable[episodes.starts[1:] - 1] = False
    rows = np.flatnonzero(usable)
    if len(rows) > _REMEMBERED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _REMEMBERED, replace=False))
    return Remembered(episodes.observations[rows], episodes.observations[label_rows[rows]], std)


class NearestLabels:
    """A `SubgoalSource`: the label of the data set's state that is nearest to the present one, z-scored.

    In a simulator no subgoal is labelled, because the label of a state is known only when its episode has ended.
    """

    def __init__(self, remembered: Remembered) -> None:
        self._labels, self._std = remembered.labels, remembered.std
        self._states = remembered.states / remembered.std
        self._squares = np.square(self._states).sum(axis=1)

    def subgoals(self, observations: np.ndarray) -> np.ndarray:
        """See `SubgoalSource.subgoals`."""
        products = (observations / self._std) @ self._states.T
        chosen: np.ndarray = self._labels[np.argmin(self._squares - 2 * products, axis=1)]
        return chosen

    def keep(self, rows: np.ndarray) -> None:
        """Do nothing: a subgoal follows from the present state alone."""


class RandomStates:
    """A `SubgoalSource`: random states of the data set, each held for `held` timesteps."""

    def __init__(self, remembered: Remembered, episodes: int, held: int, seed: int) -> None:
        self._states, self._held = remembered.states, held
        self._draw, self._timestep = np.random.default_rng(seed), 0
        self._rows, self._episodes = np.arange(episodes), episodes
        self._chosen = self._states[:0]

    def subgoals(self, observations: np.ndarray) -> np.ndarray:
        """See `SubgoalSource.subgoals`."""
        if self._timestep % self._held == 0:  # for all episodes, so that none depends on which others have ended
            self._chosen = self._states[self._draw.integers(len(self._states), size=self._episodes)]
        self._timestep += 1
        chosen: np.ndarray = self._chosen[self._rows]
        return chosen

    def keep(self, rows: np.ndarray) -> None:
        """See `SubgoalSource.keep`."""
        self._rows = self._rows[rows]


class PresentStates:
    """A `SubgoalSource`: the present state, as if the policy had reached its subgoal."""

    def subgoals(self, observations: np.ndarray) -> np.ndarray:
        """See `SubgoalSource.subgoals`."""
        return observations

    def keep(self, rows: np.ndarray) -> None:
        """Do nothing."""


def scores_by_source(
    policy: Policy, remembered: Remembered, episodes: int, held: int, seed: int, pool: Executor | None = None
) -> dict[str, np.ndarray]:
    """The normalized score of each episode (episodes,) when the low network is fed by each of `FED`.

    The episodes are the first ones of the policy's evaluation; with its own predictions they are exactly those. `held`:
    for how many timesteps a random state is held. `pool`: each source is the work of one of its processes.

    Raises:
        EngineError: the task has no simulator here. FloatingPointError: an action is not finite.
    """
    scores_of = partial(_scores, policy, remembered, episodes, held, seed)
    return dict(zip(FED, (map if pool is None else pool.map)(scores_of, FED), strict=True))


def _scores(policy: Policy, remembered: Remembered, episodes: int, held: int, seed: int, fed: str) -> np.ndarray:
    targets = policy.target_returns[:1] or None
    request = evaluation_request(policy, episodes=episodes, target_returns=targets)
    returns = []
    with computing_as_an_actor(deterministic=False):
        for cohort in cohorts(request):
            source = _source(fed, remembered, len(cohort.rows), held, seed)
            decoder = make_decoder(policy.network, request.decode, len(cohort.rows), source=source)
            with closing(make_engine(request.task, len(cohort.rows))) as engine:
                returns += [each.episode_return for each in roll_out(decoder, engine, request, cohort)]
    return np.array([request.task.reference.normalize(each) for each in returns])


def _source(fed: str, remembered: Remembered, rows: int, held: int, seed: int) -> SubgoalSource | None:
    """None: the high network."""
    made: dict[str, Callable[[], SubgoalSource | None]] = {
        PREDICTED: lambda: None,
        LABEL: lambda: NearestLabels(remembered),
        RANDOM: lambda: RandomStates(remembered, rows, held, seed),
        PRESENT: PresentStates,
    }
    return made[fed]()
