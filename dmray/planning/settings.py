"""What a sweep file says about each of its trials: its sections, with the overrides that are for the trial.

A cell is one method with one entry of `models` on one data set. Its fields may have several values; a setting has one
value for each. Without a search every combination of the values is a setting that is run (see `dmray.planning.search`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from dmray.errors import SpecError
from dmray.methods import METHODS, Preset
from dmray.models import BackboneConfig
from dmray.registry import short_repr
from dmray.specs import (
    DatasetSpec,
    Domain,
    EvaluationSpec,
    Interval,
    Spec,
    SweepSpec,
    TrainingSpec,
    TrialSpec,
    domains_in,
    matches,
    parse_decode,
    shown_value,
    unmatched,
    unused_in_training,
)
from dmray.specs.mistakes import Mistake, mistakes_of
from dmray.tasks import Task

S = TypeVar("S", bound=Spec)
_SECTIONS = ("model", "training", "evaluation")
Field = tuple[str, str]  # a section and a field of it: ("training", "learning_rate")


@dataclass(frozen=True)
class Setting:
    """What a trial is, without its seed."""

    dataset: DatasetSpec
    method: str
    model: BackboneConfig
    training: TrainingSpec
    evaluation: EvaluationSpec

    def trial(self, seed: int) -> TrialSpec:
        return TrialSpec(
            dataset=self.dataset,
            method=self.method,
            model=self.model,
            seed=seed,
            training=self.training,
            evaluation=self.evaluation,
        )


@dataclass(frozen=True)
class Cell:
    """One method with one entry of `models` on one data set.

    `fields`: the values that are given, without those of `domains`, the fields that have several. `places`: where each
    field stands in the sweep file, for messages. `block`, `entry`: the positions of the block and of the entry.
    `preset`: the name of the preset that is applied; "" for none.
    """

    dataset: DatasetSpec
    task: Task
    method: str
    block: int
    entry: int
    preset: str
    fields: Mapping[Field, Any]
    domains: Mapping[Field, Domain]
    places: Mapping[Field, str]

    @property
    def size(self) -> int:
        """The number of settings.

        Raises:
            SpecError: a field has an interval, in which there are any number.
        """
        for field, domain in self.domains.items():
            if isinstance(domain, Interval):
                raise SpecError(
                    f"{self.places[field]}: an interval has no number of values; add points: n, or a 'search' section"
                )
        return prod(len(domain.values) for domain in self.domains.values())

    def settings(self) -> Iterator[Setting]:
        """All combinations of the values; the first field of the file varies slowest."""
        for values in product(*(domain.values for domain in self.domains.values())):
            yield self.setting(dict(zip(self.domains, values, strict=True)))

    def probes(self) -> Iterator[Setting]:
        """Settings in which every value, or the ends of an interval, occur; without those that do not fit."""
        first = {field: domain.values[0] for field, domain in self.domains.items()}
        others = [{**first, field: value} for field, domain in self.domains.items() for value in domain.values[1:]]
        for values in (first, *others):
            with contextlib.suppress(SpecError):
                yield self.setting(values)

    def setting(self, values: Mapping[Field, Any]) -> Setting:
        """The setting with these values for the fields of `domains`.

        Raises:
            SpecError: values that do not fit each other. The message has the place in the file.
        """
        model = self._section("model", METHODS[self.method].config, values)
        evaluation = self._section("evaluation", EvaluationSpec, values)
        problem = parse_decode(evaluation.decode).problem(model.context_length)
        if problem is not None:
            place = self.places.get(("evaluation", "decode"), "evaluation.decode")
            raise SpecError(f"{place} {evaluation.decode}: {problem}")
        return Setting(
            dataset=self.dataset,
            method=self.method,
            model=model,
            training=self._section("training", TrainingSpec, values),
            evaluation=evaluation.model_copy(
                update={
                    "target_returns": evaluation.target_returns or self.task.target_returns,
                    "return_scale": evaluation.return_scale or self.task.return_scale,
                }
            ),
        )

    def _section(self, section: str, spec: type[S], values: Mapping[Field, Any]) -> S:
        content = {field[1]: value for field, value in {**self.fields, **values}.items() if field[0] == section}
        try:
            return spec.model_validate(content)
        except ValidationError as invalid:
            raise SpecError(self._message(section, mistakes_of(invalid, spec)[0])) from None

    def _message(self, section: str, mistake: Mistake) -> str:
        name = mistake.place.partition(".")[0]
        if mistake.unknown_field:
            others = [method for method in METHODS if name in METHODS[method].config.model_fields]
            mistake = mistake._replace(
                problem=f"method '{self.method}' has no '{name}', which is a field of {', '.join(others)}; "
                "name the methods that it is for"
            )
        whole = f"grid.{self.block}.models.{self.entry}" if section == "model" else section
        place = self.places.get((section, name), whole)
        return f"{place}: {mistake.problem}" + ("" if mistake.place else f" ({self.method} on {self.dataset.name})")


def cells_of(sweep: SweepSpec, tasks: Sequence[Task]) -> list[Cell]:
    """The cells of a sweep: data set by data set, block by block, model by model; `tasks` are those of the data sets.

    Raises:
        SpecError: an override is for no trial, or a field has several values that are not written as they should be.
    """
    used: set[int] = set()
    cells = [
        _cell(sweep, dataset, task, (block, entry, preset), method, used)
        for dataset, task in zip(sweep.datasets, tasks, strict=True)
        for block, methods in enumerate(sweep.grid)
        for entry in range(len(methods.models))
        for preset in methods.preset or ("",)
        for method in methods.methods
    ]
    for place, override in enumerate(sweep.overrides):
        for number, family in enumerate(override.families):
            if not any(matches(task.family, [family]) for task in tasks):
                families = [task.family for task in tasks]
                raise SpecError(f"overrides.{place}.families.{number}: {unmatched('family', family, families)}")
        if place not in used:
            raise SpecError(f"overrides.{place}: no trial has these methods on these data sets; remove the entry")
    _refuse_without_effect(cells)
    _refuse_replaced_by_presets(sweep, cells)
    return cells


def _refuse_without_effect(cells: Sequence[Cell]) -> None:
    """Refuse a value of `training` that is for methods only that have no use for the field."""
    useful: set[str] = set()
    useless: dict[str, tuple[str, str]] = {}
    for cell in cells:
        unused = unused_in_training(METHODS[cell.method])
        for field, place in cell.places.items():
            section, name = field
            if section != "training" or name not in unused:
                useful.add(place)
            elif field in cell.domains or cell.fields[field] != TrainingSpec.model_fields[name].default:
                useless.setdefault(place, (name, cell.method))
    for place, (name, method) in useless.items():
        if place not in useful:
            users = [other for other in METHODS if name not in unused_in_training(METHODS[other])]
            raise SpecError(
                f"{place}: changes nothing for method '{method}', nor for any other one that it is given for; "
                f"it is a field for {', '.join(users)}"
            )


def _refuse_replaced_by_presets(sweep: SweepSpec, cells: Sequence[Cell]) -> None:
    """Refuse a value of the section `training` that presets replace by another one for all methods.

    A default is never refused, because the section does not say who wrote it.
    """
    for name, value in sweep.training.written.items():
        field = ("training", name)
        if value == TrainingSpec.model_fields[name].default:
            continue
        by_preset = [cell for cell in cells if cell.places[field] == f"grid.{cell.block}.preset.{name}"]
        if len(by_preset) == len(cells) and any(cell.fields[field] != value for cell in cells):
            raise SpecError(
                f"training.{name}: {short_repr(value)} is for no trial, because {by_preset[0].places[field]} gives it "
                "for every method; leave it out, or write it under 'overrides', which replace presets"
            )


def _cell(
    sweep: SweepSpec, dataset: DatasetSpec, task: Task, place: tuple[int, int, str], method: str, used: set[int]
) -> Cell:
    block, entry, preset = place
    chosen = next((each for each in METHODS[method].presets if each.name == preset), None)
    if chosen is not None:
        _check_preset(chosen, f"grid.{block}.preset", sweep)
    sections: list[tuple[str, str, Mapping[str, Any]]] = [
        ("model", f"grid.{block}.preset", chosen.model if chosen else {}),
        ("model", f"grid.{block}.models.{entry}", sweep.grid[block].models[entry]),
        ("training", "training", sweep.training.written),
        ("training", f"grid.{block}.preset", chosen.training if chosen else {}),
        ("evaluation", "evaluation", sweep.evaluation.model_dump()),
    ]
    for number, override in enumerate(sweep.overrides):
        if override.is_for(method, dataset.name, task.family):
            used.add(number)
            sections += [(name, f"overrides.{number}.{name}", getattr(override, name)) for name in _SECTIONS]
    fields: dict[Field, Any] = {}
    domains: dict[Field, Domain] = {}
    places: dict[Field, str] = {}
    specs: dict[str, type[Spec]] = {
        "model": METHODS[method].config,
        "training": TrainingSpec,
        "evaluation": EvaluationSpec,
    }
    for section, where, content in sections:
        several = {path[0]: domain for path, domain in _domains(content, specs[section], where)}
        for name, value in content.items():
            field = (section, name)
            places[field] = f"{where}.{name}"
            fields.pop(field, None)
            domains.pop(field, None)
            if name in several:
                domains[field] = several[name]
            else:
                fields[field] = value
    return Cell(dataset, task, method, block, entry, preset, fields, domains, places)


def _check_preset(preset: Preset, where: str, sweep: SweepSpec) -> None:
    """Refuse a preset whose fields are none of `training`, and one that would hide several values of the sweep."""
    try:
        TrainingSpec.model_validate(dict(preset.training))
    except ValidationError as invalid:
        raise SpecError(f"{where}: preset '{preset.name}': {mistakes_of(invalid, TrainingSpec)[0]}") from None
    for (name, *_), _ in domains_in(sweep.training.written, TrainingSpec):
        if name in preset.training:
            raise SpecError(
                f"training.{name}: has several values, but preset '{preset.name}' of {where} gives one; write them "
                "under 'overrides' for the methods that they are for"
            )


def _domains(content: Mapping[str, Any], spec: type[Spec], where: str) -> list[tuple[tuple[str, ...], Domain]]:
    try:
        return list(domains_in(content, spec))
    except PydanticCustomError as invalid:
        mistake = (invalid.context or {})["mistakes"][0]
        raise SpecError(f"{where}.{mistake.place}: {mistake.problem}") from None


def details_of(trials: Sequence[TrialSpec]) -> dict[str, str]:
    """What tells the seed groups of each method on one data set apart, by seed group: "learning_rate 3e-4, d_model 64".

    Only fields in which groups of one method differ; methods are told apart by their names. Where the fields of presets
    differ, a group that has those of a preset is named after it: "corl". `trials`: of one data set.
    """
    settings = {trial.seed_group_id: (trial, _flat(trial)) for trial in trials}
    values: dict[tuple[str, str], set[Any]] = {}
    for trial, fields in settings.values():
        for name, value in fields.items():
            values.setdefault((trial.method, name), set()).add(value)
    differing = [key for key, several in values.items() if len(several) > 1]
    with_presets = {trial.method for trial, _ in settings.values()} - {
        trial.method for trial, _ in settings.values() if trial.preset is None
    }
    listed = [name for method, name in differing if method not in with_presets or name not in preset_fields(method)]
    details = {}
    for group, (trial, fields) in settings.items():
        own = [name for method, name in differing if method == trial.method]
        names = [name for name in dict.fromkeys((*listed, *own)) if name in fields]
        of_preset = preset_fields(trial.method) & set(own) if trial.preset is not None else set()
        parts = [f"{name} {shown_value(fields[name])}" for name in names if name not in of_preset]
        details[group] = ", ".join([*([trial.preset] if trial.preset and of_preset else []), *parts])
    return details


def preset_fields(method: str) -> frozenset[str]:
    """The fields of the model and of the training that the method's presets give."""
    return frozenset(name for each in METHODS[method].presets for name in (*each.model, *each.training))


def _flat(trial: TrialSpec) -> dict[str, Any]:
    return {**trial.model.model_dump(), **trial.used_training, **trial.evaluation.model_dump()}
