from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dmray.errors import SpecError
from dmray.specs import DatasetSpec, Generation
from dmray.tasks import DATASETS, RETIRED, TASKS, protocol_of, task_of
from dmray.tasks.d4rl import MUJOCO
from dmray.tasks.families.bullet import BULLET
from dmray.tasks.families.minari import MINARI

with (Path(__file__).parents[1] / "fixtures" / "d4rl_datasets.csv").open() as stream:
    PUBLISHED = list(csv.DictReader(stream))


PROTOCOLS = {"mujoco": MUJOCO, "bullet": BULLET}


def is_left_out(row: dict[str, str]) -> bool:
    """What neither the paper nor CORL use: no reference scores, bullet mazes, and antmaze's withdrawn first files."""
    name = row["dataset"]
    return not row["ref_min_score"] or name.startswith("bullet-maze2d") or name in RETIRED


@pytest.mark.parametrize("row", [row for row in PUBLISHED if not is_left_out(row)], ids=lambda row: row["dataset"])
def test_a_data_set_is_as_d4rl_publishes_it(row: dict[str, str]) -> None:
    entry = DATASETS[row["dataset"]]
    task = TASKS[entry.task]
    assert (task.family, task.protocol, entry.url) == (row["family"], PROTOCOLS[row["simulator"]], row["url"])
    assert task.horizon == int(row["max_episode_steps"])
    assert task.reference.minimum == float(row["ref_min_score"])
    assert task.reference.maximum == float(row["ref_max_score"])


def test_the_catalog_has_nothing_of_d4rl_that_is_not_published() -> None:
    published = {row["dataset"] for row in PUBLISHED if not is_left_out(row)}
    assert {name for name, entry in DATASETS.items() if TASKS[entry.task].protocol != MINARI} == published


def test_every_data_set_of_the_paper_is_there_and_its_protocol_is_named() -> None:
    for name in DATASETS:
        expected = BULLET if name.startswith("bullet-") else MINARI if name.startswith("minari-") else MUJOCO
        assert TASKS[DATASETS[name].task].protocol == expected


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_parts_of_an_observation_are_all_of_it(name: str) -> None:
    task = TASKS[name]
    assert sum(size for _, size in task.observation_parts) == task.observation_dim


def test_ants_files_have_111_numbers_and_its_simulator_27() -> None:
    ant = TASKS["ant"]
    assert (ant.observation_dim, ant.observation_dim + ant.appendix_dim) == (27, 111)
    padded = ant.with_zeros(84)
    assert (padded.observation_dim, padded.zero_dims) == (111, 84)
    assert padded.without_zeros() == ant


def test_the_normalized_score_is_0_at_the_minimum_and_100_at_the_maximum() -> None:
    hopper = TASKS["hopper"].reference
    assert hopper.normalize(hopper.minimum) == 0.0
    assert hopper.normalize(hopper.maximum) == 100.0
    assert TASKS["kitchen-mixed"].reference.normalize(1.0) == 25.0


def test_every_task_has_a_first_target_that_is_possible_within_its_horizon() -> None:
    for task in TASKS.values():
        assert task.target_returns[0] == max(task.target_returns)
        if task.family == "maze2d":
            assert task.target_returns[0] <= task.horizon
        if task.name in ("ant", "maze2d-open") or task.family == "kitchen" or task.protocol != MUJOCO:
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
        (
            DatasetSpec(name="qqq"),
            "known: ant-expert-v0, ant-expert-v2, ant-full-replay-v2 and 86 more (all: python -m",
        ),
        (DatasetSpec(name="mine", path="x"), "name its 'task' beside its 'path'"),
        (DatasetSpec(name="hopper-medium-v2", task="ant"), "belongs to task 'hopper', not 'ant'"),
        (DatasetSpec(name="mine", task="hopper"), "name its file with 'path'"),
        (
            DatasetSpec(name="mine", task="antmaze-umaze", generate=Generation()),
            "task 'antmaze-umaze' cannot record it: unknown behaviour 'expert', known: random",
        ),
        (DatasetSpec(name="antmaze-umaze-v0"), "use 'antmaze-umaze-v2'"),
        (DatasetSpec(name="antmaze-large-play-v1"), "D4RL withdrew it"),
    ],
)
def test_a_wrong_data_set_is_told_with_its_cure(dataset: DatasetSpec, message: str) -> None:
    with pytest.raises(SpecError) as error:
        task_of(dataset)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "protocol"),
    [
        (DatasetSpec(name="hopper-medium-v2"), "d4rl-mujoco"),
        (DatasetSpec(name="mine", task="hopper", path="x.hdf5"), "d4rl-mujoco"),
        (DatasetSpec(name="mine", task="hopper", generate=Generation(behaviour="medium")), "made"),
        (DatasetSpec(name="hopper-medium-v2", task="hopper", generate=Generation(behaviour="random")), "made"),
        (DatasetSpec(name="mine", task="minari-hopper", generate=Generation(behaviour="random")), "made-minari"),
    ],
)
def test_data_that_dmray_records_have_a_protocol_of_their_own(dataset: DatasetSpec, protocol: str) -> None:
    assert protocol_of(dataset) == protocol


def test_a_data_set_that_cannot_be_recorded_has_no_protocol() -> None:
    with pytest.raises(SpecError, match="did you mean 'medium'"):
        protocol_of(DatasetSpec(name="mine", task="hopper", generate=Generation(behaviour="medum")))
