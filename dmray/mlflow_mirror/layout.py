"""How a sweep looks in MLflow: every name of a run, a tag, a parameter, a metric, an artifact and a view.

    experiment dmray/<sweep>
      sweep                                    dmray.level = sweep
        seed group: all seeds of one setting   dmray.level = seed group
          trial: one seed                      dmray.level = trial
            re-evaluation of a checkpoint      dmray.level = re-evaluation

Parameters are what defines a trial and never change; they have the same keys for every method, so that a comparison
lines up. All that may change when a trial is resumed (machine, versions, attempt) is a tag. Metrics are those of
`dmray.records.metrics`, as `<group>/<name>` by optimizer step; `final/`, `best/` and `agg/` are made of scores.
Everything here is a pure function of specs and records: the same for a live trial and for a replay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from dmray.escaping import markdown, one_line
from dmray.methods import METHODS
from dmray.records import (
    METRICS,
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    Reevaluation,
    ResultIdentity,
    RungDecision,
    Score,
    Spread,
    StartedOver,
    TrainingExtended,
    TrainProgress,
    TrialDone,
    TrialStopped,
    best_score,
    last_score,
)
from dmray.records.identity import group_id, section
from dmray.specs import DatasetSpec, SweepSpec, TrialSpec, canonical_json, noise_text
from dmray.tasks import DATASETS, protocol_of, task_of

# Tags. A run is found by SWEEP_ID and KEY.
LEVEL, KEY, SWEEP, SWEEP_ID, STATUS = "dmray.level", "dmray.key", "dmray.sweep", "dmray.sweep_id", "dmray.status"
MODEL, IDENTITY, IDENTITY_PARTS = "model", "dmray.identity", "dmray.identity_parts"
TRIAL, SEED_GROUP, DRAWINGS = "dmray.trial_key", "dmray.seed_group", "dmray.drawings"
ROLE, SELECTION = "dmray.role", "selection"
PARENT, NOTE, COLOUR = "mlflow.parentRunId", "mlflow.note.content", "mlflow.runColor"
LEVELS = ("sweep", "seed group", "trial", "re-evaluation")
CONTINUED = "continued trial"  # a trial that a longer one has gone on from, and its seed group: in no view

# Tags of experiments, models and versions.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else the UI may take it for a chat model
MODEL_STEP, GROUP_SCORE = "dmray.step", "dmray.seed_group_score"

# Artifacts of runs, and the models of a trial's run.
CONFIG, ERROR = "config.yaml", "error.txt"
SUMMARY = "summary.md"  # of a report: what the description of the sweep's run shows
REPORT, EVALUATIONS, PICTURES, VIDEOS = "report", "evaluations", "pictures", "videos"
FINAL_MODEL, BEST_MODEL = "final", "best"
CHECKPOINT, MODEL_TYPE = "policy.pt", "dmray policy"
REGISTERED_MODEL_NOTE = "Policies of dmray sweeps; aliases are data sets."

# A record's points are committed together, so where its step is a point, the whole record is there.
COMMITTED = {"train": "train/step", "evaluation": "eval/step", "rung": "rung/step", "done": "final/step"}
GROUP_COMMITTED = "agg/n_seeds"
GROUP_LAST = "agg/normalized_score_last_mean"
FINAL_SCORE, BEST_SCORE = "final/normalized_score", "best/normalized_score"

# MLflow's statuses of runs; what is FINISHED has ended as a result.
RUN_STATUS = {
    "waiting": "KILLED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "paused": "KILLED",
    "stopped_early": "KILLED",
    "failed": "FAILED",
    "finished": "FINISHED",
    "diverged": "FINISHED",
}

MeasuredRecord = TrainProgress | EvaluationDone | RungDecision | TrialDone
_LATEST_S = 1e11  # the year 5138; a database takes no number as large as an edited ledger may have
_LONGEST_NOTE = 7500  # MLflow cuts tags after 8,000 characters
_LONGEST_DIGEST = 36  # MLflow's; the whole fingerprint is the run's tag data.sha256


def experiment_name(sweep: str) -> str:
    return f"dmray/{sweep}"


def model_label(
    trial: TrialSpec, identity: ResultIdentity | None = None, apart: Iterable[str] = (), details: str = ""
) -> str:
    """The method's label, with `details` and the parts of the identity in which other trials of its data set differ.

    `details`: the fields in which other settings of the method differ. MLflow's views average the trials that share
    this tag.
    """
    parts = [details, identity.label(apart) if identity is not None else ""]
    label = METHODS[trial.method].label
    return f"{label} ({', '.join(filter(None, parts))})" if any(parts) else label


def seed_group_name(trial: TrialSpec, model: str | None = None) -> str:
    return f"{model or model_label(trial)}|{trial.dataset.name}"


def trial_name(trial: TrialSpec) -> str:
    return f"{seed_group_name(trial)}|s{trial.seed}"


def identity_tags(identity: ResultIdentity) -> dict[str, str]:
    """What the scores depend on beside the parameters: only runs with the same tag may share a mean."""
    return {IDENTITY: identity.digest, IDENTITY_PARTS: json.dumps(identity._asdict())}


def identity_in(tags: Mapping[str, str]) -> ResultIdentity | None:
    """The identity that `identity_tags` put into the tags of a run; None if they have none."""
    try:
        parts = json.loads(tags.get(IDENTITY_PARTS, ""))
        return ResultIdentity(**{name: str(value) for name, value in parts.items()})
    except (ValueError, TypeError, AttributeError):  # a run of an earlier dmray, or edited by hand
        return None


def sweep_tags(sweep: SweepSpec, sweep_id: str, trials: int) -> dict[str, str]:
    datasets, seeds = ", ".join(dataset.name for dataset in sweep.datasets), ", ".join(map(str, sweep.seeds))
    methods = ", ".join(dict.fromkeys(METHODS[method].label for block in sweep.grid for method in block.methods))
    return {
        **_common("sweep", sweep.name, sweep, sweep_id),
        NOTE: markdown(f"{trials} trials: {methods} on {datasets}, seeds {seeds}."),
    }


def group_key(trial: TrialSpec, identity: ResultIdentity, sweep: SweepSpec) -> str:
    """The key of a trial's seed group. The trials that chose a setting are a group of their own."""
    return group_id(trial, identity) + (f"-{SELECTION}" if sweep.is_selection(trial) else "")


