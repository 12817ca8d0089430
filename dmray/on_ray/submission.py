"""A sweep as a Ray job: the sweep file is sent, the driver runs on the cluster."""

from __future__ import annotations

import asyncio
import logging
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from dmray.errors import ClusterError

_SWEEP_KEY = "dmray.sweep"  # in a job's metadata


@dataclass(frozen=True)
class Submission:
    """A job that is to run the sweep `name` from a file with that name and text, with `options` of dmray.sweep."""

    name: str
    file_name: str
    text: str
    options: Sequence[str]

    @property
    def entrypoint(self) -> str:
        """The command that the cluster runs, in a folder with the sweep file. It continues a sweep that was started."""
        fixed = ["python", "-m", "dmray.sweep", self.file_name, "--address", "auto", "--resume"]
        return shlex.join([*fixed, *self.options])


class JobClient:
    """The jobs of the cluster whose dashboard is at `address`.

    Raises:
        ClusterError: no Ray dashboard answers at the address, or the token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of each package that it uploads
        try:
            self._client: Any = JobSubmissionClient(address)
        except AuthenticationError as refused:
            raise ClusterError(
                f"{address}: the cluster asks for its token: export RAY_AUTH_MODE=token, with the token in "
                "~/.ray/auth_token, or in RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH"
            ) from refused
        except (OSError, RuntimeError, ValueError) as cause:
            first = str(cause).splitlines()[0]
            raise ClusterError(
                f"{address}: no Ray dashboard: {first}; keep `ray dashboard CLUSTER.yaml` open"
            ) from cause

    def submit(self, submission: Submission) -> str:
        """Start the job; its id is `dmray-<sweep>-<number>`.

        Raises:
            ClusterError: a job of this sweep runs already.
        """
        jobs = [job for job in self._client.list_jobs() if (job.metadata or {}).get(_SWEEP_KEY) == submission.name]
        running = [job.submission_id for job in jobs if not job.status.is_terminal()]
        if running:
            raise ClusterError(
                f"{self.address}: job {running[0]} runs sweep '{submission.name}' already; "
                f"stop it first: dmray stop, or ray job stop --address {self.address} {running[0]}"
            )
        with tempfile.TemporaryDirectory(prefix="dmray-submit-") as folder:  # it is uploaded before the call returns
            (Path(folder) / submission.file_name).write_text(submission.text, encoding="utf-8")
            job_id: str = self._client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=f"dmray-{submission.name}-{len(jobs) + 1}",
                runtime_env={"working_dir": folder},
                metadata={_SWEEP_KEY: submission.name},
            )
        return job_id

    def follow(self, job_id: str, tell: Callable[[str], None]) -> bool:
        """Hand on what the job prints until it ends; whether it ended well."""

        async def lines() -> None:
            async for text in self._client.tail_job_logs(job_id):
                tell(text)

        asyncio.run(lines())
        return str(self._client.get_job_status(job_id)) == "SUCCEEDED"
