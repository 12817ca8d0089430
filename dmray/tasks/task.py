"""What a task is: an evaluation environment, the sizes of its data, and the scale that its scores are read on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

MINARI_SCHEME = "minari://"


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that count as 0 and as 100, and where they come from."""

    minimum: float
    maximum: float
    source: str

    def normalize(self, episode_return: float) -> float:
        """D4RL's normalized score (arXiv 2004.07219, section 5): `100 (R - minimum) / (maximum - minimum)`."""
        return 100.0 * (episode_return - self.minimum) / (self.maximum - self.minimum)


class SubtaskGoal(NamedTuple):
    """A subtask is done while the observation's `columns` are less than `within` (Euclidean) from `goal`."""

    name: str
    columns: tuple[int, ...]
    goal: tuple[float, ...]
    within: float


@dataclass(frozen=True)
class Task:
    """An evaluation environment under a protocol. Scores of different protocols are never put into one table.

    `engine` names the simulator, `env_id` is the simulator's name for the environment: gymnasium's id, or a maze's
    layout. `observation_parts` are the names and sizes of what an observation is made of. Actions lie within
    `action_limit` of zero. A trial's score is that of the first of `target_returns` (raw). Minari's data sets may bring
    a `reference` of their own.

    `success_return`: an episode with at least this return succeeded; None where the task has no success.

    How the task's files are read:

    * `splits_on_terminals`: a terminal ends an episode. False where one episode may have many terminals.
    * `ends_at_first_reward`: evaluation ends an episode at its first reward, but the files go on after it, so later
      rewards are read as zero.
    * `subtasks`: evaluation pays once for each. Where a file pays at every step, its rewards are rewritten.
    * `appendix_dim`: some files append so many numbers to the observation that no simulator here shows.

    `zero_dims`: how many of `observation_dim` are such appended numbers, to be filled with zeros when the policy acts;
    set by `with_zeros`.
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
    splits_on_terminals: bool = True
    ends_at_first_reward: bool = False
    subtasks: tuple[SubtaskGoal, ...] = ()

    def with_zeros(self, count: int) -> Task:
        """This task with `count` zeros behind each observation."""
        return replace(self, observation_dim=self.observation_dim + count, zero_dims=self.zero_dims + count)

    def without_zeros(self) -> Task:
        """This task as its simulator shows it."""
        return replace(self, observation_dim=self.observation_dim - self.zero_dims, zero_dims=0)


@dataclass(frozen=True)
class DatasetEntry:
    """A published data set of a task. `url` is a file's address, or `minari://` and Minari's id."""

    name: str
    task: str
    url: str

    @property
    def file_name(self) -> str | None:
        """The name of the published file; None for a data set of Minari, which is not one file."""
        return None if self.url.startswith(MINARI_SCHEME) else self.url.rsplit("/", 1)[1]
