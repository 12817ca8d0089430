"""Changes valid inputs into invalid ones: bytes, values (YAML, JSON, checkpoints), YAML text and HDF5 files.

Every function takes a `random.Random`, so an input can be made again from its seed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import yaml

ODD_TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "../..",
        "/",
        "~",
        "~nobody",
        "-",
        "--help",
        "a/b",
        "a\\b",
        "con",
        "*",
        "**",
        "[",
        "[a",
        "{}",
    ),
    *("None", "null", "true", "nan", "inf", "-inf", "0", "-1", "010", "1e400", "0x10", "1:00", "1_000", "9" * 400),
    *("a=b", "=", "a=", "=b", "a..b", "a.b.c", "%41", "%", "%s", "{0}", "?x=1", "#", "&", "|", ";", "$HOME", "`id`"),
    *("\0", "a\0b", "\n", "\r\n", "\t", "\x1b[31mred", "\x1b]0;title\x07", "\ufeff", "\u202e", "\ud800"),
    *("é", "٣", "²", "🙂", "<script>alert(1)</script>", "[bold]", "[/]", "=1+1", "x" * 300, "x" * 70_000),
    *("s3://", "http://", "file:///etc/passwd"),
)
ODD_NUMBERS = (
    *(0, -1, 1, 2, 3, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.5, -0.5, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf),
)
ODD_VALUES = (*ODD_NUMBERS, *ODD_TEXTS, None, True, False, [], {}, [[]], [None], [1, "a"], {"": 1}, {"a": {"b": []}})


def _alias_bomb() -> str:
    """A list of nine lists of nine lists ..., ten levels deep: 3.5 billion items."""
    levels = [f"&a{level} [{','.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]
    return f"[&a0 [{','.join('1' * 9)}], {', '.join(levels)}]"


_ODD_YAML = (
    *("010", "0o17", "0x1F", "1:00", "1:30:15", "1_000", "1e3", "1e400", ".inf", "-.inf", ".nan", "yes", "off", "~"),
    *("2024-01-01", "2024-01-01T00:00:00Z", "!!null ''", "!!float 3", "!!int '5'", "!!str 5", "!!binary aGFsbG8="),
    *("!!set {a, b}", "!!omap [a: 1]", "!!python/object/apply:os.system ['true']", "!!python/name:os.system"),
    *("!unknown 1", "*nowhere", "&a [*a]", "&a {b: *a}", "{<<: {a: 1}}", "{<<: [{a: 1}, {b: 2}]}", "{<<: 5}"),
    *("{<<: *x}", "? [1, 2]", "{[1, 2]: 3}", "{{a: 1}: 2}", "{1: 2, 1: 3}", "{a: 1, a: 2}", '"\\x00"', '"\\uD800"'),
    *("'", '"', "|\n  text", ">-\n  text", "@", "`", "%", "- - - -"),
    *("[" * 300 + "]" * 300, "{a: " * 200 + "1" + "}" * 200, "[" * 5000, _alias_bomb()),
)
_MARK = "REPLACED-BY-ODD-YAML"


def mutate_bytes(rng: Random, content: bytes, changes: int = 3) -> bytes:
    """Flip, insert, delete, repeat and cut bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, changes)):
        if not data:
            return rng.randbytes(rng.randint(0, 64))
        at = rng.randrange(len(data))
        span = min(len(data) - at, 1 << rng.randint(0, 12))
        match rng.randrange(8):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 127, 128, 255, 10, 34))
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 16))
            case 3:
                del data[at : at + span]
            case 4:
                data[at:at] = data[at : at + span] * rng.randint(1, 4)
            case 5:
                del data[at:]
            case 6:
                data[at : at + span] = bytes(span)
            case 7:
                other = rng.randrange(len(data))
                data[at : at + span] = data[other : other + span]
    return bytes(data)


def mutate_value(rng: Random, value: Any, changes: int = 2, odd: Callable[[Random], Any] | None = None) -> Any:
    """A copy of nested dicts and lists with some nodes replaced, removed, renamed, repeated or wrapped."""
    copy = _copy(value)
    for _ in range(rng.randint(1, changes)):
        copy = _mutate_one(rng, copy, odd or (lambda r: _copy(r.choice(ODD_VALUES))))
    return copy


