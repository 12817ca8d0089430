from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from dmray.errors import EngineError
from dmray.rollout import ENGINES, make_engine
from dmray.tasks import TASKS


def test_a_family_without_an_engine_is_refused_with_those_that_have_one() -> None:
    task = replace(TASKS["hopper"], name="marsrover", family="rover", engine="rover")
    with pytest.raises(EngineError) as refused:
        make_engine(task, 1)
    message = str(refused.value)
    assert message.startswith("marsrover: the rover family has no engine here")
    assert "gymnasium (ant, halfcheetah, hopper, walker2d)" in message
    assert "maze2d (maze2d)" in message


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_has_an_engine_of_its_sizes_or_is_refused_by_name(name: str) -> None:
    if TASKS[name].engine in ENGINES:
        make_engine(TASKS[name], 1).close()
    else:
        with pytest.raises(EngineError, match=f"{name}: the .* family has no engine here"):
            make_engine(TASKS[name], 1)


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
