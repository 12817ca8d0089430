"""The fields of a sweep file: what to run (data sets x methods x models x seeds), and where and how to run it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dmray.frozen import Count, Line, Seconds, Spec
from dmray.methods import METHODS
from dmray.registry import nearest, short, unknown
from dmray.specs.domains import Varied, check_all, domains_in, probes
from dmray.specs.early_stopping import EarlyStoppingSpec
from dmray.specs.mistakes import Mistake, mistakes_of, nested_mistakes
from dmray.specs.search import SearchSpec
from dmray.specs.trial import (
    DatasetSpec,
    EvaluationSpec,
    MethodName,
    Seed,
    Slug,
    TrainingSpec,
    TrialSpec,
)
from dmray.specs.varied_datasets import expanded_datasets

NO_MLFLOW = "off"
_EVERY = re.compile(r"every:[1-9][0-9]{0,14}")
MAX_TRIALS = 100_000
MAX_SEATS = 64  # of a pack
_RESERVED = ("datasets", "mlartifacts", "mlflow.db", "mlruns")  # beside the sweeps' folders in a storage


def _free_name(name: str) -> str:
    if name.lower() in _RESERVED:
        raise ValueError(f"the name '{name}' is reserved for a folder of the storage; choose another one")
    return name


SweepName = Annotated[Slug, AfterValidator(_free_name)]


class GridBlock(Spec):
    """Methods x models x presets. A sweep may have several blocks; a trial that is in two blocks is run once.

    Each entry of `models` has fields of the methods' configs and must be valid for every method of the block. A field
    may have several values (`dmray.specs.domains`). `preset`: one preset of the methods, or several
    (`dmray.methods.Preset`); its fields replace those of `training`, and `models` and `overrides` replace its fields.
    """

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)]
    models: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] = ({},)
    preset: tuple[str, ...] = ()

    @field_validator("preset", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def size(self) -> int:
        """The number of methods x models x presets."""
        return len(self.methods) * len(self.models) * max(len(self.preset), 1)

    @model_validator(mode="after")
    def _each_once(self) -> GridBlock:
        _check_size(self.size, "the methods x models of this block")
        _refuse_duplicates("methods", self.methods)
        _refuse_duplicates("preset", self.preset)
        first: dict[str, int] = {}
        for place, model in enumerate(self.models):
            same = first.setdefault(repr(sorted(model.items())), place)
            if same != place:
                raise ValueError(f"models: entries {same} and {place} (counted from 0) are equal; remove one")
        return self

    @model_validator(mode="after")
    def _baselines_exist(self) -> GridBlock:
        for method in self.methods:
            for baseline in METHODS[method].baselines:
                if baseline not in METHODS:
                    raise ValueError(f"the baseline of method '{method}': {unknown('method', baseline, METHODS)}")
        return self

    @model_validator(mode="after")
    def _methods_have_the_presets(self) -> GridBlock:
        problems = [problem for name in self.preset for method in self.methods for problem in _lacks(method, name)]
        if problems:
            raise nested_mistakes([Mistake("preset", problem) for problem in dict.fromkeys(problems)])
        return self

    @model_validator(mode="after")
    def _models_fit_the_methods(self) -> GridBlock:
        mistakes = [mistake for place in range(len(self.models)) for mistake in self._mistakes_in(place)]
        if mistakes:
            raise nested_mistakes(mistakes)
        return self

    def _mistakes_in(self, place: int) -> list[Mistake]:
        found: dict[Mistake, None] = {}
        for method in self.methods:
            for mistake in _mistakes_in_config(self.models[place], METHODS[method].config):
                users = self._users_of(mistake.field, self.methods) if mistake.unknown_field else []
                problem = mistake.problem
                if users:
                    problem = (
                        f"method '{method}' has no '{mistake.field}' ({', '.join(users)} of this block "
                        f"{'has' if len(users) == 1 else 'have'}); give '{method}' a block of its own in 'grid'"
                    )
                elif mistake.unknown_field and (others := self._users_of(mistake.field, METHODS)):
                    problem = f"method '{method}' has no '{mistake.field}', which is a field of {', '.join(others)}"
                where = f"models.{place}.{mistake.place}".removesuffix(".")
                found[Mistake(where, problem)] = None
        return list(found)

    def _users_of(self, field: str, methods: Iterable[str]) -> list[str]:
        return [method for method in methods if field in METHODS[method].config.model_fields]


def _lacks(method: str, preset: str) -> Iterator[str]:
    """The problem of a method that does not have the preset, if so."""
    known = [each.name for each in METHODS[method].presets]
    if known and preset not in known:
        yield f"method '{method}': {unknown('preset', preset, known)}"
    elif not known:
        others = ", ".join(name for name in METHODS if METHODS[name].presets)
        yield f"method '{method}' has no presets, which {others} have; give '{method}' a block of its own in 'grid'"


def _mistakes_in_config(model: dict[str, Any], config: type[BaseModel]) -> list[Mistake]:
    """Of each value by itself, if fields have several. (The plan knows which values come together.)"""
    found: dict[Mistake, None] = {}
    try:
        for content in probes(model, config):
            try:
                config.model_validate(content)
            except ValidationError as invalid:
                found |= dict.fromkeys(mistakes_of(invalid, config))
        if any(domains_in(model, config)):
            found = {mistake: None for mistake in found if mistake.place}
    except PydanticCustomError as invalid_domain:
        found |= dict.fromkeys((invalid_domain.context or {})["mistakes"])
    return list(found)


class OverrideSpec(Spec):
    """Other values for some of the trials: those of `methods`, on `datasets` and on the data sets of task `families`.

    Names may be patterns (`antmaze-*`). Methods that are left out are all methods; without data sets and families it is
    all data sets. `model`, `training` and `evaluation` have the fields whose values are replaced. Of two entries that
    give the same field of the same trial, the later one counts.
    """

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    model: dict[str, Any] = Field(default={})
    training: dict[str, Any] = Field(default={})
    evaluation: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _says_what_and_where(self) -> OverrideSpec:
        if not (self.methods or self.datasets or self.families):
            raise ValueError("give the methods, datasets or families that it is for; what is for all stands outside")
        if not (self.model or self.training or self.evaluation):
            raise ValueError("give the values: fields of model, training or evaluation")
        return self

    @field_validator("model")
    @classmethod
    def _fields_of_some_config(cls, model: dict[str, Any]) -> dict[str, Any]:
        _refuse_unknown(model, {name for method in METHODS.values() for name in method.config.model_fields})
        return model

    @field_validator("evaluation")
    @classmethod
    def _one_evaluation(cls, evaluation: dict[str, Any]) -> dict[str, Any]:
        _refuse_unknown(evaluation, EvaluationSpec.model_fields)
        if several := [path[0] for path, _ in domains_in(evaluation, EvaluationSpec)]:
            raise nested_mistakes([Mistake(name, "a field of evaluation has one value") for name in several])
        return evaluation

    @field_validator("training")
    @classmethod
    def _training_values_are_valid(cls, training: dict[str, Any]) -> dict[str, Any]:
        check_all(list(probes(training, TrainingSpec)), TrainingSpec)
        return training

    def is_for(self, method: str, dataset: str, family: str) -> bool:
        """Whether it gives values for the trials of `method` on `dataset`, whose task is of `family`."""
        everywhere = not (self.datasets or self.families)
        return (not self.methods or matches(method, self.methods)) and (
            everywhere or matches(dataset, self.datasets) or matches(family, self.families)
        )


def _refuse_unknown(fields: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    if mistakes := [Mistake(name, unknown("field", name, known)) for name in fields if name not in known]:
        raise nested_mistakes(mistakes)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches: `*`, `?` and `[ab]` as in a shell."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unmatched(kind: str, pattern: str, names: Iterable[str]) -> str:
    """The message for a pattern that matches none of a sweep's `names`."""
    known = list(dict.fromkeys(names))
    best = nearest(pattern, known)
    cure = f"did you mean '{best}'?" if best else f"it has {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
    return f"no {kind} of this sweep is '{short(pattern)}', {cure}"


