"""Exported folders: loaded back by dmray, by torch and onnxruntime alone, and by the Hugging Face Hub's library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import dmray
from dmray.cli.export import app
from dmray.errors import CheckpointError, SpecError, StorageError
from dmray.exports import card
from dmray.exports.scores import scores_of
from dmray.specs import DatasetSpec

pytest.importorskip("safetensors", reason="needs dmray[export]")
_WITHOUT_DMRAY = """
import json, os, sys
import numpy as np

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dmray", "huggingface_hub", "ray", "mlflow"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
try:
    import dmray
except ImportError:
    pass
else:
    raise AssertionError("dmray can be imported")
cards, observations, returns_to_go = json.load(sys.stdin)
played = []
for folder, block in cards:
    os.chdir(folder)
    names = {}
    exec(block, names)
    state, as_array = {name: each * 0 for name, each in names["state"].items()}, "session" in names
    tensor = (lambda x: np.array(x, np.float32)) if as_array else (lambda x: names["torch"].tensor(x))
    actions = []
    for observation, left in zip(observations, returns_to_go):
        given = {"observation": tensor([observation]), "return_to_go": tensor([left])}
        if "return_to_go" not in block:
            del given["return_to_go"]
        if as_array:
            action, *new = names["session"].run(None, {**given, **state})
            state = dict(zip(state, new))
        else:
            action, state = names["step"](*given.values(), state)
        actions.append(action[0].tolist())
    played.append(actions)
print(json.dumps(played))
"""


@pytest.fixture(scope="module")
def weights(trial_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DM's policy as safetensors, with its model card."""
    return dmray.export_policy(trial_folders["dm"], tmp_path_factory.mktemp("export") / "dm").folder


def code_blocks(card_text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card_text, re.DOTALL | re.MULTILINE)


def actions_of(
    policy: dmray.Policy, observations: np.ndarray, rewards: np.ndarray, decode: str | None = None
) -> np.ndarray:
    rollout = policy.start(decode=decode)
    acts = [rollout.act(each, None if t == 0 else rewards[t - 1]) for t, each in enumerate(observations)]
    return np.stack(acts)


def recorded(policy: dmray.Policy, length: int = 20) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(length, policy.observation_dim)).astype(np.float32), draw.uniform(size=length)


def test_exported_weights_are_the_same_policy(weights: Path, trial_folders: dict[str, Path]) -> None:
    first, second = dmray.load_policy(trial_folders["dm"]), dmray.load_policy(weights)
    np.testing.assert_array_equal(*(actions_of(policy, *recorded(first)) for policy in (first, second)))
    assert second == replace(first, folder=None, snapshot=second.snapshot)
    assert dmray.evaluate_policy(second).normalized == dmray.evaluate_policy(first).normalized


