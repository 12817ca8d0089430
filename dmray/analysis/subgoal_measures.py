"""What the subgoals of HDT and HDM are: how far they are from their labels and from where the episode then goes.

All states are z-scored here, with the mean and the deviation of the data set that the policy was trained on. The
distance of two states is the root of the mean, over their dimensions, of the squared difference.

A subgoal is measured on windows of the data set, where its label is known: the high network gets the states and the
labels of the last context_length timesteps (teacher forcing, as in training) and predicts the subgoal of the last one.
As the label before is one of its inputs, it is also measured what is predicted when the network gets its own
subgoals back, as in an evaluation, while the states and actions are those of the data.

A small distance by itself says little: a label stays for many timesteps, and the state where the episode is now is
always near the next one. So everything is measured for the labels and for four baselines, too: the label of the
timestep before, a random later state of the same episode, the data set's mean state, and the present state.

`States` is anything that gives z-scored states for rows, an array or `ScaledStates`.

Shapes: P points (timesteps of the data set), N transitions, S observation_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from dmray.datasets import Episodes, WindowSampler
from dmray.errors import DatasetError
from dmray.policies import SequencePolicy, make_decoder

PREDICTED, FED_BACK, LABEL = "prediction", "prediction, fed back", "label"
PREVIOUS, LATER, MEAN, PRESENT = "previous label", "random later state", "mean state", "present state"
BASELINES = (PREVIOUS, LATER, MEAN, PRESENT)
REFERENCES = (LABEL, *BASELINES)
SOURCES = (PREDICTED, FED_BACK, *REFERENCES)
_BATCH = 256


@dataclass(frozen=True)
class Points:
    """Timesteps of a data set, in stretches of consecutive ones. The last timestep of an episode is none of them."""

    rows: np.ndarray  # (P,) int64, in the data set
    stretch: np.ndarray  # (P,) int64, the number of the stretch
    episode: np.ndarray  # (P,) int64
    starts: np.ndarray  # (P,) int64, the first row of the episode
    ends: np.ndarray  # (P,) int64, the row after the last one of the episode

    def __len__(self) -> int:
        return len(self.rows)


class Measured(NamedTuple):
    """The subgoals of one source at all points of a data set.

    `to_label`, `to_visited`: the mean distance to the label, and to the nearest state of the next timesteps. `reached`:
    the share whose distance to a state of the next timesteps is at most the radius. `different`: how many subgoals are
    left if those within the radius of an earlier one count as that one. `held`: timesteps until the subgoal has moved
    by more than the radius, on average.
    """

    to_label: float
    to_visited: float
    reached: float
    different: int
    held: float


class States(Protocol):
    """States of a data set by their rows."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """The z-scored states (P, S) of rows (P,)."""


class ScaledStates:
    """The z-scored states of a data set, computed for the rows that are asked for."""

    def __init__(self, observations: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        self._observations, self._mean, self._std = observations, mean, std

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.scaled(self._observations[rows])

    def scaled(self, states: np.ndarray) -> np.ndarray:
        """Raw states (..., S), z-scored."""
        found: np.ndarray = (states.astype(np.float64) - self._mean) / self._std
        return found


def draw_points(episodes: Episodes, stretches: int, length: int, seed: int) -> Points:
    """`stretches` stretches of up to `length` timesteps, each of an episode of its own where there are as many.

    Episodes are drawn uniformly, and the first timestep is uniform in the episode. The last timestep of an episode is
    left out: nothing is visited after it, and its label is the episode's first state.

    Raises:
        DatasetError: no episode has two timesteps.
    """
    draw = np.random.default_rng(seed)
    usable = np.flatnonzero(episodes.lengths > 1)
    if not usable.size:
        raise DatasetError("no episode of the data set has two timesteps, so no state is visited after a subgoal")
    chosen = draw.choice(usable, stretches, replace=stretches > len(usable))
    parts = []
    for number, episode in enumerate(chosen.tolist()):
        steps = int(episodes.lengths[episode]) - 1
        first = int(draw.integers(max(0, steps - length) + 1))
        rows = episodes.starts[episode] + np.arange(first, min(first + length, steps))
        parts.append((rows, np.full(len(rows), number), np.full(len(rows), episode)))
    rows, stretch, episode = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Points(rows, stretch, episode, episodes.starts[episode], episodes.starts[episode + 1])


def predicted_states(policy: SequencePolicy, episodes: Episodes, points: Points) -> np.ndarray:
    """The raw states (P, S) float32 that the policy predicts as subgoals at the points; in evaluation mode."""
    sampler = WindowSampler(
        episodes, policy.tokens, context_length=policy.recipe.model.context_length, batch_size=_BATCH
    )
    ends = torch.from_numpy(points.rows - points.starts + 1)
    firsts = (ends - policy.recipe.model.context_length).clamp(min=0)
    numbers = torch.from_numpy(points.episode)
    found = []
    with torch.inference_mode():
        for start in range(0, len(points), _BATCH):
            batch = slice(start, start + _BATCH)
            windows = sampler.between(numbers[batch], firsts[batch], ends[batch])
            last = windows.valid.sum(dim=1) - 1
            found.append(policy.predict_subgoals(windows)[torch.arange(len(last)), last])
    states: np.ndarray = torch.cat(found).float().numpy()
    return states


def fed_back_states(policy: SequencePolicy, decode: str, episodes: Episodes, points: Points) -> np.ndarray:
    """As `predicted_states`, but the policy gets its own subgoals back. It sees the data's states and actions.

    It begins context_length timesteps before each stretch, or at the start of the episode if that is later.
    """
    begins = np.flatnonzero(np.diff(points.stretch, prepend=-1))
    lengths = np.diff(begins, append=len(points))
    before = np.minimum(points.rows[begins] - points.starts[begins], policy.recipe.model.context_length)
    first_rows = points.rows[begins] - before
    returns = episodes.returns_to_go() if policy.takes_target else np.zeros(episodes.num_transitions, np.float32)
    decoder = make_decoder(policy, decode, len(begins), first_rows - points.starts[begins])
    found = np.empty((len(points), policy.recipe.shape.observation_dim), np.float32)
    live = np.arange(len(begins))
    for step in range(int((before + lengths).max())):
        running = np.flatnonzero(step < (before + lengths)[live])
        if running.size < live.size:
            decoder.keep(running)
            live = live[running]
        rows = first_rows[live] + step
        decoder.decide(episodes.observations[rows], returns[rows], episodes.actions[rows])
        subgoals = decoder.subgoals()
        assert subgoals is not None, "the policy predicts subgoals"
        measured = step >= before[live]
        found[(begins + step - before)[live[measured]]] = subgoals[measured]
    return found


def reference_subgoals(
    states: ScaledStates, label_rows: np.ndarray, points: Points, seed: int
) -> dict[str, np.ndarray]:
    """The z-scored subgoals (P, S) of each of `REFERENCES`.

    `label_rows` (N,): the row of each timestep's label (`subgoal_rows`). Before the first label of an episode there is
    the zero state, as in training.
    """
    before = states[label_rows[np.maximum(points.rows - 1, points.starts)]]
    before[points.rows == points.starts] = states.scaled(np.zeros(before.shape[1]))
    later = np.random.default_rng(seed).integers(points.rows + 1, points.ends)
    return {
        LABEL: states[label_rows[points.rows]],
        PREVIOUS: before,
        LATER: states[later],
        MEAN: np.zeros_like(before),
        PRESENT: states[points.rows],
    }


def measure(subgoals: np.ndarray, labels: np.ndarray, visited: np.ndarray, points: Points, radius: float) -> Measured:
    """`subgoals`, `labels` (P, S), z-scored; `visited` (P,): `nearest_visited` of the subgoals."""
    return Measured(
        to_label=float(distance(subgoals, labels).mean()),
        to_visited=float(visited.mean()),
        reached=float((visited <= radius).mean()),
        different=count_different(subgoals, radius),
        held=float(holding_times(subgoals, points.stretch, radius).mean()),
    )


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The root of the mean squared difference over the last axis."""
    between: np.ndarray = np.sqrt(np.square(np.asarray(first, np.float64) - second).mean(axis=-1))
    return between


