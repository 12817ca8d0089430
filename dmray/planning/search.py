"""A search: which settings are tried in which round, and which one is chosen.

Pure functions of the sweep and of the outcomes of its trials. So a search needs no state of its own: after a kill the
same rounds follow from the ledgers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any, NamedTuple

from dmray.planning.search_space import Candidate, Group, Outcome, OutcomeOf, num_settings
from dmray.specs import SearchSpec, SweepSpec, TrialSpec


class Tried(NamedTuple):
    """A setting that was tried: its selection trials and what they say together."""

    values: dict[str, Any]
    trials: tuple[TrialSpec, ...]
    outcome: Outcome


@dataclass(frozen=True)
class GroupResult:
    """How far the search of a group is; `wanted`: the number of settings to try, `tried` in the order of proposal."""

    group: Group
    wanted: int
    tried: tuple[Tried, ...]

    @property
    def over(self) -> bool:
        return len(self.tried) >= self.wanted and all(each.outcome.state != "open" for each in self.tried)

    @property
    def chosen(self) -> Tried | None:
        """The setting with the highest score, of equals the first; None before the end, or if none finished."""
        place = best_of([each.outcome for each in self.tried]) if self.over else None
        return self.tried[place] if place is not None else None


class Searched(NamedTuple):
    """The trials of a search so far: the rounds, each after the one before has ended, then the report's trials.

    `over`: the ids of selection trials of rounds that have ended; what failed there counts as failed.
    `without_choice`: the groups of whose settings none finished.
    """

    trials: tuple[TrialSpec, ...]
    over: frozenset[str]
    without_choice: tuple[Group, ...]


def num_trials(sweep: SweepSpec, search: SearchSpec, groups: Sequence[Group]) -> tuple[int, int]:
    """The number of selection trials and of report trials of the whole search."""
    tried = sum(num_settings(search, group) * len(group.datasets) for group in groups)
    return tried * len(search.seeds), sum(len(group.datasets) for group in groups) * len(sweep.seeds)


def search_trials(sweep: SweepSpec, search: SearchSpec, groups: Sequence[Group], outcome_of: OutcomeOf) -> Searched:
    """All trials that follow from the outcomes so far."""
    rounds: list[list[list[Candidate]]] = []  # by group
    over: set[str] = set()
    report: list[TrialSpec] = []
    without_choice = []
    for group in groups:
        of_group, past = [], list[tuple[Candidate, Outcome]]()
        for number, size in enumerate(search.round_sizes(num_settings(search, group))):
            proposed = _proposed(search, group, number, size, past)
            of_group.append(proposed)
            outcomes = [together(map(outcome_of, group.trials(each, search.seeds))) for each in proposed]
            if any(outcome.state == "open" for outcome in outcomes):
                break
            over |= {trial.trial_id for each in proposed for trial in group.trials(each, search.seeds)}
            past += zip(proposed, outcomes, strict=True)
        else:
            place = best_of([outcome for _, outcome in past])
            if place is None:
                without_choice.append(group)
            else:
                report += group.trials(past[place][0], sweep.seeds)
        rounds.append(of_group)
    selection = {trial.trial_id: trial for trial in _round_by_round(search, groups, rounds)}
    return Searched((*selection.values(), *report), frozenset(over), tuple(without_choice))


def group_results(
    sweep: SweepSpec, search: SearchSpec, groups: Sequence[Group], trials: Iterable[TrialSpec], outcome_of: OutcomeOf
) -> list[GroupResult]:
    """How far each group is, by the trials of a manifest (in their order, which is that of the proposals)."""
    by_group: dict[tuple[str, str], dict[str, list[TrialSpec]]] = {}
    group_of = {(group.method, name): group for group in groups for name in group.datasets}
    for trial in trials:
        group = group_of.get((trial.method, trial.dataset.name))
        if group is not None and sweep.is_selection(trial):
            settings = by_group.setdefault((group.method, group.datasets[0]), {})
            settings.setdefault(repr(group.values_of(trial)), []).append(trial)
    return [
        GroupResult(
            group,
            num_settings(search, group),
            tuple(
                Tried(group.values_of(of_setting[0]), tuple(of_setting), together(map(outcome_of, of_setting)))
                for of_setting in by_group.get((group.method, group.datasets[0]), {}).values()
            ),
        )
        for group in groups
    ]


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """What several trials of a setting say together: the worst state; the mean score; the mean at common steps."""
    each = list(outcomes)
    common = set.intersection(*(set(one.curve) for one in each))
    curve = {step: fmean(one.curve[step] for one in each) for step in sorted(common)}
    for state in ("open", "failed", "stopped"):
        if any(one.state == state for one in each):
            return Outcome(state, None, curve)
    return Outcome("finished", fmean(one.score for one in each if one.score is not None), curve)


def best_of(outcomes: Sequence[Outcome]) -> int | None:
    """The position of the highest score of what finished, of equals the first."""
    scores = [(-outcome.score, place) for place, outcome in enumerate(outcomes) if outcome.score is not None]
    return min(scores)[1] if scores else None


def _proposed(
    search: SearchSpec, group: Group, number: int, size: int, past: Sequence[tuple[Candidate, Outcome]]
) -> list[Candidate]:
    if search.algorithm == "grid":
        return list(group.all_candidates())
    from dmray.planning.sampling import propose  # loads Optuna

    return propose(search, group, number, size, past)


def _round_by_round(
    search: SearchSpec, groups: Sequence[Group], rounds: Sequence[Sequence[Sequence[Candidate]]]
) -> Iterator[TrialSpec]:
    """Selection trials in the order in which they start: in each round seed by seed, the methods together."""
    for of_round in zip_longest(*rounds, fillvalue=()):
        for seed in search.seeds:
            for candidates in zip_longest(*of_round):
                for group, candidate in zip(groups, candidates, strict=True):
                    if candidate is not None:
                        yield from group.trials(candidate, [seed])
