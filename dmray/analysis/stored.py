"""Finds the stored policies that an analysis is asked for, the data that each was trained on, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from dmray.errors import CheckpointError, DatasetError, EngineError, SpecError, StorageError
from dmray.escaping import one_line
from dmray.files import cache_folder, user_path
from dmray.inference.policy import Policy, load_policy, require_checkpoint_name, stored_checkpoints
from dmray.mlflow_mirror.policies import load_policy_of_run, mlflow_run_of
from dmray.planning.manifest import read_manifest
from dmray.planning.settings import details_of
from dmray.progress.sweep_handle import locate
from dmray.records import SweepFolder
from dmray.redaction import without_secrets
from dmray.sources import OpenedDataset
from dmray.sources.opening import open_dataset
from dmray.specs import TrialSpec
from dmray.storage import SweepCopy, is_url
from dmray.storage.outages import retry_while_unavailable
from dmray.tasks import task_of

T = TypeVar("T")
CHECKPOINTS = ("final", "best")
_MOST_NAMED = 3


@dataclass(frozen=True)
class StoredPolicy:
    """A stored policy that is not loaded yet, so that a list of a hundred takes no memory.

    `source`: a checkpoint file, a trial's folder or the id of an MLflow run. `checkpoint`: its name; None for a file.
    """

    source: str
    checkpoint: str | None
    mlflow_uri: str | None = None

    def load(self) -> Policy:
        """The policy.

        Raises:
            CheckpointError: it cannot be read.
            TrackingError: MLflow does not answer, or has no such model.
        """
        if mlflow_run_of(self.source) is not None:
            return load_policy_of_run(self.source, self.checkpoint, self.mlflow_uri)
        return load_policy(self.source, self.checkpoint)


class LeftOut(NamedTuple):
    """A sentence about a policy that is not analysed. `failed`: because it cannot be read."""

    sentence: str
    failed: bool


@dataclass(frozen=True)
class StoredPolicies:
    """`left_out`: sentences about trials of a sweep that have no such checkpoint."""

    policies: tuple[StoredPolicy, ...]
    left_out: tuple[str, ...] = ()

    def load_each(self) -> Iterator[tuple[StoredPolicy, Policy | LeftOut]]:
        """Each policy, loaded when its turn comes; or why it is left out: it is damaged, or a checkpoint that came
        before.

        A checkpoint can be named in several ways, and a trial may be in several sweeps. Counted twice it would look
        like one more seed.

        Raises:
            TrackingError: as `StoredPolicy.load`.
        """
        came: dict[tuple[str, int], str] = {}
        for each in self.policies:
            try:
                policy = each.load()
            except CheckpointError as damage:
                yield each, LeftOut(one_line(str(damage)), failed=True)
                continue
            key = policy.trial.trial_id, policy.step
            if key in came:
                again = f"{each.source}: the same trial and step as {came[key]}, so it is not counted again"
                yield each, LeftOut(again, failed=False)
            else:
                came[key] = each.source
                yield each, policy


def find_policies(sources: Sequence[str], checkpoint: str = "final", mlflow_uri: str | None = None) -> StoredPolicies:
    """The policies that `sources` name, each once; those of one sweep together, in the order of its trials.

    A source is a checkpoint file, a trial's folder, the id of a trial's MLflow run, or a sweep (its folder, file or
    URL), which stands for all its trials but the selection trials of a search. `checkpoint`: final, best or step:<N>;
    not used for a file.

    Raises:
        SpecError: `checkpoint` is no such name, or `mlflow_uri` is given for no MLflow run.
        StorageError: a source does not exist, or no trial has such a checkpoint.
        StoreUnavailableError: the object store does not answer.
    """
    require_checkpoint_name(checkpoint, CHECKPOINTS)
    if mlflow_uri is not None and not any(map(mlflow_run_of, sources)):
        raise SpecError(f"mlflow_uri {without_secrets(mlflow_uri)}: no run is the id of an MLflow run; leave it out")
    found: dict[StoredPolicy, None] = {}
    left_out: list[str] = []
    for source in sources:
        if mlflow_run_of(source) is not None:
            found[StoredPolicy(source, checkpoint, mlflow_uri)] = None
        elif not is_url(source) and user_path(source).is_file() and user_path(source).suffix == ".pt":
            found[StoredPolicy(source, None)] = None
        elif _is_trial(source):
            _require_exists(source)
            found[StoredPolicy(source, checkpoint)] = None
        else:
            of_sweep = _policies_of_sweep(source, checkpoint)
            found |= dict.fromkeys(of_sweep.policies)
            left_out += of_sweep.left_out
    if not found:
        raise StorageError(f"no trial has a checkpoint '{checkpoint}': {'; '.join(left_out[:3])}")
    return StoredPolicies(_in_order(tuple(found)), tuple(left_out))


class DataSets(Generic[T]):
    """What an analysis makes of each data set, made once; a data set that cannot be used is set aside.

    `make` gets the first policy that was trained on it.
    """

    def __init__(self, make: Callable[[Policy], T]) -> None:
        self._make = make
        self._made: dict[object, T] = {}
        self._problems: dict[tuple[str, str | None], str] = {}
        self._policies: dict[tuple[str, str | None], int] = {}

    def of(self, policy: Policy, *kind: object) -> T | None:
        """What `make` gives for the policy's data set and `kind`; None if it or its simulator is missing or damaged."""
        data = (policy.trial.dataset.name, policy.dataset_fingerprint)
        if data not in self._problems and (*data, *kind) not in self._made:
            try:
                self._made[(*data, *kind)] = self._make(policy)
            except (DatasetError, EngineError) as cause:
                self._problems[data] = one_line(str(cause))
        if data in self._problems:
            self._policies[data] = self._policies.get(data, 0) + 1
        return self._made.get((*data, *kind))

    @property
    def failed(self) -> tuple[str, ...]:
        """A sentence about each data set that was set aside."""
        sentences = []
        for data, problem in self._problems.items():
            policies = self._policies[data]
            what = f"{data[0]} ({policies} {'policy' if policies == 1 else 'policies'})"
            sentences.append(f"data set {what} is not analysed: {problem}")
        return tuple(sentences)

    def failed_with(self, unread: Sequence[str], measured: Sequence[object]) -> tuple[str, ...]:
        """`unread`, sentences about policies that cannot be read, and `failed`.

        Raises:
            CheckpointError, DatasetError: nothing was measured because of them.
        """
        sentences = (*unread, *self.failed)
        if sentences and not measured:
            raise (CheckpointError if unread else DatasetError)("; ".join(sentences))
        return sentences


