"""The functions of `import dmray`: plan, run and read sweeps, load, evaluate and draw policies.

The command lines are thin over them. Light to import: torch, Ray, MLflow and pandas load when a function needs them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group

from dmray.coordination.commands import read_command
from dmray.driver.plan_view import render_plan
from dmray.driver.progress_bar import NotebookBar, in_notebook
from dmray.errors import SpecError
from dmray.files import write_atomic
from dmray.methods import METHODS
from dmray.planning.plan import Plan, load_plan, plan
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.progress.summary import Summary
from dmray.progress.sweep_handle import locate
from dmray.progress.trial_status import ENDED, failures
from dmray.records import SweepFolder, TrialFolder
from dmray.registry import lookup
from dmray.specs import SweepSpec
from dmray.specs import load_sweep as load_sweep_file
from dmray.specs.loading import sweep_of
from dmray.storage import SweepCopy, is_url, open_store, sweep_folder
from dmray.tasks import PROTOCOLS, Task

if TYPE_CHECKING:
    import pandas as pd

    from dmray.driver.session import Runner
    from dmray.inference import Evaluation, Policy, PolicyFunction
    from dmray.reporting import ReportPaths
    from dmray.reporting.frames import Results, SweepRun

SweepSource = str | Path | Mapping[str, Any] | SweepSpec | Plan
_RUN_ID = re.compile(r"^(?:runs:/)?([0-9a-f]{32})(?:/(final|best))?$")
_PLAN_COLUMNS = 120


class SweepPlan(Plan):
    """The trials of a sweep in the order in which they are started; shown as a table in a terminal and a notebook."""

    @property
    def table(self) -> pd.DataFrame:
        """One row a trial: its id, data set, method, seed and model."""
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
    """The sweep in a YAML file, or in a mapping of the same fields.

    `overrides`: "key.path=value" each, as after `-o` on the command line. The value is read as YAML.

        sweep = dmray.load_sweep("sweeps/quickstart.yaml", ["training.steps=100", "seeds=[0]"])

    Raises:
        SpecError: a mistake, named by file, place, value and the nearest right name.
    """
    if isinstance(overrides, str):
        raise SpecError(f"overrides {overrides!r}: give a list, for example ['training.steps=100']")
    if isinstance(source, Mapping):
        return sweep_of(source, "sweep", overrides)
    if not isinstance(source, str | Path):
        raise SpecError(f"sweep: a {type(source).__name__}; give a file, or a mapping of the same fields")
    return load_sweep_file(source, overrides)


def plan_sweep(sweep: SweepSource, overrides: Iterable[str] = ()) -> SweepPlan:
    """The trials that a sweep consists of. Nothing is run, read or written but the sweep file.

    `overrides` as in `load_sweep`; they need a file or a mapping.

        plan = dmray.plan_sweep("sweeps/quickstart.yaml", ["seeds=[0, 1, 2]"])
        print(plan)                                          # what is run, and what it costs
        plan.table                                           # one row a trial, as a pandas table

    Raises:
        SpecError: a mistake in the sweep, or overrides of a sweep that is already loaded.
    """
    if isinstance(sweep, SweepSpec | Plan):
        if list(overrides):
            raise SpecError("overrides: the sweep is loaded already; give them to load_sweep")
        made = plan(sweep) if isinstance(sweep, SweepSpec) else sweep
    else:
        made = plan(load_sweep(sweep, overrides)) if isinstance(sweep, Mapping) else load_plan(sweep, overrides)
    return SweepPlan(made.sweep, made.trials)


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
    """Run every trial of a sweep, write its report, and read its results. A trial that fails does not end the sweep.

    `storage`: where everything is written, a folder or s3://bucket/prefix; None: as the sweep says (runs).
    `local`: one trial after the other in this process, without Ray; else on the Ray cluster at `address`, or on one
    that is started on this machine. `resume`: continue a sweep that was started before: finished trials are kept.
    `only`, `shard`, `retry_failed`: some of the trials, as on the command line: "method=dm|dt,seed=0", "1/4".
    `mlflow_uri`: an MLflow server, or "off"; None: as the sweep says (SQLite in the storage).
    `progress`: True shows it on `console` (None: a bar in a notebook, else standard error); a function is called with
    a `Summary` every second, from another thread, and once at the end. `continue_with`: the command that
    `dmray status` and `dmray stop` name to continue the sweep.

        results = dmray.run_sweep(sweep, local=True, progress=lambda summary: print(summary.steps, summary.eta_s))
        results.scores                                       # mean and deviation over seeds, by method

    May be called from any thread. No signal handlers are set: an interrupt (Ctrl-C) saves nothing more, and `resume`
    continues from the last checkpoints. `dmray pause` and `dmray stop` work from another shell.

    Raises:
        SpecError: a mistake in the sweep, in `only` or in `shard`; or `local` together with `address`.
        DatasetError: a data set has no file here, or its task no simulator.
        StorageError: the storage cannot be written, another process runs this sweep, or it was started before and
            `resume` was not given.
        TrackingError: the MLflow server does not answer at the start.
        ClusterError: the sweep does not fit the machines.
    """
    if local and address is not None:
        raise SpecError(f"address {address}: a local run does not use Ray; leave out address or local")
    planned = _placed(plan_sweep(sweep), storage, mlflow_uri)
    choice = TrialFilter(only, shard, retry_failed)
    folder = sweep_folder(planned.sweep.storage, planned.sweep.name, "driver")
    from dmray.driver import session  # loads torch
    from dmray.reporting import collect
    from dmray.reporting import write_report as write_sweep_report
    from dmray.reporting.frames import SweepRun

    with _progress_of(progress, console) as shown:
        states = session.run_sweep(
            planned,
            folder,
            _runner(local, address),
            lambda sweep_: write_sweep_report(sweep_).folder,
            resume=resume,
            choice=choice,
            again=continue_with or f"dmray.run_sweep(..., storage={planned.sweep.storage!r}, resume=True)",
            **shown,
        )
    chosen = {trial.trial_id: states[trial.trial_id] for trial in select_trials(planned, choice)}
    command = read_command(folder)
    stopped = command is not None and command.kind == "stop" and not ENDED.issuperset(chosen.values())
    return SweepRun(
        folders=(folder,),
        collected=collect(folder),
        plan=planned,
        statuses=chosen,
        errors={trial_id: why for trial_id, why in failures(planned, folder).items() if trial_id in chosen},
        stopped_by=command.sent_by if command is not None and stopped else None,
    )


def load_results(*sweeps: str | Path, protocol: str | None = None) -> Results:
    """The results of one or several sweeps as pandas tables: `.trials`, `.scores`, `.curves`, `.episodes`.

    `sweeps`: each a sweep's folder (<storage>/<name>), its address in an object store, or its file. A trial that
    several sweeps have counts once. `protocol`: only the trials of this one, for example "d4rl-mujoco".

        results = dmray.load_results("runs/quickstart")
        results.curves.pivot_table(index="step", columns="method", values="normalized_score")
        results.episodes.groupby("method").episode_return.describe()

    Raises:
        SpecError: no such protocol, or no trial is of it.
        StorageError: there is no sweep, or a file of it is damaged. StoreUnavailableError: a store does not answer.
    """
    from dmray.reporting import collect
    from dmray.reporting.frames import Results

    if not sweeps:
        raise SpecError("sweeps: name at least one, for example runs/quickstart")
    if protocol is not None:
        lookup("protocol", protocol, {name: name for name in PROTOCOLS}, SpecError)
    places = [locate(str(sweep)) for sweep in sweeps]
    folders = [
        SweepCopy.downloaded(storage, name).folder if is_url(storage) else SweepFolder(Path(storage), name)
        for storage, name in places
    ]
    collected = collect(*folders, protocol=protocol)
    if protocol is not None and not collected.trials:
        raise SpecError(f"protocol {protocol}: no trial of these sweeps is of it")
    stored = [(at[0], folder) for at, folder in zip(places, folders, strict=True) if is_url(at[0])]
    return Results(tuple(folders), collected, partial(_fetch_episode_tables, stored))


def write_report(
    *sweeps: str | Path,
    into: str | Path | None = None,
    baseline: str | None = None,
    protocol: str | None = None,
) -> ReportPaths:
    """Write the report of one or several sweeps: report.html, report.md, tables.tex, CSV files and figures.

    `into`: the folder; None: <sweep>/report of the first sweep, and in its object store too. `baseline`: the method
    that all others are compared with; None: each method's own baselines. Else as `load_results`.

        paths = dmray.write_report("runs/quickstart", into="report", baseline="dt")

    Raises:
        SpecError: no such baseline or protocol, or no trial is of it. Else as `load_results`.
    """
    return write_report_of(load_results(*sweeps, protocol=protocol), str(sweeps[0]), into, baseline)


def write_report_of(results: Results, first: str, into: str | Path | None, baseline: str | None) -> ReportPaths:
    """`write_report` of results that were loaded already; `first` is the first sweep that they are of."""
    if baseline is not None:
        METHODS.find(baseline, SpecError)
        methods = sorted({result.trial.method for result in results.collected.trials})
        if baseline not in methods:
            raise SpecError(f"baseline {baseline}: no trial is of it, there are {', '.join(methods)}")
    paths = results.write_report(into, baseline)
    storage, name = locate(first)
    if into is None and is_url(storage):
        SweepCopy.for_reading(storage, name).push()
    return paths


def load_policy(source: str | Path, *, which: str | None = None, mlflow_uri: str | None = None) -> Policy:
    """A trained policy, to act with (`policy.start()`), to evaluate and to draw.

    `source`: a checkpoint file, a trial's folder (its final policy; its last, while it trains), the address of either
    in an object store, or the id of a trial's MLflow run. Of an MLflow run, `which` is "final" (if None) or "best",
    and `mlflow_uri` the server; None: $MLFLOW_TRACKING_URI.

        policy = dmray.load_policy(results.trial_folder(results.trials.trial_id[0]))
        rollout = policy.start(num_episodes=2)
        actions = rollout.act(observations)                  # (2, S) to (2, A)
        actions = rollout.act(observations, rewards)         # and the rewards (2,) that the last actions were paid

    Raises:
        CheckpointError: there is no checkpoint, or it is unreadable.
        SpecError: `which` for something that is no MLflow run.
        StorageError: the store has no such trial. TrackingError: MLflow does not answer, or has no such model.
    """
    from dmray import inference  # loads torch

    run = _RUN_ID.match(str(source))
    if run is None:
        if which is not None:
            raise SpecError(
                f"which={which}: chooses a model of an MLflow run; of a trial name the file, checkpoints/{which}.pt"
            )
        return inference.load_policy(source)
    from dmray.mlflow_mirror.models import download_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        file = download_checkpoint(run.group(1), which or run.group(2) or "final", Path(folder), mlflow_uri)
        return replace(inference.load_policy(file), folder=None)


def mlflow_run_of(source: str | Path) -> str | None:
    """The id of the MLflow run that `source` names, None if it names something else."""
    run = _RUN_ID.match(str(source))
    return run.group(1) if run else None


def evaluate_policy(
    policy: Policy | PolicyFunction | str | Path,
    task: str | Task | None = None,
    episodes: int | None = None,
    *,
    decode: str | None = None,
    target_returns: Sequence[float] | None = None,
    seed: int | None = None,
    cohort_size: int | None = None,
    workers: int = 1,
    deterministic: bool = False,
    progress: bool | Callable[[int, int], None] = False,
) -> Evaluation:
    """Roll a policy out in closed loop: scores (`.scores`, `.normalized`) and a record of each episode (`.episodes`).

    `policy`: what `load_policy` gives or takes; or a function of raw observations (E, S) float32 that gives raw
    actions (E, A), E being the episodes that still run. A function needs a `task`, for example "hopper".
    What is None is as in the policy's sweep, so that a policy alone gives the recorded scores again; for a function it
    is 100 episodes, seed 0, 50 at a time.

    `decode`: the decode mode. `target_returns`: raw; each is asked for in all episodes. `seed`: of the episodes'
    starts. `cohort_size`: episodes in lockstep. `workers`: processes; the result is the same for any number.
    `deterministic`: as a sweep with `resources.deterministic`. `progress`: True shows a bar, a function is called
    with the episodes done and in all.

        evaluation = dmray.evaluate_policy(policy, episodes=20)
        evaluation = dmray.evaluate_policy(lambda observations: -observations[:, :2], "maze2d-umaze", episodes=20)

    Raises:
        SpecError: an unknown task or decode mode, a target for a policy that takes none, a number below its least.
        CheckpointError: the policy cannot act in the task.
        EngineError: the task has no simulator here.
        FloatingPointError: an action is not finite.
    """
    from dmray import inference  # loads torch

    acting = load_policy(policy) if isinstance(policy, str | Path) else policy
    request = inference.evaluation_request(
        acting,
        task,
        episodes=episodes,
        decode=decode,
        target_returns=target_returns,
        seed=seed,
        cohort_size=cohort_size,
    )
    with _episode_bar(progress, request.task.name) as on_cohort:
        return inference.evaluate(acting, request, workers=workers, deterministic=deterministic, on_cohort=on_cohort)


def draw_episodes(
    policy: Policy | str | Path,
    pictures: int = 3,
    *,
    videos: int = 0,
    into: str | Path | None = None,
    deterministic: bool = False,
    **evaluation: Any,
) -> list[Path]:
    """Draw the first episodes of an evaluation: `pictures` of them as PNG, `videos` as MP4. The paths of the files.

    Mazes are drawn from above: an overview of all paths, and a panel an episode with the subgoals of HDM and HDT. Other
    tasks are shown in a strip of moments. The files are in `pictures` and `videos` of the folder `into`; None: of the
    trial's folder, or of the working directory where there is none. `evaluation`: `task`, `episodes`, `decode`,
    `target_returns`, `seed`, `cohort_size` of `evaluate_policy`; the first target return is the one drawn.

        pictures = dmray.draw_episodes(policy, 1, into="drawn", episodes=5)

    Raises:
        SpecError: more episodes than the first cohort has, a number below 0, or a function instead of a policy.
        EngineError: nothing here can draw the task.
        Else as `evaluate_policy`.
    """
    from dmray import inference  # loads torch
    from dmray.rollout.film import write_films
    from dmray.rollout.pictures import write_pictures

    if pictures < 0 or videos < 0:
        raise SpecError(f"pictures {pictures}, videos {videos}: must be at least 0")
    acting = load_policy(policy) if isinstance(policy, str | Path) else policy
    if not isinstance(acting, inference.Policy):
        raise SpecError("policy: only a policy of load_policy can be drawn")
    request = inference.evaluation_request(acting, evaluation.pop("task", None), **evaluation)
    watched = inference.watch_episodes(acting, request, max(pictures, videos), deterministic)
    folder, name = _drawing_folder(acting, into), f"{acting.trial.trial_id}-step{acting.step}"
    paths = write_pictures(request.task, watched[:pictures], folder.pictures / name) if pictures else []
    films = [folder.videos / f"{name}-episode{number}.mp4" for number in range(videos)]
    if films:
        write_films(request.task, [episode.observations for episode in watched[:videos]], films)
    return [*paths, *films]


def _placed(planned: SweepPlan, storage: str | Path | None, mlflow_uri: str | None) -> SweepPlan:
    """The plan with another storage, another MLflow server."""
    sweep = planned.sweep
    if storage is not None:
        sweep = sweep.model_copy(update={"storage": str(storage)})
    if mlflow_uri is not None:
        sweep = sweep.model_copy(update={"tracking": sweep.tracking.model_copy(update={"mlflow_uri": mlflow_uri})})
    return replace(planned, sweep=sweep)


def _runner(local: bool, address: str | None) -> Runner:
    if local:
        from dmray.driver.local_runner import LocalRunner

        return LocalRunner()
    from dmray.on_ray import RayRunner

    return RayRunner(address)


@contextmanager
def _progress_of(progress: bool | Callable[[Summary], None], console: Console | None) -> Iterator[dict[str, Any]]:
    """The arguments of `session.run_sweep` that show the progress."""
    if callable(progress):
        yield {"on_progress": progress}
    elif progress and console is None and in_notebook():
        yield {"on_progress": NotebookBar().show_sweep}
    else:
        yield {"console": (console or Console(stderr=True)) if progress else None}


@contextmanager
def _episode_bar(progress: bool | Callable[[int, int], None], task: str) -> Iterator[Callable[[int, int], None] | None]:
    """What is called with the episodes done and in all."""
    if callable(progress):
        yield progress
    elif not progress:
        yield None
    elif in_notebook():
        bar = NotebookBar()
        yield lambda done, total: bar.show(done, total, f"{done}/{total} episodes of {task}")
    else:
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as shown:
            row = shown.add_task(f"episodes of {task}", total=None)
            yield lambda done, total: shown.update(row, completed=done, total=total)


def _drawing_folder(policy: Policy, into: str | Path | None) -> TrialFolder:
    """A sweep's trial keeps its own drawings, and MLflow shows them with it."""
    if into is None and policy.folder is not None and TrialFolder(policy.folder).ledger.exists():
        return TrialFolder(policy.folder)
    return TrialFolder(Path(into or ""))


def _fetch_episode_tables(stored: Sequence[tuple[str, SweepFolder]]) -> None:
    """Bring the episode tables of sweeps in object stores to this machine."""
    for storage, folder in stored:
        store = open_store(storage, folder.name)
        for name in store.list("evaluations"):
            _, trial_id, file = name.split("/")
            path = folder.trial(trial_id).evaluations / file
            content = None if path.exists() else store.read(name)
            if content is not None:
                write_atomic(path, content)
