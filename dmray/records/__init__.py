"""What happened: each trial's ledger (the truth), the list of metrics, scores, provenance."""

from dmray.records.episode_table import read_episode_table, write_episode_table
from dmray.records.fast_decoder import LightRecord
from dmray.records.folders import SweepFolder, TrialFolder
from dmray.records.identity import ResultIdentity, identity_of
from dmray.records.ledger import (
    Ledger,
    LedgerPrefix,
    LedgerTail,
    changed_since_done,
    counting,
    distinct,
    read_done_marker,
    read_ledger,
    write_done_marker,
)
from dmray.records.metrics import METRICS, Metric
from dmray.records.provenance import provenance
from dmray.records.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    LedgerRecord,
    RungDecision,
    StartedOver,
    TargetResult,
    TrainingExtended,
    TrainProgress,
    TrialDone,
    TrialStopped,
)
from dmray.records.reevaluations import (
    Conditions,
    Reevaluation,
    has_reevaluation,
    read_reevaluations,
    write_reevaluation,
)
from dmray.records.scores import Score, ScoreSeries, Spread, best_score, last_score

__all__ = [
    "METRICS",
    "AttemptFailed",
    "AttemptPaused",
    "AttemptStarted",
    "Conditions",
    "EvaluationDone",
    "EvaluationSkipped",
    "Ledger",
    "LedgerPrefix",
    "LedgerRecord",
    "LedgerTail",
    "LightRecord",
    "Metric",
    "Reevaluation",
    "ResultIdentity",
    "RungDecision",
    "Score",
    "ScoreSeries",
    "Spread",
    "StartedOver",
    "SweepFolder",
    "TargetResult",
    "TrainProgress",
    "TrainingExtended",
    "TrialDone",
    "TrialFolder",
    "TrialStopped",
    "best_score",
    "changed_since_done",
    "counting",
    "distinct",
    "has_reevaluation",
    "identity_of",
    "last_score",
    "provenance",
    "read_done_marker",
    "read_episode_table",
    "read_ledger",
    "read_reevaluations",
    "write_done_marker",
    "write_episode_table",
    "write_reevaluation",
]
