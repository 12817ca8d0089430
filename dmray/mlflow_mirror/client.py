"""MLflow's client with a deadline for each call and one kind of error.

A server can accept a request and never answer, send a byte every ten seconds, or answer with a login page. MLflow's own
timeout is the time between two bytes, and what it raises for a page that is not JSON depends on the page. So each call
runs in a thread of its own: the caller waits for it until its deadline and then leaves it behind.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from dmray.redaction import without_secrets

_ENVIRONMENT = {  # the mirror tries again by itself, and a hanging server must not hold up the end of a sweep
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else two lines for every run that ends
    "GIT_PYTHON_REFRESH": "quiet",
}
_CALL_S, _UPLOAD_S = 60.0, 600.0
_UPLOADS = frozenset({"log_artifact", "log_artifacts", "log_text", "log_model_artifacts", "download_artifacts"})
_MOST_LEFT_BEHIND = 4
_LONGEST_MESSAGE = 500
TIME_IS_OVER = "the time that the end of a sweep gives MLflow is over"


class StoreError(Exception):
    """A call failed. `refused`: the server answered and does not want this; else it may work later."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


def set_environment() -> None:
    """MLflow's settings for this process, where the user has set none. Before the first import of mlflow."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Deadlines:
    """Runs calls, each in a thread, and waits for each until its deadline at most."""

    def __init__(self, call_s: float | None = None) -> None:
        """`call_s`: the deadline of a call. None: a minute, or what the user's settings for MLflow's requests need."""
        self._call_s = _default_call_s() if call_s is None else call_s
        self._upload_s = max(_UPLOAD_S, self._call_s) if call_s is None else call_s
        self._give_up_at = float("inf")
        self._left_behind: list[threading.Thread] = []

    def give_up_after(self, seconds: float) -> None:
        """Calls that are not done in so many seconds from now fail, and so do all that begin later."""
        self._give_up_at = time.monotonic() + seconds

    def run(self, call: Callable[[], Any], upload: bool = False) -> Any:
        """The result of `call`.

        Raises:
            StoreError: it has no result yet at its deadline (it may have one later), or may not begin.
            Exception: whatever `call` raised.
        """
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= _MOST_LEFT_BEHIND:
            raise StoreError(f"{len(self._left_behind)} earlier requests still have no answer")
        limit_s = min(self._upload_s if upload else self._call_s, self._give_up_at - time.monotonic())
        if limit_s <= 0:
            raise StoreError(TIME_IS_OVER)
        outcome: list[tuple[Any, BaseException | None]] = []

        def answer() -> None:
            try:
                outcome.append((call(), None))
            except BaseException as cause:  # noqa: BLE001 - raised again in the caller's thread
                outcome.append((None, cause))

        thread = threading.Thread(target=answer, name="dmray-mlflow-call", daemon=True)
        thread.start()
        thread.join(limit_s)
        if not outcome:
            self._left_behind.append(thread)
            raise StoreError(f"no complete answer within {limit_s:z.0f} s")
        result, cause = outcome[0]
        if cause is not None:
            raise cause
        return result


class Client:
    """`MlflowClient`, of which every method keeps a deadline and raises nothing but `StoreError`."""

    def __init__(self, uri: str, deadlines: Deadlines) -> None:
        """Contacts a database, but not yet a server.

        Raises:
            StoreError: the database does not answer.
            ImportError: a package for it is not installed.
        """
        from mlflow import MlflowClient

        self._deadlines = deadlines
        self._client = checked(lambda: deadlines.run(lambda: MlflowClient(tracking_uri=uri)))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return checked(lambda: self._deadlines.run(lambda: method(*args, **kwargs), name in _UPLOADS))

        return call


def checked(call: Callable[[], Any]) -> Any:
    """The result of a call into MLflow; what a server, a database or a network can do wrong becomes `StoreError`."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except StoreError:
        raise
    except MlflowException as cause:
        raise StoreError(first_line(cause), 400 <= cause.get_http_status_code() < 500) from cause
    except ImportError:
        raise
    except Exception as cause:  # what MLflow raises for an answer that is not MLflow's depends on the answer
        raise StoreError(f"{type(cause).__name__}: {first_line(cause)}") from cause


def first_line(cause: BaseException) -> str:
    """What to show of an error of MLflow: one line, without secrets."""
    line = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return without_secrets(line[: 10 * _LONGEST_MESSAGE])[:_LONGEST_MESSAGE]


def _default_call_s() -> float:
    """Longer than what MLflow itself waits for, if the user has set that to more."""
    try:
        timeout_s = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"))
        retries = float(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"))
    except ValueError:  # MLflow names the setting when it reads it
        return _CALL_S
    return min(max(_CALL_S, 1.5 * timeout_s * (retries + 1)), 10 * _CALL_S)
