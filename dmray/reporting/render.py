"""The report of a sweep: report.md, report.html, figures and CSV files, made from the sweep's records alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dmray.reporting.document import Block, Bullets, Cell, Heading, Image, Paragraph, Table, to_html, to_markdown
from dmray.reporting.figures import draw_learning_curves
from dmray.reporting.results import Comparison, SweepResults, TrialResult, collect
from dmray.reporting.tables import curve_rows, overview_tables, score_table, trial_rows, verdict
from dmray.tracking import SweepFolder, write_atomic

_MOST_LISTED = 50


@dataclass(frozen=True)
class ReportPaths:
    """What `write_report` wrote; `figures` in the order of the comparisons, without those that had nothing to draw."""

    folder: Path
    markdown: Path
    html: Path
    trials: Path
    curves: Path
    figures: tuple[Path, ...]


def write_report(folder: SweepFolder) -> ReportPaths:
    """Make the report of the sweep in `folder` anew, in `<sweep>/report`. A sweep may be reported while it runs.

    Raises:
        StorageError: there is no sweep in the folder, or a file of it is damaged.
    """
    results, target = collect(folder), folder.report
    images = {
        position: path
        for position, comparison in enumerate(results.comparisons)
        if draw_learning_curves(comparison, path := target / "figures" / f"{_file_name(results, position)}.png")
    }
    blocks = list(report_blocks(results, images))
    paths = ReportPaths(
        folder=target,
        markdown=target / "report.md",
        html=target / "report.html",
        trials=target / "trials.csv",
        curves=target / "curves.csv",
        figures=tuple(images.values()),
    )
    write_atomic(paths.markdown, to_markdown(blocks, target).encode())
    write_atomic(paths.html, to_html(blocks, f"dmray: {results.sweep.name}").encode())
    write_atomic(paths.trials, _csv(trial_rows(results)))
    write_atomic(paths.curves, _csv(curve_rows(results)))
    return paths


def report_blocks(results: SweepResults, images: dict[int, Path]) -> Iterable[Block]:
    """The report's content; `images` holds the figure of each comparison that has one, by its position."""
    yield Heading(f"Sweep {results.sweep.name}", 1)
    yield Paragraph(_summary(results))
    yield from overview_tables(results)
    for position, comparison in enumerate(results.comparisons):
        yield Heading(_title(results, position), 2)
        yield Paragraph(verdict(comparison))
        yield score_table(comparison)
        if position in images:
            yield Image(images[position], f"learning curves of {comparison.dataset.name}")
        yield Bullets(tuple(_notes(comparison)))
    yield Heading("How to read the numbers", 2)
    yield Bullets(_READING)
    yield Heading("What is missing", 2)
    yield from _missing(results)
    yield Heading("Made with", 2)
    yield Bullets(tuple(_made_with(results)))


_READING = (
    "Normalized score: 100 (R - minimum) / (maximum - minimum), D4RL's formula and reference returns: 0 is a random "
    "policy (for most tasks), 100 an expert or a controller.",
    "Last is the score of the final weights, and the headline. Best is the highest score along the way; it is picked "
    "by looking at the evaluations themselves, so it is optimistic. The two must not be compared with each other.",
    "A method that takes a target return is judged by the first target of the list, never by the best of several.",
    "± is the sample standard deviation (n - 1) over seeds; with one seed there is none. Each seed's score is the mean "
    "over its evaluation episodes.",
    "Diverged, failed and unfinished trials have no last score and are counted beside the mean, not in it.",
    "Curves: mean over seeds, band from the lowest to the highest seed, at the steps that all these seeds have.",
)


def _summary(results: SweepResults) -> str:
    counts = [(results.count(status), status) for status in ("finished", "diverged", "failed", "unfinished", "missing")]
    told = ", ".join(f"{count} {status}" for count, status in counts if count)
    return f"{len(results.trials)} trials: {told}."


def _title(results: SweepResults, position: int) -> str:
    """The data set's name; with its protocol where it comes under several."""
    comparison = results.comparisons[position]
    again = sum(other.dataset.name == comparison.dataset.name for other in results.comparisons) > 1
    return f"{comparison.dataset.name} ({comparison.protocol})" if again else comparison.dataset.name


