"""`python -m dmray.pause SWEEP`: its running trials save and leave, its driver waits for `dmray.resume`."""

from __future__ import annotations

from dmray.cli.shared import SweepSource, SweepStorage, new_app, out, report_errors
from dmray.coordination.sweep_lock import describe_missing_driver
from dmray.errors import StorageError
from dmray.progress.sweep_handle import find_sweep

app = new_app()


@app.command()
def main(sweep: SweepSource, storage: SweepStorage = None) -> None:
    """Free the machines for a while; nothing is lost. Exit status 1 where no driver is at work."""
    with report_errors(), find_sweep(sweep, storage) as found:
        driver, order = found.driver_and_command()
        if driver is None or not driver.alive:
            raise StorageError(f"{found.where}: {describe_missing_driver(driver)}; nothing to pause")
        if order and order.kind in ("stop", "kill"):
            raise StorageError(f"{found.where}: it is being stopped (by {order.by})")
        if order is None or order.kind != "pause":
            found.send_command("pause")
        out.print("paused: running trials save and leave; go on with dmray resume", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
