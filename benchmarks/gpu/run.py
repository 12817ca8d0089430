"""Run dmray's GPU path on one card and measure it: six sections, each in a process of its own with a time limit.

    python benchmarks/gpu/run.py [--seconds 470] [--only right,sharing] [--out FOLDER]
    python benchmarks/gpu/run.py --toy --device cpu          a rehearsal without a GPU; its figures mean nothing

    right      are the numbers those of the CPU and of double precision?
    one_trial  training steps a second of one trial
    sharing    training steps a second of many trials on one card
    acting     100 evaluation episodes with the policy on the GPU
    product    a sweep through Ray, with kills and --resume
    calibrate  what `--plan --on` needs to know of such a machine

FOLDER/gpu.json has the machine and the results so far; it is written after each section. FOLDER/log.txt has what the
sections printed. A section that fails, hangs or crashes does not affect the others: what it had measured is kept, and
the run goes on. A section's time that is not used goes to those after it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_KILL_AFTER_S = 15.0  # beyond its time: a section ends by itself before


@dataclass(frozen=True)
class Part:
    """A section: the file that runs it, and its share of the time."""

    name: str
    command: tuple[str, ...]
    share: float


PARTS = tuple(
    Part(name, (sys.executable, str(HERE / f"{name}.py")), share)
    for name, share in (
        ("right", 0.14),
        ("one_trial", 0.13),
        ("sharing", 0.17),
        ("acting", 0.11),
        ("product", 0.13),
        ("calibrate", 0.32),
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=470.0, help="of all sections together")
    parser.add_argument("--only", default="", help="names of sections, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder for gpu.json and log.txt")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="a rehearsal with tiny sizes")
    options = parser.parse_args()
    known = {part.name: part for part in PARTS}
    wanted = [name.strip() for name in options.only.split(",")] if options.only else list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(known)}")
    arguments = ["--device", options.device, *(["--toy"] if options.toy else [])]
    run([known[name] for name in wanted], options.seconds, options.out, arguments)


def run(parts: Sequence[Part], seconds: float, out: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the sections one after the other; returns the content of gpu.json."""
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": machine(), "arguments": list(arguments), "sections": {}}
    ends, shares = time.monotonic() + seconds, sum(part.share for part in parts)
    for part in parts:
        budget = max(ends - time.monotonic(), 1.0) * part.share / shares
        shares -= part.share
        record["sections"][part.name] = _run_one(part, budget, out / "log.txt", arguments)
        _write(out / "gpu.json", record)
    _write(out / "gpu.json", record)
    print(_summary(record))
    return record


def _run_one(part: Part, budget_s: float, log: Path, arguments: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, log.open("a") as said:
        results = Path(folder) / "results.json"
        said.write(f"\n== {part.name}, {budget_s:.0f} s\n")
        said.flush()
        command = [*part.command, "--out", str(results), "--seconds", f"{budget_s:.1f}", *arguments]
        started = time.monotonic()
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _paths()}
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            process.wait(budget_s + _KILL_AFTER_S)
            status = f"exit status {process.returncode}" if process.returncode else "done"
        except subprocess.TimeoutExpired:
            status = "killed: it took too long"
        finally:
            _kill_all_of(process)
        found = json.loads(results.read_text()) if results.exists() else []
        return {"status": status, "budget_s": budget_s, "took_s": time.monotonic() - started, "results": found}


def _kill_all_of(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _paths() -> str:
    return os.pathsep.join(filter(None, [str(HERE.parent.parent), os.environ.get("PYTHONPATH")]))


def machine() -> dict[str, Any]:
    """The GPU, its driver and the versions: without dmray, so that it is there when an import of dmray fails."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    packages = ("torch", "triton", "mamba-ssm", "causal-conv1d", "ray", "mlflow", "envpool", "mujoco", "numpy", "numba")
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "packages": {}}
    for name in packages:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            found["packages"][name] = None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        found["gpu"] = f"none ({type(problem).__name__})"
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    found["commit"] = git.stdout.strip() or None
    return found


def _write(path: Path, record: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, path)


def _summary(record: dict[str, Any]) -> str:
    """One line for each result, short enough that the end of a long output has all of them."""
    lines = [f"machine: {record['machine'].get('gpu')}"]
    for name, section in record["sections"].items():
        results = section["results"]
        wrong = [each["what"] for each in results if each.get("right") is False]
        errors = [each["what"] for each in results if "error" in each]
        lines.append(
            f"{name}: {section['status']}, {section['took_s']:.0f} s, {len(results)} results"
            + (f"; WRONG: {', '.join(wrong)}" if wrong else "")
            + (f"; errors: {', '.join(errors)}" if errors else "")
        )
        for each in results:
            rate = each.get("total_steps_per_s") or each.get("steps_per_s")
            if rate:
                lines.append(f"  {each['what']}: {rate:,.0f} steps/s")
            elif "seconds" in each:
                lines.append(f"  {each['what']}: {each['seconds']:.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
