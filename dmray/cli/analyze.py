"""`python -m dmray.analyze QUESTION RUN...`: what stored policies have learned, in tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from dmray.api import analyze_subgoals
from dmray.arguments import MAX_EPISODES, MAX_SEED
from dmray.cli.shared import err, finite_number, new_app, out, report_errors

app = new_app()
Runs = Annotated[
    list[str],
    typer.Argument(
        help="Checkpoint files, folders of trials, ids of their MLflow runs, or sweeps (folder, file, URL)."
    ),
]
CheckpointName = Annotated[str, typer.Option("--checkpoint", help="Of trials: final, best, or for example step:10000.")]


@app.callback()
def main() -> None:
    """Analyse what stored policies have learned. Each question has its own command."""


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
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of what is drawn.")] = 0,
    into: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("analysis/subgoals"),
) -> None:
    """Measure how near the subgoals of HDM and HDT are to labels and visited states, and what scores need of them."""
    with report_errors():
        with Progress(console=err, transient=True) as progress:
            bar = progress.add_task("policies", total=None)
            made = analyze_subgoals(
                runs,
                checkpoint=checkpoint,
                within=within,
                radius=radius,
                stretches=stretches,
                length=length,
                episodes=episodes,
                seed=seed,
                into=into,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        for sentence in made.left_out:
            err.print(f"left out: {sentence}", markup=False, highlight=False)
        out.print(made)
        out.print(f"tables and figures: {into}", markup=False, highlight=False, soft_wrap=True)
