"""Gives odd inputs to the edges and notes what is neither a value nor a clear error.

Each edge runs in a process of its own, made by fork, so that a crash, a hang or a bomb ends that process only; the next
process goes on with the next input. Input `n` of an edge depends only on the seed, the edge's name and `n`.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, NoReturn

from dmray.errors import DmrayError
from tests.fuzz.guard import Guard, limit_memory, open_files, peak_bytes

MEMORY_LIMIT_BYTES = 2**30
_ADDRESS_SPACE_BYTES = 3 * 2**30
_LONGEST_MESSAGE = 10_000
_MOST_NEW_FILES = 64
_MOST_TRIES = 100

Outcome = Literal["value", "error", "traceback", "hang", "crash", "memory", "outside", "leftover", "message"]
FAULTS: tuple[Outcome, ...] = ("traceback", "hang", "crash", "memory", "outside", "leftover", "message")


@dataclass(frozen=True)
class Edge:
    """A place where dmray reads what it did not write.

    `make` writes an odd input into the folder that it gets, or returns one; `templates` is what the edge's module
    prepared. `read` gives the input to dmray: it returns a value or raises one of `allowed`, and nothing else. An
    input of a `slow` edge takes so many times longer than that of others. `keeps_parts`: partial files may stay.
    """

    name: str
    make: Callable[[Random, Path, Any], Any]
    read: Callable[[Any], object]
    allowed: tuple[type[BaseException], ...] = (DmrayError,)
    slow: int = 1
    keeps_parts: bool = False


@dataclass(frozen=True)
class Finding:
    """An input that ended badly; `folder` has what was read."""

    edge: str
    number: int
    outcome: Outcome
    detail: str
    folder: Path


@dataclass
class Tally:
    """What became of the inputs of one edge."""

    edge: str
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def inputs(self) -> int:
        return self.outcomes.total()

    def as_dict(self) -> dict[str, Any]:
        findings = [{**asdict(finding), "folder": str(finding.folder)} for finding in self.findings]
        return {**vars(self), "inputs": self.inputs, "findings": findings}


@dataclass(frozen=True)
class Budget:
    """An edge gets `inputs` inputs, numbered from `first` on, or ends after `seconds`; one may take `timeout_s`."""

    first: int
    inputs: int
    seconds: float
    timeout_s: float = 30.0

    @property
    def end(self) -> int:
        return self.first + self.inputs


def fuzz(edge: Edge, templates: Any, scratch: Path, seed: int, budget: Budget) -> Tally:
    """Run one edge. `scratch` keeps the folders of inputs that ended badly, and nothing else."""
    tally = Tally(edge.name)
    deadline = time.monotonic() + budget.seconds
    following = budget.first
    while following < budget.end and time.monotonic() < deadline:
        for number, outcome, detail, peak in _batch(edge, templates, scratch, seed, following, budget, deadline):
            tally.outcomes[outcome] += 1
            tally.peak_bytes = max(tally.peak_bytes, peak)
            if outcome in FAULTS:
                tally.findings.append(Finding(edge.name, number, outcome, detail, _folder(scratch, edge, number)))
            following = number + 1
    return tally


def _folder(scratch: Path, edge: Edge, number: int) -> Path:
    return scratch / f"{edge.name}-{number}"


def _batch(
    edge: Edge, templates: Any, scratch: Path, seed: int, first: int, budget: Budget, deadline: float
) -> Iterator[tuple[int, Outcome, str, int]]:
    """Inputs from `first` on, until the budget is spent or the process of the edge has ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _serve(edge, templates, scratch, seed, range(first, budget.end), writer)
    os.close(writer)
    number, ended = first, False
    try:
        while number < budget.end and time.monotonic() < deadline:
            line = _line(reader, budget.timeout_s)
            if line is None:
                yield number, "hang", f"no answer within {budget.timeout_s:g} s", 0
                return
            if not line:
                ended = True
                status = os.waitpid(child, 0)[1]
                yield number, "crash", f"the process ended with {os.waitstatus_to_exitcode(status)}", 0
                return
            answer = json.loads(line)
            yield number, answer["outcome"], answer["detail"], answer["peak"]
            number += 1
            if answer["outcome"] in ("memory", "crash"):  # the process has ended, or should
                return
    finally:
        os.close(reader)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            _remove(_folder(scratch, edge, number))  # begun and not answered: the budget was spent


