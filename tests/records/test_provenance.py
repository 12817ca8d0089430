from __future__ import annotations

import json
import subprocess
import sys

from dmray.records import provenance
from dmray.records.provenance import _output, _version


def test_it_names_commit_versions_hardware_and_host() -> None:
    found = provenance()
    assert set(found) == {"git", "code", "versions", "hardware", "hostname"}
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["numpy"] is not None
    assert found["hardware"]["cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_what_is_missing_is_none() -> None:
    assert _version("no-such-package-at-all") is None
    assert _output("no-such-command-at-all") is None
    assert _output("false") is None


def test_a_caller_may_change_what_it_got() -> None:
    provenance()["versions"]["python"] = "0"
    assert provenance()["versions"]["python"] != "0"


def test_tracking_loads_neither_mlflow_nor_torch_nor_ray() -> None:
    code = "import sys, dmray.records as t; t.provenance(); print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_installed_plugins_are_named_with_their_versions(toy_plugin: None) -> None:
    code = "from dmray.records import provenance; print(provenance()['versions']['dmray-toy'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0.1.0\n"
