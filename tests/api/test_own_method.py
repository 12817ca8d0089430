"""examples/own_method.py: the script runs, and its backbone fulfils the contract."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmray.errors import PluginError
from dmray.methods import METHODS
from dmray.on_ray import RayRunner
from dmray.planning.plan import plan
from dmray.records import SweepFolder
from dmray.specs.loading import sweep_of
from dmray.testing.backbone_contract import BackboneContract

SCRIPT = Path(__file__).parents[2] / "examples" / "own_method.py"
spec = importlib.util.spec_from_file_location("own_method", SCRIPT)
assert spec is not None
assert spec.loader is not None
own_method = importlib.util.module_from_spec(spec)
sys.modules["own_method"] = own_method  # its annotations are looked up there
spec.loader.exec_module(own_method)


class TestOwnBackbone(BackboneContract):
    backbone = own_method.CONVOLUTIONS


def test_the_script_trains_and_compares_its_method(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    for method in ("dconv", "dm", "bc"):
        assert method in done.stdout
    assert "DConv" in (tmp_path / "own-method" / "report" / "report.md").read_text()


def test_on_ray_a_method_of_this_process_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_added", {})
    METHODS.add(own_method.DCONV)
    planned = plan(sweep_of({**own_method.SWEEP, "storage": str(tmp_path)}, "own method"))
    with pytest.raises(PluginError, match="method 'dconv' exists in this process only"):
        RayRunner().run(planned, planned.trials, SweepFolder(tmp_path, "own-method"))
