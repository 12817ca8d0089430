from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dmray.errors import BusyMachineError, SpecError, StorageError
from dmray.on_ray import machines_like, place_trials
from dmray.planning.calibration import (
    Calibration,
    Point,
    busy_reason,
    calibration_file,
    calibration_names,
    calibration_of,
    hardware_name,
    load_calibration,
    save_calibration,
    seconds_of,
)
from dmray.planning.cost import Work, forward_work, num_parameters, training_work, trial_cost
from dmray.planning.time_estimate import (
    Capacity,
    Change,
    Speed,
    TimeEstimate,
    duration_text,
    estimate_time,
    shorter_sweep,
    speeds_of,
)
from dmray.specs import ResourcesSpec, TrialSpec
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
        # twice the layers with less than twice the FLOPs: 1 ms a layer and 1 ns a FLOP too
        ((point(6, 1e9, 1.006), point(12, 1.5e9, 1.512)), Work(1e6, 2), 3e-3),
    ],
)
def test_times_of_other_sizes_follow_from_layers_and_flops(
    points: tuple[Point, ...], work: Work, seconds: float
) -> None:
    assert seconds_of(points, work) == pytest.approx(seconds, rel=1e-3)


def calibration(**changes: object) -> Calibration:
    """A millisecond a layer and nothing else; a decision costs nothing; a simulator of a thousand steps a second."""
    flat = (point(1, 1.0, 1e-3), point(1, 1e30, 1e-3))
    free = dict.fromkeys(("mamba", "transformer"), (point(1, 1e30, 1e-3),))
    content = {
        "hardware": "a test, 2 cores, no GPU",
        "made": "2020-01-01T00:00:00",
        "cpus": 2,
        "gpus": 0,
        "training": {"cpu": {"mamba": flat, "transformer": flat}},
        "decisions": {"cpu": {"window": free}},
        "env_step_s": {"maze2d": 1e-3},
    }
    return Calibration.model_validate(content | changes)


MANY_CPUS = 1e9


