"""Which policies of a sweep stand in MLflow's model registry for a method on a data set.

The rule of record, which the version's tag `dmray.selected_by` repeats: of a method's cells (sizes, settings) on a data
set under one decode mode, the one with the highest mean of the last score over its finished seeds; of that cell, the
final weights of the seed whose last score is nearest the cell's median (ties: the smaller seed). The median, because
the best seed would promise what the next training does not keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import Any

from dmray.mlflow_mirror.logged_policy import find_logged
from dmray.specs import TrialSpec
from dmray.tasks import task_of

RULE = "cell: highest mean last score over finished seeds; seed: last score nearest the cell's median; final weights"
_SCORE, _SWEEP = "dmray.cell_score", "dmray.sweep_id"


@dataclass(frozen=True)
class Finished:
    """A finished trial with its run and its last normalized score."""

    trial: TrialSpec
    run_id: str
    score: float


@dataclass(frozen=True)
class Champion:
    """A run whose final policy an alias of a registered model is to point at."""

    model: str
    alias: str
    run_id: str
    cell_score: float
    tags: dict[str, str]


def champions(finished: Iterable[Finished], sweep: str) -> list[Champion]:
    """One for each method, data set and decode mode that has a finished trial."""
    ordered = sorted(finished, key=_contest)
    return [_champion(list(group), sweep) for _, group in groupby(ordered, key=_contest)]


def model_name(trial: TrialSpec) -> str:
    """`dmray-{method}-{family}`."""
    return f"dmray-{trial.method.replace('+', '_')}-{task_of(trial.dataset).family}"


def alias_name(trial: TrialSpec) -> str:
    """The data set, and the decode mode where it is not `window`: scores of different modes are not compared."""
    decode = trial.evaluation.decode
    name = trial.dataset.name if decode == "window" else f"{trial.dataset.name}--{decode}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _contest(finished: Finished) -> tuple[str, str]:
    return model_name(finished.trial), alias_name(finished.trial)


def _champion(contenders: Sequence[Finished], sweep: str) -> Champion:
    seed_groups: dict[str, list[Finished]] = {}
    for each in contenders:
        seed_groups.setdefault(each.trial.seed_group_id, []).append(each)
    seed_group = max(
        seed_groups.values(),
        key=lambda members: (fmean(each.score for each in members), members[0].trial.seed_group_id),
    )
    middle = median(each.score for each in seed_group)
    seed = min(seed_group, key=lambda each: (abs(each.score - middle), each.trial.seed))
    mean = fmean(each.score for each in seed_group)
    tags = {
        "dmray.selected_by": RULE,
        "dmray.sweep": sweep,
        "dmray.cell": seed.trial.seed_group_id,
        "dmray.trial_key": seed.trial.trial_id,
        "dmray.seeds": str(len(seed_group)),
        "dmray.protocol": f"{task_of(seed.trial.dataset).protocol}, decode {seed.trial.evaluation.decode}",
        _SCORE: repr(mean),
        "dmray.score": repr(seed.score),
    }
    return Champion(model_name(seed.trial), alias_name(seed.trial), seed.run_id, mean, tags)


def ensure_registered(client: Any, experiment: str, champion: Champion, sweep_id: str) -> None:
    """Make the model, the version and the alias that are missing.

    An alias that another sweep set stays where it is when that sweep's cell had a higher score.
    """
    model = find_logged(client, experiment, champion.run_id, "final")
    if model is None:
        return
    name = champion.model
    versions = client.search_model_versions(f"name='{name}'")
    if not versions and not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name, description="Policies of dmray sweeps; aliases are data sets.")
    source = model.artifact_location  # not models:/<id>: an SQLite registry looks that up in another place
    version = next((each for each in versions if each.source == source), None)
    tags = {**champion.tags, _SWEEP: sweep_id}
    if version is None:
        version = client.create_model_version(
            name, source, champion.run_id, tags=tags, model_id=model.model_id, await_creation_for=None
        )
    elif dict(version.tags) != tags:
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    held = client.get_registered_model(name).aliases.get(champion.alias)
    if held != version.version and _may_move(client, champion, held, sweep_id):
        client.set_registered_model_alias(name, champion.alias, version.version)


def _may_move(client: Any, champion: Champion, held: str | None, sweep_id: str) -> bool:
    if held is None:
        return True
    tags = client.get_model_version(champion.model, held).tags
    return tags.get(_SWEEP) == sweep_id or float(tags.get(_SCORE, "-inf")) <= champion.cell_score
