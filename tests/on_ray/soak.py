"""`make soak`: many short trials on Ray with random faults; memory and processes must stay flat, the numbers equal.

    python -m tests.on_ray.soak --trials 200 --minutes 60 --seed 0 --folder DIR

Kills or freezes (SIGSTOP) one random process of the sweep now and then: workers, evaluation actors, their dispatcher,
Tune's and Train's processes, the raylet, the GCS, the driver. A driver that ended is resumed as it says itself. In the
end every trial must have finished, with the numbers of a run without Ray and without faults. Prints what was done and
what the driver's processes used, writes it to DIR/soak.json, and exits with 1 if a rule is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from dmray.planning.plan import plan
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import SweepFolder
from dmray.specs import load_sweep
from tests.sweeps import science_of, sweep_file

VICTIMS = {
    "worker": ("ray::ImplicitFunc", "ray::RayTrainWorker", "ray::run_in_tune"),
    "evaluation actor": ("ray::RolloutActor",),
    "dispatcher": ("ray::Dispatcher",),
    "raylet": ("raylet",),
    "gcs": ("gcs_server",),
    "driver": (),
}
_RARE = ("raylet", "gcs", "driver")  # each ends the driver: starting again takes 15 s
_SAMPLE_EVERY_S = 5.0
_END_WITHIN_S = 180.0  # 60 s and the deadlines of the sweep file below, on a busy machine
_GROWTH = 1.25


class Soak:
    """One sweep under faults."""

    def __init__(self, file: Path, rng: random.Random, fault_every_s: float) -> None:
        self._file, self._rng, self._fault_every_s = file, rng, fault_every_s
        self.faults: Counter[str] = Counter()
        self.samples: list[dict[str, float]] = []
        self.endings: list[int] = []
        self._driver: subprocess.Popen[bytes] | None = None

    def run(self, deadline: float) -> None:
        """Until the sweep is done; without further faults once `deadline` has passed."""
        while True:
            self._start(*(["--resume"] if self.endings else []))
            self._watch(deadline)
            assert self._driver is not None
            self.endings.append(self._driver.returncode)
            if self._driver.returncode == 0:
                return
            assert len(self.endings) < 200, "the driver ends again and again"

    def stop(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()

    def _start(self, *options: str) -> None:
        with (self._file.parent / "driver.log").open("ab") as log:
            command = [sys.executable, "-m", "dmray.sweep", str(self._file), *options]
            self._driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def _watch(self, deadline: float) -> None:
        assert self._driver is not None
        began = time.monotonic()
        next_fault = began + self._rng.uniform(0.5, 1.5) * self._fault_every_s
        next_sample = began
        fatal_at: float | None = None
        while self._driver.poll() is None:
            now = time.monotonic()
            if fatal_at is not None and now > fatal_at + _END_WITHIN_S:
                raise AssertionError(f"the driver did not end after {self.faults}: {self._file.parent / 'driver.log'}")
            assert now < deadline + 1800, f"the sweep hangs after {self.faults}"
            if now >= next_sample:
                self._sample(now - began)
                next_sample = now + _SAMPLE_EVERY_S
            if fatal_at is None and next_fault <= now < deadline:
                fatal_at = now if self._disturb() in _RARE else None
                next_fault = now + self._rng.uniform(0.5, 1.5) * self._fault_every_s
            time.sleep(0.2)

    def _disturb(self) -> str | None:
        """Kill or freeze one process; the name of its kind, None if there was none to be found."""
        assert self._driver is not None
        kinds = list(VICTIMS)
        kind = self._rng.choices(kinds, [1 if name in _RARE else 6 for name in kinds])[0]
        found = [psutil.Process(self._driver.pid)] if kind == "driver" else list(self._of(VICTIMS[kind]))
        if not found:
            return None
        how = signal.SIGKILL if kind == "driver" else self._rng.choice((signal.SIGKILL, signal.SIGSTOP))
        with suppress(psutil.NoSuchProcess):
            self._rng.choice(found).send_signal(how)
            self.faults[f"{kind} {'killed' if how == signal.SIGKILL else 'frozen'}"] += 1
        return kind

    def _of(self, titles: tuple[str, ...]) -> Iterator[psutil.Process]:
        for process in self._children():
            with suppress(psutil.Error):
                words = process.cmdline()
                if any(Path(word).name.startswith(titles) for word in words[:3]):  # "python", an option, the script
                    yield process

    def _children(self) -> list[psutil.Process]:
        assert self._driver is not None
        try:
            return psutil.Process(self._driver.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _sample(self, age_s: float) -> None:
        """What the driver and its processes use; `start` tells the samples of one driver process from the next's."""
        assert self._driver is not None
        with suppress(psutil.Error, OSError):
            driver = psutil.Process(self._driver.pid)
            children = self._children()
            resident = 0
            for process in children:
                with suppress(psutil.Error):
                    resident += process.memory_info().rss
            self.samples.append(
                {
                    "start": len(self.endings),
                    "age_s": age_s,
                    "driver_mib": driver.memory_info().rss / 2**20,
                    "driver_files": driver.num_fds(),
                    "driver_threads": driver.num_threads(),
                    "processes": len(children),
                    "children_mib": resident / 2**20,
                }
            )

    def growth(self) -> dict[str, float]:
        """Of each quantity, its median in the last third of the longest-lived driver over that in its second third."""
        lives = Counter(int(sample["start"]) for sample in self.samples)
        start, count = lives.most_common(1)[0]
        life = [sample for sample in self.samples if sample["start"] == start]
        middle, last = life[count // 3 : 2 * count // 3], life[2 * count // 3 :]
        names = [name for name in life[0] if name not in ("start", "age_s")]
        return {
            name: statistics.median(s[name] for s in last) / max(1.0, statistics.median(s[name] for s in middle))
            for name in names
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.on_ray.soak", description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--fault-every", type=float, default=20.0, help="seconds, on average")
    parser.add_argument("--executor", default="tune", choices=["tune", "train"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="dmray-soak-"))
    changes = {
        "seeds": list(range(options.trials // 2)),
        "training": {"steps": options.steps, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
        "evaluation": {"episodes": 4, "every_steps": options.steps // 2, "cohort_size": 2, "target_returns": [50.0]},
        "tracking": {"log_every_steps": options.steps // 2, "flush_every_s": 2.0},
        "resources": {
            "cpus_per_trial": 0.5,
            "cpus_per_evaluation_actor": 0.5,
            "evaluation_actors": 2,
            "executor": options.executor,
        },
        "faults": {
            "checkpoint_every_steps": options.steps // 4,
            "worker_restarts": 99,
            "driver_restarts": 99,
            "no_progress_timeout_s": 20.0,
        },
    }
    file = sweep_file(folder / "soak", **changes)
    soak = Soak(file, random.Random(options.seed), options.fault_every)
    began = time.monotonic()
    try:
        soak.run(began + 60 * options.minutes)
    finally:
        soak.stop()
    wall_s = time.monotonic() - began
    planned = plan(load_sweep(file))
    statuses = Counter(trial_statuses(planned, _folder(file)).values())
    calm = sweep_file(folder / "calm", **changes)
    subprocess.run([sys.executable, "-m", "dmray.sweep", str(calm), "--local"], check=True, capture_output=True)
    equal = science_of(_folder(file), planned.trial_ids) == science_of(_folder(calm), planned.trial_ids)
    growth = soak.growth()
    broken = [
        *([] if set(statuses) == {TrialStatus.FINISHED} else [f"not all trials finished: {dict(statuses)}"]),
        *([] if equal else ["the numbers differ from those of an undisturbed run"]),
        *(f"{name} grew by {rate:.2f}" for name, rate in growth.items() if rate > _GROWTH),
    ]
    report = {
        "trials": len(planned.trials),
        "minutes": wall_s / 60,
        "faults": dict(soak.faults),
        "endings": dict(Counter(soak.endings)),
        "statuses": {status.value: count for status, count in statuses.items()},
        "equal": equal,
        "growth": growth,
        "broken": broken,
        "samples": soak.samples,
    }
    (folder / "soak.json").write_text(json.dumps(report, indent=2))
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=2))
    return int(bool(broken))


def _folder(file: Path) -> SweepFolder:
    sweep = load_sweep(file)
    return SweepFolder(Path(sweep.storage), sweep.name)


if __name__ == "__main__":
    sys.exit(main())
