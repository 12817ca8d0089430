"""Acting with a network, for callers with an environment of their own: step by step, or from windows of an episode.

Shapes: E episodes, B windows, T timesteps of one episode each, S observation_dim, A action_dim; raw values, float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dmray.errors import SpecError
from dmray.policies import SequencePolicy, make_decoder


class Rollout:
    """Episodes under way, all at the same timestep. Made by `Policy.start`; holds the history and the returns-to-go.

    `live` (E,) int: which of the episodes that were started the rows of the arrays are. `returns_to_go` (E,) float64:
    what is left of each target return, raw; zeros for methods that take no target.
    """

    def __init__(
        self, network: SequencePolicy, decode: str, target_returns: np.ndarray, *, zero_dims: int, single: bool
    ) -> None:
        """`target_returns` (E,), one an episode. `single`: one episode, whose arrays have no first axis."""
        self._network, self._zero_dims, self._single = network, zero_dims, single
        self._decoder = make_decoder(network, decode, len(target_returns))
        self.live = np.arange(len(target_returns))
        self.returns_to_go = target_returns.astype(np.float64)
        self.timestep = 0

    def act(self, observations: ArrayLike, rewards: ArrayLike | None = None) -> np.ndarray:
        """The actions (E, A) float32 for `observations` (E, S) of the live episodes; moves to the next timestep.

        `rewards` (E,): what the last actions were paid; the first call takes none. A single episode (`Policy.start`
        without a number) takes (S,) and a number, and gives (A,).

        After a SpecError the rollout is as before the call.

        Raises:
            SpecError: an array has another shape or is not finite, rewards are missing, every episode has ended, or
                the episode outlasts the policy's longest.
            FloatingPointError: the policy decided an action that is not finite.
        """
        longest = self._network.recipe.shape.max_timesteps
        if self.timestep >= longest:
            raise SpecError(f"timestep {self.timestep}: this policy acts for at most {longest} timesteps an episode")
        if not self.live.size:
            raise SpecError("every episode has ended; begin new ones with policy.start")
        states, returns_to_go = self._observations(observations), self._returns_after(rewards)
        actions = self._decoder.decide(states, returns_to_go)
        self.returns_to_go = returns_to_go
        if not np.isfinite(actions).all():
            raise FloatingPointError(f"timestep {self.timestep}: the policy decided an action that is not finite")
        self.timestep += 1
        return actions[0] if self._single else actions

    def drop(self, ended: ArrayLike) -> np.ndarray:
        """Leave out the live episodes that have ended, (E,) bool; gives the positions (E',) of those that go on.

        The next call of `act` takes the observations and rewards of those that go on, in the same order.

        Raises:
            SpecError: `ended` has another shape.
        """
        mask = np.atleast_1d(np.asarray(ended, dtype=bool))
        if mask.shape != self.live.shape:
            raise SpecError(f"ended: shape {mask.shape}, but this rollout takes {self.live.shape}")
        going: np.ndarray = np.flatnonzero(~mask)
        if going.size < self.live.size:
            self._decoder.keep(going)
            self.live, self.returns_to_go = self.live[going], self.returns_to_go[going]
        return going

    @property
    def subgoals(self) -> np.ndarray | None:
        """The raw subgoals (E, S) that the last actions were decided for; None for methods without, or before `act`."""
        subgoals = self._decoder.subgoals()
        return subgoals[0] if subgoals is not None and self._single else subgoals

    def _observations(self, given: ArrayLike) -> np.ndarray:
        values = _numbers("observations", given)
        values = values[None] if self._single else values
        width = self._network.recipe.shape.observation_dim
        if self._zero_dims and values.shape[1:] == (width - self._zero_dims,):  # as the simulator shows them
            values = np.pad(values, ((0, 0), (0, self._zero_dims)))
        if values.shape != (len(self.live), width):
            expected = (width,) if self._single else (len(self.live), width)
            raise SpecError(f"observations: shape {np.shape(given)}, but this rollout takes {expected}")
        return _finite("observations", values)

    def _returns_after(self, rewards: ArrayLike | None) -> np.ndarray:
        """The returns-to-go with `rewards` subtracted."""
        if rewards is None:
            if self.timestep > 0 and self._network.takes_target:
                raise SpecError("rewards: missing; this policy is told how much of its target return is left")
            return self.returns_to_go
        if self.timestep == 0:
            raise SpecError("rewards: nothing was done yet; the first call of act takes observations alone")
        values = np.atleast_1d(_numbers("rewards", rewards, np.float64))
        if values.shape != self.live.shape:
            raise SpecError(f"rewards: shape {values.shape}, but this rollout takes {self.live.shape}")
        _finite("rewards", values)
        return self.returns_to_go - values if self._network.takes_target else self.returns_to_go


def act_on_windows(
    network: SequencePolicy,
    observations: ArrayLike,
    actions: ArrayLike,
    returns_to_go: ArrayLike | None = None,
    *,
    decode: str = "window",
    first_timestep: int = 0,
) -> np.ndarray:
    """The actions (B, A) float32 for the last timestep of each window, as an evaluation with `decode` decides them.

    `observations` (B, T, S), the present one last; `actions` (B, T, A), what was done at each (the last one is not
    read); `returns_to_go` (B, T), for methods that take a target. The windows are shown to the decoder from their
    first timestep on. So with an episode from its start the decision is that of an evaluation. For windows that begin
    later, `first_timestep` is the timestep that they begin at, and what was before counts as nothing.

    Raises:
        SpecError: an array is missing, has another shape or is not finite, the episode would outlast the policy's
            longest, or there is no such decode mode.
    """
    shape = network.recipe.shape
    states = _numbers("observations", observations)
    if states.ndim != 3 or 0 in states.shape:
        raise SpecError(f"observations: shape {states.shape}, but windows are (B, T, S), with B and T at least 1")
    rows, steps = states.shape[:2]
    _array("observations", states, (rows, steps, shape.observation_dim))
    _finite("observations", states)
    done = _array("actions", actions, (rows, steps, shape.action_dim))
    _finite("actions", done[:, :-1])
    left = np.zeros((rows, steps), np.float32)
    if network.takes_target:
        if returns_to_go is None:
            raise SpecError("returns_to_go: missing; this policy is told how much of its target return is left")
        left = _finite("returns_to_go", _array("returns_to_go", returns_to_go, (rows, steps)))
    if not 0 <= first_timestep <= shape.max_timesteps - steps:
        longest = shape.max_timesteps
        raise SpecError(f"first_timestep {first_timestep} and {steps} timesteps: episodes have at most {longest}")
    decoder = make_decoder(network, decode, rows, first_timestep)
    for t in range(steps - 1):
        decoder.decide(states[:, t], left[:, t], done[:, t])
    return decoder.decide(states[:, -1], left[:, -1])


def _array(name: str, given: ArrayLike, shape: Sequence[int]) -> np.ndarray:
    values = _numbers(name, given)
    if values.shape != tuple(shape):
        raise SpecError(f"{name}: shape {values.shape}, but this policy takes {tuple(shape)} (windows, timesteps, ...)")
    return values


def _numbers(name: str, given: ArrayLike, dtype: type = np.float32) -> np.ndarray:
    try:
        return np.asarray(given, dtype=dtype)
    except (TypeError, ValueError) as cause:
        raise SpecError(f"{name}: not an array of numbers: {cause}") from cause


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise SpecError(f"{name}: not all numbers are finite")
    return values
