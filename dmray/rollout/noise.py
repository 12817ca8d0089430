"""Gaussian noise in a rollout: on the observations that the policy sees, and on the actions that the simulator gets.

A robot with an imperfect sensor and an imperfect motor. The policy decides by the noisy observation. The simulator gets
the decided action plus noise, clipped to the task's limit. The policy's history has the action that it decided, because
a robot knows what it commanded, and the noisy observation, because it knows no other. Rewards and returns-to-go are the
simulator's.

The noise has the deviation `action_noise` (`observation_noise`) times that of each dimension in the data that the
policy was trained on. A dimension that is constant in the data gets none.

The draws of an episode follow from its seed and from nothing else: not from the cohort, the actor, the decode mode, the
target return or the other kind of noise.

Shapes: E live episodes, S observation_dim, A action_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

_CONSTANT = 2e-6  # `dmray.datasets.Statistics` adds 1e-6 to each deviation
_ACTIONS, _OBSERVATIONS = 1, 2  # keys of the two generators of an episode


@dataclass(frozen=True)
class Deviations:
    """The standard deviation of each dimension in a policy's data, (A,) and (S,); None: not known."""

    actions: tuple[float, ...] | None
    observations: tuple[float, ...]


@dataclass(frozen=True)
class Noise:
    """The levels, in units of the data's deviations, and the noise's own deviations (A,) and (S,), raw."""

    action_noise: float
    observation_noise: float
    actions: tuple[float, ...]
    observations: tuple[float, ...]

    @classmethod
    def of(cls, action_noise: float, observation_noise: float, deviations: Deviations, zero_dims: int) -> Noise | None:
        """None if both levels are 0. `zero_dims`: the last numbers of an observation, which no sensor shows.

        If `action_noise` is not 0, `deviations.actions` must be known.
        """
        if not action_noise and not observation_noise:
            return None
        shown = len(deviations.observations) - zero_dims
        seen = [*deviations.observations[:shown], *[0.0] * zero_dims]
        actions = deviations.actions if deviations.actions is not None else ()
        assert actions or not action_noise, "the caller has checked"
        return cls(action_noise, observation_noise, _scaled(action_noise, actions), _scaled(observation_noise, seen))


class NoiseSource:
    """The generators of the live episodes; `seeds`: one per row."""

    def __init__(self, noise: Noise, seeds: Sequence[int], action_limit: float) -> None:
        self._limit = action_limit
        self._actions = _Draws(noise.actions if noise.action_noise else (), seeds, _ACTIONS)
        self._observations = _Draws(noise.observations if noise.observation_noise else (), seeds, _OBSERVATIONS)

    def seen(self, observations: np.ndarray) -> np.ndarray:
        """What the policy sees of `observations` (E, S)."""
        return self._observations.added_to(observations)

    def done(self, actions: np.ndarray) -> np.ndarray:
        """What the simulator gets for the decided `actions` (E, A)."""
        return self._actions.added_to(actions).clip(-self._limit, self._limit)

    def keep(self, rows: np.ndarray) -> None:
        """Continue with these rows (E',) only."""
        self._actions.keep(rows)
        self._observations.keep(rows)


class _Draws:
    """Noise of one kind; without deviations there is none, and nothing is drawn."""

    def __init__(self, deviations: Sequence[float], seeds: Sequence[int], key: int) -> None:
        self._deviations = np.array(deviations)
        self._generators = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,))) for seed in seeds]

    def added_to(self, values: np.ndarray) -> np.ndarray:
        size = len(self._deviations)
        if not size:
            return values
        drawn = np.stack([generator.standard_normal(size) for generator in self._generators])
        noisy: np.ndarray = (values + self._deviations * drawn).astype(np.float32)
        return noisy

    def keep(self, rows: np.ndarray) -> None:
        self._generators = [self._generators[row] for row in rows.tolist()]


def _scaled(level: float, deviations: Iterable[float]) -> tuple[float, ...]:
    return tuple(level * each if each > _CONSTANT else 0.0 for each in deviations)
