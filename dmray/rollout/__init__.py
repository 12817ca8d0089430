"""Closed-loop rollouts: engines that step many episodes, cohorts that evaluate a policy in them, recorded mazes."""

from dmray.rollout.cohorts import (
    Cohort,
    EpisodeRecord,
    EvaluationRequest,
    Row,
    cohorts,
    episode_seed,
    roll_out,
    run_cohort,
)
from dmray.rollout.engine import ENGINES, Step, VectorEngine, check_sizes, make_engine
from dmray.rollout.maze_controller import WaypointController
from dmray.rollout.maze_layouts import LAYOUTS, MazeLayout, cell_of, middle_of
from dmray.rollout.maze_recording import RecordedTransitions, record_maze

__all__ = [
    "ENGINES",
    "LAYOUTS",
    "Cohort",
    "EpisodeRecord",
    "EvaluationRequest",
    "MazeLayout",
    "RecordedTransitions",
    "Row",
    "Step",
    "VectorEngine",
    "WaypointController",
    "cell_of",
    "check_sizes",
    "cohorts",
    "episode_seed",
    "make_engine",
    "middle_of",
    "record_maze",
    "roll_out",
    "run_cohort",
]
