"""The explanation of a trial as lines of text of any width. Commands are never broken."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping

from dmray.coordination.sweep_lock import describe_missing_driver
from dmray.escaping import one_line
from dmray.progress.explanation import Attempt, Explanation, shown
from dmray.progress.summary_view import duration, rate
from dmray.space import size_text
from dmray.terminal import LOG_TIME, folded

_LABEL_COLUMNS, _LEAST_COLUMNS = 13, 20
_MOST_ATTEMPTS = 8
_LOG_LINES = 3


def lines(explanation: Explanation, width: int) -> Iterator[str]:
    """Sections with a heading each, which is the only kind of line that is not indented."""
    item = explanation
    driver = item.driver
    who = f"driver {driver}" if driver is not None and driver.alive else describe_missing_driver(driver)
    yield from _wrapped(f"{item.trial}: {item.status.replace('_', ' ')}", width, "")
    yield from _rows({"sweep": [f"{item.sweep}: {who}"], "folder": [item.folder]}, width)
    yield "What it is"
    yield from _rows(_what(item), width)
    for place, each in enumerate(item.changed or ["nothing"]):  # a line each
        yield from _rows({"" if place else "not default": [each]}, width)
    yield "How far it is"
    yield from _rows(_how_far(item), width)
    yield "What happened"
    yield from _what_happened(item, width)
    if item.error is not None and item.status != "running":
        yield "Why it failed"
        yield from _wrapped(one_line(item.error), width, "  ")
        yield from (f"    {each}" for each in item.trace)
    if log := [each for each in item.log if not each.startswith("    ")]:  # without tracebacks
        yield "Last lines of its log"
        yield from (f"  {each}" for each in log[-_LOG_LINES:])
    yield "Files"
    yield from _wrapped_parts(_files(item.files), width, "  ")
    yield "What to do next"
    for step in item.next_steps:
        yield from _wrapped(step.what + (":" if step.command else ""), width, "  ")
        if step.command:
            yield f"    {one_line(step.command)}"


def _what(item: Explanation) -> dict[str, list[str]]:
    parameters = [f"{item.parameters:,} parameters"] if item.parameters is not None else []
    seed = f"seed {item.seed}" + (" (a selection trial of the search: it is in no mean)" if item.is_selection else "")
    settings = {
        name: [f"{field} {shown(value)}" for field, value in fields.items() if value is not None]
        for name, fields in item.settings.items()
    }
    return {
        "data set": [item.dataset, f"task {item.task}"],
        "method": [f"{item.method} ({item.method_label})", seed, *parameters],
        **settings,
    }


def _how_far(item: Explanation) -> dict[str, list[str]]:
    steps = [f"{item.step:,}/{item.steps:,}"]
    steps += [f"{rate(item.steps_per_s)} steps/s"] if item.steps_per_s is not None else []
    steps += [f"ETA {duration(item.eta_s)}"] if item.eta_s is not None else []
    evaluations = [f"{item.evaluations}"]
    evaluations += [f"{item.pending_evaluations} pending"] if item.pending_evaluations else []
    for name, score in (("last", item.last_score), ("best", item.best_score)):
        evaluations += [f"{name} score {score['normalized_score']:z.1f} at step {score['step']:,}"] if score else []
    now = {"now": [str(item.phase)]} if item.phase is not None else {}
    return {**now, "steps": steps, "evaluations": evaluations}


def _what_happened(item: Explanation, width: int) -> Iterator[str]:
    hidden = len(item.attempts) - _MOST_ATTEMPTS
    if hidden > 0:
        yield f"  {hidden} earlier attempts: see log.txt"
    for attempt in item.attempts[-_MOST_ATTEMPTS:]:
        yield from _rows({f"attempt {attempt.number}": [_attempt(attempt)]}, width)
    if not item.attempts:
        yield "  no attempt has begun"
    for label, sentences in (
        ("started over", item.started_over),
        ("data warning", item.data_warnings),
        ("data note", item.data_notes),
        ("early stop", item.decisions),
    ):
        for sentence in sentences:
            yield from _rows({label: [one_line(sentence)]}, width)


def _attempt(attempt: Attempt) -> str:
    where = (f" on {attempt.host}" if attempt.host else "") + (f" ({attempt.device})" if attempt.device else "")
    began = "not begun" if attempt.started_s is None else time.strftime(LOG_TIME, time.localtime(attempt.started_s))
    start = "" if attempt.from_step is None else f", from step {attempt.from_step:,}"
    end = attempt.ended if attempt.ended == "running" else f"{attempt.ended} at step {attempt.step:,}"
    took = (
        f" after {duration(attempt.lasted_s)}" if attempt.started_s is not None and attempt.ended != "running" else ""
    )
    why = f": {attempt.error}" if attempt.error else ""
    return one_line(f"{began}{where}{start}; {end}{took}{why}")


def _files(files: Mapping[str, int]) -> list[str]:
    """Names with sizes; the episode tables of all evaluations as one."""
    tables = [size for name, size in files.items() if name.startswith("evaluations/")]
    shown = [f"{name} {size_text(size)}" for name, size in files.items() if not name.startswith(("evaluations/", "."))]
    return [*shown, *([f"evaluations/ {len(tables)} tables {size_text(sum(tables))}"] if tables else [])] or ["none"]


def _rows(rows: Mapping[str, list[str]], width: int) -> Iterator[str]:
    """A label and its parts in each row."""
    for label, parts in rows.items():
        if len(parts) == 1:
            body = list(_wrapped(parts[0], width - _LABEL_COLUMNS - 2, ""))
        else:
            body = list(_wrapped_parts(parts, width - _LABEL_COLUMNS - 2, ""))
        for place, each in enumerate(body):
            yield f"  {label if place == 0 else '':{_LABEL_COLUMNS}}{each}"


def _wrapped_parts(parts: Iterable[str], width: int, indent: str) -> Iterator[str]:
    yield from folded([one_line(part) for part in parts], max(width, _LEAST_COLUMNS), indent)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """Lines that break at spaces only: a path or a name stays whole."""
    return textwrap.wrap(
        text,
        max(width, _LEAST_COLUMNS),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
