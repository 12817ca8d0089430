"""`python -m dmray.submit SWEEP.yaml --address URL`: start a sweep as a job on a remote Ray cluster."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from dmray.cli.shared import new_app, out, report_errors, sweep_files
from dmray.errors import SpecError
from dmray.redaction import has_secret, without_secrets
from dmray.specs import SweepSpec, load_sweep
from dmray.specs.loading import read_values
from dmray.specs.showing import as_yaml
from dmray.storage import is_url

app = new_app()


@app.command()
def main(
    file: Annotated[
        Path,
        typer.Argument(
            help="The sweep file, or the name of one of dmray's; it is sent to the cluster.",
            autocompletion=sweep_files,
        ),
    ],
    address: Annotated[str, typer.Option(help="URL of the cluster's Ray dashboard.")] = "http://127.0.0.1:8265",
    follow: Annotated[
        bool, typer.Option("--follow", help="Print the job's output. Ctrl-C ends only the printing.")
    ] = False,
    options: Annotated[list[str] | None, typer.Argument(help="After --: options of dmray.sweep.")] = None,
) -> None:
    """Run a sweep as a Ray job. If the storage has the sweep already, the job continues it. A sweep can have one job.

    Exit status with --follow: 0 if the job succeeded, else 1.
    """
    given = options or []
    with report_errors():
        sweep = load_sweep(file, _values(given, "-o"))
        storage = [sweep.storage, *_values(given, "--storage")][-1]
        _check_paths(file, sweep, storage)
        _check_secrets(file, sweep, given)
        from dmray.on_ray.submission import JobClient, Submission

        text = as_yaml(read_values(file).content)  # with the values of a file that it extends, which is not sent
        client = JobClient(address)
        job_id = client.submit(Submission(sweep.name, f"{file.stem}.yaml", text, given))
        where = "reaches that store" if is_url(storage) else "mounts that folder"
        _print(f"{job_id} runs at {without_secrets(address)}; it does not need this machine any more. Watch it with:")
        _print(f"  ray job logs --address {without_secrets(address)} --follow {job_id}")
        _print(f"  dmray status {storage}/{sweep.name} --watch     # from any machine that {where}")
        if follow:
            try:
                succeeded = client.follow(job_id, lambda text: typer.echo(text, nl=False))
            except KeyboardInterrupt:
                succeeded = True  # the job continues
            raise typer.Exit(int(not succeeded))


def _values(options: list[str], name: str) -> list[str]:
    """All values of an option."""
    following = [after for option, after in pairwise(options) if option == name]
    return following + [option.removeprefix(f"{name}=") for option in options if option.startswith(f"{name}=")]


def _check_paths(file: Path, sweep: SweepSpec, storage: str) -> None:
    """Check that no path is relative. On the cluster it would be in the job's folder, which is removed with the job.

    Raises:
        SpecError: the storage or the path of a data set is relative.
    """
    if not is_url(storage) and not Path(storage).is_absolute():
        raise SpecError(
            f"{file}: storage '{storage}' is relative; give the absolute path of a folder that every machine of the "
            "cluster mounts, or an object store: dmray submit ... -- --storage /mnt/dmray/runs"
        )
    for dataset in sweep.datasets:
        path = dataset.path
        if path is not None and not is_url(path) and not Path(path).is_absolute():
            raise SpecError(
                f"{file}: dataset '{dataset.name}': path '{path}' is relative; give its absolute path on the cluster"
            )


def _check_secrets(file: Path, sweep: SweepSpec, options: list[str]) -> None:
    """Check that no password is sent. A job's command and its files are shown to all who may use the cluster.

    Raises:
        SpecError: an option or the sweep file holds a password.
    """
    for place, text in ((file, sweep.tracking.mlflow_uri or ""), *(("options after --", word) for word in options)):
        if has_secret(text):
            raise SpecError(
                f"{place}: {without_secrets(text)}: a job's password is shown to all who may use the cluster; leave it "
                "out of the address, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the head "
                "of the cluster is started"
            )


def _print(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
