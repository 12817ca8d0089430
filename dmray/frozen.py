"""`Spec`, the base class of validated, immutable values, and the hashes that identify them."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text[:100]!a}: has a character that cannot be printed, such as a line break or a zero byte")
    return text


# A text on one line: a path, an address.
Line = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
# Numbers of steps and the like. The limit is far above any use; it refuses a number with a slip in its exponent.
Count = Annotated[int, Field(gt=0, le=10**9)]
Seconds = Annotated[float, Field(gt=0, le=1e8)]  # Python cannot wait for much longer

_MAX_EXACT = 2**53  # above this, floats skip whole numbers


# The keys of a core schema that hold schemas. Others, such as `default`, hold values.
_INNER_SCHEMAS = frozenset(("schema", "items_schema", "keys_schema", "values_schema", "choices", "definitions"))


def _with_strict_scalars(schema: Any) -> Any:
    """`schema` with strict numbers and booleans. (pydantic's option `strict` would also refuse lists for tuples.)"""
    if isinstance(schema, list):
        return [_with_strict_scalars(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in ("float", "bool"):
        return {**schema, "strict": True}
    if kind == "int":
        return core_schema.no_info_before_validator_function(_exact_int, {**schema, "strict": True})
    changed = {name: _with_strict_scalars(value) for name, value in schema.items() if name in _INNER_SCHEMAS}
    if kind == "model-fields":
        changed["fields"] = {name: _with_strict_scalars(field) for name, field in schema["fields"].items()}
    return {**schema, **changed}


def _exact_int(value: Any) -> Any:
    """A float that is exactly whole, or an integer of another library, as an int; any other value unchanged."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _MAX_EXACT else value
    if isinstance(value, bool | str | bytes | int) or not hasattr(value, "__index__"):
        return value
    try:
        return value.__index__()
    except Exception:  # noqa: BLE001 - of another library's class; an array of several numbers has the method, and raises
        return value


class Spec(BaseModel):
    """A frozen pydantic model. Unknown fields and numbers that are not finite are errors.

    Values keep their kind: text is not read as a number, and true and false are not numbers. A whole number may be
    written as a float that is exactly whole (1e6), or be a NumPy integer. Lists are read as tuples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _with_strict_scalars(handler(source))
        return schema

    def identity(self) -> dict[str, Any]:
        """The fields whose values are not the default, as JSON-like values. Ids are hashes of this.

        So a new field with a default does not change existing ids. To change the default of an existing field without
        changing ids, declare `Field(default=new, json_schema_extra={"identity_default": old})`.
        """
        content = self.model_dump(mode="json")
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            extra = field.json_schema_extra
            default = extra.get("identity_default", field.default) if isinstance(extra, dict) else field.default
            if field.is_required() or value != default:
                kept[name] = value.identity() if isinstance(value, Spec) else content[name]
        return kept


def canonical_json(value: Any) -> str:
    """The JSON text of a JSON-like value: sorted keys, no spaces, shortest floats. Equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """The SHA-256 (hex) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
