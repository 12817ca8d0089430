"""A process that follows a sweep with W&B and TensorBoard until it is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dmray.records import SweepFolder
from dmray.specs import TrackingSpec, WandbSpec
from dmray.trackers.table import Tracked, open_trackers
from tests.mlflow_mirror.examples import example_sweep, trials_of


def follow(storage: str, longest_s: float = 60.0) -> None:
    tracking = TrackingSpec(mlflow_uri="off", wandb=WandbSpec(project="p", mode="offline"), tensorboard=True)
    sweep = example_sweep().model_copy(update={"tracking": tracking})
    folder = SweepFolder(Path(storage), sweep.name)
    trackers = open_trackers(Tracked(folder, sweep, trials_of(sweep)))
    for tracker in trackers:
        assert tracker.advance()
    print("followed", flush=True)
    time.sleep(longest_s)
    sys.exit("was not killed")
