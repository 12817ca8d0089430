"""The Ray cluster of a sweep: joined at an address, or started on this machine and ended with the sweep.

A Ray that is started here listens on the loopback interface only, is guarded by a token of its own, keeps its files in
a folder of its own (`session_folder`), and does not get the signals that are sent to all processes of a sweep: its
trials have to save first. What it leaves is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from ray._private import ray_constants
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RaySystemError

from dmray.errors import ClusterError
from dmray.interruption import interrupted_at_once
from dmray.on_ray.evaluation_pool import NAMESPACE
from dmray.on_ray.placement import DRIVER_RESOURCE, Machines, machines_for_one_node
from dmray.on_ray.session_folder import new_token, session_folder, session_processes
from dmray.periodic_thread import PeriodicThread
from dmray.planning.plan import Plan
from dmray.processes import usable_cpus

ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # dmray handles Ctrl-C: it stops the sweep and says how to resume
    "RAY_AIR_NEW_OUTPUT": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nobody reads their files, and they leave some open
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # tens of lines for a worker that is restarted; see callbacks.py
}
_LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: every process of Ray binds to 127.0.0.1
    "RAY_ROTATION_MAX_BYTES": str(16 * 2**20),  # of each log file; Ray's defaults are 512 MiB and 5 older files
    "RAY_ROTATION_BACKUP_COUNT": "1",
}
SWEEP_KEY = "dmray.sweep"  # in the metadata of a job that `dmray submit` has sent
_CONNECT_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 3.0
_TOO_SLOW = "timed out"  # Ray's word where its own 30 s for a raylet are not enough: a busy machine
_HELD_BACK = {signal.SIGTERM, signal.SIGHUP}
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(address: str | None, plan: Plan) -> Iterator[Machines]:
    """Join the cluster at `address`, or start one if that is None, and leave it, or end it, with the block.

    Raises:
        ClusterError: no cluster answers, or none can be started.
        SweepInterrupted: a signal came meanwhile.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for library in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if ray.is_initialized():  # by the caller
        yield _machines()
        return
    with _joined(address) if address not in (None, "local") else _started(plan) as machines:
        yield machines


def machines_at(address: str, plan: Plan) -> Machines:
    """What `plan` would find at `address`: the cluster is asked and left again.

    Raises:
        ClusterError: no cluster answers.
    """
    with connected(address, plan) as machines:
        return machines


@contextlib.contextmanager
def _joined(address: str) -> Iterator[Machines]:
    where = f"--address {address}"
    named = os.environ.get(ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE)
    if address == "auto" and named:
        address, where = named, f"{where} (RAY_ADDRESS={named})"
    _check_address(address, where)
    ours = {name: value for name, value in os.environ.items() if name.startswith("DMRAY_")}  # mirrors, folders
    try:
        with interrupted_at_once(), _keep_signal_handlers():
            ray.init(
                address=address,
                namespace=NAMESPACE,
                runtime_env={"env_vars": _apart_from_the_jobs(ours)},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            machines = _machines()
    except AuthenticationError as refused:
        raise ClusterError(
            f"{where}: the cluster asks for its token: export RAY_AUTH_MODE=token, with the token in "
            "~/.ray/auth_token, or in RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH"
        ) from refused
    except (OSError, RuntimeError, ValueError, RaySystemError) as cause:
        raise ClusterError(f"{where}: no Ray cluster: {_first_line(cause)}; start one with ray start --head") from cause
    try:
        yield machines
    finally:
        _leave()


def _apart_from_the_jobs(ours: dict[str, str]) -> dict[str, str]:
    """The variables that the workers do not get from the job of this driver anyway. (Ray refuses those in both.)

    The workers of a submitted sweep get no copy of the job's folder: it has the sweep file only, and Ray may remove it.
    """
    config = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}")
    of_the_job = config.get("runtime_env") or {}
    if SWEEP_KEY in (config.get("metadata") or {}):
        of_the_job.pop("working_dir", None)
        os.environ[RAY_JOB_CONFIG_JSON_ENV_VAR] = json.dumps(config)
    return {name: value for name, value in ours.items() if name not in (of_the_job.get("env_vars") or {})}


