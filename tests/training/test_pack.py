from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from dmray.datasets import WindowSampler
from dmray.policies import SequencePolicy
from dmray.specs import MethodName, TrainingSpec
from dmray.training import Pack, StepMetrics, Trainer
from dmray.training.pack import UNCOMPILED
from tests.datasets.examples import episodes_of
from tests.policies.windows import tiny_policy

SPEC = TrainingSpec(steps=10, batch_size=3, learning_rate=1e-2, warmup_steps=4, weight_decay=0.1)
EPISODES = episodes_of([5, 9, 3], seed=0)


def policy_of(method: MethodName = "dm", seed: int = 0, **fields: Any) -> SequencePolicy:
    """A tiny policy; those of two seeds have other weights."""
    policy = tiny_policy(method, n_layer=1, **fields)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=draw))
    return policy


def sampler_of(policy: SequencePolicy, weighting: Any = "uniform") -> WindowSampler:
    return WindowSampler(EPISODES, policy.tokens, context_length=2, batch_size=3, episode_weighting=weighting)


def pack_of(method: MethodName = "dm", spec: TrainingSpec = SPEC, seats: int = 3, **fields: Any) -> Pack:
    policy = policy_of(method, **fields)
    return Pack(policy, sampler_of(policy), spec, seats)


def trainer_of(method: MethodName = "dm", seed: int = 0, spec: TrainingSpec = SPEC, **fields: Any) -> Trainer:
    policy = policy_of(method, seed, **fields)
    return Trainer(policy, sampler_of(policy), spec, seed)


def join(pack: Pack, seed: int, method: MethodName = "dm", **fields: Any) -> int:
    return pack.join(seed, SPEC.learning_rate, policy_of(method, seed, **fields).state_dict())


WITH_AND_WITHOUT_DROPOUT = pytest.mark.parametrize(("method", "fields"), [("dm", {}), ("dt", {"dropout": 0.3})])


def steps(trainer: Trainer, count: int) -> Tensor:
    """(steps, 2, stages)"""
    return torch.stack([torch.stack([*trainer.step()]) for _ in range(count)])


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two trainers' states are equal bit for bit."""
    moments = all(
        torch.equal(left["optimizer"][number][name], value)
        for number, values in right["optimizer"].items()
        for name, value in values.items()
    )
    weights = all(torch.equal(left["policy"][name], value) for name, value in right["policy"].items())
    draws = all(torch.equal(left[name], right[name]) for name in ("sampler_generator", "torch_rng"))
    return moments and weights and draws and left["step"] == right["step"]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention on a CPU
@pytest.mark.parametrize("method", ["dm", "hdm", "dt", "bc"])
def test_a_seat_takes_the_steps_of_its_own_trainer(method: MethodName) -> None:
    pack = pack_of(method)
    seats = [join(pack, seed, method) for seed in (4, 5)]
    metrics = pack.advance(seats, 5)
    for seat, seed in zip(seats, (4, 5), strict=True):
        trainer = trainer_of(method, seed)
        torch.testing.assert_close(metrics[:, seat], steps(trainer, 5), rtol=1e-4, atol=1e-5)
        ours, theirs = pack.state_dict(seat), trainer.state_dict()
        assert torch.equal(ours["sampler_generator"], theirs["sampler_generator"])
        assert list(ours["policy"]) == list(theirs["policy"])
        # where a gradient is only rounding (the bias of attention's keys), AdamW makes it a step
        tolerance = {"rtol": 1e-3, "atol": 2e-3 if method == "dt" else 1e-5}
        torch.testing.assert_close(ours["policy"], theirs["policy"], **tolerance)
        assert ours["step"] == theirs["step"]
        assert torch.equal(ours["torch_rng"], torch.Generator().manual_seed(seed).get_state())


@pytest.mark.parametrize("changes", [{"loss_mean": "all"}, {"warmup_steps": 0}])
def test_a_seat_follows_the_fields_of_training(changes: dict[str, Any]) -> None:
    spec = SPEC.model_copy(update=changes)
    pack, trainer = pack_of(spec=spec), trainer_of(seed=2, spec=spec)
    seat = join(pack, 2)
    torch.testing.assert_close(pack.advance([seat], 3)[:, seat], steps(trainer, 3), rtol=1e-4, atol=1e-5)


