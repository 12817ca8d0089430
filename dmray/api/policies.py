"""Load, evaluate, draw and export policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmray.api.progress import check_progress, episode_bar
from dmray.arguments import finite_number, flag, folder_path, line, local_path, place, whole_number
from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.mlflow_mirror.policies import load_policy_of_run, mlflow_run_of
from dmray.records import TrialFolder
from dmray.redaction import without_secrets
from dmray.registry import short_repr
from dmray.tasks import Task

if TYPE_CHECKING:
    from dmray.exports import Export
    from dmray.inference import Evaluation, Policy, PolicyFunction


def load_policy(source: str | Path, *, checkpoint: str | None = None, mlflow_uri: str | None = None) -> Policy:
    """Load a trained policy. `policy.start()` acts with it; `evaluate_policy` and `draw_episodes` take it.

    `source`: a checkpoint file; a trial's folder; the URL of either in an object store; a folder that `export_policy`
    wrote with the format "safetensors"; or the id of a trial's MLflow run. `checkpoint`, for a trial's folder or an
    MLflow run: "final" or "best"; for a folder also "last", and "step:10000" where the sweep keeps it. None: the final
    weights, or for a trial that has not finished the last ones. `mlflow_uri` is the server of an MLflow run; None:
    $MLFLOW_TRACKING_URI.

        policy = dmray.load_policy(results.trial_folder(results.trials.trial_id[0]))
        rollout = policy.start(num_episodes=2)
        actions = rollout.act(observations)                  # (2, S) to (2, A)
        actions = rollout.act(observations, rewards)         # also with the rewards (2,) of the last actions

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        SpecError: `checkpoint` is unknown, or is given for a file; or `mlflow_uri` is given for no MLflow run.
        StorageError: the store has no such trial. TrackingError: MLflow does not answer, or has no such model.
    """
    given = place("source", source)
    if mlflow_run_of(given) is not None:
        return load_policy_of_run(given, checkpoint, mlflow_uri)
    if mlflow_uri is not None:
        raise SpecError(f"mlflow_uri {without_secrets(mlflow_uri)}: {given} is no MLflow run; leave it out")
    from dmray import inference  # loads torch

    return inference.load_policy(source, checkpoint)


def export_policy(
    policy: Policy | str | Path,
    folder: str | Path,
    formats: str | Sequence[str] = "safetensors",
    *,
    checkpoint: str | None = None,
    decode: str | None = None,
    force: bool = False,
    mlflow_uri: str | None = None,
) -> Export:
    """Write a policy into a folder for others, with a model card (docs/export.md). Returns the paths of its files.

    `policy`: the result of `load_policy`, or a source that it takes (with `checkpoint` and `mlflow_uri`). `formats`:
    "torchscript", "pt2" (torch.export) and "onnx" act step by step without dmray; "safetensors" has the weights, which
    `load_policy(folder)` loads back. `decode`: of the former, "window" or "recurrent"; None: that of the policy's
    sweep. Their actions are compared with dmray's own before the folder gets its name. `force`: replace an export.

        exported = dmray.export_policy(policy, "exported", ["torchscript", "safetensors"], force=True)
        same = dmray.load_policy(exported.folder)

    Raises:
        SpecError: a format or the mode is unknown, has no effect, or is not possible for the policy's method.
        StorageError: the folder exists and `force` is false, or cannot be written.
        CheckpointError, TrackingError: as `load_policy`. MissingPackageError: a format needs `dmray[export]`.
    """
    flag("force", force)
    target = local_path("folder", folder)
    if not isinstance(formats, Sequence):
        raise SpecError(f"format {short_repr(formats)}: give a name or a list of names")
    names = [formats] if isinstance(formats, str) else list(formats)
    named = [line("format", name) for name in names]
    if decode is not None:
        line("decode", decode)
    from dmray import exports, inference  # load torch

    if isinstance(policy, inference.Policy):
        if (checkpoint, mlflow_uri) != (None, None):
            raise SpecError("checkpoint, mlflow_uri: the policy is loaded already; give them to load_policy")
        loaded = policy
    else:
        loaded = load_policy(policy, checkpoint=checkpoint, mlflow_uri=mlflow_uri)
    return exports.export(loaded, target, named, decode=decode, force=force)


def load_published_policy(
    weights: str | Path | Mapping[str, str | Path],
    task: str,
    *,
    method: str | None = None,
    data: str | Path | None = None,
    statistics: str | Path | None = None,
    context_length: int | None = None,
    return_scale: float | None = None,
    n_head: int | None = None,
    action_input: str | None = None,
) -> Policy:
    """Load weights that dmray did not train, to be evaluated like any policy: of the published code, or a DT of Hugging
    Face's transformers.

    `weights`: a folder with config.json and model.safetensors or pytorch_model.bin (a `DecisionTransformerModel`); or,
    with `method`, the file of a state dict of the authors' code. For HDT and HDM give a file for each network,
    {"subgoal": ..., "action": ...}, or one file that has both under these names.

    `task`: for example "hopper" or "bullet-hopper". The files have no mean and deviation of the states: `data` is the
    data set that they were trained on (a name of the catalog or a file), or `statistics` a file with the arrays `mean`
    and `std`. `context_length`: 20, or that of the config. `return_scale`: the task's. `n_head` (1), `action_input`
    ("paper"; "dt" is that of Chen et al.'s DT): of the authors' networks. A setting that the method lacks is an error.

        policy = dmray.load_published_policy("hopper-medium-dt", "hopper", data="hopper-medium-v2")
        policy = dmray.load_published_policy("dm.pt", "bullet-hopper", method="dm", data="bullet-hopper-medium-v0")

    Raises:
        CheckpointError: a file is missing, damaged, or of another model; or its sizes are not those of the task.
        SpecError: a setting is wrong or missing. DatasetError: the data set cannot be read.
    """
    from dmray.inference import published  # loads torch

    settings = published.PublishedSettings(
        task=line("task", task),
        data=None if data is None else place("data", data),
        statistics=None if statistics is None else place("statistics", statistics),
        context_length=None if context_length is None else whole_number("context_length", context_length, 1),
        return_scale=None if return_scale is None else finite_number("return_scale", return_scale),
        n_head=n_head,
        action_input=action_input,
    )
    if method is None:
        if isinstance(weights, Mapping) or not published.is_huggingface_folder(place("weights", weights)):
            raise SpecError(
                "weights: not a folder with a config.json of Hugging Face; for files of the authors' code give `method`"
            )
        if (n_head, action_input) != (None, None):
            raise SpecError("n_head, action_input: are in the folder's config.json; leave them out")
        return published.load_huggingface(place("weights", weights), settings)
    files = weights if isinstance(weights, Mapping) else {"": weights}
    named = {line("stage", name) if name else "": place("weights", file) for name, file in files.items()}
    return published.load_authors(named, line("method", method), settings)


def evaluate_policy(
    policy: Policy | PolicyFunction | str | Path,
    task: str | Task | None = None,
    episodes: int | None = None,
    *,
    decode: str | None = None,
    target_returns: Sequence[float] | None = None,
    seed: int | None = None,
    cohort_size: int | None = None,
    action_noise: float | None = None,
    observation_noise: float | None = None,
    workers: int = 1,
    deterministic: bool = False,
    progress: bool | Callable[[int, int], None] = False,
) -> Evaluation:
    """Roll out a policy in the simulator. Returns scores (`.scores`, `.normalized`) and each episode (`.episodes`).

    `policy`: the result of `load_policy`, or a source that `load_policy` takes; or a function from raw observations
    (E, S) float32 to raw actions (E, A), where E is the number of episodes that have not ended. A function needs a
    `task`, for example "hopper". Settings that are None are those of the policy's sweep, so that
    `evaluate_policy(policy)` reproduces the recorded scores; for a function they are 100 episodes, seed 0 and cohorts
    of 50.

    `decode`: the decode mode. `target_returns`: raw; all episodes are run for each of them. `seed`: the seed from which
    the seeds of episodes follow. `cohort_size`: the number of episodes in lockstep. `action_noise`,
    `observation_noise`: Gaussian noise, in deviations of the policy's data (docs/evaluation.md). `workers`: the number
    of processes; it does not change the result. `deterministic`: as `resources.deterministic` of a sweep. `progress`:
    if True, show a bar; a function is called with the number of finished episodes and the number of all episodes.

        evaluation = dmray.evaluate_policy(policy, episodes=20)
        evaluation = dmray.evaluate_policy(lambda observations: -observations[:, :2], "maze2d-umaze", episodes=20)

    Raises:
        SpecError: an unknown task or decode mode, a target return for a policy that takes none, or a number that is
            too small.
        CheckpointError: the policy's sizes are not those of the task.
        EngineError: the task has no simulator here.
        FloatingPointError: an action is not finite.
    """
    from dmray import inference  # loads torch

    check_progress(progress)
    acting = load_policy(policy) if isinstance(policy, str | PathLike) else policy
    request = inference.evaluation_request(
        acting,
        task,
        episodes=episodes,
        decode=decode,
        target_returns=target_returns,
        seed=seed,
        cohort_size=cohort_size,
        action_noise=action_noise,
        observation_noise=observation_noise,
    )
    with episode_bar(progress, request.task.name) as on_cohort:
        return inference.evaluate(acting, request, workers=workers, deterministic=deterministic, on_cohort=on_cohort)


def draw_episodes(
    policy: Policy | str | Path,
    pictures: int = 3,
    *,
    videos: int = 0,
    into: str | Path | None = None,
    deterministic: bool = False,
    **evaluation: Any,
) -> list[Path]:
    """Draw the first episodes of an evaluation: `pictures` of them as PNG, `videos` as MP4. Returns the files' paths.

    For mazes, pictures show the plan of the maze: all paths, and each episode with the subgoals of HDM and HDT. For
    other tasks they show several timesteps side by side. The files are in the folders `pictures` and `videos` of
    `into`; None: of the trial's folder, or of the working directory if the checkpoint is not in a trial's folder.
    `evaluation`: `task`, `episodes`, `decode`, `target_returns`, `seed`, `cohort_size`, `action_noise`,
    `observation_noise` as in `evaluate_policy`. The episodes of the first target return are drawn.

        pictures = dmray.draw_episodes(policy, 1, into="drawn", episodes=5)

    Raises:
        SpecError: there are more pictures or videos than episodes in the first cohort, a number is below 0, or `policy`
            is a function. EngineError: no simulator here can draw the task. CheckpointError, FloatingPointError: as
            `evaluate_policy`.
    """
    from dmray import inference  # loads torch
    from dmray.rollout.pictures import Acting, write_episode_films, write_pictures

    pictures, videos = whole_number("pictures", pictures, 0), whole_number("videos", videos, 0)
    deterministic, target = flag("deterministic", deterministic), None if into is None else folder_path("into", into)
    acting = load_policy(policy) if isinstance(policy, str | PathLike) else policy
    if not isinstance(acting, inference.Policy):
        raise SpecError("policy: only a policy of load_policy can be drawn")
    request = inference.evaluation_request(acting, evaluation.pop("task", None), **evaluation)
    watched = inference.watch_episodes(acting, request, max(pictures, videos), deterministic)
    folder, trial = _drawing_folder(acting, target), acting.trial
    name, task = f"{trial.trial_id}-step{acting.step}", request.task
    who = Acting(METHODS[trial.method].label, trial.dataset.name, trial.seed)
    paths = write_pictures(task, who, watched[:pictures], folder.pictures / name) if pictures else []
    films = write_episode_films(task, who, watched[:videos], folder.videos / name) if videos else []
    return [*paths, *films]


def _drawing_folder(policy: Policy, into: Path | None) -> TrialFolder:
    """The folder of the drawings: `into`; if it is None, the folder of the policy's trial in a sweep."""
    if into is None and policy.folder is not None and TrialFolder(policy.folder).ledger.exists():
        return TrialFolder(policy.folder)
    return TrialFolder(into or Path())
