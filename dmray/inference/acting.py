"""Act with a policy in the caller's own environment: step by step, or from windows of episodes.

Shapes: E episodes, B windows, T timesteps, S observation_dim, A action_dim. All values are raw and float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dmray.errors import SpecError
from dmray.policies import SequencePolicy, make_decoder


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

        Raises:
            SpecError: an array has the wrong shape, rewards are missing, or the episode is longer than
                `Policy.max_timesteps`.
            FloatingPointError: an action is not finite.
        """
        self._take_rewards(rewards)
        longest = self._network.recipe.shape.max_timesteps
        if self.timestep >= longest:
            raise SpecError(f"timestep {self.timestep}: this policy acts for at most {longest} timesteps an episode")
        actions = self._decoder.decide(self._observations(observations), self.returns_to_go)
        if not np.isfinite(actions).all():
            raise FloatingPointError(f"timestep {self.timestep}: the policy decided an action that is not finite")
        self.timestep += 1
        return actions[0] if self._single else actions

    def drop(self, ended: ArrayLike) -> np.ndarray:
        """Drop the live episodes that have ended, (E,) bool. Returns the positions (E',) of the others.

        The next call of `act` takes the observations and rewards of the others, in the same order.

        Raises:
            SpecError: `ended` has the wrong shape.
        """
        mask = np.atleast_1d(np.asarray(ended, dtype=bool))
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
        values = np.asarray(given, dtype=np.float32)
        values = values[None] if self._single else values
        width = self._network.recipe.shape.observation_dim
        if self._zero_dims and values.shape[-1] == width - self._zero_dims:  # as the simulator gives them
            values = np.pad(values, ((0, 0), (0, self._zero_dims)))
        if values.shape != (len(self.live), width):
            expected = (width,) if self._single else (len(self.live), width)
            raise SpecError(f"observations: shape {np.shape(given)}, but this rollout takes {expected}")
        return values

    def _take_rewards(self, rewards: ArrayLike | None) -> None:
        if self.timestep == 0 or not self._network.takes_target:
            if rewards is not None and self.timestep == 0:
                raise SpecError("rewards: there are none yet; the first call of act takes only observations")
            return
        if rewards is None:
            raise SpecError("rewards: missing; this policy needs them to compute its return-to-go")
        values = np.atleast_1d(np.asarray(rewards, dtype=np.float64))
        if values.shape != self.live.shape:
            raise SpecError(f"rewards: shape {values.shape}, but {self.live.shape} episodes are live")
        self.returns_to_go = self.returns_to_go - values


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
        SpecError: an array is missing or has the wrong shape, the window ends after `Policy.max_timesteps`, or there is
            no such decode mode.
    """
    shape = network.recipe.shape
    rows, steps = (*np.shape(observations), 0, 0)[:2]
    states = _array("observations", observations, (rows, steps, shape.observation_dim))
    done = _array("actions", actions, (rows, steps, shape.action_dim))
    left = np.zeros((rows, steps), np.float32)
    if network.takes_target:
        left = _array("returns_to_go", () if returns_to_go is None else returns_to_go, (rows, steps))
    if not 0 <= first_timestep <= shape.max_timesteps - steps:
        longest = shape.max_timesteps
        raise SpecError(f"first_timestep {first_timestep} and {steps} timesteps: episodes have at most {longest}")
    decoder = make_decoder(network, decode, rows, first_timestep)
    for t in range(steps - 1):
        decoder.decide(states[:, t], left[:, t], done[:, t])
    return decoder.decide(states[:, -1], left[:, -1])


def _array(name: str, given: ArrayLike, shape: Sequence[int]) -> np.ndarray:
    values = np.asarray(given, dtype=np.float32)
    if values.shape != tuple(shape) or 0 in shape:
        raise SpecError(f"{name}: shape {values.shape}, but this policy takes {tuple(shape)} (windows, timesteps, ...)")
    return values
