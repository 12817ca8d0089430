"""How far a sweep is, from its ledgers alone, and how that looks in a terminal or a log."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dmray.execution.plan import Plan
from dmray.specs import TrialSpec
from dmray.tracking import (
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    LedgerRecord,
    LedgerTail,
    SweepFolder,
    TrainProgress,
    TrialDone,
)

_RATE_WINDOW_S = 60.0
_MOST_ROWS = 12


@dataclass
class TrialProgress:
    """One trial as its ledger tells it."""

    trial: TrialSpec
    state: str = "waiting"
    step: int = 0
    loss: float | None = None
    score: float | None = None
    steps_per_s: float = 0.0

    def advance(self, record: LedgerRecord) -> None:
        """Take one record in."""
        match record:
            case AttemptStarted():
                self.state, self.step = "running", max(self.step, record.from_step)
            case TrainProgress():
                self.step, self.loss, self.steps_per_s = max(self.step, record.step), record.loss, record.steps_per_s
            case EvaluationDone():
                self.score = record.headline.normalized_mean
            case AttemptFailed():
                self.state = "failed"
            case TrialDone():
                self.state, self.step = record.status, self.trial.training.steps


@dataclass
class SweepProgress:
    """All trials; the rate is measured over the last minute, so that the ETA follows the machine."""

    trials: dict[str, TrialProgress]
    _history: deque[tuple[float, int]] = field(default_factory=deque)

    @classmethod
    def of(cls, plan: Plan) -> SweepProgress:
        return cls({trial.trial_id: TrialProgress(trial) for trial in plan.trials})

    @property
    def steps(self) -> int:
        return sum(trial.step for trial in self.trials.values())

    @property
    def total_steps(self) -> int:
        return sum(trial.trial.training.steps for trial in self.trials.values())

    def count(self, *states: str) -> int:
        return sum(trial.state in states for trial in self.trials.values())

    def measure(self, now_s: float) -> None:
        """Note the steps done by `now_s` (any monotonic clock)."""
        self._history.append((now_s, self.steps))
        while len(self._history) > 2 and now_s - self._history[0][0] > _RATE_WINDOW_S:
            self._history.popleft()

    @property
    def steps_per_s(self) -> float:
        if len(self._history) < 2:
            return 0.0
        (before, first), (now, last) = self._history[0], self._history[-1]
        return (last - first) / max(now - before, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the measured rate; None while nothing moves."""
        rate = self.steps_per_s
        return (self.total_steps - self.steps) / rate if rate > 0 else None


def line(progress: SweepProgress) -> str:
    """The state of the sweep in one line."""
    eta = progress.eta_s
    return (
        f"{progress.count('finished', 'diverged')}/{len(progress.trials)} trials done, "
        f"{progress.count('running')} running, {progress.count('failed')} failed, "
        f"{progress.steps:,}/{progress.total_steps:,} steps, {progress.steps_per_s:,.0f} steps/s, "
        f"ETA {'-' if eta is None else timedelta(seconds=round(eta))}"
    )


def render(progress: SweepProgress) -> Group:
    """The live view: a bar, one line, and the trials that run or failed."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("trial", no_wrap=True)
    for name in ("state", "step", "steps/s", "loss", "normalized score"):
        table.add_column(name, justify="right")
    shown = [trial for trial in progress.trials.values() if trial.state in ("running", "failed")]
    for trial in shown[:_MOST_ROWS]:
        table.add_row(
            trial.trial.trial_id,
            Text(trial.state, style="red" if trial.state == "failed" else "green"),
            f"{trial.step:,}/{trial.trial.training.steps:,}",
            f"{trial.steps_per_s:,.0f}",
            "" if trial.loss is None else f"{trial.loss:.4g}",
            "" if trial.score is None else f"{trial.score:.1f}",
        )
    if len(shown) > _MOST_ROWS:
        table.add_row(f"and {len(shown) - _MOST_ROWS} more", "", "", "", "", "")
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(progress.total_steps, 1), completed=progress.steps, width=60))
    return Group(bar, line(progress), *([table] if shown else []))


class ProgressView:
    """Follows the ledgers of a sweep in a thread: a live view on a terminal, one line every `log_every_s` elsewhere."""

    def __init__(self, plan: Plan, folder: SweepFolder, console: Console, log_every_s: float = 10.0) -> None:
        self._progress = SweepProgress.of(plan)
        self._tails = {trial_id: LedgerTail(folder.trial(trial_id).ledger) for trial_id in plan.trial_ids}
        self._console, self._log_every_s = console, log_every_s
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
                    self._update()
                    live.update(render(self._progress), refresh=True)
        else:
            while not self._stop.wait(self._log_every_s):
                self._update()
                self._console.print(line(self._progress), highlight=False)
        self._update()
        self._console.print(line(self._progress), highlight=False)

    def _update(self) -> None:
        for trial_id, tail in self._tails.items():
            _advance(self._progress.trials[trial_id], tail.read())
        self._progress.measure(time.monotonic())


def _advance(trial: TrialProgress, records: Iterable[LedgerRecord]) -> None:
    for record in records:
        trial.advance(record)
