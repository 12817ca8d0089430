"""Proposals of settings by Optuna. The only module that imports it.

Each round has a study of its own, in memory: the settings of earlier rounds are added with their outcomes, and a
sampler that is seeded by the search, the group and the round proposes the next ones. So the proposals of a round are a
function of these, whatever happened between.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import optuna

from dmray.errors import SpecError
from dmray.planning.search_space import Candidate, Group, Outcome
from dmray.planning.settings import Field
from dmray.specs import Domain, Interval, SearchSpec, content_hash

_TRIES, _TRIES_IF_FINITE = 100, 10  # for each setting; then the rest is taken in the order of the file
_DIGITS = 4  # of drawn numbers: enough, and the same on every machine
_ENTRY = "models"
_Distribution = (
    optuna.distributions.IntDistribution
    | optuna.distributions.FloatDistribution
    | optuna.distributions.CategoricalDistribution
)


def propose(
    search: SearchSpec, group: Group, number: int, size: int, past: Sequence[tuple[Candidate, Outcome]]
) -> list[Candidate]:
    """`size` settings of round `number` (from 0) that were not tried before; `past` are those of earlier rounds.

    Settings whose values do not fit each other are not proposed. What was stopped early counts by its scores so far,
    below all that finished; what failed counts as the worst.

    Raises:
        SpecError: the group has not so many settings.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = _Space(group)
    study = optuna.create_study(direction="maximize", sampler=_sampler(search, group, number, size))
    for candidate, outcome in past:
        study.add_trial(space.recorded(candidate, outcome))
    tried = {_key(group, candidate) for candidate, _ in past}
    problems: list[SpecError] = []

    def is_new(candidate: Candidate) -> bool:
        try:
            key = _key(group, candidate)
        except SpecError as problem:  # values that do not fit each other
            problems.append(problem)
            return False
        new = key not in tried
        tried.add(key)
        return new

    found: list[Candidate] = []
    for _ in range(size * (_TRIES if group.size is None else _TRIES_IF_FINITE)):
        if len(found) == size:
            return found
        trial = study.ask()
        candidate = space.drawn(trial)
        if is_new(candidate):
            found.append(candidate)  # its trial stays open, so that the sampler proposes other ones
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    rest = group.all_candidates() if group.size is not None else iter(())
    found += islice(filter(is_new, rest), size - len(found))
    if len(found) < size:
        raise SpecError(
            f"search.settings: only {len(past) + len(found)} settings of {group} were found that differ and whose "
            "values fit each other; give fewer settings, or more values" + (f" ({problems[-1]})" if problems else "")
        )
    return found


def _sampler(search: SearchSpec, group: Group, number: int, size: int) -> optuna.samplers.BaseSampler:
    seed = int(content_hash([search.seed, group.method, list(group.datasets), number])[:8], 16)
    if search.algorithm == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=size, multivariate=False, constant_liar=True)


def _key(group: Group, candidate: Candidate) -> str:
    return " ".join(trial.trial_id for trial in group.trials(candidate, [0]))


class _Space:
    """The parameters of a group in Optuna's terms: `models` for the entry, and `section.field` for each domain.

    A list of values is a parameter that is the position of the value: a whole number if the values are ascending
    numbers, so that neighbours are known to be neighbours, else a category.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._entries = len(group.cells)

    def drawn(self, trial: optuna.Trial) -> Candidate:
        entry = trial.suggest_categorical(_ENTRY, list(range(self._entries))) if self._entries > 1 else 0
        domains = self._group.domains(entry)
        return Candidate(
            entry, tuple((field, self._draw(trial, entry, field, domain)) for field, domain in domains.items())
        )

    def recorded(self, candidate: Candidate, outcome: Outcome) -> optuna.trial.FrozenTrial:
        """A setting that was tried, with its outcome."""
        entry, domains = candidate.entry, self._group.domains(candidate.entry)
        params: dict[str, Any] = {_ENTRY: entry} if self._entries > 1 else {}
        distributions: dict[str, optuna.distributions.BaseDistribution] = (
            {_ENTRY: optuna.distributions.CategoricalDistribution(range(self._entries))} if self._entries > 1 else {}
        )
        for field, value in candidate.values:
            name, domain = self._name(entry, field), domains[field]
            params[name] = value if isinstance(domain, Interval) else _position(domain, value)
            distributions[name] = _distribution(domain)
        finished = outcome.state == "finished"
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if finished else optuna.trial.TrialState.PRUNED,
            value=outcome.score if finished else None,
            params=params,
            distributions=distributions,
            # Optuna takes a pruned trial without scores as the worst
            intermediate_values=dict(outcome.curve) if outcome.state == "stopped" else {},
        )

    def _draw(self, trial: optuna.Trial, entry: int, field: Field, domain: Domain) -> Any:
        name, distribution = self._name(entry, field), _distribution(domain)
        drawn: Any
        if isinstance(distribution, optuna.distributions.IntDistribution):
            drawn = trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
        elif isinstance(distribution, optuna.distributions.FloatDistribution):
            drawn = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        else:
            drawn = trial.suggest_categorical(name, distribution.choices)
        if not isinstance(domain, Interval):
            return domain.values[drawn]
        return int(drawn) if domain.whole else min(max(float(f"{drawn:.{_DIGITS}g}"), domain.low), domain.high)

    def _name(self, entry: int, field: Field) -> str:
        """Entries share a parameter if they have the same domain."""
        domain = self._group.domains(entry)[field]
        first = next(other for other in range(self._entries) if self._group.domains(other).get(field) == domain)
        return ".".join(field) if first == 0 else f"{'.'.join(field)} of {first}"


def _distribution(domain: Domain) -> _Distribution:
    if isinstance(domain, Interval):
        if domain.whole:
            return optuna.distributions.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
        return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    places = len(domain.values)
    if _ascending(domain.values):
        return optuna.distributions.IntDistribution(0, places - 1)
    return optuna.distributions.CategoricalDistribution(range(places))


def _ascending(values: Sequence[Any]) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and list(values) == sorted(values)


def _position(domain: Domain, value: Any) -> int:
    return next(place for place, each in enumerate(domain.values) if each == value and type(each) is type(value))