def mutate_near(rng: Random, value: Any, changes: int = 2) -> Any:
    """A copy of nested dicts and lists in which some leaves have other values of their own type: most are accepted."""
    copy = _copy(value)
    for _ in range(rng.randint(1, changes)):
        leaves = [(parent, key) for parent, key in _places(copy) if not isinstance(parent[key], dict | list)]
        if not leaves:
            return copy
        parent, key = rng.choice(leaves)
        alike = [other[its] for other, its in leaves if type(other[its]) is type(parent[key])]
        parent[key] = _near(rng, parent[key], alike)
    return copy


def _near(rng: Random, value: Any, alike: list[Any]) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((0, 1, value + 1, value - 1, 2 * value, 10 * value, -value, value // 2, 10**6, 2**31, value))
    if isinstance(value, float):
        return rng.choice((0.0, 0.5, 1.0, -value, 2 * value, value / 3, 1e-9, 1e9, math.nextafter(value, 9)))
    if value is None:
        return rng.choice((None, 0, 1, 0.5, "x", True))
    if isinstance(value, str) and rng.random() < 0.3:
        return rng.choice((f"{value}-", "x", "é", value.upper(), ""))
    return rng.choice(alike)


def mutate_yaml(rng: Random, text: str) -> bytes:
    """A YAML document with a mutated value, mutated text or mutated bytes."""
    kind = rng.randrange(10)
    if kind < 5:
        marked = mutate_value(rng, yaml.safe_load(text), odd=lambda r: r.choice((_MARK, *ODD_VALUES)))
        try:
            dumped = yaml.dump(marked, allow_unicode=True, sort_keys=False)
        except (yaml.YAMLError, RecursionError, UnicodeError, TypeError):
            dumped = text
        while _MARK in dumped:
            dumped = dumped.replace(_MARK, rng.choice(_ODD_YAML), 1)
        return dumped.encode(errors="surrogatepass")
    if kind < 9:
        lines = text.splitlines()
        for _ in range(rng.randint(1, 3)):
            _mutate_lines(rng, lines)
        return "\n".join(lines).encode(errors="surrogatepass")
    return mutate_bytes(rng, text.encode())


def mutate_json(rng: Random, text: str) -> bytes:
    """A JSON document with a mutated value or mutated bytes."""
    if rng.random() < 0.7:
        return json.dumps(mutate_value(rng, json.loads(text))).encode(errors="surrogatepass")
    return mutate_bytes(rng, text.encode())


def mutate_path(rng: Random, path: Path) -> None:
    """Replace a file by something that is no regular file, by nothing, or by a file of odd content."""
    path.unlink()
    match rng.randrange(8):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to(path)
        case 2:
            path.symlink_to(path.with_name("nowhere"))
        case 3:
            os.mkfifo(path)
        case 4:
            path.symlink_to("/dev/zero")
        case 5:
            path.write_bytes(b"")
        case 6:
            path.write_bytes(rng.randbytes(rng.randint(1, 4000)))
        case 7:
            pass


def odd_text(rng: Random, *valid: str) -> str:
    """One of the odd texts, alone or inside a valid one."""
    text = rng.choice(ODD_TEXTS)
    if valid and rng.random() < 0.6:
        whole = rng.choice(valid)
        at = rng.randint(0, len(whole))
        return whole[:at] + text + whole[at + rng.randint(0, 3) :]
    return text


def write_hdf5(rng: Random, path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An HDF5 file of `arrays` with a few faults of structure; in some cases its bytes are damaged too."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        for _ in range(rng.randint(1, 2)):
            names = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            if names:
                rng.choice(_HDF5_FAULTS)(rng, file, rng.choice(names))
    if rng.random() < 0.25:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _mutate_one(rng: Random, value: Any, odd: Callable[[Random], Any]) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return odd(rng)
    parent, key = rng.choice(places)
    match rng.randrange(9):
        case 0 | 1 | 2 | 3:
            parent[key] = odd(rng)
        case 4:
            del parent[key]
        case 5 if isinstance(parent, dict):
            renamed = odd_text(rng, str(key))
            parent[renamed] = parent.pop(key)
        case 6:
            parent[key] = [_copy(parent[key]), _copy(parent[key])]
        case 7:
            parent[key] = {"value": _copy(parent[key])}
        case _:
            other, its_key = rng.choice(places)
            parent[key] = _copy(other[its_key])
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for key, item in list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        found.append((value, key))
        found.extend(_places(item))
    return found


def _mutate_lines(rng: Random, lines: list[str]) -> None:
    if not lines:
        lines.append("")
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        case 2:
            lines[at] = " " * rng.randint(0, 6) + lines[at].lstrip()
        case 3:
            lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(_ODD_YAML)
        case 4:
            lines.insert(
                at, rng.choice(("---", "...", "%YAML 1.1", "%TAG ! tag:x,2000:", "\t", "- ", "? ", ": ", "# x"))
            )
        case 5:
            lines[at] = odd_text(rng, lines[at])


def _rename(rng: Random, file: h5py.File, name: str) -> None:
    file.move(
        name, rng.choice(("truncations", "dones", name.rstrip("s"), name.upper(), f"{name}2", "next_observations"))
    )


def _drop(rng: Random, file: h5py.File, name: str) -> None:
    del file[name]


def _retype(rng: Random, file: h5py.File, name: str) -> None:
    values = file[name][()]
    del file[name]
    kind = rng.choice(
        ("S4", "U", "complex64", "bool", "float16", "int64", "uint8", "compound", "vlen", "object", "enum")
    )
    if kind == "compound":
        file[name] = np.zeros(len(values), dtype=[("a", "f4"), ("b", "i4")])
    elif kind == "vlen":
        file.create_dataset(name, (len(values),), dtype=h5py.vlen_dtype(np.float32))
    elif kind == "object":
        file.create_dataset(name, (len(values),), dtype=h5py.ref_dtype)
    elif kind == "enum":
        file.create_dataset(name, (len(values),), dtype=h5py.enum_dtype({"no": 0, "yes": 1}))
    elif kind == "U":
        file.create_dataset(name, (len(values),), dtype=h5py.string_dtype())
    else:
        with np.errstate(all="ignore"):
            file[name] = np.abs(np.nan_to_num(values)).astype(kind)


def _reshape(rng: Random, file: h5py.File, name: str) -> None:
    values = file[name][()]
    del file[name]
    count = len(values)
    shapes: tuple[Callable[[], Any], ...] = (
        lambda: values[: count // 2],
        lambda: np.repeat(values, 2, axis=0),
        lambda: values[:, None],
        lambda: np.stack([values, values], -1),
        lambda: values.ravel()[0],
        lambda: values[:0],
        lambda: values.reshape(count, -1)[:, :0],
        lambda: values[None],
        lambda: values.T,
        lambda: h5py.Empty("f4"),
    )
    file[name] = rng.choice(shapes)()


def _spoil(rng: Random, file: h5py.File, name: str) -> None:
    values = file[name][()]
    if values.dtype.kind not in "fiub":
        return
    values = values.astype(np.float64)
    flat = values.reshape(-1)
    if len(flat):
        for _ in range(rng.randint(1, 4)):
            flat[rng.randrange(len(flat))] = rng.choice((math.nan, math.inf, -math.inf, 1e38, -1e300, 2.0, -1.0, 0.5))
    del file[name]
    file[name] = values


def _declare(rng: Random, file: h5py.File, name: str) -> None:
    rows = rng.choice((0, 1, 10**6, 3 * 10**8, 2**40))
    tail = file[name].shape[1:]
    del file[name]
    file.create_dataset(name, (rows, *tail), dtype="f4", chunks=(4096, *(max(1, size) for size in tail)))


def _link(rng: Random, file: h5py.File, name: str) -> None:
    del file[name]
    match rng.randrange(7):
        case 0:
            file[name] = h5py.SoftLink(f"/{name}")
        case 1:
            file[name] = h5py.SoftLink("/nowhere")
        case 2:
            file[name] = h5py.ExternalLink("/etc/passwd", "/x")
        case 3:
            file[name] = h5py.ExternalLink(file.filename, f"/{name}")
        case 4:
            file.create_dataset(name, (100,), dtype="f4", external=[("/etc/passwd", 0, 400)])
        case 5:
            file.create_group(name)
        case 6:
            layout = h5py.VirtualLayout((100,), "f4")
            layout[:] = h5py.VirtualSource("/tmp/nowhere.h5", "x", (100,))
            file.create_virtual_dataset(name, layout)


def _wrap(rng: Random, file: h5py.File, name: str) -> None:
    file.move(name, f"group/{name}")
    if rng.random() < 0.5:
        file[name] = h5py.SoftLink(f"/group/{name}")


_HDF5_FAULTS = (_rename, _drop, _retype, _reshape, _reshape, _spoil, _declare, _link, _link, _wrap)
