"""`python -m dmray.resume SWEEP`: a paused sweep goes on; for one without a driver, the command that continues it."""

from __future__ import annotations

from dmray.cli.shared import SweepSource, SweepStorage, new_app, out, report_errors
from dmray.coordination.sweep_lock import describe_missing_driver
from dmray.errors import StorageError
from dmray.progress.sweep_handle import find_sweep

app = new_app()


@app.command()
def main(sweep: SweepSource, storage: SweepStorage = None) -> None:
    """Let a paused sweep go on. Exit status 1 where no driver waits for that."""
    with report_errors(), find_sweep(sweep, storage) as found:
        driver, order = found.driver_and_command()
        again = f"continue with:\n  {(order and order.again) or 'python -m dmray.sweep FILE --resume'}"
        if driver is None or not driver.alive:
            raise StorageError(f"{found.where}: {describe_missing_driver(driver)}; {again}")
        if order and order.kind in ("stop", "kill"):
            raise StorageError(f"{found.where}: it is being stopped (by {order.by}); once it has ended, {again}")
        if order and order.kind == "pause":
            found.send_command("run")
            out.print("it goes on", highlight=False)
        else:
            out.print("it is not paused", highlight=False)


if __name__ == "__main__":
    app()
