"""Processor, memory and GPU usage of a worker and its machine, read in microseconds when a record is due.

Names are those of MLflow's own system metrics, which its UI shows on a page of their own, and `process_*` for the
worker's share. Percentages of `cpu_utilization` are of the whole machine, those of `process_cpu` of one core.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import psutil
import pynvml

_MEGABYTE = 1e6
_GPU_TIMEOUT_S = 1.0
_log = logging.getLogger(__name__)


class SystemUsage:
    """`gpu_uuid` is the GPU to watch, as CUDA names it (without `GPU-`); None for none."""

    def __init__(self, gpu_uuid: str | None = None) -> None:
        self._process = psutil.Process()
        self._gpu = None if gpu_uuid is None else _Gpu(gpu_uuid)
        psutil.cpu_percent()  # usage is measured from call to call; this is the first
        self._process.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Usage now; CPU times are means since the last sample. `gpu_*` is left out if the GPU does not answer."""
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
            **({} if self._gpu is None else self._gpu.sample()),
        }


class _Gpu:
    """One GPU, queried through NVIDIA's management library (NVML), which comes with the driver.

    Each query runs in a daemon thread, because a call into a driver that hangs never returns. Training waits for it at
    most `_GPU_TIMEOUT_S`, and no other query is made until it returns.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._handle: Any = None
        self._query: threading.Thread | None = None
        self._failed_before = False

    def sample(self) -> dict[str, float]:
        """Empty without a driver, for a GPU that NVML does not know or refuses (a MIG slice), or without an answer."""
        if self._query is not None and self._query.is_alive():
            return {}
        answer: dict[str, float] = {}
        self._query = threading.Thread(target=self._ask, args=(answer,), name="dmray-gpu-usage", daemon=True)
        self._query.start()
        self._query.join(_GPU_TIMEOUT_S)
        return {} if self._query.is_alive() else answer

    def _ask(self, answer: dict[str, float]) -> None:
        try:
            if self._handle is None:
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{self._uuid}")
            utilization = pynvml.nvmlDeviceGetUtilizationRates(self._handle)
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        except pynvml.NVMLError as cause:
            if not self._failed_before:
                _log.info("no usage of GPU %s is recorded: %s", self._uuid, cause)
            self._failed_before = True
            return
        answer["gpu_0_utilization_percentage"] = float(utilization.gpu)
        answer["gpu_0_memory_usage_megabytes"] = memory.used / _MEGABYTE
        answer["gpu_0_memory_usage_percentage"] = 100.0 * memory.used / memory.total