class ResourcesSpec(Spec):
    """What a trial and the evaluation actors use of a machine. It changes the speed of a sweep, not its results.

    Two fields may change the last bits of results, as other hardware may: `torch_threads`, and `deterministic`, which
    makes training and evaluation use PyTorch's deterministic algorithms and the reference scan (several times slower).

    A trial continues to train while its evaluations run, until `max_pending_evaluations` of them are pending. Then it
    waits, or, if `when_evaluations_lag` is "skip", skips evaluations (never the last one) and records this in the
    ledger.

    A trial with a share of a GPU trains on the GPU. With `device` "cpu" it reserves the share but trains on the CPU, so
    that the scheduling of a GPU sweep can be tested on machines without GPUs (`ray start --num-gpus` declares them). On
    a GPU the training step is captured as a CUDA graph and replayed, unless `capture` is "off"; batches and checkpoints
    are the same either way. An evaluation actor with a share of a GPU runs its policy there and the simulators on its
    CPU; its actions differ from a CPU's in the last bits.

    With `trials_per_pack` P above 1 the trials on a GPU train as batched networks of P trials, in a process that they
    share (docs/sweeps.md). P changes the last bits of a trial's numbers; the other trials do not. Each trial stays a
    process with its own records, checkpoints and retries.

    `executor` "train": a Ray Train worker takes trial after trial, and the process that drives it runs on the head, so
    that it outlives a worker on a machine that is taken away. "tune" runs trials in a Ray Tune actor, one process with
    less memory. The records are the same.
    """

    executor: Literal["train", "tune"] = "train"
    cpus_per_trial: Annotated[float, Field(gt=0, le=1e5)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0, le=1e5)] = 0.0
    device: Literal["auto", "cpu"] = "auto"
    capture: Literal["auto", "off"] = "auto"
    trials_per_pack: Annotated[int, Field(ge=1, le=MAX_SEATS)] = 1
    max_concurrent_trials: Count | None = None
    torch_threads: Annotated[int, Field(gt=0, le=10_000)] = 1
    deterministic: bool = False
    evaluation_actors: Annotated[int, Field(gt=0, le=100_000)] = 1
    cpus_per_evaluation_actor: Annotated[float, Field(gt=0, le=1e5)] = 1.0
    gpus_per_evaluation_actor: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_pending_evaluations: Annotated[int, Field(gt=0, le=10**6)] = 4
    when_evaluations_lag: Literal["wait", "skip"] = "wait"

    @model_validator(mode="after")
    def _packs_can_fill(self) -> ResourcesSpec:
        seats, share = self.trials_per_pack, self.gpus_per_trial
        if seats == 1:
            return self
        if share == 0 or share >= 1:
            raise ValueError(
                f"trials_per_pack {seats}: packed trials share a GPU, but gpus_per_trial is {share:g}; give it "
                f"gpus_per_trial: {1 / seats:.4g}, or trials_per_pack: 1"
            )
        if (fitting := int(1 / share + 1e-6)) < seats:
            raise ValueError(
                f"trials_per_pack {seats}: only {fitting} trials with gpus_per_trial {share:g} fit on a GPU; give "
                f"trials_per_pack: {fitting}, or gpus_per_trial: {int(1e6 / seats) / 1e6:g}"
            )
        if self.max_concurrent_trials is not None and self.max_concurrent_trials < seats:
            raise ValueError(
                f"trials_per_pack {seats}: max_concurrent_trials {self.max_concurrent_trials} leaves seats empty; give "
                f"at least {seats}"
            )
        return self

    @property
    def trial_device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus_per_trial > 0 and self.device == "auto" else "cpu"

    @property
    def evaluation_device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus_per_evaluation_actor > 0 and self.device == "auto" else "cpu"

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"{value}: must be below 1 (a fraction of a GPU) or a whole number")
        return value


