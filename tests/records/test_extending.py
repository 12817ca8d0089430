"""docs/extending.md, "A metric": two places, and every view has it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
USE = """
import csv, json, sys
from dataclasses import asdict
from pathlib import Path
import numpy as np
import dmray
assert str(Path(dmray.__file__).parent.parent) == sys.argv[1], dmray.__file__
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.progress.summary import follower_of, summarize
from dmray.records import EvaluationDone, SweepFolder, TargetResult
from dmray.records.metrics import shown_metrics
from dmray.records.scores import Score
from dmray.reporting.columns import curve_columns, trial_columns
from dmray.reporting.results import collect
from tests.mlflow_mirror.examples import done, example_sweep, started, trials_of, write_ledger, write_manifest
from tests.mlflow_mirror.fake_store import FakeStore

folder, sweep = SweepFolder(Path(sys.argv[2]), "example"), example_sweep()
write_manifest(folder, sweep)
target = TargetResult.of(None, np.array([3.0, 7.0]), np.array([1.0, 2.0]), [10, 20])
evaluation = EvaluationDone(time_s=1.0, step=40, decode="window", seed=0, targets=[target], wall_s=1.0)
write_ledger(folder, trials_of(sweep)[0], [started(), evaluation, done()])
store, results = FakeStore(), collect(folder)
MlflowMirror(store, folder, sweep, trials_of(sweep)).close()
print(json.dumps({
    "mlflow": sorted(key for run in store.level("trial") for key in run.latest() if "return_min" in key),
    "trials.csv": trial_columns(results).to_pylist()[0]["last_return_min"],
    "curves.csv": curve_columns(results).to_pylist()[0]["return_min"],
    "status": [metric.name for metric in shown_metrics()],
}))
"""


def blocks() -> list[str]:
    """The code of the section, block by block."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("extending*.md")))
    section = text.partition("## A metric\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def insert(path: Path, after: str, line: str) -> None:
    text = path.read_text()
    assert text.count(after) == 1, f"{path.name} has not one line {after!r}"
    path.write_text(text.replace(after, after + line))


def test_the_metric_of_the_example_reaches_every_view(tmp_path: Path) -> None:
    for name in ("dmray", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    field, measured, row = blocks()
    records, metrics = (tmp_path / "dmray" / "records" / f"{name}.py" for name in ("records", "metrics"))
    insert(records, "    length_mean: float\n", field)
    insert(records, "            length_mean=float(np.mean(lengths)),\n", measured)
    insert(metrics, "_EVALUATION: tuple[Metric[EvaluationDone], ...] = (\n", row)
    command = [sys.executable, "-c", USE, str(tmp_path), str(tmp_path / "storage")]
    ran = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["mlflow"] == ["best/return_min", "eval/return_min", "final/return_min"]
    assert (found["trials.csv"], found["curves.csv"]) == (3.0, 3.0)
    assert "return_min" in found["status"]
