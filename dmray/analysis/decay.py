"""How long the states of a policy with Mamba last, before and after training, and what its score needs of them.

The memory length of a state is 1 / (delta |A|) tokens, over the tokens of a timestep: after so many timesteps with the
step size delta it has decayed to 1/e. It is infinite without decay (A = 0) and zero without memory. The distribution is
that over tokens, channels and states, in windows of the data set that are the same for all policies of one context.

A score with states that are cut off after n timesteps is that of decode mode `window` with a window of n timesteps: at
each timestep the networks run on the last n timesteps from empty states, so neither a state nor the convolution holds
anything older. What a token itself says of the timestep before it (an action that was taken) stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dmray.analysis.stored import StoredPolicies, open_data
from dmray.datasets import Episodes, Windows, WindowSampler
from dmray.errors import SpecError
from dmray.inference import Policy, evaluate, evaluation_request
from dmray.models.mamba import Mamba
from dmray.models.mamba_block import Block, MambaMixer
from dmray.planning.settings import details_of
from dmray.policies import SequenceModel, SequencePolicy, initial_policy
from dmray.specs import TrialSpec

QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
START, TRAINED = "start", "trained"
_SETTING = ("dataset", "method", "setting", "context_length")
_LAYER = ("stage", "layer", "weights")
_SEED_OF_WINDOWS = 0
OnPolicy = Callable[[int, int], None]  # called with the numbers of finished and of all policies


@dataclass(frozen=True)
class CutOff:
    """Evaluate with states that are cut off after each of `timesteps` timesteps, `episodes` episodes each."""

    timesteps: tuple[int, ...]
    episodes: int = 20
    workers: int = 1


@dataclass(frozen=True)
class DecayAnalysis:
    """The tables; `left_out`: sentences about policies that are in none of them.

    `lengths`: memory lengths in timesteps, a row for each policy, stage, layer and `weights` (start, trained).
    `scores`: normalized scores, a row for each policy and cut (empty without a cut). `lengths_by_setting` and
    `scores_by_setting` have means over seeds: of lengths the geometric mean.
    """

    lengths: pd.DataFrame
    scores: pd.DataFrame
    left_out: tuple[str, ...] = ()

    @property
    def lengths_by_setting(self) -> pd.DataFrame:
        groups = self.lengths.groupby([*_SETTING, *_LAYER], sort=False)
        means = groups[[*QUANTILES]].agg(_geometric_mean)
        means["beyond_context"], means["seeds"] = groups["beyond_context"].mean(), groups["seed"].nunique()
        return means.reset_index()

    @property
    def scores_by_setting(self) -> pd.DataFrame:
        if self.scores.empty:
            return self.scores
        groups = self.scores.groupby([*_SETTING, "timesteps"], sort=False)["normalized_score"]
        table = groups.agg(["mean", "min", "max", "count"]).reset_index()
        return table.rename(columns={"count": "seeds"})


class LayerLengths(NamedTuple):
    """Memory lengths of one layer, from 1, in timesteps: `quantiles`, and the share of lengths above the context."""

    stage: str
    layer: int
    quantiles: dict[str, float]
    beyond_context: float


def analyze_decay(
    stored: StoredPolicies,
    *,
    windows: int = 16,
    cut_off: CutOff | None = None,
    on_policy: OnPolicy | None = None,
) -> DecayAnalysis:
    """Measure the memory lengths of stored policies in `windows` windows of their data sets; evaluate with `cut_off`.

    Raises:
        SpecError: no policy has Mamba, or an episode of a task is not longer than a cut.
        CheckpointError: a policy cannot be read. DatasetError: its data set is missing, or another one by now.
        EngineError: a cut is to be evaluated, and the task has no simulator here.
    """
    left_out, drawn = list(stored.left_out), dict[object, Windows]()
    read: dict[tuple[str, int], TrialSpec] = {}
    lengths: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for number, each in enumerate(stored.policies, start=1):
        policy = each.load()
        if not has_mamba(policy.network):
            left_out.append(f"{each.source}: {policy.method.upper()} has no Mamba, so nothing decays in it")
            continue
        trial = policy.trial
        about = {"trial_id": trial.trial_id, "dataset": trial.dataset.name, "method": trial.method, "seed": trial.seed}
        about |= {"step": policy.step, "context_length": policy.context_length}
        kind = (trial.dataset, policy.network.tokens, policy.context_length)
        if kind not in drawn:
            drawn[kind] = draw_windows(open_data(policy).episodes, policy, windows)
        lengths += [about | row for row in _rows_of(policy, drawn[kind])]
        if cut_off is not None:
            scores += [about | row for row in scores_when_cut_off(policy, cut_off)]
        read[trial.trial_id, policy.step] = trial
        if on_policy is not None:
            on_policy(number, len(stored.policies))
    if not read:
        raise SpecError(f"{left_out[0]}; give policies of a method with Mamba: dm, dm+r or hdm")
    settings = _settings_of(read)
    for row in (*lengths, *scores):
        row["setting"] = settings[row["trial_id"], row["step"]]
    return DecayAnalysis(pd.DataFrame(lengths), pd.DataFrame(scores), tuple(left_out))


def has_mamba(policy: SequencePolicy) -> bool:
    """Whether the policy's networks are Mamba."""
    return all(isinstance(cast(SequenceModel, stage).backbone, Mamba) for stage in policy.stages)


