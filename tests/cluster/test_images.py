"""docker/ without an engine: a linter, pins, what runs as whom, what is published where."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dmray.on_ray.placement import DRIVER_RESOURCE
from tests.cluster.conftest import REPOSITORY
from tests.cluster.install_lines import installs

DOCKERFILES = sorted(REPOSITORY.glob("docker/Dockerfile*"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(line.split("==")[0])
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if "==" in line
}


def requirements(arguments: list[str]) -> list[str]:
    """What a `pip install` names, this project's extras spelled out."""
    options_with_value = {"-c", "--index-url", "--extra-index-url"}
    named = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if before not in options_with_value and not word.startswith("-")
    ]
    ours = [extra for word in named if word.startswith(".") for extra in re.findall(r"[a-z]\w*", word)]
    extras = [requirement for extra in ours for requirement in PROJECT["optional-dependencies"][extra]]
    return [word for word in named if not word.startswith(".")] + extras + (PROJECT["dependencies"] if ours else [])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_linter_finds_nothing(dockerfile: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, dockerfile], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_every_requirement_has_one_version(dockerfile: Path) -> None:
    assert installs(dockerfile)
    for arguments in installs(dockerfile):
        for requirement in map(Requirement, requirements(arguments)):
            by_line = any(part.operator == "==" for part in requirement.specifier)
            by_file = "constraints.txt" in arguments and canonicalize_name(requirement.name) in PINS
            assert by_line or by_file, f"{dockerfile.name}: {requirement} is not pinned"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_bases_have_a_version_and_nothing_runs_as_root(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    bases = re.findall(r"(?m)^(?:FROM|COPY --from=)\s*(\S+)", text)
    assert bases
    for base in bases:
        assert base == "build" or re.search(r":\d+\.\d+\.\d+", base), base
    assert re.findall(r"(?m)^USER (.+)$", text) == ["1000:1000"]
    assert text.index("USER 1000") < text.rindex("\nCMD ")
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_in_the_context(dockerfile: Path) -> None:
    """.dockerignore leaves out everything but the files that it names."""
    kept = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    lines = [line for line in re.findall(r"(?m)^COPY (.+)$", dockerfile.read_text()) if "--from=" not in line]
    assert lines
    for line in lines:
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (REPOSITORY / source).exists()
            assert source in kept


def test_the_kernels_are_built_from_source_for_the_torch_that_is_there() -> None:
    gpu = REPOSITORY / "docker/Dockerfile.gpu"
    text = gpu.read_text()
    (kernels,) = [words for words in installs(gpu) if any(word.startswith("mamba-ssm==") for word in words)]
    assert "--no-build-isolation" in kernels
    assert "MAMBA_FORCE_BUILD=TRUE" in text
    assert "CAUSAL_CONV1D_FORCE_BUILD=TRUE" in text
    (toolkit,) = re.findall(r"FROM nvidia/cuda:(\d+\.\d+)\.\d+-devel", text)
    assert f"torch.version.cuda.startswith('{toolkit}')" in text


def compose() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())["services"]