def note_with_tables(tags: Mapping[str, str], summary: str) -> dict[str, str]:
    """The tag with the description of a sweep's run: that of `sweep_tags`, then a report's summary (Markdown).

    Of a long summary whole blocks at the end are left out, which is said.
    """
    note, *blocks = tags[NOTE], *summary.strip().split("\n\n")
    for block in blocks:
        if len(note) + len(block) > _LONGEST_NOTE:
            return {NOTE: f"{note}\n\nThe rest is in report/report.html, an artifact of this run."}
        note = f"{note}\n\n{block}"
    return {NOTE: note}


def seed_group_tags(
    trial: TrialSpec, identity: ResultIdentity, sweep: SweepSpec, sweep_id: str, parent: str
) -> dict[str, str]:
    """Tags of the group that `trial` is a seed of."""
    group = group_key(trial, identity, sweep)
    return {
        **_common("seed group", group, sweep, sweep_id),
        **_setting_tags(trial),
        **_role_tags(trial, sweep),
        **identity_tags(identity),
        SEED_GROUP: group,
        PARENT: parent,
    }


def trial_tags(trial: TrialSpec, sweep: SweepSpec, sweep_id: str, parent: str) -> dict[str, str]:
    return {
        **_common("trial", trial.trial_id, sweep, sweep_id),
        **_setting_tags(trial),
        **_role_tags(trial, sweep),
        TRIAL: trial.trial_id,
        "seed": str(trial.seed),
        PARENT: parent,
    }


def reevaluation_key(record: Reevaluation) -> str:
    """By which the run of an evaluation after the training is found."""
    return f"{record.trial_id}:{record.conditions.checkpoint}:{record.conditions.digest}"


def reevaluation_name(trial: TrialSpec, record: Reevaluation) -> str:
    return f"{trial_name(trial)}|{record.conditions.settings}"


def reevaluation_tags(
    trial: TrialSpec, record: Reevaluation, sweep: SweepSpec, sweep_id: str, parent: str
) -> dict[str, str]:
    """Tags of an evaluation of `trial`'s checkpoint after its training; `parent`: the trial's run."""
    made = record.conditions
    targets = ", ".join(f"{target:g}" for target in made.target_returns if target is not None)
    return {
        **_common("re-evaluation", reevaluation_key(record), sweep, sweep_id),
        **_setting_tags(made.applied_to(trial)),
        TRIAL: trial.trial_id,
        "seed": str(trial.seed),
        "checkpoint": made.checkpoint,
        "protocol.episodes": str(made.episodes),
        "protocol.seed": str(made.seed),
        "protocol.target_returns": targets or "none",
        "protocol.again": made.settings,
        "code": made.code,
        PARENT: parent,
    }


