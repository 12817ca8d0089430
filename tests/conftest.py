from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.plugins import toy_plugin, toy_site  # noqa: F401  fixtures

# No test downloads anything, and none leaves arrays in the home folder; Ray's workers inherit both.
os.environ["DMRAY_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it; tables in pipes are wide without it
os.environ["DMRAY_CACHE"] = tempfile.mkdtemp(prefix="dmray-cache-")
atexit.register(shutil.rmtree, os.environ["DMRAY_CACHE"], ignore_errors=True)

_DRAW: dict[str, Callable[..., Any]] = {}  # the report's own function, once it is imported

settings.register_profile("dmray", deadline=None)  # the machine is noisy, and compiled loops start slowly
settings.load_profile("dmray")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups afterwards
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ray's tests first, they take long; tests on Ray, and those that share an MLflow or a file, in one process each.

    So each fixture of a session or a module is made once.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    if not os.environ.get("DMRAY_CHAOS"):
        for item in (item for item in items if item.get_closest_marker("chaos")):
            item.add_marker(pytest.mark.skip(reason="make chaos runs it"))
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if item.get_closest_marker("ray"):
            group = "ray"  # one Ray at a time: they wait for each other's processes to start
        elif "mlflow_storage" in getattr(item, "fixturenames", ()):
            group = "mlflow"
        else:
            group = item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test, which may write reports
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reports have figures only in tests with the marker `figures`: to draw one takes a second."""
    from dmray.reporting import render

    draw = _DRAW.setdefault("draw", render._draw)
    render._draw = draw if item.get_closest_marker("figures") else lambda *given: render.ReportFigures()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts() -> None:
    """A shell starts what runs in its background with SIGINT ignored, which subprocesses inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests, with more logical CPUs than the machine may have."""
    import ray

    from dmray.on_ray.cluster import ENVIRONMENT
    from dmray.on_ray.placement import DRIVER_RESOURCE

    os.environ |= ENVIRONMENT | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    folder = tempfile.mkdtemp(prefix="dmr", dir="/tmp")  # a short path: Unix sockets allow 107 bytes
    ray.init(
        "local",
        namespace="dmray",
        num_cpus=8,
        resources={DRIVER_RESOURCE: 100},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=100 * 2**20,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
