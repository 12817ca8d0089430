from __future__ import annotations

import io
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dmray.datasets import Windows
from dmray.models.configs import Evolution
from dmray.policies import SequencePolicy, snapshot
from dmray.specs import MethodName, TrainingSpec
from dmray.training import Trainer, be_deterministic
from dmray.training.trainer import warm_up
from tests.policies.windows import random_fields, tiny_policy, windows_of
from tests.training.trainers import SPEC, RandomCuts, numbers, trainer_of, weights


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    loaded: dict[str, Any] = torch.load(stream, weights_only=True)
    return loaded


@pytest.mark.parametrize("method", ["dt", "hdm"])
def test_a_run_that_is_saved_and_loaded_continues_bit_for_bit(method: MethodName) -> None:
    first = trainer_of(method, dropout=0.3)
    for _ in range(3):
        first.step()
    state = through_a_file(first.state_dict())
    expected = [numbers(first.step()) for _ in range(3)]

    second = trainer_of(method, seed=7, dropout=0.3)
    second.step()
    second.load_state_dict(state)
    assert second.steps_done == 3
    assert [numbers(second.step()) for _ in range(3)] == expected
    assert torch.equal(weights(first), weights(second))
    assert first.learning_rate == second.learning_rate


@pytest.mark.parametrize("left_out", ["optimizer", "step", "sampler_generator", "torch_rng"])
def test_each_part_of_the_state_is_needed_to_continue(left_out: str) -> None:
    first = trainer_of("dt", dropout=0.3)
    for _ in range(2):
        first.step()
    state = through_a_file(first.state_dict())
    for _ in range(3):
        first.step()
    second = trainer_of("dt", seed=7, dropout=0.3)
    second.load_state_dict({**state, left_out: second.state_dict()[left_out]})
    for _ in range(3):
        second.step()
    assert not torch.equal(weights(first), weights(second))


def test_the_seed_decides_batches_and_dropout() -> None:
    runs = []
    for run, seed in enumerate((0, 0, 1)):
        policy = tiny_policy("dt", dropout=0.3)
        torch.manual_seed(100 + run)
        trainer = Trainer(policy, RandomCuts(policy), SPEC, seed)
        runs.append([numbers(trainer.step()) for _ in range(3)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("method", ["hdm", "hdt"])
def test_one_optimizer_with_clipping_per_stage_equals_one_optimizer_per_stage(method: MethodName) -> None:
    ours, theirs = trainer_of(method), tiny_policy(method)
    sampler, generator = RandomCuts(theirs), torch.Generator().manual_seed(0)
    optimizers = [
        torch.optim.AdamW(stage, lr=SPEC.learning_rate, weight_decay=SPEC.weight_decay, fused=True)
        for stage in theirs.stage_parameters()
    ]
    for step in range(3):
        ours.step()
        windows = sampler.sample(generator)
        for stage, optimizer in enumerate(optimizers):
            optimizer.param_groups[0]["lr"] = float(np.float32(SPEC.learning_rate * (step + 1) / SPEC.warmup_steps))
            optimizer.zero_grad()
            theirs.stage_losses(windows)[stage].backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_(theirs.stage_parameters()[stage], SPEC.grad_clip)
            optimizer.step()
    for mine, other in zip(ours.policy.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_clipping_bounds_each_stages_gradient_and_reports_it_unclipped() -> None:
    trainer = trainer_of("hdm", SPEC.model_copy(update={"grad_clip": 1e-3}))
    metrics = trainer.step()
    assert (metrics.grad_norms > 1e-3).all()
    for stage in trainer.policy.stage_parameters():
        clipped = torch.stack([p.grad.norm() for p in stage if p.grad is not None]).norm()
        assert float(clipped) == pytest.approx(1e-3, rel=1e-3)
    assert float(metrics.grad_norm) == pytest.approx(float(metrics.grad_norms.square().sum().sqrt()), rel=1e-6)


def test_the_learning_rate_rises_linearly_and_stays() -> None:
    trainer, rates = trainer_of("dm"), []
    for _ in range(6):
        rates.append(trainer.learning_rate)
        trainer.step()
    assert rates == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])


def test_without_warm_up_the_first_step_takes_the_whole_rate() -> None:
    assert [warm_up(step, 0) for step in (0, 1)] == [1.0, 1.0]


@pytest.mark.parametrize("method", ["dt", "dm", "dm+r", "hdt", "hdm"])
def test_every_method_learns_a_small_batch_by_heart(method: MethodName) -> None:
    spec = TrainingSpec(learning_rate=1e-2, weight_decay=0.0, warmup_steps=5, grad_clip=1.0)
    policy = tiny_policy(method)
    fields = {name: 0.4 * torch.tanh(values) for name, values in random_fields(2, 3).items()}
    policy.set_statistics(torch.zeros(3), torch.ones(3))
    windows = windows_of(fields, policy.tokens, 0, 4, 3)

    class SameBatch:
        def sample(self, generator: torch.Generator) -> Windows:
            return windows

    trainer = Trainer(policy, SameBatch(), spec, seed=0)
    first = trainer.step().stage_losses
    for _ in range(120):
        last = trainer.step().stage_losses
    assert (last < 0.03 * first).all(), f"{first.tolist()} -> {last.tolist()}"


@pytest.mark.parametrize("method", ["dt", "dm"])
def test_bfloat16_trains_float32_parameters_near_the_float32_loss(method: MethodName) -> None:
    exact = trainer_of(method).step()
    trainer = trainer_of(method, SPEC.model_copy(update={"dtype": "bfloat16"}))
    metrics = trainer.step()
    assert metrics.stage_losses.dtype == torch.float32
    assert numbers(metrics) == pytest.approx(numbers(exact), rel=0.05)
    assert numbers(metrics) != numbers(exact)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.policy.parameters())


def test_a_step_may_use_tf32_only_if_its_spec_says_so_and_nothing_else_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch is told; on a GPU it decides the numbers."""
    seen: list[tuple[bool, bool]] = []
    losses_of = SequencePolicy.stage_losses

    def watched(*given: Any) -> Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return losses_of(*given)

    monkeypatch.setattr(SequencePolicy, "stage_losses", watched)
    be_deterministic(False)
    for dtype in ("float32", "tf32"):
        trainer_of("dm", SPEC.model_copy(update={"dtype": dtype})).step()
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert seen == [(False, False), (True, True)]


def test_metrics_hold_no_graph() -> None:
    metrics = trainer_of("hdm").step()
    assert not metrics.stage_losses.requires_grad
    assert not metrics.grad_norms.requires_grad
    assert metrics.stage_losses.shape == metrics.grad_norms.shape == (2,)


@pytest.mark.parametrize("evolution", get_args(Evolution))
def test_training_changes_all_weights_but_frozen_decay_rates_and_the_stored_policy_acts_the_same(
    evolution: Evolution,
) -> None:
    policy = tiny_policy("dm", evolution=evolution)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    trainer = Trainer(policy, RandomCuts(policy), SPEC.model_copy(update={"weight_decay": 0.1}), seed=0)
    for _ in range(3):
        trainer.step()
    kept = {name for name, value in policy.state_dict().items() if torch.equal(value, before[name])}
    rates = {name for name in before if name.endswith("A_log")} if evolution == "frozen" else set()
    assert kept == {"state_mean", "state_std"} | rates
    windows, stored = RandomCuts(policy).sample(torch.Generator().manual_seed(3)), snapshot(policy).build()
    torch.testing.assert_close(stored.predict(windows)[0], policy.eval().predict(windows)[0], rtol=0, atol=0)
