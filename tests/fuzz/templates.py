"""Valid inputs, from which the edges make odd ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

import dmray
from tests.sweeps import tiny_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"
MINARI_ID = "fuzz/hopper-v0"


@dataclass(frozen=True)
class Templates:
    """Valid inputs, made once in `folder`: a finished sweep of two trials, a data set of each layout."""

    folder: Path

    @property
    def sweep(self) -> Path:
        return self.folder / "runs" / "tiny"

    @property
    def minari(self) -> Path:
        return self.folder / "minari"

    @classmethod
    def make(cls, folder: Path, mlflow: bool) -> Templates:
        templates = cls(folder)
        sweep = tiny_sweep(
            folder / "runs", training={"steps": 10, "batch_size": 4}, evaluation={"episodes": 2, "every_steps": 5}
        )
        dmray.run_sweep(sweep, local=True, progress=False)
        episodes = [_minari_episode(seed) for seed in range(2)]
        credits_ = dict.fromkeys(("algorithm_name", "author", "author_email", "code_permalink", "description"), "fuzz")
        minari.create_dataset_from_buffers(MINARI_ID, episodes, env="Hopper-v5", eval_env="Hopper-v5", **credits_)
        if mlflow:  # in another process: no connection may cross a fork
            upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{folder / 'mlflow.db'}"]
            subprocess.run(upgrade, check=True, capture_output=True)
        return templates

    def trials(self, sweep: Path) -> list[Path]:
        return sorted(sweep.joinpath("trials").iterdir())

    def copy_sweep(self, to: Path) -> Path:
        shutil.copytree(self.sweep, to / "runs" / "tiny", symlinks=True)
        return to / "runs" / "tiny"


def _minari_episode(seed: int) -> EpisodeBuffer:
    rng = np.random.default_rng(seed)
    return EpisodeBuffer(
        observations=rng.normal(size=(21, 11)),
        actions=rng.uniform(-1, 1, (20, 3)).astype(np.float32),
        rewards=rng.normal(size=20),
        terminations=np.zeros(20, dtype=bool),
        truncations=np.arange(1, 21) == 20,
    )
