"""Documents name existing files, modules and headings, and docs/architecture.md has the order of imports."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.floors import COMMANDS, FLOORS

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
PATH = re.compile(
    r"(?<![\w/.:~$<>{-])(?:dmray|docs|tests|sweeps|benchmarks|cluster|docker|requirements)/[\w./*-]*[\w*]"
)
MODULE = re.compile(r"python -m (dmray\.[a-z]+)|(?<![\w/.-])(dmray(?:\.[a-z_]\w*){2,})")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The link targets of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_path_in_a_document_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text()))
    assert [path for path in sorted(named) if not any(ROOT.glob(path))] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_module_in_a_document_exists(page: Path) -> None:
    for command, name in MODULE.findall(page.read_text()):
        dotted = command or name
        parent, _, last = dotted.rpartition(".")
        exists = find_spec(dotted) or hasattr(importlib.import_module(parent), last)
        assert exists, f"{page.name} names {dotted}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}, which has no such heading"


def test_the_map_of_folders_is_the_order_of_imports() -> None:
    rows = re.findall(r"^\| (`.*?`) \| ", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    drawn = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    inner = {name: floor for name, floor in FLOORS.items() if name not in (*COMMANDS, "__main__", "execution")}
    levels = [{name for name, floor in inner.items() if floor == level} for level in sorted(set(inner.values()))]
    assert [row for row in drawn if row] == levels
