from __future__ import annotations

import csv
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import dmray
from dmray.driver.plan_view import render_plan
from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.models import BackboneConfig
from dmray.planning.cost import trial_cost, trial_flops
from dmray.planning.plan import plan
from dmray.progress.trial_status import TrialStatus
from dmray.specs import load_sweep
from dmray.tasks import task_of
from tests.sweeps import sweep_file, tiny_plan

SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_sweep_plans_to_the_number_of_trials_in_its_header(path: Path) -> None:
    said = re.search(r"= (\d+) trials", path.read_text())
    assert said, "the header says how many trials there are"
    assert len(plan(load_sweep(path)).trials) == int(said[1])


def test_the_full_benchmark_is_27_data_sets_of_seven_families_with_five_methods_and_four_seeds() -> None:
    trials = plan(load_sweep(SWEEPS / "full_benchmark.yaml")).trials
    assert len({trial.dataset.name for trial in trials}) == 27
    assert len({task_of(trial.dataset).family for trial in trials}) == 7
    assert {trial.method for trial in trials} == {"dt", "dm", "dm+r", "hdt", "hdm"}
    assert {trial.seed for trial in trials} == {0, 1, 2, 3}


def test_the_papers_sweep_has_the_trials_of_its_published_numbers_and_with_the_ablation_2808_trials() -> None:
    main, ablation = (plan(load_sweep(SWEEPS / f"{name}.yaml")) for name in ("paper", "paper_ablation"))
    published = csv.DictReader((files("dmray.reporting") / "paper_results.csv").read_text().splitlines())
    assert {(trial.dataset.name, trial.method) for trial in main.trials} == {
        (row["dataset"], row["method"]) for row in published
    }
    size = BackboneConfig()  # that the report looks for beside the paper's numbers (dmray.reporting.paper)
    assert {(trial.model.d_model, trial.model.n_layer, trial.model.context_length) for trial in main.trials} == {
        (size.d_model, size.n_layer, size.context_length)
    }
    assert main.sweep.evaluation.decode == "window"
    assert len({*main.trial_ids, *ablation.trial_ids}) == 2808


def test_a_trial_that_two_blocks_share_is_run_once(tmp_path: Path) -> None:
    model = {"d_model": 16, "n_layer": 1, "context_length": 4}
    grid = [
        {"methods": ["dm", "dt"], "models": [model]},
        {"methods": ["dm"], "models": [model, model | {"n_layer": 2}]},
    ]
    assert len(tiny_plan(tmp_path, grid=grid).trials) == 3


def test_all_methods_of_a_seed_come_together() -> None:
    trials = plan(load_sweep(SWEEPS / "quickstart.yaml")).trials
    assert [(trial.seed, trial.method) for trial in trials] == [(0, "dm"), (0, "dt"), (1, "dm"), (1, "dt")]


def test_the_order_is_that_of_the_sweep_file(tmp_path: Path) -> None:
    small = {"d_model": 16, "n_layer": 1, "context_length": 4}
    grid = [{"methods": ["dm", "dt"], "models": [small | {"n_layer": 2}, small]}]

    def order(name: str) -> list[tuple[str, int, int]]:
        planned = tiny_plan(tmp_path, grid=grid, seeds=[0, 1], order=name)
        return [(trial.method, trial.model.n_layer, trial.seed) for trial in planned.trials]

    together = [(method, layers, seed) for seed in (0, 1) for layers in (2, 1) for method in ("dm", "dt")]
    assert order("methods_together") == together
    assert order("seeds_together") == [(m, n, s) for n in (2, 1) for m in ("dm", "dt") for s in (0, 1)]
    for method in ("dm", "dt"):
        assert [layers for name, layers, _ in order("cheap_first") if name == method] == [1, 1, 2, 2]
    assert sorted(order("cheap_first")) == sorted(together)


def test_the_cheapest_trials_of_all_data_sets_come_first_and_equals_stay_in_order() -> None:
    trials = plan(load_sweep(SWEEPS / "full_benchmark.yaml", ["order=cheap_first"])).trials
    flops = [trial_flops(trial) for trial in trials]
    assert flops == sorted(flops)
    assert trials[0].method == "dm"
    assert trials[0].seed == 0


def test_order_does_not_change_the_trials(tmp_path: Path) -> None:
    assert set(tiny_plan(tmp_path, order="cheap_first").trial_ids) == set(tiny_plan(tmp_path).trial_ids)


def test_a_planned_trial_names_its_targets_and_scale(tmp_path: Path) -> None:
    evaluation = {"episodes": 4, "every_steps": 20}
    trial = tiny_plan(tmp_path, evaluation=evaluation).trials[0]
    task = task_of(trial.dataset)
    assert (trial.evaluation.target_returns, trial.evaluation.return_scale) == (task.target_returns, task.return_scale)


def test_storage_resources_and_retries_do_not_change_the_trials(tmp_path: Path) -> None:
    here = tiny_plan(tmp_path)
    there = tiny_plan(tmp_path / "other", resources={"evaluation_actors": 7}, faults={"worker_restarts": 9})
    assert here.trial_ids == there.trial_ids


