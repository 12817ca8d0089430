"""A controller that knows the maze: shortest path from cell to cell, and a PD law to the next of them.

It records the embedded data sets and bounds what a policy can reach. It keeps no state: the action follows from where
the point is and where it is to go, for many points at once.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from dmray.rollout.maze_layouts import MazeLayout, cell_of, middle_of

_PROPORTIONAL, _DERIVATIVE = 10.0, 1.0  # D4RL's own gains; close to critical damping for this mass and motor


class WaypointController:
    """Drives points through `maze`, each to its target; never into a wall, for two neighbouring cells are convex."""

    def __init__(self, maze: MazeLayout) -> None:
        self._columns = maze.walls.shape[1]
        self._next = _next_cells(maze)

    def act(self, states: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Actions (E, 2) float64 in [-1, 1] for `states` (E, 4) and `targets` (E, 2), all in free cells."""
        here, there = self._number(states[:, :2]), self._number(targets)
        following = self._next[there, here]
        middles = middle_of(np.stack(np.divmod(following, self._columns), axis=1))
        waypoints = np.where((here == there)[:, None], targets, middles)
        wanted = _PROPORTIONAL * (waypoints - states[:, :2]) - _DERIVATIVE * states[:, 2:]
        actions: np.ndarray = np.clip(wanted, -1.0, 1.0)
        return actions

    def _number(self, positions: np.ndarray) -> np.ndarray:
        cells = cell_of(positions)
        numbers: np.ndarray = cells[:, 0] * self._columns + cells[:, 1]
        return numbers


def _next_cells(maze: MazeLayout) -> np.ndarray:
    """(cells, cells) int64: the cell after `[target, here]` on a shortest path; cells are numbered row by row.

    A cell that has no way to the target (a wall) is followed by itself.
    """
    rows, columns = maze.walls.shape
    free = {row * columns + column for row, column in maze.free_cells.tolist()}
    table = np.tile(np.arange(rows * columns), (rows * columns, 1))
    for target in free:
        seen, queue = {target}, deque([target])
        while queue:
            cell = queue.popleft()
            for neighbour in (cell - columns, cell + columns, cell - 1, cell + 1):
                if neighbour in free and neighbour not in seen:
                    table[target, neighbour] = cell
                    seen.add(neighbour)
                    queue.append(neighbour)
    return table