def attempt_tags(record: AttemptStarted) -> dict[str, str]:
    """The machine, the versions and the data of an attempt."""
    made = record.provenance
    git, versions, hardware = section(made, "git"), section(made, "versions"), section(made, "hardware")
    notes = made.get("dataset_notes")
    return _texts(
        {
            "mlflow.source.git.commit": git.get("commit"),
            "git.commit": git.get("commit"),
            "git.dirty": git.get("dirty"),
            "host": made.get("hostname"),
            "cpu.type": hardware.get("cpu"),
            "gpu.type": hardware.get("gpu"),
            "data.sha256": made.get("dataset_fingerprint"),
            "data.notes": "; ".join(map(str, notes)) or None if isinstance(notes, list) else None,
            "code": made.get("code"),
            "mamba.backend": made.get("scan_backend"),
            "policy.parameters": section(made, "policy").get("parameters"),
            **{f"version.{name}": version for name, version in versions.items()},
            "dmray.attempt": record.attempt,
            "dmray.resumed_from_step": record.from_step,
        }
    )


def failure_tags(record: AttemptFailed) -> dict[str, str]:
    return _texts({"dmray.last_error": record.error, "dmray.failed_at_step": record.step})


def damage_tags(damage: str) -> dict[str, str]:
    """Of a trial whose records cannot be read, or are not as they were written."""
    return _texts({"dmray.last_error": damage})


def extended_tags(record: TrainingExtended) -> dict[str, str]:
    """Of a trial that has gone on from a shorter one."""
    return _texts({"dmray.continues": record.trial_id, "dmray.continues_at_step": record.step})


def continued_tags(longer: str) -> dict[str, str]:
    """Of the run of a shorter trial that the trial `longer` has gone on from."""
    return {LEVEL: CONTINUED, "dmray.continued_as": longer}


def started_over_tags(record: StartedOver) -> dict[str, str]:
    """Points from before remain in the run; on a CPU they are repeated exactly."""
    return _texts({"dmray.started_over": record.reason, "dmray.started_over_at_attempt": record.attempt})


def stopped_tags(record: TrialStopped) -> dict[str, str]:
    return _texts({"dmray.stopped_at_step": record.step, "dmray.stopped_at_rung": record.decision.step})


def setting_values(trial: TrialSpec) -> dict[str, Any]:
    """Everything that defines the trial but its seed, flat: evaluation settings are `eval_*`."""
    content = trial.model_dump(mode="json")
    task = task_of(trial.dataset)
    evaluation = {f"eval_{key}": value for key, value in content["evaluation"].items()}
    return {
        "model": METHODS[trial.method].label,
        "method": trial.method,
        "dataset": trial.dataset.name,
        "dataset_generate": content["dataset"]["generate"] or "no",
        "dataset_fraction": content["dataset"]["fraction"],
        "task": task.name,
        "family": task.family,
        "protocol": protocol_of(trial.dataset),
        **content["model"],
        **content["training"],
        **evaluation,
    }


def seed_group_params(trial: TrialSpec) -> dict[str, str]:
    """`setting_values` as texts."""
    values = setting_values(trial)
    return {key: value if isinstance(value, str) else canonical_json(value) for key, value in values.items()}


def trial_params(trial: TrialSpec) -> dict[str, str]:
    return {**seed_group_params(trial), "seed": str(trial.seed)}


def _common(level: str, key: str, sweep: SweepSpec, sweep_id: str) -> dict[str, str]:
    assert level in LEVELS
    return {
        LEVEL: level,
        KEY: key,
        SWEEP_ID: sweep_id,
        SWEEP: sweep.name,
        "mlflow.source.name": "dmray",
        "mlflow.source.type": "LOCAL",
    }


def _role_tags(trial: TrialSpec, sweep: SweepSpec) -> dict[str, str]:
    """In a sweep with a search: whether the trial is of the report, or served to choose a setting."""
    if sweep.search is None:
        return {}
    return {ROLE: SELECTION if sweep.is_selection(trial) else "report"}


