"""`python -m dmray.export RUN`: a policy as files for others, with a model card."""

from __future__ import annotations

from typing import Annotated

import typer

from dmray.api import export_policy
from dmray.cli.shared import new_app, out, report_errors

app = new_app()


@app.command()
def main(
    run: Annotated[
        str, typer.Argument(help="A checkpoint file, a trial's folder, the URL of either, or the id of its MLflow run.")
    ],
    folder: Annotated[str, typer.Option("--out", help="Folder to write.")],
    formats: Annotated[
        list[str],
        typer.Option("--format", help="torchscript, pt2 (torch.export), onnx or safetensors; give several one by one."),
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="Of a trial: final, best, last, or for example step:10000. Default: final.")
    ] = None,
    decode: Annotated[
        str | None,
        typer.Option(help="Of files that act without dmray: window or recurrent. Default: that of the policy's sweep."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that was exported before.")] = False,
    mlflow_uri: Annotated[
        str | None, typer.Option(help="MLflow server of a run's id. Default: $MLFLOW_TRACKING_URI.")
    ] = None,
) -> None:
    """Write a policy for others: files that act without dmray, weights, and a model card for the Hugging Face Hub."""
    with report_errors():
        exported = export_policy(
            run, folder, formats, checkpoint=checkpoint, decode=decode, force=force, mlflow_uri=mlflow_uri
        )
        for name, file in exported.files.items():
            out.print(f"{name}: {file}", markup=False, highlight=False, soft_wrap=True)
        if exported.largest_difference is not None:
            difference = f"{exported.largest_difference:.1g}"
            out.print(f"compared with dmray over an episode: actions differ by at most {difference}", highlight=False)
        out.print(f"model card: {exported.folder / 'README.md'}", markup=False, highlight=False, soft_wrap=True)
