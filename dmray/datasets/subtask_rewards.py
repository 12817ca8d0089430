"""Rewrites a file's rewards to those of evaluation: once for each subtask, at the step that completes it.

D4RL's kitchen files pay at every step for all subtasks that are done at that step, and its antmaze files pay at every
step at the goal. Returns-to-go computed from them would reach hundreds, where evaluation can pay four, or one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Subtask:
    """Done while the observation's `columns` are less than `within` (Euclidean) from `goal`."""

    name: str
    columns: tuple[int, ...]
    goal: tuple[float, ...]
    within: float

    def done(self, observations: np.ndarray) -> np.ndarray:
        """(N,) bool for `observations` (N, S)."""
        distance = np.linalg.norm(observations[:, list(self.columns)] - np.array(self.goal), axis=1)
        near: np.ndarray = distance < self.within
        return near


def first_reward_only(rewards: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`rewards` (N,) with zeros after each episode's first reward, where evaluation would have ended the episode."""
    paid = rewards != 0
    so_far = np.cumsum(paid)
    before = np.repeat(so_far[starts[:-1]] - paid[starts[:-1]], np.diff(starts))
    return np.where(so_far - before <= 1, rewards, 0).astype(np.float32)


def has_per_step_subtask_rewards(rewards: np.ndarray, starts: np.ndarray, subtasks: Sequence[Subtask]) -> bool:
    """Whether some episode was paid more than once for each subtask."""
    returns = np.add.reduceat(rewards.astype(np.float64), starts[:-1])
    return bool(returns.max() > len(subtasks))


def reward_arrivals(
    observations: np.ndarray, rewards: np.ndarray, starts: np.ndarray, subtasks: Sequence[Subtask]
) -> np.ndarray:
    """The reward of each step in evaluation, (N,) float32.

    Step t is paid for each subtask that the next observation shows done for the first time in the episode (the first
    observation does not count: nothing was done yet). An episode's last step has no next observation; it is paid the
    increase of the file's own `rewards`, which count the subtasks done.
    """
    paid = np.zeros(len(observations), dtype=np.float32)
    done = np.stack([subtask.done(observations) for subtask in subtasks], axis=1)  # (N, subtasks)
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        ever = np.logical_or.accumulate(done[first + 1 : end], axis=0).sum(axis=1)
        paid[first : end - 1] = np.diff(ever, prepend=0)
        before = done[end - 1].sum() if end - first > 1 else 0
        unpaid = len(subtasks) - (ever[-1] if len(ever) else 0)
        paid[end - 1] = np.clip(rewards[end - 1] - before, 0, unpaid)
    return paid
