"""Stand-ins for Slurm's commands: a job's script really runs, on this machine.

`srun` starts a command once for each node, `scontrol` notes that the job is to be requeued, and `Job` does what sbatch
and the controller do: it reads the script's options, starts a copy of it elsewhere with Slurm's environment, sends the
signal of the time limit, and starts a requeued job again.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.conftest import REPOSITORY

SCRIPT = REPOSITORY / "cluster/slurm.sbatch"
DEADLINE_S = 600.0
# Of sbatch's manual page; those with a value end in "=".
_SBATCH_OPTIONS = """
    account= array= chdir= constraint= cpus-per-task= error= exclusive gpus-per-node= gres= job-name= mem= nodes=
    no-kill ntasks-per-node= open-mode= output= partition= qos= requeue signal= time=
    """
_COMMANDS = {
    "srun": """#!/bin/bash
echo "srun $*" >> "$STAND_IN_LOG"
while [[ $1 == --* ]]; do
  [[ $1 != --nodes=* ]] || nodes=${1#--nodes=}
  shift
done
for ((node = 0; node < nodes; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
trap 'kill "${tasks[@]}" 2> /dev/null' TERM
wait
wait
""",
    "scontrol": """#!/bin/bash
echo "scontrol $*" >> "$STAND_IN_LOG"
exit "${SCONTROL_STATUS:-0}"
""",
    "apptainer": """#!/bin/bash
echo "apptainer $*" >> "$STAND_IN_LOG"
[[ $1 == exec ]] || exit 9
shift
while [[ $1 == --* ]]; do [[ $1 != --bind ]] || shift; shift; done
[[ $1 == *.sif ]] || exit 9
shift
exec "$@"
""",
}


def script_with(**values: str) -> str:
    """The text of the script with these values at its top, as a user fills them in; each is text of bash."""
    text = SCRIPT.read_text()
    for name, value in values.items():
        given = rf"(?ms)^{name}=(\(\s*#.*?^\)|[^\n]*?(?=\s+#))"
        text, found = re.subn(given, f"{name}={value}".replace("\\", r"\\"), text, count=1)
        assert found == 1, f"the script has no value {name}"
    return text


def options_of(text: str) -> dict[str, str]:
    """The script's #SBATCH options, read until the first command as sbatch does."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, equals, value = word.removeprefix("--").partition("=")
            assert f"{name}{equals}" in _SBATCH_OPTIONS.split(), f"sbatch has no option {word}"
            found[name] = value
    return found


@dataclass
class Job:
    """A job with the script `text`; `commands`: further stand-ins by name, as text of bash."""

    folder: Path
    text: str
    job_id: int = 4711
    nodes: int = 1
    array: tuple[int, int] | None = None  # this task, of how many
    commands: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    restarts: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options = options_of(self.text)
        for name, content in (_COMMANDS | self.commands).items():
            path = self.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def start(self) -> None:
        """Start the job's script, from a copy in another folder."""
        spool = self.folder / "slurm_script"
        spool.write_text(self.text)
        slurm = {
            "SLURM_JOB_ID": str(self.job_id),
            "SLURM_JOB_NUM_NODES": str(self.nodes),
            "SLURM_CPUS_PER_TASK": self.options["cpus-per-task"],
            "SLURM_TMPDIR": str(self.folder / "node"),
        }
        if self.restarts:
            slurm["SLURM_RESTART_COUNT"] = str(self.restarts)
        if self.array is not None:
            task, count = self.array
            slurm |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count)}
            slurm |= {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": str(count)}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))}
        with (self.folder / "job.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", str(spool)],
                cwd=REPOSITORY,
                env={
                    **inherited,
                    "PATH": path,
                    "STAND_IN_LOG": str(self.folder / "calls"),
                    **slurm,
                    **self.environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reach_time_limit(self) -> None:
        """Send the signal that the script has asked for, to the script alone."""
        name = re.fullmatch(r"B:(\w+)@\d+", self.options["signal"])
        assert name is not None
        self.process.send_signal(signal.Signals[f"SIG{name[1]}"])

    def end(self) -> int:
        """Wait for the script; its exit status."""
        return self.process.wait(DEADLINE_S)

    @property
    def calls(self) -> list[str]:
        """What the stand-ins were called with."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def log(self) -> str:
        return (self.folder / "job.log").read_text()

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()
