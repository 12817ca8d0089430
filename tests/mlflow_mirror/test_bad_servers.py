"""Servers that are no MLflow, or one that is ill: told in one sentence, and nobody waits for long."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dmray.errors import TrackingError, TrackingUnavailableError
from dmray.mlflow_mirror import client, opening
from dmray.mlflow_mirror.client import Deadlines, StoreError
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.opening import find_address, with_password
from dmray.mlflow_mirror.store import LateStore, open_store
from dmray.records import SweepFolder
from tests.mlflow_mirror.examples import example_sweep, started, trials_of, write_ledger
from tests.mlflow_mirror.fake_store import FakeStore

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(120)]
Answer = Callable[[BaseHTTPRequestHandler], None]


def answers(status: int, content: str, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content.encode())))
        handler.end_headers()
        handler.wfile.write(content.encode())

    return answer


def trickles(handler: BaseHTTPRequestHandler) -> None:
    """A byte every tenth of a second: MLflow's own timeout, which is between two bytes, never comes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


class BadServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    answer(self)
                except OSError:  # the client has gone
                    return

            do_POST = do_PATCH = do_GET

            def log_message(self, *args: object) -> None:
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], BadServer]]:
    servers: list[BadServer] = []

    def start(answer: Answer) -> BadServer:
        servers.append(BadServer(answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(client, "_CALL_S", 1.5)
    monkeypatch.setattr(opening, "_PROBE_TIMEOUT_S", 1.0)


BAD = {
    "a page": answers(200, "<html><body>Please log in</body></html>"),
    "nothing": answers(200, ""),
    "bytes": answers(200, "\x00\x01\ufffd{"),
    "a list": answers(200, "[]"),
    "an empty object": answers(200, "{}"),
    "a number": answers(200, "17"),
    "other fields": answers(200, json.dumps({"experiment": {"experiment_id": {"a": [1]}, "tags": 5}})),
    "deep": answers(200, "[" * 100_000),
    "unauthorized": answers(401, "no"),
    "forbidden": answers(403, "<html>no</html>"),
    "an error": answers(500, '{"error_code": "INTERNAL_ERROR", "message": "broken\\nhere"}'),
    "an odd error": answers(502, "[1]"),
    "not found": answers(404, "<html>nginx</html>"),
    "a circle": answers(302, "", Location="/api/2.0/mlflow/experiments/get-by-name"),
    "too many": answers(429, "slow down", Retry_After="100000"),
    "bytes one by one": trickles,
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_a_server_that_is_no_mlflow_is_told_in_one_sentence(
    answer: Answer, serve: Callable[[Answer], BadServer], tmp_path: Path
) -> None:
    uri = serve(answer).uri.replace("//", "//me:hidden@")
    with pytest.raises(TrackingUnavailableError) as caught:
        open_store(uri, SweepFolder(tmp_path, "x"))
    message = str(caught.value)
    assert "\n" not in message
    assert "hidden" not in message
    assert message.endswith("run without MLflow: --mlflow-uri off")


def test_a_server_that_refuses_access_names_the_variables(serve: Callable[[Answer], BadServer], tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        open_store(serve(BAD["unauthorized"]).uri, SweepFolder(tmp_path, "x"))


@pytest.mark.parametrize("answer", ["a page", "bytes one by one", "unauthorized"])
def test_a_sweep_that_was_started_goes_on_with_a_bad_server_and_tells_it_once(
    answer: str, serve: Callable[[Answer], BadServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = example_sweep(name="ill")
    trials, folder = trials_of(sweep), SweepFolder(tmp_path, "ill")
    write_ledger(folder, trials[0], [started()])
    mirror = MlflowMirror.open(serve(BAD[answer]).uri, folder, sweep, trials, may_be_late=True)
    mirror.hurry(3.0)
    for _ in range(2):
        assert not mirror.advance()
        mirror._outage._next_try = 0.0
    assert mirror.close().records == 1
    told = [record.getMessage() for record in caplog.records]
    assert len([message for message in told if "takes no records" in message]) == 1
    assert f"python -m dmray.track replay {folder.path}" in told[-1]


def test_calls_that_hang_are_left_behind_but_few_of_them() -> None:
    released = threading.Event()
    deadlines = Deadlines(0.01)
    for _ in range(client._MOST_LEFT_BEHIND):
        with pytest.raises(StoreError, match=r"no complete answer within"):
            deadlines.run(released.wait)
    with pytest.raises(StoreError, match="4 earlier requests still have no answer"):
        deadlines.run(lambda: 1)
    released.set()
    deadline = time.monotonic() + 60
    while any(thread.is_alive() for thread in deadlines._left_behind):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Deadlines(60.0).run(lambda: 1) == 1


def test_the_error_of_a_call_is_raised_where_it_was_made() -> None:
    with pytest.raises(ZeroDivisionError):
        Deadlines(60.0).run(lambda: 1 / 0)


def test_no_call_begins_when_the_time_is_over() -> None:
    deadlines = Deadlines(60.0)
    deadlines.give_up_after(0.0)
    with pytest.raises(StoreError, match="end of a sweep"):
        deadlines.run(lambda: 1)


def test_a_sweep_that_ends_gives_mlflow_a_limited_time(tmp_path: Path) -> None:
    sweep, store = example_sweep(name="ends"), FakeStore()
    mirror = MlflowMirror(store, SweepFolder(tmp_path, "ends"), sweep, trials_of(sweep))
    mirror.hurry()
    assert store.seconds_left == 600.0


def test_a_server_that_never_answered_is_not_waited_for_at_the_end(tmp_path: Path) -> None:
    late = LateStore("http://127.0.0.1:9", SweepFolder(tmp_path, "x"))
    late.give_up_after(0.0)
    with pytest.raises(StoreError, match="end of a sweep"):
        late.find_runs("a", "b")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:99999", "is no address (Port out of range"),
        ("http://me:hidden/word@host:5000", "http://me:***@host:5000 is no address"),
        ("http://[::1", "is no address (Invalid IPv6 URL)"),
        ("http://", "names no host"),
        ("http:///x", "names no host"),
        ("http://" + "x" * 300, "no MLflow server answers at"),
        ("postgresql://", "names no host"),
        ("sqlite://host/x.db", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file:x.db?uri=true", "names no file"),
        ("", "is a folder"),
        ("\x00", "is a folder"),
    ],
)
def test_an_odd_address_is_refused_in_one_sentence(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError) as caught:
        find_address(uri, SweepFolder(tmp_path, "x"))
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://me:***@host:5000/x", "http://***@host:5000/x"])
def test_a_hidden_password_comes_from_the_environment(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrackingError, match="dmray does not store passwords; set MLFLOW_TRACKING_USERNAME and"):
        with_password(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    assert with_password(uri) == "http://host:5000/x"


def test_a_hidden_password_of_postgresql_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hidden")
    assert with_password("postgresql://me:***@db:5432/x") == "postgresql://me@db:5432/x"
    with pytest.raises(TrackingError, match="give the whole address with --mlflow-uri again"):
        with_password("mysql://me:***@db/x")


def test_a_name_that_resolves_to_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> socket.socket:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(TrackingUnavailableError, match="Name or service not known"):
        find_address("http://nowhere.invalid:5000", SweepFolder(tmp_path, "x"))
