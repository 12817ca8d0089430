"""The results of sweeps as pandas tables."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmray.errors import SpecError, StorageError
from dmray.planning.plan import Plan
from dmray.progress.trial_status import ENDED, TrialStatus
from dmray.records import ResultIdentity, SweepFolder, read_episode_table
from dmray.records.scores import Score
from dmray.registry import unknown
from dmray.reporting.across import results_by_protocol
from dmray.reporting.columns import curve_columns, trial_columns
from dmray.reporting.factorial import factorials
from dmray.reporting.factorial_view import factorial_columns
from dmray.reporting.reevaluations import reevaluation_columns
from dmray.reporting.render import ReportPaths, write_results
from dmray.reporting.results import Comparison, SeedGroup, SweepResults, TrialResult
from dmray.reporting.terminal import render_results

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

_TABLE = re.compile(r"step_([0-9]{9,18})\.parquet")
_EPISODE_COLUMNS = ("trial_id", "dataset", "method", "seed", "step")


@dataclass(frozen=True)
class Results:
    """The results of one or several sweeps, read from their records. A table is made when it is first used.

    `folders`: the sweeps' folders on this machine. `collected`: the same results as typed values. Normalized scores are
    D4RL's: 100 is the reference maximum. Scores of methods that take target returns are those of the first one.
    """

    folders: tuple[SweepFolder, ...]
    collected: SweepResults = field(repr=False)
    fetch_episodes: Callable[[], None] = field(default=lambda: None, repr=False)  # copies tables from an object store

    @property
    def name(self) -> str:
        """The sweep's name, or the names of several."""
        return self.collected.name

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The methods on each data set under each protocol."""
        return self.collected.comparisons

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: its settings, status, last and best scores, and times."""
        return trial_columns(self.collected).to_pandas()

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per evaluation during training: `step`, `normalized_score`, `return_mean`, `length_mean`."""
        return curve_columns(self.collected).to_pandas()

    @cached_property
    def reevaluations(self) -> pd.DataFrame:
        """One row per evaluation of a stored checkpoint after the training (`dmray.evaluate_sweep`)."""
        return reevaluation_columns(self.collected).to_pandas()

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per data set, method and size: mean and standard deviation of normalized scores over seeds.

        Results of other contents of a data set, other simulators or other code have rows of their own: the columns that
        end with `_identity` say which.

        `last`: the score of the final weights. `best`: the highest score during training. `trials`: the number of
        trials; `seeds`: the number of those that the means are computed over.
        """
        import pandas as pd

        rows = [_score_row(comparison, group) for comparison in self.comparisons for group in comparison.seed_groups]
        return pd.DataFrame(rows)

    @cached_property
    def factorial(self) -> pd.DataFrame:
        """One row per effect of returns, backbone and their interaction on each data set, as in `factorial.csv`."""
        return factorial_columns(factorials(results_by_protocol(self.comparisons))).to_pandas()

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row per episode of all evaluations: the trial, the training `step`, the episode's return and length.

        `index` and `episode_seed` identify the episode within its evaluation. A file that cannot be read is left out,
        with a warning in the log.
        """
        import pandas as pd

        self.fetch_episodes()
        parts = []
        for result in self.collected.trials:
            for path in self._tables(result.trial.trial_id):
                try:
                    parts.append(_episodes(result, path))
                except (FileNotFoundError, StorageError) as problem:  # all others are results nevertheless
                    _log.warning("%s; its episodes are left out", problem)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_EPISODE_COLUMNS)

    def trial_folder(self, trial_id: str) -> Path:
        """The folder of a trial's records and checkpoints on this machine, which `dmray.load_policy` accepts.

        Raises:
            SpecError: these results have no trial with this id.
        """
        if trial_id not in set(self.trials.trial_id):
            raise SpecError(unknown("trial", trial_id, list(self.trials.trial_id)))
        paths = [folder.trial(trial_id).path for folder in self.folders]
        return next((path for path in paths if path.exists()), paths[0])

    def write_report(
        self, into: str | Path | None = None, baseline: str | None = None, references: Sequence[str | Path] = ()
    ) -> ReportPaths:
        """Write report.html, report.md, tables.tex, CSV files and figures into the folder `into`.

        `into` None: `<sweep>/report` of the first sweep. `baseline`: the method that all others are compared with;
        None: each method's own baselines. `references`: CSV files of published results to show (docs/report.md).
        """
        target = self.folders[0].report if into is None else Path(into)
        return write_results(self.collected, target, baseline, list(map(Path, references)))

    def __rich__(self) -> Group:
        return render_results(self.collected)

    def _repr_html_(self) -> str:
        html: str = self.scores.to_html(float_format="{:z.1f}".format, na_rep="", index=False)
        return html

    def _tables(self, trial_id: str) -> list[Path]:
        """The files with a trial's episodes, by step. If several sweeps have the trial: of the one with most files."""
        found = [sorted(folder.trial(trial_id).evaluations.glob("step_[0-9]*.parquet")) for folder in self.folders]
        return max(found, key=len, default=[])


@dataclass(frozen=True)
class SweepRun(Results):
    """The results of a sweep that was run, and how it ended.

    `statuses`: the status of each trial that was selected to run, by trial id. `errors`: the first line of the error of
    each trial that failed, by trial id. `stopped_by`: who sent the command that stopped the sweep; None: nobody did.
    """

    plan: Plan = field(kw_only=True, repr=False)
    statuses: Mapping[str, TrialStatus] = field(kw_only=True, repr=False)
    errors: Mapping[str, str] = field(kw_only=True)
    stopped_by: str | None = field(kw_only=True, default=None)

    @property
    def succeeded(self) -> bool:
        """Whether every trial has a result or was stopped early. If some failed, the other results are valid."""
        return ENDED.issuperset(self.statuses.values())

    @property
    def report(self) -> Path:
        """The folder of the report (report.html, report.md, figures, tables)."""
        return self.folders[0].report


def _score_row(comparison: Comparison, group: SeedGroup) -> dict[str, object]:
    last = group.spread("last", _normalized)
    best = group.spread("best", _normalized)
    return {
        "dataset": comparison.dataset.name,
        "protocol": comparison.protocol.simulation,
        "method": group.method,
        "label": group.label,
        **{f"{part}_identity": value for part, value in _identity(group).items()},
        "trials": len(group.trials),
        "seeds": len(group.scored),
        "last": last.mean if last else None,
        "last_std": last.std if last else None,
        "best": best.mean if best else None,
        "best_std": best.std if best else None,
    }


def _identity(group: SeedGroup) -> dict[str, str | None]:
    """That of all its trials; None before the first has begun."""
    identity = next((trial.identity for trial in group.trials if trial.identity is not None), None)
    return {part: identity.values()[part] or None if identity else None for part in ResultIdentity._fields}


def _normalized(score: Score) -> float:
    return score.normalized


def _episodes(result: TrialResult, path: Path) -> pd.DataFrame:
    trial, named = result.trial, _TABLE.fullmatch(path.name)
    if named is None:
        raise StorageError(f"{path}: not the name of a table of episodes (step_000000005.parquet); remove it")
    frame = read_episode_table(path).to_pandas().rename(columns={"seed": "episode_seed"})
    values = (trial.trial_id, trial.dataset.name, trial.method, trial.seed, int(named[1]))
    for place, (name, value) in enumerate(zip(_EPISODE_COLUMNS, values, strict=True)):
        frame.insert(place, name, value)
    return frame
