"""`python -m dmray.analyze QUESTION RUN...`: what stored policies have learned, in tables and figures."""

from __future__ import annotations

from typing import Annotated

import typer

from dmray.cli.shared import new_app

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
