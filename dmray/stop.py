"""`python -m dmray.stop SWEEP`: its running trials save and leave, its driver ends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import new_app, out, told
from dmray.execution.control import give_order, read_order
from dmray.execution.finding import find_sweep
from dmray.execution.lease import driver_of

app = new_app()


@app.command()
def main(
    sweep: Annotated[Path, typer.Argument(help="The sweep's file, or its folder: runs/quickstart.")],
    now: Annotated[bool, typer.Option("--now", help="As Ctrl-C: at once, from the last checkpoints on.")] = False,
    storage: Annotated[Path | None, typer.Option(help="Where the file's sweep is, as given to dmray.sweep.")] = None,
) -> None:
    """Stop a sweep from another shell; nothing is lost. Exit status 0 also where no driver is at work."""
    with told():
        folder = find_sweep(sweep, storage)
        driver, order = driver_of(folder), read_order(folder)
        if driver is None or not driver.alive:
            out.print(f"{folder.path}: no driver is at work, nothing to stop", highlight=False, soft_wrap=True)
            return
        give_order(folder, "kill" if now else "stop")
        how = "at once" if now else "when its running trials have saved"
        out.print(f"process {driver.pid} on {driver.host} ends {how}", highlight=False, soft_wrap=True)
        if order and order.again:
            out.print(f"continue with: {order.again}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
