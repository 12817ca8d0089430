"""The functions of `import dmray`: plan, run and read sweeps; load, evaluate and draw policies.

The command lines call these functions. torch, Ray, MLflow and pandas are imported only when a function needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group

from dmray.arguments import (
    MAX_EPISODES,
    MAX_SEED,
    MAX_WINDOWS,
    MAX_WORKERS,
    finite_number,
    flag,
    folder_path,
    line,
    local_path,
    place,
    whole_number,
    writable_folder,
)
from dmray.coordination.commands import read_command
from dmray.driver.plan_view import render_plan
from dmray.driver.progress_bar import NotebookBar, in_notebook
from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.mlflow_mirror.policies import load_policy_of_run, mlflow_run_of
from dmray.planning.manifest import read_manifest
from dmray.planning.packing import require_processes
from dmray.planning.plan import Plan, plan
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.progress.summary import Summary
from dmray.progress.sweep_handle import locate
from dmray.progress.trial_status import ENDED, failures
from dmray.records import SweepFolder, TrialFolder
from dmray.redaction import without_secrets
from dmray.registry import lookup, short_repr
from dmray.specs import SweepSpec
from dmray.specs.loading import located, read_values, validated, values_of
from dmray.specs.merging import MergedValues
from dmray.specs.mistakes import Mistake
from dmray.storage import SweepCopy, is_url, open_store, sweep_folder
from dmray.tasks import PROTOCOLS, Task, made_protocol
from dmray.terminal import safe_console

if TYPE_CHECKING:
    import pandas as pd

    from dmray.analysis.decay import DecayAnalysis
    from dmray.analysis.subgoals import SubgoalAnalysis
    from dmray.driver.session import Runner
    from dmray.driver.sweep_evaluation import MakeService, SweepEvaluation
    from dmray.exports import Export
    from dmray.inference import Evaluation, Policy, PolicyFunction
    from dmray.reporting import ReportPaths
    from dmray.reporting.frames import Results, SweepRun

SweepSource = str | Path | Mapping[str, Any] | SweepSpec | Plan
_PLAN_COLUMNS = 120
_MOST_STEPS = 10_000  # of an analysis


class SweepPlan(Plan):
    """The trials of a sweep in the order in which they start. Terminals and notebooks show it as a table."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per trial: its id, data set, method, seed and model."""
        import pandas as pd

        rows = [
            {
                "trial_id": trial.trial_id,
                "dataset": trial.dataset.name,
                "method": trial.method,
                "seed": trial.seed,
                **trial.model.model_dump(),
            }
            for trial in self.trials
        ]
        return pd.DataFrame(rows)

    def __rich__(self) -> Group:
        return render_plan(self)

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=_PLAN_COLUMNS)
        with console.capture() as shown:
            console.print(render_plan(self))
        return shown.get().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(index=False)
        return html


