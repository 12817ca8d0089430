"""`python -m dmray.analyze QUESTION RUN...`: what stored policies have learned, in tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmray.api import analyze_decay, analyze_subgoals
from dmray.arguments import MAX_EPISODES, MAX_SEED, MAX_WINDOWS, MAX_WORKERS
from dmray.cli.shared import err, finite_number, new_app, out, print_error, report_errors
from dmray.errors import DatasetError, SpecError
from dmray.methods import METHODS
from dmray.registry import short
from dmray.terminal import FittingTable

if TYPE_CHECKING:
    from dmray.analysis.decay import DecayAnalysis

app = new_app()
Runs = Annotated[
    list[str],
    typer.Argument(
        help="Checkpoint files, folders of trials, ids of their MLflow runs, or sweeps (folder, file, URL)."
    ),
]
MLflowServer = Annotated[
    str | None, typer.Option("--mlflow-uri", help="MLflow server of run ids. Default: $MLFLOW_TRACKING_URI.")
]
CheckpointName = Annotated[str, typer.Option("--checkpoint", help="Of trials: final, best, or for example step:10000.")]


@app.callback()
def main() -> None:
    """Analyse what stored policies have learned. Each question has its own command."""


@app.command()
def decay(
    runs: Runs,
    checkpoint: CheckpointName = "final",
    windows: Annotated[int, typer.Option(min=1, max=MAX_WINDOWS, help="Windows of the data set to measure in.")] = 16,
    cut: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Also evaluate with states cut off after N timesteps, for each N."),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, max=MAX_EPISODES, help="Episodes for each cut. Default: 20.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=MAX_WORKERS, help="Processes for the episodes.")] = None,
    into: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("analysis/decay"),
    mlflow_uri: MLflowServer = None,
) -> None:
    """Measure how long Mamba's states last, before and after training, and what a score needs of them."""
    with report_errors():
        if cut is None and (episodes is not None or workers is not None):
            raise SpecError("--episodes, --workers: only with --cut, for example --cut 1,2,5,10")
        made = analyze_decay(
            runs,
            checkpoint=checkpoint,
            windows=windows,
            cut=[] if cut is None else _numbers("--cut", cut),
            episodes=episodes,
            workers=workers,
            into=into,
            mlflow_uri=mlflow_uri,
            progress=True,
        )
        _print_left_out(made.left_out)
        out.print("median memory lengths of layers 1, 2, ... in timesteps", style="bold")
        out.print(_lengths_table(made))
        if not made.scores.empty:
            out.print("\nnormalized score with states cut off after so many timesteps", style="bold")
            out.print(_scores_table(made))
        out.print(f"\ntables and figures: {into}", markup=False, highlight=False, soft_wrap=True)
        _end(made.failed)


def _print_left_out(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        err.print(f"left out: {sentence}", markup=False, highlight=False)


def _end(failed: Sequence[str]) -> None:
    """Name the data sets that failed; then the exit status is 1."""
    for sentence in failed:
        print_error(DatasetError(sentence))
    if failed:
        raise typer.Exit(1)


def _lengths_table(made: DecayAnalysis) -> FittingTable:
    """A row for each setting and stage."""
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("data set", "setting", "at the start", "after training", "above context"):
        table.add_column(heading, justify="right" if heading == "above context" else "left")
    rows = made.lengths_by_setting
    for (dataset, method, setting), of_setting in rows.groupby(["dataset", "method", "setting"], sort=False):
        stages = list(of_setting.groupby("stage", sort=False))
        for stage, group in stages:
            medians = {
                weights: " ".join(f"{value:.3g}" for value in each["p50"]) for weights, each in group.groupby("weights")
            }
            beyond = group.loc[group["weights"] == "trained", "beyond_context"].mean()
            named = (METHODS[method].label, stage if len(stages) > 1 else "", setting)
            table.add_row(
                dataset, ", ".join(filter(None, named)), medians["start"], medians["trained"], f"{beyond:.0%}"
            )
    return table


def _scores_table(made: DecayAnalysis) -> FittingTable:
    """A row for each setting, a column for each cut."""
    rows = made.scores_by_setting
    cuts = sorted(set(rows["timesteps"]))
    table = FittingTable(box=None, pad_edge=False)
    table.add_column("data set")
    table.add_column("setting")
    for each in cuts:
        table.add_column(str(each), justify="right")
    for (dataset, method, setting), group in rows.groupby(["dataset", "method", "setting"], sort=False):
        means = dict(zip(group["timesteps"], group["mean"], strict=True))
        named = ", ".join(filter(None, (METHODS[method].label, setting)))
        table.add_row(dataset, named, *(f"{means[each]:z.1f}" if each in means else "" for each in cuts))
    return table


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers between commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise SpecError(f"{option} '{short(text)}': give whole numbers between commas, for example 1,2,5,10")
    return [int(part) for part in parts]


@app.command()
def subgoals(
    runs: Runs,
    checkpoint: CheckpointName = "final",
    within: Annotated[int, typer.Option(min=1, max=10_000, help="Timesteps in which a subgoal may be reached.")] = 20,
    radius: Annotated[
        float | None,
        typer.Option(
            parser=finite_number,
            metavar="<float>",
            help="Z-scored distance at which it is reached. Default: half of how far the states move in --within.",
        ),
    ] = None,
    stretches: Annotated[int, typer.Option(min=1, max=10_000, help="Stretches of the data set to predict in.")] = 20,
    length: Annotated[int, typer.Option(min=1, max=10_000, help="Timesteps of a stretch.")] = 100,
    episodes: Annotated[
        int,
        typer.Option(min=0, max=MAX_EPISODES, help="Episodes in the simulator for each source of subgoals; 0: none."),
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_WORKERS, help="Processes for the episodes; one for each source, up to 4."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of what is drawn.")] = 0,
    into: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("analysis/subgoals"),
    mlflow_uri: MLflowServer = None,
) -> None:
    """Measure how near the subgoals of HDM and HDT are to labels and visited states, and what scores need of them."""
    with report_errors():
        made = analyze_subgoals(
            runs,
            checkpoint=checkpoint,
            within=within,
            radius=radius,
            stretches=stretches,
            length=length,
            episodes=episodes,
            workers=workers,
            seed=seed,
            into=into,
            mlflow_uri=mlflow_uri,
            progress=True,
        )
        _print_left_out(made.left_out)
        out.print(made)
        out.print(f"tables and figures: {into}", markup=False, highlight=False, soft_wrap=True)
        _end(made.failed)
