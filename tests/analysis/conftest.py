from __future__ import annotations

from pathlib import Path

import pytest

import dmray
from tests.sweeps import tiny_sweep


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dmray.SweepRun:
    """A finished sweep: DM and DT on maze2d-open."""
    return dmray.run_sweep(tiny_sweep(tmp_path_factory.mktemp("analysed")), local=True, progress=False)


@pytest.fixture(scope="session")
def trial_folders(ran: dmray.SweepRun) -> dict[str, Path]:
    """The trial's folder of each method."""
    return {trial.method: ran.folders[0].trial(trial.trial_id).path for trial in ran.plan.trials}
