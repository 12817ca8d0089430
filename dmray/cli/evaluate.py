"""`python -m dmray.evaluate CHECKPOINT_OR_RUN`: evaluate a stored policy as its sweep does it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from dmray.api import draw_episodes, evaluate_policy, load_policy, mlflow_run_of
from dmray.arguments import MAX_COHORT, MAX_EPISODES, MAX_SEED, MAX_WORKERS
from dmray.cli.shared import check_writable, err, finite_number, new_app, out, report_errors
from dmray.mlflow_mirror.models import upload_drawings
from dmray.records import write_episode_table
from dmray.terminal import FittingTable

if TYPE_CHECKING:
    from dmray.inference import Evaluation, Policy

app = new_app()


@app.command()
def main(
    source: Annotated[
        str,
        typer.Argument(help="A checkpoint file or a trial's folder (s3://... too), or the id of a trial's MLflow run."),
    ],
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
    workers: Annotated[
        int, typer.Option(min=1, max=MAX_WORKERS, help="Number of processes; it does not change the result.")
    ] = 1,
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
    which: Annotated[str | None, typer.Option(help="Model of an MLflow run: final (default) or best.")] = None,
    mlflow_uri: Annotated[str | None, typer.Option(help="MLflow server. Default: $MLFLOW_TRACKING_URI.")] = None,
) -> None:
    """Evaluate a stored policy and print its scores; without options, exactly as its sweep evaluated it.

    Pictures and videos of an MLflow run are also uploaded to the run.
    """
    with report_errors():
        if records is not None:
            check_writable(records, "--records")
        policy = load_policy(source, which=which, mlflow_uri=mlflow_uri)
        settings: dict[str, Any] = {
            "episodes": episodes,
            "decode": decode,
            "target_returns": target or None,
            "seed": seed,
            "cohort_size": cohort_size,
        }
        # Drawn first, which needs only the first cohort, so that errors appear before hours of evaluation.
        drawn: list[Path] = []
        if pictures or video:
            drawn = draw_episodes(policy, pictures, videos=video, into=into, deterministic=deterministic, **settings)
        with Progress(console=err, transient=True) as progress:
            bar = progress.add_task(f"episodes of {policy.task.name}", total=None)
            evaluation = evaluate_policy(
                policy,
                **settings,
                workers=workers,
                deterministic=deterministic,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        run = mlflow_run_of(source)
        if run is not None and drawn:
            upload_drawings(run, drawn, mlflow_uri)
        if records is not None:
            write_episode_table(records, evaluation.rows, evaluation.about)
        compared = _compare_with_record(policy, evaluation)
    out.print(_title(policy, evaluation), highlight=False, soft_wrap=True)
    out.print(_table(evaluation))
    for path in drawn:
        out.print(f"written {path}", highlight=False, soft_wrap=True)
    out.print(compared, highlight=False, soft_wrap=True)


def _title(policy: Policy, evaluation: Evaluation) -> str:
    request, task = evaluation.request, evaluation.request.task
    return (
        f"{policy}; {task.name} ({task.protocol}, {task.env_id}), decode {request.decode}, "
        f"{request.episodes} episodes, seed {request.seed}"
    )


def _table(evaluation: Evaluation) -> FittingTable:
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("target return", "normalized score", "raw return", "length"):
        table.add_column(heading, justify="right")
    for result in evaluation.scores:
        table.add_row(
            "-" if result.target_return is None else f"{result.target_return:g}",
            f"{result.normalized_mean:.2f} ± {result.normalized_std:.2f}",
            f"{result.return_mean:.2f} ± {result.return_std:.2f}",
            f"{result.length_mean:.0f}",
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
        return f"{spread} The sweep recorded {record.first_target.normalized_mean:.2f} for the first target."
    return spread


if __name__ == "__main__":
    app()
