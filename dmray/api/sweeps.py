"""Plan, run and evaluate sweeps."""

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

from dmray.api.progress import check_progress, episode_bar, sweep_progress
from dmray.arguments import MAX_WORKERS, flag, line, place, whole_number
from dmray.coordination.commands import read_command
from dmray.driver.plan_view import render_plan
from dmray.errors import SpecError
from dmray.planning.manifest import read_manifest
from dmray.planning.packing import require_processes
from dmray.planning.plan import Plan, plan
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.progress.summary import Summary
from dmray.progress.trial_status import ENDED, failures
from dmray.records import SweepFolder
from dmray.registry import short_repr
from dmray.specs import SweepSpec
from dmray.specs.loading import located, read_values, validated, values_of
from dmray.specs.merging import MergedValues
from dmray.specs.mistakes import Mistake
from dmray.storage import sweep_folder

if TYPE_CHECKING:
    import pandas as pd

    from dmray.driver.session import Runner
    from dmray.driver.sweep_evaluation import MakeService, SweepEvaluation
    from dmray.reporting.frames import SweepRun

SweepSource = str | Path | Mapping[str, Any] | SweepSpec | Plan
_PLAN_COLUMNS = 120


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
        console = Console(file=StringIO(), emoji=False, width=_PLAN_COLUMNS)
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
    check_progress(progress)
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

    with sweep_progress(progress, console) as shown:
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
    check_progress(progress)
    at_once = 1 if flag("local", local) else whole_number("workers", workers, 1, MAX_WORKERS) if workers else None
    from dmray.driver import sweep_evaluation
    from dmray.inference.evaluation import checked_changes
    from dmray.reporting import write_report as write_sweep_report

    changes = checked_changes(episodes, decode, target_returns, seed, cohort_size, action_noise, observation_noise)
    with episode_bar(progress, "the sweep", "checkpoints") as on_progress:
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
