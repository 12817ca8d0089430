from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dmray.errors import SpecError
from dmray.specs import DatasetSpec, MazeGeneration
from dmray.tasks import DATASETS, TASKS, task_of

with (Path(__file__).parents[1] / "fixtures" / "d4rl_datasets.csv").open() as stream:
    PUBLISHED = list(csv.DictReader(stream))


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["dataset"])
def test_a_data_set_is_as_d4rl_publishes_it(row: dict[str, str]) -> None:
    entry = DATASETS[row["dataset"]]
    task = TASKS[entry.task]
    assert (task.family, entry.url) == (row["family"], row["url"])
    assert task.horizon == int(row["max_episode_steps"])
    assert task.reference.minimum == float(row["ref_min_score"])
    assert task.reference.maximum == float(row["ref_max_score"])


def test_the_catalog_has_no_data_set_that_is_not_published() -> None:
    assert set(DATASETS) == {row["dataset"] for row in PUBLISHED}


def test_the_normalized_score_is_0_at_the_minimum_and_100_at_the_maximum() -> None:
    hopper = TASKS["hopper"].reference
    assert hopper.normalize(hopper.minimum) == 0.0
    assert hopper.normalize(hopper.maximum) == 100.0
    assert TASKS["kitchen-mixed"].reference.normalize(1.0) == 25.0


def test_every_task_has_a_headline_target_that_its_horizon_can_pay() -> None:
    for task in TASKS.values():
        assert task.target_returns[0] == max(task.target_returns)
        if task.family == "maze2d":
            assert task.target_returns[0] <= task.horizon
        if task.family in ("ant", "kitchen") or task.name == "maze2d-open":
            assert "dmray" in task.targets_source


def test_a_catalog_name_needs_no_task() -> None:
    assert task_of(DatasetSpec(name="antmaze-medium-play-v2")).name == "antmaze-medium"
    assert task_of(DatasetSpec(name="hopper-medium-v2", path="/elsewhere.hdf5")).name == "hopper"
    assert task_of(DatasetSpec(name="mine", task="kitchen-mixed", path="x.hdf5")).name == "kitchen-mixed"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DatasetSpec(name="hoper-medium-v2"), "did you mean 'hopper-medium-v2'"),
        (DatasetSpec(name="mine", task="hoper", path="x"), "unknown task 'hoper', did you mean 'hopper'"),
        (DatasetSpec(name="hopper-medium-v2", task="ant"), "belongs to task 'hopper', not 'ant'"),
        (DatasetSpec(name="mine", task="hopper"), "name its file with 'path'"),
        (DatasetSpec(name="mine", task="hopper", generate=MazeGeneration()), "only maze2d tasks can be generated"),
    ],
)
def test_a_wrong_data_set_is_told_with_its_cure(dataset: DatasetSpec, message: str) -> None:
    with pytest.raises(SpecError) as error:
        task_of(dataset)
    assert message in str(error.value)