@pytest.mark.parametrize("service", compose())
def test_a_service_is_pinned_healthy_and_published_on_loopback(service: str) -> None:
    spec = compose()[service]
    assert re.search(r":v?\d+\.\d+", spec["image"])
    assert "build" in spec or re.search(r"@sha256:[0-9a-f]{64}$", spec["image"])
    assert spec["healthcheck"] == {"disable": True} if service in ("bucket", "secrets") else spec["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in spec.get("ports", []))
    for other, condition in spec.get("depends_on", {}).items():
        assert condition["condition"] in ("service_healthy", "service_completed_successfully")
        assert other in compose()
    if "build" in spec:
        assert spec["user"] == "1000:1000"
        assert (REPOSITORY / spec["build"]["dockerfile"]).exists()


def test_no_secret_is_written_down() -> None:
    example = (REPOSITORY / "docker/compose.env.example").read_text()
    asked = re.findall(r"\$\{(\w+):\?", (REPOSITORY / "docker/compose.yaml").read_text())
    assert set(asked) == set(re.findall(r"(?m)^(\w+)=$", example))
    given = [pair for spec in compose().values() for pair in spec.get("environment", {}).items()]
    secrets = [(name, value) for name, value in given if re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", name)]
    assert secrets
    assert [name for name, value in secrets if not value.startswith("${")] == []


def test_ray_in_compose_starts_with_flags_that_it_knows() -> None:
    from ray.scripts.scripts import start

    known = {flag for option in start.params for flag in option.opts}
    head = compose()["head"]["command"]
    worker = compose()["cpu-worker"]["command"].split()
    for words in (head, worker, compose()["gpu-worker"]["command"].split()):
        assert words[:2] == ["ray", "start"]
        assert {word.split("=")[0] for word in words[2:]} <= known
    assert f'--resources={{"{DRIVER_RESOURCE}":32}}' in head
    assert "--num-cpus=0" in head


def test_images_run_the_version_of_the_project() -> None:
    images = {spec["image"] for spec in compose().values() if "build" in spec}
    kubernetes = (REPOSITORY / "cluster/kuberay.yaml").read_text()
    images |= {image.removeprefix("REGISTRY/") for image in re.findall(r"image: (\S+)", kubernetes)}
    assert images == {f"dmray:{PROJECT['version']}", f"dmray-gpu:{PROJECT['version']}"}


def test_every_service_with_a_secret_waits_for_the_check_of_them() -> None:
    """`docker compose up` fails with the sentence of `dmray.redaction`, before anything listens."""
    services = compose()

    def waits(name: str) -> bool:
        return name == "secrets" or any(waits(other) for other in services[name].get("depends_on", {}))

    assert [name for name in services if not waits(name)] == []
    given = set(services["secrets"]["environment"])
    for spec in services.values():
        asked = re.findall(r"\$\{(\w+):", str(spec.get("environment", {})))
        assert {
            {"STORE_KEY": "AWS_ACCESS_KEY_ID", "STORE_SECRET": "AWS_SECRET_ACCESS_KEY"}.get(n, n) for n in asked
        } <= given
    (code,) = services["secrets"]["command"][2:]
    for value, status in (("change-me", 1), ("c0ffee", 0)):
        environment = {"PYTHONPATH": str(REPOSITORY), "POSTGRES_PASSWORD": value}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status
        assert ("POSTGRES_PASSWORD is 'change-me', the placeholder of an example" in done.stderr) == bool(status)


def pinning() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pin_images", REPOSITORY / "docker/pin_images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_images_without_a_digest_are_those_that_the_security_page_names() -> None:
    pins = pinning()
    named = {}
    for file in pins.FILES:
        named |= pins.named((REPOSITORY / "docker" / file).read_text())
    assert len(named) == 6
    (said,) = re.findall(r"(?s)Not pinned by digest: (.+?)\.\n", (REPOSITORY / "SECURITY.md").read_text())
    assert set(re.findall(r"`([^`]+)`", said)) == {name for name, digest in named.items() if digest is None}


def test_digests_are_written_behind_every_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins, digest = pinning(), "sha256:" + "0" * 64
    for file in pins.FILES:
        shutil.copy(REPOSITORY / "docker" / file, tmp_path)
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho {digest}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert pins.main(tmp_path) == 0
    for file in pins.FILES:
        text = (tmp_path / file).read_text()
        assert set(pins.named(text).values()) == {digest}
        without = [re.sub("@sha256:[0-9a-f]+", "", each) for each in (text, (REPOSITORY / "docker" / file).read_text())]
        assert without[0] == without[1]


def test_a_registry_that_does_not_answer_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = pinning()
    for file in pins.FILES:
        shutil.copy(REPOSITORY / "docker" / file, tmp_path)
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no such host' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with pytest.raises(SystemExit, match="no digest: no such host"):
        pins.main(tmp_path)
    for file in pins.FILES:
        assert (tmp_path / file).read_text() == (REPOSITORY / "docker" / file).read_text()
