"""Act with a policy in the caller's own environment: step by step, or from windows of episodes.

Shapes: E episodes, B windows, T timesteps, S observation_dim, A action_dim. All values are raw and float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dmray.arguments import whole_number
from dmray.errors import SpecError
from dmray.policies import SequencePolicy, make_decoder
from dmray.registry import short


class Rollout:
    """The history and the returns-to-go of episodes that are all at the same timestep. Made by `Policy.start`.

    `live` (E,) int: the numbers of the episodes that have not been dropped; the rows of all arrays are in this order.
    `returns_to_go` (E,) float64: raw; zeros for methods that take no target return. `timestep`: the current timestep.
    """

    def __init__(
        self, network: SequencePolicy, decode: str, target_returns: np.ndarray, *, zero_dims: int, single: bool
    ) -> None:
        """`target_returns` (E,): one per episode. `single`: there is one episode, and its arrays have no first axis."""
        self._network, self._zero_dims, self._single = network, zero_dims, single
        self._decoder = make_decoder(network, decode, len(target_returns))
        self.live = np.arange(len(target_returns))
        self.returns_to_go = target_returns.astype(np.float64)
        self.timestep = 0

    def act(self, observations: ArrayLike, rewards: ArrayLike | None = None) -> np.ndarray:
        """The actions (E, A) float32 for `observations` (E, S) of the live episodes. Advances one timestep.

        `rewards` (E,): the rewards of the last actions; None in the first call. For a single episode (`Policy.start`
        without a number) the shapes are (S,), a number, and (A,).

        After a SpecError the rollout is as before the call.

        Raises:
            SpecError: an array has the wrong shape or is not finite, rewards are missing, every episode has ended, or
                the episode is longer than `Policy.max_timesteps`.
            FloatingPointError: an action is not finite.
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
        """Drop the live episodes that have ended, (E,) bool. Returns the positions (E',) of the others.

        The next call of `act` takes the observations and rewards of the others, in the same order.

        Raises:
            SpecError: `ended` has the wrong shape or is not boolean.
        """
        mask = np.atleast_1d(_array_of("ended", ended))
        if mask.dtype != bool:
            raise SpecError(f"ended: must be True or False for each live episode, not {mask.dtype}")
        if mask.shape != self.live.shape:
            raise SpecError(f"ended: shape {mask.shape}, but {self.live.shape} episodes are live")
        kept: np.ndarray = np.flatnonzero(~mask)
        if kept.size < self.live.size:
            self._decoder.keep(kept)
            self.live, self.returns_to_go = self.live[kept], self.returns_to_go[kept]
        return kept

    @property
    def subgoals(self) -> np.ndarray | None:
        """The raw subgoals (E, S) of the last actions; None before the first, and for methods without subgoals."""
        subgoals = self._decoder.subgoals()
        return subgoals[0] if subgoals is not None and self._single else subgoals

    def _observations(self, given: ArrayLike) -> np.ndarray:
        values = numbers("observations", given)
        values = values[None] if self._single else values
        width = self._network.recipe.shape.observation_dim
        if self._zero_dims and values.shape[1:] == (width - self._zero_dims,):  # as the simulator gives them
            values = np.pad(values, ((0, 0), (0, self._zero_dims)))
        if values.shape != (len(self.live), width):
            expected = (width,) if self._single else (len(self.live), width)
            raise SpecError(f"observations: shape {np.shape(given)}, but this rollout takes {expected}")
        return _finite("observations", values)

    def _returns_after(self, rewards: ArrayLike | None) -> np.ndarray:
        """The returns-to-go with `rewards` subtracted."""
        if rewards is None:
            if self.timestep > 0 and self._network.takes_target:
                raise SpecError("rewards: missing; this policy needs them to compute its return-to-go")
            return self.returns_to_go
        if self.timestep == 0:
            raise SpecError("rewards: there are none yet; the first call of act takes only observations")
        values = np.atleast_1d(numbers("rewards", rewards, np.float64))
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
    """The actions (B, A) float32 at the last timestep of each window, as in an evaluation with decode mode `decode`.

    `observations` (B, T, S): the current one is the last. `actions` (B, T, A): the actions that were taken; the last
    one is not used. `returns_to_go` (B, T): for methods that take a target return. The decoder runs over the whole
    window. So for a window from the start of an episode the action is that of an evaluation. For other windows,
    `first_timestep` is the number of their first timestep; the policy knows nothing of the timesteps before.

    Raises:
        SpecError: an array is missing, has the wrong shape or is not finite, the window ends after
            `Policy.max_timesteps`, or there is no such decode mode.
    """
    shape = network.recipe.shape
    states = numbers("observations", observations)
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
    first_timestep = whole_number("first_timestep", first_timestep, 0)
    if not 0 <= first_timestep <= shape.max_timesteps - steps:
        longest = shape.max_timesteps
        raise SpecError(f"first_timestep {first_timestep} and {steps} timesteps: episodes have at most {longest}")
    decoder = make_decoder(network, decode, rows, first_timestep)
    for t in range(steps - 1):
        decoder.decide(states[:, t], left[:, t], done[:, t])
    return decoder.decide(states[:, -1], left[:, -1])


def _array(name: str, given: ArrayLike, shape: Sequence[int]) -> np.ndarray:
    values = numbers(name, given)
    if values.shape != tuple(shape):
        raise SpecError(f"{name}: shape {values.shape}, but this policy takes {tuple(shape)} (windows, timesteps, ...)")
    return values


def numbers(name: str, given: ArrayLike, dtype: type = np.float32) -> np.ndarray:
    """`given` as an array of `dtype`.

    Raises:
        SpecError: it is not an array of real numbers; text and truth values are none.
    """
    values = _array_of(name, given)
    if values.dtype.kind not in "fiu":
        raise SpecError(f"{name}: not an array of numbers, but of {values.dtype}")
    with np.errstate(over="ignore"):  # a number that float32 cannot hold becomes infinite, which `_finite` refuses
        return values.astype(dtype, copy=False)


def _array_of(name: str, given: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as cause:  # RuntimeError: torch's
        raise SpecError(f"{name}: not an array of numbers: {short(str(cause))}") from cause


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise SpecError(f"{name}: not all numbers are finite")
    return values