def draw_windows(episodes: Episodes, policy: Policy, count: int) -> Windows:
    """`count` training windows, by a seed of their own: the same for all policies with these tokens and context.

    A trial trains on its whole data set, so it may have seen them.
    """
    sampler = WindowSampler(episodes, policy.network.tokens, context_length=policy.context_length, batch_size=count)
    return sampler.sample(torch.Generator().manual_seed(_SEED_OF_WINDOWS))


def memory_lengths(policy: SequencePolicy, windows: Windows) -> list[LayerLengths]:
    """The distribution of memory lengths in each layer of each stage, over the valid timesteps of `windows`."""
    found = []
    context = windows.valid.shape[1]
    for name, stage in zip(policy.stage_names, policy.stages, strict=True):
        model = cast(SequenceModel, stage)
        per_timestep = len(model.layout.tokens)
        valid = windows.valid.repeat_interleave(per_timestep, dim=1)
        for number, (mixer, steps) in enumerate(_step_sizes(policy, model, windows), start=1):
            lengths = _lengths(mixer, steps[valid]) / per_timestep
            quantiles = np.quantile(lengths, [*QUANTILES.values()], method="inverted_cdf")
            rows = dict(zip(QUANTILES, quantiles.tolist(), strict=True))
            found.append(LayerLengths(name, number, rows, float((lengths > context).mean())))
    return found


def scores_when_cut_off(policy: Policy, cut_off: CutOff) -> Iterator[dict[str, Any]]:
    """The score with each of the cuts, and with the policy's own context length; for its first target return."""
    if (longest := max(cut_off.timesteps)) >= policy.task.horizon:
        raise SpecError(
            f"cut {longest}: an episode of {policy.task.name} has {policy.task.horizon} timesteps; give a smaller one"
        )
    targets = policy.target_returns[:1] or None
    for timesteps in sorted({*cut_off.timesteps, policy.context_length}):
        cut = with_context(policy, timesteps)
        request = evaluation_request(cut, episodes=cut_off.episodes, decode="window", target_returns=targets)
        result = evaluate(cut, request, workers=cut_off.workers).scores[0]
        yield {
            "timesteps": timesteps,
            "episodes": cut_off.episodes,
            "normalized_score": result.normalized_mean,
            "deviation": result.normalized_std,
        }


def with_context(policy: Policy, timesteps: int) -> Policy:
    """The policy with another context length. Mamba has no weights that depend on it."""
    recipe = policy.snapshot.recipe
    model = recipe.model.model_copy(update={"context_length": timesteps})
    return replace(policy, snapshot=replace(policy.snapshot, recipe=replace(recipe, model=model)))


def _rows_of(policy: Policy, windows: Windows) -> Iterator[dict[str, Any]]:
    network = policy.network
    start = initial_policy(policy.snapshot.recipe, policy.trial.seed).eval()
    start.set_statistics(network.state_mean, network.state_std)
    for weights, measured in ((START, start), (TRAINED, network)):
        for stage, layer, quantiles, beyond in memory_lengths(measured, windows):
            yield {"stage": stage, "layer": layer, "weights": weights, **quantiles, "beyond_context": beyond}


@torch.inference_mode()
def _step_sizes(policy: SequencePolicy, stage: SequenceModel, windows: Windows) -> list[tuple[MambaMixer, Tensor]]:
    """Each mixer of the stage, and its step sizes (B, L, I)."""
    taken: list[tuple[MambaMixer, Tensor]] = []
    layers = [cast(Block, layer).mixer for layer in cast(Mamba, stage.backbone).layers]

    def take(mixer: MambaMixer, inputs: tuple[Tensor]) -> None:
        taken.append((mixer, mixer.step_sizes(inputs[0])))

    hooks = [mixer.register_forward_pre_hook(cast(Any, take)) for mixer in layers]
    try:
        policy.predict(windows)
    finally:
        for hook in hooks:
            hook.remove()
    return taken


def _lengths(mixer: MambaMixer, steps: Tensor) -> np.ndarray:
    """1 / (delta |A|) in tokens, for step sizes (M, I): a flat array."""
    if mixer.memoryless:
        return np.zeros(1)
    lengths: np.ndarray = (1.0 / (steps[:, :, None] * mixer.rates().detach().abs())).flatten().numpy()
    return lengths


def _settings_of(read: Mapping[tuple[str, int], TrialSpec]) -> dict[tuple[str, int], str]:
    """What tells settings of a method on a data set apart, by trial id and step; with steps if a trial has several."""
    details: dict[str, str] = {}
    for name in dict.fromkeys(trial.dataset.name for trial in read.values()):
        details |= details_of([trial for trial in read.values() if trial.dataset.name == name])
    several = len({trial_id for trial_id, _ in read}) < len(read)
    return {
        (trial_id, step): ", ".join(filter(None, (details[trial.seed_group_id], f"step {step:,}" if several else "")))
        for (trial_id, step), trial in read.items()
    }


def _geometric_mean(lengths: pd.Series[float]) -> float:
    with np.errstate(divide="ignore"):  # of a memory length of 0
        return float(np.exp(np.log(lengths.to_numpy()).mean()))
