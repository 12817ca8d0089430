"""A method of your own in one file: DM's tokens on causal convolutions, compared with DM and BC on maze2d.

    python examples/own_method.py

It trains in this process. For a sweep on Ray, put `CONVOLUTIONS` and `DCONV` into a package with the entry points
`dmray.backbones` and `dmray.methods` (docs/extending.md).
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

import dmray
from dmray.fields import Field
from dmray.methods import METHODS, Layout, Method
from dmray.methods.layout import A1, S
from dmray.models import BACKBONES, Backbone, BackboneConfig
from dmray.models.group_rows import GroupRows


class ConvolutionConfig(BackboneConfig):
    """`taps`: how many tokens each layer sees, the present one included."""

    taps: PositiveInt = 6


class Convolutions(nn.Module):
    """`hidden + W relu(convolution(norm(hidden)))` per layer. Shapes: B rows, n tokens, D width."""

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        width, layers = config.d_model, range(config.n_layer)
        self.taps = config.taps
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        self.filters = nn.ParameterList(torch.randn(width, 1, self.taps) / self.taps for _ in layers)
        self.closing = nn.ModuleList(nn.Linear(width, width) for _ in layers)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._run(tokens, self.begin(len(tokens)).to(tokens))

    def last(self, tokens: Tensor) -> Tensor:
        return self(tokens)[:, -1]

    def begin(self, num_rows: int, num_groups: int = 1) -> LatestTokens:
        weight = self.filters[0]
        shape = (num_rows * num_groups, len(self.filters), self.taps - 1, len(weight))
        return LatestTokens(weight.new_zeros(shape), GroupRows(num_groups))

    def advance(self, tokens: Tensor, state: LatestTokens) -> Tensor:
        absent = state.groups.take_absent()
        if absent is None:
            return self._run(tokens, state)
        rows, skipped = absent  # tokens that the restarted group must not see
        before = self._run(tokens[:, skipped], state)
        state.seen[rows] = 0.0
        return torch.cat([before, self._run(tokens[:, skipped.stop :], state)], dim=1)

    def _run(self, hidden: Tensor, state: LatestTokens) -> Tensor:
        seen = []
        for number, (norm, filters, closing) in enumerate(zip(self.norms, self.filters, self.closing, strict=True)):
            inputs = torch.cat([state.seen[:, number], norm(hidden)], dim=1)  # (B, taps - 1 + n, D)
            seen.append(inputs[:, inputs.shape[1] - self.taps + 1 :])
            mixed = F.conv1d(inputs.transpose(1, 2), filters, groups=len(filters)).transpose(1, 2)
            hidden = hidden + closing(F.relu(mixed))
        state.seen = torch.stack(seen, dim=1)
        return hidden


class LatestTokens:
    """Each layer's latest inputs: `seen` (B, layers, taps - 1, D)."""

    def __init__(self, seen: Tensor, groups: GroupRows) -> None:
        self.seen, self.groups = seen, groups

    def restart(self, group: int, after: int = 0) -> None:
        self.seen[self.groups.restart(group, after, len(self.seen))] = 0.0

    def keep(self, rows: Tensor) -> None:
        self.seen = self.seen[self.groups.all_rows(rows, len(self.seen))]

    def to(self, tokens: Tensor) -> LatestTokens:
        return LatestTokens(self.seen.to(tokens), self.groups)


def num_parameters(config: ConvolutionConfig) -> int:
    width = config.d_model
    return config.n_layer * (2 * width + width * config.taps + width * width + width)


CONVOLUTIONS = Backbone(
    name="convolutions",
    config=ConvolutionConfig,
    build=Convolutions,
    num_parameters=num_parameters,
    flops=lambda config, tokens: 2.0 * tokens * num_parameters(config),
)
DCONV = Method(
    name="dconv",
    label="DConv",
    summary="DM's tokens on causal convolutions.",
    source="examples/own_method.py",
    backbone=CONVOLUTIONS,
    stages=(Layout((S, A1), Field.ACTION, read_at=0),),  # tokens: state, previous action; predicts from the state
    colour="#8C510A",
    marker="h",
    baselines=("dm", "bc"),
)
SIZE = {"d_model": 32, "n_layer": 2, "context_length": 5}
SWEEP = {
    "name": "own-method",
    "datasets": [{"name": "umaze", "task": "maze2d-umaze", "generate": {"behaviour": "expert", "transitions": 9000}}],
    "grid": [
        {"methods": ["dconv"], "models": [{**SIZE, "taps": 6}]},
        {"methods": ["dm", "bc"], "models": [SIZE]},
    ],
    "seeds": [0],
    "training": {"steps": 200, "batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 20},
    "evaluation": {"episodes": 10, "every_steps": 200, "decode": "recurrent"},
}


def main(storage: str = "runs") -> None:
    """Add the method, run the sweep, print the scores."""
    BACKBONES.add(CONVOLUTIONS)
    METHODS.add(DCONV)
    results = dmray.run_sweep(SWEEP, storage=storage, local=True, resume=True, mlflow_uri="off")
    print(results.scores[["method", "seeds", "last", "best"]])


if __name__ == "__main__":
    main(*sys.argv[1:])
