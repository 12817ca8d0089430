from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dmray.errors import SpecError, StorageError
from dmray.planning.calibration import (
    Calibration,
    Point,
    calibration_file,
    hardware_name,
    load_calibration,
    save_calibration,
    seconds_of,
)
from dmray.planning.cost import Work, forward_work, num_parameters, training_work
from dmray.planning.time_estimate import estimate_time
from dmray.specs import ResourcesSpec
from dmray.tasks import task_of
from tests.sweeps import tiny_plan


def point(layers: int, flops: float, seconds: float) -> Point:
    return Point(what="test", layers=layers, flops=flops, seconds=seconds)


@pytest.mark.parametrize(
    ("points", "work", "seconds"),
    [
        # 1 ms a layer and 1 ns a FLOP, exactly
        ((point(2, 1e6, 3e-3), point(6, 1e9, 1.006)), Work(5e8, 4), 0.504),
        ((point(2, 1e6, 3e-3), point(6, 1e9, 1.006)), Work(1e6, 2), 3e-3),
        # the large shape is dearer by more than its FLOPs: by FLOPs alone, from it
        ((point(2, 1e6, 1e-4), point(6, 1e9, 1.0)), Work(2e9, 6), 2.0),
        # FLOPs cost nothing: by layers alone
        ((point(2, 1e6, 4e-3), point(6, 1e9, 6e-3)), Work(1e12, 6), 6e-3),
        ((point(6, 1e9, 1.0),), Work(5e8, 1), 0.5),
    ],
)
def test_times_of_other_sizes_follow_from_layers_and_flops(
    points: tuple[Point, ...], work: Work, seconds: float
) -> None:
    assert seconds_of(points, work) == pytest.approx(seconds, rel=1e-3)


def calibration(**changes: object) -> Calibration:
    """A millisecond a layer and nothing else; a simulator of a thousand steps a second."""
    flat = (point(1, 1.0, 1e-3), point(2, 2.0, 2e-3))
    content = {
        "hardware": "a test, 2 cores, no GPU",
        "made": "2020-01-01T00:00:00",
        "training": {"cpu": {"mamba": flat, "transformer": flat}},
        "decisions": {"mamba": (point(1, 1e30, 1e-3),), "transformer": (point(1, 1e30, 1e-3),)},
        "env_step_s": {"maze2d": 1e-3},
    }
    return Calibration.model_validate(content | changes)


def test_the_estimate_is_the_cost_times_the_measured_rates(tmp_path: Path) -> None:
    trials = tiny_plan(tmp_path).trials  # 40 steps, 2 evaluations of 4 episodes of 150 steps, DM and DT
    training_s = sum(40 * seconds_of(calibration().training["cpu"]["mamba"], training_work(t)) for t in trials)
    evaluation_s = 2 * 2 * 4 * 150 * 1e-3
    alone = estimate_time(trials, ResourcesSpec(), calibration(), concurrent=0)
    assert alone.trial_hours * 3600 == pytest.approx(training_s)
    assert alone.evaluation_core_hours * 3600 == pytest.approx(evaluation_s, rel=1e-3)
    assert alone.wall_hours == pytest.approx(alone.trial_hours + alone.evaluation_core_hours)
    assert alone.gpu_hours == 0


def test_wall_time_is_the_longer_of_training_and_evaluation(tmp_path: Path) -> None:
    trials, rates = tiny_plan(tmp_path, seeds=[0, 1]).trials, calibration()
    by_actors = [estimate_time(trials, ResourcesSpec(evaluation_actors=n), rates, 2) for n in (1, 1000)]
    assert by_actors[0].wall_hours == pytest.approx(
        max(by_actors[0].evaluation_core_hours, by_actors[0].trial_hours / 2)
    )
    assert by_actors[1].wall_hours == pytest.approx(by_actors[1].trial_hours / 2)
    one = estimate_time(trials, ResourcesSpec(evaluation_actors=1000), rates, 4)
    more = estimate_time(trials, ResourcesSpec(evaluation_actors=1000), rates, 400)
    assert more.wall_hours == pytest.approx(one.wall_hours), "no sweep is faster than its longest trial"


