"""What a task is: an evaluation environment, the sizes of its data, and the scale that its scores are read on."""

from __future__ import annotations

from dataclasses import dataclass, replace


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

    `env_id` is the engine's name for it: gymnasium's id, or a maze's layout. `observation_parts` are the names and
    sizes of what an observation is made of. Actions lie within `action_limit` of zero. The first of `target_returns`
    (raw units) is the one that a trial is judged by. Minari's data
    sets may bring a `reference` of their own.

    `success_return`: an episode that returned as much succeeded, where a task has such a thing.

    `appendix_dim`: numbers that some files append to the observation though no simulator here shows them.
    `zero_dims`: how many of `observation_dim` are such numbers, to be filled with zeros when acting; `with_zeros` makes
    it so.
    """

    name: str
    family: str
    protocol: str
    engine: str
    env_id: str
    observation_parts: tuple[tuple[str, int], ...]
    observation_dim: int
    action_dim: int
    action_limit: float
    horizon: int
    reference: ReferenceScores
    target_returns: tuple[float, ...]
    return_scale: float
    targets_source: str
    success_return: float | None = None
    appendix_dim: int = 0
    zero_dims: int = 0

    @property
    def splits_on_terminals(self) -> bool:
        """Whether a terminal ends an episode in the task's files; antmaze's are relabelled, many to an episode."""
        return self.family != "antmaze"

    @property
    def ends_at_first_reward(self) -> bool:
        """Whether an episode is over with its first reward; antmaze's files go on being paid at the goal."""
        return self.family == "antmaze"

    def with_zeros(self, count: int) -> Task:
        """This task with `count` zeros behind each observation."""
        return replace(self, observation_dim=self.observation_dim + count, zero_dims=self.zero_dims + count)

    def without_zeros(self) -> Task:
        """This task as its simulator shows it."""
        return replace(self, observation_dim=self.observation_dim - self.zero_dims, zero_dims=0)


@dataclass(frozen=True)
class DatasetEntry:
    """A published data set of a task; `url` may be of the scheme `minari`, whose rest is Minari's id."""

    name: str
    task: str
    url: str
