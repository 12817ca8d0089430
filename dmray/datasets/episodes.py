"""A data set in memory: flat arrays over all transitions, and where each episode starts.

Shapes: N transitions, E episodes, S observation_dim, A action_dim.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dmray.errors import DatasetError

_PART_SEED = 0  # of the order in which episodes are kept

WARNING = "warning: "  # a note that begins with it says that the data are probably not what was meant


@dataclass(frozen=True)
class Episodes:
    """Transitions of E whole episodes, end to end; episode e is the rows `starts[e]:starts[e + 1]`.

    `notes` say how the source was changed when it was read, a sentence each; they are shown
    when a sweep starts and recorded with each run. One that begins with `WARNING` is shown as a warning.
    """

    observations: np.ndarray  # (N, S) float32, before the action
    actions: np.ndarray  # (N, A) float32
    rewards: np.ndarray  # (N,) float32, of the action
    starts: np.ndarray  # (E + 1,) int64, from 0 to N
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.observations) == len(self.actions) == len(self.rewards) == self.starts[-1], "unequal lengths"
        assert self.starts[0] == 0, "the first episode starts at row 0"
        assert (self.lengths > 0).all(), "an empty episode"

    @property
    def num_episodes(self) -> int:
        return len(self.starts) - 1

    @property
    def num_transitions(self) -> int:
        return len(self.rewards)

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64."""
        lengths: np.ndarray = np.diff(self.starts)
        return lengths

    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, (E,) float64."""
        sums: np.ndarray = np.add.reduceat(self.rewards.astype(np.float64), self.starts[:-1])
        return sums

    def returns_to_go(self) -> np.ndarray:
        """What is still to come at each row, its own reward included, (N,) float32."""
        before = np.concatenate([[0.0], np.cumsum(self.rewards, dtype=np.float64)])
        to_go: np.ndarray = (np.repeat(before[self.starts[1:]], self.lengths) - before[:-1]).astype(np.float32)
        return to_go

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content: equal for equal transitions, however a file stores them."""
        digest = hashlib.sha256()
        for array in (self.observations, self.actions, self.rewards, self.starts):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def part_of(episodes: Episodes, fraction: float, source: str) -> Episodes:
    """The given part of the episodes, in their order; with a note. `source` names the data set in messages.

    Which ones follows from the number of episodes alone, so a smaller part is contained in a larger one. Returned
    arrays are copies, unless all episodes are kept.

    Raises:
        DatasetError: the part is no episode, or all of them.
    """
    if fraction == 1:
        return episodes
    whole, count = episodes.num_episodes, round(fraction * episodes.num_episodes)
    if not 0 < count < whole:
        what = "no episode" if count == 0 else "all of them"
        cure = f"give at least {1 / whole:.2g}" if whole > 1 and count == 0 else "leave it out"
        raise DatasetError(f"{source}: fraction {fraction:g} of its {whole:,} episodes is {what}; {cure}")
    kept = np.sort(np.random.default_rng(_PART_SEED).permutation(whole)[:count])
    rows = np.concatenate([np.arange(episodes.starts[each], episodes.starts[each + 1]) for each in kept])
    note = (
        f"fraction {fraction:g}: {count:,} of {whole:,} episodes are kept, {len(rows):,} of "
        f"{episodes.num_transitions:,} transitions; all statistics are those of the kept part"
    )
    return Episodes(
        observations=episodes.observations[rows],
        actions=episodes.actions[rows],
        rewards=episodes.rewards[rows],
        starts=np.concatenate([[0], np.cumsum(episodes.lengths[kept])]).astype(np.int64),
        notes=(*episodes.notes, note),
    )
