"""cluster/install_kernels.py: which scan a machine gets, and that it says why."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster import install_kernels
from cluster.install_kernels import Machine, build_environment, for_one_gpu, scan_of
from tests.cluster.conftest import REPOSITORY

GPU = Machine("86", "2.13.0", "13.0", Path("/usr/local/cuda-13.0"), False)
SETUP = """
cc_flag = []
cc_flag.append("-gencode")
cc_flag.append("arch=compute_75,code=sm_75")
cc_flag.append("-gencode")
cc_flag.append("arch=compute_80,code=sm_80")
cc_flag.append("-gencode")
cc_flag.append("arch=compute_87,code=sm_87")
if cuda >= 12.8:
    cc_flag.append("-gencode")
    cc_flag.append("arch=compute_90,code=sm_90")
"""


class Machinery:
    """Stands in for uv, pip and the compiler: writes down the commands, makes wheels, fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: str = "nothing") -> None:
        self.commands: list[str] = []
        self._fails_at = fails_at
        monkeypatch.setattr(install_kernels, "_run", self._run)
        monkeypatch.setattr(install_kernels, "_build", self._build)
        monkeypatch.setattr(
            install_kernels.subprocess, "run", lambda command, **_: self.commands.append(" ".join(command))
        )

    def _run(self, command: list[str], environment: Any = None) -> None:
        self.commands.append(" ".join(command))
        if self._fails_at in self.commands[-1]:
            raise subprocess.CalledProcessError(1, command, output="many lines\nnvcc fatal: out of memory\n")

    def _build(self, machine: Machine, folder: Path) -> None:
        self._run(["compile"])
        for package in install_kernels.PACKAGES:
            (folder / f"{package.replace('==', '-')}.whl").write_text("a wheel")


def test_the_first_machine_compiles_and_the_others_take_its_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Machinery(monkeypatch)
    assert scan_of(GPU, "uv", f"file://{tmp_path}/wheels") == "mamba-ssm's kernels (compiled here)"
    assert "compile" in first.commands
    second = Machinery(monkeypatch)
    without_compiler = GPU._replace(toolkit=None)
    assert scan_of(without_compiler, "uv", f"file://{tmp_path}/wheels/") == "mamba-ssm's kernels (wheels of the bucket)"
    assert "compile" not in second.commands
    assert "mamba-ssm-2.3.2.post1.whl" in " ".join(second.commands)
    third = Machinery(monkeypatch)
    assert "compiled here" in scan_of(GPU._replace(torch="2.14.0"), "uv", f"file://{tmp_path}/wheels")
    assert "compile" in third.commands, "wheels are for one torch"


@pytest.mark.parametrize(
    ("machine", "fails_at", "scan"),
    [
        (GPU._replace(gpu=None), "nothing", "numba (no GPU)"),
        (GPU._replace(installed=True), "nothing", "mamba-ssm's kernels (installed before)"),
        (GPU._replace(toolkit=None), "nothing", "Triton (no compiler: /usr/local/cuda-13.0/bin/nvcc is missing)"),
        (GPU, "compile", "Triton (mamba-ssm's kernels could not be installed: nvcc fatal: out of memory)"),
        (GPU, "scan_cuda", "Triton (mamba-ssm's kernels could not be installed: nvcc fatal: out of memory)"),
    ],
)
def test_where_kernels_do_not_build_it_says_why_the_scan_is_another(
    machine: Machine, fails_at: str, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Machinery(monkeypatch, fails_at)
    assert scan_of(machine, "uv", f"file://{tmp_path}/wheels") == scan
    broken = "could not" in scan
    assert any("uninstall" in command for command in done.commands) == broken, "half of a package would be used"


@pytest.mark.parametrize(
    ("gpu", "kept"), [("75", ["75"]), ("80", ["80"]), ("86", ["80"]), ("87", ["87"]), ("89", ["80"]), ("90", ["90"])]
)
def test_the_kernels_are_compiled_for_one_gpu(gpu: str, kept: list[str]) -> None:
    text = for_one_gpu(SETUP, gpu)
    compile(text, "setup.py", "exec")
    assert re.findall(r"arch=compute_(\d+)", text) == kept


def test_a_gpu_that_the_package_does_not_know_leaves_all_in() -> None:
    assert for_one_gpu(SETUP, "120") == SETUP


def test_compilers_share_the_memory() -> None:
    assert build_environment(GPU, cpus=8, memory_gib=16.0)["MAX_JOBS"] == "4"
    assert build_environment(GPU, cpus=2, memory_gib=64.0)["MAX_JOBS"] == "2"


def test_the_image_and_the_machines_have_the_same_kernels() -> None:
    dockerfile = (REPOSITORY / "docker/Dockerfile.gpu").read_text()
    assert all(package in dockerfile for package in install_kernels.PACKAGES)
    assert all(package in dockerfile for package in install_kernels.NEEDED if "==" in package)


def test_a_command_that_takes_too_long_ends_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that goes on would take the CPUs of the trials. It holds the pipe, so this waits for it."""
    monkeypatch.setattr(install_kernels, "_LIMIT_S", 0.0)
    with pytest.raises(subprocess.TimeoutExpired):
        install_kernels._run(["sh", "-c", "sleep 300 & wait"])
