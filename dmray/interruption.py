"""How a sweep is ended from outside: by a signal to its process, or by another thread.

The first SIGINT (Ctrl-C), SIGTERM (Slurm, Kubernetes, docker stop) or SIGHUP (a closed terminal) tells the running
trials to save a checkpoint and exit; the sweep ends when they have. If no trial runs, or they need longer than
`SAVE_S`, or a second signal comes, the sweep is interrupted where it is, as by a KeyboardInterrupt. If that does not
end it within `END_S` of the signal, or if another one comes, a process that is there only for the sweep ends with its
child processes at once. So a signal always ends the sweep, within the 30 s after which Slurm and Kubernetes kill.

Signal handlers exist only in the main thread. In other threads only `interrupt` ends the sweep.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVE_S = 18.0
END_S = 27.0
_END_AFTER_CTRL_C_S = 90.0  # nobody kills the process soon after Ctrl-C, and the person can press it again
_SAME_SIGNAL_S = 1.0  # `timeout` and closing terminals send a signal twice, to the process and to its group
_RELEASE_S = 1.0
_log = logging.getLogger(__name__)
_active: dict[int, Interruption] = {}  # by the thread of the sweep


class SweepInterrupted(KeyboardInterrupt):
    """The sweep was interrupted; `signum` is the signal that ended it."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)
        self.signum = signal.Signals(signum)

    @property
    def exit_status(self) -> int:
        """What a shell shows for a process that the signal ended: 129, 130 or 143."""
        return 128 + self.signum


