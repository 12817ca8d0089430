"""Checkpoints of a trial: everything that a resumed run needs, readable without unpickling code.

    last.pt   the state of the Trainer and the meter, the snapshots whose evaluations are pending, and how much of the
              ledger the state relies on
    best.pt   the weights of the best evaluation so far, with its step and score
    final.pt  the weights after the last step, with the last score
    step-*.pt the weights after that step, where the sweep keeps them (`faults.keep_checkpoints`)

Each has the trial's spec and the policy's shape, so the policy can be built from the file alone. A file is a header
(format version, length and digest of the rest) and what `torch.save` writes; it is read only if the digest is right,
because a flipped bit in a weight would go unnoticed. The digest is against damage: it does not say who made the file.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from dmray.errors import CheckpointError, StorageError
from dmray.files import write_atomic
from dmray.frozen import Spec
from dmray.policies import PolicyRecipe, PolicyShape, PolicySnapshot, SequencePolicy, policy_recipe
from dmray.records import LedgerPrefix
from dmray.records.disk import open_file, writing
from dmray.specs import TrialSpec
from dmray.specs.mistakes import mistakes_of
from dmray.tasks import ReferenceScores

FORMAT_VERSION = 4
_MAGIC = b"DMRAY.PT"
_HEADER = struct.Struct("<8sIQ32s")  # magic, format version, length and digest of what follows
_TORCH_MAGIC = b"PK\x03\x04"  # the beginning of formats 1 to 3, which had no header
_CURE = "if it is a trial's last.pt, delete it and the trial starts over"
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_LARGEST_SIZE = 2**24  # of an observation, an action or an episode


class _StoredOrigin(Spec):
    """The plain part of a checkpoint: what it was made from."""

    trial_id: str
    spec: str
    dataset_fingerprint: str
    shape: PolicyShape
    reference: ReferenceScores
    action_std: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None


class _WeightsForm(Spec, arbitrary_types_allowed=True):
    """best.pt and final.pt."""

    origin: _StoredOrigin
    step: int = Field(ge=0)
    score: float | None
    weights: dict[str, Tensor]


class _TrainerForm(Spec, arbitrary_types_allowed=True):
    policy: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    step: int = Field(ge=0)
    sampler_generator: Tensor
    torch_rng: Tensor
    cuda_rng: Tensor | None


class _MeterForm(Spec, arbitrary_types_allowed=True):
    sums: Tensor
    steps: int = Field(ge=0)
    seconds: float = Field(ge=0.0)


class _StateForm(Spec, arbitrary_types_allowed=True):
    """last.pt."""

    origin: _StoredOrigin
    trainer: _TrainerForm
    meter: _MeterForm
    open_evaluations: dict[int, dict[str, Tensor]]
    train_s: float = Field(ge=0.0)
    ledger: LedgerPrefix
    finite: bool


_WEIGHTS, _STATE = TypeAdapter(_WeightsForm), TypeAdapter(_StateForm)


@dataclass(frozen=True)
class Origin:
    """What a checkpoint was made from; training continues only from a checkpoint of the same origin.

    `action_std`: the deviation of each action dimension in the data, which is the unit of `evaluation.action_noise`.
    """

    trial: TrialSpec
    dataset_fingerprint: str
    recipe: PolicyRecipe
    reference: ReferenceScores
    action_std: tuple[float, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "trial_id": self.trial.trial_id,
            "spec": self.trial.model_dump_json(),
            "dataset_fingerprint": self.dataset_fingerprint,
            "shape": asdict(self.recipe.shape),
            "reference": asdict(self.reference),
            "action_std": self.action_std,
        }


def save_checkpoint(path: Path, origin: Origin, content: dict[str, Any]) -> None:
    """Write atomically; `content` holds tensors, numbers, strings and containers of them only.

    Raises:
        StorageError: the disk is full. The checkpoint that was there is as it was.
    """
    _write(path, {"origin": origin.as_dict(), **content})


def rewrite_checkpoint(source: Path, target: Path, trial: TrialSpec, **changes: Any) -> None:
    """Write the content of `source` to `target` as a checkpoint of `trial`, whose policy is the same.

    `changes`: parts of the content that get another value.

    Raises:
        CheckpointError: as `load_checkpoint`. StorageError: the disk is full.
    """
    content = load_checkpoint(source)
    origin = {**content["origin"], "trial_id": trial.trial_id, "spec": trial.model_dump_json()}
    _write(target, {**content, "origin": origin, **changes})


def _write(path: Path, content: dict[str, Any]) -> None:
    stream = io.BytesIO()
    stream.write(bytes(_HEADER.size))
    torch.save(content, stream)
    with stream.getbuffer() as whole:
        body = whole[_HEADER.size :]
        whole[: _HEADER.size] = _HEADER.pack(_MAGIC, FORMAT_VERSION, len(body), _digest(body))
        body.release()
        with writing(path):
            write_atomic(path, whole)


def load_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint file, its form checked: the keys and the types of what they name.

    Raises:
        CheckpointError: there is no file, or it is not a checkpoint, damaged, or of another format version.
    """
    body = _verified_body(path)
    _require_stored_as_is(path, body)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is no checkpoint; the error says more
            content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as cause:  # torch's parser of an untrusted file raises anything
        raise CheckpointError(f"{path}: not a dmray checkpoint ({type(cause).__name__}); {_CURE}") from cause
    _require_form(path, content)
    moved: dict[str, Any] = _to_device(content, device)
    return moved


