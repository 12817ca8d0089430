"""What the rows of every data set must be, whatever file they come from, and how rows become episodes.

Each reader calls `check_numbers` and `as_flags` on what it finds, and makes its episodes with `episodes_of`.

Shapes: N transitions, E episodes, S observation_dim, A action_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmray.datasets.episodes import WARNING, Episodes
from dmray.datasets.subtask_rewards import Subtask, first_reward_only, has_per_step_subtask_rewards, reward_arrivals
from dmray.errors import DatasetError

_BLOCK_ROWS = 65_536  # what is looked at in one piece, so that a check needs no second array of the file's size
_MUCH = 0.05  # a larger share of rows that is dropped is a warning
_KINDS = {
    "b": "true or false",
    "c": "complex numbers",
    "S": "text",
    "U": "text",
    "O": "text or objects of any length",
    "V": "compound values",
    "M": "dates",
    "m": "durations",
}

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]  # a float32 array of that name and shape, to be filled


def in_memory(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The usual `Allocate`."""
    del name
    return np.empty(shape, dtype=np.float32)


@dataclass(frozen=True)
class FileRules:
    """What a file of a task must hold and how its rows become episodes.

    antmaze does not split on terminals: its rewards are relabelled, and an episode may have many terminals.

    `appendix_dim`: the observation may have so many numbers more than `observation_dim` (ant's contact forces). They
    are dropped if no row differs in them, else kept.

    `pay_once`: subtasks that evaluation pays once each. Where a file pays for every step at which they are done
    (kitchen), its rewards are rewritten to what evaluation would have paid.

    `ends_at_first_reward`: evaluation ends an episode at its first reward (antmaze), so the later rewards of an episode
    become zero.
    """

    observation_dim: int
    action_dim: int
    horizon: int
    split_on_terminals: bool = True
    keep_unfinished: bool = False  # rows after the last end: D4RL's own readers drop them
    appendix_dim: int = 0
    pay_once: tuple[Subtask, ...] = ()
    ends_at_first_reward: bool = False


@dataclass(frozen=True)
class Rows:
    """The transitions of a source, end to end."""

    observations: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N, A) float32
    rewards: np.ndarray  # (N,) float32
    terminals: np.ndarray  # (N,) bool
    timeouts: np.ndarray | None  # (N,) bool; None where the source has none


def check_numbers(where: str, dtype: np.dtype[Any]) -> None:
    """Check that values of the type can be read as float32; `where` names file and array.

    Raises:
        DatasetError: they are text, true or false, complex, compound or objects.
    """
    if dtype.kind not in "fiu":
        kind = _KINDS.get(dtype.kind, "another type")
        raise DatasetError(f"{where} must be numbers, but they are {kind} ({dtype}); write them as float32")


def check_flags(where: str, dtype: np.dtype[Any]) -> None:
    """Check that values of the type can be flags; `where` names file and array.

    Raises:
        DatasetError: they are text, complex, compound or objects.
    """
    if dtype.kind not in "bfiu":
        kind = _KINDS.get(dtype.kind, "another type")
        raise DatasetError(f"{where} must be 0 or 1, but they are {kind} ({dtype}); write them as bool")


def as_flags(where: str, values: np.ndarray) -> np.ndarray:
    """`values` (N,) as bool; `where` names file and array.

    Raises:
        DatasetError: a value is neither 0 nor 1 (nor false nor true); the message names its row.
    """
    check_flags(where, values.dtype)
    if values.dtype.kind == "b":  # a file's byte may be neither 0 nor 1
        values = np.ascontiguousarray(values).view(np.uint8)
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(f"{where} row {row} is {values[row]}, not 0 or 1; write whether an episode ends there")
    return values.astype(bool)


def check_finite(where: str, array: np.ndarray) -> None:
    """Check that all of `array` (N, ...) is finite; `where` names file and array.

    Raises:
        DatasetError: a value is not; the message names its row.
    """
    for start in range(0, len(array), _BLOCK_ROWS):
        block = array[start : start + _BLOCK_ROWS]
        finite = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise DatasetError(f"{where} row {row} is not finite; remove its episode, or fetch the file again")