def write_notes(sentences: Sequence[str], into: Path) -> None:
    """Write what the tables in the folder `into` lack to `notes.txt`, one sentence a line; nothing: no such file."""
    (into / "notes.txt").unlink(missing_ok=True)
    if sentences:
        (into / "notes.txt").write_text("".join(f"{one_line(each)}\n" for each in sentences), encoding="utf-8")


class MeasuredPolicy(NamedTuple):
    """What was measured: the trial, the step of its checkpoint, and the content of its data set."""

    trial: TrialSpec
    step: int
    data: str | None


class SettingNames(NamedTuple):
    """`dataset`: its name. `setting`: what tells the settings of a method on it apart; empty if there is one."""

    dataset: str
    setting: str


def settings_of(measured: Sequence[MeasuredPolicy]) -> dict[tuple[str, int], SettingNames]:
    """The names of what was measured, by trial id and step.

    The step is named if a trial was measured at several, and the content of the data if two data sets have one name.
    """
    details: dict[str, str] = {}
    data: dict[str, set[str | None]] = {}
    for each in measured:
        data.setdefault(each.trial.dataset.name, set()).add(each.data)
    for name in data:
        details |= details_of([each.trial for each in measured if each.trial.dataset.name == name])
    several_steps = len({each.trial.trial_id for each in measured}) < len(measured)
    named = {}
    for trial, step, content in measured:
        name = trial.dataset.name
        dataset = f"{name} (data {(content or 'unknown')[:8]})" if len(data[name]) > 1 else name
        parts = (details[trial.seed_group_id], f"step {step:,}" if several_steps else "")
        named[trial.trial_id, step] = SettingNames(dataset, ", ".join(filter(None, parts)))
    return named


