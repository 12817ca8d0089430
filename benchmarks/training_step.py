"""Milliseconds of one optimizer step: ours, ours on the reference scan, and other packages' networks of the same size.

    python benchmarks/training_step.py [--quick] [--ours] [--contexts 20,60] [--device cuda] [--json FILE]

Width 128, 6 layers, batches of 16, hopper's sizes (11 and 3), one thread, in turns, medians over the rounds. Ours is
the whole step as a trial takes it: sampling, loss, gradients, clipping, AdamW; beside it how many times its matrix
products alone that is (`products.py`); also on our reference scan (a step loop
with little overhead) and on mamba-ssm's own (`other_scans`), which is what the authors' networks run by on a CPU.
d3rlpy's is its sampling and `update`; transformers' networks get a fixed batch, embedded already for Mamba (2 tokens a
timestep, as DM; its blocks have no MLP, ours do), with the same clipping and optimizer. What is not installed is left
out, and said; what would take minutes or all memory at a context length (`LONGEST`), too. On a GPU it is our step as a
CUDA graph beside our step launched kernel by kernel.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from other_scans import mamba_ssm_reference_scan
from products import bare_products
from rich.console import Console
from rich.table import Table
from timing import in_turns, medians_ms, write_record
from torch import Tensor, nn

from dmray.datasets import Episodes, WindowSampler
from dmray.methods import METHODS as METHODS_BY_NAME
from dmray.models import BackboneConfig, mamba_block
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy
from dmray.specs import MethodName, TrainingSpec
from dmray.training import Trainer, be_deterministic

BATCH, OBSERVATIONS, ACTIONS, EPISODES, LENGTH = 16, 11, 3, 20, 1000
METHODS: tuple[MethodName, ...] = ("dm", "dt")
OURS = ("DM", "DT")
LONGEST = {  # context lengths
    "DM, reference scan": 200,
    "DM, mamba-ssm's selective_scan_ref": 60,
    "transformers MambaModel": 60,
    "transformers DecisionTransformer": 200,
    "d3rlpy DecisionTransformer": 200,
}
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--contexts", default="20,60,200,1000")
    parser.add_argument("--ours", action="store_true", help="leave the other packages out")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="context 20 only, three rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rounds = 3 if options.quick else options.rounds
    contexts = [20] if options.quick else [int(part) for part in options.contexts.split(",")]
    console, results = Console(), []
    model = BackboneConfig().model_dump(exclude={"context_length"})
    table = Table(title=f"one training step, {options.device}, 1 thread, ms, medians of {rounds}", box=None)
    for heading in ("K", "network", "ms", "x ours", "x its products", "sampling of ours"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for context in contexts:
        console.print(f"context length {context}", markup=False)
        others = {} if options.ours else OTHERS
        gpu = options.device == "cuda"
        cases = on_a_gpu(context) if gpu else available(context, others, console)
        products = {} if gpu else {name: bare_products(cases[name]) for name in OURS}
        alone = {f"{name}, products": run for name, run in products.items()}
        # a graph is recorded at the fourth step; in a turn of several steps the caches are as in training
        seconds = in_turns(cases | alone, rounds, warm_up=5 if gpu else 2, turn_s=0.3)
        sampling = {name: _sampling_share(case, seconds[name]) for name, case in cases.items()}
        middle = medians_ms(seconds)
        products_ms = {name: middle.pop(f"{name}, products") for name in products}
        results.append(
            {
                "context_length": context,
                "step_ms": middle,
                "products_ms": products_ms,
                "sampling_share": sampling,
                "all_s": seconds,
            }
        )
        for name, ms in middle.items():
            base = middle["DM"] if "DM" in name or "Mamba" in name else middle["DT"]
            share = f"{100 * sampling[name]:.1f} %" if sampling[name] is not None else ""
            over = f"{ms / products_ms[name]:.2f}" if name in products_ms else ""
            table.add_row(str(context), name, f"{ms:.1f}", f"{ms / base:.2f}", over, share)
        write_record(
            options.json, {"model": model, "batch_size": BATCH, "rounds": rounds, "device": options.device}, results
        )
        del cases
        gc.collect()
    console.print(table)


def available(context: int, others: Mapping[str, Callable[[int], Step]], console: Console) -> dict[str, Step]:
    cases: dict[str, Step] = {}
    builds: dict[str, Callable[[int], Step]] = {
        "DM": partial(Ours, "dm"),
        "DM, reference scan": lambda context: reference(Ours("dm", context)),
        "DT": partial(Ours, "dt"),
        **others,
    }
    for name, build in builds.items():
        if context > LONGEST.get(name, context):
            console.print(f"{name} is left out: too long", markup=False)
            continue
        try:
            with redirect_stdout(StringIO()):
                cases[name] = build(context)
        except ImportError as missing:
            console.print(f"{name} is left out: {missing}", markup=False)
    return cases


def on_a_gpu(context: int) -> dict[str, Step]:
    cases: dict[str, Step] = {}
    for method in METHODS:
        cases[method.upper()] = Ours(method, context, "cuda")
        cases[f"{method.upper()}, launched"] = Ours(method, context, "cuda", "off")
    return cases


def random_episodes() -> Episodes:
    draw, rows = np.random.default_rng(0), EPISODES * LENGTH
    return Episodes(
        draw.normal(size=(rows, OBSERVATIONS)).astype(np.float32),
        draw.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32),
        draw.normal(size=rows).astype(np.float32),
        np.arange(EPISODES + 1) * LENGTH,
    )


class Ours:
    """One step of a trial's trainer."""

    def __init__(
        self, method: MethodName, context: int, device: str = "cpu", capture: Literal["auto", "off"] = "auto"
    ) -> None:
        torch.manual_seed(0)
        shape = PolicyShape(OBSERVATIONS, ACTIONS, 1.0, LENGTH)
        recipe = PolicyRecipe(method, METHODS_BY_NAME[method].config(context_length=context), "paper", shape, 1000.0)
        policy = SequencePolicy(recipe).to(device)
        self.sampler = WindowSampler(
            random_episodes(), policy.tokens, context_length=context, batch_size=BATCH, device=device
        )
        self.trainer = Trainer(policy, self.sampler, TrainingSpec(batch_size=BATCH), 0, device, capture)
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self) -> None:
        self.trainer.step()

    def sample(self) -> None:
        self.sampler.sample(self.generator)


