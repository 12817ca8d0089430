"""`python -m dmray.pause SWEEP`: its running trials save and leave, its driver waits for `dmray.resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import new_app, out, told
from dmray.errors import StorageError
from dmray.execution.control import give_order, read_order
from dmray.execution.finding import find_sweep
from dmray.execution.lease import driver_of

app = new_app()


@app.command()
def main(
    sweep: Annotated[Path, typer.Argument(help="The sweep's file, or its folder: runs/quickstart.")],
    storage: Annotated[Path | None, typer.Option(help="Where the file's sweep is, as given to dmray.sweep.")] = None,
) -> None:
    """Free the machines for a while; nothing is lost. Exit status 1 where no driver is at work."""
    with told():
        folder = find_sweep(sweep, storage)
        driver, order = driver_of(folder), read_order(folder)
        if driver is None or not driver.alive:
            raise StorageError(f"{folder.path}: no driver is at work, nothing to pause")
        if order and order.kind in ("stop", "kill"):
            raise StorageError(f"{folder.path}: it is being stopped (by {order.by})")
        if order is None or order.kind != "pause":
            give_order(folder, "pause")
        out.print("paused: running trials save and leave; go on with dmray resume", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
