from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import make_engine
from dmray.tasks import TASKS


def test_a_family_without_an_engine_is_refused_with_those_that_have_one() -> None:
    task = replace(TASKS["hopper"], name="marsrover", family="rover", engine="rover")
    with pytest.raises(EngineError) as refused:
        make_engine(task, 1)
    message = str(refused.value)
    assert message.startswith("marsrover: the rover family has no engine here")
    assert "envpool (ant, halfcheetah, hopper, walker2d)" in message
    assert "maze2d (maze2d)" in message


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_has_an_engine_of_its_sizes(name: str) -> None:
    if TASKS[name].engine == "bullet":
        pytest.importorskip("pybullet")
    make_engine(TASKS[name], 1).close()


def test_numbers_that_no_simulator_shows_are_zeros() -> None:
    bare, padded = TASKS["maze2d-umaze"], TASKS["maze2d-umaze"].with_zeros(3)
    with closing(make_engine(bare, 2)) as one, closing(make_engine(padded, 2)) as other:
        seeds, live, actions = [3, 4], np.array([1]), np.ones((1, 2), dtype=np.float32)
        np.testing.assert_array_equal(other.reset(seeds), np.pad(one.reset(seeds), ((0, 0), (0, 3))))
        expected, step = one.step(actions, live), other.step(actions, live)
        np.testing.assert_array_equal(step.observations, np.pad(expected.observations, ((0, 0), (0, 3))))
        assert step.observations.dtype == np.float32
        assert step.rewards.tolist() == expected.rewards.tolist()


def test_gymnasium_is_not_loaded_before_a_task_needs_it() -> None:
    code = """
import sys, types
policies = types.ModuleType("dmray.policies")  # torch takes seconds to load
policies.Decoder = policies.SequencePolicy = policies.make_decoder = object
sys.modules["dmray.policies"] = policies
import dmray.rollout
print("gymnasium" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
