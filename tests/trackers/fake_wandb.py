"""A W&B server in this process: what W&B's own client sends to it, kept by run."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ServerRun:
    """`lines`: the rows by their number. A row that is sent to a number again replaces it, as on the real server."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    exit_code: int | None = None
    sent: str = ""  # everything


class FakeWandb:
    """Answers the requests of a run: find it, make it, take its rows and its files."""

    def __init__(self) -> None:
        self.refused = False  # whether to make or change runs is
        self.runs: dict[str, ServerRun] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                answer = fake._graphql(json.loads(body)) if self.path == "/graphql" else fake._take(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_PUT = do_GET = do_POST

        return Handler

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        name, asked = request.get("operationName"), request.get("variables") or {}
        project = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": "me"}}
        if name == "Viewer":
            viewer = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer}}
        if name == "RunResumeStatus":
            return {"data": {"model": {**project, "bucket": self._resumed(asked["name"])}}}
        if name == "UpsertBucket" and self.refused:
            return {"errors": [{"message": "permission denied"}]}
        if name == "UpsertBucket":
            known = asked["name"] in self.runs
            self.runs.setdefault(asked["name"], ServerRun()).sent += json.dumps(asked)
            bucket = {"id": asked["name"], "name": asked["name"], "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": not known}}}
        if name == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": f"{self.url}/upload/{each}"} for each in asked["files"]]
            return {"data": {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}}
        return {"data": {}}

    def _resumed(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self.runs:
            return None
        rows = self.runs[run_id].lines
        tail = [json.dumps(rows[max(rows)])] if rows else []
        empty = {"summaryMetrics": "{}", "config": "{}", "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"}
        known = {"id": run_id, "name": run_id, "displayName": run_id, "tags": [], "notes": "", "wandbConfig": "{}"}
        return {**empty, **known, "historyLineCount": len(rows), "historyTail": json.dumps(tail)}

    def _take(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            run, sent = self.runs[path.split("/")[-2]], json.loads(body)
            history = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            for number, line in enumerate(history["content"], start=history["offset"]):
                run.lines[number] = json.loads(line)
            run.exit_code = sent.get("exitcode", run.exit_code)
            run.sent += body.decode()
        return {}
