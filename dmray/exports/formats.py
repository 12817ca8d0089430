"""The files that act without dmray: TorchScript, torch.export's .pt2, ONNX. Each is loaded again and compared.

Sources' paths and stack traces, which the three writers put into their files, are removed: they are of the machine that
exported, and nobody who loads the file has them.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dmray.errors import MissingPackageError, SpecError
from dmray.exports.step import PolicyStep
from dmray.models.explicit import State
from dmray.policies import SequencePolicy, make_decoder

LARGEST_DIFFERENCE = 1e-5  # of an action from dmray's own, relative to the action limit where that is above 1
MAX_BATCH = 2**20
_ROWS, _WINDOWS = 2, 3  # of the comparison: episodes, and timesteps as a multiple of context_length
_TYPES = {torch.int64: "int64", torch.float32: "float32"}
_EXPORTER_LOG = "torch.onnx._internal.exporter._registration"  # warns of torchvision, which no policy has

Act = Callable[[Tensor, Tensor, State], tuple[np.ndarray, State]]  # observations, returns-to-go, state


class Format(NamedTuple):
    """A format that acts without dmray: the file's name, how it is written, and how a written file acts."""

    file: str
    write: Callable[[Recorded, Path], None]
    load: Callable[[Recorded, Path], Act]


@dataclass(frozen=True)
class Recorded:
    """A policy's step in one decode mode, from which all formats are written."""

    policy: SequencePolicy
    decode: str

    @cached_property
    def step(self) -> PolicyStep:
        return PolicyStep(self.policy, self.decode).eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs before the state."""
        return ("observation", "return_to_go") if self.policy.takes_target else ("observation",)

    @property
    def description(self) -> dict[str, Any]:
        """What config.json says of the step: its inputs and its state, whose values are all 0 at an episode's start."""
        zeros = self.step.start(1)
        state = {
            name: {"shape": list(shape), "dtype": _TYPES[zeros[name].dtype]}
            for name, shape in self.step.state_shapes.items()
        }
        return {"decode": self.decode, "inputs": list(self.inputs), "state": state}

    def function(self) -> nn.Module:
        """`action, state = function(*inputs, state)`."""
        return _WithTarget(self.step) if self.policy.takes_target else _WithoutTarget(self.step)

    def example(self) -> tuple[Any, ...]:
        """Arguments of `function` to record it with."""
        observation = torch.zeros(_ROWS, self.policy.recipe.shape.observation_dim)
        return (*(observation, torch.zeros(_ROWS))[: len(self.inputs)], self.step.start(_ROWS))

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The function in torch.export's form, for any number of rows."""
        rows = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
        arguments = self.example()
        shapes = (*(rows for _ in self.inputs), dict.fromkeys(arguments[-1], rows))
        with _quiet():
            program = torch.export.export(self.function(), arguments, dynamic_shapes=shapes)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        return program

    def largest_difference(self, act: Act) -> float:
        """The largest difference of an action from those of dmray's decoder, over an episode of drawn observations."""
        policy, shape = self.policy, self.policy.recipe.shape
        drawn = np.random.default_rng(0)
        mean, std = policy.state_mean.numpy(), policy.state_std.numpy()
        left = drawn.normal(size=_ROWS) * policy.recipe.return_scale
        decoder, state, largest = make_decoder(policy, self.decode, _ROWS), self.step.start(_ROWS), 0.0
        for _ in range(min(shape.max_timesteps, _WINDOWS * policy.recipe.model.context_length)):
            observations = (mean + std * drawn.normal(size=(_ROWS, len(mean)))).astype(np.float32)
            left = left - drawn.normal(size=_ROWS) * policy.recipe.return_scale / shape.max_timesteps
            wanted = decoder.decide(observations, left.astype(np.float32))
            actions, state = act(torch.from_numpy(observations), torch.from_numpy(left.astype(np.float32)), state)
            largest = float(np.maximum(largest, np.abs(wanted - actions).max()))  # Python's max would lose NaN
        return largest


class _WithTarget(nn.Module):
    def __init__(self, step: PolicyStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, observation: Tensor, return_to_go: Tensor, state: State) -> tuple[Tensor, State]:
        action, new = self.step(observation, return_to_go, state)
        return action, new


class _WithoutTarget(nn.Module):
    def __init__(self, step: PolicyStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, observation: Tensor, state: State) -> tuple[Tensor, State]:
        action, new = self.step(observation, None, state)
        return action, new


