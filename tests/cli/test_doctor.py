from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmray.cli import doctor
from dmray.driver.diagnosis import diagnose


def test_the_doctor_lists_what_is_installed_and_how_to_install_the_rest(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in diagnose(tmp_path, "http://127.0.0.1:9")}
    assert {name for name, finding in findings.items() if finding.status == "missing"} <= {"MLflow", "GPU", "disk"}
    for name in ("processor", "torch", "ray", "scan numba", "scan reference", "simulator envpool", "simulator kitchen"):
        assert findings[name].status == "ok", findings[name]
    assert "numba on cpu" in findings["scan of trials"].detail
    assert "no MLflow server answers" in findings["MLflow"].detail
    assert "--mlflow-uri off" in findings["MLflow"].detail


def test_a_machine_without_calibration_is_told_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path))
    from dmray.driver.diagnosis import _calibration

    assert "--calibrate makes one" in _calibration().detail


def test_a_calibration_that_cannot_be_saved_is_an_error_before_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("dmray.driver.diagnosis.diagnose", lambda storage, mlflow_uri: [])
    monkeypatch.setattr("dmray.planning.measuring.calibrate", lambda say, force: pytest.fail("it was measured"))
    done = CliRunner().invoke(doctor.app, ["--calibrate"])
    assert done.exit_code == 1
    assert "DMRAY_CACHE" in done.output
    assert "cannot be written" in done.output.replace("\n", " ")
