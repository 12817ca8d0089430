"""Show a sweep's progress on a terminal or in a log, from the driver or from another shell."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dmray.coordination.sweep_lock import describe_missing_driver
from dmray.escaping import one_line
from dmray.progress.progress import Follower
from dmray.progress.summary import Summary, summarize
from dmray.records.metrics import Metric, shown_metrics
from dmray.terminal import FittingTable

_MOST_ROWS, _BAR_COLUMNS = 12, 60
_ORDERS = {"pause": "paused", "stop": "stopping", "kill": "killed"}


def line(summary: Summary) -> str:
    """The sweep in one line."""
    counts, eta = summary.statuses, summary.eta_s
    others = ("paused", "interrupted", "diverged", "stopped_early")
    named = [f"{counts[status]} {status.replace('_', ' ')}" for status in others if counts[status]]
    order = [_ORDERS[summary.order]] if summary.at_work and summary.order in _ORDERS else []
    return ", ".join(
        [
            *order,
            f"{counts['finished'] + counts['diverged']}/{summary.trials} trials done",
            f"{counts['running']} running",
            *named,
            f"{counts['failed']} failed",
            f"{summary.steps:,}/{summary.total_steps:,} steps",
            f"{summary.steps_per_s:,.0f} steps/s",
            f"{summary.evaluations_per_h:,.0f} evaluations/h ({summary.pending_evaluations} pending)",
            f"ETA {'-' if eta is None else timedelta(seconds=round(eta))}",
        ]
    )


def text(summary: Summary) -> str:
    """The sweep in plain lines."""
    failures = [f"failed: {row.trial}: {row.error}" for row in summary.failures]
    return "\n".join(map(one_line, [f"{summary.sweep}: {_driver(summary)}", line(summary), *failures]))


def render(summary: Summary) -> Group:
    """The sweep for a terminal: a bar, one line, and the trials that run or failed."""
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(summary.total_steps, 1), completed=summary.steps, width=_BAR_COLUMNS))
    parts: list[RenderableType] = [bar, Text(line(summary))]
    if summary.running:
        parts.append(_running(summary))
    for row in summary.failures[:_MOST_ROWS]:
        parts.append(Text.assemble(("failed", "red"), f": {row.trial}: {one_line(row.error or '')}"))
    if len(summary.failures) > _MOST_ROWS:
        parts.append(f"and {len(summary.failures) - _MOST_ROWS} more failed")
    return Group(*parts)


def with_driver(summary: Summary) -> Group:
    """`render` with a line about the driver, for other shells than the driver's."""
    return Group(Text.assemble((one_line(summary.sweep), "bold"), f": {one_line(_driver(summary))}"), render(summary))


def _driver(summary: Summary) -> str:
    driver = summary.driver
    if driver is None or not driver.alive:
        return describe_missing_driver(driver)
    by = f"; {_ORDERS[summary.order]} by {summary.ordered_by}" if summary.order in _ORDERS else ""
    return f"driver {driver}{by}"


def _running(summary: Summary) -> FittingTable:
    table = FittingTable(box=None, pad_edge=False, header_style="dim")
    table.add_column("running", no_wrap=True)
    shown = shown_metrics()
    for name in ("step", *(metric.name.replace("_", " ") for metric in shown)):
        table.add_column(name, justify="right")
    for row in summary.running[:_MOST_ROWS]:
        table.add_row(
            Text(row.trial, style="green"),
            f"{row.step:,}/{row.steps:,}",
            *(_shown(metric, row.latest.get(metric.name)) for metric in shown),
        )
    if len(summary.running) > _MOST_ROWS:
        table.add_row(f"and {len(summary.running) - _MOST_ROWS} more")
    return table


def _shown(metric: Metric[Any], value: float | None) -> str:
    return "" if value is None or metric.status_format is None else metric.status_format.format(value)


class ProgressView:
    """Shows a sweep from a thread: a live view on a terminal, one line every `log_every_s` elsewhere."""

    def __init__(self, follower: Follower, console: Console, log_every_s: float = 10.0) -> None:
        self._follower, self._console, self._log_every_s = follower, console, log_every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> ProgressView:
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
                while not self._stop.wait(1.0):
                    live.update(render(summarize(self._follower)), refresh=True)
        else:
            while not self._stop.wait(self._log_every_s):
                self._print()
        self._print()

    def _print(self) -> None:
        self._console.print(line(summarize(self._follower)), highlight=False, markup=False, soft_wrap=True)
