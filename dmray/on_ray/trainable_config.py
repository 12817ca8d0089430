"""What a Tune trial needs to run one trial of a sweep, as JSON."""

from __future__ import annotations

from dmray.specs import FaultSpec, ResourcesSpec, Spec
from dmray.trial.job import TrialJob


class TrainableConfig(Spec):
    """The parameters of a Tune trial. `dispatcher_name` is the evaluation pool's."""

    job: TrialJob
    resources: ResourcesSpec
    faults: FaultSpec
    dispatcher_name: str
    ray_storage: str  # a path or a URL that every machine can read

    @property
    def tune_restarts(self) -> int:
        """How often Tune restarts an actor of its own."""
        return self.faults.driver_restarts if self.resources.executor == "train" else self.faults.worker_restarts
