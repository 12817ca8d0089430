"""What a page looks like to a browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_QUIET = ["background-networking", "component-update", "default-apps", "extensions", "gpu", "quic", "sync"]


def missing() -> str | None:
    """Why there is no browser here."""
    return None if _program() else "no browser: neither chromium nor google-chrome is on the PATH"


def page(url: str, profile: Path) -> str:
    """The HTML of a page after its scripts ran for a while; of a busy machine it may still lack parts."""
    return _run(url, profile, ["--dump-dom", "--window-size=1600,1000"]).decode()


def photograph(url: str, profile: Path, path: Path, width: int, height: int) -> None:
    """Write a PNG of the page after its scripts ran for a while."""
    _run(url, profile, [f"--screenshot={path}", f"--window-size={width},{height}", "--hide-scrollbars"])


def _run(url: str, profile: Path, wanted: list[str]) -> bytes:
    program = _program()
    assert program is not None
    quiet = [f"--disable-{what}" for what in _QUIET]
    options = ["--headless", "--no-sandbox", "--no-first-run", *quiet, f"--user-data-dir={profile}"]
    command = [program, *options, "--virtual-time-budget=60000", *wanted, url]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


def _program() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")
