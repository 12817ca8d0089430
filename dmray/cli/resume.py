"""`python -m dmray.resume SWEEP`: a paused sweep goes on; for one without a driver, the command that continues it."""

from __future__ import annotations

from dmray.cli.shared import SweepSource, SweepStorage, new_app, out, told
from dmray.coordination.sweep_lock import nobody
from dmray.errors import StorageError
from dmray.progress.sweep_handle import found_sweep

app = new_app()


@app.command()
def main(sweep: SweepSource, storage: SweepStorage = None) -> None:
    """Let a paused sweep go on. Exit status 1 where no driver waits for that."""
    with told(), found_sweep(sweep, storage) as found:
        driver, order = found.driver_and_order()
        again = f"continue with:\n  {(order and order.again) or 'python -m dmray.sweep FILE --resume'}"
        if driver is None or not driver.alive:
            raise StorageError(f"{found.where}: {nobody(driver)}; {again}")
        if order and order.kind in ("stop", "kill"):
            raise StorageError(f"{found.where}: it is being stopped (by {order.by}); once it has ended, {again}")
        if order and order.kind == "pause":
            found.give_order("run")
            out.print("it goes on", highlight=False)
        else:
            out.print("it is not paused", highlight=False)


if __name__ == "__main__":
    app()
