"""The model card of an exported policy: README.md with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmray.escaping import one_line
from dmray.exports.scores import PolicyScores, interval_over_seeds
from dmray.inference import Policy
from dmray.methods import METHODS
from dmray.records import Spread
from dmray.reporting import Protocol
from dmray.reporting.aggregates import estimate_text
from dmray.reporting.document import Block, Bullets, Heading, Paragraph, Table, TableCell, to_markdown
from dmray.reporting.tables import spread_text
from dmray.specs import DatasetSpec
from dmray.tasks import DATASETS, FAMILIES, protocol_of, task_of

_TASK = "reinforcement-learning"  # the Hub's name


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from. `step`: of config.json, None without a file that acts; `files`: by format."""

    policy: Policy
    scores: PolicyScores
    files: Mapping[str, str]
    step: Mapping[str, Any] | None
    largest_difference: float | None
    versions: Mapping[str, str | None]


def model_card(facts: CardFacts) -> str:
    """The text of README.md."""
    policy = facts.policy
    blocks = [Heading(str(policy), 1), *_what_it_is(policy), *_scores(policy, facts.scores), *_training(policy)]
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    body = to_markdown([*blocks, *_versions(facts), *_acting(facts)], Path())
    return f"---\n{front}---\n\n{body}{_loading(facts)}"


