"""An MLflow in memory, with MLflow's rules, that can lose calls and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dmray.mlflow_mirror.layout import DatasetUsed, Point
from dmray.mlflow_mirror.model_registry import BestPolicy
from dmray.mlflow_mirror.models import LoggedPolicy
from dmray.mlflow_mirror.store import POINTS_PER_BATCH, StoredRun, StoreError

T = TypeVar("T")


@dataclass
class FakeRun:
    name: str
    start_ms: int
    tags: dict[str, str]
    status: str = "RUNNING"
    end_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    artifacts: dict[str, str | Path] = field(default_factory=dict)
    datasets: set[DatasetUsed] = field(default_factory=set)
    policies: dict[str, LoggedPolicy] = field(default_factory=dict)

    def history(self, key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.points if point.key == key]

    def latest(self) -> dict[str, float]:
        return {point.key: point.value for point in sorted(self.points, key=lambda point: (point.step, point.time_ms))}


class FakeStore:
    """Call `fails_at` (counted from 1) raises: before it takes effect, or after (`lost_answer`)."""

    def __init__(self, fails_at: int | None = None, lost_answer: bool = False, refuses: bool = False) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.registry: dict[tuple[str, str], BestPolicy] = {}
        self.calls = 0
        self.down = False
        self.seconds_left = float("inf")
        self._fails_at, self._lost_answer, self._refuses = fails_at, lost_answer, refuses

    def give_up_after(self, seconds: float) -> None:
        self.seconds_left = seconds

    def by(self, **tags: str) -> FakeRun:
        found = [run for run in self.runs.values() if tags.items() <= run.tags.items()]
        assert len(found) == 1, f"{len(found)} runs have {tags}"
        return found[0]

    def level(self, level: str) -> list[FakeRun]:
        return [run for run in self.runs.values() if run.tags["dmray.level"] == level]

    def find_runs(self, tag: str, value: str) -> list[StoredRun]:
        found = [(run_id, run) for run_id, run in self.runs.items() if run.tags.get(tag) == value]
        return self._do(
            lambda: [
                StoredRun(
                    run_id, run.status, dict(run.tags), frozenset(run.params), run.latest(), (run.end_ms or 0) / 1e3
                )
                for run_id, run in sorted(found, key=lambda item: item[1].start_ms)
            ]
        )

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        run_id = f"run{len(self.runs)}"

        def create() -> str:
            self.runs[run_id] = FakeRun(name, start_ms, dict(tags))
            return run_id

        return self._do(create)

    def log(
        self, run_id: str, points: Sequence[Point] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        assert len(points) <= POINTS_PER_BATCH

        def log() -> None:
            run = self.runs[run_id]
            for key, value in params.items():
                assert run.params.setdefault(key, value) == value, f"param {key} changed"
            run.points += points  # MLflow stores an equal point once; here whoever logs twice is found out
            run.tags |= tags

        self._do(log)

    def steps(self, run_id: str, key: str) -> set[int]:
        return self._do(lambda: {step for step, _ in self.runs[run_id].history(key)})

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        def change() -> None:
            self.runs[run_id].status, self.runs[run_id].end_ms = status, end_ms

        self._do(change)

    def save(self, run_id: str, content: str | Path, place: str) -> None:
        self._do(lambda: self.runs[run_id].artifacts.update({place: content}))

    def log_dataset(self, run_id: str, dataset: DatasetUsed) -> None:
        self._do(lambda: self.runs[run_id].datasets.add(dataset))

    def save_policy(self, run_id: str, policy: LoggedPolicy) -> None:
        self._do(lambda: self.runs[run_id].policies.setdefault(policy.name, policy))

    def register(self, policy: BestPolicy, sweep_id: str) -> None:
        self._do(lambda: self.registry.update({(policy.model, policy.alias): policy}))

    def _do(self, effect: Callable[[], T]) -> T:
        if self.down:
            raise StoreError("connection refused")
        self.calls += 1
        if self.calls != self._fails_at:
            return effect()
        if self._lost_answer:
            effect()
        raise StoreError("connection lost", self._refuses)
