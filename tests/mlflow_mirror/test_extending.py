"""docs/extending.md, "A tracker, and the MLflow layout": the code there, and one module that names things."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dmray.records import SweepFolder
from tests.mlflow_mirror.examples import example_sweep, trials_of, whole_trial, write_ledger, write_manifest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for path in (ROOT / "dmray" / "mlflow_mirror").glob("*.py") if path.name != "layout.py")
NAMES = re.compile(r"dmray\.[a-z_]+|(train|eval|rung|final|best|agg|time|system)/.*|mlflow\.(note|parent|shared).*")


def test_the_store_of_the_example_holds_a_sweep_once_however_often_it_is_copied(tmp_path: Path) -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("extending*.md")))
    section = text.partition("## A tracker, and the MLflow layout\n")[2].partition("\n## ")[0]
    code: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)), code)
    folder, sweep = SweepFolder(tmp_path, "example"), example_sweep()
    write_manifest(folder, sweep)
    write_ledger(folder, trials_of(sweep)[0], whole_trial(50, 60))
    for _ in range(2):
        lag = code["copy_to_json"](folder, tmp_path / "json")
        assert (lag.records, lag.problem) == (0, None)
    runs = [json.loads(path.read_text()) for path in (tmp_path / "json").glob("*.json")]
    assert sorted(run["tags"]["dmray.level"] for run in runs) == ["seed group", "sweep", "trial"]
    (trial,) = [run for run in runs if run["tags"]["dmray.level"] == "trial"]
    assert trial["status"] == "FINISHED"
    assert trial["metrics"]["eval/normalized_score"] == [{"step": 20, "value": 50.0}, {"step": 40, "value": 60.0}]


@pytest.mark.parametrize("module", MODULES, ids=[path.name for path in MODULES])
def test_names_are_spelled_in_the_layout_alone(module: Path) -> None:
    texts = [node.value for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Constant)]
    assert [text for text in texts if isinstance(text, str) and NAMES.fullmatch(text)] == []
