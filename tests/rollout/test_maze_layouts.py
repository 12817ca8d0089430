from __future__ import annotations

import numpy as np
import pytest

from dmray.rollout.mazes import LAYOUTS, cell_of, middle_of

MAZES = sorted(LAYOUTS)


@pytest.mark.parametrize("name", MAZES)
def test_the_grids_are_those_of_gymnasium_robotics(name: str) -> None:
    from gymnasium_robotics.envs.maze import maps

    grids = {"umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE, "open": maps.OPEN}
    np.testing.assert_array_equal(LAYOUTS[name].walls, np.array(grids[name]) == 1)


def test_the_goals_are_those_of_d4rl() -> None:
    goals = {name: layout.goal_cell for name, layout in LAYOUTS.items()}
    assert goals == {"umaze": (1, 1), "medium": (6, 6), "large": (7, 9), "open": (2, 3)}


@pytest.mark.parametrize("name", MAZES)
def test_a_goal_is_free_and_walls_close_the_maze(name: str) -> None:
    walls = LAYOUTS[name].walls
    assert not walls[LAYOUTS[name].goal_cell]
    assert np.concatenate([walls[0], walls[-1], walls[:, 0], walls[:, -1]]).all()


@pytest.mark.parametrize("name", MAZES)
def test_every_position_of_a_cell_maps_to_it(name: str) -> None:
    cells = LAYOUTS[name].free_cells
    for offset in (-0.49, 0.0, 0.2, 0.49):
        np.testing.assert_array_equal(cell_of(middle_of(cells) + offset), cells)


def test_the_middle_of_a_cell_is_a_fifth_before_its_integers() -> None:
    np.testing.assert_allclose(middle_of(np.array([1, 3])), [0.8, 2.8])


def test_a_layouts_arrays_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        LAYOUTS["umaze"].walls[0, 0] = False
