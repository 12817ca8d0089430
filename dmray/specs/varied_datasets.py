"""Data sets of a sweep file whose fields have several values: each combination is a data set with its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from dmray.specs.domains import MOST_VALUES, Domain, Interval, Path, domains_in, shown_value, with_values
from dmray.specs.mistakes import Mistake, mistakes_of, nested_mistakes
from dmray.specs.trial import DatasetSpec


def expanded_datasets(entries: Sequence[Any]) -> tuple[Any, ...]:
    """The entries of `datasets`, each combination of several values as an entry of its own.

    Raises:
        PydanticCustomError: the mistakes in entries that have several values, with their places in the file.
    """
    found: list[Any] = []
    mistakes: list[Mistake] = []
    for place, entry in enumerate(entries):
        try:
            found += _expanded(entry)
        except PydanticCustomError as invalid:
            inner = (invalid.context or {})["mistakes"]
            mistakes += [Mistake(f"{place}.{each.place}".removesuffix("."), each.problem) for each in inner]
    if mistakes:
        raise nested_mistakes(mistakes)
    return tuple(found)


def _expanded(entry: Any) -> list[Any]:
    domains = dict(domains_in(entry, DatasetSpec)) if isinstance(entry, Mapping) else {}
    if not domains:
        return [entry]
    mistakes = [
        Mistake(".".join(path), "a data set has no intervals; add points: n, or give a list")
        for path, domain in domains.items()
        if isinstance(domain, Interval)
    ]
    size = prod(len(domain.values) for domain in domains.values())
    if size > MOST_VALUES:
        mistakes.append(Mistake("", f"{size:,} data sets; a sweep has at most {MOST_VALUES:,} trials"))
    if mistakes:
        raise nested_mistakes(mistakes)
    return [_checked(content) for content in _combinations(entry, domains)]


def _combinations(entry: Mapping[str, Any], domains: Mapping[Path, Domain]) -> Iterator[dict[str, Any]]:
    for values in product(*(domain.values for domain in domains.values())):
        chosen = dict(zip(domains, values, strict=True))
        content = with_values(entry, chosen)
        if isinstance(content.get("name"), str):
            suffixes = [_suffix(path, value) for path, value in chosen.items() if path != ("name",)]
            if suffixes and not content.keys() & {"path", "generate", "catalog"}:
                content["catalog"] = content["name"]
            content["name"] = "-".join([content["name"], *suffixes])
        yield content


def _suffix(path: Path, value: Any) -> str:
    """What the name of a data set has for one of its values: "transitions-10000"."""
    text = PurePath(value).stem if path == ("path",) and isinstance(value, str) else shown_value(value)
    return f"{path[-1]}-{re.sub(r'[^A-Za-z0-9._-]+', '_', text)}"


def _checked(content: Mapping[str, Any]) -> DatasetSpec:
    try:
        return DatasetSpec.model_validate(content)
    except ValidationError as invalid:
        raise nested_mistakes(mistakes_of(invalid, DatasetSpec)) from None