def _setting_tags(trial: TrialSpec) -> dict[str, str]:
    task = task_of(trial.dataset)
    return {
        MODEL: model_label(trial),
        COLOUR: METHODS[trial.method].colour,
        "method": trial.method,
        "dataset": trial.dataset.name,
        "task": task.name,
        "family": task.family,
        "protocol": protocol_of(trial.dataset),
        "protocol.decode": trial.evaluation.decode,
        "protocol.noise": noise_text(trial.evaluation)[2:] or "none",
        "protocol.env_id": task.env_id,
        "protocol.engine": task.engine,
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """As tags: databases and terminals take no control characters."""
    return {key: one_line(str(value)) for key, value in values.items() if value is not None}


class Point(NamedTuple):
    """One value of one metric. A point has its record's time, so a point made twice is the same point twice."""

    key: str
    value: float
    step: int
    time_ms: int


def points_of(record: MeasuredRecord, scores: Iterable[Score]) -> list[Point]:
    """The points of one record; `scores` are the trial's evaluations so far."""
    values = {
        f"{metric.group}/{name}": value for metric in METRICS[record.kind] for name, value in metric.values(record)
    }
    if record.kind == "done":
        values |= _final_values(record, list(scores))
    values[COMMITTED[record.kind]] = record.step
    return _points(values, record.step, record.time_s)


def seed_group_points(last: Sequence[float], best: Sequence[float], time_s: float) -> list[Point]:
    """Aggregates over the scores of a group's finished seeds (at least one); the step is their number."""
    values: dict[str, float] = {GROUP_COMMITTED: len(last)}
    for name, scores in (("last", last), ("best", best)):
        spread = Spread.of(scores)
        if spread is not None:
            values[f"agg/normalized_score_{name}_mean"] = spread.mean
            if spread.std is not None:
                values[f"agg/normalized_score_{name}_std"] = spread.std
    return _points(values, len(last), time_s)


def group_curve(seeds: int) -> str:
    """The metric with the mean learning curve of so many seeds. With more seeds later there is another curve."""
    return f"agg/normalized_score_{seeds}_seeds"


def seed_group_curve(
    name: str, curves: Sequence[Mapping[int, float]], without: Iterable[int], time_s: float
) -> list[Point]:
    """The mean over the scores by step of a group's finished seeds, at the steps that all have, except `without`."""
    steps = set.intersection(*(set(curve) for curve in curves)) - set(without)
    means = {step: fmean(curve[step] for curve in curves) for step in sorted(steps)}
    return [point for step, mean in means.items() for point in _points({name: mean}, step, time_s)]


def _final_values(record: TrialDone, scores: Sequence[Score]) -> dict[str, float]:
    values: dict[str, float] = {}
    last, best = last_score(scores), best_score(scores)
    names = [metric.name for metric in METRICS["evaluation"] if metric.group == "eval"]
    if last is not None and record.status == "finished":  # weights that diverged have no final score
        values |= {f"final/{name}": last.values[name] for name in names if name in last.values}
    if best is not None:
        values |= {f"best/{name}": best.values[name] for name in names if name in best.values}
        values["best/step"] = best.step
    return values


def _points(values: Mapping[str, float], step: int, time_s: float) -> list[Point]:
    time_ms = int(min(max(time_s, 0.0), _LATEST_S) * 1000)
    return [Point(key, float(value), step, time_ms) for key, value in values.items()]


@dataclass(frozen=True)
class DatasetUsed:
    """A data set as MLflow knows data sets; `source` and `profile` are JSON."""

    name: str
    digest: str
    source_type: str
    source: str
    profile: str | None


def dataset_used(trial: TrialSpec, record: AttemptStarted) -> DatasetUsed | None:
    """The data that the attempt trains on; None for an attempt that failed before it opened them."""
    fingerprint = record.provenance.get("dataset_fingerprint")
    if not isinstance(fingerprint, str):
        return None
    kind, source = _dataset_source(trial.dataset)
    facts = record.provenance.get("dataset")
    profile = None if facts is None else json.dumps(facts)
    return DatasetUsed(trial.dataset.name, fingerprint[:_LONGEST_DIGEST], kind, json.dumps(source), profile)


def _dataset_source(dataset: DatasetSpec) -> tuple[str, dict[str, object]]:
    part = {"fraction": dataset.fraction} if dataset.fraction != 1 else {}
    if dataset.generate is not None:
        return "recorded", {"task": dataset.task, **dataset.generate.model_dump(mode="json"), **part}
    if dataset.path is not None:
        return "local", {"uri": dataset.path, **part}
    return "published", {"uri": DATASETS[dataset.catalog_name].url, **part}


def model_name(trial: TrialSpec) -> str:
    """`dmray-{method}-{family}`."""
    return f"dmray-{trial.method.replace('+', '_')}-{task_of(trial.dataset).family}"


def alias_name(trial: TrialSpec, identity: ResultIdentity | None = None, apart: Iterable[str] = ()) -> str:
    """The data set; the decode mode where it is not `window`; the noise; the parts of the identity that differ.

    Scores of different modes or identities are not compared.
    """
    decode = trial.evaluation.decode
    name = trial.dataset.name if decode == "window" else f"{trial.dataset.name}--{decode}"
    name += noise_text(trial.evaluation).replace(", ", "--")
    if identity is not None and (parts := identity.label(apart)):
        name = f"{name}--{parts}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def registry_tags(
    trial: TrialSpec, identity: ResultIdentity, sweep: str, seeds: int, seed_group_score: float, score: float
) -> dict[str, str]:
    """Tags of the registered version with the final weights of `trial`: how it was selected, and by which scores."""
    return {
        "dmray.selected_by": (
            "seed group: highest mean last score over finished seeds; seed: last score nearest the group's median; "
            "final weights"
        ),
        SWEEP: sweep,
        SEED_GROUP: group_id(trial, identity),
        **identity_tags(identity),
        TRIAL: trial.trial_id,
        "dmray.seeds": str(seeds),
        "dmray.protocol": f"{protocol_of(trial.dataset)}, decode {trial.evaluation.decode}"
        f"{noise_text(trial.evaluation)}",
        GROUP_SCORE: repr(seed_group_score),
        "dmray.score": repr(score),
    }