def nearest_visited(subgoals: np.ndarray, states: States, points: Points, within: int) -> np.ndarray:
    """The distance (P,) of each subgoal to the nearest state that its episode visits in the next `within` timesteps."""
    nearest = np.full(len(points), np.inf)
    for step in range(1, within + 1):
        later = np.minimum(points.rows + step, points.ends - 1)  # at the episode's end its last state again
        nearest = np.minimum(nearest, distance(subgoals, states[later]))
    return nearest


def default_radius(states: States, points: Points, within: int) -> float:
    """Half of the median distance of two states of an episode that are `within` timesteps apart (less at its end).

    So a subgoal that is reached is told apart from where the episode is `within` timesteps before.

    Raises:
        DatasetError: the states do not differ.
    """
    later = np.minimum(points.rows + within, points.ends - 1)
    radius = float(np.median(distance(states[points.rows], states[later]))) / 2
    if not radius > 0:
        raise DatasetError(
            f"most states of the data set do not change within {within} timesteps, so there is no radius at which a "
            "subgoal counts as reached; give one with --radius"
        )
    return radius


def count_different(subgoals: np.ndarray, radius: float) -> int:
    """How many subgoals are farther than `radius` from each earlier one that counts itself; (P, S), in their order."""
    counted = np.empty((0, subgoals.shape[1]))
    for subgoal in subgoals.astype(np.float64):
        if not (distance(counted, subgoal) <= radius).any():
            counted = np.vstack([counted, subgoal])
    return len(counted)


def holding_times(subgoals: np.ndarray, stretch: np.ndarray, radius: float) -> np.ndarray:
    """How many timesteps each subgoal is held: until one is farther than `radius` from it, which is held then.

    The last one of a stretch counts with its timesteps up to the end of the stretch.
    """
    times: list[int] = []
    for number in np.unique(stretch):
        path = subgoals[stretch == number]
        start = 0
        while start < len(path):
            left = np.flatnonzero(distance(path[start:], path[start]) > radius)
            held = int(left[0]) if left.size else len(path) - start
            times.append(held)
            start += held
    return np.array(times)


def reach_curve(visited: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The share of subgoals that are reached at each of `radii`, from their `nearest_visited`."""
    share: np.ndarray = (visited[:, None] <= radii).mean(axis=0)
    return share
