"""The subgoal labels that HDT's and HDM's high networks learn (arXiv 2405.07943), in linear time.

Definition (the authors' code, cubic there): from step i of an episode of T steps, the subgoal is the state at

    j* = argmax over i < j < T of mean(rewards[i:j])          (the first of equal ones)

and it stays until step j* is reached, where the next one is chosen. The last step's label is the episode's first state.

With P the sums of rewards before each step, the mean is the slope from (i, P_i) to (j, P_j), so j* is the first corner
after i of the upper concave hull of the points i, ..., T - 1: one pass from the right with a stack finds all of them.
"""

from __future__ import annotations

import numpy as np

from dmray.datasets.episodes import Episodes
from dmray.models.compiled import compiled


def subgoal_rows(episodes: Episodes) -> np.ndarray:
    """For each row the row that holds its subgoal, (N,) int64."""
    rows = np.empty(episodes.num_transitions, dtype=np.int64)
    longest = int(episodes.lengths.max())
    _label(
        episodes.rewards.astype(np.float64), episodes.starts, rows, np.empty(longest), np.empty((2, longest), np.int64)
    )
    return rows


@compiled()
def _label(rewards: np.ndarray, starts: np.ndarray, rows: np.ndarray, sums: np.ndarray, scratch: np.ndarray) -> None:
    corner, stack = scratch[0], scratch[1]
    for episode in range(len(starts) - 1):
        first = starts[episode]
        length = starts[episode + 1] - first
        sums[0] = 0.0
        for i in range(1, length):
            sums[i] = sums[i - 1] + rewards[first + i - 1]
        top = 0
        stack[0] = length - 1
        for i in range(length - 2, -1, -1):
            # A corner strictly below the line to the one after it is none; on the line it is the first of equal ones.
            while top > 0:
                j, k = stack[top], stack[top - 1]
                if (sums[j] - sums[i]) * (k - j) >= (sums[k] - sums[j]) * (j - i):
                    break
                top -= 1
            corner[i] = stack[top]
            top += 1
            stack[top] = i
        subgoal = 0
        for i in range(length - 1):
            if i == subgoal:
                subgoal = corner[i]
            rows[first + i] = first + subgoal
        rows[first + length - 1] = first
