"""Milliseconds a seed and optimizer step: seeds one after the other, in processes beside each other, or as one network.

    python benchmarks/seed_packing.py [--quick] [--json FILE]

The packed network is four seeds of one trial shape with stacked parameters: every linear layer is one batched product,
norms, gates, dropout and AdamW run once for all, attention takes seeds as more windows; the compiled convolution and
scan are called seed by seed, as their filters and rates differ. It is checked against the four networks before it is
timed. This is what the decision on seed packing rests on (`docs/decisions.md`); a trial does not use it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import in_turns, medians_ms, write_record
from torch import Tensor
from training_step import ACTIONS, OBSERVATIONS, random_episodes

from dmray.datasets import Windows, WindowSampler
from dmray.fields import Token
from dmray.methods import METHODS as METHODS_BY_NAME
from dmray.models.causal_conv import causal_conv_silu
from dmray.models.selective_scan import selective_scan
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy
from dmray.policies.sequence_model import SequenceModel
from dmray.specs import MethodName, TrainingSpec
from dmray.training import Trainer

SEEDS = 4
SIZES = {
    "64 x 2, K 5, B 32": ({"d_model": 64, "n_layer": 2, "context_length": 5}, 32),
    "128 x 6, K 20, B 16": ({}, 16),
}
METHODS: tuple[MethodName, ...] = ("dm", "dt")
Weights = dict[str, Tensor]  # each (S, ...)


def policy_of(method: MethodName, model: dict[str, int], seed: int, device: str = "cpu") -> SequencePolicy:
    torch.manual_seed(seed)
    shape = PolicyShape(OBSERVATIONS, ACTIONS, 1.0, 1000)
    recipe = PolicyRecipe(method, METHODS_BY_NAME[method].config(**model), "paper", shape, 1000.0)
    return SequencePolicy(recipe).train().to(device)


def sampler_of(policy: SequencePolicy, batch_size: int, device: str = "cpu") -> WindowSampler:
    context = policy.recipe.model.context_length
    return WindowSampler(random_episodes(), policy.tokens, context_length=context, batch_size=batch_size, device=device)


def trainer_of(method: MethodName, model: dict[str, int], batch_size: int, seed: int) -> Trainer:
    policy = policy_of(method, model, seed)
    return Trainer(policy, sampler_of(policy, batch_size), TrainingSpec(batch_size=batch_size), seed)


class PackedTrainer:
    """Policies of one stage as one network. S seeds, B windows each, T timesteps, K tokens, D width.

    A step reads nothing back from the device, so that a CUDA graph can have it.
    """

    def __init__(
        self, method: MethodName, model: dict[str, int], batch_size: int, seeds: int = SEEDS, device: str = "cpu"
    ) -> None:
        self.seeds, self.device = seeds, device
        self.policies = [policy_of(method, model, seed, device) for seed in range(seeds)]
        self.policy, self.model = self.policies[0], self.policies[0].recipe.model
        self.stage: SequenceModel = self.policy.stages[0]  # type: ignore[assignment]
        named = [dict(policy.stages[0].named_parameters()) for policy in self.policies]
        self.weights: Weights = {
            name: torch.stack([each[name].detach() for each in named]).requires_grad_() for name in named[0]
        }
        self.sampler = sampler_of(self.policy, seeds * batch_size, device)
        self.generator = torch.Generator(device).manual_seed(0)
        spec = TrainingSpec()
        self.grad_clip = spec.grad_clip
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=True,
            capturable=device == "cuda",
        )

    def step(self) -> Tensor:
        """The losses (S,) before the step."""
        losses = self.losses(self.sampler.sample(self.generator))
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        grads = [weight.grad.flatten(1) for weight in self.weights.values() if weight.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(grad, dim=1) for grad in grads]).norm(dim=0)
        factors = (self.grad_clip / (norms + 1e-6)).clamp(max=1.0)[:, None]
        for grad in grads:
            grad.mul_(factors)
        self.optimizer.step()
        return losses.detach()

    def losses(self, windows: Windows) -> Tensor:
        """(S,); the first B windows are the first seed's."""
        target, valid = Token(self.stage.layout.target), windows.valid.unflatten(0, (self.seeds, -1))[..., None].float()
        values = {
            token: self.policy.encode(token.field, values).unflatten(0, (self.seeds, -1))
            for token, values in windows.tokens.items()
        }
        errors = (self._predictions(values, windows.timesteps) - values[target]).square() * valid
        return errors.sum((1, 2, 3)) / (valid.sum((1, 2, 3)) * errors.shape[-1])

    def check(self) -> None:
        """Each seed's loss is that of its own network."""
        windows = self.sampler.sample(torch.Generator(self.device).manual_seed(1))
        for policy in self.policies:
            policy.eval()
        separate = []
        for seed, policy in enumerate(self.policies):
            count = len(windows.valid) // self.seeds
            mine = slice(seed * count, (seed + 1) * count)
            tokens = {token: values[mine] for token, values in windows.tokens.items()}
            separate.append(policy.stage_losses(Windows(tokens, windows.timesteps[mine], windows.valid[mine]))[0])
        torch.testing.assert_close(self.losses(windows), torch.stack(separate), rtol=1e-4, atol=1e-6)
        for policy in self.policies:
            policy.train()

    def _predictions(self, values: dict[Token, Tensor], timesteps: Tensor) -> Tensor:
        stage = self.stage
        embedded = [self._linear(values[token], f"embeddings.{token.field}") for token in stage.layout.tokens]
        tokens = torch.stack(embedded, dim=3)
        if stage.timesteps is not None:
            table = self.weights["timesteps.weight"]
            seeds = torch.arange(self.seeds, device=self.device)[:, None, None] * table.shape[1]
            tokens = (
                tokens
                + F.embedding(timesteps.unflatten(0, (self.seeds, -1)) + seeds, table.flatten(0, 1))[..., None, :]
            )
        tokens = self._layer_norm(tokens, "norm")
        backbone = self._transformer if stage.timesteps is not None else self._mamba
        hidden = backbone(tokens.flatten(2, 3)).view(tokens.shape)[..., stage.layout.read_at, :]
        prediction = self._linear(hidden, "head")
        return torch.tanh(prediction) * stage.output_scale

    def _mamba(self, hidden: Tensor) -> Tensor:
        for number in range(self.model.n_layer):
            layer = f"backbone.layers.{number}"
            hidden = hidden + self._mixer(self._rms_norm(hidden, f"{layer}.norm"), f"{layer}.mixer")
            value, gate = self._linear(self._rms_norm(hidden, f"{layer}.norm2"), f"{layer}.mlp.fc1").chunk(2, dim=-1)
            hidden = hidden + self._linear(value * F.silu(gate), f"{layer}.mlp.fc2")
        return self._rms_norm(hidden, "backbone.norm_f")

    def _mixer(self, hidden: Tensor, name: str) -> Tensor:
        def weight(part: str) -> Tensor:
            return self.weights[f"{name}.{part}"]

        x, z = self._linear(hidden, f"{name}.in_proj").chunk(2, dim=-1)
        taps, shifts = weight("conv1d.weight"), weight("conv1d.bias")
        x = torch.stack([causal_conv_silu(*each) for each in zip(x, taps, shifts, strict=True)])
        rank, states = weight("dt_proj.weight").shape[2], weight("A_log").shape[2]
        dt, B, C = self._linear(x, f"{name}.x_proj").split([rank, states, states], dim=-1)
        delta = torch.bmm(dt.flatten(1, 2), weight("dt_proj.weight").transpose(1, 2)).view(x.shape)
        rates = -weight("A_log").exp()
        inputs = zip(x, delta, rates, B, C, weight("D"), z, weight("dt_proj.bias"), strict=True)
        return self._linear(torch.stack([selective_scan(*each, True) for each in inputs]), f"{name}.out_proj")

    def _transformer(self, hidden: Tensor) -> Tensor:
        hidden = self._dropout(hidden)
        for number in range(self.model.n_layer):
            layer = f"backbone.layers.{number}"
            mixed = self._attention(self._layer_norm(hidden, f"{layer}.ln_1"), f"{layer}.attention")
            hidden = hidden + self._dropout(mixed)
            wide = F.relu(self._linear(self._layer_norm(hidden, f"{layer}.ln_2"), f"{layer}.mlp.c_fc"))
            hidden = hidden + self._dropout(self._linear(wide, f"{layer}.mlp.c_proj"))
        return self._layer_norm(hidden, "backbone.ln_f")

    def _attention(self, hidden: Tensor, name: str) -> Tensor:
        joined = self._linear(hidden, f"{name}.c_attn").flatten(0, 1)
        heads = joined.view(*joined.shape[:2], 3, self.model.n_head, -1).permute(2, 0, 3, 1, 4)
        dropout = self.model.dropout if self.policy.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        return self._linear(mixed.transpose(1, 2).reshape(hidden.shape), f"{name}.c_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """(S, ..., in) -> (S, ..., out) in one batched product."""
        weight, bias = self.weights[f"{name}.weight"].transpose(1, 2), self.weights.get(f"{name}.bias")
        rows = x.flatten(1, -2)
        product = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)
        return product.view(*x.shape[:-1], -1)

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self._spread(self.weights[f"{name}.{part}"], x) for part in ("weight", "bias"))
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight)

    def _rms_norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-5) * self._spread(self.weights[f"{name}.weight"], x)

    def _spread(self, weight: Tensor, x: Tensor) -> Tensor:
        return weight.view(self.seeds, *[1] * (x.dim() - 2), -1)

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.model.dropout, self.policy.training)


def one_after_the_other(method: MethodName, model: dict[str, int], batch_size: int) -> Callable[[], object]:
    trainers = [trainer_of(method, model, batch_size, seed) for seed in range(SEEDS)]
    return lambda: [trainer.step() for trainer in trainers]


def packed(method: MethodName, model: dict[str, int], batch_size: int) -> Callable[[], object]:
    trainer = PackedTrainer(method, model, batch_size)
    trainer.check()
    return trainer.step


def in_processes(method: MethodName, model: dict[str, int], batch_size: int, steps: int) -> float:
    """Milliseconds a seed and step of `SEEDS` processes beside each other, one thread each, on all of the machine."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(SEEDS), context.Queue()
    arguments = (method, model, batch_size, steps, barrier, times)
    processes = [context.Process(target=_steps_of_a_process, args=(seed, *arguments)) for seed in range(SEEDS)]
    for process in processes:
        process.start()
    spans = [times.get() for _ in processes]
    for process in processes:
        process.join()
    return 1e3 * (max(end for _, end in spans) - min(start for start, _ in spans)) / (SEEDS * steps)


def _steps_of_a_process(
    seed: int, method: MethodName, model: dict[str, int], batch_size: int, steps: int, barrier: Any, times: Any
) -> None:
    torch.set_num_threads(1)
    trainer = trainer_of(method, model, batch_size, seed)
    for _ in range(2):
        trainer.step()
    barrier.wait()
    start = time.time()
    for _ in range(steps):
        trainer.step()
    times.put((start, time.time()))


def measure(method: MethodName, size: str, rounds: int) -> dict[str, Any]:
    model, batch_size = SIZES[size]
    ms: dict[str, float] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        cases = {
            "separate": one_after_the_other(method, model, batch_size),
            "packed": packed(method, model, batch_size),
        }
        for name, value in medians_ms(in_turns(cases, rounds)).items():
            ms[f"{name}, {threads} thread{'s' if threads > 1 else ''}"] = value / SEEDS
    ms[f"{SEEDS} processes"] = in_processes(method, model, batch_size, 2 * rounds)
    return {"method": method, "size": size, "ms_per_seed_step": ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    results = [measure(method, size, rounds) for size in SIZES for method in METHODS]
    table = Table(title=f"ms a seed and step, {SEEDS} seeds, medians of {rounds}", box=None)
    for heading in ("size", "method", *results[0]["ms_per_seed_step"], "separate / packed, 1 thread"):
        table.add_column(heading, justify="right")
    for result in results:
        ms = result["ms_per_seed_step"]
        ratio = ms["separate, 1 thread"] / ms["packed, 1 thread"]
        table.add_row(result["size"], result["method"], *(f"{each:.2f}" for each in ms.values()), f"{ratio:.2f}")
    Console(width=150).print(table)
    write_record(options.json, {"seeds": SEEDS, "rounds": rounds, "device": "cpu"}, results)


if __name__ == "__main__":
    main()
