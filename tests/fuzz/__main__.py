"""`make fuzz`, or `python -m tests.fuzz [--minutes 10 | --inputs 500] [--edge NAME] [--seed 0] [--json FILE]`.

Gives odd inputs to the edges of dmray (`tests/fuzz/edges.py`). Each must lead to a value or to a clear error. Prints a
line for each edge and each kind of finding, with the folder that has its input. The exit status is 1 if there are
findings. `--edge NAME --first N --inputs 1` runs input N again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.harness import Finding, Tally

_NO_LIMIT_S = 1e9  # with --inputs, the number alone ends an edge
_WIDTH = 200


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=None, help="for all edges together")
    parser.add_argument("--inputs", type=int, default=None, help="inputs an edge; slow edges get fewer, or none")
    parser.add_argument("--edge", action="append", help="only this edge; may be repeated")
    parser.add_argument("--edges", default="tests.fuzz.edges", help="the module of the edges")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds an input may take")
    parser.add_argument("--keep", type=Path, default=None, help="the folder for findings (default: a temporary one)")
    parser.add_argument("--json", type=Path, default=None, help="write the outcome to this file")
    options = parser.parse_args()
    minutes = options.minutes if options.minutes or options.inputs else 10.0
    scratch = options.keep or Path(tempfile.mkdtemp(prefix="dmray-fuzz-"))
    scratch = scratch.resolve()
    os.environ |= {  # before dmray is imported
        "DMRAY_OFFLINE": "1",
        "DMRAY_CACHE": str(scratch / "cache"),
        "MINARI_DATASETS_PATH": str(scratch / "templates" / "minari"),
        "DMRAY_DATASETS": str(scratch / "datasets"),
        "MPLBACKEND": "agg",
        "TMPDIR": str(scratch / "tmp"),
    }
    tempfile.tempdir = None  # mkdtemp has kept the folder that was TMPDIR before
    from tests.fuzz.harness import Budget, fuzz

    for made in ("templates", "tmp", "cache"):  # a folder that is given again keeps its findings only
        shutil.rmtree(scratch / made, ignore_errors=True)
    for made in ("templates/minari", "tmp"):
        (scratch / made).mkdir(parents=True, exist_ok=True)
    module = import_module(options.edges)
    shares = {name: edge.slow for name, edge in module.EDGES.items() if not options.edge or name in options.edge}
    if options.inputs is not None:
        shares = {name: slow for name, slow in shares.items() if slow <= options.inputs or options.edge}
    templates = module.prepare(scratch / "templates", shares)
    tallies: list[Tally] = []
    print(f"{'edge':18}{'inputs':>8}{'values':>8}{'errors':>8}{'faults':>8}{'MiB':>7}{'s':>7}")
    for name in shares:
        edge = module.EDGES[name]
        inputs = 10**9 if options.inputs is None else max(1, options.inputs // edge.slow)
        seconds = _NO_LIMIT_S if minutes is None else 60 * minutes / len(shares)
        begun_s = time.monotonic()
        budget = Budget(options.first, inputs, seconds, options.timeout)
        tally = fuzz(edge, templates, scratch / "findings", options.seed, budget)
        tallies.append(tally)
        counts = f"{tally.inputs:8,}{tally.outcomes['value']:8,}{tally.outcomes['error']:8,}"
        print(f"{name:18}{counts}{len(tally.findings):8,}{_mib_and_s(tally, begun_s)}", flush=True)
    _print_findings(tallies)
    if options.json is not None:
        options.json.write_text(json.dumps([tally.as_dict() for tally in tallies], indent=2))
    return int(any(tally.findings for tally in tallies))


def _mib_and_s(tally: Tally, begun_s: float) -> str:
    return f"{tally.peak_bytes / 2**20:7,.0f}{time.monotonic() - begun_s:7,.0f}"


def _print_findings(tallies: list[Tally]) -> None:
    """Each kind of finding once: findings that were raised in one place are of one kind."""
    kinds: dict[tuple[str, str, str], list[Finding]] = {}
    for tally in tallies:
        for finding in tally.findings:
            place = [line.strip() for line in finding.detail.splitlines() if line.strip().startswith("File ")][-1:]
            kinds.setdefault((finding.edge, finding.outcome, place[0] if place else finding.detail[:80]), []).append(
                finding
            )
    for (edge, outcome, _), found in kinds.items():
        print(f"\n{len(found)} x {outcome} at {edge}, for example input {found[0].number} in {found[0].folder}")
        print("    " + "\n    ".join(line[:_WIDTH] for line in found[0].detail.strip().splitlines()[-6:]))


if __name__ == "__main__":
    sys.exit(main())
