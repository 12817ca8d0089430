"""The floors of dmray's packages: a package imports itself and lower floors only."""

from __future__ import annotations

COMMANDS = (
    "sweep", "report", "evaluate", "data", "doctor", "track", "status", "pause", "resume", "stop", "logs", "submit",
)  # fmt: skip
FLOORS = {
    "errors": -1, "processes": -1,
    "escaping": 0, "fields": 0, "files": 0, "frozen": 0, "interruption": 0, "periodic_thread": 0, "plugins": 0,
    "space": 0,
    "file_lock": 1, "redaction": 1, "registry": 1, "terminal": 1,
    "arguments": 2, "models": 2,
    "methods": 3,
    "specs": 4,
    "tasks": 5, "datasets": 5, "downloads": 5, "records": 5,
    "policies": 6, "storage": 6,
    "training": 7, "rollout": 7,
    "sources": 8, "planning": 8, "coordination": 8,
    "progress": 9,
    "trial": 10,
    "inference": 11,
    "mlflow_mirror": 12, "reporting": 13,
    "driver": 14, "on_ray": 15,
    "api": 16,
    "cli": 17,
    "execution": 18,
    **dict.fromkeys(COMMANDS, 18), "__main__": 18,
}  # fmt: skip
