from __future__ import annotations

import threading

from dmray.periodic_thread import PeriodicThread


class Counting:
    def __init__(self) -> None:
        self.calls = 0
        self.third = threading.Event()

    def advance(self) -> bool:
        self.calls += 1
        if self.calls == 3:
            self.third.set()
        return True


def test_it_advances_until_it_is_stopped() -> None:
    mirror = Counting()
    with PeriodicThread(mirror, every_s=0.001):
        assert mirror.third.wait(timeout=5.0)
    after = mirror.calls
    assert not any(thread.name == "dmray-periodic" for thread in threading.enumerate())
    assert mirror.calls == after


def test_stopping_does_not_wait_for_the_interval() -> None:
    thread = PeriodicThread(Counting(), every_s=3600.0)
    thread.start()
    thread.stop()
    assert not any(each.name == "dmray-periodic" for each in threading.enumerate())
