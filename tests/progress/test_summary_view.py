"""The views of a sweep at the widths of terminals: no line is cut, and none breaks inside a name or a number."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dmray.coordination.commands import send_command
from dmray.coordination.sweep_lock import folder_lock
from dmray.progress.summary import Summary, follower_of, summarize
from dmray.progress.summary_view import SweepView, rate, text
from dmray.records.phase import PhaseWriter
from dmray.terminal import SafeConsole, folded
from tests.progress.ledgers import begun, evaluated, failed, started, trained


@pytest.fixture
def summary(tmp_path: Path) -> Iterator[Summary]:
    """One trial trains and one failed, while the driver starts actors."""
    now = time.time()
    records = [started(0, now - 60), trained(20, now - 20), evaluated(20, now - 10)]
    plan, folder = begun(tmp_path, records, [started(), failed(3)])
    command = send_command(folder, "run", "again")
    PhaseWriter(folder.trial(plan.trial_ids[0]).phase, command.number, print).enter("evaluating", "step 20")
    PhaseWriter(folder.phase, command.number, print).enter("starting_actors", "2")
    with folder_lock(folder):
        yield summarize(follower_of(folder))


def printed(summary: Summary, width: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = SafeConsole(file=file, width=width, force_terminal=True, color_system=None)
    console.print(SweepView(summary, with_driver=True))
    file.seek(0)
    return file.read().splitlines()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_line_is_wider_than_the_terminal_and_every_part_is_whole(summary: Summary, width: int) -> None:
    lines = printed(summary, width)
    assert max(len(line.rstrip()) for line in lines) <= width
    shown = "\n".join(lines)
    parts = [row.trial for row in (*summary.running, *summary.failures)]
    parts += ["now: starting the evaluation actors (2)", "0/2 trials done", "1 failed", "23/80 steps", "20/40"]
    parts += ["0 pending)", "evaluating (step 20)", "0:00:02", "0.5", "OSError: disk [full]"]
    assert [part for part in parts if part not in shown] == []


def test_a_narrow_terminal_has_two_lines_a_trial_and_a_wide_one_a_table(summary: Summary) -> None:
    narrow, wide = (printed(summary, width) for width in (60, 160))
    (trial,) = (row.trial for row in summary.running)
    assert trial in narrow
    assert any(line.startswith(trial) and "20/40" in line for line in wide)


def test_a_terminal_without_unicode_gets_ascii(summary: Summary) -> None:
    assert "\n".join(printed(summary, 60, "ascii")).isascii()


def test_the_live_view_has_no_more_rows_than_fit(tmp_path: Path) -> None:
    _, folder = begun(tmp_path, [started()], [started()])
    with folder_lock(folder):
        summary = summarize(follower_of(folder))
    console = Console(file=io.StringIO(), width=60, height=12, record=True)
    console.print(SweepView(summary, live=True))
    shown = console.export_text()
    assert (summary.running[0].trial in shown, summary.running[1].trial in shown) == (True, False)
    assert "and 1 more running" in shown


def test_plain_status_names_speed_and_eta_of_each_trial(summary: Summary) -> None:
    (line,) = [line for line in text(summary).splitlines() if line.startswith("running: ")]
    expected = "20/40 steps, 10 steps/s, ETA 0:00:02, loss 0.5, normalized score 1.0"
    assert line.endswith(expected)


def test_without_a_driver_there_is_no_speed(tmp_path: Path) -> None:
    now = time.time()
    _, folder = begun(tmp_path, [started(0, now - 60), trained(20, now - 20), evaluated(20, now - 10)])
    summary = summarize(follower_of(folder))
    assert text(summary).endswith("0/2 trials done, 0 running, 1 interrupted, 0 failed, 20/80 steps")
    shown = "\n".join(printed(summary, 80))
    assert ("20/80 steps" in shown, "steps/s" in shown, "ETA" in shown, "/h" in shown) == (True, False, False, False)


def test_lines_break_between_parts_only() -> None:
    assert folded(["aaa", "bbb", "a part that is too long", "c"], 10, "  ") == [
        "  aaa,",
        "  bbb,",
        "  a part that is too long,",
        "  c",
    ]
    assert folded(["aaa", "bbb"], 9) == ["aaa, bbb"]
    assert folded([], 9) == []


def test_slow_speeds_are_not_zero() -> None:
    assert [rate(value) for value in (0, 0.0421, 1.26, 9.99, 1234.5)] == ["0", "0.042", "1.3", "10", "1,234"]
