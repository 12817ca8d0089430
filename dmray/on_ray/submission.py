"""A sweep as a Ray job: the sweep file is sent, the driver runs on the cluster."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from dmray.errors import ClusterError
from dmray.on_ray.cluster import SWEEP_KEY
from dmray.redaction import without_secrets

_ANSWER_TIMEOUT_S = 60.0
_NO_ANSWER = "Failed to connect"  # Ray's words
_NOT_YET = "No available agent to submit job"  # Ray's words, for a minute after its head has started
_NOT_YET_TIMEOUT_S, _NOT_YET_EVERY_S = 120.0, 2.0


@dataclass(frozen=True)
class Submission:
    """A job that is to run the sweep `name` from a file with that name and text, with `options` of dmray.sweep.

    `environment`: variables of the job. The driver reads the file when it starts and needs nothing of its folder later:
    Ray may remove it.
    """

    name: str
    file_name: str
    text: str
    options: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def entrypoint(self) -> str:
        """The command that the cluster runs, in a folder with the sweep file. It continues a sweep that was started."""
        fixed = ["python", "-m", "dmray.sweep", self.file_name, "--address", "auto", "--resume"]
        return shlex.join([*fixed, *self.options])


class JobClient:
    """The jobs of the cluster whose dashboard is at `address`. Each answer is waited for a minute at most.

    Raises:
        ClusterError: no Ray dashboard answers at the address, the token is missing or wrong, or the cluster runs
            another release of Ray. All methods raise it too, if Ray refuses a call.
    """

    def __init__(self, address: str) -> None:
        self.address = without_secrets(address)
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)  # it tells of each package that it uploads
        with self._explained():
            self._client: Any = _Client(address)
            theirs = str(self._client.ray_version())
        if _release(theirs) != _release(ray.__version__):
            raise ClusterError(
                f"{self.address}: the cluster runs Ray {theirs}, but this dmray needs Ray {ray.__version__} there: "
                "install the same dmray on all machines (ray up again, or new images)"
            )

    def submit(self, submission: Submission) -> str:
        """Start the job; its id is `dmray-<sweep>-<number>`.

        Raises:
            ClusterError: a job of this sweep runs already.
        """
        with self._explained():
            jobs = [job for job in self._client.list_jobs() if (job.metadata or {}).get(SWEEP_KEY) == submission.name]
            running = [job.submission_id for job in jobs if not job.status.is_terminal()]
            if running:
                raise ClusterError(
                    f"{self.address}: job {running[0]} runs sweep '{submission.name}' already; "
                    f"stop it first: dmray stop, or ray job stop --address {self.address} {running[0]}"
                )
            numbers = [int(last) for job in jobs if (last := job.submission_id.rpartition("-")[2]).isdecimal()]
            with tempfile.TemporaryDirectory(prefix="dmray-submit-") as folder:  # it is sent before the call returns
                (Path(folder) / submission.file_name).write_text(submission.text, encoding="utf-8")
                return self._submitted(
                    entrypoint=submission.entrypoint,
                    submission_id=f"dmray-{submission.name}-{max(numbers, default=0) + 1}",
                    runtime_env={"working_dir": folder, "env_vars": dict(submission.environment)},
                    metadata={SWEEP_KEY: submission.name},
                )

    def _submitted(self, **job: Any) -> str:
        """Submit it, for some time again while the cluster is still starting. Returns its id."""
        deadline = time.monotonic() + _NOT_YET_TIMEOUT_S
        while True:
            try:
                return str(self._client.submit_job(**job))
            except RuntimeError as problem:
                if _NOT_YET not in str(problem) or time.monotonic() > deadline:
                    raise
            time.sleep(_NOT_YET_EVERY_S)

    def follow(self, job_id: str, tell: Callable[[str], None]) -> bool:
        """Hand on what the job prints until it ends; whether it ended well.

        Raises:
            ClusterError: the connection was lost; the job goes on.
        """

        async def lines() -> None:
            async for text in self._client.tail_job_logs(job_id):
                tell(text)

        with self._explained(job_id):
            asyncio.run(lines())
            status = self._client.get_job_status(job_id)
        if not status.is_terminal():
            raise ClusterError(
                f"{self.address}: the connection ended, but job {job_id} goes on ({status}); read on with: "
                f"ray job logs --address {self.address} --follow {job_id}"
            )
        return str(status) == "SUCCEEDED"

    @contextmanager
    def _explained(self, job_id: str = "") -> Iterator[None]:
        try:
            yield
        except (AuthenticationError, OSError, RuntimeError, ValueError, aiohttp.ClientError) as problem:
            raise ClusterError(f"{self.address}: {explained(problem, job_id)}") from problem


class _Client(JobSubmissionClient):  # type: ignore[misc]
    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        """Ray's own, which would wait for an answer for ever."""
        return super()._do_request(method, endpoint, **{"timeout": _ANSWER_TIMEOUT_S, **options})

    def ray_version(self) -> str:
        return str(self._do_request("GET", "/api/version").json()["ray_version"])


def explained(problem: Exception, job_id: str = "") -> str:
    """What went wrong in a call to the dashboard, in one line with its cure. `job_id`: the job that was asked for."""
    text = str(problem)
    if isinstance(problem, AuthenticationError):
        if "Authentication failed" in text:
            return (
                "the cluster has another token than the one that was sent; take the one of its head into "
                "~/.ray/auth_token, RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH (docs/cluster.md)"
            )
        return (
            "the cluster asks for its token: export RAY_AUTH_MODE=token, with the token in ~/.ray/auth_token, or in "
            "RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH"
        )
    status = getattr(problem, "status", None) or next(iter(re.findall(r"status code (\d+)", text)), "")
    if str(status) == "404" and job_id:
        return f"there is no job {job_id} (the cluster was started anew?); submit the sweep again, it continues"
    if status and _NO_ANSWER not in text:
        reason = _one_line(text).removeprefix(f"Request failed with status code {status}: ")
        return f"the cluster refuses: {reason}; its logs (ray dashboard) say more"
    return f"no Ray dashboard: {_one_line(text) or type(problem).__name__}; keep `ray dashboard CLUSTER.yaml` open"


def _one_line(text: str) -> str:
    """The line that says what happened: of a traceback the last one, else the first."""
    lines = [line.strip().rstrip(".") for line in text.splitlines() if re.search(r"\w", line)]
    if not lines:
        return ""
    return lines[-1] if "Traceback" in text else lines[0]


def _release(version: str) -> list[str]:
    return version.split(".")[:2]
