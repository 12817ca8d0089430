"""What a driver or a worker does while there are no steps to count: `.phase.json`, a small file that it rewrites.

Starting Ray, recording a data set or compiling can take minutes. The file says which of these goes on, and since when.
It is for people: nothing is decided by it, a file that cannot be written is left out, and one that cannot be read
counts as none. A killed process leaves its last file; the number of the command (`dmray.coordination.commands`) under
which it was written tells that from the phase of a process that runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from dmray.errors import StorageError
from dmray.escaping import one_line
from dmray.files import replace_unflushed
from dmray.frozen import Spec
from dmray.records.disk import read_file
from dmray.records.records import TimeS

_MOST_BYTES, _LONGEST_DETAIL = 4096, 300
_WORTH_SAYING_S = 1.0  # how long a phase took is said from here on
_NEVER_SAID = frozenset({"starting_trials", "training", "evaluating", "waiting_for_evaluations"})  # records tell them

PhaseName = Literal[
    "checking",
    "connecting_trackers",
    "starting_ray",
    "starting_actors",
    "starting_trials",
    "ending_ray",
    "writing_report",
    "ending_trackers",
    "starting_worker",
    "fetching_trial",
    "opening_data",
    "recording_data",
    "fetching_data",
    "building",
    "compiling",
    "capturing",
    "training",
    "evaluating",
    "waiting_for_evaluations",
]
PHASES: Mapping[PhaseName, str] = {
    "checking": "checking data sets and simulators",
    "connecting_trackers": "connecting to trackers",
    "starting_ray": "starting Ray",
    "starting_actors": "starting the evaluation actors",
    "starting_trials": "starting the first trials",
    "ending_ray": "ending Ray",
    "writing_report": "writing the report",
    "ending_trackers": "copying the last records to trackers",
    "starting_worker": "starting its worker",
    "fetching_trial": "fetching its files from the object store",
    "opening_data": "opening the data set",
    "recording_data": "recording the data set",
    "fetching_data": "downloading the data set",
    "building": "building the networks",
    "compiling": "compiling the training step",
    "capturing": "capturing the training step as a CUDA graph",
    "training": "training",
    "evaluating": "evaluating",
    "waiting_for_evaluations": "waiting for evaluations",
}


class Phase(Spec):
    """The content of `.phase.json`. `time_s`: when the phase began. `command`: the number of the command that held."""

    name: PhaseName
    detail: Annotated[str, Field(max_length=_LONGEST_DETAIL)] = ""
    time_s: TimeS
    command: Annotated[int, Field(ge=0, lt=2**63)]

    @property
    def words(self) -> str:
        """For people, in one line."""
        return PHASES[self.name] + (f" ({one_line(self.detail)})" if self.detail else "")

    def elapsed_s(self, now_s: float) -> float:
        """Seconds since it began, by the reader's clock."""
        return max(0.0, now_s - self.time_s)


def read_phase(path: Path, command: int | None = None) -> Phase | None:
    """The phase in a file; with `command`, only if it was written under the command of that number. Else None."""
    try:
        phase = Phase.model_validate_json(read_file(path, _MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError, StorageError, ValidationError):
        return None
    return phase if command in (None, phase.command) else None


class PhaseWriter:
    """Writes the phases of one process, and says each with `say`: when it begins, and how long it took.

    What is repeated during training is not said, and an end only after a second or more.
    """

    def __init__(self, path: Path, command: int, say: Callable[[str], object]) -> None:
        self._path, self._command, self._say = path, command, say
        self._phase: Phase | None = None
        self._began_s = 0.0

    def enter(self, name: PhaseName, detail: str = "", *, if_slow: bool = False) -> None:
        """The process does this from now on. `if_slow`: it is said only if it takes long."""
        if self._phase is not None and (self._phase.name, self._phase.detail) == (name, detail):
            return
        self._say_end()
        self._phase = Phase(name=name, detail=detail[:_LONGEST_DETAIL], time_s=time.time(), command=self._command)
        self._began_s = time.monotonic()
        with contextlib.suppress(OSError):
            replace_unflushed(self._path, self._phase.model_dump_json().encode())
        if name not in _NEVER_SAID and not if_slow:
            self._say(self._phase.words)

    @contextlib.contextmanager
    def within(self, name: PhaseName, detail: str = "") -> Iterator[None]:
        """The process does this while the block runs."""
        self.enter(name, detail)
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """The phase is over, and none follows at once: the file is removed."""
        self._say_end()
        self._phase = None
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _say_end(self) -> None:
        took_s = time.monotonic() - self._began_s
        if self._phase is not None and self._phase.name not in _NEVER_SAID and took_s >= _WORTH_SAYING_S:
            self._say(f"{self._phase.words}: took {took_s:z.1f} s")
