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
from dmray.rollout.kitchen import kitchen_subtasks
from dmray.rollout.maze_controller import WaypointController
from dmray.rollout.maze_layouts import LAYOUTS, MazeLayout, cell_of, middle_of
from dmray.rollout.maze_recording import record_maze
from dmray.rollout.recording import RecordedTransitions, record_decoder, record_random
from dmray.rollout.replay import replay_errors

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
    "kitchen_subtasks",
    "make_engine",
    "middle_of",
    "record_decoder",
    "record_maze",
    "record_random",
    "replay_errors",
    "roll_out",
    "run_cohort",
]
