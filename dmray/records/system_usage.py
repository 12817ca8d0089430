"""Processor, memory and GPU usage of a worker and its machine, read in microseconds when a record is due.

Names are those of MLflow's own system metrics, which its UI shows on a page of their own, and `process_*` for the
worker's share. Percentages of `cpu_utilization` are of the whole machine, those of `process_cpu` of one core.
"""

from __future__ import annotations

import ctypes
import logging

import psutil

_MEGABYTE = 1e6
_log = logging.getLogger(__name__)


class SystemUsage:
    """`gpu_uuid`: the GPU to watch, as CUDA names it (without `GPU-`); None for none."""

    def __init__(self, gpu_uuid: str | None = None) -> None:
        self._process = psutil.Process()
        self._gpu = None if gpu_uuid is None else _Gpu.find(gpu_uuid)
        psutil.cpu_percent()  # usage is measured from call to call; this is the first
        self._process.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Now; processor times are means since the last sample."""
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
            **({} if self._gpu is None else self._gpu.sample()),
        }


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class _Gpu:
    """One GPU through NVIDIA's management library, which comes with the driver."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def find(cls, uuid: str, library: str = "libnvidia-ml.so.1") -> _Gpu | None:
        """None where the library or the GPU is not there (a container may hide either)."""
        try:
            nvml = ctypes.CDLL(library)
        except OSError as cause:
            _log.info("no GPU usage is recorded: %s", cause)
            return None
        handle = ctypes.c_void_p()
        name = f"GPU-{uuid}".encode()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
            _log.info("no GPU usage is recorded: NVIDIA's management library does not know GPU %s", uuid)
            return None
        return cls(nvml, handle)

    def sample(self) -> dict[str, float]:
        """Empty when the library refuses, as it does for parts of a divided GPU."""
        busy, memory = _Utilization(), _Memory()
        refused = self._library.nvmlDeviceGetUtilizationRates(self._handle, ctypes.byref(busy))
        if refused or self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)):
            return {}
        return {
            "gpu_0_utilization_percentage": float(busy.gpu),
            "gpu_0_memory_usage_megabytes": memory.used / _MEGABYTE,
            "gpu_0_memory_usage_percentage": 100.0 * memory.used / memory.total,
        }
