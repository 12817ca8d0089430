from __future__ import annotations

import importlib.util
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_page_of_results_is_what_the_records_beside_it_say() -> None:
    spec = importlib.util.spec_from_file_location("benchmark_results", BENCHMARKS / "results.py")
    assert spec is not None
    assert spec.loader is not None
    results = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(results)
    assert (BENCHMARKS / "RESULTS.md").read_text() == results.page()
    measured = {path.stem for path in BENCHMARKS.glob("*.json")} - {"random_policy"}  # a check, not a speed
    assert measured == {name for name in results.PARTS if (BENCHMARKS / f"{name}.json").exists()}
