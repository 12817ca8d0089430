"""The report's section on a search: what was tried, what was chosen, and by which scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from dmray.methods import METHODS
from dmray.planning.search import GroupResult, Tried
from dmray.reporting.document import Block, Bullets, Heading, Image, Paragraph, Table, TableCell
from dmray.reporting.figures import draw_search
from dmray.reporting.results import SearchResult, SweepResults
from dmray.specs import shown_value

_NOTHING, _MOST_NAMED = "-", 3
_ENDS = {"finished": "finished", "stopped": "stopped early", "failed": "failed or diverged", "open": "not ended"}


def search_figures(results: SweepResults, folder: Path) -> dict[tuple[str, str], Path]:
    """Draw the best selection score so far against the number of settings tried; by sweep and data sets."""
    drawn = {}
    for result in results.searches:
        for place, (where, groups) in enumerate(_by_datasets(result).items()):
            path = folder / f"search-{result.sweep.name}-{place + 1}.png"
            curves = {group.group.method: best_so_far(group) for group in groups}
            if draw_search(f"search on {where}", f"best selection score ({result.search.by})", curves, path):
                drawn[result.sweep.name, where] = path
    return drawn


def best_so_far(group: GroupResult) -> list[float | None]:
    """After each setting the highest selection score so far; None while none has finished."""
    best: float | None = None
    curve = []
    for tried in group.tried:
        score = tried.outcome.score
        best = best if score is None else score if best is None else max(best, score)
        curve.append(best)
    return curve


def search_blocks(results: SweepResults, figures: Mapping[tuple[str, str], Path]) -> Iterable[Block]:
    """The section on the searches of the sweeps; empty without one."""
    if not results.searches:
        return
    yield Heading("Search", 2)
    for result in results.searches:
        yield Paragraph(_how(result))
        if unlike := tuple(_unlike(result)):
            yield Bullets(unlike)
        for where, groups in _by_datasets(result).items():
            yield _table(where, groups, result.search.by)
            if (result.sweep.name, where) in figures:
                yield Image(figures[result.sweep.name, where], f"best selection score by settings tried, {where}")


def search_columns(results: SweepResults) -> pa.Table:
    """One row for each setting that was tried, in the order of proposal (`search.csv`)."""
    rows: list[dict[str, object]] = []
    for result in results.searches:
        for group in result.groups:
            for place, tried in enumerate(group.tried):
                rows.append(
                    {
                        "sweep": result.sweep.name,
                        "method": group.group.method,
                        "datasets": " ".join(group.group.datasets),
                        "number": place + 1,
                        "seeds": " ".join(str(seed) for seed in dict.fromkeys(trial.seed for trial in tried.trials)),
                        "outcome": _ENDS[tried.outcome.state],
                        "selection_score": tried.outcome.score,
                        "chosen": tried is group.chosen,
                        **{name: str(value) for name, value in tried.values.items()},
                        "trial_ids": " ".join(trial.trial_id for trial in tried.trials),
                    }
                )
    columns = dict.fromkeys(name for row in rows for name in row)  # methods search different fields
    return pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])


def _how(result: SearchResult) -> str:
    search = result.search
    tried = "all settings" if search.settings is None else f"{search.settings} settings"
    unit = "each method on each data set" if search.choose == "per_dataset" else "each method, over all data sets"
    rounds = "" if search.settings is None else f" in {_count(len(search.round_sizes(search.settings)), 'round')}"
    drawn = "" if search.algorithm == "grid" else f" (seed {search.seed})"
    selection, report = (
        f"seed{'s' * (len(each) > 1)} {', '.join(map(str, each))}" for each in (search.seeds, result.sweep.seeds)
    )
    score = f"{'mean over' if len(search.seeds) > 1 else 'with'} selection {selection}"
    return (
        f"Sweep {result.sweep.name}: {tried} of {unit}, proposed by {search.algorithm}{rounds}{drawn}. "
        f"The setting with the highest {search.by} normalized score ({score}) was chosen; "
        f"of equals the first. Of its trials only those with {report} are compared below: selection trials are in "
        "no mean. search.csv has all settings."
    )


def _unlike(result: SearchResult) -> Iterable[str]:
    """What a reader must know before the methods are compared: a search that was longer for some, or is not over."""
    numbers = Counter({METHODS[each.group.method].label: len(each.tried) for each in result.groups})
    if len(set(numbers.values())) > 1:
        listed = ", ".join(f"{label} {number}" for label, number in numbers.items())
        yield f"The methods were not searched for equally long: {listed} settings. More settings favour a method."
    for group in result.groups:
        where = f"{METHODS[group.group.method].label} on {_where(group)}"
        if not group.over:
            ended = sum(tried.outcome.state != "open" for tried in group.tried)
            yield f"The search of {where} is not over: {ended} of {group.wanted} settings have ended."
        elif group.chosen is None:
            yield f"No setting of {where} finished, so none was chosen."


def _table(where: str, groups: Iterable[GroupResult], by: str) -> Table:
    rows = []
    for group in groups:
        counts = Counter(tried.outcome.state for tried in group.tried)
        chosen = group.chosen
        score = chosen.outcome.score if chosen is not None else None
        rows.append(
            (
                TableCell(METHODS[group.group.method].label),
                TableCell(str(len(group.tried))),
                *(TableCell(str(counts[state])) for state in ("finished", "stopped", "failed")),
                TableCell(_NOTHING if score is None else f"{score:z.1f}"),
                TableCell(_NOTHING if chosen is None else _setting(chosen)),
            )
        )
    columns = (
        *("method", "tried", "finished", "stopped early", "failed or diverged"),
        *(f"selection score ({by})", "chosen setting"),
    )
    return Table(f"Search on {where}", columns, tuple(rows))


def _setting(tried: Tried) -> str:
    return ", ".join(f"{name} {shown_value(value)}" for name, value in tried.values.items()) or "the only one"


def _by_datasets(result: SearchResult) -> dict[str, list[GroupResult]]:
    found: dict[str, list[GroupResult]] = {}
    for group in result.groups:
        found.setdefault(_where(group), []).append(group)
    return found


def _where(group: GroupResult) -> str:
    names = group.group.datasets
    return f"all {len(names)} data sets" if len(names) > _MOST_NAMED else ", ".join(names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