def _line(descriptor: int, timeout_s: float) -> bytes | None:
    """The next line; empty at the end, None if none comes in time. The child flushes whole lines."""
    parts, deadline = [], time.monotonic() + timeout_s
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        byte = os.read(descriptor, 1)
        if byte in (b"", b"\n"):
            return b"".join(parts) + byte
        parts.append(byte)


def _serve(edge: Edge, templates: Any, scratch: Path, seed: int, numbers: range, writer: int) -> NoReturn:
    """Answer one line an input; never returns."""
    try:
        logging.disable(logging.CRITICAL)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        scratch.mkdir(parents=True, exist_ok=True)
        os.chdir(scratch)
        guard = Guard([scratch, *(Path(os.environ[name]) for name in ("DMRAY_CACHE", "TMPDIR"))])
        limit_memory(_ADDRESS_SPACE_BYTES)
        files_before, base = None, peak_bytes()
        for number in numbers:
            folder = _folder(scratch, edge, number)
            outcome, detail = _one(edge, templates, folder, Random(f"{seed}-{edge.name}-{number}"), guard)
            peak = max(0, peak_bytes() - base)
            if outcome not in FAULTS and peak > MEMORY_LIMIT_BYTES:
                outcome, detail = "memory", f"{peak / 2**20:,.0f} MiB"
            now = open_files()
            files_before = now if files_before is None else files_before
            if outcome not in FAULTS and now > files_before + _MOST_NEW_FILES:
                outcome, detail = "leftover", f"{now - files_before} files stay open"
                files_before = now
            if outcome not in FAULTS:
                _remove(folder)
            answer = {"outcome": outcome, "detail": detail[-6000:], "peak": peak}
            os.write(writer, (json.dumps(answer) + "\n").encode())
    except BaseException:  # noqa: BLE001 - a fault of the harness or of `make`, which must be seen too
        answer = {"outcome": "crash", "detail": f"no input was made\n{traceback.format_exc()}"[-6000:], "peak": 0}
        os.write(writer, (json.dumps(answer) + "\n").encode())
    finally:
        os._exit(0)


def _one(edge: Edge, templates: Any, folder: Path, rng: Random, guard: Guard) -> tuple[Outcome, str]:
    _remove(folder)
    folder.mkdir(parents=True)
    given = _made(edge, rng, folder, templates)
    guard.found.clear()
    outcome, detail = _outcome(edge, given)
    if outcome in FAULTS:
        return outcome, f"{_short(given)}\n{detail}"
    if guard.found:
        return "outside", f"{_short(given)}\n{guard.found[:5]}"
    if not edge.keeps_parts and (parts := [path.name for path in folder.rglob("*.part")]):
        return "leftover", f"{_short(given)}\n{parts}"
    return outcome, detail


def _short(given: object) -> str:
    return repr(given)[:500]


def _made(edge: Edge, rng: Random, folder: Path, templates: Any) -> object:
    """An input; a library that refuses to write one (h5py, yaml), or has no memory for it, gets the next."""
    for _ in range(_MOST_TRIES):
        try:
            return edge.make(rng, folder, templates)
        except (ValueError, TypeError, OSError, RuntimeError, KeyError, MemoryError, AttributeError):
            _remove(folder)
            folder.mkdir()
    raise AssertionError(f"edge {edge.name} makes no input")


def _outcome(edge: Edge, given: object) -> tuple[Outcome, str]:
    try:
        edge.read(given)
    except MemoryError:
        return "memory", traceback.format_exc()
    except edge.allowed as error:
        fault = "" if isinstance(error, SystemExit) else message_fault(str(error))
        return ("message", f"{fault}: {error!r}") if fault else ("error", "")
    except BaseException:  # noqa: BLE001 - what is sought
        return "traceback", traceback.format_exc()
    return "value", ""


def message_fault(message: str) -> str:
    """What is wrong with an error message; empty if nothing is."""
    if not message.strip():
        return "an empty message"
    if len(message) > _LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters"
    if any(ord(letter) < 32 and letter != "\n" for letter in message):
        return "control characters in a message"
    if "Traceback (most recent" in message:
        return "a traceback in a message"
    return ""


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
