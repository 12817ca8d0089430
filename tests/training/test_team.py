"""Two processes that train as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from dmray.errors import TeamError
from dmray.training import Team
from tests.training.trainers import numbers, trainer_of, weights

STEPS = 4


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers saw."""
    folder = tmp_path_factory.mktemp("team")
    torch.multiprocessing.spawn(_work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_team_takes_the_steps_of_one_process(team: list[dict[str, Any]]) -> None:
    alone = trainer_of("hdm")
    for step in range(STEPS):
        seen = numbers(alone.step())
        for worker in team:
            assert worker["metrics"][step] == pytest.approx(seen, rel=1e-4), f"step {step}"
    for worker in team:
        torch.testing.assert_close(worker["weights"], weights(alone), rtol=1e-4, atol=1e-6)


def test_all_workers_hold_the_same_weights_bit_for_bit(team: list[dict[str, Any]]) -> None:
    assert torch.equal(team[0]["weights"], team[1]["weights"])


def test_the_leader_dismisses_the_others_and_who_leaves_is_missed(team: list[dict[str, Any]]) -> None:
    assert "dismissed" in team[1]["dismissed"]
    assert "gone" in team[0]["left"]


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    team, seen = Team(), {"metrics": [], "dismissed": "", "left": ""}
    trainer = trainer_of("hdm", team=team)
    team.meet()
    seen["metrics"] = [numbers(trainer.step()) for _ in range(STEPS)]
    seen["weights"] = weights(trainer)
    if team.leads:
        team.dismiss()
        try:
            team.meet()
        except TeamError as error:
            seen["left"] = str(error)
    else:
        try:
            trainer.step()
        except TeamError as error:
            seen["dismissed"] = str(error)
    torch.save(seen, folder / f"{rank}.pt")