def test_an_unknown_data_set_is_an_error_with_file_field_and_the_most_similar_name(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, datasets=["hopper-medium-v2", "hoper-medium-v2"])
    with pytest.raises(SpecError) as error:
        dmray.plan_sweep(file)
    told = f"{file}: datasets.1: unknown data set 'hoper-medium-v2', did you mean 'hopper-medium-v2'?"
    assert str(error.value).startswith(told)


def test_several_targets_cost_more_only_for_methods_that_take_one(tmp_path: Path) -> None:
    grid = [{"methods": list(METHODS), "models": [{"d_model": 16}]}]
    trials = tiny_plan(tmp_path, grid=grid, evaluation={"episodes": 4, "every_steps": 40, "target_returns": [1.0, 2.0]})
    several = {trial.method for trial in trials.trials if trial_cost(trial, 10).env_steps == 2 * 4 * 150}
    assert several == {"dt", "dm+r"}


def test_cost_counts_every_evaluation_target_and_the_whole_horizon(tmp_path: Path) -> None:
    evaluation = {"episodes": 4, "every_steps": 15, "target_returns": [1.0, 2.0]}
    dm, dt = tiny_plan(tmp_path, evaluation=evaluation).trials
    evaluations = 3  # after 15, 30 and the last of 40 steps
    assert trial_cost(dm, 10).env_steps == evaluations * 4 * 150
    assert trial_cost(dt, 10).env_steps == evaluations * 4 * 2 * 150
    assert trial_cost(dm, 10).training_steps == 40


def test_the_plan_shows_trials_cost_and_what_is_done(tmp_path: Path) -> None:
    planned = tiny_plan(tmp_path)
    console = Console(width=140, record=True)
    done, new = planned.trial_ids
    console.print(render_plan(planned, {done: TrialStatus.FINISHED, new: TrialStatus.WAITING}))
    text = console.export_text()
    assert "2 trials" in text
    assert "80 training steps" in text
    assert "1/2" in text
    assert "1 waiting, 1 finished" in text


def test_the_plan_of_the_longest_names_is_a_table_in_80_columns() -> None:
    console = Console(width=80, record=True)
    planned = dmray.plan_sweep("paper", ["seeds=[0]"])
    console.print(render_plan(planned, dict.fromkeys(planned.trial_ids, TrialStatus.WAITING)))
    shown = console.export_text()
    assert re.search(r"^bullet-halfcheetah-medium-expert-v0 +5 +5 M +700 M +\d+ MB +0/5 *$", shown, re.MULTILINE)
    assert "in this order; on each data set, seed by seed:\n" in shown


def test_of_many_values_the_plan_names_the_first_and_their_number(tmp_path: Path) -> None:
    training = {"steps": 2, "learning_rate": {"range": [1, 40]}}
    console = Console(width=80, record=True)
    console.print(render_plan(tiny_plan(tmp_path, seeds=list(range(100, 130)), training=training)))
    shown = console.export_text()
    assert "  learning_rate  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 28 more\n" in shown
    assert "  seeds 100 101 102 103 104 105 106 107 108 109 110 111 and 18 more\n" in shown


def test_the_plan_tells_sizes_apart_that_differ_in_one_backbones_field_alone(tmp_path: Path) -> None:
    size = {"d_model": 16, "n_layer": 1, "context_length": 4}
    grid = [
        {"methods": ["dm", "dt"], "models": [size]},
        {"methods": ["dm"], "models": [size | {"d_state": 8}]},
    ]
    console = Console(width=100, record=True)
    console.print(render_plan(tiny_plan(tmp_path, grid=grid)))
    shown = console.export_text()
    assert "dm dt  (width 16, 1 layer, context 4)" in shown
    assert "dm  (width 16, 1 layer, context 4, d_state 8)" in shown


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"grid": [{"methods": ["dm"], "models": [{"d_model": 100_000, "n_layer": 1000}]}]}, "GiB to train"),
        (
            {
                "grid": [{"methods": ["dm"], "models": [{"context_length": 100_000}]}],
                "training": {"steps": 1, "batch_size": 10_000},
            },
            "1,000,000,000 timesteps, more than 100,000,000",
        ),
        (
            {"datasets": [{"name": "mine", "task": "antmaze-umaze", "generate": {"transitions": 10}}]},
            "data set 'mine': task 'antmaze-umaze' cannot record it: unknown behaviour 'expert', known: random",
        ),
        (
            {"datasets": [{"name": "mine", "task": "hopper", "generate": {"behaviour": "medium-reply"}}]},
            "datasets.0: .*cannot record it: unknown behaviour 'medium-reply', did you mean 'medium-replay'?",
        ),
    ],
)
def test_what_no_machine_or_simulator_can_do_is_an_error_of_the_plan(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SpecError, match=problem):
        tiny_plan(tmp_path, **changes)


def test_tf32_is_refused_where_no_trial_gets_a_gpu(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, training={"dtype": ["float32", "tf32"]})
    with pytest.raises(SpecError, match=r"training.dtype tf32: the products of a CPU are float32; give float32, or"):
        plan(load_sweep(file))
    assert len(plan(load_sweep(file, ["resources.gpus_per_trial=0.5"])).trials) == 4