def write_format(name: str, recorded: Recorded, folder: Path) -> float:
    """Write the file of a format into `folder` and compare it. Returns the largest difference of an action.

    Raises:
        SpecError: the policy cannot be exported in this format.
        MissingPackageError: the format needs a package that is not installed.
    """
    form, method = FORMATS[name], recorded.policy.recipe.method
    path = folder / form.file
    _ = recorded.step  # raises if the mode cannot be exported
    try:
        with torch.no_grad():
            form.write(recorded, path)
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # optimizing takes seconds
                difference = recorded.largest_difference(form.load(recorded, path))
    except (MissingPackageError, MemoryError, OSError):
        raise
    except Exception as cause:  # the recorders raise anything for an operation that they do not know
        reason = " ".join(str(cause).split())[:300]
        raise SpecError(
            f"--format {name}: method '{method}' cannot be recorded ({type(cause).__name__}: {reason}); "
            "export it with --format safetensors"
        ) from cause
    if not difference <= LARGEST_DIFFERENCE * max(1.0, recorded.policy.recipe.shape.action_limit):
        raise SpecError(
            f"--format {name}: the file of method '{method}' acts otherwise than dmray (an action differs by "
            f"{difference:.2g}); export it with --format safetensors"
        )
    return difference


def _write_torchscript(recorded: Recorded, path: Path) -> None:
    content = io.BytesIO()
    with _quiet():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            recorded.function(), recorded.example(), check_trace=False, strict=False
        )
        torch.jit.save(traced, content)
    _write_without_sources(content, path)


def _write_without_sources(content: io.BytesIO, path: Path) -> None:
    """Write a TorchScript file without the records that say from which lines its code comes."""
    content.seek(0)
    reader = torch._C.PyTorchFileReader(content)
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in (".data/serialization_id", "version", "byteorder"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def _load_torchscript(recorded: Recorded, path: Path) -> Act:
    with _quiet():
        return _torch_act(recorded, torch.jit.load(str(path), map_location="cpu"))  # type: ignore[no-untyped-call]


def _write_pt2(recorded: Recorded, path: Path) -> None:
    with _quiet():
        torch.export.save(recorded.program, path)


def _load_pt2(recorded: Recorded, path: Path) -> Act:
    with _quiet():
        return _torch_act(recorded, torch.export.load(path).module())


def _torch_act(recorded: Recorded, function: Callable[..., tuple[Tensor, State]]) -> Act:
    def act(observations: Tensor, returns_to_go: Tensor, state: State) -> tuple[np.ndarray, State]:
        with _quiet(), torch.no_grad():
            actions, new = function(*(observations, returns_to_go)[: len(recorded.inputs)], state)
        return actions.numpy(), new

    return act


def _write_onnx(recorded: Recorded, path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package)
    names = tuple(recorded.step.state_shapes)
    log = logging.getLogger(_EXPORTER_LOG)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with _quiet():
            made = torch.onnx.export(
                recorded.program,
                input_names=[*recorded.inputs, *names],
                output_names=["action", *(f"next_{name}" for name in names)],
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert made is not None
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()
    made.save(path, external_data=False)


def _load_onnx(recorded: Recorded, path: Path) -> Act:
    session = require_package("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = tuple(recorded.step.state_shapes)

    def act(observations: Tensor, returns_to_go: Tensor, state: State) -> tuple[np.ndarray, State]:
        given = dict(zip(recorded.inputs, (observations, returns_to_go), strict=False)) | state
        actions, *new = session.run(None, {name: value.numpy() for name, value in given.items()})
        return actions, {name: torch.from_numpy(value) for name, value in zip(names, new, strict=True)}

    return act


def require_package(name: str) -> Any:
    """The module of an optional package.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    try:
        with _quiet():
            return import_module(name)
    except ImportError as cause:
        raise MissingPackageError(f'{name} cannot be imported ({cause}); pip install "dmray[export]"') from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: of TorchScript's end, and of what the recorders cannot follow, which the comparison finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FORMATS: Mapping[str, Format] = {
    "torchscript": Format("policy.torchscript", _write_torchscript, _load_torchscript),
    "pt2": Format("policy.pt2", _write_pt2, _load_pt2),
    "onnx": Format("policy.onnx", _write_onnx, _load_onnx),
}
