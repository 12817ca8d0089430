from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dmray.records import system_usage
from dmray.records.system_usage import SystemUsage

UUID = "12345678-1234-1234-1234-123456789abc"


class FakeNvml:
    """The part of pynvml that is used, with one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.driver, self.answers, self.queries = True, True, 0
        self.hang = threading.Event()
        self.hang.set()

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != f"GPU-{UUID}":
            raise self.NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        assert handle == "handle"
        self.queries += 1
        self.hang.wait(timeout=60)
        if not self.answers:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=37, memory=5)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        assert handle == "handle"
        return SimpleNamespace(total=80_000_000_000, free=60_000_000_000, used=20_000_000_000)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml()
    monkeypatch.setattr(system_usage, "pynvml", fake)
    yield fake
    fake.hang.set()


def gpu_part(sample: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in sample.items() if name.startswith("gpu")}


def test_a_sample_has_the_usage_of_machine_and_worker() -> None:
    sample = SystemUsage().sample()
    assert 0 <= sample["cpu_utilization_percentage"] <= 100
    assert 0 < sample["system_memory_usage_percentage"] <= 100
    assert sample["process_cpu_percentage"] >= 0
    assert sample["process_memory_megabytes"] > 10
    assert gpu_part(sample) == {}


def test_a_sample_has_the_usage_of_the_workers_gpu(nvml: FakeNvml) -> None:
    usage = SystemUsage(UUID)
    for _ in range(2):
        assert gpu_part(usage.sample()) == {
            "gpu_0_utilization_percentage": 37.0,
            "gpu_0_memory_usage_megabytes": 20_000.0,
            "gpu_0_memory_usage_percentage": 25.0,
        }


def test_without_a_driver_there_are_no_gpu_metrics_and_one_line_says_why(
    nvml: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    nvml.driver = False
    usage = SystemUsage(UUID)
    with caplog.at_level(logging.INFO):
        assert [gpu_part(usage.sample()) for _ in range(3)] == [{}, {}, {}]
    assert [record.getMessage() for record in caplog.records] == [
        f"no usage of GPU {UUID} is recorded: NVML Shared Library Not Found"
    ]
    assert caplog.records[0].levelno == logging.INFO


def test_the_real_library_without_a_driver_or_with_an_unknown_gpu_gives_no_gpu_metrics() -> None:
    assert gpu_part(SystemUsage("0" * 36).sample()) == {}


def test_an_unknown_gpu_and_a_refused_query_give_no_gpu_metrics(nvml: FakeNvml) -> None:
    assert gpu_part(SystemUsage("another").sample()) == {}
    nvml.answers = False
    usage = SystemUsage(UUID)
    assert gpu_part(usage.sample()) == {}
    nvml.answers = True
    assert gpu_part(usage.sample())


def test_a_query_that_hangs_is_waited_for_once_and_not_repeated_until_it_returns(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_usage, "_GPU_TIMEOUT_S", 0.05)
    nvml.hang.clear()
    usage = SystemUsage(UUID)
    samples = [usage.sample() for _ in range(3)]
    assert [gpu_part(sample) for sample in samples] == [{}, {}, {}]
    assert samples[-1]["process_memory_megabytes"] > 10

    monkeypatch.setattr(system_usage, "_GPU_TIMEOUT_S", 60.0)
    nvml.hang.set()
    deadline = time.monotonic() + 60
    while not gpu_part(usage.sample()):
        assert time.monotonic() < deadline, "queries did not resume"
        time.sleep(0.01)
    assert nvml.queries == 2
