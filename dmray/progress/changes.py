"""Compare a sweep file with the sweep's folder: trials that are kept, new or gone, and the fields that changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmray.errors import StorageError
from dmray.planning.manifest import read_manifest
from dmray.planning.plan import Plan
from dmray.progress.trial_status import ENDED, TrialStatus
from dmray.records import LedgerTail, SweepFolder, TrialFolder, identity_of
from dmray.specs import canonical_json

_MOST_FIELDS = 5
_APART = "New results stay apart from theirs and share no mean; to compare all, delete the folders of these trials"


@dataclass(frozen=True)
class Changes:
    """Trial counts, `done_kept` with those stopped early; `longer`: those that continue a trial with fewer steps.

    `fields` are sentences `path old -> new` of new trials against gone ones of the same place. `searching`: a
    round of a search is open, so later rounds may have trials that are counted as gone.
    """

    done_kept: int
    open_kept: int
    new: int
    gone: int
    fields: tuple[str, ...] = ()
    longer: int = 0
    searching: bool = False

    @property
    def any(self) -> bool:
        return bool(self.new or self.gone or self.longer)

    def __str__(self) -> str:
        named = ", ".join(self.fields[:_MOST_FIELDS]) + (", ..." if len(self.fields) > _MOST_FIELDS else "")
        parts = [f"{self.done_kept} done kept"]
        parts += [f"{self.open_kept} to be continued or run as before"] if self.open_kept else []
        parts += [f"{self.longer} continued with more training steps"] if self.longer else []
        parts += [f"{self.new} new{f' ({named})' if named else ''}"] if self.new else []
        gone = "gone or not proposed yet" if self.searching else "gone"
        parts += [f"{self.gone} {gone} (their folders stay)"] if self.gone else []
        return ", ".join(parts)


def changes(
    plan: Plan, folder: SweepFolder, statuses: Mapping[str, TrialStatus], extended: Mapping[str, str] | None = None
) -> Changes | None:
    """`plan` against the manifest of the folder's last start; None when it was never started.

    `extended`: the shorter trials that trials of the plan continue (`dmray.progress.extensions`).

    Raises:
        StorageError: as `read_manifest`; also when the trials of the last start have ids of another version of dmray.
    """
    if not folder.manifest.exists():
        return None
    before = {trial.trial_id: trial.model_dump(mode="json") for trial in read_manifest(folder).trials}
    now = {trial.trial_id: trial.model_dump(mode="json") for trial in plan.trials}
    # A trial that is not in the manifest may have ended before an earlier change of the sweep file.
    known = {trial_id for trial_id in now if trial_id in before or statuses[trial_id] in ENDED}
    kept = [statuses[trial_id] for trial_id in now if trial_id in known]
    done = sum(status in ENDED for status in kept)
    longer = {trial_id: shorter for trial_id, shorter in (extended or {}).items() if trial_id not in known}
    gone = {trial_id: spec for trial_id, spec in before.items() if trial_id not in {*now, *longer.values()}}
    new = {trial_id: spec for trial_id, spec in now.items() if trial_id not in {*known, *longer}}
    searching = plan.search is not None and not plan.search.over.issuperset(
        trial.trial_id for trial in plan.trials if plan.sweep.is_selection(trial)
    )
    return Changes(done, len(kept) - done, len(new), len(gone), tuple(_differences(gone, new)), len(longer), searching)


def changed_conditions(
    plan: Plan,
    folder: SweepFolder,
    fingerprints: Mapping[str, str],
    made: Mapping[str, Any],
    extended: Mapping[str, str] | None = None,
) -> list[str]:
    """Warnings that results of earlier starts will stay apart from those of this one, by the beginnings of ledgers.

    `fingerprints`: of data sets as they are now, by name. `made`: the provenance of this process. `extended`: as in
    `changes`.
    """
    data: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    code: defaultdict[str, list[str]] = defaultdict(list)
    for trial in plan.trials:
        before = _first_provenance(folder.trial((extended or {}).get(trial.trial_id, trial.trial_id)))
        now = {**made, "dataset_fingerprint": fingerprints.get(trial.dataset.name, before.get("dataset_fingerprint"))}
        if not before:
            continue
        was, new = identity_of(trial, before), identity_of(trial, now)
        if was.data != new.data:
            data[trial.dataset.name, f"{was.values()['data']}, now {new.values()['data']}"].append(trial.trial_id)
        if was.code != new.code:
            code[f"{was.values()['code']}, now {new.values()['code']}"].append(trial.trial_id)
    warnings = [
        f"{dataset}: the content of the data set has changed since {_trials(trials)} ran (fingerprint {change}). "
        f"{_APART}, or put the old file back: {_named(trials)}"
        for (dataset, change), trials in data.items()
    ]
    return warnings + [
        f"the code of dmray, torch or numpy has changed since {_trials(trials)} ran (code {change}). {_APART}, or use "
        f"the old code: {_named(trials)}"
        for change, trials in code.items()
    ]


def _first_provenance(trial: TrialFolder) -> dict[str, Any]:
    """Of the first attempt; empty without a readable one."""
    try:
        records = LedgerTail(trial.ledger, light=True).read(1)
    except (StorageError, OSError):  # whoever reads the trial says so
        return {}
    return records[0].provenance if records and records[0].kind == "attempt" else {}


def _trials(trials: Sequence[str]) -> str:
    return "1 trial" if len(trials) == 1 else f"{len(trials)} trials"


def _named(trials: Sequence[str]) -> str:
    return ", ".join(trials[:_MOST_FIELDS]) + (
        f" and {len(trials) - _MOST_FIELDS} more" if len(trials) > _MOST_FIELDS else ""
    )


def _differences(gone: Mapping[str, dict[str, Any]], new: Mapping[str, dict[str, Any]]) -> dict[str, None]:
    """The fields in which new trials differ from the most similar gone one of their data set, method and seed."""
    old = defaultdict(list)
    for spec in gone.values():
        old[_place(spec)].append(_flat(spec))
    found: dict[str, None] = {}
    for spec in new.values():
        against = [_difference(before, _flat(spec)) for before in old[_place(spec)]]
        if against:
            fewest = min(against, key=len)
            found |= dict.fromkeys(fewest)
    return found


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    paths = [path for path in new if path != "dataset.path" and old.get(path) != new[path]]
    return [f"{path} {_short(old.get(path))} -> {_short(new[path])}" for path in paths]


def _place(spec: Mapping[str, Any]) -> tuple[str, str, int]:
    return spec["dataset"]["name"], spec["method"], spec["seed"]


def _flat(spec: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in spec.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return flat


def _short(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
