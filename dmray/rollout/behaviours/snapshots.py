"""The snapshots of a search for a policy, and which of them are called medium and expert.

A file has, for S snapshots in the order of the search, the arrays `weights` (S, A, O), `mean` and `std` (S, O) of the
observations up to then (`std` is infinite for a number that never changed), `returns` (S,), the mean return of the
policy with the noise of recordings, `env_steps` (S,), and `about`: JSON with the task, the method, its settings and
seed, and the versions it was made with.

Shapes: S snapshots, N policies, A `action_dim`, O `observation_dim`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from dmray.errors import EngineError
from dmray.tasks import Task

MEDIUM_PROGRESS = 0.4  # of the way from the first snapshot's return to the best; D4RL's medium policies: 0.4 to 0.8
_FOLDER = Path(__file__).parent
_CURE = "install dmray again, or write the file again by tools/train_behaviours.py"


@dataclass(frozen=True)
class Snapshots:
    """The policies `gains @ observation + biases`, which are clipped to the task's limit."""

    gains: np.ndarray  # (S, A, O) float64
    biases: np.ndarray  # (S, A) float64
    returns: np.ndarray  # (S,)
    env_steps: np.ndarray  # (S,) int64, ascending
    about: Mapping[str, Any]

    @property
    def expert(self) -> int:
        """The snapshot with the highest return."""
        return int(self.returns.argmax())

    @property
    def medium(self) -> int:
        """The first snapshot that has come `MEDIUM_PROGRESS` of the way from the first one's return to the best."""
        first, best = self.returns[0], self.returns.max()
        return int(np.flatnonzero(self.returns >= first + MEDIUM_PROGRESS * (best - first))[0])

    @property
    def used(self) -> list[int]:
        """The snapshots that recordings need: those up to `medium`, and `expert`."""
        return sorted({*range(self.medium + 1), self.expert})

    def at(self, env_steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gains (N, A, O) and biases (N, A) of the search after `env_steps` (N,), linear between two snapshots."""
        after = np.searchsorted(self.env_steps, env_steps).clip(1, len(self.env_steps) - 1)
        before = after - 1
        part = (env_steps - self.env_steps[before]) / (self.env_steps[after] - self.env_steps[before])
        gains = self.gains[before] + part[:, None, None] * (self.gains[after] - self.gains[before])
        return gains, self.biases[before] + part[:, None] * (self.biases[after] - self.biases[before])


def snapshot_file(task: Task) -> Path:
    """The file of `task` in dmray, whether it exists or not."""
    return _FOLDER / f"{task.name}.npz"


def load_snapshots(task: Task, path: Path | None = None) -> Snapshots:
    """Read the snapshots for `task`: those of dmray, or those at `path`.

    Raises:
        EngineError: there are none, or the file is damaged or another task's.
    """
    path = snapshot_file(task) if path is None else path
    if not path.is_file():
        brought = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.npz")))
        raise EngineError(f"{path}: no such file, so '{task.name}' has no policy to record; there are {brought}")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("weights", "mean", "std", "returns", "env_steps")}
            about = json.loads(str(file["about"]))
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile, ZlibError) as cause:
        raise EngineError(f"{path}: cannot be read ({cause}); {_CURE}") from cause
    if problem := _problem(arrays, about, task):
        raise EngineError(f"{path}: {problem}; {_CURE}")
    gains, biases = linear_policies(arrays["weights"], arrays["mean"], arrays["std"])
    return Snapshots(gains, biases, arrays["returns"], arrays["env_steps"], about)


def linear_policies(weights: np.ndarray, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains (S, A, O) and biases (S, A) of policies on standardised observations: a file's arrays."""
    gains = weights.astype(np.float64) / std.astype(np.float64)[:, None]
    return gains, -(gains * mean.astype(np.float64)[:, None]).sum(axis=-1)


def _problem(arrays: Mapping[str, np.ndarray], about: Any, task: Task) -> str | None:
    """Why the arrays of a file are no snapshots for `task`; None if they are."""
    if not isinstance(about, dict) or about.get("task") != task.name:
        return f"'about' does not say that it is for '{task.name}'"
    count, inputs = len(arrays["returns"]) if arrays["returns"].ndim else 0, task.observation_dim
    shapes = {
        "weights": (count, task.action_dim, inputs),
        "mean": (count, inputs),
        "std": (count, inputs),
        "returns": (count,),
        "env_steps": (count,),
    }
    for name, shape in shapes.items():
        if arrays[name].dtype.kind not in "fi" or arrays[name].shape != shape:
            return f"'{name}' is {arrays[name].dtype} {arrays[name].shape}, not numbers {shape}"
        if name != "std" and not np.isfinite(arrays[name]).all():
            return f"'{name}' has a value that is not finite"
    if not (arrays["std"] > 0).all():
        return "'std' has a value that is not above 0"
    if count < 2 or not (np.diff(arrays["env_steps"]) > 0).all():
        return "'env_steps' must have two snapshots or more, in ascending order"
    if arrays["returns"].argmax() == 0:
        return "no snapshot has a higher return than the first"
    return None
