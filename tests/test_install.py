"""What is installed where: one list of versions for tests, images and documents; the Pythons that are tested."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.cluster.install_lines import installs

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text())
}
PYTHONS = ("3.11", "3.12", "3.13")
KERNELS = ("causal-conv1d", "mamba-ssm")


def of_pythons() -> ModuleType:
    spec = importlib.util.spec_from_file_location("test_pythons", ROOT / "requirements/test_pythons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(extras[extra] for extra in extras if extra != "mamba")]
    return [Requirement(each) for some in lists for each in some]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_a_version_in_its_range_in_the_constraints(python: str) -> None:
    machine = {**default_environment(), "python_version": python, "platform_system": "Linux"}
    asked = [each for each in requirements() if each.marker is None or each.marker.evaluate(machine)]
    assert len(asked) > 30
    for each in asked:
        version = PINS.get(canonicalize_name(each.name))
        assert version is not None, f"{each.name} is not in constraints.txt"
        assert version in each.specifier, f"constraints.txt has {each.name} {version}, pyproject.toml asks {each}"


def test_the_pythons_are_the_same_everywhere() -> None:
    assert tuple(of_pythons().classified((ROOT / "pyproject.toml").read_text())) == PYTHONS
    assert all(python in SpecifierSet(PROJECT["requires-python"]) for python in PYTHONS)
    rows = re.findall(r"(?m)^\| (3\.[\d., ]+) \| ", (ROOT / "docs/install.md").read_text())
    assert ", ".join(rows) == ", ".join(PYTHONS)
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / page).read_text()


def test_images_are_built_from_the_versions_and_the_python_that_ci_tests() -> None:
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("exec make test")
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"pip install --quiet --disable-pip-version-check (?!-c constraints|--no-deps)", makefile) == []
    constraints = (ROOT / "constraints.txt").read_text()
    (tested,) = re.findall(r"continuous integration tests \(Python (3\.\d+), Linux\)", constraints)
    dockerfiles = sorted(ROOT.glob("docker/Dockerfile*"))
    assert len(dockerfiles) == 2
    for dockerfile in dockerfiles:
        text = dockerfile.read_text()
        assert re.findall(r"(?:FROM python:|uv venv --seed --python )(3\.\d+)", text) == [tested]
        lines = installs(dockerfile)
        assert text.index("COPY constraints.txt") < text.index("pip install")
        assert lines[0][:3] == ["-c", "constraints.txt", "torch"], "torch is first"
        assert [words for words in lines if words[:2] != ["-c", "constraints.txt"] and "--no-deps" not in words] == []


def test_the_kernels_have_one_version_everywhere() -> None:
    asked = {each.name: str(each.specifier) for each in map(Requirement, PROJECT["optional-dependencies"]["mamba"])}
    assert list(asked) == list(KERNELS)
    for file in ("docker/Dockerfile.gpu", "docs/install.md", "benchmarks/gpu/prepare.sh"):
        text = (ROOT / file).read_text().replace("causal_conv1d", KERNELS[0]).replace("mamba_ssm", KERNELS[1])
        for name, version in asked.items():
            assert set(re.findall(rf"{name}(==[\w.]*\w)", text)) == {version}, file


def test_the_page_on_versions_has_those_of_the_constraints() -> None:
    page = (ROOT / "docs/install.md").read_text().split("## Versions")[1]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    said = dict(
        pair for names, here, *_ in rows[1:] for pair in zip(names.split(", "), _repeated(here, names), strict=True)
    )
    assert {"torch", "mlflow"} <= said.keys()
    assert said == {name: str(PINS[canonicalize_name(name)]) for name in said}


def _repeated(versions: str, names: str) -> list[str]:
    several = versions.split(", ")
    return several if len(several) > 1 else several * len(names.split(", "))


def test_every_extra_is_described() -> None:
    page = (ROOT / "docs/install.md").read_text()
    assert sorted(re.findall(r"(?m)^\| `([a-z\d]+)` \| ", page)) == sorted(PROJECT["optional-dependencies"])


def test_the_citation_file_is_valid_and_says_what_the_readme_says() -> None:
    """The keys that schema 1.2.0 requires; `cffconvert --validate` was run by hand."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert all(isinstance(cited[key], str) and cited[key] for key in ("message", "title", "license", "type"))
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    for entry in (cited, *cited["references"]):
        assert entry["title"]
        assert entry["authors"]
        assert all(author.keys() <= {"name", "family-names", "given-names", "orcid"} for author in entry["authors"])
    bibtex = (ROOT / "README.md").read_text().split("```bibtex")[1].split("```")[0]
    assert f"{{{cited['title']}}}" in bibtex
    assert f"{{{cited['version']}}}" in bibtex
    assert f"{{{cited['references'][0]['title']}}}" in bibtex
    assert "2405.07943" in bibtex
    assert "2405.07943" in cited["references"][0]["url"]


def python(path: Path, *lines: str) -> None:
    """A program in the place of a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a checkout, and a machine without any Python."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(
        "shutil.which", lambda name: str(found) if (found := tmp_path / "bin" / name).exists() else None
    )
    return tmp_path


def fake(checkout: Path, path: Path, version: str, pytest_status: int = 0) -> None:
    """A Python of that version; `-m venv` copies it, `-m pip` and `-m pytest` write down what they were asked."""
    python(
        path,
        f'case "$1 $2" in "-c "*) echo {version};;',
        '"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;',
        f'"-m pip") shift 2; echo "pip $*" >> {checkout}/asked;;',
        f'"-m pytest") shift 2; echo "pytest $*" >> {checkout}/asked; exit {pytest_status};; esac',
    )


def test_each_python_that_is_here_is_installed_once_and_tested(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(checkout, checkout / "bin/python3.12", "3.12")
    fake(checkout, checkout / "bin/python3.13", "3.11")  # as a shim that runs another version
    for patch, status in (("3.13.2", 7), ("3.13.10", 0)):
        fake(checkout, checkout / f"pyenv/versions/{patch}/bin/python", "3.13", status)
    pythons = of_pythons()
    for _ in range(2):
        assert pythons.main(["--tests", "tests/models"], checkout) == 0
    printed = capsys.readouterr().out
    assert printed.count("Python 3.12: passed") == 2
    assert printed.count("Python 3.13: passed") == 2, "the newest patch release"
    assert printed.count("Python 3.11: NOT TESTED: it is not on this machine") == 2
    asked = (checkout / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("pip")] == 2 * [
        "pip install --quiet --disable-pip-version-check -c constraints.txt torch",
        "pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]",
    ]
    assert len([line for line in asked if line.startswith("pytest")]) == 4
    assert all(
        line.endswith("-m not ray and not slow and not figures tests/models") for line in asked if "pytest" in line
    )


def test_a_python_whose_tests_fail_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(checkout, checkout / "bin/python3.12", "3.12", pytest_status=1)
    pythons = of_pythons()
    assert pythons.main(["3.12", "3.13"], checkout) == 1
    assert "Python 3.12: FAILED: pytest ended with 1" in capsys.readouterr().out
    assert pythons.main(["3.13"], checkout) == 1, "none is here"
