"""The best policies of a sweep in MLflow's model registry: one for each method and data set.

The rule, which the version's tag `dmray.selected_by` repeats: of a method's seed groups (sizes, settings) on a data set
under one decode mode, the one with the highest mean of the last score over its finished seeds; of that group, the final
weights of the seed whose last score is nearest the group's median (ties: the smaller seed). The median, because the
best seed's score would be higher than that of the next training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import Any

from dmray.mlflow_mirror.layout import (
    FINAL_MODEL,
    GROUP_SCORE,
    REGISTERED_MODEL_NOTE,
    SWEEP_ID,
    alias_name,
    model_name,
    registry_tags,
)
from dmray.mlflow_mirror.models import find_logged
from dmray.specs import TrialSpec


@dataclass(frozen=True)
class FinishedTrial:
    """A finished trial with its run and its last normalized score."""

    trial: TrialSpec
    run_id: str
    score: float


@dataclass(frozen=True)
class BestPolicy:
    """A run whose final weights are to be a version of the registered model `model`, with `alias` pointing at it."""

    model: str
    alias: str
    run_id: str
    seed_group_score: float
    tags: dict[str, str]


def best_policies(finished: Iterable[FinishedTrial], sweep: str) -> list[BestPolicy]:
    """One policy for each method, data set and decode mode that has a finished trial."""
    ordered = sorted(finished, key=_place)
    return [_best_policy(list(group), sweep) for _, group in groupby(ordered, key=_place)]


def _place(finished: FinishedTrial) -> tuple[str, str]:
    return model_name(finished.trial), alias_name(finished.trial)


def _best_policy(trials: Sequence[FinishedTrial], sweep: str) -> BestPolicy:
    seed_groups: dict[str, list[FinishedTrial]] = {}
    for each in trials:
        seed_groups.setdefault(each.trial.seed_group_id, []).append(each)
    seed_group = max(
        seed_groups.values(),
        key=lambda members: (fmean(each.score for each in members), members[0].trial.seed_group_id),
    )
    middle = median(each.score for each in seed_group)
    seed = min(seed_group, key=lambda each: (abs(each.score - middle), each.trial.seed))
    mean = fmean(each.score for each in seed_group)
    tags = registry_tags(seed.trial, sweep, len(seed_group), mean, seed.score)
    return BestPolicy(model_name(seed.trial), alias_name(seed.trial), seed.run_id, mean, tags)


def ensure_registered(client: Any, experiment: str, policy: BestPolicy, sweep_id: str) -> None:
    """Make the registered model, the version and the alias that are missing.

    An alias that another sweep set stays if that sweep's seed group has the higher score.
    """
    model = find_logged(client, experiment, policy.run_id, FINAL_MODEL)
    if model is None:
        return
    name = policy.model
    versions = client.search_model_versions(f"name='{name}'")
    if not versions and not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name, description=REGISTERED_MODEL_NOTE)
    source = model.artifact_location  # not models:/<id>: an SQLite registry looks that up in another place
    version = next((each for each in versions if each.source == source), None)
    tags = {**policy.tags, SWEEP_ID: sweep_id}
    if version is None:
        version = client.create_model_version(
            name, source, policy.run_id, tags=tags, model_id=model.model_id, await_creation_for=None
        )
    elif dict(version.tags) != tags:
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    held = client.get_registered_model(name).aliases.get(policy.alias)
    if held != version.version and _may_move(client, policy, held, sweep_id):
        client.set_registered_model_alias(name, policy.alias, version.version)


def _may_move(client: Any, policy: BestPolicy, held: str | None, sweep_id: str) -> bool:
    if held is None:
        return True
    tags = client.get_model_version(policy.model, held).tags
    return tags.get(SWEEP_ID) == sweep_id or float(tags.get(GROUP_SCORE, "-inf")) <= policy.seed_group_score
