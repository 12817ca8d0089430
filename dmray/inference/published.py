"""Weights that dmray did not train, as a policy: the authors' files, and folders of Hugging Face's transformers.

The files have weights alone. What else a policy needs is given or read from a data set: the task, the mean and the
deviation of the states, the context length, the divisor of returns-to-go.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dmray.datasets import Statistics, action_deviations
from dmray.errors import CheckpointError, SpecError
from dmray.files import cache_folder, is_regular_file, user_path
from dmray.inference.policy import Policy
from dmray.inference.weight_files import CONFIG, SAFETENSORS, read_safetensors, read_weights
from dmray.methods import METHODS, ActionInput
from dmray.policies import SequencePolicy, from_authors, snapshot
from dmray.policies.huggingface import from_huggingface
from dmray.registry import lookup, short, short_repr
from dmray.sources import open_dataset
from dmray.specs import DatasetSpec, EvaluationSpec, TrainingSpec, TrialSpec
from dmray.tasks import DATASETS, TASKS, Task, task_of

PICKLED = "pytorch_model.bin"
_WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class PublishedSettings:
    """What the files do not have. None: of the task (`return_scale`), of the model's config, else the published value.

    `data`: the name of a published data set, or a file in D4RL's layout, whose statistics the policy was trained with;
    `statistics` instead: a file with the arrays `mean` and `std` (.npz, or .json with two lists).
    """

    task: str
    data: str | None = None
    statistics: str | None = None
    context_length: int | None = None
    return_scale: float | None = None
    n_head: int | None = None
    action_input: str | None = None


@dataclass(frozen=True)
class PublishedPolicy(Policy):
    """A policy of published weights. Its trial has the settings that it is evaluated with, and was never run."""

    source: str = ""

    def __str__(self) -> str:
        return f"{self.method.upper()} with the weights of {self.source}"


def is_huggingface_folder(source: str) -> bool:
    """Whether `source` is a folder with a config.json."""
    path = user_path(source)
    return is_regular_file(path / CONFIG)


def load_huggingface(folder: str, settings: PublishedSettings) -> PublishedPolicy:
    """The policy of a folder that `DecisionTransformerModel.save_pretrained` wrote.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model, or the sizes are not those of the task.
        SpecError: a setting is wrong or missing. DatasetError: the data set cannot be read.
    """
    path, task = user_path(folder), _task(settings)
    try:
        config = json.loads(read_weights(path / CONFIG))
    except (ValueError, RecursionError) as cause:
        raise CheckpointError(f"{path / CONFIG}: not JSON ({cause}); download the file again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / CONFIG}: holds {type(config).__name__}, not settings; download the file again")
    weights = path / (SAFETENSORS if (path / SAFETENSORS).exists() else PICKLED)
    if not weights.exists():
        raise CheckpointError(f"{path}: neither {SAFETENSORS} nor {PICKLED}; download the model into the folder")
    try:
        network = from_huggingface(
            config,
            read_safetensors(weights) if weights.name == SAFETENSORS else _unpickled(weights),
            context_length=settings.context_length,
            action_limit=task.action_limit,
            return_scale=_return_scale(settings, task),
        )
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from None
    return _policy(network, task, settings, path)


def load_authors(files: Mapping[str, str], method: str, settings: PublishedSettings) -> PublishedPolicy:
    """The policy of state dicts that the published code saved.

    `files`: a file for each stage of the method, by the stage's name ("action"; for HDT and HDM also "subgoal"); or one
    under "", which for methods with two stages has both state dicts, by the stages' names.

    Raises:
        CheckpointError, SpecError, DatasetError: as `load_huggingface`.
    """
    METHODS.find(method, SpecError)
    stages = tuple(stage.target.value for stage in METHODS[method].stages)
    for name in files:
        if name and name not in stages:
            raise SpecError(f"stage '{short(name)}': method '{method}' has {' and '.join(stages)}")
    task = _task(settings)
    loaded = {name: _unpickled(user_path(file)) for name, file in files.items()}
    if "" in loaded:
        one: Any = loaded.pop("")
        loaded |= dict(one) if set(one) == set(stages) else {stages[0]: one} if len(stages) == 1 else {}
    if missing := [stage for stage in stages if stage not in loaded]:
        raise SpecError(
            f"method '{method}' has {len(stages)} networks, and there is no file of '{missing[0]}'; give "
            + " and ".join(f"{stage}=FILE" for stage in stages)
        )
    place = user_path(next(iter(files.values())))
    try:
        network = from_authors(
            method,
            loaded,
            n_head=settings.n_head,
            context_length=settings.context_length or 20,
            action_input=cast(ActionInput, "paper" if settings.action_input is None else settings.action_input),
            action_limit=task.action_limit,
            return_scale=_return_scale(settings, task) if METHODS[method].takes_target else settings.return_scale,
        )
    except CheckpointError as problem:
        raise CheckpointError(f"{place}: {problem}") from None
    return _policy(network, task, settings, place)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A state dict that `torch.save` wrote; no code of the file is run."""
    content = read_weights(path)
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as cause:  # torch's parser of an untrusted file raises anything
        raise CheckpointError(
            f"{path}: not a state dict that torch.save wrote ({type(cause).__name__}); save the network's state_dict()"
        ) from cause
    if isinstance(loaded, dict) and len(inside := [name for name in _WRAPPERS if isinstance(loaded.get(name), dict)]):
        loaded = loaded[inside[0]]
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path}: holds a {type(loaded).__name__}, not a state dict; save the network's state_dict()"
        )
    return loaded