def episodes_of(source: str, rows: Rows, rules: FileRules, notes: tuple[str, ...] = ()) -> Episodes:
    """The episodes of `rows`; what is dropped, assumed or rewritten on the way is added to `notes`.

    Raises:
        DatasetError: a value is not finite, no episode ends, or the rewards of an episode add up to more than float32
            holds. `source` is the beginning of the message.
    """
    for name in ("observations", "actions", "rewards"):
        check_finite(f"{source}: {name}", getattr(rows, name))
    count = len(rows.rewards)
    starts = episode_starts(rows.terminals, rows.timeouts, rules)
    if len(starts) < 2:
        raise DatasetError(
            f"{source}: no episode ends in its {count:,} rows (terminals, timeouts); set timeouts to true at the last "
            "row of each episode"
        )
    end = int(starts[-1])
    observations, actions, rewards = (
        array if end == count else array[:end] for array in (rows.observations, rows.actions, rows.rewards)
    )
    _check_sums(source, rewards, starts)
    notes = (*notes, *_notes_on_ends(rows, starts, rules))
    if rules.pay_once and has_per_step_subtask_rewards(rewards, starts, rules.pay_once):
        rewards[:] = reward_arrivals(observations, rewards, starts, rules.pay_once)
        notes = (*notes, "rewards: paid once for each subtask, as evaluation pays; the file pays at every step")
    if rules.ends_at_first_reward:
        first = first_reward_only(rewards, starts)
        if (first != rewards).any():
            rewards[:] = first
            notes = (*notes, "rewards: an episode's first one alone, at which evaluation ends; the file pays on")
    return Episodes(observations, actions, rewards, starts, notes)


def episode_starts(terminals: np.ndarray, timeouts: np.ndarray | None, rules: FileRules) -> np.ndarray:
    """Where episodes start, and where the last one ends, (E + 1,) int64; every reader splits by this function.

    An episode ends where `timeouts` says so and, if the rules split on them, where `terminals` does. Without timeouts
    it ends after the horizon at the latest.
    """
    count = len(terminals)
    ends = terminals.copy() if rules.split_on_terminals else np.zeros(count, dtype=bool)
    if timeouts is not None:
        ends |= timeouts
    marks = np.concatenate([[0], np.flatnonzero(ends) + 1])
    if timeouts is None:
        last = np.append(marks[1:], count)
        cuts = [np.arange(first, end + 1, rules.horizon) for first, end in zip(marks, last, strict=True)]
        marks = np.unique(np.concatenate([marks, *cuts]))
    if rules.keep_unfinished and marks[-1] < count:
        marks = np.append(marks, count)
    return marks.astype(np.int64)


def _notes_on_ends(rows: Rows, starts: np.ndarray, rules: FileRules) -> list[str]:
    """What the split into episodes had to assume or to drop."""
    notes, count = [], len(rows.rewards)
    if rows.timeouts is None:
        notes.append(f"timeouts: there are none, so episodes are cut after {rules.horizon:,} steps, the task's horizon")
    dropped = count - int(starts[-1])
    if dropped:
        mark = WARNING if dropped > _MUCH * count else ""
        share = f"{dropped / count:.1%}" if dropped >= count / 1000 else "less than 0.1%"
        notes.append(
            f"{mark}rows: the last {dropped:,} of {count:,} ({share}) belong to no episode that ends, and are dropped"
        )
    lengths = np.diff(starts)
    longer = int((lengths > rules.horizon).sum())
    if longer:
        never = rows.timeouts is not None and not rows.timeouts.any()
        notes.append(
            f"{WARNING if never else ''}episodes: {longer:,} of {len(lengths):,} have more than the {rules.horizon:,} "
            f"steps of an evaluation (the longest {int(lengths.max()):,})"
            + (", and no timeout is set: are episodes joined that were cut?" if never else "")
        )
    return notes


def _check_sums(source: str, rewards: np.ndarray, starts: np.ndarray) -> None:
    """Check that returns-to-go fit into float32."""
    most = float(np.finfo(np.float32).max)
    largest = max(float(rewards.max()), -float(rewards.min()))
    if largest * float(np.diff(starts).max()) <= most:  # as always: a look at each episode is not needed
        return
    sums = np.add.reduceat(np.abs(rewards), starts[:-1], dtype=np.float64)
    worst = int(sums.argmax())
    if sums[worst] > most:
        raise DatasetError(
            f"{source}: the rewards of episode {worst} (from row {int(starts[worst])}) add up to {sums[worst]:.3g}, "
            "more than float32 holds; remove the episode, or fetch the file again"
        )
