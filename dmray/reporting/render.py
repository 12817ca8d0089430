"""Write the report of sweeps: report.html, report.md, tables.tex, CSV files and figures, from records only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dmray.errors import StorageError
from dmray.files import write_atomic
from dmray.methods import METHODS
from dmray.mlflow_mirror.layout import SUMMARY
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder
from dmray.reporting.across import (
    ProtocolResults,
    aggregate_table,
    cost_table,
    data_sets,
    improvement_table,
    results_by_protocol,
)
from dmray.reporting.columns import curve_columns, trial_columns, write_csv
from dmray.reporting.compared import compare, differences_table
from dmray.reporting.curves import AXES, Axis
from dmray.reporting.differences import RESOLUTION
from dmray.reporting.document import (
    Block,
    Bullets,
    Heading,
    Image,
    Paragraph,
    Table,
    TableCell,
    to_html,
    to_latex,
    to_markdown,
)
from dmray.reporting.early_stopping import early_stopping_blocks
from dmray.reporting.factorial import FactorialResults, factorials
from dmray.reporting.factorial_view import factorial_blocks, factorial_columns
from dmray.reporting.figures import draw_by_setting, draw_effects, draw_learning_curves, draw_profiles
from dmray.reporting.notes import note_blocks, warnings_of
from dmray.reporting.paper import DIFFERENCES, paper_table
from dmray.reporting.reevaluations import reevaluation_blocks, reevaluation_columns
from dmray.reporting.references import PublishedResult, reference_blocks, reference_table, references_of
from dmray.reporting.results import UNSCORED, Comparison, SweepResults, TrialResult, collect
from dmray.reporting.search import search_blocks, search_columns, search_figures
from dmray.reporting.tables import (
    candidates_over,
    difference_columns,
    leader_text,
    overview_table,
    score_table,
)
from dmray.specs import TrialSpec, noise_text, shown_value

_MOST_LISTED = 50


@dataclass(frozen=True)
class ReportPaths:
    """The files that `write_report` wrote. `figures`: the PNG files; each has an SVG file of the same name.

    `summary`: the tables of scores and the sentences below them, as Markdown; MLflow shows it with the sweep's run.
    """

    folder: Path
    markdown: Path
    summary: Path
    html: Path
    latex: Path
    trials: Path
    curves: Path
    differences: Path
    reevaluations: Path
    figures: tuple[Path, ...]


@dataclass(frozen=True)
class ReportFigures:
    """The pictures of a report: the file of each one."""

    curves: dict[int, Path] = field(default_factory=dict)  # by the position of the comparison
    settings: dict[int, dict[Axis, Path]] = field(default_factory=dict)  # the same, and by the field below
    profiles: dict[int, Path] = field(default_factory=dict)  # by the position of the group of comparisons
    searches: dict[tuple[str, str], Path] = field(default_factory=dict)  # by sweep and data sets
    effects: dict[int, Path] = field(default_factory=dict)  # by the position of the 2 x 2

    @property
    def paths(self) -> tuple[Path, ...]:
        return (
            *self.profiles.values(),
            *(path for by_axis in self.settings.values() for path in by_axis.values()),
            *self.curves.values(),
            *self.searches.values(),
            *self.effects.values(),
        )


class ReportParts(NamedTuple):
    """What a report shows beside the results themselves."""

    groups: list[ProtocolResults]
    squares: list[FactorialResults]
    figures: ReportFigures
    published: Sequence[PublishedResult]


def write_report(folder: SweepFolder) -> ReportPaths:
    """Write the report of the sweep in `folder` into `<sweep>/report`. The sweep may still be running.

    Raises:
        StorageError: there is no sweep in the folder, its manifest is damaged, or the report cannot be written.
    """
    return write_results(collect(folder), folder.report)


def write_results(
    results: SweepResults, target: Path, baseline: str | None = None, references: Sequence[Path] = ()
) -> ReportPaths:
    """Write the report of `results` into the folder `target`.

    `baseline`: the method that all others are compared with; None: each method's own baselines. `references`: CSV
    files of published results, which the report shows beside those that come with dmray.

    Raises:
        SpecError: a file of published results cannot be used.
        StorageError: the folder cannot be written.
    """
    published = references_of(results, references)
    try:
        return _write_files(results, target, baseline, published)
    except OSError as cause:
        raise StorageError(
            f"{target}: the report cannot be written: {cause.strerror or cause}; free disk space or "
            "give another folder with --into (the results are in the ledgers: dmray.report writes it again)"
        ) from cause


def _write_files(
    results: SweepResults, target: Path, baseline: str | None, published: Sequence[PublishedResult]
) -> ReportPaths:
    groups = results_by_protocol(results.comparisons)
    squares = factorials(groups)
    figures = _draw(results, groups, squares, target / "figures")
    blocks = list(report_blocks(results, ReportParts(groups, squares, figures, published), baseline))
    paths = ReportPaths(
        folder=target,
        markdown=target / "report.md",
        summary=target / SUMMARY,
        html=target / "report.html",
        latex=target / "tables.tex",
        trials=target / "trials.csv",
        curves=target / "curves.csv",
        differences=target / "differences.csv",
        reevaluations=target / "reevaluations.csv",
        figures=figures.paths,
    )
    write_atomic(paths.markdown, to_markdown(blocks, target).encode("utf-8"))
    write_atomic(paths.summary, to_markdown(_summary_blocks(results, groups, baseline), target).encode("utf-8"))
    write_atomic(paths.html, to_html(blocks, f"dmray: {results.name}").encode("utf-8"))
    write_atomic(paths.latex, to_latex(blocks).encode("utf-8"))
    write_csv(paths.trials, trial_columns(results))
    write_csv(paths.curves, curve_columns(results))
    write_csv(paths.differences, difference_columns(groups, baseline))
    if results.searches:
        write_csv(target / "search.csv", search_columns(results))
    if squares:
        write_csv(target / "factorial.csv", factorial_columns(squares))
    write_csv(paths.reevaluations, reevaluation_columns(results))
    return paths


def _draw(
    results: SweepResults, groups: list[ProtocolResults], squares: list[FactorialResults], folder: Path
) -> ReportFigures:
    settings = {
        position: {
            axis: path
            for axis in AXES
            if draw_by_setting(
                comparison, axis, path := folder / f"by-{axis.field}-{_file_name(results, position)}.png"
            )
        }
        for position, comparison in enumerate(results.comparisons)
    }
    curves = {
        position: path
        for position, comparison in enumerate(results.comparisons)
        if not (settings[position] and all(len(trial.scores) < 2 for trial in comparison.trials))
        and draw_learning_curves(comparison, path := folder / f"{_file_name(results, position)}.png")
    }
    profiles = {
        place: path
        for place, group in enumerate(groups)
        if len(group.comparisons) > 1
        and draw_profiles(group, path := folder / f"profiles{'' if len(groups) == 1 else f'-{place + 1}'}.png")
    }
    effects = {
        place: path
        for place, table in enumerate(table for each in squares for table in each.factorials)
        if draw_effects(table, path := folder / f"effects{f'-{place + 1}' if place else ''}.png")
    }
    return ReportFigures(curves, settings, profiles, search_figures(results, folder), effects)


def report_blocks(results: SweepResults, parts: ReportParts, baseline: str | None) -> Iterable[Block]:
    """The report's content: results over all data sets, each data set, then explanations and versions."""
    groups, squares, figures, published = parts
    yield Heading(results.name if " + " in results.name else f"Sweep {results.name}", 1)
    yield Paragraph(_summary(results))
    if warnings := warnings_of(results):
        yield Bullets(tuple(warnings))
    yield from note_blocks(results)
    yield from search_blocks(results, figures.searches)
    yield from early_stopping_blocks(results)
    shown: set[str] = set()  # of a data set with several protocols, published results are below the first one
    alone = {id(group.comparisons[0]): group for group in groups if len(group.comparisons) == 1}
    for place, group in enumerate(groups):
        if len(group.comparisons) > 1:
            yield from _all_data_sets(group, figures.profiles.get(place), baseline)
    for position, comparison in enumerate(results.comparisons):
        yield Heading(_title(results, position), 2)
        yield Paragraph(leader_text(comparison, baseline))
        yield score_table(comparison, baseline)
        for axis, path in figures.settings.get(position, {}).items():
            yield Image(path, f"last score by {axis.text} on {comparison.name}")
        if position in figures.curves:
            yield Image(figures.curves[position], f"learning curves of {comparison.name}")
        if id(comparison) in alone:
            yield from _differences_and_cost(alone[id(comparison)], baseline)
        yield Bullets(tuple(_notes(comparison)))
        if (table := reference_table(comparison, published)) and table.title not in shown:
            shown.add(table.title)
            yield table
    yield from factorial_blocks(squares, figures.effects)
    yield from reevaluation_blocks(results, baseline)
    if of_paper := paper_table(results.comparisons):
        yield Heading("Comparison with the paper", 2)
        yield of_paper
        yield Bullets(DIFFERENCES)
    yield from reference_blocks(published)
    yield Heading("How to read the numbers", 2)
    yield Bullets(_EXPLANATIONS)
    yield Heading("Missing results", 2)
    yield from _missing(results)
    yield Heading("Versions and hardware", 2)
    yield Bullets(tuple(_versions(results)))