def _file_name(results: SweepResults, position: int) -> str:
    name = results.comparisons[position].dataset.name
    before = sum(other.dataset.name == name for other in results.comparisons[:position])
    return f"{name}-{before + 1}" if before else name


def _notes(comparison: Comparison) -> Iterable[str]:
    protocol, task = comparison.protocol, comparison.task
    yield (
        f"Protocol {protocol.simulation}: {task.env_id}, {protocol.episodes} episodes of at most {task.horizon} steps, "
        f"evaluation seed {protocol.seed}, decode mode {protocol.decode}."
    )
    yield from _target_note(comparison)
    dataset = comparison.dataset
    if dataset.generate is not None:
        made = dataset.generate
        yield (
            f"The data was recorded by dmray ({made.behaviour}, {made.transitions:,} transitions, seed {made.seed}); "
            "it is not D4RL's, so these are no benchmark results."
        )
    elif dataset.path is not None:
        yield f"The data was read from {Path(dataset.path).name}, a file of the user's."
    models = dict.fromkeys(_model(trial) for cell in comparison.cells for trial in cell.trials)
    yield f"Model: {'; '.join(models)}."


def _target_note(comparison: Comparison) -> Iterable[str]:
    """Which methods are told a target return is in their records."""
    told: dict[bool, list[str]] = {True: [], False: []}
    for cell in comparison.cells:
        scores = [score for trial in cell.trials for score in trial.scores]
        if scores:
            told[scores[0].target_return is not None].append(cell.label)
    headline, *others = (f"{target:g}" for target in comparison.target_returns)
    also = f"; also recorded, in MLflow and the ledgers: {', '.join(others)}" if others else ""
    if told[True]:
        yield f"Target return of the headline score: {headline}, the first of the list{also} ({', '.join(told[True])})."
    if told[False]:
        yield f"Without a target return: {', '.join(told[False])}."


def _model(result: TrialResult) -> str:
    model, training = result.trial.model, result.trial.training
    return (
        f"width {model.d_model}, {model.n_layer} layers, context {model.context_length}; {training.steps:,} steps of "
        f"batch {training.batch_size}, learning rate {training.learning_rate:g}"
    )


def _missing(results: SweepResults) -> Iterable[Block]:
    lacking = [result for result in results.trials if result.status != "finished"]
    if not lacking:
        yield Paragraph("Nothing: every trial has finished.")
        return
    rows = tuple(
        (Cell(result.trial.trial_id), Cell(result.status), Cell(f"{result.steps:,}"), Cell(_reason(result)))
        for result in lacking[:_MOST_LISTED]
    )
    yield Table(f"{len(lacking)} trials without a last score", ("trial", "status", "steps", "why"), rows)
    if len(lacking) > _MOST_LISTED:
        yield Paragraph(f"And {len(lacking) - _MOST_LISTED} more; trials.csv has them all.")


def _reason(result: TrialResult) -> str:
    reasons = {
        "diverged": "the loss was not finite",
        "unfinished": "stopped, or still running",
        "missing": "not begun",
    }
    return result.error or reasons.get(result.status, "")


def _made_with(results: SweepResults) -> Iterable[str]:
    made = [result.provenance for result in results.trials if result.provenance]
    for name, section, key in (
        ("git commit", "git", "commit"),
        ("dmray", "versions", "dmray"),
        ("torch", "versions", "torch"),
        ("ray", "versions", "ray"),
        ("mujoco", "versions", "mujoco"),
        ("CPU", "hardware", "cpu"),
        ("GPU", "hardware", "gpu"),
    ):
        values = dict.fromkeys(str(found) for one in made if (found := (one.get(section) or {}).get(key)) is not None)
        if values:
            yield f"{name}: {', '.join(values)}"
    if any((one.get("git") or {}).get("dirty") for one in made):
        yield "The code had uncommitted changes."
    restarts = sum(max(result.attempts - 1, 0) for result in results.trials)
    yield f"Trials taken up again after an interruption: {restarts}"


def _csv(rows: Iterable[dict[str, object]]) -> bytes:
    stream, writer = io.StringIO(), None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            writer.writeheader()
        writer.writerow(row)
    return stream.getvalue().encode()