def license_of(dataset: DatasetSpec) -> tuple[str, str]:
    """The licence of a data set as the Hub names it, and a sentence about it."""
    if dataset.generate is not None:
        return "other", "The data were recorded by dmray, so no licence of others applies to them."
    entry = DATASETS.get(dataset.catalog_name) if dataset.path is None else None
    task = task_of(dataset)
    known = FAMILIES[(task.protocol, task.family)].data_license if entry is not None else ""
    if known:
        return known, f"The data set {dataset.catalog_name} is published under {known.upper()}: name its authors."
    return "unknown", "The licence of the data is not known to dmray: ask whoever published them."


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    trial, method = facts.policy.trial, METHODS[facts.policy.method]
    license_id, _ = license_of(trial.dataset)
    named = {"license_name": "data-recorded-by-dmray"} if license_id == "other" else {}
    front: dict[str, Any] = {
        "license": license_id,
        **named,
        "library_name": "dmray",
        "pipeline_tag": _TASK,
        "tags": [_TASK, "offline-rl", "behaviour-cloning", method.backbone.name, method.label, facts.policy.task.name],
        "datasets": [trial.dataset.name],
    }
    metrics = [  # of these weights: the Hub shows them as results of the model
        {  # + 0.0 makes 0.0 of -0.0
            "type": "normalized_score",
            "name": f"normalized score, {score.name}",
            "value": round(value, 2) + 0.0,
        }
        for score in facts.scores.of_trial
        if score.step == facts.policy.step and (value := score.normalized.value) == value
    ]
    if metrics:
        result = {
            "task": {"type": _TASK, "name": _TASK},
            "dataset": {"name": trial.dataset.name, "type": protocol_of(trial.dataset)},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": f"{trial.method}-{trial.dataset.name}-seed{trial.seed}", "results": [result]}]
    return front


def _what_it_is(policy: Policy) -> list[Block]:
    trial, recipe, method = policy.trial, policy.snapshot.recipe, METHODS[policy.method]
    dataset, reference = trial.dataset, policy.task.reference
    parameters = method.num_parameters(recipe.model, recipe.shape)
    part = "" if dataset.fraction == 1.0 else f" ({dataset.fraction:g} of its episodes)"
    origin = Path(dataset.path).name if dataset.path is not None else ""
    made = dataset.generate
    if made is not None:
        origin = f"recorded by dmray: behaviour {made.behaviour}, {made.transitions:,} transitions, seed {made.seed}"
    returns = ", ".join(f"{each:g}" for each in policy.target_returns)
    facts = {
        "method": f"{method.label}: {method.summary} ({method.source})",
        "sizes": ", ".join(f"{name} {value}" for name, value in recipe.model.model_dump().items()),
        "parameters": f"{parameters:,}",
        "weights": f"after {policy.step:,} optimizer steps",
        "seed": str(trial.seed),
        "task": f"{policy.task.name} ({policy.task.env_id}), episodes of at most {policy.task.horizon} timesteps",
        "observation": f"{recipe.shape.observation_dim} numbers, raw" + _zeros(policy),
        "action": f"{recipe.shape.action_dim} numbers within {recipe.shape.action_limit:g} of zero",
        "target returns": returns or "none: the method takes no return",
        "data": ", ".join(filter(None, (dataset.name + part, origin))),
        "data fingerprint": policy.dataset_fingerprint or "not known",
        "licence of the data": license_of(dataset)[1],
        "0 and 100 of the normalized score": f"returns {reference.minimum:g} and {reference.maximum:g} "
        f"({reference.source})",
        "trial": trial.trial_id,
    }
    weights = "The weights are made from these data; whoever publishes them chooses their licence."
    return [_listed(facts), Paragraph(weights)]


def _zeros(policy: Policy) -> str:
    count = policy.task.zero_dims
    return f"; the last {count} are zeros that the simulator does not give" if count else ""


def _scores(policy: Policy, scores: PolicyScores) -> list[Block]:
    blocks: list[Block] = [Heading("Scores", 2)]
    if scores.of_trial:
        heads = ("this seed", "after step", "normalized, mean [95 %]", "raw return", "episodes", "target return")
        rows = [
            _row(
                each.name,
                f"{each.step:,}" + (" (these weights)" if each.step == policy.step else ""),
                estimate_text(each.normalized),
                f"{each.return_mean:.4g}",
                str(each.normalized.runs),
                "-" if each.target_return is None else f"{each.target_return:g}",
            )
            for each in scores.of_trial
        ]
        note = "Intervals: bootstrap over the episodes of one evaluation. The best is chosen, so it is optimistic."
        blocks.append(Table("Scores of this policy's trial", heads, tuple(rows), note))
    if scores.missing:
        blocks.append(Paragraph(scores.missing))
    if scores.group is not None and scores.of_seeds:
        columns = ("all seeds", "seeds", "normalized, mean ± std", "IQM [95 %]")
        of_seeds = tuple(
            _row(name, str(len(values)), spread_text(Spread.of(values.tolist())), _iqm(values))
            for name, values in scores.of_seeds.items()
        )
        blocks.append(Table(f"Scores of all seeds of its sweep: {scores.group.label}", columns, of_seeds))
    return blocks


def _iqm(values: Any) -> str:
    return estimate_text(interval_over_seeds(values)) if len(values) > 1 else "-"


def _training(policy: Policy) -> list[Block]:
    trial = policy.trial
    evaluation = trial.evaluation
    protocol = Protocol(
        protocol_of(trial.dataset),
        evaluation.decode,
        evaluation.episodes,
        evaluation.seed,
        action_noise=evaluation.action_noise,
        observation_noise=evaluation.observation_noise,
    )
    return [
        Heading("Protocol and training", 2),
        Paragraph("Scores of other protocols, data or code are not comparable with these."),
        _listed(protocol.settings),
        Paragraph("Training, as in the sweep file:"),
        _listed(trial.used_training),
    ]


def _versions(facts: CardFacts) -> list[Block]:
    trained = facts.scores.provenance or {}
    git, hardware = trained.get("git") or {}, trained.get("hardware") or {}
    versions = {
        "trained with": _joined(trained.get("versions") or {}),
        "trained on": _joined({name: hardware.get(name) for name in ("cpu", "gpu")}),
        "commit of dmray": str(git.get("commit") or "") + (" (with changes)" if git.get("dirty") else ""),
        "exported with": _joined(facts.versions),
    }
    return [Heading("Versions", 2), _listed(versions)]


def _acting(facts: CardFacts) -> list[Block]:
    if facts.step is None:
        return [Heading("How to load", 2)]
    taken = "observation, return_to_go, state" if "return_to_go" in facts.step["inputs"] else "observation, state"
    sentences = [
        f"The files other than model.safetensors act step by step in decode mode {facts.step['decode']}: from {taken} "
        "to action and the next state. Observations and actions are raw: the normalization is inside.",
        "All inputs have the number of episodes as their first size; config.json has the shapes of the state. A row of "
        "the state that is all zeros begins a new episode.",
        f"An episode has at most {facts.policy.max_timesteps} timesteps. Over an episode of drawn observations no "
        f"action differed by more than {facts.largest_difference:.1g} from dmray's.",
    ]
    if "return_to_go" in facts.step["inputs"]:
        sentences.append("return_to_go is the target return minus the rewards so far, raw.")
    return [Heading("How to load", 2), Bullets(tuple(sentences))]


def _loading(facts: CardFacts) -> str:
    """The code for each file; a test runs it in the folder."""
    policy = facts.policy
    size, target = policy.observation_dim, (policy.target_returns or (0.0,))[0]
    parts = []
    for name, file in facts.files.items():
        code = _CODE[name].format(file=file, size=size, target=f"{target!r}")
        lines = [line for line in code.strip().splitlines() if policy.takes_target or "return_to_go" not in line]
        text = "\n".join(lines).replace(" RETURN,", " return_to_go," if policy.takes_target else "")
        parts.append(f"{_HEADINGS[name]}\n\n```python\n{text}\n```\n")
    return "\n" + "\n".join(parts)


_HEADINGS = {
    "safetensors": "With dmray, in any decode mode:",
    "torchscript": "TorchScript, with torch alone (PyTorch advises torch.export instead):",
    "pt2": "torch.export, with torch alone:",
    "onnx": "ONNX, with onnxruntime and NumPy alone:",
}
_START_TORCH = """
import json
import torch

with open("config.json") as file:
    fields = json.load(file)["step"]["state"]
state = {{name: torch.zeros(1, *each["shape"], dtype=getattr(torch, each["dtype"])) for name, each in fields.items()}}
"""
_STEP_TORCH = """
observation = torch.zeros(1, {size})  # an environment's
return_to_go = torch.tensor([{target}])  # after each step: return_to_go -= reward
action, state = step(observation, RETURN, state)
"""
_CODE = {
    "safetensors": """
import dmray

policy = dmray.load_policy(".")  # this folder, for example what huggingface_hub.snapshot_download returns
rollout = policy.start()
action = rollout.act([0.0] * {size})  # an environment's observation; then act(observation, reward)
""",
    "torchscript": _START_TORCH + 'step = torch.jit.load("{file}")' + _STEP_TORCH,
    "pt2": _START_TORCH + 'step = torch.export.load("{file}").module()' + _STEP_TORCH,
    "onnx": """
import json
import numpy as np
import onnxruntime

with open("config.json") as file:
    fields = json.load(file)["step"]["state"]
state = {{name: np.zeros((1, *each["shape"]), each["dtype"]) for name, each in fields.items()}}
session = onnxruntime.InferenceSession("{file}")
inputs = {{"observation": np.zeros((1, {size}), np.float32)}}  # an environment's
inputs["return_to_go"] = np.array([{target}], np.float32)  # after each step: minus the reward
action, *new = session.run(None, {{**inputs, **state}})
state = dict(zip(state, new))
""",
}


def _listed(values: Mapping[str, Any]) -> Bullets:
    texts = {name: "-" if value is None else one_line(str(value)) for name, value in values.items()}
    return Bullets(tuple(f"{name}: {text}" for name, text in texts.items() if text))


def _row(*cells: str) -> tuple[TableCell, ...]:
    return tuple(map(TableCell, cells))


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value)
