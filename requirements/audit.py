"""Ask pip-audit whether a pinned package has a known vulnerability; `make lint` calls it.

    python requirements/audit.py

It asks once a day, and again when constraints.txt has changed. A report fails `make lint`, unless audit.txt lists
its identifier with a reason. Without an answer from the service (no network) it says so and fails nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = HERE.parent / "constraints.txt"
ALLOWED = HERE / "audit.txt"
TIMEOUT_S = 60.0


def main() -> int:
    stamp = Path(sys.prefix) / ".audited"
    digest = hashlib.sha256(PACKAGES.read_bytes() + ALLOWED.read_bytes()).hexdigest()
    key = f"{datetime.now(UTC):%Y-%m-%d} {digest}"
    if stamp.exists() and stamp.read_text().startswith(key):
        print(stamp.read_text().removeprefix(key).strip())
        return 0
    said, found = audit(PACKAGES, allowed(ALLOWED.read_text()))
    print(said)
    if not found:
        stamp.write_text(f"{key} {said}\n")
    return int(found)


def audit(packages: Path, allowed: Sequence[str]) -> tuple[str, bool]:
    """What to print, and whether a vulnerability was found."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "--timeout", "5"]
    command += ["--progress-spinner", "off", "--requirement", str(packages)]
    command += [word for identifier in allowed for word in ("--ignore-vuln", identifier)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"pip-audit: NOT CHECKED, no answer within {TIMEOUT_S:g} s", False
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return f"pip-audit: NOT CHECKED, no answer from the service: {last[:200]}", False
    return judge(answer["dependencies"])


def judge(dependencies: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """What to print of pip-audit's answer, and whether it has a vulnerability."""
    checked = [each for each in dependencies if "skip_reason" not in each]
    lines = [
        f"{each['name']} {each['version']}: {report['id']}, fixed in {', '.join(report['fix_versions']) or 'none'}"
        for each in checked
        for report in each["vulns"]
    ]
    if lines:
        cure = f"raise the version in constraints.txt, or add the identifier with a reason to {ALLOWED.name}"
        return "\n".join(["pip-audit: known vulnerabilities", *sorted(set(lines)), cure]), True
    if not checked:
        return f"pip-audit: NOT CHECKED, the index here knows no reports ({len(dependencies)} packages)", False
    return f"pip-audit: no known vulnerability in {len(checked)} of {len(dependencies)} packages", False


def allowed(text: str) -> list[str]:
    """The identifiers of audit.txt.

    Raises:
        SystemExit: one has no reason.
    """
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        if len(line) < 2:
            raise SystemExit(f"{ALLOWED}: {line[0]}: write a reason behind it")
    return [line[0] for line in lines]


if __name__ == "__main__":
    sys.exit(main())
