"""Install mamba-ssm's kernels on a machine with a GPU where they build, and say which scan the machine uses.

    ~/venv/bin/python cluster/install_kernels.py --uv ~/uv/bin/uv --wheels s3://bucket/dmray/wheels

The first machine compiles them for its GPU and stores the wheels; the others, and those of later clusters, install
these in seconds. Where they do not build, or take longer than the limit, the scan runs on Triton, which comes with
torch. The last line of output says which it is and why, `dmray doctor` on the machine says which. It always succeeds.

Tested by tests/cluster: the decision, the commands, wheels to and from a mocked S3. Not tested: a compiler, a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import fsspec

PACKAGES = ("causal-conv1d==1.6.2.post1", "mamba-ssm==2.3.2.post1")  # as docker/Dockerfile.gpu has them
NEEDED = ("einops==0.8.1", "ninja==1.13.0", "packaging", "setuptools", "transformers==4.57.3", "wheel==0.45.1")
# Ray gives up on a machine whose set-up takes 30 minutes (RAY_AUTOSCALER_RECONCILE_RAY_INSTALL_STATUS_TIMEOUT_S).
_LIMIT_S = 20 * 60.0
_GIB_PER_COMPILER = 4
_CHECK = "from dmray.models.scan_cuda import mamba_ssm_scan; mamba_ssm_scan()"
_ARCHITECTURE = re.compile(r'cc_flag\.append\("-gencode"\)\n\s*cc_flag\.append\("arch=compute_(\d+),[^"]*"\)')
_EMBEDDED = {72, 87, 101, 110, 121}  # Jetson and the like: their code does not run on other GPUs of the generation
_STARTED = time.monotonic()


class Machine(NamedTuple):
    """What decides: the GPU's architecture ("86"), the releases of torch and its CUDA, where its compiler is."""

    gpu: str | None
    torch: str
    cuda: str | None
    toolkit: Path | None
    installed: bool

    @property
    def wheels(self) -> str:
        """The folder of wheels that fit this machine."""
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        return f"torch{self.torch}-cuda{self.cuda}-{python}-sm{self.gpu}"


def this_machine() -> Machine:
    import torch

    cuda = torch.version.cuda
    gpu = "".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else None
    toolkit = Path(f"/usr/local/cuda-{cuda}")
    installed = gpu is not None and subprocess.run([sys.executable, "-c", _CHECK], capture_output=True).returncode == 0
    has_compiler = (toolkit / "bin/nvcc").exists()
    return Machine(gpu, torch.__version__.partition("+")[0], cuda, toolkit if has_compiler else None, installed)


def scan_of(machine: Machine, uv: str, wheels: str) -> str:
    """Install what can be installed. Returns the scan that the machine uses, with the reason, for people."""
    if machine.gpu is None:
        return "numba (no GPU)"
    if machine.installed:
        return "mamba-ssm's kernels (installed before)"
    store = f"{wheels.rstrip('/')}/{machine.wheels}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            stored = _fetch(store, Path(folder))
            if not stored:
                if machine.toolkit is None:
                    return f"Triton (no compiler: /usr/local/cuda-{machine.cuda}/bin/nvcc is missing)"
                _run([uv, "pip", "install", "--quiet", "--python", sys.executable, "pip", *NEEDED])
                _build(machine, Path(folder))
                _store(Path(folder), store)
            found = sorted(map(str, Path(folder).glob("*.whl")))
            _run([uv, "pip", "install", "--quiet", "--python", sys.executable, *NEEDED])
            _run([uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps", *found])
            _run([sys.executable, "-c", _CHECK])
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as problem:
            names = [package.partition("==")[0] for package in PACKAGES]
            subprocess.run([uv, "pip", "uninstall", "--python", sys.executable, *names], capture_output=True)
            return f"Triton (mamba-ssm's kernels could not be installed: {_short(problem)})"
    return f"mamba-ssm's kernels ({'wheels of the bucket' if stored else 'compiled here'})"


def _build(machine: Machine, folder: Path) -> None:
    """Compile the packages, for this GPU only, into wheels in `folder`."""
    environment = build_environment(machine, os.cpu_count() or 1, _memory_gib())
    no_kernels = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "CAUSAL_CONV1D_SKIP_CUDA_BUILD": "TRUE"}  # pip asks for metadata
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as work:
            source = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", work, package]
            _run([*pip, "download", *source], environment | no_kernels)
            (archive,) = Path(work).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(work, filter="data")
            (setup,) = Path(work).glob("*/setup.py")
            setup.write_text(for_one_gpu(setup.read_text(), machine.gpu or ""))
            built = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(setup.parent)]
            _run([*pip, "wheel", *built], environment)


