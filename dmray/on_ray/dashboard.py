"""The dashboard of a Ray that was started for a sweep: it is started again when it ended.

Nobody looks at it, but Ray Train asks it which trials have died. Without it, their CPUs and GPUs are never freed, and
the next trial waits for them for ever. Ray itself leaves it dead.
"""

from __future__ import annotations

import logging
import subprocess
import time
from typing import Any

import psutil
from ray._private.ray_constants import PROCESS_TYPE_DASHBOARD
from ray._private.utils import set_kill_on_parent_death_linux

_NOT_AGAIN_FOR_S = 30.0
_log = logging.getLogger(__name__)


class Dashboard:
    """The dashboard of `node`, Ray's object for what this process has started. Ray ends it with the node."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._not_before = 0.0
        self._remember_command()

    def _remember_command(self) -> None:
        process = psutil.Process(self._info.process.pid)
        self._command, self._environment = process.cmdline(), process.environ()

    @classmethod
    def of(cls, node: Any) -> Dashboard | None:
        """None if `node` has no dashboard, or if it ended already."""
        try:
            return cls(node) if PROCESS_TYPE_DASHBOARD in node.all_processes else None
        except psutil.Error:
            return None

    @property
    def _info(self) -> Any:
        [info] = self._node.all_processes[PROCESS_TYPE_DASHBOARD]
        return info

    def keep(self) -> None:
        """Start it again if it ended, but not again and again."""
        if self._info.process.poll() is None:
            if not self._command:  # for a moment after its start a process has none
                self._remember_command()
            return
        if not self._command or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + _NOT_AGAIN_FOR_S
        _log.warning("Ray's dashboard (process %d) ended; it is started again", self._info.process.pid)
        again = subprocess.Popen(  # noqa: S603 - the command is Ray's own
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=set_kill_on_parent_death_linux if self._node.kernel_fate_share else None,
        )
        self._node.all_processes[PROCESS_TYPE_DASHBOARD] = [self._info._replace(process=again)]
