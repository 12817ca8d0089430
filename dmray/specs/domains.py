"""Several values for one field of a sweep file.

    [1e-4, 3e-4]                               these values (for a field whose own value is not a list)
    {choices: [1e-4, 3e-4]}                    the same
    {range: [10, 50, 20]}                      10, 30, 50; the step is 1 if it is left out
    {uniform: [0, 0.1]}                        any number between, for a search
    {log_uniform: [1e-5, 1e-3]}                the same; each order of magnitude is equally likely
    {log_uniform: [1e-5, 1e-3], points: 3}     1e-5, 1e-4, 1e-3: evenly spaced

A field that takes whole numbers gets whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

from dmray.frozen import Spec
from dmray.registry import nearest, short, short_repr
from dmray.specs.mistakes import Mistake, mistakes_of, nested_mistakes

S = TypeVar("S", bound=Spec)
Path = tuple[str, ...]  # of a field inside a section: ("generate", "transitions")
MOST_VALUES = 100_000  # of one field
_WORDS = ("choices", "range", "uniform", "log_uniform", "points")
_DIGITS = 6  # of computed numbers: more would differ between machines in the last bits


@dataclass(frozen=True)
class Values:
    """A finite domain: its values in the order of the file."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`; with `whole` only whole ones. `log`: sampled evenly in the logarithm."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def values(self) -> tuple[Any, ...]:
        """Its ends, which a check of its values looks at."""
        return self.low, self.high


Domain = Values | Interval


def describes_domain(value: object) -> bool:
    """Whether a mapping is written as several values for a field. No section of a sweep file has fields so named."""
    return isinstance(value, Mapping) and any(word in value for word in _WORDS)


def domain_of(value: Any, annotation: Any) -> Domain | None:
    """The domain that `value` describes, for a field of that type; None if `value` is a plain value of the field.

    Raises:
        ValueError: a domain that is not written as above.
    """
    kinds = set(_kinds(annotation))
    if isinstance(value, list | tuple):
        return None if kinds & {list, tuple} else _choices(value)
    if not isinstance(value, Mapping) or dict in kinds or any(issubclass(kind, BaseModel) for kind in kinds):
        return None
    for word in value:
        if word not in _WORDS:
            best = nearest(str(word), _WORDS)
            cure = f"did you mean '{best}'?" if best else "known: " + ", ".join(_WORDS)
            raise ValueError(f"unknown word '{short(str(word))}' for several values, {cure}")
    words = [word for word in value if word != "points"]
    if len(words) != 1:
        raise ValueError(f"give one of {', '.join(_WORDS[:-1])} (with one of the last two also points: n)")
    word, whole = words[0], int in kinds and float not in kinds
    if word in ("uniform", "log_uniform"):
        interval = _interval(word, value[word], whole)
        return _points(interval, value["points"]) if "points" in value else interval
    if "points" in value:
        raise ValueError(f"points belongs to uniform and log_uniform; {word} has its own number of values")
    return _choices(value[word]) if word == "choices" else _range(value[word])


def domains_in(content: Mapping[str, Any], spec: type[BaseModel]) -> Iterator[tuple[Path, Domain]]:
    """The fields of `content`, a mapping for `spec`, that have several values; those of inner mappings too.

    Raises:
        PydanticCustomError: domains that are not written as above, each with its place in `content`.
    """
    mistakes = []
    for name, value in content.items():
        field = spec.model_fields.get(name)
        kinds = _kinds(field.annotation) if field else ()
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is not None and isinstance(value, Mapping):
            yield from (((name, *path), domain) for path, domain in domains_in(value, inner))
            continue
        try:
            domain = domain_of(value, field.annotation) if field else None
        except ValueError as problem:
            mistakes.append(Mistake(name, str(problem)))
            continue
        if domain is not None:
            yield (name,), domain
    if mistakes:
        raise nested_mistakes(mistakes)


def with_values(content: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """A copy of `content` with each field of `values` set."""
    changed = dict(content)
    for path, value in values.items():
        inner = {path[1:]: value}
        changed[path[0]] = with_values(changed[path[0]], inner) if len(path) > 1 else value
    return changed


def probes(content: Mapping[str, Any], spec: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """`content` with the first value of each domain, then with each further value of one of them: all values occur."""
    domains = dict(domains_in(content, spec))
    first = with_values(content, {path: domain.values[0] for path, domain in domains.items()})
    yield first
    for path, domain in domains.items():
        yield from (with_values(first, {path: value}) for value in domain.values[1:])


class Varied(Generic[S]):
    """A section of a sweep file: a spec whose fields may have several values each. Do not change it.

    `fields` has all fields of the spec, a domain where there are several values; `written` as they are in the file.
    (Not a dataclass: pydantic would not ask a generic one for its schema.)
    """

    def __init__(self, fields: Mapping[str, Any], written: Mapping[str, Any]) -> None:
        self.fields, self.written = fields, written

    @classmethod
    def of(cls, spec: S) -> Varied[S]:
        """With one value for each field."""
        return cls(spec.model_dump(), spec.model_dump(mode="json"))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (spec,) = get_args(source)
        return core_schema.no_info_wrap_validator_function(
            partial(cls._parse, spec),
            handler(spec),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda varied: dict(varied.written)),
        )

    @classmethod
    def _parse(cls, spec: type[S], value: Any, handler: ValidatorFunctionWrapHandler) -> Varied[S]:
        if isinstance(value, Varied):
            return value
        if not isinstance(value, Mapping):
            return cls.of(handler(value))
        domains = {path[0]: domain for path, domain in domains_in(value, spec)}
        first, *others = probes(value, spec)
        base = cls.of(handler(first))
        check_all(others, spec)
        written = {name: value[name] if name in domains else plain for name, plain in base.written.items()}
        return cls({**base.fields, **domains}, written)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Varied) and self.written == other.written

    def __hash__(self) -> int:
        return hash(repr(self.written))

    def __repr__(self) -> str:
        return f"Varied({dict(self.written)!r})"