def estimate(trials: tuple[TrialSpec, ...], concurrent: int, cpus: float = MANY_CPUS, **resources: Any) -> TimeEstimate:
    return estimate_time(trials, ResourcesSpec(**resources), calibration(), Capacity(concurrent, cpus))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (0.0024, "2.4 milliseconds"),
        (0.5, "500 milliseconds"),
        (0.999, "1 seconds"),
        (2.4, "2.4 seconds"),
        (63, "63 seconds"),
        (118, "2 minutes"),
        (1000, "17 minutes"),
        (7100, "2 hours"),
        (40 * 3600, "40 hours"),
        (48 * 3600, "2 days"),
        (1e7, "120 days"),
        (1e8, "3.2 years"),
        (1e12, "32,000 years"),
    ],
)
def test_a_duration_has_two_digits_and_a_unit_that_people_use(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_estimate_is_the_cost_times_the_measured_rates(tmp_path: Path) -> None:
    trials = tiny_plan(tmp_path).trials  # 40 steps, 2 evaluations of 4 episodes of 150 steps, DM and DT
    alone = estimate(trials, 0)
    assert alone.training_s == pytest.approx(2 * 40 * 1e-3)
    assert alone.evaluation_s == pytest.approx(2 * 2 * 4 * 150 * 1e-3, rel=1e-3)
    assert alone.wall_s == pytest.approx(alone.training_s + alone.evaluation_s)
    assert alone.gpu_s == 0
    assert alone.limit == "evaluation"


@pytest.mark.parametrize(
    ("actors", "concurrent", "cpus", "limit", "wall_s"),
    [
        (1, 2, MANY_CPUS, "evaluation", 4.8),
        (1000, 2, MANY_CPUS, "training", 0.08),
        (1000, 4, MANY_CPUS, "training", 0.04),
        (1000, 400, MANY_CPUS, "the longest trial", 0.04),
        (8, 4, 2, "the CPUs", 2.48),  # 0.16 s of training and 4.8 s of evaluation on two of them
    ],
)
def test_the_wall_time_is_that_of_what_takes_longest(
    actors: int, concurrent: int, cpus: float, limit: str, wall_s: float, tmp_path: Path
) -> None:
    made = estimate(tiny_plan(tmp_path, seeds=[0, 1]).trials, concurrent, cpus, evaluation_actors=actors)
    assert made.wall_s == pytest.approx(wall_s, rel=1e-2)
    if made.by_limit["training"] != pytest.approx(made.by_limit["the longest trial"]):
        assert made.limit == limit


def test_gpu_time_is_that_of_the_gpus_that_are_busy(tmp_path: Path) -> None:
    trials = tiny_plan(tmp_path).trials
    rates = calibration(training={"cuda": calibration().training["cpu"]})
    for gpus, times in ((0.25, 1), (1, 1), (2, 2)):
        made = estimate_time(trials, ResourcesSpec(gpus_per_trial=gpus), rates, Capacity(4, 8))
        assert made.gpu_s == pytest.approx(made.training_s * times)


PACKED = ({"what": "four", "trials": 4, "rate": 2.0}, {"what": "sixteen", "trials": 16, "rate": 6.0})


@pytest.mark.parametrize(
    ("seats", "packed", "at_once", "of_a_gpu", "longest"),
    [
        (1, PACKED, 1, 1.0, 1.0),
        (1, PACKED, 4, 1.0, 1.0),  # they take turns; the last one has the GPU for itself
        (4, (), 4, 1.0, 1.0),  # not measured
        (4, PACKED, 4, 1 / 2, 4 / 2),
        (4, PACKED, 8, 1 / 4, 4 / 2),  # between the measured numbers by the logarithm of the number of trials
        (4, PACKED, 32, 1 / 6, 4 / 2),  # never more than was measured
        (16, PACKED, 16, 1 / 6, 16 / 6),
        (16, PACKED, 8, 1 / (6 * 8 / 16), 16 / 6),  # half of the seats are empty
        (64, PACKED, 64, 1 / (6 * 16 / 64), 64 / 6),  # of 16 trials that can share a pack
    ],
)
def test_trials_that_share_a_gpu_take_turns_or_the_steps_of_packs_that_were_measured(
    seats: int, packed: tuple[dict[str, Any], ...], at_once: int, of_a_gpu: float, longest: float, tmp_path: Path
) -> None:
    trials = tiny_plan(tmp_path, seeds=list(range(16))).trials  # 16 of DM and of DT
    rates = calibration(training={"cuda": calibration().training["cpu"]}, packed=packed)
    resources = ResourcesSpec(gpus_per_trial=1 / 64, trials_per_pack=seats, evaluation_actors=1000)
    alone_s = 40 * 1e-3
    made = estimate_time(trials, resources, rates, Capacity(at_once, MANY_CPUS, at_once, 1))
    assert made.by_limit["training"] == pytest.approx(32 * alone_s * of_a_gpu)
    assert made.by_limit["the longest trial"] == pytest.approx(alone_s * longest)
    assert made.gpu_s == made.by_limit["training"]
    on_two = estimate_time(trials, resources, rates, Capacity(2 * at_once, MANY_CPUS, at_once, 2))
    assert on_two.by_limit["training"] == pytest.approx(made.by_limit["training"] / 2)


def test_one_long_trial_among_short_ones_takes_no_longer_than_alone(tmp_path: Path) -> None:
    grid = [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1}]}]
    trials = [
        trial
        for steps, seeds in ((10_000, [0]), (10, range(7)))
        for trial in tiny_plan(tmp_path, grid=grid, seeds=list(seeds), training={"steps": steps}).trials
    ]
    rates = calibration(training={"cuda": calibration().training["cpu"]})
    resources = ResourcesSpec(gpus_per_trial=0.125, evaluation_actors=10**4)
    made = estimate_time(trials, resources, rates, Capacity(8, MANY_CPUS, 8, 1))
    assert made.by_limit["training"] == pytest.approx((10_000 + 70) * 1e-3)
    assert made.by_limit["the longest trial"] == pytest.approx(10_000 * 1e-3)


