"""The results as Arrow tables for CSV files and notebooks: one row per trial, and one row per evaluation.

The columns of scores and speeds are the metrics of `dmray.records.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from dmray.escaping import csv_text
from dmray.files import write_atomic
from dmray.records import ResultIdentity, Score, ScoreSeries
from dmray.records.metrics import single_metrics
from dmray.records.scores import EVALUATION_METRICS
from dmray.reporting.results import SweepResults, TrialResult
from dmray.tasks import protocol_of


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a CSV file with a header. Unknown values are empty; no text is a formula of a spreadsheet."""
    columns = [
        pa.array([None if text is None else csv_text(text) for text in column.to_pylist()], pa.string())
        if pa.types.is_string(column.type)
        else column
        for column in table.columns
    ]
    table = pa.table(columns, names=table.column_names)
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(quoting_style="needed"))
    write_atomic(path, sink.getvalue().to_pybytes())


def trial_columns(results: SweepResults) -> pa.Table:
    """One row per trial (`trials.csv`)."""
    rows = [_trial_row(result) for result in results.trials]
    columns = dict.fromkeys(name for row in rows for name in row)  # configs of different methods have different fields
    return pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])


def curve_columns(results: SweepResults) -> pa.Table:
    """One row per evaluation (`curves.csv`). Learning curves are drawn from these values."""
    scored = [result for result in results.trials if len(result.scores)]
    counts = [len(result.scores) for result in scored]

    def repeated(values: list[object]) -> pa.Array:
        """A column with the same value for all evaluations of a trial, from one value per trial."""
        places = pa.array(np.repeat(np.arange(len(scored), dtype=np.int32), counts))
        return pa.DictionaryArray.from_arrays(places, pa.array(values)).cast(pa.array(values).type)

    def joined(column: Callable[[ScoreSeries], np.ndarray]) -> pa.Array:
        return pa.array(np.concatenate([column(result.scores) for result in scored]))

    if not scored:
        return pa.table({"trial_id": pa.array([], pa.string())})
    return pa.table(
        {
            "trial_id": repeated([result.trial.trial_id for result in scored]),
            "dataset": repeated([result.trial.dataset.name for result in scored]),
            "protocol": repeated([protocol_of(result.trial.dataset) for result in scored]),
            "method": repeated([result.trial.method for result in scored]),
            "seed_group_id": repeated([result.group_id for result in scored]),
            "seed": repeated([result.trial.seed for result in scored]),
            "target_return": repeated([result.scores.target_return for result in scored]),
            "step": joined(lambda scores: scores.step),
            "quick": joined(lambda scores: scores.quick),
            **{name: joined(partial(_column, name)) for name in EVALUATION_METRICS},
        }
    )


def _column(name: str, scores: ScoreSeries) -> np.ndarray:
    return scores.columns[name]


def _trial_row(result: TrialResult) -> dict[str, object]:
    trial = result.trial
    return {
        "trial_id": trial.trial_id,
        "seed_group_id": result.group_id,
        "dataset": trial.dataset.name,
        "protocol": protocol_of(trial.dataset),
        "method": trial.method,
        "preset": trial.preset,
        "seed": trial.seed,
        "status": result.status.value,
        "role": "selection" if result.is_selection else "report",
        **trial.model.model_dump(),
        **{"training_steps" if name == "steps" else name: value for name, value in trial.training.model_dump().items()},
        "decode": trial.evaluation.decode,
        "episodes": trial.evaluation.episodes,
        "evaluation_seed": trial.evaluation.seed,
        "action_noise": trial.evaluation.action_noise,
        "observation_noise": trial.evaluation.observation_noise,
        "steps": result.steps,
        **{f"train_{metric.name}": result.training.get(metric.name) for metric in single_metrics("train")},
        **_score_columns("last", result.last),
        **_score_columns("best", result.best),
        "last_ten_normalized_score": result.mean_of_last(10),
        "attempts": result.attempts,
        "train_s": result.train_s,
        "evaluation_s": result.evaluation_s,
        **_identity_columns(result),
        "error": result.error,
    }


def _identity_columns(result: TrialResult) -> dict[str, object]:
    """What scores depend on beside the settings: only rows that agree in these may share a mean."""
    values = result.identity.values() if result.identity else dict.fromkeys(ResultIdentity._fields)
    return {f"{name}_identity": value or None for name, value in values.items()}


def _score_columns(which: str, score: Score | None) -> dict[str, object]:
    values = score.values if score else {}
    columns = {f"{which}_{name}": values.get(name) for name in EVALUATION_METRICS}
    return {f"{which}_step": score.step if score else None, **columns}