def for_one_gpu(setup: str, gpu: str) -> str:
    """The text of the packages' setup.py with one architecture, since each costs as much time as the first.

    It is the newest one whose code runs on `gpu`: of the same generation and not newer. If there is none, all stay.
    """
    listed = {int(arch) for arch in _ARCHITECTURE.findall(setup)}
    fitting = {
        arch for arch in listed - _EMBEDDED | {int(gpu)} & listed if arch // 10 == int(gpu) // 10 and arch <= int(gpu)
    }
    if not fitting:
        return setup
    return _ARCHITECTURE.sub(lambda match: match[0] if int(match[1]) == max(fitting) else "pass", setup)


def build_environment(machine: Machine, cpus: int, memory_gib: float) -> Mapping[str, str]:
    """The variables with which the packages compile their kernels from source, all of Mamba-1's included."""
    jobs = max(1, min(cpus, int(memory_gib / _GIB_PER_COMPILER)))
    path = f"{machine.toolkit}/bin:{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    flags = ("MAMBA_FORCE_BUILD", "MAMBA_KEEP_CUDA_BUILD", "CAUSAL_CONV1D_FORCE_BUILD")
    ours = {"MAX_JOBS": str(jobs), "CUDA_HOME": str(machine.toolkit), "PATH": path}
    return os.environ | dict.fromkeys(flags, "TRUE") | ours


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _fetch(store: str, folder: Path) -> bool:
    """Copy the wheels of the store to `folder`. Returns whether each package has one."""
    files, place = fsspec.core.url_to_fs(store)
    stored = [path for path in (files.ls(place, detail=False) if files.exists(place) else []) if path.endswith(".whl")]
    if len(stored) != len(PACKAGES):
        return False
    for path in stored:
        files.get_file(path, str(folder / Path(path).name))
    return True


def _store(folder: Path, store: str) -> None:
    """Copy the wheels to the store; a failure costs the next machine its time, and is said."""
    try:
        files, place = fsspec.core.url_to_fs(store)
        files.makedirs(place, exist_ok=True)
        for wheel in folder.glob("*.whl"):
            files.put_file(str(wheel), f"{place}/{wheel.name}")
    except OSError as problem:
        print(f"the wheels are not stored, so each machine compiles its own: {_short(problem)}", flush=True)


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command, and end it with all that it has started when the time for all commands is over.

    Raises:
        SubprocessError: it failed, or the time is over.
    """
    left = max(_LIMIT_S - (time.monotonic() - _STARTED), 1.0)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            output, _ = process.communicate(timeout=left)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)


def _short(problem: Exception) -> str:
    if isinstance(problem, subprocess.TimeoutExpired):
        return f"not ready after {_LIMIT_S / 60:g} minutes"
    said = (getattr(problem, "output", None) or str(problem)).strip().splitlines()
    return said[-1][:300] if said else type(problem).__name__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uv", required=True, help="the program uv")
    parser.add_argument(
        "--wheels", required=True, help="where wheels are kept: s3://bucket/prefix, or another URL of fsspec"
    )
    options = parser.parse_args()
    print(f"dmray: selective scan: {scan_of(this_machine(), options.uv, options.wheels)}", flush=True)


if __name__ == "__main__":
    main()
