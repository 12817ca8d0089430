"""What a reader must know before the numbers: results that are kept apart, damaged trials, notes on the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from dmray.records.identity import UNKNOWN, differing_parts, section, simulator_releases
from dmray.reporting.document import Block, Bullets, Heading, Paragraph
from dmray.reporting.results import SweepResults, TrialResult

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
    return [*_apart(results), *_same_content(results), *results.run_twice, *_mixed(results), *_damaged(results)]


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
            listed = ", ".join(
                f"{value}{_details(part, value, trials)} ({count} trial{'s' if count > 1 else ''})"
                for value, count in counts.items()
            )
            yield (
                f"{dataset}: its trials ran with {len(counts)} {_WHAT[part]}: {listed}. Their results are apart: they "
                "share no mean and no comparison. To compare them, delete the folders of the others and use --resume."
            )


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


def _details(part: str, value: str, trials: list[TrialResult]) -> str:
    """What people know a digest by."""
    first = next((t for t in trials if t.identity is not None and t.identity.values()[part] == value), None)
    if first is None or first.identity is None or "+" in value:
        return ""
    versions, git = section(first.provenance, "versions"), section(first.provenance, "git")
    named: dict[str, object] = {}
    if part == "protocol":
        named = {**simulator_releases(first.provenance)}
    elif part == "code":
        named = {
            "dmray": versions.get("dmray"),
            "torch": versions.get("torch"),
            "git": str(git.get("commit") or "")[:7],
        }
    text = ", ".join(f"{name} {version}" for name, version in named.items() if version)
    return f" = {text}" if text else ""


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

    def settings(trial: TrialResult) -> tuple[str, str, int, int]:
        evaluation = trial.trial.evaluation
        return trial.trial.dataset.name, evaluation.decode, evaluation.episodes, evaluation.seed

    for (dataset, *_), trials in groupby(sorted(results.trials, key=settings), key=settings):
        yield dataset, list(trials)