def test_gpu_hours_are_the_trials_shares(tmp_path: Path) -> None:
    trials = tiny_plan(tmp_path).trials
    rates = calibration(training={"cuda": calibration().training["cpu"]})
    made = estimate_time(trials, ResourcesSpec(gpus_per_trial=0.25), rates, 4)
    assert made.gpu_hours == pytest.approx(made.trial_hours / 4)


def test_a_missing_measurement_is_an_error(tmp_path: Path) -> None:
    trials = tiny_plan(tmp_path).trials
    with pytest.raises(SpecError, match=r"has no measurement of training on cuda.*doctor --calibrate"):
        estimate_time(trials, ResourcesSpec(gpus_per_trial=1), calibration(), 1)
    with pytest.raises(SpecError, match="has no measurement of maze2d"):
        estimate_time(trials, ResourcesSpec(), calibration(env_step_s={}), 1)


def test_calibrations_are_stored_by_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path))
    made = calibration()
    assert load_calibration(made.hardware) is None
    save_calibration(made)
    assert load_calibration(made.hardware) == made
    assert load_calibration("another machine") is None
    calibration_file(made.hardware).write_text("{}")
    assert load_calibration(made.hardware) is None
    assert hardware_name({"cpu": "X", "cores": 2, "gpu": None}) == "X, 2 cores, no GPU"


def test_the_flops_of_a_step_are_mostly_six_for_each_weight_and_token(tmp_path: Path) -> None:
    grid = [{"methods": ["dm", "dt"], "models": [{"d_model": 128, "n_layer": 6, "context_length": 20}]}]
    for trial, tokens in zip(tiny_plan(tmp_path, grid=grid).trials, (2, 3), strict=True):
        weights = num_parameters(trial, task_of(trial.dataset))
        rule = 6 * weights * tokens * 20 * trial.training.batch_size
        assert training_work(trial).flops == pytest.approx(rule, rel=0.25)
        assert training_work(trial).flops == pytest.approx(3 * forward_work(trial, 8).flops)


def test_a_calibration_predicts_a_training_step_of_this_machine() -> None:
    """The whole path at toy cost: points of this machine, of a positive rate and ordered by size."""
    from dmray.planning.measuring import SIZES, _env_step_s, _trainer, reference_trial, seconds_each
    from dmray.tasks import TASKS

    trial = reference_trial("mamba", SIZES[0])
    seconds = seconds_each(_trainer(trial, "cpu").step, "cpu", budget_s=0.01)
    work = training_work(trial)
    assert seconds > 0
    alone = (Point(what="", flops=work.flops, layers=work.layers, seconds=seconds),)
    assert seconds_of(alone, work) == pytest.approx(seconds)
    assert 0 < _env_step_s(TASKS["maze2d-open"], 0.01) < 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b" " * (2**20 + 1),
        b'{"version": 1, "hardware": "x", "made": "x", "training": {}, "decisions": {"mamba": []}, "env_step_s": {}}',
        b'{"version": 1, "hardware": "x", "made": "x", "training": {}, "decisions": {}, "env_step_s": {"maze2d": 0}}',
    ],
)
def test_a_damaged_calibration_is_named_in_a_warning_and_not_used(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path))
    file = calibration_file("x")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert load_calibration("x") is None
    assert f"{file} is not used: " in caplog.text
    assert "--calibrate" in caplog.text


def test_a_pipe_in_the_place_of_a_calibration_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path))
    calibration_file("x").parent.mkdir(parents=True)
    os.mkfifo(calibration_file("x"))
    assert load_calibration("x") is None


@pytest.mark.parametrize("change", [{"flops": 0.0}, {"seconds": float("inf")}, {"seconds": -1.0}, {"layers": 0}])
def test_measurements_that_nothing_can_be_computed_from_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Point(**{"what": "DM", "flops": 1e9, "layers": 3, "seconds": 0.1} | change)


def test_a_calibration_that_cannot_be_stored_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", "/proc/nowhere")
    made = Calibration(hardware="mine", made="today", training={}, decisions={}, env_step_s={})
    assert load_calibration("mine") is None
    with pytest.raises(StorageError, match=r"cannot be written .* set DMRAY_CACHE"):
        save_calibration(made)