def test_adamw_and_clipping_are_those_of_torch_to_rounding() -> None:
    """With gradients that are clipped in one stage and not in the other, and a decay that shows."""
    spec = SPEC.model_copy(update={"grad_clip": 100.0, "weight_decay": 0.5})
    pack, trainer = pack_of("hdm", spec), trainer_of("hdm", 7, spec)
    seat = join(pack, 7, "hdm")
    metrics = pack.advance([seat], 3)[:, seat]
    assert (metrics[:, 1].amax(0) > 100).any()
    assert (metrics[:, 1].amin(0) < 100).any()
    torch.testing.assert_close(metrics, steps(trainer, 3), rtol=1e-4, atol=1e-5)
    ours, theirs = pack.state_dict(seat)["optimizer"], trainer.state_dict()["optimizer"]
    assert ours.keys() == theirs.keys()
    for number in theirs:
        torch.testing.assert_close(ours[number], theirs[number], rtol=1e-3, atol=1e-7)


@WITH_AND_WITHOUT_DROPOUT
def test_a_seats_numbers_do_not_depend_on_its_neighbours(method: MethodName, fields: dict[str, Any]) -> None:
    """Alone, with one, with others that join late, leave, diverge and rest, and in another seat: equal bit for bit."""
    alone, crowded = pack_of(method, **fields), pack_of(method, **fields)
    enter = partial(join, method=method, **fields)
    seat = enter(alone, 1)
    expected = torch.cat([alone.advance([seat], 2), alone.advance([seat], 4)])[:, seat]

    other = enter(crowded, 2)
    mine = enter(crowded, 1)
    assert mine != seat
    got = [crowded.advance([other, mine], 2)]
    crowded.leave(other)
    broken = {name: torch.full_like(value, torch.nan) for name, value in alone.weights(seat).items()}
    diverged = crowded.join(9, 1e30, broken)
    resting = enter(crowded, 3)
    before = crowded.state_dict(resting)
    got += [crowded.advance([diverged, mine], 1), crowded.advance([mine], 3)]
    assert torch.equal(torch.cat(got)[:, mine], expected)
    assert same(crowded.state_dict(mine), alone.state_dict(seat))
    assert same(crowded.state_dict(resting), before), "a seat that took no step has changed"
    assert not torch.cat(got)[2, diverged].isfinite().all()


@WITH_AND_WITHOUT_DROPOUT
def test_a_trial_that_leaves_and_joins_again_continues_bit_for_bit(method: MethodName, fields: dict[str, Any]) -> None:
    pack = pack_of(method, **fields)
    enter = partial(join, method=method, **fields)
    seat = enter(pack, 1)
    pack.advance([seat], 2)
    state = pack.state_dict(seat)
    expected = pack.advance([seat], 3)[:, seat]
    pack.leave(seat)
    assert enter(pack, 8) == seat, "a free seat is given again"
    pack.advance([seat], 1)
    again = enter(pack, 1)
    pack.load_state_dict(again, state)
    assert torch.equal(pack.advance([again], 3)[:, again], expected)


@pytest.mark.parametrize("method", ["dm", "hdm"])
def test_a_packed_run_continues_unpacked_and_an_unpacked_one_packed(method: MethodName) -> None:
    trainer = trainer_of(method, 1)
    steps(trainer, 2)
    pack = pack_of(method)
    seat = join(pack, 5, method)  # another trial's weights, which the state replaces
    pack.load_state_dict(seat, trainer.state_dict())
    back = trainer_of(method, 6)
    packed, unpacked = pack.advance([seat], 2)[:, seat], steps(trainer, 2)
    torch.testing.assert_close(packed, unpacked, rtol=1e-4, atol=1e-5)
    back.load_state_dict(pack.state_dict(seat))
    torch.testing.assert_close(steps(back, 2), steps(trainer, 2), rtol=1e-4, atol=1e-5)
    assert back.learning_rate == trainer.learning_rate


def test_each_seat_has_its_own_learning_rate() -> None:
    pack = pack_of()
    fast, slow = (pack.join(1, rate, policy_of().state_dict()) for rate in (1e-2, 0.0))
    pack.advance([fast, slow], 2)
    start = policy_of().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in pack.weights(slow).items())
    assert not all(torch.equal(value, start[name]) for name, value in pack.weights(fast).items())


