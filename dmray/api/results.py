"""Read the results of sweeps, and write their report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dmray.arguments import folder_path, line, place
from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.progress.sweep_handle import locate
from dmray.records import SweepFolder
from dmray.registry import lookup, short_repr
from dmray.storage import SweepCopy, is_url, open_store
from dmray.tasks import PROTOCOLS, made_protocol

if TYPE_CHECKING:
    from dmray.reporting import ReportPaths
    from dmray.reporting.frames import Results


def load_results(*sweeps: str | Path, protocol: str | None = None) -> Results:
    """Load the results of one or several sweeps as pandas tables: `.trials`, `.scores`, `.curves`, `.episodes`.

    `sweeps`: for each sweep its folder (<storage>/<name>), its URL in an object store, or its sweep file. A trial that
    several sweeps have counts once. `protocol`: load only the trials of this protocol, for example "d4rl-mujoco".

        results = dmray.load_results("runs/quickstart")
        results.curves.pivot_table(index="step", columns="seed_group_id", values="normalized_score")
        results.episodes.groupby("method").episode_return.describe()

    Raises:
        SpecError: the protocol is unknown, or the sweeps have no trial with it.
        StorageError: there is no sweep, or a file of it is damaged. StoreUnavailableError: a store does not answer.
    """
    from dmray.reporting import collect
    from dmray.reporting.frames import Results

    if not sweeps:
        raise SpecError("sweeps: give at least one, for example runs/quickstart")
    if protocol is not None:
        known = {name: name for each in PROTOCOLS for name in (each, made_protocol(each))}
        lookup("protocol", line("protocol", protocol), known, SpecError)
    places = [locate(place("sweep", sweep)) for sweep in sweeps]
    folders = [
        SweepCopy.downloaded(storage, name).folder if is_url(storage) else SweepFolder(Path(storage), name)
        for storage, name in places
    ]
    collected = collect(*folders, protocol=protocol)
    if protocol is not None and not collected.trials:
        raise SpecError(f"protocol {protocol}: these sweeps have no trial with this protocol")
    stored = [(at[0], folder) for at, folder in zip(places, folders, strict=True) if is_url(at[0])]
    return Results(tuple(folders), collected, partial(_fetch_episode_tables, stored))


def write_report(
    *sweeps: str | Path,
    into: str | Path | None = None,
    baseline: str | None = None,
    protocol: str | None = None,
    references: Sequence[str | Path] = (),
) -> ReportPaths:
    """Write the report of one or several sweeps: report.html, report.md, tables.tex, CSV files and figures.

    `into`: the folder to write; None: <sweep>/report of the first sweep, also in its object store. `baseline`: the
    method that all others are compared with; None: each method's own baselines. `references`: CSV files of published
    results, shown beside those that come with dmray. `sweeps`, `protocol`: as in `load_results`.

        paths = dmray.write_report("runs/quickstart", into="report", baseline="dt")

    Raises:
        SpecError: the baseline or the protocol is unknown, or the sweeps have no trial of it; or a file of published
            results has a mistake, or nothing for these data sets.
        StorageError, StoreUnavailableError: as `load_results`.
    """
    results = load_results(*sweeps, protocol=protocol)
    return write_report_of(results, str(sweeps[0]), into, baseline, references)


def write_report_of(
    results: Results, first: str, into: str | Path | None, baseline: str | None, references: Sequence[str | Path] = ()
) -> ReportPaths:
    """Write the report of loaded results as `write_report` does; `first` is the first of their sweeps."""
    if isinstance(references, str) or not isinstance(references, Sequence):
        raise SpecError(f"references {short_repr(references)}: give a list, for example ['published.csv']")
    target = None if into is None else folder_path("into", into)
    if baseline is not None:
        METHODS.find(line("baseline", baseline), SpecError)
        methods = sorted({result.trial.method for result in results.collected.trials})
        if baseline not in methods:
            raise SpecError(
                f"baseline {baseline}: these sweeps have no trial of this method, but of {', '.join(methods)}"
            )
    paths = results.write_report(target, baseline, [place("references", each) for each in references])
    storage, name = locate(first)
    if into is None and is_url(storage):
        SweepCopy.for_reading(storage, name).push()
    return paths


def _fetch_episode_tables(stored: Sequence[tuple[str, SweepFolder]]) -> None:
    """Copy the episode tables of sweeps in object stores to this machine."""
    for storage, folder in stored:
        SweepCopy(open_store(storage, folder.name), folder).fetch_episode_tables()