def test_trials_that_cannot_be_packed_take_turns_and_those_without_others_like_them_fill_one_seat(
    tmp_path: Path,
) -> None:
    models = [{"d_model": 16, "context_length": length} for length in (2, 3, 4)]
    trials = tiny_plan(tmp_path, grid=[{"methods": ["dm", "dlstm"], "models": models}]).trials
    resources = ResourcesSpec(gpus_per_trial=0.25, trials_per_pack=4)
    rates = calibration(packed=PACKED)
    found = dict(
        zip((trial.method for trial in trials), speeds_of(trials, resources, rates, Capacity(4, 8, 4)), strict=False)
    )
    assert found == {"dm": Speed(2 / 4, 6 / 4), "dlstm": Speed(1.0, 1.0)}


def test_quick_evaluations_give_a_range(tmp_path: Path) -> None:
    evaluation = {"episodes": 20, "quick_episodes": 2, "every_steps": 10, "target_returns": [50.0]}
    (trial,) = tiny_plan(
        tmp_path, grid=[{"methods": ["dm"], "models": [{"d_model": 16}]}], evaluation=evaluation
    ).trials
    cost = trial_cost(trial, 10)  # after 10, 20 and 30 steps quickly, after 40 with all episodes
    assert cost.env_steps == 150 * (3 * (2 + 20) + 20)
    assert cost.least_env_steps == 150 * (3 * 2 + 20 + 20)  # the first one is always repeated
    made = estimate((trial,), 1)
    assert made.least_evaluation_s == pytest.approx(made.evaluation_s * 46 / 86)
    assert made.least_wall_s < made.wall_s


@pytest.mark.parametrize(
    ("changes", "resources", "lacking"),
    [
        ({}, {"gpus_per_trial": 1}, "training on cuda"),
        ({"env_step_s": {}}, {}, "maze2d"),
        ({"decisions": {"cpu": {}}}, {}, "decode mode window of backbone mamba on cpu"),
        ({}, {"gpus_per_evaluation_actor": 0.5}, "decode mode window of backbone mamba on cuda"),
    ],
)
def test_a_missing_measurement_is_an_error(
    changes: dict[str, Any], resources: dict[str, Any], lacking: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=f"has no measurement of {lacking}.*doctor --calibrate"):
        estimate_time(
            tiny_plan(tmp_path).trials, ResourcesSpec(**resources), calibration(**changes), Capacity(1, MANY_CPUS)
        )


def every_mode(seconds: float) -> dict[str, dict[str, tuple[Point, ...]]]:
    """Decisions that take these seconds for a whole window, whatever the size; other modes a tenth of that."""
    modes = {"window": seconds, "stream": seconds / 10, "recurrent": seconds / 10}
    return {
        mode: dict.fromkeys(("mamba", "transformer"), (point(1, 1e30, each), point(1, 1.0, each)))
        for mode, each in modes.items()
    }


def changes_of(tmp_path: Path, cpus: int, gpus: int = 0, steps: int = 1000, **evaluation: Any) -> dict[str, Change]:
    """What would shorten a sweep of 8 trials on a machine of this size, by its text."""
    rates = calibration(decisions={"cpu": every_mode(0.1), "cuda": every_mode(0.001)}, env_step_s={"maze2d": 1e-6})
    planned = tiny_plan(
        tmp_path, seeds=[0, 1, 2, 3], evaluation=EVALUATION | evaluation, training=TRAINING | {"steps": steps}
    )

    def place(changed: ResourcesSpec) -> Capacity:
        machines = machines_like(changed, 1, cpus, gpus)
        return Capacity(place_trials(changed, machines, 8).concurrent_trials, machines.usable_cpus)

    found = shorter_sweep(planned.trials, planned.sweep.resources, rates, place)
    assert [each.estimate.least_wall_s for each in found] == sorted(each.estimate.least_wall_s for each in found)
    return {each.what: each for each in found}