class Interruption:
    """Ends the sweep of the thread that made it; see the module. Use it through `interruptible`."""

    def __init__(self, last_words: str | None, save_s: float = SAVE_S, end_s: float = END_S) -> None:
        """`last_words` are printed if the process has to end at once. None: the process is the caller's and goes on."""
        self._last_words, self._save_s, self._end_s = last_words, save_s, end_s
        self._owns_process = last_words is not None
        self._owner = threading.get_ident()
        self._signum: signal.Signals | None = None
        self._received_at = 0.0
        self._save: Callable[[], object] | None = None
        self._raised = self._over = False
        self._releases: list[Callable[[], object]] = []
        self._lock = threading.Lock()  # of `_over`: nothing is raised in the thread after the block
        self._events: SimpleQueue[str] = SimpleQueue()  # its `put` may be called in a signal handler
        self._handlers: dict[signal.Signals, Any] = {}
        self._watcher = threading.Thread(target=self._watch, name="dmray-interruption", daemon=True)

    @contextlib.contextmanager
    def saving(self, save: Callable[[], object]) -> Iterator[None]:
        """While the block runs, the first signal calls `save` in a thread, which must make the block end.

        Raises:
            SweepInterrupted: at the end of the block, if a signal came.
        """
        self._raise_if_signalled()
        self._save = save
        try:
            yield
        finally:
            self._save = None
        self._raise_if_signalled()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While the block runs, a signal interrupts it: there is no trial yet that could save."""
        self._raise_if_signalled()
        save, self._save = self._save, None
        try:
            yield
        finally:
            self._save = save
        self._raise_if_signalled()  # what was raised may have been lost in a callback

    @contextlib.contextmanager
    def releasing(self, release: Callable[[], object]) -> Iterator[None]:
        """If the process has to end at once while the block runs, call `release` first, for a second at most."""
        self._releases.append(release)
        try:
            yield
        finally:
            self._releases.remove(release)

    def interrupt(self) -> None:
        """Raise SweepInterrupted in the sweep's thread as soon as it runs Python code again. From any thread."""
        with self._lock:
            if self._over or self._raised:
                return
            self._save = None
            if self._handlers.get(signal.SIGINT) is not None:
                self._received_at = float("-inf")
                self._signum = self._signum or signal.SIGINT
                signal.pthread_kill(self._owner, signal.SIGINT)
            elif self._owner == threading.main_thread().ident:
                signal.pthread_kill(self._owner, signal.SIGINT)  # to the caller's own handler
            else:
                self._raised = True
                self._events.put("interrupted")
                _raise_in(self._owner, SweepInterrupted)

    def start(self) -> None:
        """Install the handlers, if this is the main thread. A handler of the caller, or an ignored signal, stays."""
        if self._owner == threading.main_thread().ident:
            for signum in SIGNALS:
                before = signal.getsignal(signum)
                if _replaceable(before):
                    self._handlers[signum] = before
                    signal.signal(signum, self._handle)
        self._watcher.start()

    def stop(self) -> None:
        """Put the caller's handlers back."""
        with self._lock:
            self._over = True
            if self._raised:
                _raise_in(self._owner, None)  # has no effect if it was raised already
        self._events.put("over")
        for signum, before in self._handlers.items():
            signal.signal(signum, signal.SIG_DFL if before is None else before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        repeated = now - self._received_at < _SAME_SIGNAL_S
        self._received_at = now
        if repeated:
            return
        if self._signum is None:
            self._signum = signal.Signals(signum)
            if self._save:
                self._events.put("save")
                return
        if self._raised and self._owns_process:
            self._events.put("give up")
            return
        self._raised = True
        self._events.put("interrupted")
        raise SweepInterrupted(self._signum)

    def _raise_if_signalled(self) -> None:
        if self._signum is not None:
            self._raised = True
            self._events.put("interrupted")
            raise SweepInterrupted(self._signum)

    def _watch(self) -> None:
        event: str | None = self._events.get()
        begun = time.monotonic()
        if event == "save":
            assert self._signum is not None
            _log.warning(
                "%s: running trials save a checkpoint and exit, within %g s; the same again ends at once",
                *(self._signum.name, self._save_s),
            )
            event = None
            try:
                if self._save is not None:
                    self._save()
                event = self._next_event(self._save_s)
            except Exception as problem:  # noqa: BLE001 - whatever it is, the sweep must end
                _log.warning("the trials cannot be told to save: %s", problem)
            if event is None:
                self.interrupt()
        deadline = begun + (self._end_s if self._signum in (signal.SIGTERM, signal.SIGHUP) else _END_AFTER_CTRL_C_S)
        while event not in ("over", "give up", None) or (event is None and time.monotonic() < deadline):
            event = self._next_event(deadline - time.monotonic())
        if event != "over" and self._owns_process:
            self._give_up()

    def _next_event(self, timeout_s: float) -> str | None:
        """The next event; None if there is none within `timeout_s`."""
        with contextlib.suppress(Empty):
            return self._events.get(timeout=max(timeout_s, 0.0))
        return None

    def _give_up(self) -> None:
        """End the process and what it started. The system releases its file locks."""
        try:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{self._last_words}\n")
                sys.stderr.flush()
            _kill_children()
            for release in reversed(self._releases):
                thread = threading.Thread(target=release, daemon=True)
                thread.start()
                thread.join(_RELEASE_S)
        finally:
            os._exit(128 + (self._signum or signal.SIGINT))


def _kill_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


@contextlib.contextmanager
def interruptible(last_words: str | None = None) -> Iterator[Interruption]:
    """Let signals end the block, which runs a sweep. Inside another such block of the thread, that one is yielded.

    `last_words`: see `Interruption`.
    """
    thread = threading.get_ident()
    if (outer := _active.get(thread)) is not None:
        yield outer
        return
    made = _active[thread] = Interruption(last_words)
    made.start()
    try:
        yield made
    finally:
        made.stop()
        del _active[thread]


def interrupt_thread(thread: int) -> None:
    """Interrupt the sweep that runs in `thread`, in the middle of what it does. From any thread."""
    if (sweep := _active.get(thread)) is not None:
        sweep.interrupt()
    elif thread == threading.main_thread().ident:
        signal.pthread_kill(thread, signal.SIGINT)
    else:
        _raise_in(thread, SweepInterrupted)


@contextlib.contextmanager
def interrupted_at_once() -> Iterator[None]:
    """While the block runs, a signal interrupts the sweep of this thread without waiting for trials to save."""
    sweep = _active.get(threading.get_ident())
    with sweep.at_once() if sweep is not None else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def released_if_ended(release: Callable[[], object]) -> Iterator[None]:
    """If a signal ends the process at once while the block runs, `release` is called before."""
    sweep = _active.get(threading.get_ident())
    with sweep.releasing(release) if sweep is not None else contextlib.nullcontext():
        yield


def _replaceable(handler: Any) -> bool:
    """Whether a signal's handler is nobody's: the default, or one that Ray left behind."""
    default = handler in (signal.SIG_DFL, signal.default_int_handler, None)
    return default or str(getattr(handler, "__module__", "")).partition(".")[0] == "ray"


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))
