from __future__ import annotations

from dmray.records.system_usage import SystemUsage, _Gpu


def test_a_sample_tells_how_busy_machine_and_worker_are() -> None:
    sample = SystemUsage().sample()
    assert 0 <= sample["cpu_utilization_percentage"] <= 100
    assert 0 < sample["system_memory_usage_percentage"] <= 100
    assert sample["process_cpu_percentage"] >= 0
    assert sample["process_memory_megabytes"] > 10
    assert not [name for name in sample if name.startswith("gpu")]


def test_without_nvidias_library_there_is_no_gpu_to_watch() -> None:
    assert _Gpu.find("0" * 36, "libno-such-library.so") is None
