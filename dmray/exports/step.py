"""A policy as a function: `action, state = step(observation, return_to_go, state)`, for files that act without dmray.

The state of a row that is all zeros is that of an episode's start, so rows may be at different timesteps, and a row
begins a new episode when its state is set to zeros. All values outside are raw.

Shapes: B rows, K context_length, n tokens per timestep, W width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dmray.errors import SpecError
from dmray.fields import Field, Token
from dmray.models.explicit import ExplicitNetwork, State
from dmray.policies import SequenceModel, SequencePolicy

TIMESTEP = "timestep"
Known = dict[Field, Tensor]  # the encoded fields of this timestep that are known so far, (B, dim)


class PolicyStep(nn.Module):
    """One timestep of a policy in decode mode `window` or `recurrent`. `state_shapes`: without rows, by name.

    `timestep` () is int64, all other tensors are float32. `past_<field>` has the encoded values of the last timesteps,
    the latest first. `window`: `tokens_<stage>` has the embedded tokens of the last K timesteps, the first one first.
    `recurrent`: `<stage>_<name>` are the tensors of the stage's network.

    Raises:
        SpecError: the policy cannot be exported in this mode.
    """

    def __init__(self, policy: SequencePolicy, decode: str) -> None:
        super().__init__()
        self.policy, self.takes_target = policy, policy.takes_target
        self.stages = [cast(SequenceModel, stage) for stage in policy.stages]
        self._context, shape = policy.recipe.model.context_length, policy.recipe.shape
        self._lags: dict[Field, int] = {}
        for token in (token for stage in self.stages for token in stage.layout.tokens if token.lag):
            self._lags[token.field] = max(token.lag, self._lags.get(token.field, 0))
        self.state_shapes: dict[str, tuple[int, ...]] = {TIMESTEP: ()}
        self.state_shapes |= {f"past_{field}": (lag, shape.dim(field)) for field, lag in self._lags.items()}
        self._modes = [_mode(policy, stage, decode) for stage in self.stages]
        for stage, mode in zip(self.stages, self._modes, strict=True):
            self.state_shapes |= {_named(stage, name): of for name, of in mode.state_shapes().items()}

    def start(self, rows: int) -> State:
        """The state of `rows` episodes that begin."""
        types = {name: torch.int64 if name == TIMESTEP else torch.float32 for name in self.state_shapes}
        return {name: torch.zeros(rows, *shape, dtype=types[name]) for name, shape in self.state_shapes.items()}

    def forward(self, observation: Tensor, return_to_go: Tensor | None, state: State) -> tuple[Tensor, State]:
        """The actions (B, A) for observations (B, S) and returns-to-go (B,), and the next state."""
        policy, timestep = self.policy, state[TIMESTEP]
        now = {Field.STATE: policy.encode(Field.STATE, observation)}
        if return_to_go is not None:
            now[Field.RETURN_TO_GO] = policy.encode(Field.RETURN_TO_GO, return_to_go[:, None])
        new: State = {TIMESTEP: timestep + 1}
        for stage, mode in zip(self.stages, self._modes, strict=True):
            own = {name: state[_named(stage, name)] for name in mode.state_shapes()}
            hidden, own = mode.see(self._embedded(stage, now, state), timestep, own)
            now[stage.layout.target] = stage.read(hidden)
            new |= {_named(stage, name): value for name, value in own.items()}
        for stage, mode in zip(self.stages, self._modes, strict=True):
            own = {name: new[_named(stage, name)] for name in mode.state_shapes()}
            own = mode.complete(self._embedded(stage, now, state), timestep, own)
            new |= {_named(stage, name): value for name, value in own.items()}
        for field in self._lags:
            past = state[f"past_{field}"]
            new[f"past_{field}"] = torch.cat([now[field][:, None], past[:, :-1]], dim=1)
        return now[Field.ACTION], {name: new[name] for name in self.state_shapes}

    def _embedded(self, stage: SequenceModel, now: Known, state: State) -> Tensor:
        """The tokens (B, n, W) of this timestep; what is not known yet is zeros, which no prediction depends on."""
        values = {token: self._value(token, now, state)[:, None] for token in stage.layout.tokens}
        return stage.embed(values, state[TIMESTEP][:, None])[:, 0]

    def _value(self, token: Token, now: Known, state: State) -> Tensor:
        """The encoded values (B, dim) of a token; before an episode's start they are encoded zeros."""
        dim = self.policy.recipe.shape.dim(token.field)
        if token.lag == 0:
            return now[token.field] if token.field in now else torch.zeros_like(now[Field.STATE][:, :1]).expand(-1, dim)
        before = self.policy.encode(token.field, torch.zeros(dim))
        known = (state[TIMESTEP] >= token.lag)[:, None]
        return torch.where(known, state[f"past_{token.field}"][:, token.lag - 1], before)


