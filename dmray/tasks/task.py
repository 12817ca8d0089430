"""What a task is: an evaluation environment, the sizes of its data, and the scale that its scores are read on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that count as 0 and as 100, and where they come from."""

    minimum: float
    maximum: float
    source: str

    def normalize(self, episode_return: float) -> float:
        """D4RL's normalized score (arXiv 2004.07219, section 5): `100 (R - minimum) / (maximum - minimum)`."""
        return 100.0 * (episode_return - self.minimum) / (self.maximum - self.minimum)


@dataclass(frozen=True)
class Task:
    """An evaluation environment under a protocol. Scores of different protocols never meet in one table.

    `env_id` is the engine's name for it: gymnasium's id, or a maze's layout. Actions lie within `action_limit` of zero.
    The first of `target_returns` (raw units) is the one that a trial is judged by.
    """

    name: str
    family: str
    protocol: str
    engine: str
    env_id: str
    observation_dim: int
    action_dim: int
    action_limit: float
    horizon: int
    reference: ReferenceScores
    target_returns: tuple[float, ...]
    return_scale: float
    targets_source: str


@dataclass(frozen=True)
class DatasetEntry:
    """A published data set of a task."""

    name: str
    task: str
    url: str
