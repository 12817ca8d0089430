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
    program = _program()
    assert program is not None
    quiet = [f"--disable-{what}" for what in _QUIET]
    options = ["--headless", "--no-sandbox", "--no-first-run", *quiet, f"--user-data-dir={profile}"]
    shown = subprocess.run(
        [program, *options, "--window-size=1600,1000", "--virtual-time-budget=30000", "--dump-dom", url],
        capture_output=True,
        check=True,
        timeout=120,
    )
    return shown.stdout.decode()


def _program() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")
