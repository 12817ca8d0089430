"""Ledger lines decoded without what is kept per episode, several times faster than with pydantic.

Evaluations hold a number an episode, training records come by the hundred thousand, and neither a progress view nor a
report needs all of it. The light types below are made from the records' own fields, so that a new field of a record is
there without a second declaration. All other kinds, and lines that do not fit, are read as records with all checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias, cast, get_args, get_origin

import msgspec
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dmray.records.records import (
    PER_EPISODE,
    EvaluationDone,
    LedgerRecord,
    TargetResult,
    TrainProgress,
    ledger_line,
)

LightRecord: TypeAlias = LedgerRecord
"""A record that may be a light one: the same fields and the same `kind`, without the lists of numbers per episode.

`isinstance` does not know light records; tell records apart by `kind`.
"""


def decode_light(line: bytes) -> LightRecord:
    """One line of a ledger.

    Raises:
        pydantic.ValidationError: the line is no record.
    """
    try:
        record: LightRecord = _decode(line)
        return record
    except (msgspec.MsgspecError, ValueError, RecursionError):  # another kind of record, or none at all
        return ledger_line.validate_json(line)


def _light(record: type[BaseModel], tag: str | None = None, nested: dict[type, Any] | None = None) -> Any:
    """A struct with the fields of `record`, but for those that are marked as per episode."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for name, field in record.model_fields.items():
        if name == "kind" or PER_EPISODE in field.metadata:
            continue
        kind = _light_type(field, nested or {})
        if field.is_required():
            fields.append((name, kind))
        elif field.default_factory is not None:
            fields.append((name, kind, msgspec.field(default_factory=cast(Any, field.default_factory))))
        else:
            fields.append((name, kind, field.default))
    members: dict[str, Any] = {name: value for name, value in vars(record).items() if isinstance(value, property)}
    if tag is not None:
        members["kind"] = tag
    # gc=False: these hold numbers and texts alone, and a report makes a million of them
    options: dict[str, Any] = {"tag_field": "kind", "tag": tag} if tag is not None else {}
    name = f"Light{record.__name__}"
    return msgspec.defstruct(
        name, fields, module=__name__, namespace=members, gc=False, frozen=True, kw_only=True, **options
    )


def _light_type(field: FieldInfo, nested: dict[type, Any]) -> Any:
    """The field's type with its bounds; `list[Record]` becomes a list, not empty, of the light type of that record."""
    annotation: Any = field.annotation
    if get_origin(annotation) is list and (inner := get_args(annotation)[0]) in nested:
        return cast(Any, Annotated)[cast(Any, list)[nested[inner]], msgspec.Meta(min_length=1)]
    bounds = {name: getattr(each, name) for each in field.metadata for name in ("ge", "le") if hasattr(each, name)}
    return cast(Any, Annotated)[annotation, msgspec.Meta(**bounds)] if bounds else annotation


LightTargetResult = _light(TargetResult)
LightEvaluationDone = _light(EvaluationDone, "evaluation", {TargetResult: LightTargetResult})
LightTrainProgress = _light(TrainProgress, "train")
_decode: Callable[[bytes], Any] = msgspec.json.Decoder(LightTrainProgress | LightEvaluationDone).decode