def _in_order(policies: Sequence[StoredPolicy]) -> tuple[StoredPolicy, ...]:
    """Those of one sweep together, in the order of its trials, however they were named."""
    first: dict[object, int] = {}
    places: dict[StoredPolicy, tuple[int, int]] = {}
    orders: dict[Path, dict[str, int]] = {}
    for number, policy in enumerate(policies):
        sweep, trial_id = _sweep_of(policy)
        if sweep is not None and sweep not in orders:
            try:
                plan = read_manifest(SweepFolder(sweep.parent, sweep.name))
                orders[sweep] = {each: at for at, each in enumerate(plan.trial_ids)}
            except StorageError:  # a copy of trials without their sweep
                orders[sweep] = {}
        key = number if sweep is None else sweep
        within = orders[sweep].get(trial_id, len(orders[sweep])) if sweep is not None else 0
        places[policy] = (first.setdefault(key, number), within)
    return tuple(sorted(policies, key=lambda policy: places[policy]))


def _sweep_of(policy: StoredPolicy) -> tuple[Path | None, str]:
    """The folder of the sweep that a local checkpoint belongs to, and its trial's id."""
    if is_url(policy.source) or mlflow_run_of(policy.source) is not None:
        return None, ""
    path = user_path(policy.source).absolute()
    trial = path.parent.parent if policy.checkpoint is None else path
    return (trial.parent.parent, trial.name) if trial.parent.name == "trials" else (None, "")


def open_data(policy: Policy) -> OpenedDataset:
    """The data set that the policy was trained on.

    Raises:
        DatasetError: it is missing, or its content is not that on which the policy was trained.
        StorageError: the disk or the memory has no room for its arrays.
    """
    dataset = policy.trial.dataset
    opened = open_dataset(dataset, task_of(dataset), _recordings_of(policy))
    if policy.dataset_fingerprint not in (None, opened.episodes.fingerprint):
        raise DatasetError(
            f"data set {dataset.name}: its content is not that on which {policy} was trained; put that file back"
        )
    return opened


def _is_trial(source: str) -> bool:
    parts = source.rstrip("/").split("/")
    return (len(parts) > 2 and parts[-2] == "trials") or (
        not is_url(source) and (user_path(source) / "checkpoints").is_dir()
    )


def _require_exists(source: str) -> None:
    if not is_url(source) and not user_path(source).is_dir():
        raise StorageError(f"{source}: no such folder of a trial; the sweep's trials are in {user_path(source).parent}")


def _policies_of_sweep(source: str, checkpoint: str) -> StoredPolicies:
    at, name = locate(source)
    copy = SweepCopy.downloaded(at, name) if is_url(at) else None
    folder = copy.folder if copy else SweepFolder(Path(at), name)
    plan = read_manifest(folder)
    found: list[StoredPolicy] = []
    without: dict[tuple[str, ...], list[str]] = {}  # the trials' ids by the checkpoints that they have
    for trial in plan.trials:
        if plan.sweep.is_selection(trial):
            continue
        place = folder.trial(trial.trial_id)
        if copy is not None:
            retry_while_unavailable(lambda place=place: copy.fetch_trial(place))  # type: ignore[misc]
        there = stored_checkpoints(place)
        if checkpoint in there:
            found.append(StoredPolicy(str(place.path), checkpoint))
        else:
            without.setdefault(tuple(there), []).append(trial.trial_id)
    left_out = tuple(
        f"{_named(trials)}: no checkpoint '{checkpoint}'; there {'is' if len(there) == 1 else 'are'} "
        f"{', '.join(there) or 'none'}"
        for there, trials in without.items()
    )
    return StoredPolicies(tuple(found), left_out)


def _named(trials: Sequence[str]) -> str:
    more = len(trials) - _MOST_NAMED
    return ", ".join(trials[:_MOST_NAMED]) + (f" and {more} more trials" if more > 0 else "")


def _recordings_of(policy: Policy) -> Path:
    """The folder with the data sets that its sweep recorded; for a policy from elsewhere, that of the cache."""
    if policy.folder is None or policy.folder.parent.name != "trials":
        return cache_folder() / "recordings"
    return SweepFolder(policy.folder.parent.parent.parent, policy.folder.parent.parent.name).datasets
