"""How long the states of a policy with Mamba last, before and after training, and what its score needs of them.

The memory length of a state is 1 / (delta |A|) tokens, over the tokens of a timestep: after so many timesteps with the
step size delta it has decayed to 1/e. It is infinite without decay (A = 0) and zero without memory. The distribution is
that over tokens, channels and states, in windows of the data set that are the same for all policies of one context.

A score with states that are cut off after n timesteps is that of decode mode `window` with a window of n timesteps: at
each timestep the networks run on the last n timesteps from empty states, so neither a state nor the convolution holds
anything older. What a token itself says of the timestep before it (an action that was taken) stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dmray.analysis.stored import DataSets, LeftOut, MeasuredPolicy, StoredPolicies, open_data, settings_of
from dmray.datasets import Episodes, Windows, WindowSampler
from dmray.errors import SpecError
from dmray.inference import Policy, evaluate, evaluation_request
from dmray.models.mamba import Mamba
from dmray.models.mamba_block import Block, MambaMixer
from dmray.policies import SequenceModel, SequencePolicy, initial_policy

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
    """The tables; `left_out`: sentences about policies that are in none of them. `failed`: about policies and data sets
    that cannot be read.

    `lengths`: memory lengths in timesteps, a row for each policy, stage, layer and `weights` (start, trained).
    `scores`: normalized scores, a row for each policy and cut (empty without a cut). `lengths_by_setting` and
    `scores_by_setting` have means over seeds: of lengths the geometric mean.
    """

    lengths: pd.DataFrame
    scores: pd.DataFrame
    left_out: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

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

    A policy or a data set that is missing, damaged or another one by now is in `failed`; the others are analysed.

    Raises:
        SpecError: no policy has Mamba, or an episode of a task is not longer than a cut.
        CheckpointError, DatasetError: no policy, or no data set, can be used.
        EngineError: a cut is to be evaluated, and the task has no simulator here.
    """
    left_out, without, unread = list(stored.left_out), list[str](), list[str]()
    drawn = DataSets(lambda policy: draw_windows(open_data(policy).episodes, policy, windows))
    measured: list[MeasuredPolicy] = []
    lengths: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for number, (each, policy) in enumerate(stored.load_each(), start=1):
        if isinstance(policy, LeftOut):
            (unread if policy.failed else left_out).append(policy.sentence)
        elif has_mamba(policy.network):
            of_data = drawn.of(policy, policy.network.tokens, policy.context_length)
            if of_data is not None:
                lengths += [_about(policy) | row for row in _rows_of(policy, of_data)]
                if cut_off is not None:
                    scores += [_about(policy) | row for row in scores_when_cut_off(policy, cut_off)]
                measured.append(MeasuredPolicy(policy.trial, policy.step, policy.dataset_fingerprint))
        else:
            without.append(f"{each.source}: {policy.method.upper()} has no Mamba, so nothing decays in it")
        if on_policy is not None:
            on_policy(number, len(stored.policies))
    failed = drawn.failed_with(unread, measured)
    if not measured:
        raise SpecError(f"{without[0]}; give policies of a method with Mamba: dm, dm+r or hdm")
    names = settings_of(measured)
    for row in (*lengths, *scores):
        row |= names[row["trial_id"], row["step"]]._asdict()
    return DecayAnalysis(pd.DataFrame(lengths), pd.DataFrame(scores), (*left_out, *without), failed)


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
    context, step_sizes = windows.valid.shape[1], _step_sizes(policy, windows)
    for name, stage in zip(policy.stage_names, policy.stages, strict=True):
        model = cast(SequenceModel, stage)
        per_timestep = len(model.layout.tokens)
        valid = windows.valid.repeat_interleave(per_timestep, dim=1)
        for number, mixer in enumerate(_mixers(model), start=1):
            lengths = _lengths(mixer, step_sizes[mixer][valid]) / per_timestep
            quantiles = np.quantile(lengths, [*QUANTILES.values()], method="inverted_cdf")
            by_name = dict(zip(QUANTILES, quantiles.tolist(), strict=True))
            found.append(LayerLengths(name, number, by_name, float((lengths > context).mean())))
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
    if network.recipe.predicts_differences:
        start.set_difference_statistics(network.difference_mean, network.difference_std)
    for weights, measured in ((START, start), (TRAINED, network)):
        for stage, layer, quantiles, beyond in memory_lengths(measured, windows):
            yield {"stage": stage, "layer": layer, "weights": weights, **quantiles, "beyond_context": beyond}


def _mixers(stage: SequenceModel) -> list[MambaMixer]:
    return [cast(Block, layer).mixer for layer in cast(Mamba, stage.backbone).layers]


@torch.inference_mode()
def _step_sizes(policy: SequencePolicy, windows: Windows) -> dict[MambaMixer, Tensor]:
    """The step sizes (B, L, I) of each mixer."""
    taken: dict[MambaMixer, Tensor] = {}

    def take(mixer: MambaMixer, inputs: tuple[Tensor]) -> None:
        taken[mixer] = mixer.step_sizes(inputs[0])

    mixers = [mixer for stage in policy.stages for mixer in _mixers(cast(SequenceModel, stage))]
    hooks = [mixer.register_forward_pre_hook(cast(Any, take)) for mixer in mixers]
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


def _about(policy: Policy) -> dict[str, Any]:
    trial = policy.trial
    return {
        "trial_id": trial.trial_id,
        "dataset": trial.dataset.name,
        "method": trial.method,
        "seed": trial.seed,
        "step": policy.step,
        "context_length": policy.context_length,
    }


def _geometric_mean(lengths: pd.Series[float]) -> float:
    with np.errstate(divide="ignore"):  # of a memory length of 0
        return float(np.exp(np.log(lengths.to_numpy()).mean()))
