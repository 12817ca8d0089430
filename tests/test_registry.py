from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dmray.errors import PluginError, SpecError
from dmray.plugins import forget_plugins, installed_plugins
from dmray.registry import Registry


@dataclass(frozen=True)
class Number:
    name: str
    value: int


TWO, THREE, ANOTHER_TWO = Number("two", 2), Number("three", 3), Number("two", 22)
NOT_A_NUMBER = "text"
UNNAMED, ODD_NAME = Number(None, 1), Number("../two", 2)  # type: ignore[arg-type]


def EXITS() -> Number:
    raise SystemExit(3)


def RECURSES() -> Number:
    return RECURSES()


@pytest.fixture(autouse=True)
def _plugins_of_this_test_alone() -> Iterator[None]:
    forget_plugins()
    yield
    forget_plugins()


def registry(monkeypatch: pytest.MonkeyPatch, *values: str) -> Registry[Number]:
    points = [EntryPoint(value.lower(), f"{__name__}:{value}", "dmray.numbers") for value in values]
    monkeypatch.setattr("dmray.plugins.entry_points", lambda group: [each for each in points if each.group == group])
    return Registry("number", "dmray.numbers", Number, {"one": Number("one", 1), "three": f"{__name__}:THREE"})


def test_built_in_names_come_first_then_those_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = registry(monkeypatch, "TWO")
    assert list(numbers) == ["one", "three", "two"]
    assert [number.value for number in numbers.values()] == [1, 3, 2]
    assert len(numbers) == 3


def test_an_unknown_name_is_an_error_with_the_nearest_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = registry(monkeypatch)
    with pytest.raises(KeyError):
        numbers["on"]
    with pytest.raises(SpecError, match="unknown number 'on', did you mean 'one'"):
        numbers.find("on", SpecError)


@pytest.mark.parametrize("broken", ["NO_SUCH_ATTRIBUTE", "NOT_A_NUMBER", "EXITS", "UNNAMED", "ODD_NAME", "RECURSES"])
def test_a_broken_plugin_is_named_in_a_warning_and_the_others_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    numbers = registry(monkeypatch, broken, "TWO")
    with caplog.at_level(logging.WARNING):
        assert numbers["two"].value == 2
    assert f"entry point '{broken.lower()} = " in caplog.text
    assert list(numbers) == ["one", "three", "two"]


@pytest.mark.parametrize("values", [["THREE"], ["ANOTHER_TWO", "TWO"]])
def test_a_name_that_is_taken_is_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch, values: list[str]) -> None:
    numbers = registry(monkeypatch, *values)
    with pytest.raises(PluginError, match=r"number '\w+' of entry point .* already has this name"):
        list(numbers)


def test_an_object_that_is_added_here_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = registry(monkeypatch, "TWO")
    numbers.add(Number("four", 4))
    assert numbers.add(Number("four", 44)).value == 44, "as a notebook's cell that is run again"
    assert numbers["four"].value == 44
    assert list(numbers) == ["one", "three", "two", "four"]
    assert [numbers.is_installed(name) for name in ("one", "two", "four")] == [True, True, False]
    for taken in ("one", "two"):
        with pytest.raises(PluginError, match=f"number '{taken}' already exists"):
            numbers.add(Number(taken, 5))


def test_an_object_of_another_class_cannot_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match="number 'two': must be a Number"):
        registry(monkeypatch).add("two")  # type: ignore[arg-type]


def test_a_package_with_damaged_metadata_is_named_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As pip leaves one that it could not remove: a folder without a name in it."""
    for folder, metadata in (("good-1.dist-info", "Name: good\nVersion: 1\n"), ("-ad.dist-info", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "METADATA").write_text(metadata)
        (tmp_path / folder / "entry_points.txt").write_text(f"[dmray.numbers]\nx = {__name__}:TWO\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr("dmray.plugins.entry_points", broken)
    assert list(Registry("number", "dmray.numbers", Number, {})) == ["two"]
    assert installed_plugins() == {"good": "1"}
    assert f"{tmp_path / '-ad.dist-info'}: its metadata cannot be read" in caplog.text


def broken(group: str) -> None:
    """What the standard library's function does with such a folder on the path, in some versions of Python."""
    raise TypeError("expected string or bytes-like object, got 'NoneType'")