def reference(step: Step) -> Step:
    """The step as `resources.deterministic` takes it: the step-loop scan, and PyTorch's convolution."""

    def deterministic() -> None:
        be_deterministic(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a check, not a part of the scan
        step()
        be_deterministic(False)

    return deterministic


def on_published_scan(context: int) -> Step:
    """Our step with the scan of mamba-ssm in plain PyTorch, and the rest of a block as single operations."""
    ours, scan = Ours("dm", context), mamba_ssm_reference_scan()

    def step() -> None:
        plain = patch.object(mamba_block.Block, "is_compiled", lambda *_: False)
        with plain, patch.object(mamba_block, "selective_scan", scan):
            ours()

    return step


def transformers_mamba(context: int) -> Step:
    from transformers import MambaConfig, MambaModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = MambaConfig(vocab_size=8, hidden_size=128, state_size=16, num_hidden_layers=6, use_cache=False)
    model = MambaModel(config).train()
    tokens = torch.randn(BATCH, 2 * context, 128)
    return _stepping(model, lambda: model(inputs_embeds=tokens).last_hidden_state.square().mean())


def transformers_dt(context: int) -> Step:
    from transformers import DecisionTransformerConfig, DecisionTransformerModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = DecisionTransformerConfig(
        state_dim=OBSERVATIONS,
        act_dim=ACTIONS,
        hidden_size=128,
        max_ep_len=LENGTH,
        n_layer=6,
        n_head=1,
        n_positions=4096,
    )
    model = DecisionTransformerModel(config).train()
    actions = torch.rand(BATCH, context, ACTIONS)
    batch = {
        "states": torch.randn(BATCH, context, OBSERVATIONS),
        "actions": actions,
        "rewards": torch.randn(BATCH, context, 1),
        "returns_to_go": torch.randn(BATCH, context, 1),
        "timesteps": torch.arange(context).repeat(BATCH, 1) % LENGTH,
        "attention_mask": torch.ones(BATCH, context),
    }
    return _stepping(model, lambda: (model(**batch).action_preds - actions).square().mean())


def d3rlpy_dt(context: int) -> Step:
    import d3rlpy
    from d3rlpy.algos import DecisionTransformerConfig

    draw, rows = np.random.default_rng(0), EPISODES * LENGTH
    ends = np.arange(1, rows + 1) % LENGTH == 0
    dataset = d3rlpy.dataset.MDPDataset(
        draw.normal(size=(rows, OBSERVATIONS)).astype(np.float32),
        draw.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32),
        draw.normal(size=rows).astype(np.float32),
        ends.astype(np.float32),
    )
    encoder = d3rlpy.models.VectorEncoderFactory([128])
    config = DecisionTransformerConfig(
        batch_size=BATCH, context_size=context, num_layers=6, num_heads=1, max_timestep=LENGTH, encoder_factory=encoder
    )
    algorithm = config.create(device="cpu:0")
    algorithm.build_with_dataset(dataset)
    return lambda: algorithm.update(dataset.sample_trajectory_batch(BATCH, length=context))


OTHERS: Mapping[str, Callable[[int], Step]] = {
    "DM, mamba-ssm's selective_scan_ref": on_published_scan,
    "transformers MambaModel": transformers_mamba,
    "transformers DecisionTransformer": transformers_dt,
    "d3rlpy DecisionTransformer": d3rlpy_dt,
}


def _stepping(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return step


def _sampling_share(case: Any, seconds: list[float]) -> float | None:
    """Of a step of ours, what drawing its batch takes."""
    if not isinstance(case, Ours):
        return None
    sampling = in_turns({"sampling": case.sample}, len(seconds) * 3)
    return medians_ms(sampling)["sampling"] / medians_ms({"step": seconds})["step"]


if __name__ == "__main__":
    main()
