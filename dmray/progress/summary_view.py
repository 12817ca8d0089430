"""Show a sweep's progress on a terminal or in a log, from the driver or from another shell."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from dmray.coordination.sweep_lock import describe_missing_driver
from dmray.errors import StorageError
from dmray.escaping import one_line
from dmray.progress.news import News
from dmray.progress.progress import Follower
from dmray.progress.summary import CurrentPhase, Summary, TrialRow, summarize
from dmray.records.metrics import Metric, shown_metrics
from dmray.terminal import LOG_TIME, FittingTable, folded

_log = logging.getLogger(__name__)
_MOST_ROWS, _BAR_COLUMNS = 12, 60
_OTHER_LINES = 10  # of the live view, beside the rows
_LOOK_EVERY_S, _SUMMARY_EVERY_S = 1.0, 300.0
_ORDERS = {"pause": "paused", "stop": "stopping", "kill": "killed"}


def line(summary: Summary) -> str:
    """The sweep in one line."""
    return ", ".join([*_counts(summary), *_speed(summary), *_evaluations(summary), *_eta(summary)])


def text(summary: Summary) -> str:
    """The sweep in plain lines: the driver, the whole, the trials that run, those that failed."""
    lines = [f"{summary.sweep}: {_driver(summary)}", *_now(summary.phase), line(summary)]
    lines += _search(summary)
    lines += [f"running: {row.trial}: {', '.join(_details(row))}" for row in summary.running[:_MOST_ROWS]]
    lines += _rest(len(summary.running) - _MOST_ROWS, "running")
    lines += [f"failed: {row.trial}: {row.error}" for row in summary.failures]
    return "\n".join(map(one_line, lines))


def _search(summary: Summary) -> list[str]:
    return ["the search is not over: more trials follow from these scores"] if summary.search_open else []


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; a dash where they are not known."""
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))


def rate(per_s: float) -> str:
    """A speed with two digits at least."""
    return f"{per_s:z,.0f}" if per_s >= 10 or per_s == 0 else f"{per_s:.2g}"


def _counts(summary: Summary) -> list[str]:
    counts = summary.statuses
    others = ("paused", "interrupted", "diverged", "stopped_early")
    order = [_ORDERS[summary.order]] if summary.at_work and summary.order in _ORDERS else []
    return [
        *order,
        f"{counts['finished'] + counts['diverged']}/{summary.trials} trials done",
        f"{counts['running']} running",
        *(f"{counts[status]} {status.replace('_', ' ')}" for status in others if counts[status]),
        f"{counts['failed']} failed",
    ]


def _speed(summary: Summary) -> list[str]:
    """The steps; the speed only while a driver is alive, because it is that of the last ten minutes."""
    speed = [f"{rate(summary.steps_per_s)} steps/s"] if summary.at_work else []
    return [f"{summary.steps:,}/{summary.total_steps:,} steps", *speed]


def _eta(summary: Summary) -> list[str]:
    return [f"ETA {duration(summary.eta_s)}"] if summary.at_work else []


def _evaluations(summary: Summary) -> list[str]:
    if not summary.at_work:
        return []
    return [f"{rate(summary.evaluations_per_h)} evaluations/h ({summary.pending_evaluations} pending)"]


def _driver(summary: Summary) -> str:
    driver = summary.driver
    if driver is None or not driver.alive:
        return describe_missing_driver(driver)
    by = f"; {_ORDERS[summary.order]} by {summary.ordered_by}" if summary.order in _ORDERS else ""
    return f"driver {driver}{by}"


def _now(phase: CurrentPhase | None) -> list[str]:
    return [f"now: {phase}"] if phase is not None else []


def _rest(count: int, what: str) -> list[str]:
    return [f"and {count} more {what}"] if count > 0 else []


def _details(row: TrialRow) -> list[str]:
    """A running trial in short parts: its phase where that is not training, its progress, its latest metrics."""
    other = [metric for metric in shown_metrics() if metric.name != "steps_per_s"]
    return [
        *(str(row.phase).split(", ") if row.phase is not None and row.phase.name != "training" else []),
        f"{row.step:,}/{row.steps:,} steps",
        *([f"{rate(row.steps_per_s)} steps/s"] if row.steps_per_s is not None else []),
        *([f"ETA {duration(row.eta_s)}"] if row.eta_s is not None else []),
        *(f"{_name(metric)} {_shown(metric, row)}" for metric in other if metric.name in row.latest),
    ]


def _name(metric: Metric[Any]) -> str:
    return metric.name.replace("_", " ")


def _shown(metric: Metric[Any], row: TrialRow) -> str:
    value = row.latest.get(metric.name)
    return "" if value is None or metric.status_format is None else metric.status_format.format(value)