def _known_retention(text: str) -> str:
    if text not in ("last_best", "all") and not _EVERY.fullmatch(text):
        raise ValueError(f"'{short(text)}': give last_best, all, or every:N with a number of steps, as in every:10000")
    return text


class FaultSpec(Spec):
    """How many times a trial is retried after its worker or its driver process died, and how often it saves.

    With executor "tune" the worker and the driver are one process, which is restarted up to `worker_restarts` times.

    On Ray a worker that takes no training step for `no_progress_timeout_s` is killed and retried like one that died,
    and its stack traces are written to the ledger. Waiting for evaluations does not count; None: no timeout. A process
    of the sweep on Ray that has been stopped (SIGSTOP, not a debugger) for `frozen_timeout_s` is killed and replaced;
    if Ray itself does not answer for so long, the sweep ends. An evaluation actor may take ten times as long for its
    episodes as the trial's slowest so far, and always 60 seconds; its first ones may take `evaluation_timeout_s`, which
    replaces the 60 seconds too if it is less. Then it is killed and replaced, and its episodes run again. If less than
    `min_free_gib` is free on the storage, a trial stops before its next checkpoint. A sweep does not start if its
    trials would leave less than that.

    `keep_checkpoints`: which weights a trial keeps. Always those of the last state (from which more `training.steps`
    continue), of the best evaluation and of the end ("last_best"); with "every:N" also those after every N steps, with
    "all" those of each checkpoint.
    """

    worker_restarts: Annotated[int, Field(ge=0, le=10**6)] = 3
    driver_restarts: Annotated[int, Field(ge=0, le=10**6)] = 2
    checkpoint_every_steps: Count = 1000
    keep_checkpoints: Annotated[str, AfterValidator(_known_retention)] = "last_best"
    no_progress_timeout_s: Seconds | None = 3600.0
    frozen_timeout_s: Seconds | None = 30.0
    evaluation_timeout_s: Seconds = 3600.0
    min_free_gib: Annotated[float, Field(ge=0, le=1e9)] = 1.0

    @property
    def keep_every_steps(self) -> int | None:
        """The steps between two weights that are kept; None: none are."""
        if self.keep_checkpoints == "all":
            return self.checkpoint_every_steps
        _, every, steps = self.keep_checkpoints.partition("every:")
        return int(steps) if every else None


