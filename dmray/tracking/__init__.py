"""What happened: each trial's ledger (the truth), MLflow as its mirror, provenance. Light: MLflow loads when opened."""

from dmray.tracking.episode_table import read_episode_table, write_episode_table
from dmray.tracking.folders import SweepFolder, TrialFolder, write_atomic, write_json
from dmray.tracking.ledger import Ledger, LedgerTail, distinct, read_ledger
from dmray.tracking.ledger_summary import LedgerSummary, ScoreSeries, summarize_ledger, summarize_ledgers
from dmray.tracking.mirror_thread import MirrorThread
from dmray.tracking.mlflow_mirror import Lag, MlflowMirror
from dmray.tracking.provenance import provenance
from dmray.tracking.records import (
    AttemptFailed,
    AttemptLeft,
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    LedgerRecord,
    RungJudged,
    TargetResult,
    TrainProgress,
    TrialDone,
    TrialStopped,
)
from dmray.tracking.run_labels import method_label
from dmray.tracking.scores import Score, Spread, best_score, last_score

__all__ = [
    "AttemptFailed",
    "AttemptLeft",
    "AttemptStarted",
    "EvaluationDone",
    "EvaluationSkipped",
    "Lag",
    "Ledger",
    "LedgerRecord",
    "LedgerSummary",
    "LedgerTail",
    "MirrorThread",
    "MlflowMirror",
    "RungJudged",
    "Score",
    "ScoreSeries",
    "Spread",
    "SweepFolder",
    "TargetResult",
    "TrainProgress",
    "TrialDone",
    "TrialFolder",
    "TrialStopped",
    "best_score",
    "distinct",
    "last_score",
    "method_label",
    "provenance",
    "read_episode_table",
    "read_ledger",
    "summarize_ledger",
    "summarize_ledgers",
    "write_atomic",
    "write_episode_table",
    "write_json",
]
