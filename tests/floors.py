"""The floors of dmray's packages: a package imports itself and lower floors only."""

from __future__ import annotations

COMMANDS = (
    "init", "sweep", "report", "evaluate", "data", "doctor", "track", "status", "pause", "resume", "stop", "logs",
    "explain", "submit", "analyze", "export",
)  # fmt: skip
FLOORS = {
    "escaping": 0, "processes": 0, "errors": 1,
    "fields": 2, "files": 2, "frozen": 2, "interruption": 2, "periodic_thread": 2, "plugins": 2,
    "space": 2,
    "file_lock": 3, "redaction": 3, "registry": 3, "terminal": 3,
    "arguments": 4, "models": 4, "shipped": 4,
    "methods": 5,
    "specs": 6,
    "tasks": 7, "datasets": 7, "downloads": 7, "records": 7,
    "policies": 8, "storage": 8,
    "training": 9, "rollout": 9,
    "sources": 10, "planning": 10, "coordination": 10,
    "packs": 11, "progress": 11,
    "trial": 12,
    "inference": 13,
    "mlflow_mirror": 14, "trackers": 15, "reporting": 15,
    "analysis": 16, "driver": 16, "exports": 16, "on_ray": 17,
    "api": 18,
    "cli": 19,
    "execution": 20,
    **dict.fromkeys(COMMANDS, 20), "__main__": 20,
}  # fmt: skip
