"""A trial's data set as MLflow knows data sets: a name, a digest, where it is from, what is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dmray.records.records import AttemptStarted
from dmray.specs import DatasetSpec, TrialSpec
from dmray.tasks import DATASETS

_LONGEST_DIGEST = 36  # MLflow's; the whole fingerprint is the run's tag data.sha256


@dataclass(frozen=True)
class DatasetUsed:
    """`source` and `profile` are JSON."""

    name: str
    digest: str
    source_type: str
    source: str
    profile: str | None


def dataset_used(trial: TrialSpec, record: AttemptStarted) -> DatasetUsed | None:
    """What the attempt says it trains on; None for an attempt that did not get to open it."""
    fingerprint = record.provenance.get("dataset_fingerprint")
    if fingerprint is None:
        return None
    kind, source = _source(trial.dataset)
    facts = record.provenance.get("dataset")
    profile = None if facts is None else json.dumps(facts)
    return DatasetUsed(trial.dataset.name, fingerprint[:_LONGEST_DIGEST], kind, json.dumps(source), profile)


def _source(dataset: DatasetSpec) -> tuple[str, dict[str, object]]:
    if dataset.generate is not None:
        return "recorded", {"task": dataset.task, **dataset.generate.model_dump(mode="json")}
    if dataset.path is not None:
        return "local", {"uri": dataset.path}
    return "published", {"uri": DATASETS[dataset.name].url}
