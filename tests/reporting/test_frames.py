from __future__ import annotations

from pathlib import Path

import pytest

from dmray.records import SweepFolder, write_episode_table
from dmray.reporting import collect
from dmray.reporting.frames import Results
from tests.mlflow_mirror.examples import example_sweep, trials_of, whole_trial, write_ledger, write_manifest


@pytest.mark.parametrize("name", ["step_5.parquet", "step_0x.parquet", "step_000000005 (copy).parquet"])
def test_a_table_of_another_name_is_left_out_with_a_word(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, sweep = SweepFolder(tmp_path, "example"), example_sweep()
    write_manifest(folder, sweep)
    trial = trials_of(sweep)[0]
    write_ledger(folder, trial, whole_trial(50))
    row = {"index": 0, "seed": 1, "target_return": None, "episode_return": 2.0, "normalized_score": 3.0, "length": 4}
    for file in ("step_000000005.parquet", name):
        path = folder.trial(trial.trial_id).evaluations / file
        write_episode_table(path, [row | {"success": None}], {})
    assert list(Results((folder,), collect(folder)).episodes.step) == [5]
    assert f"{path}: not the name of a table of episodes" in caplog.text