def test_the_code_on_the_card_acts_without_dmray(trial_folders: dict[str, Path], tmp_path: Path) -> None:
    """In a process in which dmray cannot be imported, over an episode of recorded observations."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs dmray[export]")
    dt, dm = (dmray.load_policy(trial_folders[method]) for method in ("dt", "dm"))
    first = dmray.export_policy(dt, tmp_path / "dt", "torchscript")
    second = dmray.export_policy(dm, tmp_path / "dm", ["pt2", "onnx"], decode="recurrent")
    cards = [
        (str(made.folder), block)
        for made in (first, second)
        for block in code_blocks((made.folder / "README.md").read_text())
    ]
    assert max(first.largest_difference or 1.0, second.largest_difference or 1.0) <= 1e-5
    observations, rewards = recorded(dt)
    left = dt.target_returns[0] - np.concatenate([[0.0], np.cumsum(rewards)[:-1]])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WITHOUT_DMRAY],
        input=json.dumps([cards, observations.tolist(), left.tolist()]),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    played = json.loads(run.stdout.splitlines()[-1])
    wanted = [actions_of(dt, observations, rewards), *[actions_of(dm, observations, rewards, "recurrent")] * 2]
    np.testing.assert_allclose(played, wanted, rtol=0, atol=1e-5)


def test_the_code_for_the_weights_runs_in_the_folder(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights)
    names: dict[str, object] = {}
    (block,) = code_blocks((weights / "README.md").read_text())
    exec(compile(block, "README.md", "exec"), names)
    assert np.shape(names["action"]) == (2,)


def test_the_card_has_the_scores_of_the_ledger(weights: Path, ran: dmray.SweepRun) -> None:
    text = (weights / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    row = ran.trials.set_index("method").loc["dm"]
    last, best = "last (weights after the last step)", "best (highest during training)"
    values = {each["name"]: each["value"] for each in front["model-index"][0]["results"][0]["metrics"]}
    assert values[f"normalized score, {last}"] == round(row.last_normalized_score, 2)
    assert f"| {last} |" in text
    assert f"| {best} |" in text
    policy = dmray.load_policy(weights)
    for fact in (
        policy.dataset_fingerprint, "# DM of open-expert, seed 0, after 40 steps", "- seed: 0", "evaluation seed: 0",
        f"| 40 (these weights) | {row.last_normalized_score:.1f} \\[", "learning_rate: 0.001", "- licence of the data:",
        "| all seeds |", "- trained with: python",
    ):  # fmt: skip
        assert str(fact) in text


def test_the_front_matter_has_only_scores_of_the_exported_weights(
    trial_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub shows them as results of the model. Here the best score is of earlier weights than the exported ones."""
    found = scores_of(dmray.load_policy(trial_folders["dm"]))
    last, best = found.of_trial
    earlier = replace(found, of_trial=(last, replace(best, step=20)))
    monkeypatch.setattr("dmray.exports.folder.scores_of", lambda policy: earlier)
    text = (dmray.export_policy(trial_folders["dm"], tmp_path / "out").folder / "README.md").read_text()
    (result,) = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert [each["name"] for each in result["metrics"]] == [f"normalized score, {last.name}"]
    assert f"| {best.name} | 20 |" in text


def test_a_checkpoint_alone_has_a_card_without_scores(trial_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "alone.pt").write_bytes((trial_folders["dm"] / "checkpoints" / "best.pt").read_bytes())
    exported = dmray.export_policy(tmp_path / "alone.pt", tmp_path / "out")
    text = (exported.folder / "README.md").read_text()
    assert "records were not at hand" in text
    assert "model-index" not in text