def _summary_blocks(results: SweepResults, groups: list[ProtocolResults], baseline: str | None) -> Iterable[Block]:
    """The tables that compare methods, without figures."""
    yield from (overview_table(group, baseline) for group in groups if len(group.comparisons) > 1)
    for comparison in results.comparisons:
        yield Paragraph(leader_text(comparison, baseline))
        yield score_table(comparison, baseline)


def _all_data_sets(group: ProtocolResults, profiles: Path | None, baseline: str | None) -> Iterable[Block]:
    yield Heading(f"All {len(group.comparisons)} data sets, {group.name}", 2)
    yield overview_table(group, baseline)
    if group.several:
        yield Paragraph(
            f"Not in these tables, because there are results of several contents of the data: "
            f"{', '.join(group.several)}."
        )
    if group.ranked != group.labels:
        out = ", ".join(label for label in group.labels if label not in group.ranked)
        yield Paragraph(f"Not in the aggregates, because seeds were stopped early on a data set: {out}.")
    if not group.complete:
        yield Paragraph("There are no aggregates yet: no data set has a finished trial of every method.")
        return
    yield aggregate_table(group)
    if profiles is not None:
        yield Image(profiles, f"performance profiles, {group.name}")
    yield from _differences_and_cost(group, baseline)


def _differences_and_cost(group: ProtocolResults, baseline: str | None) -> Iterable[Block]:
    if comparisons := compare(candidates_over(group), baseline):
        yield differences_table(comparisons, data_sets(group), group.slug, group.score_name)
        if outlooks := tuple(outlook for each in comparisons if (outlook := each.outlook())):
            yield Bullets(outlooks)
        yield improvement_table(group, [(each.first, each.second) for each in comparisons])
    yield cost_table(group)


