"""What happened: each trial's ledger (the truth), MLflow as its mirror, provenance. Light: MLflow loads when opened."""

from dmray.records.episode_table import read_episode_table, write_episode_table
from dmray.records.folders import SweepFolder, TrialFolder
from dmray.records.ledger import Ledger, LedgerTail, distinct, read_ledger
from dmray.records.ledger_summary import LedgerSummary, ScoreSeries, summarize_ledger, summarize_ledgers
from dmray.records.provenance import provenance
from dmray.records.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    LedgerRecord,
    RungDecision,
    TargetResult,
    TrainProgress,
    TrialDone,
    TrialStopped,
)
from dmray.records.scores import Score, Spread, best_score, last_score

__all__ = [
    "AttemptFailed",
    "AttemptPaused",
    "AttemptStarted",
    "EvaluationDone",
    "EvaluationSkipped",
    "Ledger",
    "LedgerRecord",
    "LedgerSummary",
    "LedgerTail",
    "RungDecision",
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
    "provenance",
    "read_episode_table",
    "read_ledger",
    "summarize_ledger",
    "summarize_ledgers",
    "write_episode_table",
]
