"""Signals, and threads that interrupt, at every moment of a sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmray import interruption
from dmray.coordination.commands import read_command, send_command
from dmray.driver import session
from dmray.interruption import SweepInterrupted, interrupt_thread, interruptible
from dmray.planning.plan import Plan
from dmray.records import SweepFolder
from tests.sweeps import tiny_plan
from tests.waiting import wait_until

DEADLINE_S = 60.0


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@contextmanager
def ends() -> Iterator[list[SweepInterrupted]]:
    """The block ends by an interrupt, which is in the list afterwards."""
    found: list[SweepInterrupted] = []
    try:
        yield found
    except SweepInterrupted as ended:
        found.append(ended)
    assert found, "the block was not interrupted"


def wait_for_ever() -> None:
    wait_until(lambda: False, timeout_s=DEADLINE_S)


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_a_signal_lets_the_trials_save_and_then_ends_the_sweep_with_its_own_status(signum: int, status: int) -> None:
    before, told = signal.getsignal(signum), threading.Event()
    with ends() as ended, interruptible() as sweep, sweep.saving(told.set):
        send(signum)
        assert told.wait(DEADLINE_S)
    assert ended[0].exit_status == status
    assert signal.getsignal(signum) is before


def test_outside_of_training_a_signal_interrupts_at_once() -> None:
    with ends(), interruptible() as sweep:
        with sweep.saving(lambda: None):
            pass
        send(signal.SIGTERM)
        wait_for_ever()
    with (
        ends(),
        interruptible() as sweep,
        sweep.saving(lambda: pytest.fail("no trial runs")),
        interruption.interrupted_at_once(),
    ):
        send(signal.SIGTERM)
        wait_for_ever()


def test_a_second_signal_interrupts_and_one_sent_twice_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    saving = threading.Event()
    with ends(), interruptible() as sweep, sweep.saving(saving.set):
        send(signal.SIGHUP)
        send(signal.SIGHUP)  # to the process, and to its group
        assert saving.wait(DEADLINE_S)
        monkeypatch.setattr(interruption, "_SAME_SIGNAL_S", 0.0)
        send(signal.SIGINT)
        wait_for_ever()


def test_trials_that_do_not_save_in_time_are_interrupted() -> None:
    sweep = interruption.Interruption(None, save_s=0.05)
    sweep.start()
    try:
        with ends(), sweep.saving(lambda: None):
            send(signal.SIGTERM)
            wait_for_ever()
    finally:
        sweep.stop()


def test_a_stop_command_that_cannot_be_written_interrupts() -> None:
    def fail() -> None:
        raise OSError("no space left")

    with ends(), interruptible() as sweep, sweep.saving(fail):
        send(signal.SIGTERM)
        wait_for_ever()


def test_handlers_of_the_caller_and_ignored_signals_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible():
            send(signal.SIGTERM)
            send(signal.SIGHUP)
            wait_until(lambda: seen)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hangup)


ENDLESS = """
import os, signal, sys, time
from dmray.interruption import interruptible
child = os.fork()
if child == 0:
    time.sleep(600)
with interruptible("last words") as sweep, sweep.releasing(lambda: print("released", flush=True)):
    try:
        print(child, flush=True)
        time.sleep(600)
    finally:
        print("unwinding", flush=True)
        time.sleep(600)
"""


def test_the_third_word_ends_the_process_and_its_children_when_nothing_else_does() -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        child = int(running.stdout.readline())
        running.send_signal(signal.SIGTERM)
        assert running.stdout.readline() == "unwinding\n"
        time.sleep(interruption._SAME_SIGNAL_S + 0.1)
        running.send_signal(signal.SIGTERM)
        out, errors = running.communicate(timeout=DEADLINE_S)
    finally:
        running.kill()
    assert (running.returncode, errors, out) == (143, "last words\n", "released\n")
    with pytest.raises(ProcessLookupError):
        wait_until(lambda: os.kill(child, 0))  # type: ignore[func-returns-value]


class Waiting:
    """A runner without trials that runs until it is interrupted, or until it reads `end`."""

    def __init__(self, end: Callable[[SweepFolder], bool]) -> None:
        self.started, self._end = threading.Event(), end

    def run(self, plan: Plan, todo: object, folder: SweepFolder, refresh: object) -> list[object]:
        self.started.set()
        wait_until(lambda: self._end(folder), DEADLINE_S)
        return []


def run(plan: Plan, folder: SweepFolder, runner: Waiting) -> None:
    session.run_sweep(plan, folder, runner, lambda at: Path(), resume=True)  # type: ignore[arg-type]


def test_a_signal_is_a_stop_command_for_the_trials_and_skips_the_report(tmp_path: Path) -> None:
    planned, folder = tiny_plan(tmp_path), SweepFolder(tmp_path, "tiny")
    runner = Waiting(lambda at: (found := read_command(at)) is not None and found.kind == "stop")
    sender = threading.Thread(target=lambda: (runner.started.wait(DEADLINE_S), send(signal.SIGTERM)))
    sender.start()
    with pytest.raises(SweepInterrupted):
        session.run_sweep(planned, folder, runner, lambda at: pytest.fail("a report"), resume=True)  # type: ignore[arg-type]
    sender.join()
    assert not (folder.path / ".driver.json").exists()


def test_a_kill_ends_a_sweep_in_another_thread_and_not_the_main_thread(tmp_path: Path) -> None:
    planned, folder, errors = tiny_plan(tmp_path), SweepFolder(tmp_path, "tiny"), []
    runner = Waiting(lambda at: False)

    def drive() -> None:
        try:
            run(planned, folder, runner)
        except SweepInterrupted as ended:
            errors.append(ended)

    thread = threading.Thread(target=drive)
    thread.start()
    assert runner.started.wait(DEADLINE_S)
    send_command(folder, "kill")
    thread.join(DEADLINE_S)
    assert len(errors) == 1


def test_nothing_is_raised_in_a_thread_after_its_sweep() -> None:
    with interruptible() as sweep:
        thread = threading.get_ident()
    sweep.interrupt()
    assert thread not in interruption._active
    done = threading.Event()

    def drive() -> None:
        with interruptible() as inner, ends():
            interrupt_thread(threading.get_ident())
            wait_for_ever()
        inner.interrupt()
        done.set()

    worker = threading.Thread(target=drive)
    worker.start()
    worker.join(DEADLINE_S)
    assert done.is_set()
