from __future__ import annotations

import logging
from uuid import uuid4

import pytest

from dmray.coordination.sweep_lock import LockTiming, store_lock
from dmray.errors import StorageError
from dmray.storage import Store
from tests.coordination.heartbeats import heartbeat_of

FAST = LockTiming(heartbeat_s=0.05, stale_s=0.5, settle_s=0.01)
THEIRS = heartbeat_of("elsewhere").model_dump_json().encode()


def test_two_drivers_on_two_machines_cannot_hold_one_sweep(url: str) -> None:
    store, patient = Store(url), LockTiming(heartbeat_s=0.05, stale_s=600.0, settle_s=0.01)
    already = pytest.raises(StorageError, match="runs this sweep already")
    with store_lock(store, patient), already, store_lock(store, patient):
        pass
    with store_lock(store, patient):
        assert store.read(".driver.json")
    assert store.read(".driver.json") is None


def test_the_sweep_of_a_dead_driver_is_taken_over_with_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(url)
    store.write(".driver.json", THEIRS)
    with caplog.at_level(logging.WARNING), store_lock(store, FAST):
        assert store.read(".driver.json") != THEIRS
    assert "taking the sweep over" in caplog.text


@pytest.mark.parametrize("left_behind", [b"", THEIRS], ids=["nothing", "a heartbeat"])
def test_of_two_drivers_at_the_same_moment_the_last_writer_wins(
    left_behind: bytes,
) -> None:
    class Contested(Store):
        """Knows no conditional puts, and another driver always writes right after us."""

        def write(self, name: str, content: bytes) -> None:
            super().write(name, content)
            super().write(name, THEIRS.replace(b"theirs", b"others"))

        def create(self, name: str, content: bytes) -> bool:
            self.write(name, content)
            return True

    store = Contested(f"memory://{uuid4().hex[:8]}/runs")
    if left_behind:
        Store.write(store, ".driver.json", left_behind)
    with pytest.raises(StorageError, match="on elsewhere runs this sweep already"), store_lock(store, FAST):
        pass
