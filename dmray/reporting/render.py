"""The report of sweeps: a page, tables, figures and CSV files, made from their records alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dmray.files import write_atomic
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder
from dmray.reporting.across import ProtocolResults, aggregate_table, cost_table, improvement_table, results_by_protocol
from dmray.reporting.columns import curve_columns, trial_columns, write_csv
from dmray.reporting.document import Block, Bullets, Heading, Image, Paragraph, Table, TableCell, to_html, to_markdown
from dmray.reporting.early_stopping import early_stopping_blocks
from dmray.reporting.figures import draw_learning_curves, draw_profiles
from dmray.reporting.latex import to_latex
from dmray.reporting.paper import DIFFERENCES, paper_table
from dmray.reporting.results import UNSCORED, Comparison, Protocol, SweepResults, TrialResult, collect
from dmray.reporting.tables import overview_table, score_table, verdict

_MOST_LISTED = 50


@dataclass(frozen=True)
class ReportPaths:
    """What `write_report` wrote; `figures` are the PNG files, each with an SVG file beside it."""

    folder: Path
    markdown: Path
    html: Path
    latex: Path
    trials: Path
    curves: Path
    figures: tuple[Path, ...]


@dataclass(frozen=True)
class _Figures:
    curves: dict[int, Path]  # by the position of the comparison
    profiles: dict[Protocol, Path]

    @property
    def paths(self) -> tuple[Path, ...]:
        return *self.profiles.values(), *self.curves.values()


def write_report(folder: SweepFolder) -> ReportPaths:
    """Make the report of the sweep in `folder` anew, in `<sweep>/report`. A sweep may be reported while it runs.

    Raises:
        StorageError: there is no sweep in the folder, or a file of it is damaged.
    """
    return write_results(collect(folder), folder.report)


def write_results(results: SweepResults, target: Path, baseline: str | None = None) -> ReportPaths:
    """Write the report of what was collected into the folder `target`.

    `baseline` is the method that Mamba's are held against; None: DT, and for HDM also HDT.
    """
    groups = results_by_protocol(results.comparisons)
    figures = _draw(results, groups, target / "figures")
    blocks = list(report_blocks(results, groups, figures, baseline))
    paths = ReportPaths(
        folder=target,
        markdown=target / "report.md",
        html=target / "report.html",
        latex=target / "tables.tex",
        trials=target / "trials.csv",
        curves=target / "curves.csv",
        figures=figures.paths,
    )
    write_atomic(paths.markdown, to_markdown(blocks, target).encode())
    write_atomic(paths.html, to_html(blocks, f"dmray: {results.name}").encode())
    write_atomic(paths.latex, to_latex(blocks).encode())
    write_csv(paths.trials, trial_columns(results))
    write_csv(paths.curves, curve_columns(results))
    return paths


def _draw(results: SweepResults, groups: list[ProtocolResults], folder: Path) -> _Figures:
    curves = {
        position: path
        for position, comparison in enumerate(results.comparisons)
        if draw_learning_curves(comparison, path := folder / f"{_file_name(results, position)}.png")
    }
    profiles = {
        group.protocol: path
        for place, group in enumerate(groups, 1)
        if len(group.comparisons) > 1
        and draw_profiles(group, path := folder / f"profiles{'' if len(groups) == 1 else f'-{place}'}.png")
    }
    return _Figures(curves, profiles)


def report_blocks(
    results: SweepResults, groups: list[ProtocolResults], figures: _Figures, baseline: str | None
) -> Iterable[Block]:
    """The report's content: what holds over all data sets first, then each data set, then how it was made."""
    yield Heading(results.name if " + " in results.name else f"Sweep {results.name}", 1)
    yield Paragraph(_summary(results))
    yield from early_stopping_blocks(results)
    alone = {group.protocol: group for group in groups if len(group.comparisons) == 1}
    for group in groups:
        if group.protocol not in alone:
            yield from _over_all(group, figures, baseline)
    for position, comparison in enumerate(results.comparisons):
        yield Heading(_title(results, position), 2)
        yield Paragraph(verdict(comparison))
        yield score_table(comparison)
        if comparison.protocol in alone:
            yield from _how_surely(alone[comparison.protocol], baseline)
        if position in figures.curves:
            yield Image(figures.curves[position], f"learning curves of {comparison.dataset.name}")
        yield Bullets(tuple(_notes(comparison)))
    if published := paper_table(results.comparisons):
        yield Heading("Beside the paper", 2)
        yield published
        yield Bullets(DIFFERENCES)
    yield Heading("How to read the numbers", 2)
    yield Bullets(_READING)
    yield Heading("What is missing", 2)
    yield from _missing(results)
    yield Heading("Made with", 2)
    yield Bullets(tuple(_made_with(results)))


