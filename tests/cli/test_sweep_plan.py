"""What `--plan` prints, and which of its options are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmray.cli import sweep
from dmray.planning.calibration import Calibration, Point, hardware_name, save_calibration
from dmray.planning.trial_filter import shards_of
from tests.progress.ledgers import begun, started, trained
from tests.sweeps import sweep_file

runner = CliRunner()


def points(seconds: float) -> tuple[Point, ...]:
    """A pass takes these seconds, whatever its size."""
    return tuple(Point(what="test", layers=1, flops=flops, seconds=seconds) for flops in (1.0, 1e30))


def calibration(hardware: str = "a cluster's CPU", **changes: Any) -> Calibration:
    both = ("mamba", "transformer")
    decisions = {mode: dict.fromkeys(both, points(0.02)) for mode in ("window", "stream", "recurrent")}
    content = {
        "hardware": hardware,
        "made": "2026-01-02T03:04:05+00:00",
        "cpus": 8,
        "gpus": 0,
        "training": {"cpu": dict.fromkeys(both, points(1.0))},
        "decisions": {"cpu": decisions},
        "env_step_s": {"maze2d": 1e-5},
    }
    return Calibration.model_validate(content | changes)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


def plan(tmp_path: Path, *options: str, **changes: object) -> tuple[int, str]:
    done = runner.invoke(sweep.app, [str(sweep_file(tmp_path, **changes)), "--plan", *options])
    return done.exit_code, done.output


def on_file(tmp_path: Path, **changes: Any) -> str:
    file = tmp_path / "cluster.json"
    file.write_text(calibration(**changes).model_dump_json())
    return str(file)


def test_a_laptop_plans_for_a_cluster(tmp_path: Path) -> None:
    code, output = plan(
        tmp_path,
        "--on",
        f"{on_file(tmp_path)}:4",
        "--price",
        "2.5",
        seeds=[0, 1, 2],
        resources={"evaluation_actors": 8},
    )
    assert code == 0, output
    assert "to run: 6 trials, 6 at a time, and 8 evaluation actors,\n  on 4 machines like " in output
    assert "(32 CPUs, 0 GPUs)" in output
    assert "time: about 40 seconds, limited by training" in output
    assert "  training     4 minutes of one trial after the other\n               40 seconds with 6 at a time" in output
    assert "price        0.11 for 4 machines at 2.5 an hour each" in output
    assert "not included: starting Ray and the trials, downloading or recording data, the report" in output
    assert "from measurements of a cluster's CPU" in output


def test_the_size_of_a_machine_can_be_given(tmp_path: Path) -> None:
    code, output = plan(tmp_path, "--on", on_file(tmp_path), "--cpus", "2", resources={"evaluation_actors": 3})
    assert code == 0, output
    assert "1 at a time, and 3 evaluation actors" in output
    assert "share 2 CPUs: while all of them work, everything takes about 2 times as long" in output


@pytest.mark.parametrize(
    ("seats", "packed", "time", "line"),
    [
        (1, (), "8 seconds", "4 trials on a GPU take turns: no more steps than one alone"),
        (2, (), "8 seconds", "4 trials on a GPU: how fast packs are was not measured, so as if they took turns"),
        (
            2,
            ({"what": "test", "trials": 4, "rate": 2.5},),
            "3.2 seconds",
            "4 trials on a GPU: packed ones 2.5 times the steps of one alone, others 1",
        ),
    ],
)
def test_a_plan_says_what_trials_that_share_a_gpu_are_taken_for(
    seats: int, packed: tuple[object, ...], time: str, line: str, tmp_path: Path
) -> None:
    training = {"cuda": dict.fromkeys(("mamba", "transformer"), points(0.05))}
    resources = {"gpus_per_trial": 0.25, "trials_per_pack": seats, "cpus_per_trial": 0.25, "evaluation_actors": 4}
    where = on_file(tmp_path, gpus=1, training=training, packed=packed)
    code, output = plan(tmp_path, "--on", where, seeds=[0, 1], resources=resources)
    assert code == 0, output
    assert f"               {time} with 4 at a time\n" in output
    assert line in output
    assert "GPUs:" not in output
    _, two = plan(tmp_path, "--on", where, "--gpus", "2", seeds=[0, 1], resources=resources)
    assert "they fill 1 of 2 GPUs: more with a larger gpus_per_trial" in two


def test_packs_are_offered_where_training_on_a_gpu_takes_longest(tmp_path: Path) -> None:
    training = {"cuda": dict.fromkeys(("mamba", "transformer"), points(5.0))}
    where = on_file(tmp_path, gpus=1, training=training, packed=({"what": "test", "trials": 2, "rate": 1.9},))
    code, output = plan(
        tmp_path, "--on", where, seeds=[0, 1], resources={"gpus_per_trial": 0.5, "evaluation_actors": 4}
    )
    assert code == 0, output
    lines = output.splitlines()
    at = lines.index("training takes longest; the whole sweep would take, with this:")
    assert [line.strip() for line in lines[at + 1 : at + 5]] == [
        "7 minutes              -o resources.gpus_per_trial=0.5 \\",
        "-o resources.trials_per_pack=2 \\",
        "-o resources.executor=tune \\",
        "-o resources.cpus_per_trial=0.25",
    ]


def test_a_sweep_that_waits_for_its_evaluations_is_told_what_would_help(tmp_path: Path) -> None:
    evaluation = {"episodes": 40, "every_steps": 1, "cohort_size": 20, "target_returns": [50.0]}
    code, output = plan(tmp_path, "--on", on_file(tmp_path), evaluation=evaluation)
    assert code == 0, output
    assert "limited by evaluation" in output
    assert "-o evaluation.every_steps=10\n" in output
    assert "at least" in output
    assert "-o evaluation.quick_episodes=4" in output
    assert "-o resources.evaluation_actors=" in output


def test_this_machine_without_a_calibration_has_no_hours_but_a_hint(tmp_path: Path) -> None:
    code, output = plan(tmp_path)
    assert code == 0, output
    assert "time: unknown; measure this hardware once: python -m dmray.doctor --calibrate" in output
    assert "--on NAME:N" in output


def test_a_calibration_of_a_busy_machine_says_so(tmp_path: Path) -> None:
    save_calibration(calibration(hardware_name(), busy="other processes kept 3.0 of 2 CPUs busy"))
    code, output = plan(tmp_path, "--local")
    assert code == 0, output
    assert "one after the other in one process" in output
    assert "measured on a busy machine, so the time may be too long: other processes kept 3.0" in output


def test_a_plan_says_the_same_as_the_run_about_a_variable_that_contradicts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason='pip install "dmray[wandb]"')
    changes = {"tracking": {"mlflow_uri": "off", "wandb": {"project": "p", "mode": "online"}}}
    assert "trackers:" not in plan(tmp_path, "--local", **changes)[1]
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, output = plan(tmp_path, "--local", **changes)
    (told,) = [line for line in output.splitlines() if line.startswith("trackers: ")]
    done = runner.invoke(sweep.app, [str(sweep_file(tmp_path, **changes)), "--local"])
    assert (code, done.exit_code) == (0, 1)
    assert f"error: {told.removeprefix('trackers: the sweep does not start here: ')}" in done.output


def test_known_hardware_is_listed(tmp_path: Path) -> None:
    code, output = plan(tmp_path, "--on", "list")
    assert code == 0, output
    assert "cpu-2" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan", "--on", "cpu-3"], "unknown hardware 'cpu-3', did you mean 'cpu-2'"),
        (["--plan", "--on", ""], "--on : write it as NAME or NAME:N"),
        (["--plan", "--on", "cpu-2", "--address", "auto"], "--address auto asks the cluster itself"),
        (["--plan", "--local", "--cpus", "4"], "--cpus 4: --local runs one trial after the other"),
        (["--plan", "--local", "--on", "cpu-2:4"], "--local runs on one machine"),
        (["--plan", "--price", "0"], "--price 0: give the price of a machine's hour"),
        (["--on", "cpu-2"], "--on cpu-2: only --plan uses it"),
        (["--plan", "--on", "cpu-2:0"], "--on cpu-2:0: give from 1 to 9999 machines, not 0"),
        (["--show", "--on", "cpu-2"], "--on: --show only prints the sweep"),
        (["--show", "--gpus", "0"], "--gpus: --show only prints the sweep"),
        (["--gpus", "2"], "--gpus 2: only --plan uses it"),
        (["--plan", "--on", "cpu-2", "-o", "resources.gpus_per_trial=1"], "a trial needs 1 GPUs"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    done = runner.invoke(sweep.app, [str(sweep_file(tmp_path)), *options])
    assert done.exit_code == 1
    assert message in done.output.replace("\n", " ")


def test_a_plan_of_a_shard_names_what_was_begun_here_and_counts_it_anew(tmp_path: Path) -> None:
    planned, _ = begun(tmp_path, [started(), trained(20)])
    save_calibration(calibration(hardware_name()))
    of_begun = planned.trial_ids[0]
    shard, file = shards_of(planned.trials, 2)[of_begun], sweep_file(tmp_path)
    own, other = (
        runner.invoke(sweep.app, [str(file), "--plan", "--shard", f"{number}/2"]) for number in (shard, 3 - shard)
    )
    assert (own.exit_code, other.exit_code) == (0, 0), own.output + other.output
    assert "(trials that were begun before: 1, counted as if they started anew)" in own.output
    assert "are in other shards" not in own.output
    assert f"are in other shards (1: {of_begun})" in other.output
