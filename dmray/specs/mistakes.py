"""Turn pydantic's validation errors into messages with the field, the value and the most similar valid one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from dmray.registry import nearest, short, short_repr

_NESTED = "nested_mistakes"


class Mistake(NamedTuple):
    """One mistake: `place` is the path of the field (`grid.0.models.0.d_model`), `problem` what is wrong with it."""

    place: str
    problem: str
    unknown_field: bool = False

    @property
    def field(self) -> str:
        """The name of the field: the last part of `place`."""
        return self.place.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" if self.place else self.problem


def mistakes_of(invalid: ValidationError, root: type[BaseModel]) -> list[Mistake]:
    """The mistakes that `root.model_validate` found, without those that follow from a mistake in an inner field."""
    return [mistake for error in _causes(invalid) for mistake in _mistakes(error, root)]


def nested_mistakes(mistakes: Sequence[Mistake]) -> PydanticCustomError:
    """An error for a validator to raise that contains several mistakes, with places inside the validated value."""
    return PydanticCustomError(_NESTED, "mistakes inside", {"mistakes": tuple(mistakes)})


def _causes(invalid: ValidationError) -> list[ErrorDetails]:
    """The errors without those that only follow from an error in an inner field (such as "tuple too short")."""
    errors = invalid.errors()
    places = [error["loc"] for error in errors]
    return [e for e in errors if not any(len(p) > len(e["loc"]) and p[: len(e["loc"])] == e["loc"] for p in places)]


# For these error types pydantic's own messages need knowledge of Python.
_WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', and begin with a letter or a digit",
    "tuple_type": "a list",
    "too_short": "a list with at least one item",
    "model_type": "a mapping of fields",
    "dict_type": "a mapping of fields",
}


def _mistakes(error: ErrorDetails, root: type[BaseModel]) -> Iterator[Mistake]:
    place = ".".join(short(str(part)) for part in error["loc"])
    kind, value = error["type"], error["input"]
    if kind == _NESTED:
        for inner in error["ctx"]["mistakes"]:
            yield Mistake(f"{place}.{inner.place}", inner.problem)
    elif kind == "extra_forbidden":
        known = _fields_at(error["loc"][:-1], root)
        best = nearest(str(error["loc"][-1]), known)
        cure = f"did you mean '{best}'?" if best else f"known: {', '.join(sorted(known))}"
        yield Mistake(place, f"unknown field, {cure}", unknown_field=True)
    elif kind == "missing":
        yield Mistake(place, "missing")
    elif kind == "literal_error":
        choices = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        yield Mistake(place, f"unknown value {short_repr(value)}, known: {', '.join(choices)}")
    elif kind == "value_error":
        yield Mistake(place, error["msg"].removeprefix("Value error, "))
    else:
        wanted = f"Input should be {_WANTED[kind]}" if kind in _WANTED else error["msg"]
        yield Mistake(place, f"{wanted}, not {written(value)}")


def written(value: object) -> str:
    """A value as a sweep file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return short_repr(list(value) if isinstance(value, tuple) else value)


def _fields_at(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    model = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)
