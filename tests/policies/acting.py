"""Acting in every decode mode, and the same by the training's forward pass, for the tests of decoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmray.fields import Field
from dmray.policies import SequencePolicy, make_decoder
from tests.policies.windows import Fields, config_of, windows_of

CONTEXT = config_of("dm").context_length
STEPS = 3 * CONTEXT  # beyond the decoder's buffer of twice the context


def observed(fields: Fields, t: int) -> tuple[np.ndarray, np.ndarray]:
    return fields[Field.STATE][:, t].numpy(), fields[Field.RETURN_TO_GO][:, t, 0].numpy()


MODES = ("window", "stream:1", "stream:2", "stream:3", f"stream:{CONTEXT}", "recurrent")
every_mode = pytest.mark.parametrize("decode", MODES)


def first_seen(decode: str, t: int) -> int:
    """The first timestep of what a mode decides from at timestep t."""
    if decode == "recurrent":
        return 0
    if decode == "window":
        return max(0, t - CONTEXT + 1)
    streams = int(decode.removeprefix("stream:"))
    starts = [range(i * CONTEXT // streams, t + 1, CONTEXT) for i in range(streams)]
    return min(each[-1] for each in starts if each)


def act(policy: SequencePolicy, fields: Fields, steps: int, decode: str = "window") -> np.ndarray:
    """Actions (E, steps, A) for the observations and returns-to-go of `fields`."""
    decoder = make_decoder(policy, decode, len(fields[Field.STATE]))
    return np.stack([decoder.decide(*observed(fields, t)) for t in range(steps)], axis=1)


@torch.no_grad()
def act_by_training_forward(policy: SequencePolicy, given: Fields, steps: int, decode: str = "window") -> np.ndarray:
    """The same by `predict` on right-padded windows; what is not decided yet holds noise."""
    fields = {name: values.clone() for name, values in given.items()}
    for t in range(steps):
        first = first_seen(decode, t)
        for stage, layout in enumerate(policy.method.stages):
            windows = windows_of(fields, policy.tokens, first, max(CONTEXT, t - first + 1), t - first + 1)
            decided = policy.predict(windows)[stage][:, t - first]
            if layout.target is Field.SUBGOAL:
                decided = policy.subgoal_states(decided, fields[Field.STATE][:, t])
            fields[layout.target][:, t] = decided
    return fields[Field.ACTION][:, :steps].numpy()
