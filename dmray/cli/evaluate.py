"""`python -m dmray.evaluate CHECKPOINT_OR_RUN_OR_SWEEP`: evaluate stored policies as their sweep does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from dmray.api import (
    draw_episodes,
    evaluate_policy,
    evaluate_sweep,
    load_policy,
    load_published_policy,
)
from dmray.arguments import MAX_COHORT, MAX_EPISODES, MAX_NOISE, MAX_SEED, MAX_WORKERS
from dmray.cli.shared import (
    SweepStorage,
    check_writable,
    err,
    finite_number,
    log_to_stderr,
    new_app,
    out,
    report_errors,
)
from dmray.errors import SpecError
from dmray.files import is_regular_file, user_path
from dmray.mlflow_mirror.models import upload_drawings
from dmray.mlflow_mirror.policies import mlflow_run_of
from dmray.records import SweepFolder, write_episode_table
from dmray.specs import noise_text
from dmray.storage import is_url
from dmray.terminal import FittingTable

if TYPE_CHECKING:
    from dmray.inference import Evaluation, Policy

app = new_app()


@app.command()
def main(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint file, a trial's folder, the id of a trial's MLflow run, or a sweep (folder or file); "
            "s3://... too. Or a folder of Hugging Face (config.json, model.safetensors)."
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_EPISODES, help="Number of episodes. Default of this and the next four: the sweep's."
        ),
    ] = None,
    decode: Annotated[str | None, typer.Option(help="Decode mode, for example window.")] = None,
    target: Annotated[
        list[float] | None,
        typer.Option(parser=finite_number, metavar="<float>", help="Target return; may be given several times."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of the episodes.")] = None,
    cohort_size: Annotated[
        int | None, typer.Option(min=1, max=MAX_COHORT, help="Number of episodes in lockstep.")
    ] = None,
    action_noise: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_NOISE, help="Noise on actions, in deviations of the data. Default: the sweep's."),
    ] = None,
    observation_noise: Annotated[
        float | None, typer.Option(min=0, max=MAX_NOISE, help="Noise on observations, likewise.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="final (default), best, step:10000 or all (each stored one); of a trial's folder also last."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_WORKERS, help="Processes of this machine; does not change the result."),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Compute as a sweep with resources.deterministic: true.")
    ] = False,
    records: Annotated[Path | None, typer.Option(help="Write one row per episode to this Parquet file.")] = None,
    video: Annotated[int, typer.Option(min=0, max=MAX_COHORT, help="Number of episodes to film (MP4).")] = 0,
    pictures: Annotated[int, typer.Option(min=0, max=MAX_COHORT, help="Number of episodes to draw (PNG).")] = 0,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pictures/ and videos/. Default: the trial's; for MLflow runs, the working directory."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Of a sweep, some trials: 'method=dm|dt,seed=0'.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Evaluate a sweep in this process, without Ray.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Evaluate a sweep on a running Ray cluster. Default: start one on this machine.")
    ] = None,
    storage: SweepStorage = None,
    authors: Annotated[
        list[str] | None,
        typer.Option(metavar="[STAGE=]FILE", help="Weights of the published code; HDM: subgoal=FILE and action=FILE."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method of --authors: dt, dm, dm+r, hdt, hdm.")] = None,
    task: Annotated[str | None, typer.Option(help="Task of published weights, for example bullet-hopper.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set with the mean and deviation of states for published weights.")
    ] = None,
    statistics: Annotated[str | None, typer.Option(help="Instead of --data: a file with mean and std.")] = None,
    context_length: Annotated[int | None, typer.Option(min=1, help="Of published weights. Default: 20.")] = None,
    return_scale: Annotated[
        float | None, typer.Option(parser=finite_number, metavar="<float>", help="Default: the task's.")
    ] = None,
    n_head: Annotated[int | None, typer.Option(min=1, help="Attention heads of --authors. Default: 1.")] = None,
    action_input: Annotated[
        str | None, typer.Option(help="Of --authors: paper (default), or dt for Chen et al.'s DT.")
    ] = None,
    mlflow_uri: Annotated[str | None, typer.Option(help="MLflow server. Default: $MLFLOW_TRACKING_URI.")] = None,
) -> None:
    """Evaluate a stored policy, or all stored policies of a sweep; without options, exactly as the sweep did it.

    Pictures and videos of an MLflow run are also uploaded to the run. The results of a sweep are kept: they are in its
    report and in MLflow as a protocol of their own, and the command continues where it was interrupted.
    """
    settings: dict[str, Any] = {
        "episodes": episodes,
        "decode": decode,
        "target_returns": target or None,
        "seed": seed,
        "cohort_size": cohort_size,
        "action_noise": action_noise,
        "observation_noise": observation_noise,
    }
    of_a_policy = {"--records": records, "--video": video, "--pictures": pictures, "--into": into}
    of_a_sweep = {"--only": only, "--local": local, "--address": address, "--storage": storage}
    published: dict[str, Any] = {
        "method": method,
        "task": task,
        "data": data,
        "statistics": statistics,
        "context_length": context_length,
        "return_scale": return_scale,
        "n_head": n_head,
        "action_input": action_input,
    }
    with report_errors():
        source = _one_source(source, authors)
        foreign = _published_policy(source, authors or [], published)
        if foreign is None and is_sweep(source):
            _refuse(of_a_policy, f"{source} is a sweep; give the folder of one of its trials")
            where = {"local": local, "workers": workers, "address": address, "mlflow_uri": mlflow_uri}
            flags = {"deterministic": True if deterministic else None, "checkpoint": checkpoint or "final"}
            _evaluate_sweep(source, only=only, storage=storage, **flags, **where, **settings)
            return
        _refuse(of_a_sweep, f"{source} is no sweep; give the sweep's folder or file")
        if foreign is not None:
            _refuse({"--checkpoint": checkpoint, "--mlflow-uri": mlflow_uri}, f"{source} has published weights only")
        if checkpoint == "all":
            _refuse(of_a_policy, "--checkpoint all evaluates several policies; name one of them")
            _refuse({"--mlflow-uri": mlflow_uri}, "--checkpoint all reads a trial's folder; leave it out")
            _evaluate_all(source, settings, workers or 1, deterministic)
            return
        if records is not None:
            check_writable(records, "--records")
        policy = foreign or load_policy(source, checkpoint=checkpoint, mlflow_uri=mlflow_uri)
        # Drawn first, which needs only the first cohort, so that errors appear before hours of evaluation.
        drawn: list[Path] = []
        if pictures or video:
            drawn = draw_episodes(policy, pictures, videos=video, into=into, deterministic=deterministic, **settings)
        evaluation = _evaluate(policy, settings, workers or 1, deterministic)
        run = mlflow_run_of(source)
        if run is not None and drawn:
            upload_drawings(run, drawn, mlflow_uri)
        if records is not None:
            write_episode_table(records, evaluation.rows, evaluation.about)
        compared = _compare_with_record(policy, evaluation)
    out.print(_title(policy, evaluation), highlight=False, soft_wrap=True)
    out.print(_table([("", evaluation)]))
    for path in drawn:
        out.print(f"written {path}", highlight=False, soft_wrap=True)
    out.print(compared, highlight=False, soft_wrap=True)


def is_sweep(source: str) -> bool:
    """Whether `source` names a sweep: a sweep file, a folder with a manifest, or a URL that is not of a trial."""
    if mlflow_run_of(source) is not None:
        return False
    if is_url(source):
        return "/trials/" not in source and not source.endswith(".pt")
    path = user_path(source)
    return path.suffix in (".yaml", ".yml") or is_regular_file(SweepFolder(path.parent, path.name).manifest)


def _one_source(source: str | None, authors: Sequence[str] | None) -> str:
    if (source is None) == (not authors):
        raise SpecError("give what to evaluate: a checkpoint, a trial, a sweep, a folder of weights, or --authors FILE")
    return source if source is not None else ", ".join(authors or ())


def _published_policy(source: str, authors: Sequence[str], options: Mapping[str, Any]) -> Policy | None:
    """The policy of weights that dmray did not train; None if `source` is something else.

    `options`: those for such weights, None where one is not given.

    Raises:
        SpecError: an option of such weights is missing, or is given for something else.
    """
    settings = {name: value for name, value in options.items() if value is not None}
    is_folder = not authors and not is_url(source) and is_regular_file(user_path(source) / "config.json")
    if is_folder:
        from dmray.inference.exported import is_exported  # loads torch

        is_folder = not is_exported(user_path(source))
    if not authors and not is_folder:
        if settings:
            given = f"--{next(iter(settings)).replace('_', '-')}"
            raise SpecError(f"{given}: is for published weights (--authors, or a folder with config.json)")
        return None
    if "task" not in settings:
        raise SpecError("--task: missing; published weights do not name their task, for example --task hopper")
    if is_folder:
        if "method" in settings:
            raise SpecError(f"--method: {source} is a Decision Transformer of Hugging Face; leave it out")
        return load_published_policy(source, **settings)
    if "method" not in settings:
        raise SpecError("--method: missing; give the method of the weights, for example --method hdm")
    return load_published_policy(_files_by_stage(authors), **settings)


def _files_by_stage(authors: Sequence[str]) -> dict[str, str]:
    """The file of each stage; of the stage "" where none is named."""
    files: dict[str, str] = {}
    for text in authors:
        stage, equals, file = text.partition("=")
        if not equals or not stage.isalpha():  # a path may have an equals sign
            stage, file = "", text
        if stage in files:
            raise SpecError(f"--authors {text}: a second file of the same network; name them, as in action=FILE")
        files[stage] = file
    return files


def _refuse(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value:
            raise SpecError(f"{name}: {why}")


def _evaluate(policy: Policy, settings: dict[str, Any], workers: int, deterministic: bool) -> Evaluation:
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task(f"episodes of {policy.task.name}", total=None)
        return evaluate_policy(
            policy,
            **settings,
            workers=workers,
            deterministic=deterministic,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )


def _evaluate_all(source: str, settings: dict[str, Any], workers: int, deterministic: bool) -> None:
    from dmray.inference.policy import checkpoints_in

    folder, names = checkpoints_in(source)
    policies = {name: load_policy(folder, checkpoint=name) for name in names}
    made = [(name, _evaluate(policy, settings, workers, deterministic)) for name, policy in policies.items()]
    out.print(_title(policies[names[-1]], made[-1][1], of_one=False), highlight=False, soft_wrap=True)
    out.print(_table(made))


def _evaluate_sweep(source: str, **settings: Any) -> None:
    log_to_stderr()
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task(f"checkpoints of {Path(source).name}", total=None)

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        made = evaluate_sweep(source, progress=show, **settings)
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("trial", "checkpoint", "step", "target return", "normalized score", "raw return"):
        table.add_column(heading, justify="left" if heading in ("trial", "checkpoint") else "right")
    for record in made.records:
        for result in record.targets:
            table.add_row(
                record.trial_id,
                record.conditions.checkpoint,
                f"{record.step:,}",
                "-" if result.target_return is None else f"{result.target_return:g}",
                f"{result.normalized_mean:z.2f} ± {result.normalized_std:z.2f}",
                f"{result.return_mean:z.2f} ± {result.return_std:z.2f}",
            )
    out.print(table)
    out.print(f"{len(made.records)} evaluations ({made.kept} were there already); ± is over episodes.", highlight=False)
    out.print(f"report: {made.report / 'report.html'}", highlight=False, soft_wrap=True)
    if made.mlflow is not None:
        err.print(made.mlflow, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for why in made.failed.values():
        err.print(f"failed: {why}", style="red", highlight=False, markup=False, soft_wrap=True)
    if made.failed:
        raise typer.Exit(1)


def _title(policy: Policy, evaluation: Evaluation, of_one: bool = True) -> str:
    request, task = evaluation.request, evaluation.request.task
    noise = noise_text(request.noise) if request.noise else ""
    what = str(policy) if of_one else f"the stored checkpoints of {policy.trial.trial_id}"
    return (
        f"{what}; {task.name} ({evaluation.protocol}, {task.env_id}), decode {request.decode}, "
        f"{request.episodes} episodes, seed {request.seed}{noise}"
    )


def _table(evaluations: Sequence[tuple[str, Evaluation]]) -> FittingTable:
    """A row for each target return; with the names of checkpoints if there are several."""
    named = [("checkpoint", "step")] if evaluations[0][0] else []
    table = FittingTable(box=None, pad_edge=False)
    for heading in (*(each for pair in named for each in pair), "target return", "normalized score", "raw return"):
        table.add_column(heading, justify="right")
    table.add_column("length", justify="right")
    for name, evaluation in evaluations:
        for result in evaluation.scores:
            table.add_row(
                *([name, f"{evaluation.step:,}"] if name else []),
                "-" if result.target_return is None else f"{result.target_return:g}",
                f"{result.normalized_mean:z.2f} ± {result.normalized_std:z.2f}",
                f"{result.return_mean:z.2f} ± {result.return_std:z.2f}",
                f"{result.length_mean:z.0f}",
            )
    return table


def _compare_with_record(policy: Policy, evaluation: Evaluation) -> str:
    """Say whether the sweep recorded the same returns, if it evaluated the same weights with the same settings."""
    from dmray.inference import recorded_evaluation

    spread = "± is the standard deviation over episodes."
    record = recorded_evaluation(policy, evaluation.request)
    if record is None:
        return spread
    recorded = {each.target_return: each.returns for each in record.targets}
    if all(recorded.get(each.target_return) == each.returns for each in evaluation.scores):
        return f"{spread} The sweep recorded the same returns, to the last digit."
    if len(record.first_target.returns) == evaluation.request.episodes:
        return f"{spread} The sweep recorded {record.first_target.normalized_mean:z.2f} for the first target."
    return spread


if __name__ == "__main__":
    app()
