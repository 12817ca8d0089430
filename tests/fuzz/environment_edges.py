"""What surrounds dmray and may be odd: variables of the environment, the metadata of installed packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import dmray
from dmray.downloads.fetching import FetchSettings, RemoteFile, fetch
from dmray.errors import DmrayError
from dmray.files import cache_folder, download_folders, remove_stale_parts
from dmray.methods import METHODS
from dmray.mlflow_mirror.opening import find_address
from dmray.on_ray.cluster import connected
from dmray.plugins import forget_plugins, installed_plugins
from dmray.records import SweepFolder
from dmray.sources import open_file
from dmray.tasks import TASKS
from tests.fuzz.mutators import mutate_bytes, odd_text
from tests.fuzz.templates import SWEEPS, Templates

_VALID = {
    "DMRAY_MIRRORS": ("http://127.0.0.1:9/d4rl", "http://127.0.0.1:9,file:///nowhere", "s3://nowhere/x"),
    "DMRAY_OFFLINE": ("1", "true", "no", "on", "0"),
    "DMRAY_CACHE": ("{folder}/cache", "{folder}/file", "{folder}/file/cache", "relative", "{folder}/loop"),
    "DMRAY_DATASETS": ("{folder}/datasets", "{folder}/file", "{folder}/loop", "~nobody-of-that-name/x"),
    "HOME": ("{folder}/home", "{folder}/file", ""),
    "RAY_ADDRESS": ("127.0.0.1:9", "auto", "ray://127.0.0.1:9", "http://127.0.0.1:9"),
    "RAY_TMPDIR": ("{folder}/tmp", "{folder}/file", "{folder}/" + "x" * 120),
    "MLFLOW_TRACKING_URI": ("http://127.0.0.1:9", "sqlite:///{folder}/x.db", "file:///x", "databricks"),
    "MLFLOW_HTTP_REQUEST_TIMEOUT": ("1", "0.5", "-1"),
    "MUJOCO_GL": ("egl", "osmesa", "off"),
    "USER": ("fuzz", ""),
    "COLUMNS": ("20", "0", "-1"),
    "TMPDIR": ("{folder}/tmp", "{folder}/file", "relative"),
}


def variables(rng: Random, folder: Path, templates: Templates) -> tuple[Path, dict[str, str]]:
    """One to three odd variables."""
    (folder / "file").write_text("x")
    (folder / "loop").symlink_to(folder / "loop")
    for made in ("tmp", "home"):
        (folder / made).mkdir()
    given = {}
    for name in rng.sample(sorted(_VALID), rng.randint(1, 3)):
        value = rng.choice(_VALID[name])
        if rng.random() < 0.6:  # a place that is named may be written to: it stays in the folder
            value = f"{{folder}}/{odd_text(rng)}".replace("..", "") if "{folder}" in value else odd_text(rng, value)
        value = value.replace("{folder}", str(folder))
        with suppress(UnicodeEncodeError):  # not one that the system can pass on
            given[name] = os.fsdecode(os.fsencode(value)).replace("\0", "")
    return folder, given


@contextmanager
def _environment(given: Mapping[str, str], folder: Path) -> Iterator[None]:
    before, here = dict(os.environ), Path.cwd()
    os.chdir(folder)
    os.environ.update({"DMRAY_DATASETS": str(folder / "datasets"), **given})
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def read_variables(given: tuple[Path, dict[str, str]]) -> object:
    """Every reader of a variable; each may refuse."""
    folder, named = given
    plan = dmray.plan_sweep(SWEEPS / "quickstart.yaml")
    refused: list[DmrayError] = []
    values: list[object] = []
    with _environment(named, folder):
        for read in (
            cache_folder,
            download_folders,
            lambda: remove_stale_parts(cache_folder()),
            lambda: fetch(RemoteFile("a.hdf5", "http://127.0.0.1:9/a.hdf5"), download_folders()[0], _settings()),
            lambda: str(plan),
            lambda: open_file(folder / "file", TASKS["hopper"]),
            lambda: find_address(os.environ.get("MLFLOW_TRACKING_URI"), SweepFolder(folder, "x")),
            lambda: _enter(connected("auto", plan)) if "RAY_ADDRESS" in named else None,
        ):
            try:
                values.append(read())
            except DmrayError as error:
                refused.append(error)
    if refused:
        raise refused[-1]
    return values


def _settings() -> FetchSettings:
    return replace(FetchSettings.from_environment(), attempts=1, first_pause_s=0.0)


def _enter(block: object) -> object:
    with block as value:  # type: ignore[attr-defined]
        return value


_POINTS = (
    "[dmray.methods]\nodd = odd_module:METHOD\n",
    "[dmray.tasks]\nodd = odd_module:TASK\n",
    "[dmray.tasks]\nodd = dmray.tasks:TASKS\nodd = odd_module:TASK\n",
    "[dmray.task_families]\nodd = odd_module:FAMILY\n[dmray.backbones]\nx = odd_module:X\n",
    "[dmray.methods]\ndm = dmray.methods:METHODS\n",
)
_MODULES = (
    "from dmray.tasks import TASKS\nTASK = TASKS['hopper']\n",
    "import dataclasses, dmray.tasks as t\nTASK = lambda: dataclasses.replace(t.TASKS['hopper'], name='odd')\n",
    "from dmray.methods import METHODS\nMETHOD = METHODS['dm']\n",
    "METHOD = TASK = FAMILY = X = None\n",
    "raise SystemExit(3)\n",
    "raise ImportError('\\x1b[31m')\n",
    "class X:\n    @property\n    def name(self): raise OSError('x')\nMETHOD = TASK = X()\n",
    "def __getattr__(name): raise RecursionError(name)\n",
    "syntax error",
    "\0",
)


def package(rng: Random, folder: Path, templates: Templates) -> Path:
    """A folder of packages, one of which extends dmray with odd metadata or an odd module."""
    metadata = folder / rng.choice(("odd-1.0.dist-info", "odd.dist-info", "-1.0.dist-info", "odd.egg-info"))
    metadata.mkdir()
    valid = "Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n"
    odd = (valid, valid, "", "Name: x", "Version: 1", valid.replace("odd", odd_text(rng)[:500]), "Name:\nVersion:\n")
    (metadata / "METADATA").write_bytes(rng.choice(odd).encode(errors="surrogatepass"))
    points = rng.choice(_POINTS)
    content = points.encode() if rng.random() < 0.6 else mutate_bytes(rng, points.encode())
    (metadata / "entry_points.txt").write_bytes(content)
    (folder / "odd_module.py").write_text(rng.choice(_MODULES))
    return folder


def use_package(site: Path) -> object:
    """What asks for plugins, with the package installed."""
    sys.path.insert(0, str(site))
    forget_plugins()
    sys.modules.pop("odd_module", None)
    try:
        installed = installed_plugins()
        return installed, list(METHODS), list(TASKS), str(dmray.plan_sweep(SWEEPS / "quickstart.yaml"))
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("odd_module", None)
        forget_plugins()