_EXPLANATIONS = (
    "Normalized score: 100 (R - minimum) / (maximum - minimum) with D4RL's reference returns. 0 is a random policy "
    "(for most tasks), 100 is an expert or a controller.",
    "Last is the score of the final weights and the main result. Best is the highest score during training. It is "
    "chosen by looking at the evaluations, so it is optimistic. Last and best must not be compared with each other.",
    "Last ten (or last 4, where there are only four) is the mean of so many last evaluations. It depends less on a "
    "single lucky or unlucky evaluation.",
    "A difference is settled if a t test over seeds finds it at 5 %, corrected by Holm for all comparisons of its "
    "table: each method with its baselines of the same size, and the highest mean with every other. If both methods "
    "have the same seeds, the seeds are paired; otherwise it is Welch's test. Scores that differ by less than "
    f"{RESOLUTION:g} points, with an interval that contains no larger difference, are level. The tests assume that "
    "differences over seeds are about normally distributed.",
    "Not settled does not mean equal: below the table is the true difference that so few seeds would find, and how "
    "many more seeds would find the measured one.",
    "IQM is the interquartile mean: the mean of the middle half of all runs. Intervals contain 95 % of 2,000 "
    "stratified bootstrap draws (seeds are drawn within each data set; Agarwal et al. 2021). With three or four seeds "
    "they are too narrow: with three seeds, one in four excludes the truth.",
    "Probability of improvement: the share of pairs in which the run of one method has a higher score than the run of "
    "the other on the same data set. Ties count one half; the mean is over data sets. It does not say how large the "
    "difference is.",
    "Performance profiles: a higher curve is better. If curves cross, no method is better at all scores.",
    "The score of a method that takes a target return is that of the first target in the list, not the best one.",
    "± is the sample standard deviation (n - 1) over seeds; a single seed has none. The score of a seed is the mean "
    "over its evaluation episodes.",
    "Diverged, failed and unfinished trials have no last score. They are counted, but are not in the mean.",
    "Learning curves: the mean over seeds, with a band from the lowest to the highest seed, at the steps that all of "
    "these seeds have.",
)


def _summary(results: SweepResults) -> str:
    counts = [(results.count(status), status) for status in (TrialStatus.FINISHED, *UNSCORED)]
    listed = ", ".join(f"{count} {status.label}" for count, status in counts if count)
    return f"{len(results.trials)} trials: {listed}."


