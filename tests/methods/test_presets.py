"""Each preset of DT does what its source does: initial weights, forward pass, loss and windows, by formulas.

The formulas are written here from the three published implementations; nothing of dmray is used for them. `d` is the
width, B windows, T timesteps, L = 3 T tokens in the order return-to-go, state, action.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmray.datasets import Windows, WindowSampler
from dmray.fields import Field, Token
from dmray.methods import METHODS, PolicyShape, Preset
from dmray.policies import SequencePolicy
from dmray.policies.policy import PolicyRecipe
from dmray.specs import TrainingSpec
from tests.datasets.examples import episodes_of

PRESETS = {preset.name: preset for preset in METHODS["dt"].presets}
WIDTH, LAYERS, STATES, ACTIONS, TIMESTEPS, LIMIT = 64, 3, 3, 2, 200, 0.75
Weights = dict[str, Tensor]
each_preset = pytest.mark.parametrize("name", PRESETS)


def policy_of(preset: Preset, seed: int = 0, **sizes: Any) -> SequencePolicy:
    """An untrained DT with the preset's fields, without dropout."""
    fields: dict[str, Any] = {"d_model": WIDTH, "n_layer": LAYERS, "dropout": 0.0, **sizes, **preset.model}
    shape = PolicyShape(STATES, ACTIONS, LIMIT, TIMESTEPS)
    config = METHODS["dt"].config.model_validate(fields)
    torch.manual_seed(seed)
    return SequencePolicy(PolicyRecipe("dt", config, preset.training["action_input"], shape, 1.0))


# Initial weights: under our names, drawn as each source draws them.


def linear_of_pytorch(name: str, size_in: int, size_out: int) -> Iterator[tuple[str, Tensor]]:
    made = nn.Linear(size_in, size_out)
    yield from ((f"{name}.weight", made.weight.detach()), (f"{name}.bias", made.bias.detach()))


def normal(name: str, std: float, size_in: int, size_out: int) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"{name}.weight", torch.randn(size_out, size_in) * std), (f"{name}.bias", torch.zeros(size_out)))


def around(draw: Callable[[str, int, int], Iterator[tuple[str, Tensor]]]) -> Weights:
    """Embeddings and head."""
    sizes = {"return_to_go": 1, "state": STATES, "action": ACTIONS}
    weights = dict(pair for field, size in sizes.items() for pair in draw(f"embeddings.{field}", size, WIDTH))
    return weights | dict(draw("head", WIDTH, ACTIONS))


def gpt2(residual_std: float) -> Weights:
    """The blocks of both GPT-2s: every matrix N(0, 0.02), but `residual_std` where a branch returns; no biases."""
    weights: Weights = {}
    for layer in (f"backbone.layers.{n}" for n in range(LAYERS)):
        weights |= dict(normal(f"{layer}.attention.c_attn", 0.02, WIDTH, 3 * WIDTH))
        weights |= dict(normal(f"{layer}.attention.c_proj", residual_std, WIDTH, WIDTH))
        weights |= dict(normal(f"{layer}.mlp.c_fc", 0.02, WIDTH, 4 * WIDTH))
        weights |= dict(normal(f"{layer}.mlp.c_proj", residual_std, 4 * WIDTH, WIDTH))
    return weights


def drawn_by_the_authors() -> Weights:
    """GPT-2 of transformers 4: residual projections are scaled; what is around it is PyTorch's default."""
    table = {"timesteps.weight": nn.Embedding(TIMESTEPS, WIDTH).weight.detach()}
    return around(linear_of_pytorch) | table | gpt2(0.02 / math.sqrt(2 * LAYERS))


def drawn_by_chen() -> Weights:
    """GPT-2 as it was in 2021, before residual projections were scaled; what is around it is PyTorch's default."""
    return drawn_by_the_authors() | gpt2(0.02)


def drawn_by_corl() -> Weights:
    """Every nn.Linear and nn.Embedding N(0, 0.02) without biases. `in_proj_weight` of attention is neither."""
    weights = around(lambda name, size_in, size_out: normal(name, 0.02, size_in, size_out)) | gpt2(0.02)
    weights["timesteps.weight"] = torch.randn(TIMESTEPS, WIDTH) * 0.02
    for n in range(LAYERS):
        attention = nn.MultiheadAttention(WIDTH, 1)
        weights[f"backbone.layers.{n}.attention.c_attn.weight"] = attention.in_proj_weight.detach()
        weights[f"backbone.layers.{n}.attention.c_attn.bias"] = attention.in_proj_bias.detach()
    return weights


DRAWN = {"paper": drawn_by_the_authors, "chen": drawn_by_chen, "corl": drawn_by_corl}


def moments(values: Tensor) -> tuple[float, float]:
    """The deviation and the kurtosis: 3 of a normal distribution, 1.8 of a uniform one."""
    spread = float(values.square().mean().sqrt())
    return spread, float(values.pow(4).mean()) / spread**4 if spread else 0.0


