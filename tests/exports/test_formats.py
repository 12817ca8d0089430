"""Files that act without dmray give the actions of dmray's decoders, in every method and mode that can be exported."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dmray.errors import SpecError
from dmray.exports.formats import FORMATS, LARGEST_DIFFERENCE, Recorded, write_format
from dmray.exports.step import PolicyStep
from dmray.policies import SequencePolicy, make_decoder
from tests.policies.windows import SHAPE, policy_with, tiny_policy

State = dict[str, Tensor]
Step = Callable[..., tuple[np.ndarray, State]]
ROWS = 3  # not the number of rows with which a file is recorded
RECURRENT = ("dm", "dm+r", "hdm", "bc", "dlstm")
CASES = [
    *((method, "window") for method in ("dm", "dm+r", "hdm", "dt", "hdt", "bc", "dlstm")),
    *((method, "recurrent") for method in RECURRENT),
]


def load(form: str, path: Path, names: list[str]) -> Step:
    """The file as somebody uses it who has torch, or onnxruntime, alone."""
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))

        def run(*given: Tensor | State) -> tuple[np.ndarray, State]:
            *first, state = given
            inputs = dict(zip(["observation", "return_to_go"], first, strict=False)) | state  # type: ignore[operator]
            action, *new = session.run(None, {name: value.numpy() for name, value in inputs.items()})  # type: ignore[union-attr]
            return action, dict(zip(names, map(torch.from_numpy, new), strict=True))

        return run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function = torch.jit.load(str(path)) if form == "torchscript" else torch.export.load(path).module()

    def step(*given: Tensor | State) -> tuple[np.ndarray, State]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action, state = function(*given)
        return action.numpy(), state

    return step


def exported(recorded: Recorded, form: str, folder: Path) -> tuple[Step, State]:
    """The step of a written file, and the state of `ROWS` episodes that begin."""
    write_format(form, recorded, folder)
    fields = recorded.description["state"]
    state = {
        name: torch.zeros(ROWS, *each["shape"], dtype=getattr(torch, each["dtype"])) for name, each in fields.items()
    }
    return load(form, folder / FORMATS[form].file, list(fields)), state


def drawn(policy: SequencePolicy, timestep: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(timestep)
    return draw.normal(size=(ROWS, 3)).astype(np.float32), (10 * draw.normal(size=ROWS)).astype(np.float32)


def given(policy: SequencePolicy, observations: np.ndarray, returns_to_go: np.ndarray) -> list[Tensor]:
    inputs = [torch.from_numpy(observations), torch.from_numpy(returns_to_go)]
    return inputs if policy.takes_target else inputs[:1]


def check_episode(recorded: Recorded, form: str, folder: Path) -> None:
    policy = recorded.policy
    step, state = exported(recorded, form, folder)
    decoder = make_decoder(policy, recorded.decode, ROWS)
    for timestep in range(SHAPE.max_timesteps):
        inputs = drawn(policy, timestep)
        before = {name: value.clone() for name, value in state.items()}
        action, new = step(*given(policy, *inputs), state)
        np.testing.assert_allclose(action, decoder.decide(*inputs), rtol=0, atol=1e-5)
        assert all(torch.equal(state[name], before[name]) for name in before), "a step changes no state it is given"
        state = new


def check_no_path_is_of_this_machine(file: Path) -> None:
    here = str(Path(__file__).parents[2]).encode()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as records:
            assert [name for name in records.namelist() if here in records.read(name)] == []
    assert here not in file.read_bytes()


@pytest.mark.parametrize(("method", "decode"), CASES)
def test_torchscript_acts_as_dmray_over_an_episode(method: str, decode: str, tmp_path: Path) -> None:
    recorded = Recorded(tiny_policy(method, n_layer=1).requires_grad_(False), decode)
    check_episode(recorded, "torchscript", tmp_path)
    check_no_path_is_of_this_machine(tmp_path / FORMATS["torchscript"].file)


@pytest.mark.chaos
@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize(("method", "decode"), CASES)
def test_every_method_acts_in_every_file(form: str, method: str, decode: str, tmp_path: Path) -> None:
    """Seconds each; tests/api/test_export.py has one of them."""
    check_episode(Recorded(tiny_policy(method).requires_grad_(False), decode), form, tmp_path)
    check_no_path_is_of_this_machine(tmp_path / FORMATS[form].file)


@pytest.mark.parametrize("decode", ["window", "recurrent"])
def test_options_of_methods_change_nothing(decode: str) -> None:
    """The step itself, which all files record: evolutions of Mamba, action tokens, subgoals that are differences."""
    evolutions = ("frozen", "shared", "no-decay", "memoryless", "constant-step")
    policies = [tiny_policy("dm", n_layer=1, evolution=evolution) for evolution in evolutions]
    policies += [tiny_policy(method, "dt", n_layer=1) for method in ("dm", "dt") if (method, decode) in CASES]
    for policy in (*policies, policy_with("hdm", target="difference"), policy_with("hdm", head="linear")):
        step, decoder = PolicyStep(policy, decode), make_decoder(policy, decode, ROWS)
        state = step.start(ROWS)
        for timestep in range(SHAPE.max_timesteps):
            observations, returns_to_go = drawn(policy, timestep)
            left = torch.from_numpy(returns_to_go) if policy.takes_target else None
            with torch.no_grad():
                action, state = step(torch.from_numpy(observations), left, state)
            np.testing.assert_allclose(action, decoder.decide(observations, returns_to_go), rtol=0, atol=1e-5)


@pytest.mark.parametrize("decode", ["window", "recurrent"])
def test_a_row_whose_state_is_zeros_begins_a_new_episode(decode: str, tmp_path: Path) -> None:
    policy = tiny_policy("hdm", n_layer=1)
    step, state = exported(Recorded(policy.requires_grad_(False), decode), "torchscript", tmp_path)
    for timestep in range(6):
        _, state = step(*given(policy, *drawn(policy, timestep)), state)
    fresh = {name: torch.cat([torch.zeros_like(value[:1]), value[1:]]) for name, value in state.items()}
    inputs = drawn(policy, 6)
    begun, _ = step(*given(policy, *inputs), fresh)
    going, _ = step(*given(policy, *inputs), state)
    first = make_decoder(policy, decode, ROWS).decide(*inputs)
    np.testing.assert_allclose(begun[0], first[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(begun[1:], going[1:])
    assert not np.allclose(begun[0], going[0], atol=1e-3)


@pytest.mark.parametrize(
    ("method", "decode", "problem"),
    [
        ("dt", "recurrent", "decode recurrent: backbone 'transformer' of method 'dt' has no state of a fixed size"),
        ("dm", "stream:2", "decode stream:2: only window and recurrent can be exported; give --decode window"),
    ],
)
def test_what_cannot_be_exported_is_refused(method: str, decode: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(problem)):
        write_format("torchscript", Recorded(tiny_policy(method), decode), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_acts_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a backbone whose code depends on the timestep in a way that is not recorded."""
    policy = tiny_policy("bc")
    monkeypatch.setattr(Recorded, "largest_difference", lambda self, act: 2 * LARGEST_DIFFERENCE)
    with pytest.raises(SpecError, match=r"method 'bc' acts otherwise than dmray \(an action differs by 2e-05\)"):
        write_format("torchscript", Recorded(policy, "window"), tmp_path)


def test_a_file_whose_actions_are_no_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = lambda observations, left, state: (np.full((len(observations), SHAPE.action_dim), np.nan), state)  # noqa: E731
    monkeypatch.setitem(FORMATS, "torchscript", FORMATS["torchscript"]._replace(load=lambda recorded, path: act))
    with pytest.raises(SpecError, match=r"method 'bc' acts otherwise than dmray \(an action differs by nan\)"):
        write_format("torchscript", Recorded(tiny_policy("bc"), "window"), tmp_path)


def test_a_network_that_cannot_be_recorded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("dt", n_layer=1)

    def fails(tokens: Tensor) -> Tensor:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(policy.stages[0].backbone, "forward", fails)
    with pytest.raises(SpecError, match=r"method 'dt' cannot be recorded \(RuntimeError: no such operation\)"):
        write_format("torchscript", Recorded(policy, "window"), tmp_path)
