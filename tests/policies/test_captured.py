"""Decisions on a GPU, where the network over whole windows is a CUDA graph; on a CPU it is called as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dmray.policies import SequencePolicy, make_decoder
from dmray.policies.captured import CapturedPrediction
from dmray.specs import MethodName
from dmray.training import be_deterministic
from tests.policies.windows import METHODS, tiny_policy

ROWS, STEPS, ENDS = 5, 14, 9  # episodes, timesteps, the timestep after which two episodes are left


def decisions(policy: SequencePolicy) -> list[np.ndarray]:
    draw, decoder, rows = np.random.default_rng(0), make_decoder(policy, "window", ROWS), np.arange(ROWS)
    taken = []
    for t in range(STEPS):
        observations = draw.standard_normal((ROWS, policy.recipe.shape.observation_dim)).astype(np.float32)
        returns = draw.standard_normal(ROWS).astype(np.float32)
        taken.append(decoder.decide(observations[rows], returns[rows]))
        if t == ENDS:
            rows = np.array([3, 1])
            decoder.keep(rows)
    return taken


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_decisions_on_a_gpu_are_those_on_a_cpu_also_after_episodes_ended(method: MethodName) -> None:
    be_deterministic(False)  # as an evaluation does: no LSTM in TF32
    policy = tiny_policy(method)
    expected = decisions(policy)
    for ours, theirs in zip(decisions(policy.to("cuda")), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_on_a_cpu_the_network_gets_the_rows_that_are_there() -> None:
    seen: list[Tensor] = []

    def predict(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return 2 * inputs

    inputs = torch.ones(2, 3)
    assert torch.equal(CapturedPrediction(predict, rows=4)(inputs), 2 * inputs)
    assert seen[0] is inputs
