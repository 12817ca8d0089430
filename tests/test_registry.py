from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from dmray.errors import DmrayError, PluginError, SpecError
from dmray.registry import Registry


def registry(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> Registry[int]:
    points = [EntryPoint(name, value, "dmray.numbers") for name, value in entries]
    monkeypatch.setattr(
        "dmray.registry.entry_points", lambda group: [point for point in points if point.group == group]
    )
    return Registry("number", "dmray.numbers", int, {"one": 1, "maximum": "sys:maxsize"})


def test_built_in_names_come_first_and_are_imported_when_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = registry(monkeypatch, ("zero", "os:EX_OK"))
    assert list(numbers) == ["one", "maximum", "zero"]
    assert (numbers["one"], numbers["maximum"] > 2**31, numbers["zero"], len(numbers)) == (1, True, 0, 3)


def test_an_unknown_name_is_an_error_with_the_nearest_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = registry(monkeypatch)
    with pytest.raises(KeyError):
        numbers["on"]
    with pytest.raises(SpecError, match="unknown number 'on', did you mean 'one'"):
        numbers.find("on", SpecError)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("bad", "no.such.module:x"), "'dmray.numbers' bad = no.such.module:x: cannot be imported: ModuleNotFound"),
        (("bad", "os:no_such_attribute"), "cannot be imported: AttributeError"),
        (("bad", "os:sep"), "is a str, not a int"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_still_work(
    monkeypatch: pytest.MonkeyPatch, entry: tuple[str, str], said: str
) -> None:
    numbers = registry(monkeypatch, entry, ("zero", "os:EX_OK"))
    with pytest.raises(PluginError, match=said):
        numbers["bad"]
    assert numbers["zero"] == 0
    assert "bad" in numbers


@pytest.mark.parametrize("names", [["one"], ["two", "two"]])
def test_two_packages_with_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    numbers = registry(monkeypatch, *((name, "os:EX_OK") for name in names))
    with pytest.raises(PluginError, match=f"adds the number '{names[0]}'"):
        list(numbers)


def test_plugin_errors_are_for_users() -> None:
    assert issubclass(PluginError, DmrayError)