def _name_for_wandb(name: str) -> str:
    """W&B's own rule for the names of projects and groups."""
    if bad := sorted(set(name) & set("/\\#?%:")):
        raise ValueError(f"'{short(name)}': W&B allows no {bad[0]!r} in a name; leave it out")
    return name


WandbName = Annotated[Line, Field(max_length=128), AfterValidator(_name_for_wandb)]


class WandbSpec(Spec):
    """The project of Weights & Biases (W&B) to which a sweep's records are copied, one run a trial.

    `entity`: the team or the user; None: W&B's default. `group`: None: the name of the sweep. `mode` "offline" writes
    files in the sweep's folder, which `wandb sync` uploads later; None: $WANDB_MODE, else "online". The API key is in
    no sweep file: `wandb login`, or $WANDB_API_KEY.
    """

    project: WandbName
    entity: WandbName | None = None
    group: WandbName | None = None
    mode: Literal["online", "offline"] | None = None


class TrackingSpec(Spec):
    """To which trackers the records are copied. `mlflow_uri` None: an SQLite file in the storage; "off": no MLflow.

    `wandb`: a project of W&B; None: no W&B. `tensorboard`: event files for TensorBoard in the sweep's folder.
    `log_every_steps`: training steps between two training records of the ledger. `flush_every_s`: seconds between two
    updates of each tracker.
    """

    mlflow_uri: Line | None = None
    wandb: WandbSpec | None = None
    tensorboard: bool = False
    log_every_steps: Count = 100
    flush_every_s: Seconds = 2.0