def test_the_hub_reads_the_card_and_loads_the_folder(weights: Path, tmp_path: Path) -> None:
    """As `snapshot_download` finds it in its cache, where files are links, without a network."""
    hub = pytest.importorskip("huggingface_hub", reason="needs dmray[export]")
    loaded = hub.ModelCard.load(weights / "README.md", ignore_metadata_errors=False)
    assert hub.metadata_load(weights / "README.md") == loaded.data.to_dict()
    assert loaded.data.license == "other"
    assert loaded.data.library_name == "dmray"
    assert {result.dataset_type for result in loaded.data.eval_results} == {"made"}
    place = tmp_path / "models--somebody--dm"
    for folder in ("refs", "blobs", "snapshots/0123"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text("0123")
    for number, file in enumerate(sorted(weights.iterdir())):
        (place / "blobs" / str(number)).write_bytes(file.read_bytes())
        (place / "snapshots" / "0123" / file.name).symlink_to(f"../../blobs/{number}")
    found = hub.snapshot_download("somebody/dm", cache_dir=tmp_path, local_files_only=True)
    assert dmray.load_policy(found).trial == dmray.load_policy(weights).trial


def test_a_folder_is_replaced_only_if_it_is_an_export_and_force_is_given(
    trial_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(StorageError, match="mine: is no export of dmray, so --force does not replace it"):
        dmray.export_policy(trial_folders["dm"], tmp_path / "mine", force=True)
    dmray.export_policy(trial_folders["dm"], tmp_path / "out")
    with pytest.raises(StorageError, match="out: exists; give another folder, or --force"):
        dmray.export_policy(trial_folders["dt"], tmp_path / "out")
    dmray.export_policy(trial_folders["dt"], tmp_path / "out", force=True)
    assert dmray.load_policy(tmp_path / "out").method == "dt"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"out: has 'notes.txt', which no export wrote, and --force would delete it"):
        dmray.export_policy(trial_folders["dm"], tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_an_address_is_no_folder_to_export_to(
    trial_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("s3://bucket/exported", Path("s3://bucket/exported"), "file:///exported"):
        with pytest.raises(SpecError, match=r"folder (s3|file):/.* is an address; give a folder on this machine"):
            dmray.export_policy(trial_folders["dm"], address)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_what_was_there(
    trial_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmray.export_policy(trial_folders["dm"], tmp_path / "out")
    seen: list[Path] = []

    def fails(facts: card.CardFacts) -> str:
        seen.extend(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("dmray.exports.folder.model_card", fails)
    with pytest.raises(KeyboardInterrupt):
        dmray.export_policy(trial_folders["dt"], tmp_path / "out", force=True)
    assert {path.name for path in seen if not path.name.endswith(".part")} == {"out"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert dmray.load_policy(tmp_path / "out").method == "dm"


def test_damaged_exports_are_refused(weights: Path, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in weights.iterdir()}

    def refused(name: str, content: bytes | None, problem: str, **options: str) -> None:
        for each, whole in files.items():
            (tmp_path / each).write_bytes(whole)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises((CheckpointError, SpecError), match=problem):
            dmray.load_policy(tmp_path, **options)  # type: ignore[arg-type]

    flipped = files["model.safetensors"][:-1] + bytes([files["model.safetensors"][-1] ^ 1])
    config = json.loads(files["config.json"])
    refused("model.safetensors", flipped, "not the file that was exported .its checksum differs.")
    refused("model.safetensors", None, r"model\.safetensors: no such file")
    refused("config.json", files["config.json"][:300], r"config\.json: is damaged or cut off: it is no JSON; export")
    refused(
        "config.json",
        json.dumps(config | {"format_version": 2}).encode(),
        "config.json: format_version: .*; load it with the version of dmray that wrote it, or export the policy again",
    )
    refused("config.json", json.dumps(config | {"shape": config["shape"] | {"action_dim": 3}}).encode(), "sizes")
    refused("config.json", json.dumps(config | {"weights_sha256": None}).encode(), "without model.safetensors")
    refused("README.md", b"", "checkpoint best: .* is an export", checkpoint="best")


@pytest.mark.parametrize(
    ("formats", "options", "problem"),
    [
        (["onx"], {}, "unknown format 'onx', did you mean 'onnx'?"),
        (None, {}, "format None: give a name or a list of names"),
        ([], {}, "format: give each once, and at least one of safetensors, torchscript, pt2, onnx"),
        (["pt2", "pt2"], {}, "format: give each once"),
        (["safetensors"], {"decode": "window"}, "decode window: model.safetensors has the weights alone"),
        (["torchscript"], {"decode": "recurrent"}, "decode recurrent: backbone 'transformer' of method 'dt'"),
        (["safetensors"], {"checkpoint": "best"}, "checkpoint, mlflow_uri: the policy is loaded already"),
    ],
)
def test_wrong_options_are_errors(
    formats: list[str], options: dict[str, str], problem: str, trial_folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = dmray.load_policy(trial_folders["dt"])
    with pytest.raises(SpecError, match=re.escape(problem)):
        dmray.export_policy(policy, tmp_path / "out", formats, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(trial_folders: dict[str, Path], tmp_path: Path) -> None:
    command = [
        str(trial_folders["dm"]),
        "--format",
        "torchscript",
        "--out",
        str(tmp_path / "out"),
        "--decode",
        "recurrent",
    ]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    assert f"torchscript: {tmp_path / 'out' / 'policy.torchscript'}" in ran.output
    assert "compared with dmray over an episode: actions differ by at most" in ran.output
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, "exists; give another folder" in again.output) == (1, True)


def test_the_licence_is_that_of_the_data() -> None:
    made = {"task": "hopper", "generate": {"behaviour": "random", "transitions": 100, "seed": 0}}
    for fields, wanted in (
        ({"name": "hopper-medium-v2"}, "cc-by-4.0"),
        ({"name": "bullet-hopper-medium-v0"}, "cc-by-4.0"),
        ({"name": "part", "catalog": "hopper-medium-v2", "task": "hopper"}, "cc-by-4.0"),
        ({"name": "minari-hopper-medium-v0"}, "unknown"),
        ({"name": "mine", "task": "hopper", "path": "mine.hdf5"}, "unknown"),
        ({"name": "mine", **made}, "other"),
    ):
        assert card.license_of(DatasetSpec.model_validate(fields))[0] == wanted
