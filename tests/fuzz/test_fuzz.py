from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_INPUTS = "10"  # an edge; slow edges get fewer


def fuzz(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, tallies by edge, and what was printed; in a process of its own, because the harness forks."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "tests.fuzz", "--keep", str(folder / "kept"), "--json", str(report), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, cwd=Path(__file__).parents[2])
    assert report.exists(), done.stderr
    return done.returncode, {tally["edge"]: tally for tally in json.loads(report.read_text())}, done.stdout


def test_the_harness_finds_each_bad_ending(tmp_path: Path) -> None:
    status, tallies, printed = fuzz(tmp_path, "--edges", "tests.fuzz.toy_edges", "--inputs", "2", "--timeout", "5")
    assert status == 1
    named = {"program": "outside"}
    assert {edge: list(tally["outcomes"]) for edge, tally in tallies.items()} == {
        edge: [named.get(edge, edge)] for edge in tallies
    }
    assert all(tally["outcomes"].values() != [0] for tally in tallies.values())
    assert [tally for tally in tallies.values() if len(tally["findings"]) not in (0, 2)] == []
    assert "2 x hang at hang" in printed


def test_every_input_gives_a_value_or_a_clear_error(tmp_path: Path) -> None:
    """A slice of `make fuzz`."""
    timeout_s = "120"  # the machine may be busy
    status, tallies, printed = fuzz(tmp_path, "--inputs", _INPUTS, "--timeout", timeout_s)
    assert status == 0, printed
    reached = [edge for edge, tally in tallies.items() if tally["outcomes"].get("error")]
    assert len(reached) > len(tallies) // 2, "the inputs are too tame"
    accepted = [edge for edge, tally in tallies.items() if tally["outcomes"].get("value")]
    assert len(accepted) > len(tallies) // 3, "the inputs are refused at their first field"
