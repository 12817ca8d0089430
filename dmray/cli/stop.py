"""`python -m dmray.stop SWEEP`: its running trials save and leave, its driver ends."""

from __future__ import annotations

from typing import Annotated

import typer

from dmray.cli.shared import SweepSource, SweepStorage, new_app, out, report_errors
from dmray.progress.sweep_handle import find_sweep

app = new_app()


@app.command()
def main(
    sweep: SweepSource,
    now: Annotated[bool, typer.Option("--now", help="As Ctrl-C: at once, from the last checkpoints on.")] = False,
    storage: SweepStorage = None,
) -> None:
    """Stop a sweep from another shell; nothing is lost. Exit status 0 also where no driver is at work."""
    with report_errors(), find_sweep(sweep, storage) as found:
        driver, order = found.driver_and_command()
        if driver is None:
            out.print(f"{found.where}: no driver is at work, nothing to stop", highlight=False, soft_wrap=True)
            return
        found.send_command("kill" if now else "stop")  # to one that seems dead too: clocks may differ
        how = "at once" if now else "when its running trials have saved"
        ends = f"ends {how}" if driver.alive else f"seems dead; should it live, it ends {how}"
        out.print(f"{driver}: {ends}", highlight=False, soft_wrap=True)
        if order and order.again:
            out.print(f"continue with: {order.again}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
