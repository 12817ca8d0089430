"""Closed-loop rollouts: simulators that step many episodes, policies evaluated in them, recorded episodes."""

from dmray.datasets import RecordedTransitions
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
from dmray.rollout.engine import (
    FloorPlan,
    PlaceableEngine,
    Recorder,
    Scene,
    Simulator,
    Step,
    VectorEngine,
    check_sizes,
)
from dmray.rollout.noise import Deviations, Noise
from dmray.rollout.recording import record, record_decoder, record_random, replay_errors
from dmray.rollout.shown_observations import FurthestNumber, furthest_number
from dmray.rollout.simulator_registry import make_engine, make_reference_engine, simulator_of

__all__ = [
    "Cohort",
    "Deviations",
    "EpisodeRecord",
    "EvaluationRequest",
    "FloorPlan",
    "FurthestNumber",
    "Noise",
    "PlaceableEngine",
    "RecordedTransitions",
    "Recorder",
    "Row",
    "Scene",
    "Simulator",
    "Step",
    "VectorEngine",
    "check_sizes",
    "cohorts",
    "episode_seed",
    "furthest_number",
    "make_engine",
    "make_reference_engine",
    "record",
    "record_decoder",
    "record_random",
    "replay_errors",
    "roll_out",
    "run_cohort",
    "simulator_of",
]
