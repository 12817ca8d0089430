"""`python -m dmray.submit SWEEP.yaml --address URL`: start a sweep as a job on a remote Ray cluster."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dmray.cli.shared import CONTINUE_WITH, err, new_app, out, report_errors, sweep_files
from dmray.cli.sweep import app as sweep_app
from dmray.cli.sweep import overrides_of
from dmray.errors import SpecError
from dmray.plugins import installed_plugins
from dmray.redaction import has_secret, without_secrets
from dmray.specs import NO_MLFLOW, SweepSpec, load_sweep
from dmray.specs.loading import read_values
from dmray.specs.showing import as_yaml
from dmray.storage import is_url

_ADDRESS = "http://127.0.0.1:8265"
_USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, or that of the copy which newer releases of typer have
_NOT_IN_A_JOB = {  # parameters of dmray.sweep
    **dict.fromkeys(("show", "only_plan", "on", "cpus", "gpus", "price"), "runs nothing; give it to dmray.sweep here"),
    "local": "does not use the cluster; give it to dmray.sweep here",
    "address": "is given to the job by dmray submit; leave it out, or give the dashboard's before --",
}
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
    address: Annotated[str, typer.Option(help="URL of the cluster's Ray dashboard.")] = _ADDRESS,
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
        job = _read(file, given)
        overrides = overrides_of(job["override"], job["storage"], job["mlflow_uri"])
        sweep = load_sweep(file, overrides)
        _check_paths(file, sweep)
        _check_secrets(file, sweep, given)
        from dmray.on_ray.submission import JobClient, Submission

        text = as_yaml(read_values(file).content)  # with the values of a file that it extends, which is not sent
        again = ["dmray", "submit", str(file), *([] if address == _ADDRESS else ["--address", address])]
        environment = {CONTINUE_WITH: without_secrets(shlex.join([*again, *(["--", *given] if given else [])]))}
        client = JobClient(address)
        job_id = client.submit(Submission(sweep.name, f"{file.stem}.yaml", text, given, environment))
        _say_what_is_not_sent()
        storage = sweep.storage
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


def _read(file: Path, options: list[str]) -> Mapping[str, Any]:
    """The options after --, as dmray.sweep would read them on the cluster.

    Raises:
        SpecError: dmray.sweep would not take them, or a job has no use for one.
    """
    command = typer.main.get_command(sweep_app)
    try:
        job = command.make_context("dmray.sweep", [str(file), *options]).params
    except _USAGE_ERROR as mistake:
        raise SpecError(f"options after --: {mistake.format_message()}") from None
    names = {parameter.name: parameter.opts[0] for parameter in command.params}
    for name, why in _NOT_IN_A_JOB.items():
        if job[name] not in (None, False):
            raise SpecError(f"options after --: {names[name]} {why}")
    return job


def _check_paths(file: Path, sweep: SweepSpec) -> None:
    """Check that no path is relative. On the cluster it would be in the job's folder, which is removed with the job.

    Raises:
        SpecError: the storage, the path of a data set or MLflow's database is relative.
    """
    if not is_url(sweep.storage) and not Path(sweep.storage).is_absolute():
        raise SpecError(
            f"{file}: storage '{sweep.storage}' is relative; give the absolute path of a folder that every machine of "
            "the cluster mounts, or an object store: dmray submit ... -- --storage s3://BUCKET/runs"
        )
    for dataset in sweep.datasets:
        path = dataset.path
        if path is not None and not is_url(path) and not Path(path).is_absolute():
            raise SpecError(
                f"{file}: dataset '{dataset.name}': path '{path}' is relative; give its absolute path on the cluster"
            )
    uri = sweep.tracking.mlflow_uri
    if uri is not None and uri != NO_MLFLOW and _is_relative(uri):
        raise SpecError(
            f"{file}: tracking.mlflow_uri '{uri}' is relative; give a server that the head of the cluster reaches, "
            "for example --mlflow-uri http://127.0.0.1:5000, or leave it out for a file in the storage"
        )


def _is_relative(mlflow_uri: str) -> bool:
    scheme, _, path = mlflow_uri.partition(":///")
    if scheme.startswith("sqlite"):
        return not path.startswith("/")
    return ":" not in mlflow_uri and ("/" in mlflow_uri or mlflow_uri.startswith((".", "~")))


def _say_what_is_not_sent() -> None:
    """Name the installed packages that extend dmray: the sweep may need them on the cluster."""
    if packages := [f"{name} {version}" for name, version in installed_plugins().items()]:
        err.print(
            f"not sent: {', '.join(packages)}, which extend dmray here; a sweep that uses them needs them installed on "
            "all machines of the cluster",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
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