@dataclass(frozen=True)
class _View:
    """What a view of an experiment's trials shows: metrics as charts and as columns.

    Ordered by their start, trials stand below their seed groups, closed: then charts show the groups. Grouped by tags
    (`group_by`) runs have other colours than the report's: the UI colours a group by a hash of its keys.
    """

    charts: str
    columns: tuple[str, ...]
    order_by: str = "attributes.start_time"
    group_by: tuple[str, ...] = ()


_CURVES, _SCORES = "eval/(norm|return_m)|final/norm|train/loss$", (FINAL_SCORE, BEST_SCORE, "time/train_s")
_VIEWS = {
    "methods": _View(f"agg/normalized_score_[0-9]+_seeds$|{_CURVES}", (GROUP_LAST, GROUP_COMMITTED, *_SCORES)),
    "seeds": _View(_CURVES, _SCORES, order_by=f"metrics.`{FINAL_SCORE}`"),
    "averages": _View(_CURVES, _SCORES, group_by=("dataset", "model")),
}


def view_tags(experiment: str) -> dict[str, str]:
    """Tags of the experiment with that id: views of its runs, and a description that links to them.

    The UI keeps what its own Share button makes in such tags.
    """
    curves, table = view_link("", experiment), view_link("", experiment, mode="TABLE")
    seeds, averages = view_link("", experiment, "seeds"), view_link("", experiment, "averages")
    note = (
        f"Methods, means over seeds, in the colours of the report: [curves]({curves}), [table]({table}). "
        f"[Each seed]({seeds}). [Means with a band from the lowest to the highest seed]({averages})."
    )
    return {**{f"mlflow.sharedViewState.{name}": _view_state(view) for name, view in _VIEWS.items()}, NOTE: note}


def view_link(server: str, experiment: str, view: str = "methods", mode: str = "CHART") -> str:
    """The address of a view (methods, seeds, averages) as CHART or TABLE. `server` empty: relative to the UI's page."""
    place = f"#/experiments/{experiment}/runs?viewStateShareKey={view}&compareRunsMode={mode}"
    return f"{server.rstrip('/')}/{place}" if server else place


def _view_state(view: _View) -> str:
    grouping = [{"mode": "tag", "groupByData": name} for name in view.group_by]
    return json.dumps(
        {
            "searchFilter": f"tags.`{LEVEL}` = 'trial'",
            "orderByKey": view.order_by,
            "orderByAsc": False,
            "groupBy": {"aggregateFunction": "average", "groupByKeys": grouping} if grouping else None,
            "groupsExpanded": {},
            "useGroupedValuesInCharts": True,
            "chartsSearchFilter": view.charts,
            "hideEmptyCharts": True,
            "selectedColumns": [f"metrics.`{name}`" for name in view.columns],
        }
    )
