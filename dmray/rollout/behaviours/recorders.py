"""What is recorded with the snapshots of a search, in the mixtures of D4RL's locomotion data.

* `medium`, `expert`: episodes of one snapshot (see `Snapshots.medium`, `Snapshots.expert`).
* `medium-expert`: half of the transitions of each, as the two are recorded alone; medium first.
* `medium-replay`: episodes of the search from its first policy to `medium`, each at a moment that is drawn uniformly
  from its steps, so the returns lie between those of the two. (D4RL's holds what its search saw up to then.)

Each action has Gaussian noise of `ACTION_NOISE`, because D4RL's policies are random too. An episode follows from its
seed alone: its start, its moment and its noise.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np

from dmray.datasets import RecordedTransitions
from dmray.rollout.behaviours.snapshots import Snapshots, load_snapshots
from dmray.rollout.cohorts import Cohort, EvaluationRequest, episode_seed
from dmray.rollout.engine import Recorder
from dmray.rollout.recording import record_episodes
from dmray.specs import Generation
from dmray.tasks import Task

ACTION_NOISE = 0.05  # standard deviation, in units of the action limit; 0.1 costs halfcheetah more than half its return
_AT_ONCE = 200  # episodes in lockstep


class LinearPolicies:
    """A `Decoder`: for each row a linear policy with noise on its actions.

    `gains` (N, A, O), `biases` (N, A), one generator a row.
    """

    def __init__(self, gains: np.ndarray, biases: np.ndarray, limit: float, rngs: list[np.random.Generator]) -> None:
        self._gains, self._biases, self._limit, self._rngs = gains, biases, limit, rngs

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Decoder.decide`. A row's action does not depend on the other rows, bit for bit."""
        wanted = (self._gains * observations.astype(np.float64)[:, None]).sum(axis=-1) + self._biases
        noise = np.stack([rng.standard_normal(wanted.shape[1]) for rng in self._rngs])
        noisy = np.clip(wanted, -self._limit, self._limit) + self._limit * ACTION_NOISE * noise
        actions: np.ndarray = np.clip(noisy, -self._limit, self._limit).astype(np.float32)
        return actions

    def keep(self, rows: np.ndarray) -> None:
        """See `Decoder.keep`."""
        self._gains, self._biases = self._gains[rows], self._biases[rows]
        self._rngs = [self._rngs[row] for row in rows.tolist()]

    def subgoals(self) -> None:
        """Linear policies have none."""


class _Part(NamedTuple):
    """Episodes of the search between two moments, in environment steps. `stream`: each has starts of its own."""

    stream: int
    first: int
    last: int
    transitions: int


def record_snapshots(task: Task, generation: Generation) -> RecordedTransitions:
    """Whole episodes of the behaviour that `generation` names (see above); decided by its seed, bit for bit.

    Raises:
        EngineError: dmray has no policies for `task`.
    """
    snapshots, count = load_snapshots(task), generation.transitions
    steps = snapshots.env_steps.tolist()
    start, medium, expert = steps[0], steps[snapshots.medium], steps[snapshots.expert]
    parts = {
        "medium": [_Part(0, medium, medium, count)],
        "expert": [_Part(1, expert, expert, count)],
        "medium-expert": [_Part(0, medium, medium, ceil(count / 2)), _Part(1, expert, expert, max(1, count // 2))],
        "medium-replay": [_Part(2, start, medium, count)],
    }
    return RecordedTransitions.joined(
        [_record(task, snapshots, part, generation.seed) for part in parts[generation.behaviour]]
    )


def _record(task: Task, snapshots: Snapshots, part: _Part, seed: int) -> RecordedTransitions:
    request = EvaluationRequest(task, 0, episode_seed(seed, part.stream), "", (None,), _AT_ONCE)

    def policies(cohort: Cohort) -> LinearPolicies:
        rngs = [np.random.default_rng([episode_seed(request.seed, row.index), 1]) for row in cohort.rows]
        moments = np.array([rng.uniform(part.first, part.last) for rng in rngs])
        return LinearPolicies(*snapshots.at(moments), task.action_limit, rngs)

    return record_episodes(policies, request, part.transitions)


RECORDERS: dict[str, Recorder] = dict.fromkeys(("medium", "expert", "medium-expert", "medium-replay"), record_snapshots)
