"""Sweeps and trials as frozen, validated values. Imports neither numpy nor torch, so that planning is fast."""

from dmray.frozen import Spec, canonical_json, content_hash
from dmray.specs.decode import DECODE_MODES, Decode, DecodeMode, parse_decode, positive_number
from dmray.specs.domains import Domain, Interval, Values, Varied, domains_in, shown_value, with_values
from dmray.specs.early_stopping import EarlyStoppingSpec, Within
from dmray.specs.loading import load_sweep
from dmray.specs.search import SearchSpec
from dmray.specs.sweep import (
    MAX_TRIALS,
    NO_MLFLOW,
    FaultSpec,
    GridBlock,
    OverrideSpec,
    ResourcesSpec,
    SweepSpec,
    TrackingSpec,
    WandbSpec,
    matches,
    unmatched,
)
from dmray.specs.trial import (
    IDENTITY_VERSION,
    DatasetSpec,
    EvaluationSpec,
    Generation,
    LossMean,
    MethodName,
    NoiseLevel,
    TrainingSpec,
    TrialSpec,
    noise_text,
    unused_in_training,
)

__all__ = [
    "DECODE_MODES",
    "IDENTITY_VERSION",
    "MAX_TRIALS",
    "NO_MLFLOW",
    "DatasetSpec",
    "Decode",
    "DecodeMode",
    "Domain",
    "EarlyStoppingSpec",
    "EvaluationSpec",
    "FaultSpec",
    "Generation",
    "GridBlock",
    "Interval",
    "LossMean",
    "MethodName",
    "NoiseLevel",
    "OverrideSpec",
    "ResourcesSpec",
    "SearchSpec",
    "Spec",
    "SweepSpec",
    "TrackingSpec",
    "TrainingSpec",
    "TrialSpec",
    "Values",
    "Varied",
    "WandbSpec",
    "Within",
    "canonical_json",
    "content_hash",
    "domains_in",
    "load_sweep",
    "matches",
    "noise_text",
    "parse_decode",
    "positive_number",
    "shown_value",
    "unmatched",
    "unused_in_training",
    "with_values",
]
