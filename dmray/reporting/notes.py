"""What a reader must know before the numbers: results that are kept apart, damaged trials, notes on the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby

from dmray.records.identity import UNKNOWN, differing_parts, section, simulator_releases
from dmray.reporting.document import Block, Bullets, Heading, Paragraph
from dmray.reporting.results import Protocol, SweepResults, TrialResult

_WHAT = {
    "data": "contents of the data set",
    "protocol": "protocols (evaluation, task, simulator)",
    "code": "versions of the code",
    "method": "versions of the package of the method",
}
_MOST_NAMED = 5
_WARNING = ("warning", "warn:")


def warnings_of(results: SweepResults) -> list[str]:
    """Sentences for the top of a report: what sets results apart, and trials whose records are damaged or mixed."""
    return [
        *_apart(results),
        *_evaluated_differently(results),
        *_same_content(results),
        *results.run_twice,
        *_mixed(results),
        *_damaged(results),
    ]


def note_blocks(results: SweepResults) -> Iterable[Block]:
    """The section on the data: each note once for each data set, warnings first; empty without a note."""
    notes = notes_on_data(results)
    if notes:
        yield Heading("Notes on the data", 2)
    for dataset, sentences in notes.items():
        yield Paragraph(f"{dataset}:")
        yield Bullets(tuple(sentences))


def notes_on_data(results: SweepResults) -> dict[str, list[str]]:
    """The notes of the readers of data sets, by the name of the data set (with its content if there are several)."""
    found: dict[str, dict[str, None]] = {}
    for comparison in results.comparisons:
        apart = tuple(part for part in comparison.apart if part == "data")
        name = comparison.dataset.name
        if comparison.identity is not None and apart:
            name = f"{name} ({comparison.identity.label(apart)})"
        for trial in comparison.trials:
            notes = trial.provenance.get("dataset_notes")
            texts = [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
            found.setdefault(name, {}).update(dict.fromkeys(texts))
    return {name: sorted(notes, key=_rank) for name, notes in found.items() if notes}


def _rank(note: str) -> bool:
    return not note.casefold().startswith(_WARNING)


def _apart(results: SweepResults) -> Iterable[str]:
    for dataset, trials in _by_dataset(results):
        identities = [trial.identity for trial in trials if trial.identity is not None]
        for part in differing_parts(identities):
            counts = Counter(identity.values()[part] or "of dmray" for identity in identities)
            listed = ", ".join(f"{value} ({count} trial{'s' if count > 1 else ''})" for value, count in counts.items())
            changed = _changes(part, counts, trials)
            yield (
                f"{dataset}: its trials ran with {len(counts)} {_WHAT[part]}: {listed}.{changed} "
                "Their results are apart: they share no mean and no comparison. To compare them, delete the folders of "
                "the others and use --resume."
            )


def _evaluated_differently(results: SweepResults) -> Iterable[str]:
    """Data sets that the sweep files evaluate in several ways."""
    protocols: dict[str, dict[Protocol, None]] = {}
    for comparison in results.comparisons:
        protocols.setdefault(comparison.dataset.name, {})[comparison.protocol] = None
    for dataset, several in protocols.items():
        if len(several) > 1:
            changed = _listed({str(place): each.settings for place, each in enumerate(several, 1)}, "in table {}")
            yield (
                f"{dataset}: the sweep files evaluate it in {len(several)} ways, which have separate tables and are "
                f"not compared. What differs: {changed}."
            )


def _flat(facts: Mapping[str, object]) -> dict[str, object]:
    """With the parts of a fact by their own names: "reference minimum"."""
    found: dict[str, object] = {}
    for name, value in facts.items():
        found |= {f"{name} {part}": each for part, each in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _same_content(results: SweepResults) -> Iterable[str]:
    """Data sets that are one under several names: aggregates would count them several times."""
    names: dict[str, dict[str, None]] = {}
    for trial in results.trials:
        if trial.identity is not None and trial.identity.data != UNKNOWN:
            names.setdefault(trial.identity.data, {})[trial.trial.dataset.name] = None
    for data, several in names.items():
        if len(several) > 1:
            yield (
                f"{', '.join(several)}: the data sets have the same content (data {data[:6]}), so results over data "
                "sets count it several times. If they are not meant to be one, check their files."
            )


def _changes(part: str, values: Iterable[str], trials: list[TrialResult]) -> str:
    """What differs between the identities with these values of `part`, by the names that people know."""
    facts = {}
    for value in values:
        known = (t for t in trials if t.identity is not None and (t.identity.values()[part] or "of dmray") == value)
        if "+" not in value and (first := next(known, None)) is not None:
            facts[value] = _facts(part, first)
    if len(facts) < 2 or part == "method":
        return ""
    if changed := _listed(facts, "in {}"):
        return f" What differs: {changed}."
    return "" if part == "data" else " The records do not say what differs."


def _listed(facts: Mapping[str, Mapping[str, str]], where: str) -> str:
    """The facts that are not equal everywhere: "envpool 0.8.4 in 3fa9c1, 0.9.0 in 77ab01; horizon ..."."""
    names = dict.fromkeys(name for each in facts.values() for name in each)
    differing = [name for name in names if len({each.get(name) for each in facts.values()}) > 1]
    return "; ".join(
        f"{name} " + ", ".join(f"{each.get(name, 'none')} {where.format(value)}" for value, each in facts.items())
        for name in differing
    )


def _facts(part: str, trial: TrialResult) -> dict[str, str]:
    """What the records of a trial say about a part of its identity."""
    made, evaluation = trial.provenance, trial.trial.evaluation
    versions, git = section(made, "versions"), section(made, "git")
    named: dict[str, object] = {}
    if part == "data":
        named = section(made, "dataset")
    elif part == "protocol":
        named = {
            **simulator_releases(made),
            **_flat(section(made, "task")),
            "decode mode": evaluation.decode,
            "episodes": evaluation.episodes,
            "evaluation seed": evaluation.seed,
            "action noise": evaluation.action_noise or None,
            "observation noise": evaluation.observation_noise or None,
        }
    elif part == "code":
        named = {name: versions.get(name) for name in ("dmray", "torch", "numpy")}
        named["git commit"] = str(git.get("commit") or "")[:7]
    return {name: str(value) for name, value in named.items() if value not in (None, "")}


def _mixed(results: SweepResults) -> Iterable[str]:
    mixed = [trial for trial in results.trials if trial.identity is not None and trial.identity.mixed]
    if mixed:
        which = "1 trial has" if len(mixed) == 1 else f"{len(mixed)} trials have"
        yield (
            f"{which} attempts of several kinds, because the data, the simulator or the code changed between them; "
            f"such a trial shares no mean with others: {_names(mixed)}."
        )


def _damaged(results: SweepResults) -> Iterable[str]:
    damaged = [trial for trial in results.trials if trial.damage is not None]
    if damaged:
        yield (
            f"{len(damaged)} of {len(results.trials)} trials have records that cannot be read, and are in no number: "
            f"{_names(damaged)}. The first: {damaged[0].damage}"
        )


def _names(trials: list[TrialResult]) -> str:
    more = f" and {len(trials) - _MOST_NAMED} more" if len(trials) > _MOST_NAMED else ""
    return ", ".join(trial.trial.trial_id for trial in trials[:_MOST_NAMED]) + more


def _by_dataset(results: SweepResults) -> Iterable[tuple[str, list[TrialResult]]]:
    """The trials by data set and settings of the evaluation: what differs in the sweep file needs no explanation."""

    def settings(trial: TrialResult) -> tuple[str, str]:
        return trial.trial.dataset.name, str(trial.protocol)

    for (dataset, *_), trials in groupby(sorted(results.trials, key=settings), key=settings):
        yield dataset, list(trials)