def _task(settings: PublishedSettings) -> Task:
    return lookup("task", settings.task, TASKS, SpecError)


def _return_scale(settings: PublishedSettings, task: Task) -> float:
    return task.return_scale if settings.return_scale is None else settings.return_scale


def _policy(network: SequencePolicy, task: Task, settings: PublishedSettings, place: Path) -> PublishedPolicy:
    fitted, dataset = _fitted(task, network, place), _dataset(settings, task, place)
    mean, std, action_std = _statistics(settings, dataset, task)
    width = network.recipe.shape.observation_dim
    if mean.shape != (width,) or std.shape != (width,):
        raise SpecError(
            f"the statistics are of {mean.shape} and {std.shape} numbers, but the weights of {place} take states of "
            f"{width}; give the data set or the statistics that they were trained with"
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise SpecError("the statistics: not all numbers are finite, or a deviation is not above 0")
    network.set_statistics(mean.astype(np.float32), std.astype(np.float32))
    recipe = network.recipe
    trial = TrialSpec(
        dataset=dataset,
        method=recipe.method,
        model=recipe.model,
        seed=0,
        training=TrainingSpec(action_input=recipe.action_input),
        evaluation=EvaluationSpec(return_scale=recipe.return_scale, target_returns=task.target_returns),
    )
    return PublishedPolicy(trial, snapshot(network), fitted, 0, action_std=action_std, source=str(place))


def _fitted(task: Task, network: SequencePolicy, place: Path) -> Task:
    """The task with the observation size of the weights."""
    shape = network.recipe.shape
    missing = shape.observation_dim - task.observation_dim
    fitted = task.with_zeros(missing) if task.appendix_dim and missing == task.appendix_dim else task
    if (shape.observation_dim, shape.action_dim) != (fitted.observation_dim, fitted.action_dim):
        raise CheckpointError(
            f"{place}: the weights take states of {shape.observation_dim} numbers and give actions of "
            f"{shape.action_dim}, but task '{task.name}' has {task.observation_dim} and {task.action_dim}; name the "
            "task that they were trained for"
        )
    return fitted


def _dataset(settings: PublishedSettings, task: Task, place: Path) -> DatasetSpec:
    """A name for what the weights were trained on; with a path if the data are the user's file."""
    if settings.data is not None and settings.data in DATASETS:
        dataset = DatasetSpec(name=settings.data)
        if task_of(dataset).name != task.name:
            raise SpecError(f"data {settings.data}: is of task '{task_of(dataset).name}', not of '{task.name}'")
        return dataset
    path = settings.data or str(place)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem).strip("-._")[:60] or "published"
    return DatasetSpec(name=f"{name}-weights" if name in DATASETS else name, task=task.name, path=path)


def _statistics(
    settings: PublishedSettings, dataset: DatasetSpec, task: Task
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...] | None]:
    """Mean and deviation of the states, and the deviation of the actions if the data are given."""
    if (settings.data is None) == (settings.statistics is None):
        both = "both are given" if settings.data is not None else "neither is given"
        raise SpecError(
            "the files have no mean and deviation of the states: give either the data set that they were trained on "
            f"(--data hopper-medium-v2, or a file) or a file with both (--statistics FILE); {both}"
        )
    if settings.statistics is None:
        episodes = open_dataset(dataset, task, cache_folder() / "recordings").episodes
        found = Statistics.of(episodes)
        return found.mean, found.std, action_deviations(episodes)
    path = user_path(settings.statistics)
    try:
        if path.suffix == ".json":
            values = json.loads(read_weights(path))
            return np.asarray(values["mean"], np.float64), np.asarray(values["std"], np.float64), None
        with np.load(path) as arrays:
            return np.asarray(arrays["mean"], np.float64), np.asarray(arrays["std"], np.float64), None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as cause:
        raise SpecError(
            f"statistics {path}: give a .npz or .json file with the arrays mean and std ({short_repr(str(cause))})"
        ) from None