class _Window:
    """The last K timesteps of a stage, from the left; those that have not been are zeros, after all others."""

    def __init__(self, stage: SequenceModel, network: ExplicitNetwork | None, context: int) -> None:
        self._layout, self._context, self._width = stage.layout, context, len(stage.norm.weight)
        self._forward = stage.backbone if network is None else network.forward

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"tokens": (self._context, len(self._layout.tokens), self._width)}

    def see(self, embedded: Tensor, timestep: Tensor, state: State) -> tuple[Tensor, State]:
        """The output (B, W) at the token `read_at` of this timestep, and the window that has it."""
        moved = torch.roll(state["tokens"], -1, dims=1)
        full = (timestep >= self._context)[:, None, None, None]
        window = self._with(torch.where(full, moved, state["tokens"]), embedded, timestep)
        outputs = self._forward(window.flatten(1, 2)).unflatten(1, (self._context, len(self._layout.tokens)))
        read = outputs[:, :, self._layout.read_at]
        return (read * self._now(timestep)[:, :, None]).sum(1), {"tokens": window}

    def complete(self, embedded: Tensor, timestep: Tensor, state: State) -> State:
        """The window with all tokens of this timestep."""
        return {"tokens": self._with(state["tokens"], embedded, timestep)} if self._layout.has_late_tokens else state

    def _with(self, window: Tensor, embedded: Tensor, timestep: Tensor) -> Tensor:
        return torch.where(self._now(timestep)[:, :, None, None], embedded[:, None], window)

    def _now(self, timestep: Tensor) -> Tensor:
        """(B, K): the place of this timestep."""
        return torch.arange(self._context) == timestep.clamp(max=self._context - 1)[:, None]


class _Recurrent:
    """The network's own state. Tokens after `read_at` are seen when the action is decided."""

    def __init__(self, stage: SequenceModel, network: ExplicitNetwork) -> None:
        self._read_at, self._network = stage.layout.read_at, network
        self._has_more = len(stage.layout.tokens) > self._read_at + 1

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._network.state_shapes())

    def see(self, embedded: Tensor, timestep: Tensor, state: State) -> tuple[Tensor, State]:
        outputs, after = self._network.advance(embedded[:, : self._read_at + 1], state)
        return outputs[:, -1], after

    def complete(self, embedded: Tensor, timestep: Tensor, state: State) -> State:
        return self._network.advance(embedded[:, self._read_at + 1 :], state)[1] if self._has_more else state


def _mode(policy: SequencePolicy, stage: SequenceModel, decode: str) -> _Window | _Recurrent:
    backbone = policy.method.backbone
    network = backbone.explicit(stage.backbone) if backbone.explicit is not None else None
    if decode == "window":
        return _Window(stage, network, policy.recipe.model.context_length)
    if decode != "recurrent":
        raise SpecError(f"decode {decode}: only window and recurrent can be exported; give --decode window")
    if network is None:
        raise SpecError(
            f"decode recurrent: backbone '{backbone.name}' of method '{policy.recipe.method}' has no state of a fixed "
            "size, so it cannot be exported; give --decode window"
        )
    return _Recurrent(stage, network)


def _named(stage: SequenceModel, name: str) -> str:
    return f"{stage.layout.target}_{name}"