@pytest.mark.parametrize(
    ("methods", "resources", "packed", "offered"),
    [
        (["dm"], {}, PACKED, "resources.gpus_per_trial=0.125 -o resources.trials_per_pack=8 -o "),
        (["dm"], {}, PACKED[:1], "resources.gpus_per_trial=0.125 -o resources.trials_per_pack=8 -o "),
        (["dm"], {}, (), None),  # not measured
        (["dm"], {"trials_per_pack": 4}, PACKED, None),  # packed already
        (["dm"], {"device": "cpu"}, PACKED, None),
        (["dlstm"], {}, PACKED, None),  # cannot be packed
    ],
)
def test_a_sweep_that_waits_for_a_gpu_is_told_of_packs(
    methods: list[str],
    resources: dict[str, Any],
    packed: tuple[dict[str, Any], ...],
    offered: str | None,
    tmp_path: Path,
) -> None:
    given = {"gpus_per_trial": 0.25, "evaluation_actors": 4} | resources
    grid = [{"methods": methods, "models": [{"d_model": 16}]}]
    planned = tiny_plan(tmp_path, grid=grid, seeds=list(range(8)), training=TRAINING, resources=given)
    costly = (point(1, 1e30, 10.0), point(1, 1.0, 10.0))
    training = dict.fromkeys(("mamba", "lstm"), costly)
    decisions = {"cpu": {"window": dict.fromkeys(("mamba", "lstm"), (point(1, 1e30, 1e-3),))}}
    rates = calibration(training={"cuda": training, "cpu": training}, decisions=decisions, packed=packed)

    def place(changed: ResourcesSpec) -> Capacity:
        machines = machines_like(changed, 1, 32, 1)
        placed = place_trials(changed, machines, 8)
        return Capacity(placed.concurrent_trials, 32, placed.trials_on_a_gpu, placed.gpus)

    found = [each.what for each in shorter_sweep(planned.trials, planned.sweep.resources, rates, place)]
    assert len(found) == (offered is not None)
    assert all(offered is not None and what.startswith(offered) for what in found)


EVALUATION = {"episodes": 40, "every_steps": 10, "cohort_size": 20, "target_returns": [50.0]}
TRAINING = {"steps": 1000, "batch_size": 8, "warmup_steps": 5}


def test_what_would_shorten_evaluation_is_computed_from_the_same_model(tmp_path: Path) -> None:
    found = changes_of(tmp_path, cpus=4)
    now = estimate_of_plan(tmp_path, cpus=4)
    assert set(found) == {
        "evaluation.every_steps=100",
        "evaluation.quick_episodes=4",
        "evaluation.decode=stream:2",
        "evaluation.decode=recurrent",
        "resources.evaluation_actors=24",
    }
    assert found["evaluation.every_steps=100"].estimate.evaluation_s == pytest.approx(now.evaluation_s / 10)
    assert found["evaluation.decode=recurrent"].estimate.evaluation_s == pytest.approx(now.evaluation_s / 10, rel=0.01)
    assert [what for what, each in found.items() if each.other_protocol] == [what for what in found if "decode" in what]
    assert found["resources.evaluation_actors=24"].more_cpus == 23, "three trials take the other CPUs"
    assert found["resources.evaluation_actors=24"].estimate.by_limit["evaluation"] == pytest.approx(
        now.by_limit["evaluation"] / 24
    )


def estimate_of_plan(tmp_path: Path, cpus: int) -> TimeEstimate:
    planned = tiny_plan(tmp_path, seeds=[0, 1, 2, 3], evaluation=EVALUATION, training=TRAINING)
    rates = calibration(decisions={"cpu": every_mode(0.1)}, env_step_s={"maze2d": 1e-6})
    return estimate_time(planned.trials, planned.sweep.resources, rates, Capacity(cpus - 1, cpus))


def test_a_change_that_does_not_help_or_cannot_be_made_is_not_shown(tmp_path: Path) -> None:
    assert changes_of(tmp_path, cpus=4, steps=100_000, every_steps=100_000) == {}
    few = changes_of(tmp_path, cpus=4, decode="recurrent", quick_episodes=2)
    assert not [what for what in few if "decode" in what or "quick" in what]


def test_actors_on_gpus_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    assert not [what for what in changes_of(tmp_path, cpus=16) if "gpus" in what]
    (found,) = [what for what in changes_of(tmp_path, cpus=16, gpus=4) if "gpus" in what]
    assert found == "resources.gpus_per_evaluation_actor=1 -o resources.evaluation_actors=4"


