from __future__ import annotations

import math

import pytest

from dmray.specs.yaml_values import MAX_CHARACTERS, YamlError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:00", "1:00"),
        ("1_000_000", 1_000_000),
        ("1_00", "1_00"),
        ("1_000.5", 1000.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("TRUE", True),
        ("~", None),
        ("", None),
        ("=", "="),
        ("0b11", "0b11"),
        ("'5'", "5"),
        ("{1: a, null: b}", {"1": "a", "null": "b"}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("---\na: 1\n...\n", {"a": 1}),
        ("&x [1, 2]", [1, 2]),
        ("[&x {a: 1}, *x]", [{"a": 1}, {"a": 1}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_yaml(text)
    assert read == value
    assert type(read) is type(value)


def test_a_merge_key_adds_the_keys_that_the_mapping_does_not_give_itself() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\nd: {x: 8, <<: *a}\n"
    read = read_yaml(text)
    assert read["c"] == {"x": 9, "y": 2, "z": 4}, "of a list of mappings the first one wins"
    assert read["d"] == {"x": 8, "y": 2}, "the place of << does not matter"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{a: 1, a: 2}", "line 1, column 8: 'a' is given twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "'<<' is given twice"),
        ("a: {<<: 5}", "'<<' takes a mapping or a list of mappings"),
        ("[1]: 2", "a key must be text"),
        ("? {a: 1}\n: 2", "a key must be text"),
        ("&a [*a]", "the alias *a is inside the value of its own anchor"),
        ("[*a]", "the alias *a has no anchor"),
        ("a: 1\n---\nb: 2", "a second document begins"),
        ("!!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not"),
        ("!!set {a}", "is not supported"),
        ("!!binary aGk=", "is not supported"),
        ("1e400", "the number 1e400 is too large"),
        ("1" * 5000, "a number of 5000 characters"),
        ("a\0", "line 1, column 2: the character U+0000 is not allowed"),
        (r'"\ud800"', "half of a surrogate pair"),
        (r'"\U00110000"', "an escape sequence names no character"),
        ("a:\n\tb: 1", r"line 2, column 1: found character '\t'"),
        ("[" * 1000, "nested more than 50 levels deep"),
        ("a" * (MAX_CHARACTERS + 1), "1,048,577 characters"),
    ],
)
def test_what_is_not_read_is_an_error_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(YamlError) as error:
        read_yaml(text)
    assert problem in str(error.value)
    assert len(str(error.value)) < 400


def test_anchors_are_counted_with_what_they_repeat() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    with pytest.raises(YamlError, match="more than 100,000 values, counted with what aliases repeat"):
        read_yaml(bomb)
    nested = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
    with pytest.raises(YamlError, match="nested more than 50 levels deep"):
        read_yaml(nested)
