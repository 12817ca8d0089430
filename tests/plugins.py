"""Installs packages for a test as pip does, without pip: a folder with the modules and their entry points."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmray.plugins import forget_plugins

TOY = Path(__file__).parent / "toy_plugin"


def install(source: Path, site: Path) -> None:
    """Copy the modules beside `source`'s pyproject.toml into `site`, with the metadata that pip would write there."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    shutil.copytree(source, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "pyproject.toml"))
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups))


def activate(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the packages in `site` importable for the test, here and in the processes that it starts."""
    monkeypatch.syspath_prepend(str(site))
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    forget_plugins()


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the toy plugin is installed in."""
    site = tmp_path_factory.mktemp("toy_site")
    install(TOY, site)
    return site


@pytest.fixture
def toy_plugin(toy_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy plugin (tests/toy_plugin) is installed while the test runs, also for processes that it starts."""
    with monkeypatch.context() as patch:
        activate(toy_site, patch)
        yield
    forget_plugins()
