"""Weights that dmray did not train, Hugging Face's and the authors': equal actions, and evaluations in our tasks."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import dmray
from dmray.cli.evaluate import app
from dmray.errors import CheckpointError, DmrayError, SpecError
from dmray.inference import act_on_windows
from dmray.inference.published import read_safetensors
from dmray.policies import SequencePolicy
from dmray.policies.huggingface import from_huggingface
from tests.golden import make_golden

GOLDEN = Path(make_golden.__file__).parent / "huggingface.npz"
Weights = dict[str, torch.Tensor]


def golden() -> tuple[dict[str, Any], Weights, dict[str, np.ndarray]]:
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    weights = {name.removeprefix("weights/"): value for name, value in arrays.items() if name.startswith("weights/")}
    config: dict[str, Any] = json.loads(str(arrays["config"]))
    return config, {name: torch.from_numpy(value) for name, value in weights.items()}, arrays


def policy_of(config: dict[str, Any], weights: Weights, held: dict[str, np.ndarray]) -> SequencePolicy:
    policy = from_huggingface(config, weights)
    policy.set_statistics(held["inputs/mean"], held["inputs/std"])
    return policy


def test_with_hugging_faces_weights_we_decide_their_actions() -> None:
    config, weights, held = golden()
    policy = policy_of(config, weights, held)
    states, actions, returns = (held[f"inputs/{name}"] for name in ("states", "actions", "returns"))
    for t in range(states.shape[1]):
        ours = act_on_windows(policy, states[:, : t + 1], actions[:, : t + 1], returns[:, : t + 1, 0])
        np.testing.assert_allclose(ours, held["outputs/action"][:, t], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours, held["outputs/last"], rtol=0, atol=1e-5)  # with their padding on the left
    assert np.abs(held["outputs/action"]).max() > 0.3


def test_the_position_that_their_model_adds_to_every_token_counts() -> None:
    config, weights, held = golden()
    without = policy_of(config, {**weights, "encoder.wpe.weight": weights["encoder.wpe.weight"] * 0}, held)
    windows = [held[f"inputs/{name}"] for name in ("states", "actions")]
    ours = act_on_windows(without, *windows, held["inputs/returns"][..., 0])
    assert np.abs(ours - held["outputs/last"]).max() > 1e-3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', but only 'decision_transformer'"),
        ({"activation_function": "gelu_new"}, "'gelu_new', but dmray's DT computes with 'relu' or 'gelu' only"),
        ({"action_tanh": False}, "action_tanh is False"),
        ({"n_inner": 20}, "n_inner is 20"),
        ({"state_dim": 6}, "state_dim is 6, but the weights have 5"),
    ],
)
def test_a_config_that_our_network_cannot_follow_is_refused(changed: dict[str, Any], message: str) -> None:
    config, weights, _ = golden()
    with pytest.raises(CheckpointError, match=message):
        from_huggingface(config | changed, weights)


def test_the_activation_of_their_config_is_followed() -> None:
    config, weights, held = golden()
    windows = [held[f"inputs/{name}"] for name in ("states", "actions")]
    other = policy_of(config | {"activation_function": "gelu"}, weights, held)
    assert other.recipe.model.model_dump()["activation"] == "gelu"
    ours = act_on_windows(other, *windows, held["inputs/returns"][..., 0])
    assert np.abs(ours - held["outputs/last"]).max() > 1e-4


def write_safetensors(path: Path, weights: Weights) -> None:
    header, data = {}, b""
    for name, value in weights.items():
        content = value.numpy().tobytes()
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": place}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def maze_weights(kind: str) -> tuple[dict[str, Any], Weights]:
    """Of a network for maze2d-open: four numbers of a state, two of an action."""
    config, weights, _ = golden()
    sizes = {"embed_state.weight": (16, 4), "embed_action.weight": (16, 2), "predict_action.0.weight": (2, 16)}
    sizes |= {"predict_action.0.bias": (2,), "predict_state.weight": (4, 16), "predict_state.bias": (4,)}
    sizes |= {"embed_timestep.weight": (400, 16)}
    generator = torch.Generator().manual_seed(1)
    other = {name: torch.randn(size, generator=generator) * 0.2 for name, size in sizes.items()}
    made = {name: other.get(name, value) for name, value in weights.items()}
    config |= {"state_dim": 4, "act_dim": 2, "max_ep_len": 400}
    return config, made if kind == "huggingface" else {
        name.replace("encoder.", "transformer."): value for name, value in made.items() if "wpe" not in name
    }


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    (tmp_path / "statistics.json").write_text(json.dumps({"mean": [1.0, 1, 0, 0], "std": [1.0, 1, 0.5, 0.5]}))
    return tmp_path / "statistics.json"


def huggingface_folder(place: Path, kind: str) -> Path:
    config, weights = maze_weights("huggingface")
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    if kind == "safetensors":
        write_safetensors(place / "model.safetensors", weights)
    else:
        torch.save(weights, place / "pytorch_model.bin")
    return place


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    return done.exit_code, done.output.replace("\n", " ")


def test_both_file_formats_of_hugging_face_are_evaluated_alike(tmp_path: Path, statistics: Path) -> None:
    shown = []
    for kind in ("safetensors", "bin"):
        folder = huggingface_folder(tmp_path / kind, kind)
        code, output = run(
            folder, "--task", "maze2d-open", "--statistics", statistics, "--episodes", "2", "--target", "5"
        )
        assert code == 0, output
        assert f"DT with the weights of {folder}" in output
        shown.append(output.partition("target return")[2])
    assert shown[0] == shown[1]


def test_the_authors_files_are_evaluated_from_the_command_line(tmp_path: Path, statistics: Path) -> None:
    _, weights = maze_weights("authors")
    torch.save({"state_dict": weights}, tmp_path / "dt.pt")
    common = ("--task", "maze2d-open", "--episodes", "2", "--n-head", "2")
    code, output = run("--authors", tmp_path / "dt.pt", "--method", "dt", "--statistics", statistics, *common)
    assert code == 0, output
    assert "DT with the weights of" in output
    code, output = run("--authors", tmp_path / "dt.pt", "--method", "dt", *common)
    assert code == 1
    assert "give either the data set that they were trained on" in output
    code, output = run("--authors", tmp_path / "dt.pt", "--method", "hdm", "--statistics", statistics, *common)
    assert "there is no file of 'subgoal'; give subgoal=FILE and action=FILE" in output


def test_networks_with_two_stages_are_one_file_or_two(tmp_path: Path, statistics: Path) -> None:
    with np.load(GOLDEN.with_name("hdm.npz")) as file:
        arrays = {name: torch.from_numpy(value).float() for name, value in file.items() if name.startswith("weights/")}
    stages: dict[str, Weights] = {}
    for name, value in arrays.items():
        _, stage, weight = name.split("/")
        stages.setdefault(stage, {})[weight] = value
    torch.save(stages, tmp_path / "both.pt")
    for stage, weights in stages.items():
        torch.save(weights, tmp_path / f"{stage}.pt")
    for given in (tmp_path / "both.pt", {stage: tmp_path / f"{stage}.pt" for stage in stages}):
        with pytest.raises(CheckpointError, match=r"take states of 5 numbers .* but task 'maze2d-open' has 4 and 2"):
            dmray.load_published_policy(given, "maze2d-open", method="hdm", statistics=statistics)


def test_statistics_come_from_the_users_data_file(tmp_path: Path) -> None:
    from dmray.sources import recorded_file
    from dmray.specs import Generation
    from dmray.tasks import TASKS

    made = recorded_file(Generation(transitions=600), TASKS["maze2d-open"], tmp_path)
    folder = huggingface_folder(tmp_path / "hf", "bin")
    policy = dmray.load_published_policy(folder, "maze2d-open", data=made)
    assert policy.snapshot.weights["state_mean"].any()
    assert policy.context_length == 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, s: dmray.load_published_policy(f, "maze2d-opne", statistics=s), "unknown task 'maze2d-opne', did"),
        (lambda f, s: dmray.load_published_policy(f, "hopper", statistics=s), "name the task that they were trained"),
        (lambda f, s: dmray.load_published_policy(f, "maze2d-open"), "neither is given"),
        (
            lambda f, s: dmray.load_published_policy(f / "x", "maze2d-open"),
            "for files of the authors' code give `method`",
        ),
        (
            lambda f, s: dmray.load_published_policy(f / "x", "maze2d-open", method="dt", statistics=s),
            "x: no such file",
        ),
        (
            lambda f, s: dmray.load_published_policy(f, "maze2d-open", statistics=s, n_head=1),
            "n_head, action_input: are in the folder's config.json",
        ),
        (
            lambda f, s: dmray.load_policy(f, mlflow_uri="http://h"),
            "mlflow_uri http://h: .* is no MLflow run",
        ),
        (
            lambda f, s: dmray.load_published_policy(f / "config.json", "maze2d-open", method="dt", statistics=s),
            "not a state dict that torch.save wrote",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    tmp_path: Path, statistics: Path, call: Callable[[Path, Path], object], message: str
) -> None:
    folder = huggingface_folder(tmp_path / "hf", "bin")
    with pytest.raises(DmrayError, match=message):
        call(folder, statistics)


@pytest.mark.parametrize("damage", ["short", "huge header", "offsets", "no json", "dtype"])
def test_a_damaged_safetensors_file_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": torch.ones(2, 3)})
    assert torch.equal(read_safetensors(path)["a"], torch.ones(2, 3))
    whole = path.read_bytes()
    path.write_bytes(
        {
            "short": whole[:-1],
            "huge header": struct.pack("<Q", 2**40) + whole[8:],
            "offsets": whole.replace(b"[0, 24]", b"[9, 33]"),
            "no json": whole[:8] + b"x" * (len(whole) - 8),
            "dtype": whole.replace(b"F32", b"F33"),
        }[damage]
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a \.safetensors file"):
        read_safetensors(path)


def test_options_of_published_weights_are_refused_for_others(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--task", "hopper")
    assert code == 1
    assert "--task: is for published weights" in output
    twice = run("--authors", "a.pt", "--authors", "b.pt", "--method", "dt", "--task", "hopper")
    assert "a second file of the same network" in twice[1]
    assert "give what to evaluate" in run("--episodes", "2")[1]
    with pytest.raises(SpecError, match="for files of the authors' code give `method`"):
        dmray.load_published_policy({"action": tmp_path}, "hopper")
