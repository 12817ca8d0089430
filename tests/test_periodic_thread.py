from __future__ import annotations

import threading

import pytest

from dmray.periodic_thread import PeriodicThread
from tests.waiting import wait_until


class Counting:
    def __init__(self) -> None:
        self.calls = 0
        self.third = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 3:
            self.third.set()


def test_it_calls_until_it_is_stopped() -> None:
    counting = Counting()
    with PeriodicThread(counting, every_s=0.001):
        assert counting.third.wait(timeout=5.0)
    after = counting.calls
    assert not any(thread.name == "dmray-periodic" for thread in threading.enumerate())
    assert counting.calls == after


def test_stopping_does_not_wait_for_the_interval() -> None:
    thread = PeriodicThread(Counting(), every_s=3600.0)
    thread.start()
    thread.stop()
    assert not any(each.name == "dmray-periodic" for each in threading.enumerate())


def test_stopping_waits_for_a_call_that_hangs_no_longer_than_it_is_told() -> None:
    hangs, ends = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        ends.wait(60.0)

    thread = PeriodicThread(hang, every_s=0.001, name="dmray-hanging")
    thread.start()
    assert hangs.wait(timeout=5.0)
    thread.stop(timeout_s=0.01)
    assert any(each.name == "dmray-hanging" for each in threading.enumerate())
    ends.set()
    thread.stop()


def test_a_call_that_raises_is_logged_once_and_the_calls_go_on(caplog: pytest.LogCaptureFixture) -> None:
    problems = [OSError("away"), OSError("away"), KeyError("a bug"), None, OSError("away")]
    left = iter(problems)
    ended = threading.Event()

    def fail() -> None:
        problem = next(left, "end")
        if isinstance(problem, Exception):
            raise problem
        if problem == "end":
            ended.set()

    with PeriodicThread(fail, every_s=0.001, name="dmray-failing"):
        wait_until(ended.is_set, timeout_s=20.0)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["away", "'a bug'", "away"]
    assert "dmray-failing: a call failed; it is repeated every 0.001 s" in caplog.text