def resume_checkpoint(path: Path, origin: Origin, device: str, policy: SequencePolicy) -> dict[str, Any] | None:
    """The checkpoint to continue training of `policy` from, None when there is none yet.

    Raises:
        CheckpointError: it belongs to another spec, the data set has changed since, or its state is not that of
            `policy`.
    """
    if not path.exists() and not path.is_symlink():
        return None
    content = load_checkpoint(path, device)
    theirs, ours = content["origin"], origin.as_dict()
    for key, what in (("trial_id", "another spec"), ("dataset_fingerprint", "another content of the data set")):
        if theirs[key] != ours[key]:
            raise CheckpointError(
                f"{path}: belongs to {what} ({key} {theirs[key]}, now {ours[key]}); restore the old one, "
                "or remove the trial's folder to start over"
            )
    if "trainer" not in content:
        raise CheckpointError(f"{path}: holds weights only, so no training can continue from it; {_CURE}")
    expected = policy.state_dict()
    may_be_infinite = not content["finite"]  # its loss is about to be found not finite, which is a result
    _require_weights(path, content["trainer"]["policy"], expected, may_be_infinite)
    for step, weights in content["open_evaluations"].items():
        _require_weights(path, weights, expected, may_be_infinite, f"of step {step} ")
    _require_optimizer(path, content["trainer"]["optimizer"], policy)
    if (stages := content["meter"]["sums"].numel() - 1) != len(policy.stage_names):
        raise CheckpointError(f"{path}: meter.sums: of {stages} stages, not {len(policy.stage_names)}; {_CURE}")
    return content


def load_policy_snapshot(path: Path) -> tuple[TrialSpec, PolicySnapshot]:
    """The trial and the policy stored in `best.pt`, `final.pt` or `last.pt`.

    Raises:
        CheckpointError: `load_checkpoint` fails, its trial uses something that this installation does not have, or its
            weights are not those of its spec, or not finite.
    """
    content = load_checkpoint(path)
    try:
        trial = TrialSpec.model_validate_json(content["origin"]["spec"])
    except ValidationError as invalid:
        mistake = mistakes_of(invalid, TrialSpec)[0]
        raise CheckpointError(f"{path}: {mistake}; if it comes from another package, install that package") from None
    if trial.evaluation.return_scale is None:
        raise CheckpointError(f"{path}: its spec has no evaluation.return_scale, so it is not that of a planned trial")
    recipe = policy_recipe(trial, PolicyShape(**content["origin"]["shape"]))
    weights = content["weights"] if "weights" in content else content["trainer"]["policy"]
    _require_weights(path, weights, _expected_weights(recipe))
    return trial, PolicySnapshot(recipe, to_arrays(weights))


def to_tensors(weights: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}


def to_arrays(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in weights.items()}


