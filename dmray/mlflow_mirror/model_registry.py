"""The best policies of a sweep in MLflow's model registry: one for each method and data set.

The rule, which the version's tag `dmray.selected_by` repeats: of a method's seed groups (sizes, settings) on a data set
under one decode mode, the one with the highest mean of the last score over its finished seeds; of that group, the final
weights of the seed whose last score is nearest the group's median (ties: the smaller seed). The median, because the
best seed's score would be higher than that of the next training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import Any

from dmray.mlflow_mirror.layout import (
    FINAL_MODEL,
    GROUP_SCORE,
    IDENTITY,
    REGISTERED_MODEL_NOTE,
    SWEEP_ID,
    alias_name,
    model_name,
    registry_tags,
)
from dmray.mlflow_mirror.models import find_logged
from dmray.records import ResultIdentity
from dmray.records.identity import differing_parts
from dmray.specs import TrialSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedTrial:
    """A finished trial with its run, its last normalized score and what that score depends on beside the spec."""

    trial: TrialSpec
    run_id: str
    score: float
    identity: ResultIdentity = ResultIdentity()  # noqa: RUF009 - a named tuple, which nobody can change


@dataclass(frozen=True)
class BestPolicy:
    """A run whose final weights are to be a version of the registered model `model`, with `alias` pointing at it."""

    model: str
    alias: str
    run_id: str
    seed_group_score: float
    tags: dict[str, str]


def best_policies(finished: Iterable[FinishedTrial], sweep: str) -> list[BestPolicy]:
    """One policy for each method, data set and decode mode that has a finished trial.

    Trials on other contents of the data, with other simulators or other code do not compete: each kind has its policy,
    and its alias says which.
    """
    ordered = sorted(finished, key=_place)
    found = []
    for _, group in groupby(ordered, key=_place):
        trials = list(group)
        kinds = list(dict.fromkeys(each.identity for each in trials))
        apart = differing_parts(kinds)
        found += [_best_policy([each for each in trials if each.identity == kind], sweep, apart) for kind in kinds]
    return found


def _place(finished: FinishedTrial) -> tuple[str, str]:
    return model_name(finished.trial), alias_name(finished.trial)


def _best_policy(trials: Sequence[FinishedTrial], sweep: str, apart: tuple[str, ...]) -> BestPolicy:
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
    tags = registry_tags(seed.trial, seed.identity, sweep, len(seed_group), mean, seed.score)
    alias = alias_name(seed.trial, seed.identity, apart)
    return BestPolicy(model_name(seed.trial), alias, seed.run_id, mean, tags)


def ensure_registered(client: Any, experiment: str, policy: BestPolicy, sweep_id: str) -> None:
    """Make the registered model, the version and the alias that are missing.

    An alias that another sweep set stays if that sweep's seed group has the higher score, or is of other data, another
    simulator or other code: then the scores do not compare, and a warning says so.
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
    if tags.get(SWEEP_ID) == sweep_id:
        return True
    if tags.get(IDENTITY) != policy.tags[IDENTITY]:
        _log.warning(
            "models:/%s@%s stays at version %s: its scores are of other data, another simulator or other code, so they "
            "do not compare; to move it, delete the alias in MLflow and register again",
            *(policy.model, policy.alias, held),
        )
        return False
    return _number(tags.get(GROUP_SCORE)) <= policy.seed_group_score


def _number(text: str | None) -> float:
    """The number in a tag; below all scores if it has none."""
    try:
        number = float(text or "")
    except ValueError:
        return -math.inf
    return number if math.isfinite(number) else -math.inf
