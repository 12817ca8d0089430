"""The four point mazes of D4RL as grids, and where their cells lie in its coordinates.

A position is (x, y) with x along the grid's rows and y along its columns. D4RL puts the point's origin at 1.2 where
the walls of row r stand at r + 1, so the middle of cell (r, c) is at (r - .2, c - .2), while starts and goals are put
at (r, c) itself: off the middle, and this is part of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_WALL = "#"
_SHIFT = 0.2  # from a cell's middle to the point that bears the cell's integers


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