@pytest.mark.parametrize(
    ("load", "cpus", "cpu_share", "reason"),
    [
        (0.2, 2, None, None),
        (0.2, 2, 1.0, None),
        (0.2, 2, 1.9, None),  # a simulator with threads of its own
        (1.2, 2, None, "kept 1.2 of 2 CPUs busy"),
        (1.2, 64, 0.99, None),
        (40, 64, 0.99, "kept 40.0 of 64 CPUs busy"),
        (0.2, 2, 0.6, "had a CPU for only 60% of the time"),
    ],
)
def test_other_load_is_noticed_before_and_while_a_machine_is_measured(
    load: float, cpus: int, cpu_share: float | None, reason: str | None
) -> None:
    found = busy_reason(load, cpus, cpu_share)
    assert found is None if reason is None else reason in (found or "")


def test_a_busy_machine_is_measured_only_with_force_and_the_calibration_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dmray.planning import measuring

    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 1.0, 1.0))
    with pytest.raises(BusyMachineError, match=r"busy before the measurement.*--force"):
        measuring.calibrate(print)
    monkeypatch.setattr(measuring, "METHODS", {})
    monkeypatch.setattr(measuring, "FAMILIES", {})
    monkeypatch.setattr(measuring, "_env_step_s", lambda task, budget_s: 1.0)
    made = measuring.calibrate(print, force=True)
    assert made.busy is not None
    assert "1000000.0" in made.busy


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_packs_are_measured_against_one_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmray.planning import measuring

    monkeypatch.setattr(measuring, "SIZES", ({"d_model": 16, "n_layer": 1, "context_length": 2},))
    monkeypatch.setattr(measuring, "_SEATS", (2, 3))
    monkeypatch.setattr(measuring, "seconds_each", lambda action, device, budget_s: action() is None or 10 * 0.25)
    shown: list[str] = []
    found = measuring._Measure(0.0, shown.append).packs(0.5, "cpu")
    assert [(point.trials, point.rate) for point in found] == [(2, 4.0), (3, 6.0)]
    assert shown[0].endswith(
        "a pack of 2 on cpu, not compiled: 8.0 training steps/s of all together, 4 times one alone"
    )


def test_shipped_calibrations_are_valid_and_found_by_their_short_names() -> None:
    for name in calibration_names():
        made = calibration_of(name)
        assert made.training
        assert {"window", "stream", "recurrent"} <= set(made.decisions["cpu"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpu-3", r"--on cpu-3: unknown hardware 'cpu-3', did you mean 'cpu-2'.*--on list"),
        ("nowhere/there.json", r"--on nowhere/there.json: No such file"),
        ("bad.json", r"--on .*bad.json: not a calibration of this version: "),
    ],
)
def test_hardware_that_is_not_known_is_an_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"version": 1}')
    with pytest.raises(SpecError, match=message):
        calibration_of(str(tmp_path / name) if name == "bad.json" else name)


def test_calibrations_are_stored_by_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path))
    made = calibration()
    assert load_calibration(made.hardware) is None
    save_calibration(made)
    assert load_calibration(made.hardware) == made
    assert calibration_of(str(calibration_file(made.hardware))) == made
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
        b'{"version": 1, "hardware": "x", "made": "x", "training": {}, "decisions": {}, "env_step_s": {}}',
        b'{"version": 2, "hardware": "x", "made": "x", "cpus": 1, "gpus": 0, "training": {"cpu": {"mamba": []}}, '
        b'"decisions": {}, "env_step_s": {}}',
        b'{"version": 2, "hardware": "x", "made": "x", "cpus": 0, "gpus": 0, "training": {}, "decisions": {}, '
        b'"env_step_s": {}}',
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
    made = Calibration(hardware="mine", made="today", cpus=1, gpus=0, training={}, decisions={}, env_step_s={})
    assert load_calibration("mine") is None
    with pytest.raises(StorageError, match=r"cannot be written .* set DMRAY_CACHE"):
        save_calibration(made)