def load_sweep(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> SweepSpec:
    """Load a sweep from a YAML file, one of dmray's by its name, or a mapping with the same fields.

    `overrides`: strings "key.path=value", as after `-o` on the command line. The value is parsed as YAML.

        sweep = dmray.load_sweep("sweeps/quickstart.yaml", ["training.steps=100", "seeds=[0]"])

    Raises:
        SpecError: the sweep is invalid. The message names the file, the field, the value and a valid one.
    """
    return validated(_values(source, overrides))


def _values(source: str | Path | Mapping[str, Any], overrides: Iterable[str]) -> MergedValues:
    if isinstance(overrides, str | Mapping) or not isinstance(overrides, Iterable):
        raise SpecError(f"overrides {short_repr(overrides)}: give a list, for example ['training.steps=100']")
    if isinstance(source, Mapping):
        return values_of(source, "sweep", overrides)
    if not isinstance(source, str | PathLike):
        raise SpecError(f"sweep: a {type(source).__name__}; give a file, or a mapping of the same fields")
    return read_values(place("sweep", source), overrides)


def plan_sweep(sweep: SweepSource, overrides: Iterable[str] = ()) -> SweepPlan:
    """List the trials of a sweep. Nothing is run, and no file is read except the sweep file.

    `overrides`: as in `load_sweep`, only if `sweep` is a file or a mapping. With a search the trials are those of the
    first round, and `search` has the number of all.

        plan = dmray.plan_sweep("sweeps/quickstart.yaml", ["seeds=[0, 1, 2]"])
        print(plan)                                          # the trials and their cost
        plan.table                                           # one row per trial, as a pandas table

    Raises:
        SpecError: the sweep is invalid, or there are overrides although it is already loaded.
    """
    if isinstance(sweep, SweepSpec | Plan):
        if list(overrides):
            raise SpecError("overrides: the sweep is loaded already; give them to load_sweep")
        made = plan(sweep) if isinstance(sweep, SweepSpec) else sweep
    else:
        values = _values(sweep, overrides)
        loaded = validated(values)
        try:
            made = plan(loaded)
        except SpecError as mistake:
            raise SpecError(located(Mistake("", str(mistake)), values)) from mistake
    return SweepPlan(made.sweep, made.trials, made.search)


def run_sweep(
    sweep: SweepSource,
    *,
    storage: str | Path | None = None,
    local: bool = False,
    address: str | None = None,
    resume: bool = False,
    only: str | None = None,
    shard: str | None = None,
    retry_failed: bool = False,
    mlflow_uri: str | None = None,
    progress: bool | Callable[[Summary], None] = True,
    console: Console | None = None,
    continue_with: str = "",
) -> SweepRun:
    """Run the trials of a sweep, write its report, and return its results. A trial that fails does not end the sweep.

    `storage`: the folder or s3://bucket/prefix where everything is written; None: that of the sweep file ("runs").
    `local`: run one trial after the other in this process, without Ray. Otherwise the trials run on the Ray cluster at
    `address`, or, if that is None, on a cluster that is started on this machine. `resume`: continue a sweep that was
    started before; finished trials are kept. `only`, `shard`, `retry_failed`: run only some of the trials, as on the
    command line, for example "method=dm|dt,seed=0" and "1/4". `mlflow_uri`: an MLflow server, or "off"; None: that of
    the sweep file (SQLite in the storage). `progress`: if True, it is shown on `console` (None: a bar in a notebook,
    else standard error); a function is called with a `Summary` every second, from another thread, and once at the
    end. `continue_with`: the command to continue the sweep that `dmray stop` and `dmray resume` print.

        results = dmray.run_sweep(sweep, local=True, progress=lambda summary: print(summary.steps, summary.eta_s))
        results.scores                                       # mean and deviation over seeds, by method

    May be called from any thread. In the main thread, Ctrl-C, SIGTERM and SIGHUP let the trials save a checkpoint if
    the caller does not handle them; `resume` continues. `dmray pause` and `dmray stop` work from another shell.

    Raises:
        SpecError: the sweep, `only` or `shard` is invalid, or both `local` and `address` are given.
        DatasetError: the file of a data set is not on this machine, or its task has no simulator here.
        StorageError: the storage cannot be written, another process runs this sweep, or it was started before and
            `resume` is false.
        TrackingError: the MLflow server does not answer at the start.
        ClusterError: a trial needs more resources than the machines have.
        SweepInterrupted: a signal or `dmray stop --now` ended the sweep; a KeyboardInterrupt.
    """
    for name, value in (("local", local), ("resume", resume), ("retry_failed", retry_failed)):
        flag(name, value)
    for name, text in (("address", address), ("only", only), ("shard", shard), ("mlflow_uri", mlflow_uri)):
        if text is not None:
            line(name, text)
    _check_progress(progress)
    if console is not None and progress is not True:
        raise SpecError("console: only progress=True shows something on it; leave it out")
    if local and address is not None:
        raise SpecError(f"address {address}: a local run does not use Ray; give either address or local")
    planned = _with_storage(plan_sweep(sweep), storage, mlflow_uri)
    trial_filter = TrialFilter(only, shard, retry_failed)
    folder = sweep_folder(planned.sweep.storage, planned.sweep.name, "driver")
    from dmray.driver import session  # loads torch
    from dmray.reporting import collect
    from dmray.reporting import write_report as write_sweep_report
    from dmray.reporting.frames import SweepRun

    with _progress_of(progress, console) as shown:
        all_statuses = session.run_sweep(
            planned,
            folder,
            _runner(planned, local, address),
            lambda sweep_: write_sweep_report(sweep_).folder,
            resume=resume,
            trial_filter=trial_filter,
            resume_command=continue_with or f"dmray.run_sweep(..., storage={planned.sweep.storage!r}, resume=True)",
            **shown,
        )
    planned = replace(planned, trials=read_manifest(folder).trials)  # a search has added some
    statuses = {trial.trial_id: all_statuses[trial.trial_id] for trial in select_trials(planned, trial_filter)}
    command = read_command(folder)
    stopped = command is not None and command.kind == "stop" and not ENDED.issuperset(statuses.values())
    return SweepRun(
        folders=(folder,),
        collected=collect(folder),
        plan=planned,
        statuses=statuses,
        errors={trial_id: why for trial_id, why in failures(planned, folder).items() if trial_id in statuses},
        stopped_by=command.sent_by if command is not None and stopped else None,
    )


def load_results(*sweeps: str | Path, protocol: str | None = None) -> Results:
    """Load the results of one or several sweeps as pandas tables: `.trials`, `.scores`, `.curves`, `.episodes`.

    `sweeps`: for each sweep its folder (<storage>/<name>), its URL in an object store, or its sweep file. A trial that
    several sweeps have counts once. `protocol`: load only the trials of this protocol, for example "d4rl-mujoco".

        results = dmray.load_results("runs/quickstart")
        results.curves.pivot_table(index="step", columns="seed_group_id", values="normalized_score")
        results.episodes.groupby("method").episode_return.describe()

    Raises:
        SpecError: the protocol is unknown, or the sweeps have no trial with it.
        StorageError: there is no sweep, or a file of it is damaged. StoreUnavailableError: a store does not answer.
    """
    from dmray.reporting import collect
    from dmray.reporting.frames import Results

    if not sweeps:
        raise SpecError("sweeps: give at least one, for example runs/quickstart")
    if protocol is not None:
        known = {name: name for each in PROTOCOLS for name in (each, made_protocol(each))}
        lookup("protocol", line("protocol", protocol), known, SpecError)
    places = [locate(place("sweep", sweep)) for sweep in sweeps]
    folders = [
        SweepCopy.downloaded(storage, name).folder if is_url(storage) else SweepFolder(Path(storage), name)
        for storage, name in places
    ]
    collected = collect(*folders, protocol=protocol)
    if protocol is not None and not collected.trials:
        raise SpecError(f"protocol {protocol}: these sweeps have no trial with this protocol")
    stored = [(at[0], folder) for at, folder in zip(places, folders, strict=True) if is_url(at[0])]
    return Results(tuple(folders), collected, partial(_fetch_episode_tables, stored))


def write_report(
    *sweeps: str | Path,
    into: str | Path | None = None,
    baseline: str | None = None,
    protocol: str | None = None,
    references: Sequence[str | Path] = (),
) -> ReportPaths:
    """Write the report of one or several sweeps: report.html, report.md, tables.tex, CSV files and figures.

    `into`: the folder to write; None: <sweep>/report of the first sweep, also in its object store. `baseline`: the
    method that all others are compared with; None: each method's own baselines. `references`: CSV files of published
    results, shown beside those that come with dmray. `sweeps`, `protocol`: as in `load_results`.

        paths = dmray.write_report("runs/quickstart", into="report", baseline="dt")

    Raises:
        SpecError: the baseline or the protocol is unknown, or the sweeps have no trial of it; or a file of published
            results has a mistake, or nothing for these data sets.
        StorageError, StoreUnavailableError: as `load_results`.
    """
    results = load_results(*sweeps, protocol=protocol)
    return write_report_of(results, str(sweeps[0]), into, baseline, references)


def write_report_of(
    results: Results, first: str, into: str | Path | None, baseline: str | None, references: Sequence[str | Path] = ()
) -> ReportPaths:
    """Write the report of loaded results as `write_report` does; `first` is the first of their sweeps."""
    if isinstance(references, str) or not isinstance(references, Sequence):
        raise SpecError(f"references {short_repr(references)}: give a list, for example ['published.csv']")
    target = None if into is None else folder_path("into", into)
    if baseline is not None:
        METHODS.find(line("baseline", baseline), SpecError)
        methods = sorted({result.trial.method for result in results.collected.trials})
        if baseline not in methods:
            raise SpecError(
                f"baseline {baseline}: these sweeps have no trial of this method, but of {', '.join(methods)}"
            )
    paths = results.write_report(target, baseline, [place("references", each) for each in references])
    storage, name = locate(first)
    if into is None and is_url(storage):
        SweepCopy.for_reading(storage, name).push()
    return paths


def load_policy(source: str | Path, *, checkpoint: str | None = None, mlflow_uri: str | None = None) -> Policy:
    """Load a trained policy. `policy.start()` acts with it; `evaluate_policy` and `draw_episodes` take it.

    `source`: a checkpoint file; a trial's folder; the URL of either in an object store; a folder that `export_policy`
    wrote with the format "safetensors"; or the id of a trial's MLflow run. `checkpoint`, for a trial's folder or an
    MLflow run: "final" or "best"; for a folder also "last", and "step:10000" where the sweep keeps it. None: the final
    weights, or for a trial that has not finished the last ones. `mlflow_uri` is the server of an MLflow run; None:
    $MLFLOW_TRACKING_URI.

        policy = dmray.load_policy(results.trial_folder(results.trials.trial_id[0]))
        rollout = policy.start(num_episodes=2)
        actions = rollout.act(observations)                  # (2, S) to (2, A)
        actions = rollout.act(observations, rewards)         # also with the rewards (2,) of the last actions

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        SpecError: `checkpoint` is unknown, or is given for a file; or `mlflow_uri` is given for no MLflow run.
        StorageError: the store has no such trial. TrackingError: MLflow does not answer, or has no such model.
    """
    given = place("source", source)
    if mlflow_run_of(given) is not None:
        return load_policy_of_run(given, checkpoint, mlflow_uri)
    if mlflow_uri is not None:
        raise SpecError(f"mlflow_uri {without_secrets(mlflow_uri)}: {given} is no MLflow run; leave it out")
    from dmray import inference  # loads torch

    return inference.load_policy(source, checkpoint)


def export_policy(
    policy: Policy | str | Path,
    folder: str | Path,
    formats: str | Sequence[str] = "safetensors",
    *,
    checkpoint: str | None = None,
    decode: str | None = None,
    force: bool = False,
    mlflow_uri: str | None = None,
) -> Export:
    """Write a policy into a folder for others, with a model card (docs/export.md). Returns the paths of its files.

    `policy`: the result of `load_policy`, or a source that it takes (with `checkpoint` and `mlflow_uri`). `formats`:
    "torchscript", "pt2" (torch.export) and "onnx" act step by step without dmray; "safetensors" has the weights, which
    `load_policy(folder)` loads back. `decode`: of the former, "window" or "recurrent"; None: that of the policy's
    sweep. Their actions are compared with dmray's own before the folder gets its name. `force`: replace an export.

        exported = dmray.export_policy(policy, "exported", ["torchscript", "safetensors"], force=True)
        same = dmray.load_policy(exported.folder)

    Raises:
        SpecError: a format or the mode is unknown, has no effect, or is not possible for the policy's method.
        StorageError: the folder exists and `force` is false, or cannot be written.
        CheckpointError, TrackingError: as `load_policy`. MissingPackageError: a format needs `dmray[export]`.
    """
    flag("force", force)
    target = local_path("folder", folder)
    if not isinstance(formats, Sequence):
        raise SpecError(f"format {short_repr(formats)}: give a name or a list of names")
    names = [formats] if isinstance(formats, str) else list(formats)
    named = [line("format", name) for name in names]
    if decode is not None:
        line("decode", decode)
    from dmray import exports, inference  # load torch

    if isinstance(policy, inference.Policy):
        if (checkpoint, mlflow_uri) != (None, None):
            raise SpecError("checkpoint, mlflow_uri: the policy is loaded already; give them to load_policy")
        loaded = policy
    else:
        loaded = load_policy(policy, checkpoint=checkpoint, mlflow_uri=mlflow_uri)
    return exports.export(loaded, target, named, decode=decode, force=force)


def load_published_policy(
    weights: str | Path | Mapping[str, str | Path],
    task: str,
    *,
    method: str | None = None,
    data: str | Path | None = None,
    statistics: str | Path | None = None,
    context_length: int | None = None,
    return_scale: float | None = None,
    n_head: int | None = None,
    action_input: str | None = None,
) -> Policy:
    """Load weights that dmray did not train, to be evaluated like any policy: of the published code, or a DT of Hugging
    Face's transformers.

    `weights`: a folder with config.json and model.safetensors or pytorch_model.bin (a `DecisionTransformerModel`); or,
    with `method`, the file of a state dict of the authors' code. For HDT and HDM give a file for each network,
    {"subgoal": ..., "action": ...}, or one file that has both under these names.

    `task`: for example "hopper" or "bullet-hopper". The files have no mean and deviation of the states: `data` is the
    data set that they were trained on (a name of the catalog or a file), or `statistics` a file with the arrays `mean`
    and `std`. `context_length`: 20, or that of the config. `return_scale`: the task's. `n_head` (1), `action_input`
    ("paper"; "dt" is that of Chen et al.'s DT): of the authors' networks. A setting that the method lacks is an error.

        policy = dmray.load_published_policy("hopper-medium-dt", "hopper", data="hopper-medium-v2")
        policy = dmray.load_published_policy("dm.pt", "bullet-hopper", method="dm", data="bullet-hopper-medium-v0")

    Raises:
        CheckpointError: a file is missing, damaged, or of another model; or its sizes are not those of the task.
        SpecError: a setting is wrong or missing. DatasetError: the data set cannot be read.
    """
    from dmray.inference import published  # loads torch

    settings = published.PublishedSettings(
        task=line("task", task),
        data=None if data is None else place("data", data),
        statistics=None if statistics is None else place("statistics", statistics),
        context_length=None if context_length is None else whole_number("context_length", context_length, 1),
        return_scale=None if return_scale is None else finite_number("return_scale", return_scale),
        n_head=n_head,
        action_input=action_input,
    )
    if method is None:
        if isinstance(weights, Mapping) or not published.is_huggingface_folder(place("weights", weights)):
            raise SpecError(
                "weights: not a folder with a config.json of Hugging Face; for files of the authors' code give `method`"
            )
        if (n_head, action_input) != (None, None):
            raise SpecError("n_head, action_input: are in the folder's config.json; leave them out")
        return published.load_huggingface(place("weights", weights), settings)
    files = weights if isinstance(weights, Mapping) else {"": weights}
    named = {line("stage", name) if name else "": place("weights", file) for name, file in files.items()}
    return published.load_authors(named, line("method", method), settings)


def evaluate_policy(
    policy: Policy | PolicyFunction | str | Path,
    task: str | Task | None = None,
    episodes: int | None = None,
    *,
    decode: str | None = None,
    target_returns: Sequence[float] | None = None,
    seed: int | None = None,
    cohort_size: int | None = None,
    action_noise: float | None = None,
    observation_noise: float | None = None,
    workers: int = 1,
    deterministic: bool = False,
    progress: bool | Callable[[int, int], None] = False,
) -> Evaluation:
    """Roll out a policy in the simulator. Returns scores (`.scores`, `.normalized`) and each episode (`.episodes`).

    `policy`: the result of `load_policy`, or a source that `load_policy` takes; or a function from raw observations
    (E, S) float32 to raw actions (E, A), where E is the number of episodes that have not ended. A function needs a
    `task`, for example "hopper". Settings that are None are those of the policy's sweep, so that
    `evaluate_policy(policy)` reproduces the recorded scores; for a function they are 100 episodes, seed 0 and cohorts
    of 50.

    `decode`: the decode mode. `target_returns`: raw; all episodes are run for each of them. `seed`: the seed from which
    the seeds of episodes follow. `cohort_size`: the number of episodes in lockstep. `action_noise`,
    `observation_noise`: Gaussian noise, in deviations of the policy's data (docs/evaluation.md). `workers`: the number
    of processes; it does not change the result. `deterministic`: as `resources.deterministic` of a sweep. `progress`:
    if True, show a bar; a function is called with the number of finished episodes and the number of all episodes.

        evaluation = dmray.evaluate_policy(policy, episodes=20)
        evaluation = dmray.evaluate_policy(lambda observations: -observations[:, :2], "maze2d-umaze", episodes=20)

    Raises:
        SpecError: an unknown task or decode mode, a target return for a policy that takes none, or a number that is
            too small.
        CheckpointError: the policy's sizes are not those of the task.
        EngineError: the task has no simulator here.
        FloatingPointError: an action is not finite.
    """
    from dmray import inference  # loads torch

    _check_progress(progress)
    acting = load_policy(policy) if isinstance(policy, str | PathLike) else policy
    request = inference.evaluation_request(
        acting,
        task,
        episodes=episodes,
        decode=decode,
        target_returns=target_returns,
        seed=seed,
        cohort_size=cohort_size,
        action_noise=action_noise,
        observation_noise=observation_noise,
    )
    with _episode_bar(progress, request.task.name) as on_cohort:
        return inference.evaluate(acting, request, workers=workers, deterministic=deterministic, on_cohort=on_cohort)


def evaluate_sweep(
    sweep: str | Path,
    *,
    storage: str | Path | None = None,
    only: str | None = None,
    checkpoint: str = "final",
    decode: str | None = None,
    episodes: int | None = None,
    target_returns: Sequence[float] | None = None,
    seed: int | None = None,
    cohort_size: int | None = None,
    action_noise: float | None = None,
    observation_noise: float | None = None,
    local: bool = False,
    workers: int | None = None,
    address: str | None = None,
    deterministic: bool | None = None,
    mlflow_uri: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> SweepEvaluation:
    """Evaluate the stored checkpoints of a whole sweep again, without a training step, and write its report.

    `sweep`: its folder, its file or its URL in an object store. `only`: some trials, as on the command line.
    `checkpoint`: "final", "best", "step:10000" (see `faults.keep_checkpoints`) or "all". The settings that follow are
    those of `evaluate_policy`; None: as the sweep has them. Trials that have not finished are left out.

    The results are files of their own in the sweep's folder. The report and MLflow show them as a protocol of their
    own, in no mean with the evaluations of the training. A result that is there is kept, so a call that was killed is
    repeated to continue it.

    `local`: evaluate in this process. `workers`: in so many processes of this machine. Otherwise evaluation actors run
    on the Ray cluster at `address`, or on one that is started on this machine. It does not change the results.

        evaluated = dmray.evaluate_sweep("runs/quickstart", decode="stream:2", local=True)
        evaluated.table                                      # one row per checkpoint
        dmray.load_results("runs/quickstart").reevaluations  # of all calls so far

    Raises:
        SpecError: a setting is unknown, does not fit a trial, or cannot take effect.
        StorageError: there is no sweep, or no finished trial has such a checkpoint.
        EngineError: a task has no simulator here. ClusterError: no evaluation actor fits the cluster.
    """
    given = [name for name, value in (("local", local), ("workers", workers), ("address", address)) if value]
    if len(given) > 1:
        raise SpecError(f"{' and '.join(given)}: these are different places to evaluate; give one of them")
    _check_progress(progress)
    at_once = 1 if flag("local", local) else whole_number("workers", workers, 1, MAX_WORKERS) if workers else None
    from dmray.driver import sweep_evaluation
    from dmray.inference.evaluation import checked_changes
    from dmray.reporting import write_report as write_sweep_report

    changes = checked_changes(episodes, decode, target_returns, seed, cohort_size, action_noise, observation_noise)
    with _episode_bar(progress, "the sweep", "checkpoints") as on_progress:
        return sweep_evaluation.evaluate_sweep(
            place("sweep", sweep),
            _evaluation_service(at_once, None if address is None else line("address", address)),
            lambda folder: write_sweep_report(folder).folder,
            checkpoint=line("checkpoint", checkpoint),
            changes=changes,
            storage=None if storage is None else place("storage", storage),
            only=None if only is None else line("only", only),
            deterministic=None if deterministic is None else flag("deterministic", deterministic),
            mlflow_uri=None if mlflow_uri is None else line("mlflow_uri", mlflow_uri),
            on_progress=on_progress or (lambda done, total: None),
        )


def analyze_decay(
    runs: str | Path | Sequence[str | Path],
    *,
    checkpoint: str = "final",
    windows: int = 16,
    cut: Sequence[int] = (),
    episodes: int | None = None,
    workers: int | None = None,
    into: str | Path | None = None,
    mlflow_uri: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> DecayAnalysis:
    """Measure how long the states of stored policies with Mamba last, in timesteps (docs/questions/evolution.md).

    `runs`: checkpoint files, trials' folders, ids of MLflow runs, or sweeps; those of other backbones are left out.
    `checkpoint`: "final", "best" or for example "step:10000". `windows`: how many windows of each data set to measure
    in. `cut`: also evaluate each policy with states that are cut off after so many timesteps, in `episodes` episodes
    (None: 20) and so many processes (`workers`). `into`: a folder for tables (CSV) and figures. `progress`: if True,
    show a bar; a function is called with the numbers of finished and of all policies.

        analysis = dmray.analyze_decay("runs/quickstart", cut=[1, 2], episodes=2, into="analysis/decay")
        analysis.lengths_by_setting

    Raises:
        SpecError: no policy has Mamba, a cut is as long as an episode, or an argument is wrong.
        StorageError: a run does not exist, none has such a checkpoint, or nothing can be written to `into`.
        TrackingError: MLflow does not answer, or has no such model.
        CheckpointError, DatasetError: no policy, or no data set, can be read. (If some can, `failed` names the others.)
        EngineError: a cut is to be evaluated, and the task has no simulator here.
    """
    sources = _sources(runs)
    if isinstance(cut, str) or not isinstance(cut, Sequence):
        raise SpecError(f"cut {short_repr(cut)}: give a list of whole numbers, for example [1, 5]")
    cuts = tuple(whole_number("cut", each, 1) for each in cut)
    if not cuts and (episodes is not None or workers is not None):
        raise SpecError("episodes, workers: only with cut, for example cut=[1, 5]")
    _check_progress(progress)
    measured = whole_number("windows", windows, 1, MAX_WINDOWS)
    into = None if into is None else writable_folder("into", into)
    from dmray.analysis import decay, decay_files, stored  # loads torch

    cut_off = decay.CutOff(
        cuts,
        whole_number("episodes", 20 if episodes is None else episodes, 1, MAX_EPISODES),
        whole_number("workers", 1 if workers is None else workers, 1, MAX_WORKERS),
    )
    found = stored.find_policies(sources, line("checkpoint", checkpoint), mlflow_uri)
    with _episode_bar(progress, "the runs", "policies") as on_policy:
        made = decay.analyze_decay(found, windows=measured, cut_off=cut_off if cuts else None, on_policy=on_policy)
    if into is not None:
        decay_files.write_decay(made, into)
    return made


def analyze_subgoals(
    runs: str | Path | Sequence[str | Path],
    *,
    checkpoint: str = "final",
    within: int = 20,
    radius: float | None = None,
    stretches: int = 20,
    length: int = 100,
    episodes: int = 0,
    seed: int = 0,
    into: str | Path | None = None,
    mlflow_uri: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> SubgoalAnalysis:
    """Measure what the subgoals of stored policies of HDM and HDT are (docs/questions/subgoals.md).

    `runs`: checkpoint files, trials' folders, ids of MLflow runs, or sweeps; methods without subgoals are left out.
    `checkpoint`: "final", "best" or for example "step:10000". Subgoals are predicted in `stretches` stretches of up to
    `length` timesteps of the data set, and are compared with the states of the next `within` timesteps. `radius`: the
    z-scored distance at which one is reached; None: half of the median distance of two states of an episode that are
    `within` timesteps apart. `episodes`: also evaluate each policy in so many episodes for each source of subgoals.
    `seed`: of what is drawn. `into`: a folder for tables (CSV) and figures. `progress`: if True, show a bar; a function
    is called with the numbers of finished and of all policies. The result's `tables` are pandas tables.

    Raises:
        SpecError: no policy predicts subgoals, or an argument is wrong.
        StorageError: a run does not exist, none has such a checkpoint, or nothing can be written to `into`.
        TrackingError: MLflow does not answer, or has no such model.
        CheckpointError, DatasetError: no policy, or no data set, can be read. (If some can, `failed` names the others.)
        EngineError: there are to be episodes, and the task has no simulator here.
    """
    sources = _sources(runs)
    _check_progress(progress)
    if radius is not None and finite_number("radius", radius) <= 0:
        raise SpecError(f"radius {short_repr(radius)}: must be above 0")
    counts = {"within": within, "stretches": stretches, "length": length}
    whole = {name: whole_number(name, value, 1, _MOST_STEPS) for name, value in counts.items()}
    whole |= {"episodes": whole_number("episodes", episodes, 0, MAX_EPISODES)}
    whole |= {"seed": whole_number("seed", seed, 0, MAX_SEED)}
    folder = None if into is None else writable_folder("into", into)
    from dmray.analysis import stored, subgoals  # loads torch

    found = stored.find_policies(sources, line("checkpoint", checkpoint), mlflow_uri)
    options = subgoals.SubgoalOptions(radius=radius, **whole)
    with _episode_bar(progress, "the runs", "policies") as on_policy:
        made = subgoals.analyze_subgoals(found, options, on_policy or (lambda done, total: None))
    if folder is not None:
        subgoals.write_subgoals(made, folder)
    return made


def draw_episodes(
    policy: Policy | str | Path,
    pictures: int = 3,
    *,
    videos: int = 0,
    into: str | Path | None = None,
    deterministic: bool = False,
    **evaluation: Any,
) -> list[Path]:
    """Draw the first episodes of an evaluation: `pictures` of them as PNG, `videos` as MP4. Returns the files' paths.

    For mazes, pictures show the plan of the maze: all paths, and each episode with the subgoals of HDM and HDT. For
    other tasks they show several timesteps side by side. The files are in the folders `pictures` and `videos` of
    `into`; None: of the trial's folder, or of the working directory if the checkpoint is not in a trial's folder.
    `evaluation`: `task`, `episodes`, `decode`, `target_returns`, `seed`, `cohort_size`, `action_noise`,
    `observation_noise` as in `evaluate_policy`. The episodes of the first target return are drawn.

        pictures = dmray.draw_episodes(policy, 1, into="drawn", episodes=5)

    Raises:
        SpecError: there are more pictures or videos than episodes in the first cohort, a number is below 0, or `policy`
            is a function. EngineError: no simulator here can draw the task. CheckpointError, FloatingPointError: as
            `evaluate_policy`.
    """
    from dmray import inference  # loads torch
    from dmray.rollout.pictures import Acting, write_episode_films, write_pictures

    pictures, videos = whole_number("pictures", pictures, 0), whole_number("videos", videos, 0)
    deterministic, target = flag("deterministic", deterministic), None if into is None else folder_path("into", into)
    acting = load_policy(policy) if isinstance(policy, str | PathLike) else policy
    if not isinstance(acting, inference.Policy):
        raise SpecError("policy: only a policy of load_policy can be drawn")
    request = inference.evaluation_request(acting, evaluation.pop("task", None), **evaluation)
    watched = inference.watch_episodes(acting, request, max(pictures, videos), deterministic)
    folder, trial = _drawing_folder(acting, target), acting.trial
    name, task = f"{trial.trial_id}-step{acting.step}", request.task
    who = Acting(METHODS[trial.method].label, trial.dataset.name, trial.seed)
    paths = write_pictures(task, who, watched[:pictures], folder.pictures / name) if pictures else []
    films = write_episode_films(task, who, watched[:videos], folder.videos / name) if videos else []
    return [*paths, *films]


def _with_storage(planned: SweepPlan, storage: str | Path | None, mlflow_uri: str | None) -> SweepPlan:
    """The plan with this storage and this MLflow server, where they are not None."""
    sweep = planned.sweep
    if storage is not None:
        sweep = sweep.model_copy(update={"storage": place("storage", storage)})
    if mlflow_uri is not None:
        sweep = sweep.model_copy(update={"tracking": sweep.tracking.model_copy(update={"mlflow_uri": mlflow_uri})})
    return replace(planned, sweep=sweep)


def _runner(planned: SweepPlan, local: bool, address: str | None) -> Runner:
    if local:
        from dmray.driver.local_runner import LocalRunner

        require_processes(planned.sweep.resources)
        return LocalRunner()
    from dmray.on_ray import RayRunner

    return RayRunner(address)


def _evaluation_service(workers: int | None, address: str | None) -> MakeService:
    """Processes of this machine, or evaluation actors on Ray."""
    if workers is None:
        from dmray.on_ray import evaluation_on_ray

        return partial(evaluation_on_ray, address)
    from dmray.driver.sweep_evaluation import OpenService
    from dmray.inference.services import local_evaluation

    @contextmanager
    def on_this_machine(planned: Plan, folder: SweepFolder) -> Iterator[OpenService]:
        with local_evaluation(workers, planned.sweep.resources.deterministic) as service:
            yield OpenService(service, workers)

    return on_this_machine


@contextmanager
def _progress_of(progress: bool | Callable[[Summary], None], console: Console | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `session.run_sweep` that show the progress."""
    if callable(progress):
        yield {"on_progress": progress}
    elif progress and console is None and in_notebook():
        yield {"on_progress": NotebookBar().show_sweep}
    else:
        yield {"console": (console or safe_console(stderr=True)) if progress else None}


@contextmanager
def _episode_bar(
    progress: bool | Callable[[int, int], None], task: str, what: str = "episodes"
) -> Iterator[Callable[[int, int], None] | None]:
    """Yield the function to call with the numbers of finished and of all episodes; None: no progress is shown."""
    if callable(progress):
        yield progress
    elif not progress:
        yield None
    elif in_notebook():
        bar = NotebookBar()
        yield lambda done, total: bar.show(done, total, f"{done}/{total} {what} of {task}")
    else:
        from rich.progress import Progress

        with Progress(console=safe_console(stderr=True), transient=True) as shown:
            row = shown.add_task(f"{what} of {task}", total=None)
            yield lambda done, total: shown.update(row, completed=done, total=total)


def _sources(runs: str | Path | Sequence[str | Path]) -> list[str]:
    """The runs of an analysis as texts."""
    named = [runs] if isinstance(runs, str | PathLike) else runs
    if not isinstance(named, Sequence) or not named:
        raise SpecError(f"runs {short_repr(runs)}: give a path, a run's id, or a list of them")
    return [place("runs", source) for source in named]


def _check_progress(progress: object) -> None:
    if not callable(progress):
        flag("progress", progress)


def _drawing_folder(policy: Policy, into: Path | None) -> TrialFolder:
    """The folder of the drawings: `into`; if it is None, the folder of the policy's trial in a sweep."""
    if into is None and policy.folder is not None and TrialFolder(policy.folder).ledger.exists():
        return TrialFolder(policy.folder)
    return TrialFolder(into or Path())


def _fetch_episode_tables(stored: Sequence[tuple[str, SweepFolder]]) -> None:
    """Copy the episode tables of sweeps in object stores to this machine."""
    for storage, folder in stored:
        SweepCopy(open_store(storage, folder.name), folder).fetch_episode_tables()
