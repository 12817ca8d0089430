"""The pictures of the documents show what the code says today: docs/make_pictures.py makes them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NAMES = ("report.png", "mlflow.png", "mlflow_table.png", "maze_episodes.png", "inference.png")
CURE = "run python docs/make_pictures.py and look at the pictures"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made_from(script: ModuleType) -> dict[str, str]:
    found: dict[str, str] = script.made_from()
    return found


def test_every_picture_of_the_documents_comes_from_the_script(script: ModuleType) -> None:
    assert {path.name for path in DOCS.glob("*.png")} == set(NAMES) == set(json.loads(script.RECORD.read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_shows_the_words_colours_and_settings_of_today(
    script: ModuleType, made_from: dict[str, str], name: str
) -> None:
    recorded = json.loads(script.RECORD.read_text(encoding="utf-8"))[name]
    assert made_from[name] == recorded["made_from"], f"docs/{name} is stale: {CURE}"
    assert script.digest_of(DOCS / name) == recorded["picture"], f"docs/{name} is not the script's: {CURE}"


@pytest.mark.parametrize(
    ("place", "value", "stale"),
    [
        ("dmray.reporting.tables.RAW", "raw", {"report.png"}),
        ("dmray.reporting.document._STYLE", "", {"report.png"}),
        ("dmray.mlflow_mirror.layout.GROUP_LAST", "agg/x", {"mlflow.png", "mlflow_table.png"}),
        ("dmray.rollout.pictures._WALL", "#000000", {"maze_episodes.png"}),
    ],
)
def test_other_words_or_colours_make_a_picture_stale(
    script: ModuleType,
    made_from: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    value: str,
    stale: set[str],
) -> None:
    if "GROUP_LAST" in place:  # the views were made with it
        monkeypatch.setattr("dmray.mlflow_mirror.layout.view_tags", lambda experiment: {"view": value})
    else:
        monkeypatch.setattr(place, value)
    assert {name for name, made in script.made_from().items() if made != made_from[name]} == stale
