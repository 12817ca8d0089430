"""What a CUDA graph asks of a training step, held on the CPU; and the graph itself, where there is a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmray.datasets import WindowSampler
from dmray.errors import CaptureError
from dmray.specs import MethodName, TrainingSpec
from dmray.training import Trainer
from dmray.training.captured_step import CapturedStep
from tests.datasets.examples import episodes_of
from tests.policies.windows import tiny_policy

METHODS: tuple[MethodName, ...] = ("dt", "dm", "dm+r", "hdt", "hdm")
SPEC = TrainingSpec(steps=10, batch_size=3, learning_rate=1e-2, warmup_steps=4)


def on_a_gpu(test: Any) -> Any:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test))


def trainer_of(
    method: MethodName,
    weighting: Literal["uniform", "length"] = "uniform",
    device: str = "cpu",
    capture: Literal["auto", "off"] = "auto",
) -> Trainer:
    policy = tiny_policy(method, dropout=0.3).to(device)
    sampler = WindowSampler(
        episodes_of([5, 9, 3], seed=0),
        policy.tokens,
        context_length=4,
        batch_size=SPEC.batch_size,
        episode_weighting=weighting,
        device=device,
    )
    return Trainer(policy, sampler, SPEC, 0, device, capture)


class NothingReadBack(TorchDispatchMode):
    """Fails at an operation whose result's shape, or a Python number, hangs on a tensor's values: it waits for them."""

    _WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item", "unique")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in self._WAITING, f"{name} waits for the device"
        if name.startswith("index"):
            places = next((each for each in args if isinstance(each, list)), [])
            assert all(each is None or each.dtype != torch.bool for each in places), "a mask's size is read back"
        return func(*args, **(kwargs or {}))


def addresses(trainer: Trainer) -> list[int]:
    tensors: list[Tensor] = [trainer._optimizer.param_groups[0]["lr"], *trainer.policy.parameters()]
    for state in trainer._optimizer.state.values():
        tensors += state.values()
    return [tensor.data_ptr() for tensor in tensors]


@pytest.mark.parametrize("weighting", ["uniform", "length"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_nothing_back(method: MethodName, weighting: Literal["uniform", "length"]) -> None:
    trainer = trainer_of(method, weighting)
    trainer.step()  # the optimizer's tensors are made at its first
    with NothingReadBack():
        trainer.step()


def test_what_waits_for_the_device_is_noticed() -> None:
    numbers = torch.arange(3.0)
    for wait in (lambda: float(numbers[0]), lambda: numbers[numbers > 1], lambda: bool((numbers > 1).all())):
        with pytest.raises(AssertionError), NothingReadBack():
            wait()


@pytest.mark.parametrize("method", METHODS)
def test_what_lasts_from_step_to_step_stays_where_it_is(method: MethodName) -> None:
    trainer = trainer_of(method)
    trainer.step()
    before = addresses(trainer)
    weights = [parameter.detach().clone() for parameter in trainer.policy.parameters()]
    for _ in range(4):
        trainer.step()
    assert addresses(trainer) == before
    after = trainer.policy.parameters()
    assert not all(torch.equal(old, new) for old, new in zip(weights, after, strict=True)), "the addresses hold nothing"


def test_a_cpu_steps_plainly() -> None:
    assert not trainer_of("dt").captured


class RecordingGpu:
    """torch.cuda as `CapturedStep` calls it: a recorded step does nothing until it is replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda device: self)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", self._graph)
        self.device = torch.device("cpu")

    def wait_stream(self, stream: object) -> None: ...

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.events.append("generator")

    def replay(self) -> None:
        self.events.append("replay")

    def step(self) -> Tensor:
        self.events.append("step")
        return torch.zeros(2)

    @contextmanager
    def _graph(self, graph: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        self.events.append("record")
        yield


def test_some_plain_steps_come_before_the_one_recording_and_each_later_call_replays_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = RecordingGpu(monkeypatch)
    captured = CapturedStep(gpu.step, torch.Generator())
    results = [captured() for _ in range(6)]
    assert gpu.events == ["step"] * 3 + ["generator", "record", "step"] + ["replay"] * 3
    results[-1].fill_(1.0)
    assert not captured().any(), "a result is the caller's own"


def test_a_step_that_cannot_be_recorded_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = RecordingGpu(monkeypatch)

    def step() -> Tensor:
        if "record" in gpu.events:
            raise RuntimeError("operation not permitted when stream is capturing")
        return gpu.step()

    captured = CapturedStep(step, torch.Generator())
    for _ in range(3):
        captured()
    with pytest.raises(CaptureError, match=r"not permitted.*resources\.capture: off"):
        captured()


@on_a_gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_step_is_the_plain_step(method: MethodName) -> None:
    plain, captured = (trainer_of(method, device="cuda", capture=capture) for capture in ("off", "auto"))
    assert captured.captured
    assert not plain.captured
    runs = []
    for trainer in (plain, captured):
        torch.manual_seed(0)  # one generator for both, which dropout draws from
        metrics = [torch.stack([*trainer.step()]) for _ in range(10)]
        state = trainer.state_dict()
        runs.append((torch.stack(metrics), state["sampler_generator"], state["cuda_rng"]))
    (plain_metrics, *plain_draws), (captured_metrics, *captured_draws) = runs
    torch.testing.assert_close(captured_metrics, plain_metrics, rtol=1e-4, atol=1e-5)
    for mine, other in zip(captured_draws, plain_draws, strict=True):
        assert torch.equal(mine, other), "the draws are others"


@on_a_gpu
@pytest.mark.parametrize(("before", "after"), [("auto", "off"), ("off", "auto"), ("auto", "auto")])
def test_a_run_goes_on_with_or_without_capture(before: Literal["auto", "off"], after: Literal["auto", "off"]) -> None:
    whole, resumed = (trainer_of("hdt", device="cuda", capture=capture) for capture in (before, after))
    for _ in range(6):
        whole.step()
        resumed.step()  # far enough for a graph, whose addresses the state then replaces
    state = copy.deepcopy(whole.state_dict())
    expected = [whole.step() for _ in range(6)]
    resumed.load_state_dict(state)
    for metrics in expected:
        for mine, other in zip(resumed.step(), metrics, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
