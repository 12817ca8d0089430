"""`Spec`, the base class of validated, immutable values, and the hashes that identify them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen pydantic model. Unknown fields and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
