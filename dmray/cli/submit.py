"""`python -m dmray.submit SWEEP.yaml --address URL`: start a sweep on a remote cluster, and let the laptop go."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from dmray.cli.shared import new_app, out, report_errors
from dmray.errors import SpecError
from dmray.specs import SweepSpec, load_sweep
from dmray.storage import is_url
from dmray.tasks import MINARI_SCHEME

app = new_app()


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="The sweep file; it travels to the cluster.")],
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    follow: Annotated[
        bool, typer.Option("--follow", help="Print what the job prints; Ctrl-C leaves it alone.")
    ] = False,
    options: Annotated[list[str] | None, typer.Argument(help="After --: options of dmray.sweep there.")] = None,
) -> None:
    """Run a sweep as a Ray job. What was begun in the storage before goes on; a second job of a sweep is refused.

    Exit status with --follow: 0 if the job ended well, else 1.
    """
    given = options or []
    with report_errors():
        sweep = load_sweep(file, _values(given, "-o"))
        storage = [sweep.storage, *_values(given, "--storage")][-1]
        _check_paths(file, sweep, storage)
        from dmray.on_ray.submission import JobClient, Submission

        client = JobClient(address)
        job_id = client.submit(Submission(sweep.name, file, given))
        reaches = "reaches that store" if is_url(storage) else "mounts that folder"
        _tell(f"{job_id} runs at {address}; this machine may go. Follow it:")
        _tell(f"  ray job logs --address {address} --follow {job_id}")
        _tell(f"  dmray status {storage}/{sweep.name} --watch     # also pause, resume, stop; where one {reaches}")
        if follow:
            try:
                succeeded = client.follow(job_id, lambda text: typer.echo(text, nl=False))
            except KeyboardInterrupt:
                succeeded = True  # it runs on
            raise typer.Exit(int(not succeeded))


def _values(options: list[str], name: str) -> list[str]:
    """What an option was given, every time."""
    following = [after for option, after in pairwise(options) if option == name]
    return following + [option.removeprefix(f"{name}=") for option in options if option.startswith(f"{name}=")]


def _check_paths(file: Path, sweep: SweepSpec, storage: str) -> None:
    """Relative paths would be relative to a folder of the job, which goes with it."""
    if not is_url(storage) and not Path(storage).is_absolute():
        raise SpecError(
            f"{file}: storage '{storage}' is relative; name a folder that every machine of the cluster mounts, or an "
            "object store: dmray submit ... -- --storage /mnt/dmray/runs"
        )
    for dataset in sweep.datasets:
        path = dataset.path
        if path is not None and not path.startswith(MINARI_SCHEME) and not Path(path).is_absolute():
            raise SpecError(
                f"{file}: dataset '{dataset.name}': path '{path}' is relative; name its place on the cluster"
            )


def _tell(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