@each_preset
def test_initial_weights_have_the_distribution_of_the_source(name: str) -> None:
    ours = {key: value.detach() for key, value in policy_of(PRESETS[name]).stages[0].named_parameters()}
    torch.manual_seed(1)
    theirs = DRAWN[name]()
    norms = {key for key in ours if key.split(".")[-2].startswith(("norm", "ln_"))}
    assert ours.keys() - norms == theirs.keys()
    for key in norms:
        assert torch.equal(ours[key], torch.full_like(ours[key], float(key.endswith("weight")))), key
    for key, expected in theirs.items():
        (spread, kurtosis), (wanted, wanted_kurtosis) = moments(ours[key]), moments(expected)
        few = expected.numel() < 1000  # biases, and the embedding of the one number of the return
        assert spread == pytest.approx(wanted, rel=0.35 if few else 0.06), key
        assert kurtosis == pytest.approx(wanted_kurtosis, abs=1.5 if few else 0.35), key
        if not float(expected.abs().max()):
            assert not float(ours[key].abs().max()), key


def test_the_three_presets_differ_in_their_initial_weights() -> None:
    """Else the test above could not tell them apart."""
    spreads = {
        name: tuple(
            round(float(policy_of(preset).get_parameter(f"stages.0.{key}").detach().std()), 3)
            for key in ("timesteps.weight", "backbone.layers.0.mlp.c_proj.weight")
        )
        for name, preset in PRESETS.items()
    }
    assert len(set(spreads.values())) == 3, spreads


# Forward pass, loss and gradients, from the same weights and the same batch.


def attended(w: Weights, layer: str, hidden: Tensor, hidden_keys: Tensor) -> Tensor:
    """One head. `hidden_keys` (B, L): padding, which no token may attend to."""
    query, key, value = F.linear(hidden, w[f"{layer}.c_attn.weight"], w[f"{layer}.c_attn.bias"]).chunk(3, dim=-1)
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    length = scores.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future | hidden_keys[:, None], -1e4)
    return F.linear(scores.softmax(-1) @ value, w[f"{layer}.c_proj.weight"], w[f"{layer}.c_proj.bias"])


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def published_actions(
    w: Weights, activation: Callable[[Tensor], Tensor], inputs: dict[str, Tensor], padded: Tensor
) -> Tensor:
    """The published network: (B, T, actions)."""
    time = w["timesteps.weight"][inputs["timesteps"]]
    tokens = [
        F.linear(inputs[field], w[f"embeddings.{field}.weight"], w[f"embeddings.{field}.bias"]) + time
        for field in ("return_to_go", "state", "action")
    ]
    hidden = norm(w, "norm", torch.stack(tokens, dim=2).flatten(1, 2))
    keys = padded.repeat_interleave(3, dim=1)
    for layer in (f"backbone.layers.{n}" for n in range(LAYERS)):
        hidden = hidden + attended(w, f"{layer}.attention", norm(w, f"{layer}.ln_1", hidden), keys)
        inner = F.linear(norm(w, f"{layer}.ln_2", hidden), w[f"{layer}.mlp.c_fc.weight"], w[f"{layer}.mlp.c_fc.bias"])
        hidden = hidden + F.linear(activation(inner), w[f"{layer}.mlp.c_proj.weight"], w[f"{layer}.mlp.c_proj.bias"])
    state = norm(w, "backbone.ln_f", hidden)[:, 1::3]
    return torch.tanh(F.linear(state, w["head.weight"], w["head.bias"])) * LIMIT


def masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Chen et al. and the authors: the mean over the timesteps that are real."""
    return errors[mask].mean()


def mean_of_masked(errors: Tensor, mask: Tensor) -> Tensor:
    """CORL: errors of padding are set to zero, and counted."""
    return (errors * mask[:, :, None]).mean()


PUBLISHED = {
    "paper": (torch.relu, masked_mean),
    "chen": (torch.relu, masked_mean),
    "corl": (gelu, mean_of_masked),
}


def batch_of(preset: Preset) -> Windows:
    """Windows as the preset draws them, of short episodes, so that some are padded."""
    episodes = episodes_of([3, 7, 9], 0)
    tokens = policy_of(preset).tokens
    sampler = WindowSampler(
        episodes,
        tokens,
        context_length=5,
        batch_size=8,
        anchor=preset.training["window_anchor"],
        episode_weighting=preset.training["episode_weighting"],
    )
    windows = sampler.sample(torch.Generator().manual_seed(3))
    assert 0 < int((~windows.valid).sum()) < windows.valid.numel() / 2
    values = {token: value.double() for token, value in windows.tokens.items()}
    return Windows(values, windows.timesteps, windows.valid)


@each_preset
@pytest.mark.parametrize("padding", ["right", "left"])
def test_from_the_same_weights_actions_loss_and_gradients_are_those_of_the_source(name: str, padding: str) -> None:
    """Chen et al. pad on the left, the others on the right: what is real does not see padding, so it is the same."""
    preset, policy = PRESETS[name], policy_of(PRESETS[name]).double()
    windows, (activation, mean) = batch_of(preset), PUBLISHED[name]
    with torch.no_grad():  # away from the first weights, which are small
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = {key: value.detach().clone().requires_grad_() for key, value in policy.stages[0].named_parameters()}
    lag = 0 if preset.training["action_input"] == "dt" else 1
    fields = {"return_to_go": 0, "state": 0, "action": lag}
    inputs = {field: windows.tokens[Token(Field(field), shift)] for field, shift in fields.items()}
    inputs["timesteps"] = windows.timesteps
    target, mask = windows.tokens[Token(Field.ACTION)], windows.valid
    if padding == "left":
        order = torch.argsort(mask.long(), dim=1, stable=True)  # padding first, then what is real, in order
        inputs = {key: _in_order(value, order) for key, value in inputs.items()}
        target, mask = _in_order(target, order), mask.gather(1, order)
    predicted = published_actions(theirs, activation, inputs, ~mask)
    loss = mean((predicted - target).square(), mask)
    loss.backward()  # type: ignore[no-untyped-call]

    ours = policy.stage_losses(windows, TrainingSpec.model_validate(dict(preset.training)).loss_mean)
    ours.sum().backward()  # type: ignore[no-untyped-call]
    (actions,) = policy.predict(windows)
    torch.testing.assert_close(actions[windows.valid], predicted[mask], rtol=0, atol=1e-9)
    assert ours[0].item() == pytest.approx(loss.item(), rel=1e-6)  # ours is in single precision
    for key, parameter in policy.stages[0].named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[key].grad, rtol=1e-5, atol=1e-8, msg=key)


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    return torch.take_along_dim(values, order if values.ndim == 2 else order[:, :, None], dim=1)


def test_the_two_means_of_the_loss_differ_where_windows_are_padded() -> None:
    policy, windows = policy_of(PRESETS["chen"]).double(), batch_of(PRESETS["chen"])
    valid, every = (policy.stage_losses(windows, mean).item() for mean in ("valid", "all"))  # type: ignore[arg-type]
    assert every == pytest.approx(valid * float(windows.valid.double().mean()))
    assert every < 0.95 * valid


# Windows.


def published_windows(name: str, lengths: list[int], context: int) -> dict[tuple[int, int, int], float]:
    """The probability of each window: its episode, its first step, and the step after its last."""
    chances: Counter[tuple[int, int, int]] = Counter()
    for episode, length in enumerate(lengths):
        of_episode = 1 / len(lengths) if name == "paper" else length / sum(lengths)
        for drawn in range(length):
            if name == "paper":  # sf uniform in 1 ... length; si = max(0, sf - K)
                window = max(0, drawn + 1 - context), drawn + 1
            else:  # si uniform in 0 ... length - 1; the slice si : si + K
                window = drawn, min(drawn + context, length)
            chances[(episode, *window)] += of_episode / length
    return dict(chances)


@each_preset
def test_windows_are_drawn_as_by_the_source(name: str) -> None:
    lengths, context, draws, preset = [2, 7], 3, 40_000, PRESETS[name]
    sampler = WindowSampler(
        episodes_of(lengths, 0),
        [Token(Field.STATE)],
        context_length=context,
        batch_size=draws,
        anchor=preset.training["window_anchor"],
        episode_weighting=preset.training["episode_weighting"],
    )
    windows = sampler.sample(torch.Generator().manual_seed(0))
    episode = (windows.tokens[Token(Field.STATE)][:, 0, 0] >= 7).long()  # that of the first step of the second episode
    first = windows.timesteps[:, 0]
    drawn = Counter(zip(episode.tolist(), first.tolist(), (first + windows.valid.sum(1)).tolist(), strict=True))
    expected = published_windows(name, lengths, context)
    assert drawn.keys() == expected.keys()
    for window, chance in expected.items():
        assert drawn[window] / draws == pytest.approx(chance, abs=5 * (chance / draws) ** 0.5), window


def test_under_paper_the_action_before_is_hidden_and_under_the_others_it_is_seen() -> None:
    """The prediction is read at the state token of a timestep: what stands behind it is seen from the next one on."""
    seen = {}
    for name, preset in PRESETS.items():
        (layout,) = METHODS["dt"].with_action_input(preset.training["action_input"]).stages
        action = layout.tokens.index(next(token for token in layout.tokens if token.field is Field.ACTION))
        assert action > layout.read_at
        seen[name] = layout.tokens[action].lag  # of the newest action before the one that is predicted: 1 + lag
    assert seen == {"paper": 1, "chen": 0, "corl": 0}