def check_all(contents: Sequence[Mapping[str, Any]], spec: type[BaseModel]) -> None:
    """Raise a PydanticCustomError with all mistakes in `contents`, mappings for `spec`."""
    found: dict[Mistake, None] = {}
    for content in contents:
        try:
            spec.model_validate(content)
        except ValidationError as invalid:
            found |= dict.fromkeys(mistakes_of(invalid, spec))
    if found:
        raise nested_mistakes(list(found))


def shown_value(value: Any) -> str:
    """A value of a field for people: 3e-4 for 0.0003."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        mantissa, e, exponent = f"{value:.3e}".partition("e")
        short_one = f"{value:g}"
        return f"{mantissa.rstrip('0').rstrip('.')}{e}{int(exponent)}" if 0 < abs(value) < 0.01 else short_one
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown_value, value))}]"
    return str(value)


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes in an annotation: int and NoneType of `Annotated[int, ...] | None`, tuple of `tuple[float, ...]`."""
    origin = get_origin(annotation)
    if isinstance(annotation, type) and origin is None:
        yield annotation
    elif origin in (list, tuple, dict):
        yield origin
    else:
        for inner in get_args(annotation):
            yield from _kinds(inner)


def _choices(values: Any) -> Values:
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"choices: give a list with at least one value, not {short_repr(values)}")
    kept: dict[str, Any] = {}
    for value in values:
        key = repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
        if key in kept:
            raise ValueError(f"the value {shown_value(value)} is given twice")
        kept[key] = value
    return Values(tuple(values))


def _range(bounds: Any) -> Values:
    numbers = _numbers("range", bounds, (2, 3))
    low, high, step = (Decimal(repr(number)) for number in (*numbers, 1)[:3])
    written = short_repr(list(bounds))
    if step <= 0 or high < low:
        raise ValueError(f"range {written}: give [low, high, step] with low <= high and a step above 0")
    count, rest = divmod(high - low, step)
    if rest:
        raise ValueError(
            f"range {written}: steps of {step} lead from {low} to {low + count * step}, not {high}; "
            "write that as the end"
        )
    if count >= MOST_VALUES:
        raise ValueError(f"range {written}: more than {MOST_VALUES:,} values")
    whole = all(isinstance(number, int) for number in numbers)
    values = (low + place * step for place in range(int(count) + 1))
    return Values(tuple(int(value) if whole else float(value) for value in values))


def _interval(word: str, bounds: Any, whole: bool) -> Interval:
    low, high = _numbers(word, bounds, (2,))
    if not low < high or (word == "log_uniform" and low <= 0):
        above = " and low above 0" if word == "log_uniform" else ""
        raise ValueError(f"{word} {short_repr(list(bounds))}: give [low, high] with low < high{above}")
    if whole:
        if low != int(low) or high != int(high):
            raise ValueError(f"{word} {short_repr(list(bounds))}: the field takes whole numbers; give whole ends")
        low, high = int(low), int(high)
    return Interval(low, high, word == "log_uniform", whole)


def _points(interval: Interval, count: Any) -> Values:
    if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= MOST_VALUES:
        raise ValueError(f"points: give a whole number from 2 to {MOST_VALUES:,}, not {short_repr(count)}")
    low, high = interval.low, interval.high
    shares = [place / (count - 1) for place in range(1, count - 1)]
    between = [low * (high / low) ** share if interval.log else low + (high - low) * share for share in shares]
    rounded = [round(value) if interval.whole else float(f"{value:.{_DIGITS}g}") for value in between]
    values = (low, *rounded, high)
    if len(set(values)) < count:
        raise ValueError(f"points: {count} of the whole numbers from {low} to {high} are not all different; give fewer")
    return Values(values)


def _numbers(word: str, bounds: Any, counts: tuple[int, ...]) -> list[Any]:
    names = " or ".join("[low, high]" if count == 2 else "[low, high, step]" for count in counts)
    if not isinstance(bounds, list | tuple) or len(bounds) not in counts:
        raise ValueError(f"{word}: give {names}, not {short_repr(bounds)}")
    for number in bounds:
        if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1e15:
            raise ValueError(f"{word}: {short_repr(number)} is not a number; give {names}")
    return list(bounds)