class SweepView:
    """The sweep for a terminal of any width: a bar, a few lines, and the trials that run or failed.

    `with_driver`: also a line about the driver, for other shells than the driver's. `live`: no more rows than fit.
    """

    def __init__(self, summary: Summary, *, with_driver: bool = False, live: bool = False) -> None:
        self._summary, self._with_driver, self._live = summary, with_driver, live

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        summary, width = self._summary, options.max_width
        most = min(_MOST_ROWS, max(1, console.size.height - _OTHER_LINES)) if self._live else _MOST_ROWS
        if self._with_driver:
            yield Text.assemble((one_line(summary.sweep), "bold"), f": {one_line(_driver(summary))}")
        bar_columns = min(_BAR_COLUMNS, width)
        yield ProgressBar(total=max(summary.total_steps, 1), completed=summary.steps, width=bar_columns)
        yield Segment.line()
        yield from map(Text, folded([part for now in _now(summary.phase) for part in now.split(", ")], width))
        yield from map(Text, _search(summary))
        yield from map(Text, folded(_counts(summary), width))
        yield from map(Text, folded([*_speed(summary), *_eta(summary)], width))
        yield from map(Text, folded(_evaluations(summary), width))
        if summary.running:
            yield from self._running(most, console, options)
        for row in summary.failures[:most]:
            yield Text.assemble(("failed", "red"), f": {row.trial}", overflow="fold")
            yield Padding(Text(one_line(row.error or ""), overflow="fold"), (0, 0, 0, 2))
        yield from map(Text, _rest(len(summary.failures) - most, "failed"))

    def _running(self, most: int, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        rows = self._summary.running
        table = _table(rows[:most])
        if table.fits(console, options):
            yield table
        else:  # two lines or more a trial
            most = max(1, most // 2) if self._live else most
            for row in rows[:most]:
                yield Text(row.trial, style="green", overflow="fold")
                yield from map(Text, folded(_details(row), options.max_width, "  "))
        yield from map(Text, _rest(len(rows) - most, "running"))


def _table(rows: Iterable[TrialRow]) -> FittingTable:
    table = FittingTable(box=None, pad_edge=False, header_style="dim")
    table.add_column("running", no_wrap=True)
    for name in ("step", *map(_name, shown_metrics()), "ETA"):
        table.add_column(name, justify="right")
    table.add_column("now", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row.trial, style="green"),
            f"{row.step:,}/{row.steps:,}",
            *(_shown(metric, row) for metric in shown_metrics()),
            duration(row.eta_s) if row.eta_s is not None else "",
            Text(str(row.phase) if row.phase is not None and row.phase.name != "training" else ""),
        )
    return table


class ProgressView:
    """Shows a sweep from a thread: a live view on a terminal; elsewhere a line for each change.

    Elsewhere the sweep in one line follows every `summary_every_s`, and at the end.
    """

    def __init__(self, follower: Follower, console: Console, summary_every_s: float = _SUMMARY_EVERY_S) -> None:
        self._follower, self._console, self._summary_every_s = follower, console, summary_every_s
        self._news, self._problem = News(), ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> ProgressView:
        if not self._console.is_terminal:
            self._tell_news()  # nothing: what was there before is no news
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        if self._console.is_terminal:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while not self._stop.wait(_LOOK_EVERY_S):
                    if (summary := self._look()) is not None:
                        live.update(SweepView(summary, live=True), refresh=True)
            if (summary := self._look()) is not None:
                self._print(line(summary))
            return
        told_at = time.monotonic()
        while not self._stop.wait(_LOOK_EVERY_S):
            summary = self._tell_news()
            if summary is not None and time.monotonic() - told_at >= self._summary_every_s:
                self._print_stamped(line(summary))
                told_at = time.monotonic()
        if (summary := self._tell_news()) is not None:
            self._print_stamped(line(summary))

    def _look(self) -> Summary | None:
        """None where the records cannot be read now, which is said once."""
        try:
            summary, problem = summarize(self._follower), ""
        except (OSError, StorageError) as cause:
            summary, problem = None, str(cause)
        if problem and problem != self._problem:
            _log.warning("%s; the progress is not shown until it can be read", problem)
        self._problem = problem
        return summary

    def _tell_news(self) -> Summary | None:
        summary = self._look()
        for each in self._news.since(self._follower.progress, summary) if summary is not None else ():
            self._print_stamped(each)
        return summary

    def _print_stamped(self, words: str) -> None:
        self._print(f"{time.strftime(LOG_TIME)} {one_line(words)}")

    def _print(self, words: str) -> None:
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)