def _title(results: SweepResults, position: int) -> str:
    """The data set's name; with the protocol if the report has this data set under several protocols."""
    comparison = results.comparisons[position]
    again = any(
        other.dataset.name == comparison.dataset.name and other.protocol != comparison.protocol
        for other in results.comparisons
    )
    return f"{comparison.name} ({comparison.protocol})" if again else comparison.name


def _file_name(results: SweepResults, position: int) -> str:
    name = results.comparisons[position].dataset.name
    before = sum(other.dataset.name == name for other in results.comparisons[:position])
    return f"{name}-{before + 1}" if before else name


def _notes(comparison: Comparison) -> Iterable[str]:
    protocol, task = comparison.protocol, comparison.task
    yield (
        f"Protocol {protocol.simulation}: {task.env_id}, {protocol.episodes} episodes of at most {task.horizon} steps, "
        f"evaluation seed {protocol.seed}, decode mode {protocol.decode}"
        f"{noise_text(protocol)}."
    )
    yield from _target_note(comparison)
    dataset = comparison.dataset
    if dataset.generate is not None:
        made = dataset.generate
        yield (
            f"dmray recorded the data ({made.behaviour}, {made.transitions:,} transitions, seed {made.seed}). It is "
            "not D4RL's data, so these are not benchmark results."
        )
    elif dataset.path is not None:
        yield f"The data is from the user's file {Path(dataset.path).name}."
    labels: dict[str, dict[str, None]] = {}
    for seed_group in comparison.seed_groups:
        for trial in seed_group.trials:
            labels.setdefault(_model(trial), {})[seed_group.label] = None
    for model, of_model in labels.items():
        yield f"{model}." if len(labels) == 1 else f"{', '.join(of_model)}: {model}."


def _target_note(comparison: Comparison) -> Iterable[str]:
    """The target return that each method's score is for, as the records say; and the methods that take none."""
    labels: dict[float | None, list[str]] = {}
    for seed_group in comparison.seed_groups:
        scored = [trial.scores for trial in seed_group.trials if len(trial.scores)]
        if scored:
            labels.setdefault(scored[0].target_return, []).append(seed_group.label)
    for target, names in labels.items():
        if target is not None:
            others = ", ".join(f"{other:g}" for other in comparison.target_returns if other != target)
            also = f"; the ledgers and MLflow also have: {others}" if others else ""
            yield f"Target return of the score: {target:g}, the first of the list{also} ({', '.join(names)})."
    if None in labels:
        yield f"Without a target return: {', '.join(labels[None])}."


def _model(result: TrialResult) -> str:
    model, training = result.trial.model, result.trial.training
    return (
        f"{_preset(result.trial)}width {model.d_model}, {model.n_layer} layer{'s' * (model.n_layer > 1)}, "
        f"context {model.context_length}; "
        f"{training.steps:,} steps of batch {training.batch_size}, learning rate {training.learning_rate:g}"
    )


def _preset(trial: TrialSpec) -> str:
    """The preset of a trial whose method has presets; if it is none, what differs from the first one."""
    presets = METHODS[trial.method].presets
    if not presets:
        return ""
    if trial.preset is not None:
        return f"preset {trial.preset}, "
    of_first = ((trial.model, presets[0].model), (trial.training, presets[0].training))
    changed = [
        f"{name} {shown_value(getattr(section, name))}"
        for section, fields in of_first
        for name, value in fields.items()
        if getattr(section, name) != value
    ]
    return f"preset {presets[0].name} but for {', '.join(changed)}, "


def _missing(results: SweepResults) -> Iterable[Block]:
    lacking = [result for result in results.trials if result.status is not TrialStatus.FINISHED]
    if not lacking:
        yield Paragraph("None: every trial has finished.")
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
    title = f"{len(lacking)} trials without a last score"
    yield Table(title, ("trial", "status", "steps", "reason"), rows, name="missing")
    if len(lacking) > _MOST_LISTED:
        yield Paragraph(f"And {len(lacking) - _MOST_LISTED} more; trials.csv lists all.")


def _reason(result: TrialResult) -> str:
    reasons = {
        TrialStatus.DIVERGED: "the loss was not finite",
        TrialStatus.STOPPED_EARLY: f"at the rung of step {result.stopped_by.step:,}" if result.stopped_by else "",
        TrialStatus.PAUSED: "can be continued from its checkpoint",
        TrialStatus.STARTED: "interrupted or still running",
        TrialStatus.WAITING: "not started",
    }
    return result.error or reasons.get(result.status, "")


def _versions(results: SweepResults) -> Iterable[str]:
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
    yield f"Retries and restarts of trials: {restarts}"
