"""docs/sweeps.md names every field of a sweep file with its default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dmray.methods import METHODS
from dmray.specs import SweepSpec, Varied

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"


def documented() -> list[tuple[str, str]]:
    return re.findall(r"^\| `([a-z_.*]+)` \| (.*?) \| ", PAGE.read_text(), re.MULTILINE)


def in_the_spec(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield before + name, default_of(field)
        if before + name == "grid.*.models":  # every field of every method's config
            configs = [METHODS[method].config.model_fields for method in METHODS]
            fields = {f"{before}{name}.*.{key}": each for config in configs for key, each in config.items()}
            yield from ((place, default_of(each)) for place, each in fields.items())
        inner = model_in(field.annotation)
        if inner is not None:
            item = ".*" if "tuple" in str(field.annotation) else ""
            yield from in_the_spec(inner, f"{before}{name}{item}.")


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel | tuple | dict | Varied):
        return ""
    return f"`{json.dumps(field.default).strip(chr(34))}`"


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := model_in(inner))), None)


def test_every_method_is_named() -> None:
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith("| `grid.*.methods`"))
    assert set(METHODS) <= set(re.findall(r"`([a-z+-]+)`", row))


def test_every_field_of_a_sweep_file_is_documented_with_its_default() -> None:
    assert documented() == list(in_the_spec(SweepSpec))
