"""Sweeps and trials as frozen, validated values. Imports neither numpy nor torch, so that planning is fast."""

from dmray.frozen import Spec, canonical_json, content_hash
from dmray.specs.decode import DECODE_MODES, Decode, DecodeMode, parse_decode, positive_number
from dmray.specs.early_stopping import EarlyStoppingSpec, Within
from dmray.specs.loading import load_sweep
from dmray.specs.sweep import NO_MLFLOW, FaultSpec, GridBlock, ResourcesSpec, SweepSpec, TrackingSpec
from dmray.specs.trial import (
    IDENTITY_VERSION,
    DatasetSpec,
    EvaluationSpec,
    Generation,
    MethodName,
    TrainingSpec,
    TrialSpec,
)

__all__ = [
    "DECODE_MODES",
    "IDENTITY_VERSION",
    "NO_MLFLOW",
    "DatasetSpec",
    "Decode",
    "DecodeMode",
    "EarlyStoppingSpec",
    "EvaluationSpec",
    "FaultSpec",
    "Generation",
    "GridBlock",
    "MethodName",
    "ResourcesSpec",
    "Spec",
    "SweepSpec",
    "TrackingSpec",
    "TrainingSpec",
    "TrialSpec",
    "Within",
    "canonical_json",
    "content_hash",
    "load_sweep",
    "parse_decode",
    "positive_number",
]