def _over_all(group: ProtocolResults, figures: _Figures, baseline: str | None) -> Iterable[Block]:
    yield Heading(f"Over all: {len(group.comparisons)} data sets, {group.protocol}", 2)
    yield overview_table(group)
    if group.ranked != group.labels:
        out = ", ".join(label for label in group.labels if label not in group.ranked)
        yield Paragraph(f"Not summed up, since seeds were stopped early on a data set: {out}.")
    if not group.complete:
        yield Paragraph("No data set has a finished trial of every method yet, so nothing is summed up.")
        return
    yield aggregate_table(group)
    if group.protocol in figures.profiles:
        yield Image(figures.profiles[group.protocol], f"performance profiles, {group.protocol}")
    yield from _how_surely(group, baseline)


def _how_surely(group: ProtocolResults, baseline: str | None) -> Iterable[Block]:
    if improvement := improvement_table(group, baseline):
        yield improvement
    yield cost_table(group)


_READING = (
    "Normalized score: 100 (R - minimum) / (maximum - minimum), D4RL's formula and reference returns: 0 is a random "
    "policy (for most tasks), 100 an expert or a controller.",
    "Last is the score of the final weights and the main result. Best is the highest score during training; it is "
    "picked by looking at the evaluations themselves, so it is optimistic. Do not compare the two with each other.",
    "Last ten is the mean of the last ten evaluations, which a single lucky or unlucky one moves less.",
    "IQM is the interquartile mean, of the middle half of all runs. Intervals hold 95 % of 2,000 stratified bootstrap "
    "draws (seeds within each data set; Agarwal et al. 2021). With three or four seeds they are rough.",
    "Probability of improvement: how often a run of one method beats a run of the other on the same data set, ties "
    "counting half, averaged over data sets. It says how surely, not by how much.",
    "Performance profiles: the higher a curve, the better; where curves cross, the answer depends on what counts.",
    "A method that takes a target return is judged by the first target of the list, never by the best of several.",
    "± is the sample standard deviation (n - 1) over seeds; with one seed there is none. Each seed's score is the mean "
    "over its evaluation episodes.",
    "Diverged, failed and unfinished trials have no last score and are counted beside the mean, not in it.",
    "Curves: mean over seeds, band from the lowest to the highest seed, at the steps that all these seeds have.",
)


def _summary(results: SweepResults) -> str:
    counts = [(results.count(status), status) for status in (TrialStatus.FINISHED, *UNSCORED)]
    told = ", ".join(f"{count} {status.label}" for count, status in counts if count)
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
    models = dict.fromkeys(_model(trial) for seed_group in comparison.seed_groups for trial in seed_group.trials)
    yield f"Model: {'; '.join(models)}."


def _target_note(comparison: Comparison) -> Iterable[str]:
    """Which methods are told a target return is in their records."""
    told: dict[bool, list[str]] = {True: [], False: []}
    for seed_group in comparison.seed_groups:
        scored = [trial.scores for trial in seed_group.trials if len(trial.scores)]
        if scored:
            told[scored[0].target_return is not None].append(seed_group.label)
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
    lacking = [result for result in results.trials if result.status is not TrialStatus.FINISHED]
    if not lacking:
        yield Paragraph("Nothing: every trial has finished.")
        return
    rows = tuple(
        (
            TableCell(result.trial.trial_id),
            TableCell(result.status.label),
            TableCell(f"{result.steps:,}"),
            TableCell(_reason(result)),
        )
        for result in lacking[:_MOST_LISTED]
    )
    yield Table(f"{len(lacking)} trials without a last score", ("trial", "status", "steps", "why"), rows)
    if len(lacking) > _MOST_LISTED:
        yield Paragraph(f"And {len(lacking) - _MOST_LISTED} more; trials.csv has them all.")


def _reason(result: TrialResult) -> str:
    reasons = {
        TrialStatus.DIVERGED: "the loss was not finite",
        TrialStatus.STOPPED_EARLY: f"at the rung of step {result.stopped_by.step:,}" if result.stopped_by else "",
        TrialStatus.PAUSED: "saved, to be continued",
        TrialStatus.STARTED: "interrupted, or still running",
        TrialStatus.WAITING: "not begun",
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
        ("envpool", "versions", "envpool"),
        ("pybullet", "versions", "pybullet"),
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