@pytest.mark.parametrize("method", ["dt", "hdt", "bc"])
def test_dropout_in_a_pack_is_that_of_a_trainer_with_the_masks_of_the_seat(method: MethodName) -> None:
    pack = pack_of(method, dropout=0.3)
    seats = {seed: join(pack, seed, method, dropout=0.3) for seed in (4, 5)}
    metrics = pack.advance(seats.values(), 4)
    shapes = {name.removesuffix(".kept").removeprefix("policy."): x[0].shape for name, x in pack._masks.buffers.items()}
    for seed, seat in seats.items():
        trainer, drawn = trainer_of(method, seed, dropout=0.3), torch.Generator().manual_seed(seed)
        modules, taken = dict(trainer.policy.named_modules()), []
        for _ in range(4):
            kept = torch.ones(sum(map(prod, shapes.values())), dtype=torch.bool).bernoulli_(0.7, generator=drawn)
            for (name, shape), part in zip(shapes.items(), kept.split([*map(prod, shapes.values())]), strict=True):
                modules[name].kept = part.view(shape)
            taken.append(steps(trainer, 1))
        torch.testing.assert_close(metrics[:, seat], torch.cat(taken), rtol=1e-4, atol=1e-5)
        state = pack.state_dict(seat)
        assert torch.equal(state["torch_rng"], drawn.get_state())
        assert torch.equal(state["sampler_generator"], trainer.state_dict()["sampler_generator"])
        assert list(state["policy"]) == list(trainer.policy.state_dict())


def test_a_step_drops_the_share_that_was_asked_for_and_each_step_and_seed_something_else() -> None:
    pack = pack_of("dt", dropout=0.3, d_model=32)
    seats = [join(pack, seed, "dt", dropout=0.3, d_model=32) for seed in (4, 5)]
    drawn = []
    for _ in range(2):
        pack.advance(seats, 1)
        drawn.append(pack._masks._kept[seats].clone())
    kept = torch.cat(drawn)
    assert len({tuple(row.tolist()) for row in kept}) == 4
    assert kept.double().mean().item() == pytest.approx(0.7, abs=4 * (0.3 * 0.7 / kept.numel()) ** 0.5)


def test_a_step_that_cannot_be_compiled_is_taken_uncompiled_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(function: object, **options: object) -> Callable[..., Tensor]:
        def call(*given: object) -> Tensor:
            raise torch._dynamo.exc.Unsupported("a graph break")

        return call

    plain, policy = pack_of(), policy_of()
    monkeypatch.setattr(torch, "compile", unsupported)
    pack = Pack(policy, sampler_of(policy), SPEC, 3, compiled=True)
    assert torch.equal(pack.advance([join(pack, 1)], 2), plain.advance([join(plain, 1)], 2))
    assert not pack.compiled
    assert [record.message for record in caplog.records] == [f"{UNCOMPILED}: a graph break"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@WITH_AND_WITHOUT_DROPOUT
def test_the_whole_step_compiles_without_a_graph_break(
    monkeypatch: pytest.MonkeyPatch, method: MethodName, fields: dict[str, Any]
) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **kw: compile_(function, backend="eager", **kw))
    policies = [policy_of(method, **fields) for _ in range(2)]
    sampler = WindowSampler(EPISODES, policies[0].tokens, context_length=1, batch_size=3)  # fewer operations to trace
    plain, pack = (
        Pack(policy, sampler, SPEC, 2, compiled=compiled)
        for policy, compiled in zip(policies, (False, True), strict=True)
    )
    enter = partial(join, seed=1, method=method, **fields)
    assert torch.equal(pack.advance([enter(pack)], 2), plain.advance([enter(plain)], 2))
    assert pack.compiled


def test_frozen_decay_rates_stay_and_a_step_size_without_weight_has_none_in_its_state() -> None:
    for evolution in ("frozen", "constant-step"):
        pack = pack_of(evolution=evolution)
        seat, before = join(pack, 3, evolution=evolution), policy_of(seed=3, evolution=evolution).state_dict()
        pack.advance([seat], 2)
        after = pack.weights(seat)
        assert list(after) == list(before)
        rates = [name for name in after if name.endswith("A_log")]
        assert all(torch.equal(after[name], before[name]) for name in rates) == (evolution == "frozen")


def test_metrics_of_several_steps_have_a_norm_each() -> None:
    metrics = StepMetrics(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert metrics.grad_norm.tolist() == [5.0, 1.0]