def is_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether all numbers are. Waits for the device once."""
    floating = [value for value in weights.values() if value.is_floating_point()]
    return not floating or bool(torch.stack([value.isfinite().all() for value in floating]).all())


def _digest(body: memoryview | bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=32).digest()


def _verified_body(path: Path) -> bytes:
    try:
        with open_file(path) as stream:
            header, body = stream.read(_HEADER.size), stream.read()
    except FileNotFoundError as cause:
        raise CheckpointError(f"{path}: no such file") from cause
    except (StorageError, OSError) as cause:
        raise CheckpointError(str(cause)) from cause
    if header.startswith(_TORCH_MAGIC):
        raise CheckpointError(
            f"{path}: a file of torch without dmray's header: written by an older dmray (format 3 or before; this one "
            f"reads {FORMAT_VERSION}), or not a dmray checkpoint; {_CURE}"
        )
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise CheckpointError(f"{path}: not a dmray checkpoint, or a truncated one; {_CURE}")
    _, version, length, digest = _HEADER.unpack(header)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version}, this dmray reads {FORMAT_VERSION}; use the dmray that wrote it"
        )
    if length != len(body):
        raise CheckpointError(
            f"{path}: not a dmray checkpoint as it was written: {len(body):,} bytes instead of {length:,}; {_CURE}"
        )
    if digest != _digest(body):
        raise CheckpointError(
            f"{path}: damaged: its content is not what was written (the checksum differs); restore it from a copy; "
            f"{_CURE}"
        )
    return body


def _require_stored_as_is(path: Path, body: bytes) -> None:
    """torch.save compresses nothing, so what a file would unpack to is in it. Refuse those that grow."""
    try:
        entries = zipfile.ZipFile(io.BytesIO(body)).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as cause:
        raise CheckpointError(f"{path}: not a dmray checkpoint ({type(cause).__name__}: {cause}); {_CURE}") from cause
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > len(body) or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: unpacks to {unpacked:,} bytes, but has {len(body):,}, which torch.save never writes; {_CURE}"
        )


def _require_form(path: Path, content: Any) -> None:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a dmray checkpoint; {_CURE}")
    form = _STATE if "trainer" in content else _WEIGHTS
    try:
        form.validate_python(content)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: not a dmray checkpoint: {place[:200]}: {first['msg'][:200]}; {_CURE}") from None
    for name, tensor in _tensors_in(content):
        plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name[:200]} {tuple(tensor.shape)}: not all of its numbers are in the file; {_CURE}"
            )
    shape, reference = content["origin"]["shape"], content["origin"]["reference"]
    sizes = (shape["observation_dim"], shape["action_dim"], shape["max_timesteps"])
    if not all(isinstance(size, int) and 0 < size <= _LARGEST_SIZE for size in sizes):
        raise CheckpointError(f"{path}: origin.shape: sizes {sizes} are not those of a policy; {_CURE}")
    if not (math.isfinite(shape["action_limit"]) and shape["action_limit"] > 0):
        raise CheckpointError(f"{path}: origin.shape.action_limit: {shape['action_limit']} is no limit; {_CURE}")
    action_std = content["origin"].get("action_std")
    if action_std is not None and len(action_std) != shape["action_dim"]:
        raise CheckpointError(
            f"{path}: origin.action_std: {len(action_std)} deviations of {shape['action_dim']} action numbers; {_CURE}"
        )
    if not reference["minimum"] < reference["maximum"] or math.isinf(reference["maximum"] - reference["minimum"]):
        raise CheckpointError(f"{path}: origin.reference: scores cannot be computed with {reference}; {_CURE}")


def _expected_weights(recipe: PolicyRecipe) -> dict[str, Tensor]:
    """Names, shapes and types of a policy's weights; memory is needed only for a backbone that computes while built."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return SequencePolicy(recipe).state_dict()
        except (NotImplementedError, RuntimeError):
            return SequencePolicy(recipe).state_dict()


def _require_optimizer(path: Path, states: Mapping[int, Mapping[str, Tensor]], policy: SequencePolicy) -> None:
    parameters = [parameter for stage in policy.stage_parameters() for parameter in stage]
    for number, state in states.items():
        if not 0 <= number < len(parameters) or set(state) != _ADAMW:
            raise CheckpointError(f"{path}: trainer.optimizer.{number}: not the state of AdamW for a weight; {_CURE}")
        shape = parameters[number].shape
        if any(state[key].shape != shape for key in ("exp_avg", "exp_avg_sq")) or state["step"].numel() != 1:
            raise CheckpointError(f"{path}: trainer.optimizer.{number}: not of the shape {tuple(shape)}; {_CURE}")


def _require_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    may_be_infinite: bool = False,
    which: str = "",
) -> None:
    """Raise `CheckpointError` unless names, shapes and types are those of `expected` and all numbers are finite."""
    if missing := [name for name in expected if name not in weights]:
        raise CheckpointError(f"{path}: weights {which}lack '{missing[0]}' (and {len(missing) - 1} more); {_CURE}")
    if unknown := [name for name in weights if name not in expected]:
        extra = unknown[0][:200]
        raise CheckpointError(f"{path}: weights {which}have '{extra}', which its spec's policy has not; {_CURE}")
    for name, wanted in expected.items():
        found = weights[name]
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise CheckpointError(
                f"{path}: weight '{name}' {which}is {_described(found)}, that of its spec's policy is "
                f"{_described(wanted)}; {_CURE}"
            )
    if not may_be_infinite and not is_finite(weights):
        name = next(name for name, value in weights.items() if not bool(value.isfinite().all()))
        raise CheckpointError(
            f"{path}: weight '{name}' {which}has numbers that are not finite: its training diverged, or the file is "
            "damaged; use the weights of another step (best.pt)"
        )


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _tensors_in(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """All tensors, with their place. The form has been checked, so this is not deep."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if not isinstance(value, Mapping):
        return []
    return [found for key, each in value.items() for found in _tensors_in(each, f"{name}.{key}".lstrip("."))]


def _to_device(value: Any, device: str) -> Any:
    if device == "cpu":
        return value
    if isinstance(value, Tensor):
        return value.to(device)
    return {key: _to_device(each, device) for key, each in value.items()} if isinstance(value, Mapping) else value