class SweepSpec(Spec):
    """The whole sweep file.

    `order`: the order in which trials start. Within each data set, "methods_together" starts all methods of a seed
    first, for an early comparison of methods; "seeds_together" starts all seeds of a method and size first, for an
    early estimate of the deviation over seeds. "cheap_first" sorts all trials by their number of FLOPs.

    Fields of `training`, `models` and data sets may have several values (`dmray.specs.domains`): every combination is
    run, or with `search` some of them. A data set with several values is several data sets
    (`dmray.specs.varied_datasets`).
    """

    name: SweepName
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1)]
    grid: Annotated[tuple[GridBlock, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    training: Varied[TrainingSpec] = Varied.of(TrainingSpec())
    evaluation: EvaluationSpec = EvaluationSpec()
    overrides: tuple[OverrideSpec, ...] = ()
    search: SearchSpec | None = None
    early_stopping: EarlyStoppingSpec | None = None
    resources: ResourcesSpec = ResourcesSpec()
    faults: FaultSpec = FaultSpec()
    tracking: TrackingSpec = TrackingSpec()
    order: Literal["methods_together", "seeds_together", "cheap_first"] = "methods_together"
    storage: Line = "runs"

    @field_validator("datasets", mode="before")
    @classmethod
    def _expand_datasets(cls, value: object) -> object:
        """A string in the list is short for a data set with that name; fields with several values are several."""
        if isinstance(value, list | tuple):
            return expanded_datasets([{"name": item} if isinstance(item, str) else item for item in value])
        return value

    @model_validator(mode="after")
    def _not_too_many_trials(self) -> SweepSpec:
        configurations = sum(block.size for block in self.grid)
        size = f"{len(self.datasets)} data sets x {len(self.seeds)} seeds x {configurations} methods and models"
        _check_size(len(self.datasets) * len(self.seeds) * configurations, size)
        return self

    @model_validator(mode="after")
    def _no_duplicates(self) -> SweepSpec:
        _refuse_duplicates("datasets", [dataset.name for dataset in self.datasets])
        _refuse_duplicates("seeds", self.seeds)
        return self

    @model_validator(mode="after")
    def _search_has_seeds_of_its_own(self) -> SweepSpec:
        if self.search is None:
            return self
        if both := sorted(set(self.search.seeds) & set(self.seeds)):
            raise ValueError(
                f"search.seeds: {', '.join(map(str, both))} in 'seeds' too; a setting that was chosen on a seed has an "
                "optimistic score there, so give other seeds, for example "
                f"{max(self.seeds) + 100}"
            )
        if self.order != "methods_together":
            raise ValueError(f"order {self.order}: a search starts its trials round by round; remove the field")
        return self

    def is_selection(self, trial: TrialSpec) -> bool:
        """Whether a trial of this sweep serves to choose a setting: its scores are in no mean of the report."""
        return self.search is not None and trial.seed in self.search.seeds

    def early_stopping_of(self, trial: TrialSpec) -> EarlyStoppingSpec | None:
        """The rule that may stop `trial`; in a sweep with a search only selection trials are stopped."""
        return self.early_stopping if self.search is None or self.is_selection(trial) else None

    @model_validator(mode="after")
    def _overrides_are_for_something(self) -> SweepSpec:
        methods = [method for block in self.grid for method in block.methods]
        datasets = [dataset.name for dataset in self.datasets]
        mistakes = [
            Mistake(f"overrides.{place}.{field}.{number}", unmatched(kind, pattern, names))
            for place, override in enumerate(self.overrides)
            for field, kind, names in (("methods", "method", methods), ("datasets", "data set", datasets))
            for number, pattern in enumerate(getattr(override, field))
            if not any(matches(name, [pattern]) for name in names)
        ]
        if mistakes:
            raise ValueError("; ".join(map(str, mistakes)))
        return self


def _refuse_duplicates(kind: str, values: Sequence[object]) -> None:
    """Raise a ValueError that names the values that are given more than once."""
    duplicates = sorted(short(str(value)) for value, count in Counter(values).items() if count > 1)
    if duplicates:
        more = f" and {len(duplicates) - 5:,} more" if len(duplicates) > 5 else ""
        raise ValueError(f"{kind}: given twice: {', '.join(duplicates[:5])}{more}")


def _check_size(num_trials: int, what: str) -> None:
    if num_trials > MAX_TRIALS:
        raise ValueError(f"{what} are {num_trials:,} trials; a sweep has at most {MAX_TRIALS:,}, so divide it")