def _check_address(address: str, where: str) -> None:
    """Check the form of an address, and that something answers there. (Ray itself would try for minutes.)

    Raises:
        ClusterError: it is none that a driver can join.
    """
    if address == "auto":
        return
    if "://" in address:
        raise ClusterError(
            f"{where}: a driver joins a cluster from one of its machines, with --address auto or HOST:PORT; from "
            "elsewhere, give the address of the dashboard, http://HOST:8265, to dmray submit"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ClusterError(f"{where}: not an address; give auto, or HOST:PORT, for example 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as cause:
        raise ClusterError(f"{where}: no Ray cluster: {_first_line(cause)}; start one with ray start --head") from cause


@contextlib.contextmanager
def _started(plan: Plan) -> Iterator[Machines]:
    import torch

    machines = machines_for_one_node(plan.sweep.resources, usable_cpus(), torch.cuda.device_count())
    with session_folder() as folder:
        try:
            with interrupted_at_once(), _keep_signal_handlers(), _for_one_machine(folder):
                try:
                    _start(machines, folder)
                except ClusterError as problem:
                    if _TOO_SLOW not in str(problem):
                        raise
                    _log.warning("%s; trying once more", _first_line(problem.__cause__ or problem))
                    _end()
                    _start(machines, folder)
            yield machines
        finally:
            _end()


def _start(machines: Machines, folder: Path) -> None:
    try:
        ray.init(
            "local",
            namespace=NAMESPACE,
            num_cpus=int(machines.cpus),
            num_gpus=int(machines.gpus),
            resources={DRIVER_RESOURCE: machines.drivers},
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )
    except Exception as cause:  # Ray raises bare ones, for example if its processes do not answer in time
        raise ClusterError(_why_not_started(cause, folder)) from cause
    node = ray._private.worker._global_node
    end = node.kill_all_processes  # ray.shutdown would wait a second for each process to obey a SIGTERM
    node.kill_all_processes = lambda **options: end(**options | {"allow_graceful": False})


def _why_not_started(cause: Exception, folder: Path) -> str:
    logs = (path for name in ("gcs_server", "raylet") for path in sorted(folder.glob(f"session_2*/logs/{name}.err")))
    facts = [line for path in logs for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]]
    facts.append(f"{shutil.disk_usage(folder).free / 2**30:z.1f} GiB free at {folder}")
    return (
        f"Ray does not start on this machine: {_first_line(cause)} ({'; '.join(facts)}); run it again if the machine "
        "is busy, set RAY_TMPDIR to another folder, or use --local, which needs no Ray"
    )


@contextlib.contextmanager
def _for_one_machine(folder: Path) -> Iterator[None]:
    """Settings for the start of a Ray that nobody else may reach, which its processes inherit."""
    ours = {name: value for name, value in _LOCAL_ENVIRONMENT.items() if name not in os.environ}
    own_token = not any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if own_token:
        ours["RAY_AUTH_TOKEN_PATH"] = str(new_token(folder))
        AuthenticationTokenLoader.instance().reset_cache()
    before = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was imported
    held_back = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)  # of a whole process group
    os.environ |= ours
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in ours:
            os.environ.pop(name, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, held_back)


@contextlib.contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Keep the handler of SIGTERM. Ray sets one in Python that exits, and one in C++ that prints a stack."""
    set_by_ray = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None  # its SystemExit is lost in some places of ray.init
    try:
        with _SigtermAction().kept():
            yield
    finally:
        ray._private.utils.set_sigterm_handler = set_by_ray


class _SigtermAction:
    """What the system does at a SIGTERM: a `struct sigaction`."""

    _SIZE = 256  # bytes, more than any system's
    _LOOK_EVERY_S = 0.001

    def __init__(self) -> None:
        self._set = ctypes.CDLL(None).sigaction
        self._before = self._current()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Set it again and again while the block runs. (Python itself can set a handler in the main thread only.)"""

        def restore() -> None:
            if not self.is_kept():
                self._set(int(signal.SIGTERM), self._before, None)

        try:
            with PeriodicThread(restore, self._LOOK_EVERY_S, name="dmray-sigterm"):
                yield
        finally:
            restore()

    def _current(self) -> bytes:
        found = ctypes.create_string_buffer(self._SIZE)
        self._set(int(signal.SIGTERM), None, found)
        return found.raw

    def is_kept(self) -> bool:
        """Whether the handler is the one of before. Its address comes first; the system does not fill all the rest."""
        address = ctypes.sizeof(ctypes.c_void_p)
        return self._current()[:address] == self._before[:address]


def _leave() -> None:
    """Disconnect from Ray. Its C++ part resets SIGTERM to its default, which would end the process without a word."""
    with _SigtermAction().kept():
        ray.shutdown()


def _end() -> None:
    """End the Ray that this process started, however far it has come."""
    processes = session_processes()
    _leave()
    _, alive = psutil.wait_procs(processes, timeout=_END_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_END_TIMEOUT_S)
    AuthenticationTokenLoader.instance().reset_cache()


def _machines() -> Machines:
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Machines(
        total.get("CPU", 0.0),
        total.get("GPU", 0.0),
        total.get(DRIVER_RESOURCE, 0.0),
        tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes),
    )


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
