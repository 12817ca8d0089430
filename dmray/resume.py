"""`python -m dmray.resume SWEEP`: a paused sweep goes on; for one without a driver, the command that continues it."""

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
    """Let a paused sweep go on. Exit status 1 where no driver waits for that."""
    with told():
        folder = find_sweep(sweep, storage)
        driver, order = driver_of(folder), read_order(folder)
        again = f"continue with:\n  {(order and order.again) or f'python -m dmray.sweep {sweep} --resume'}"
        if driver is None or not driver.alive:
            raise StorageError(f"{folder.path}: no driver is at work; {again}")
        if order and order.kind in ("stop", "kill"):
            raise StorageError(f"{folder.path}: it is being stopped (by {order.by}); once it has ended, {again}")
        if order and order.kind == "pause":
            give_order(folder, "run")
            out.print("it goes on", highlight=False)
        else:
            out.print("it is not paused", highlight=False)


if __name__ == "__main__":
    app()
