"""A trial whose steps two processes take together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed
import torch.multiprocessing

from dmray.records import AttemptStarted, EvaluationDone, TrainProgress, read_ledger
from dmray.training import Team
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.following import follow_trial
from dmray.trial.run import run_trial
from tests.trial.jobs import job

PLAIN = {"grid": [{"methods": ["hdm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4, "dropout": 0.0}]}]}


def test_a_trial_of_two_workers_is_that_of_one_up_to_rounding(tmp_path: Path) -> None:
    alone, shared = (job(tmp_path / name, "hdm", **PLAIN) for name in ("alone", "shared"))
    run_trial(alone, InlineEvaluation())
    torch.multiprocessing.spawn(_work, (tmp_path,), nprocs=2)
    ledgers = [read_ledger(each.folder.ledger) for each in (alone, shared)]
    (started,) = [record for record in ledgers[1] if isinstance(record, AttemptStarted)]
    assert started.provenance["workers"] == 2
    losses = [[r.loss for r in ledger if isinstance(r, TrainProgress)] for ledger in ledgers]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    steps = [[r.step for r in ledger if isinstance(r, EvaluationDone)] for ledger in ledgers]
    assert steps[1] == steps[0]
    assert shared.folder.done.exists()


def _work(rank: int, storage: Path) -> None:
    """The trial, and once more when it is done already: the leader returns at once, and nobody waits for ever."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{storage}/meeting", rank=rank, world_size=2)
    for _ in range(2):
        team, shared = Team(), job(storage / "shared", "hdm", **PLAIN)
        if team.leads:
            run_trial(shared, InlineEvaluation(), team=team)
            team.dismiss()
        else:
            follow_trial(shared, team)
