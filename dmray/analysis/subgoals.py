"""Do the subgoals of HDT and HDM mean something? Measured on stored policies; tables, figures and a summary.

On windows of the data set: `dmray.analysis.subgoal_measures`. In the simulator, with subgoals from other sources:
`dmray.analysis.subgoal_sources`. The windows are of the data that the policy was trained on: there is no held-out part.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from dmray.analysis.stored import DataSets, LeftOut, StoredPolicies, open_data, write_notes
from dmray.analysis.subgoal_figures import Picture, draw_picture, draw_reach, draw_scores, draw_sources
from dmray.analysis.subgoal_measures import (
    BASELINES,
    FED_BACK,
    LABEL,
    PREDICTED,
    REFERENCES,
    Measured,
    Points,
    ScaledStates,
    default_radius,
    draw_points,
    fed_back_states,
    measure,
    nearest_visited,
    predicted_states,
    reference_subgoals,
)
from dmray.analysis.subgoal_results import RunSubgoals, Setting, group_runs, tables_of
from dmray.analysis.subgoal_sources import FED, Remembered, remember, scores_by_source
from dmray.datasets import Episodes, subgoal_rows
from dmray.errors import SpecError
from dmray.escaping import file_part
from dmray.inference import Policy
from dmray.inference.evaluation import computing_as_an_actor
from dmray.methods import METHODS
from dmray.records import Spread
from dmray.reporting.columns import write_csv
from dmray.terminal import FittingTable

OnPolicy = Callable[[int, int], None]  # called with the numbers of analysed and of all policies
_HEADS = {
    "to_label": "to\nlabel",
    "to_visited": "to\nvisited",
    "reached": "share\nreached",
    "different": "different",
    "held": "held",
}
_DIGITS = {"to_label": 2, "to_visited": 2, "reached": 2, "different": 0, "held": 1}


@dataclass(frozen=True)
class SubgoalOptions:
    """`within`: n, the timesteps in which a subgoal may be reached. `radius`: at which distance it is; None: half of
    the median distance of two states of an episode that are `within` timesteps apart. `stretches`: how many stretches
    of the data set, of up to `length` consecutive timesteps each. `episodes`: in the simulator, for each source of
    subgoals; 0: none. `seed`: of what is drawn.
    """

    within: int = 20
    radius: float | None = None
    stretches: int = 20
    length: int = 100
    episodes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class SubgoalAnalysis:
    """The result; printed with `rich` it is a summary.

    `left_out`: sentences about policies that were not analysed. `failed`: about policies and data sets that cannot be
    read. `pictures`: what is drawn of each policy, by trial id and step.
    """

    options: SubgoalOptions
    settings: tuple[Setting, ...]
    left_out: tuple[str, ...]
    pictures: Mapping[tuple[str, int], Picture] = field(repr=False)
    failed: tuple[str, ...] = ()

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """`runs`, `settings`, `reach` and, with episodes, `scores`, as `dmray.analysis.subgoal_results.tables_of`."""
        return {name: pd.DataFrame(rows) for name, rows in tables_of(self.settings).items() if rows}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for dataset, settings in _by_dataset(self.settings).items():
            yield _measured_table(dataset, settings)
            if self.options.episodes:
                yield _score_table(dataset, settings)
            yield from (Text(nearer_sentence(setting), style="bold") for setting in settings)
            yield Text(
                f"distances: z-scored, root mean square over dimensions; visited: within {self.options.within} "
                f"timesteps; reached: nearer than {settings[0].runs[0].radius:.3g}; held: in timesteps\n",
                style="dim",
            )


def analyze_subgoals(
    stored: StoredPolicies,
    options: SubgoalOptions,
    on_policy: OnPolicy = lambda done, total: None,
    workers: int = 1,
) -> SubgoalAnalysis:
    """Analyse the stored policies whose method predicts subgoals. `workers`: processes for the episodes.

    A policy or a data set that is missing, damaged or another one by now is in `failed`; the others are analysed.

    Raises:
        SpecError: no policy predicts subgoals.
        CheckpointError, DatasetError: no policy, or no data set, can be used.
        EngineError: there are to be episodes, and the task has no simulator here.
    """
    runs: list[RunSubgoals] = []
    left_out, without, unread = list(stored.left_out), list[str](), list[str]()
    data = DataSets(lambda policy: _Data.of(policy, options))
    pictures: dict[tuple[str, int], Picture] = {}
    with _processes(workers if options.episodes else 1) as pool:
        for number, (_, policy) in enumerate(stored.load_each(), start=1):
            if isinstance(policy, LeftOut):
                (unread if policy.failed else left_out).append(policy.sentence)
            elif policy.predicts_subgoals:
                of_data = data.of(policy)
                if of_data is not None:
                    with computing_as_an_actor(deterministic=False):  # one thread: the batches are too small for more
                        run, picture = _analyse(policy, of_data, options, pool)
                    runs.append(run)
                    pictures[run.trial.trial_id, run.step] = picture
            else:
                without.append(f"{policy}: {METHODS[policy.method].label} predicts no subgoals")
            on_policy(number, len(stored.policies))
    failed = data.failed_with(unread, runs)
    if not runs:
        known = ", ".join(name for name in METHODS if METHODS[name].predicts_subgoals)
        raise SpecError(f"{without[0]}; give runs of a method that does: {known}")
    return SubgoalAnalysis(options, tuple(group_runs(runs)), (*left_out, *without), pictures, failed)


def _processes(workers: int) -> AbstractContextManager[Executor | None]:
    """None: this process alone."""
    if workers == 1:
        return nullcontext()
    return ProcessPoolExecutor(min(workers, len(FED)), mp_context=multiprocessing.get_context("spawn"))


def write_subgoals(analysis: SubgoalAnalysis, into: Path) -> list[Path]:
    """Write the tables (CSV), the figures of each data set, a picture of each setting's first run, and `notes.txt`.

    Returns the files, of figures the PNG; each has an SVG beside it.
    """
    into.mkdir(parents=True, exist_ok=True)
    write_notes((*analysis.left_out, *analysis.failed), into)
    paths: list[Path] = []
    for name, table in analysis.tables.items():
        paths.append(into / f"{name}.csv")
        write_csv(paths[-1], pa.Table.from_pandas(table, preserve_index=False))
    for dataset, settings in _by_dataset(analysis.settings).items():
        figures = {"distances": draw_sources, "reach": draw_reach}
        if analysis.options.episodes:
            figures["scores"] = draw_scores
        for what, draw in figures.items():
            paths.append(into / f"{what}-{file_part(dataset)}.png")
            draw(dataset, settings, paths[-1])
    for setting in analysis.settings:
        run = setting.runs[0]
        paths.append(into / f"picture-{run.trial.trial_id}-step{run.step}.png")
        title = f"{setting.label}, on {setting.dataset}, seed {run.trial.seed}"
        draw_picture(analysis.pictures[run.trial.trial_id, run.step], METHODS[setting.method], title, paths[-1])
    return paths


def nearer_sentence(setting: Setting) -> str:
    """Says in how many runs the subgoals that are fed back are nearer to their labels than each baseline."""
    fed_back = setting.values(FED_BACK, "to_label")
    counts = [(source, int((fed_back < setting.values(source, "to_label")).sum())) for source in BASELINES]
    runs = len(setting.runs)
    of_runs = f"{runs} run{'' if runs == 1 else 's'}"
    nearer = "its subgoals, fed back, are nearer to their labels than"
    if all(count == runs for _, count in counts):
        return f"{setting.label}: {nearer} every baseline in all of {of_runs}."
    return (
        f"{setting.label}: of {of_runs}, {nearer} {', '.join(f'the {source} in {count}' for source, count in counts)}."
    )


@dataclass(frozen=True)
class _Data:
    """What the runs on one data set share."""

    episodes: Episodes
    states: ScaledStates
    label_rows: np.ndarray
    points: Points
    radius: float
    remembered: Remembered
    present: np.ndarray  # raw, at the points
    labels: np.ndarray

    @classmethod
    def of(cls, policy: Policy, options: SubgoalOptions) -> _Data:
        episodes = open_data(policy).episodes
        mean, std = policy.network.state_mean.numpy(), policy.network.state_std.numpy()
        states, label_rows = ScaledStates(episodes.observations, mean, std), subgoal_rows(episodes)
        points = draw_points(episodes, options.stretches, options.length, options.seed)
        radius = options.radius or default_radius(states, points, options.within)
        remembered = remember(episodes, label_rows, std, options.seed)
        present, labels = episodes.observations[points.rows], episodes.observations[label_rows[points.rows]]
        return cls(episodes, states, label_rows, points, radius, remembered, present, labels)


def _analyse(
    policy: Policy, data: _Data, options: SubgoalOptions, pool: Executor | None
) -> tuple[RunSubgoals, Picture]:
    points, states = data.points, data.states
    raw = predicted_states(policy.network, data.episodes, points)
    fed_back = fed_back_states(policy.network, policy.decode, data.episodes, points)
    subgoals = {
        PREDICTED: states.scaled(raw),
        FED_BACK: states.scaled(fed_back),
        **reference_subgoals(states, data.label_rows, points, options.seed),
    }
    visited = {name: nearest_visited(each, states, points, options.within) for name, each in subgoals.items()}
    measured = {
        name: measure(each, subgoals[LABEL], visited[name], points, data.radius) for name, each in subgoals.items()
    }
    scores: Mapping[str, np.ndarray] = {}
    if options.episodes:
        held = max(1, round(measured[LABEL].held))
        scores = scores_by_source(policy, data.remembered, options.episodes, held, options.seed, pool)
    run = RunSubgoals(
        policy.trial,
        policy.step,
        data.episodes.fingerprint,
        options.within,
        data.radius,
        measured,
        visited,
        scores,
    )
    return run, Picture(policy.task, data.remembered.states, data.present, data.labels, fed_back, states)


def _by_dataset(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    found: dict[str, list[Setting]] = {}
    for setting in settings:
        found.setdefault(setting.dataset, []).append(setting)
    return found


def _measured_table(dataset: str, settings: Sequence[Setting]) -> FittingTable:
    """A row for the predictions of each setting, then the label and the baselines, which all settings share."""
    rows = [(setting.label, setting, PREDICTED) for setting in settings]
    rows += [(f"{setting.label}, fed back", setting, FED_BACK) for setting in settings]
    rows += [(source, settings[0], source) for source in REFERENCES]
    table = _new_table(f"Subgoals of {dataset}", list(_HEADS.values()))
    for label, setting, source in rows:
        values = {name: setting.values(source, name) for name in Measured._fields}
        shared = source in REFERENCES
        cells = [_spread(each[:1] if shared else each, _DIGITS[name]) for name, each in values.items()]
        table.add_row(label, *cells, style="dim" if shared else "")
    return table


def _score_table(dataset: str, settings: Sequence[Setting]) -> FittingTable:
    table = _new_table(f"Normalized score on {dataset} when the low network is fed", list(FED))
    for setting in settings:
        cells = []
        for fed in FED:
            value, interval = setting.score(fed)
            cells.append(f"{value:z.1f}" + (f"\n[{interval[0]:z.1f}, {interval[1]:z.1f}]" if interval else ""))
        table.add_row(setting.label, *cells)
    return table


def _new_table(title: str, heads: Sequence[str]) -> FittingTable:
    table = FittingTable(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("")
    for head in heads:
        table.add_column(head.replace(" ", "\n"), justify="right", no_wrap=True)
    return table


def _spread(values: np.ndarray, digits: int) -> str:
    spread = Spread.of(values.tolist())
    assert spread is not None, "a setting has runs"
    return f"{spread.mean:z.{digits}f}" + ("" if spread.std is None else f" ± {spread.std:z.{digits}f}")
