"""`Spec`, the base of everything that is parsed and never changes, and the hashes that identify it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, validated description. Unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that make this description different from one with only default values, JSON-like.

        Ids are hashes of this. A field that is added later with a default changes no id that exists. When a default
        changes, the field keeps the default of its introduction for this purpose: declare
        `Field(default=new, json_schema_extra={"identity_default": old})`.
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
    """The one JSON text of a JSON-like value: sorted keys, no spaces, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
