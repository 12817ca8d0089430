"""`python -m dmray.pause SWEEP`: its running trials save and leave, its driver waits for `dmray.resume`."""

from __future__ import annotations

from dmray.cli.shared import SweepSource, SweepStorage, new_app, out, told
from dmray.coordination.sweep_lock import nobody
from dmray.errors import StorageError
from dmray.progress.sweep_handle import found_sweep

app = new_app()


@app.command()
def main(sweep: SweepSource, storage: SweepStorage = None) -> None:
    """Free the machines for a while; nothing is lost. Exit status 1 where no driver is at work."""
    with told(), found_sweep(sweep, storage) as found:
        driver, order = found.driver_and_order()
        if driver is None or not driver.alive:
            raise StorageError(f"{found.where}: {nobody(driver)}; nothing to pause")
        if order and order.kind in ("stop", "kill"):
            raise StorageError(f"{found.where}: it is being stopped (by {order.by})")
        if order is None or order.kind != "pause":
            found.give_order("pause")
        out.print("paused: running trials save and leave; go on with dmray resume", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
