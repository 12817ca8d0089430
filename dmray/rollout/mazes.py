"""The four point mazes of D4RL as grids, where their cells lie in its coordinates, and a controller that solves them.

A position is (x, y) with x along the grid's rows and y along its columns. D4RL puts the point's origin at 1.2 where
the walls of row r stand at r + 1. So the middle of cell (r, c) is at (r - .2, c - .2), but starts and goals are at
(r, c) itself: off the middle, which is part of the task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_WALL = "#"
_SHIFT = 0.2  # from a cell's middle to the point whose coordinates are the cell's integers
_PROPORTIONAL, _DERIVATIVE = 10.0, 1.0  # D4RL's own gains; close to critical damping for this mass and motor


@dataclass(frozen=True)
class MazeLayout:
    """A grid of unit cells ('#' wall, '.' free), walled all round, with the fixed goal cell of its evaluation."""

    grid: tuple[str, ...]
    goal_cell: tuple[int, int]

    @cached_property
    def walls(self) -> np.ndarray:
        """(rows, columns) bool."""
        return _frozen(np.array([[mark == _WALL for mark in row] for row in self.grid]))

    @cached_property
    def free_cells(self) -> np.ndarray:
        """(F, 2) int64, row by row; the goal's is one of them."""
        return _frozen(np.argwhere(~self.walls))

    @property
    def goal(self) -> np.ndarray:
        """(2,) float64, the goal's position."""
        return np.array(self.goal_cell, dtype=np.float64)


def middle_of(cells: np.ndarray) -> np.ndarray:
    """Positions (..., 2) of the middles of `cells` (..., 2)."""
    return cells - _SHIFT


def cell_of(positions: np.ndarray) -> np.ndarray:
    """The cells (..., 2) int64 that `positions` (..., 2) lie in."""
    return np.floor(positions + (_SHIFT + 0.5)).astype(np.int64)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


LAYOUTS: Mapping[str, MazeLayout] = {
    "umaze": MazeLayout(
        (
            "#####",
            "#...#",
            "###.#",
            "#...#",
            "#####",
        ),
        goal_cell=(1, 1),
    ),
    "medium": MazeLayout(
        (
            "########",
            "#..##..#",
            "#..#...#",
            "##...###",
            "#..#...#",
            "#.#..#.#",
            "#...#..#",
            "########",
        ),
        goal_cell=(6, 6),
    ),
    "large": MazeLayout(
        (
            "############",
            "#....#.....#",
            "#.##.#.#.#.#",
            "#......#...#",
            "#.####.###.#",
            "#..#.#.....#",
            "##.#.#.#.###",
            "#..#...#...#",
            "############",
        ),
        goal_cell=(7, 9),
    ),
    "open": MazeLayout(
        (
            "#######",
            "#.....#",
            "#.....#",
            "#.....#",
            "#######",
        ),
        goal_cell=(2, 3),
    ),
}


class WaypointController:
    """Drives points through `maze`, each to its target: shortest path from cell to cell, and a PD law to the next cell.

    It keeps no state: the actions follow from where the points are and where they are to go. It never drives into a
    wall, because two neighbouring cells form a rectangle.
    """

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

    A cell with no path to the target (a wall) is followed by itself.
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
