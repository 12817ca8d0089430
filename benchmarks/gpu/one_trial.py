"""Section "one_trial": training steps a second of one trial, by method, size and way of running the step.

Plain launches, the captured CUDA graph, TF32, bfloat16, `torch.compile`; beside the same network with mamba-ssm's own
`Mamba` modules, stepped as the authors' code does, and transformers' Decision Transformer; beside the bare matrix
products of a step; and the kernels that take the time.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from section import SMALL, Section, peak_memory_mib, section_from_options, steps_per_s, trainer_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dmray.training import Trainer

METHODS = ("dm", "dt", "hdm", "hdt")
SIZES: dict[str, dict[str, Any]] = {
    "128 x 6, K 20": {},
    "128 x 6, K 60": {"context_length": 60},
    "256 x 6, K 20": {"d_model": 256},
}


def main() -> None:
    section = section_from_options(__doc__)
    sizes = {"toy": SMALL} if section.toy else SIZES
    first = next(iter(sizes))
    for size, fields in sizes.items():
        for method in ("dm", "hdt") if section.toy else METHODS if size == first else ("dm", "dt"):
            for way in ("captured", "plain", "captured tf32", "captured bfloat16"):
                section.measure(
                    f"{method}, {size}, {way}", lambda m=method, f=fields, w=way: ours(section, m, f, w), needs_s=4
                )
        if size == first:
            section.measure(f"dm, {size}, mamba-ssm's modules", lambda f=fields: published_way(section, f), needs_s=4)
            section.measure(f"dt, {size}, transformers", lambda f=fields: transformers_dt(section, f), needs_s=4)
            for method in ("dm", "dt"):
                section.measure(
                    f"{method}, {size}, matrix products", lambda m=method, f=fields: products(section, m, f)
                )
                section.measure(f"{method}, {size}, profile", lambda m=method, f=fields: kernels(section, m, f))
    for method in () if section.toy else ("dm", "dt"):  # compiling takes most of a minute
        section.measure(
            f"{method}, {first}, torch.compile tf32",
            lambda m=method: ours(section, m, sizes[first], "captured compiled tf32"),
            needs_s=40,
        )


def ours(section: Section, method: str, fields: dict[str, Any], way: str) -> dict[str, Any]:
    capture: Literal["auto", "off"] = "off" if way == "plain" else "auto"
    dtype = next((name for name in ("bfloat16", "tf32") if name in way), "float32")
    trainer = trainer_of(method, fields, section.device, capture, dtype=dtype)
    if "compiled" in way:
        trainer.policy.stage_losses = torch.compile(trainer.policy.stage_losses)  # type: ignore[method-assign]
    rate = steps_per_s(trainer.step, section.device, 0.1 if section.toy else 1.5)
    return {"steps_per_s": rate, "ms": 1e3 / rate, "peak_mib": peak_memory_mib(section.device)}


def published_way(section: Section, fields: dict[str, Any]) -> dict[str, Any]:
    """Our network with mamba-ssm's `Mamba` in place of our mixer; its step launches every kernel and reads the loss."""
    from mamba_ssm import Mamba

    trainer = trainer_of("dm", fields, section.device, "off")
    model = trainer.policy.recipe.model
    for layer in trainer.policy.stages[0].backbone.layers:  # type: ignore[union-attr]
        mixer = Mamba(model.d_model, d_state=16, d_conv=4, expand=2).to(section.device)
        mixer.load_state_dict(layer.mixer.state_dict())
        layer.mixer = mixer
    return _stepped(section, trainer, lambda: trainer.policy.stage_losses(_windows(trainer)).sum())


def transformers_dt(section: Section, fields: dict[str, Any]) -> dict[str, Any]:
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    context, batch, device = fields.get("context_length", 20), 16, section.device
    config = DecisionTransformerConfig(
        state_dim=11, act_dim=3, hidden_size=fields.get("d_model", 128), max_ep_len=1000,
        n_layer=fields.get("n_layer", 6), n_head=1, n_positions=4096,
    )  # fmt: skip
    model = DecisionTransformerModel(config).train().to(device)
    actions = torch.rand(batch, context, 3, device=device)
    given = {
        "states": torch.randn(batch, context, 11, device=device),
        "actions": actions,
        "rewards": torch.randn(batch, context, 1, device=device),
        "returns_to_go": torch.randn(batch, context, 1, device=device),
        "timesteps": torch.arange(context, device=device).repeat(batch, 1),
        "attention_mask": torch.ones(batch, context, device=device),
    }
    return _stepped(section, model, lambda: (model(**given).action_preds - actions).square().mean())


def _windows(trainer: Trainer) -> Any:
    return trainer._sampler.sample(trainer._generator)


def _stepped(section: Section, owner: Trainer | nn.Module, loss: Any) -> dict[str, Any]:
    """Zero the gradients, backward, clip, AdamW, scheduler, `loss.item()`: as the authors' training loop."""
    module = owner.policy if isinstance(owner, Trainer) else owner
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 10_000, 1))

    def step() -> None:
        value: Tensor = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.25)
        optimizer.step()
        scheduler.step()
        value.detach().cpu().item()

    rate = steps_per_s(step, section.device, 0.1 if section.toy else 1.5)
    return {"steps_per_s": rate, "ms": 1e3 / rate, "peak_mib": peak_memory_mib(section.device)}


def products(section: Section, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The matrix products of a step alone (forward and backward), as one CUDA graph: what a step cannot go below."""
    trainer = trainer_of(method, fields, section.device, "off")
    trainer.step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        trainer.step()
    operands = []
    for event in recorded.events() or ():
        if event.name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            left, right = event.input_shapes[1:3] if "add" in event.name else event.input_shapes[:2]
            operands.append((torch.randn(left, device=section.device), torch.randn(right, device=section.device)))
    outputs = [a @ b for a, b in operands]

    def multiply() -> None:
        for (a, b), out in zip(operands, outputs, strict=True):
            torch.matmul(a, b, out=out)

    step = multiply
    if section.device == "cuda":
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            multiply()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            multiply()
        step = graph.replay
    rate = steps_per_s(step, section.device, 0.1 if section.toy else 1.0)
    return {"products": len(operands), "steps_per_s": rate, "ms": 1e3 / rate}


def kernels(section: Section, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The kernels of a captured step by their time on the device; on a CPU, the operations."""
    trainer, count = trainer_of(method, fields, section.device), 3 if section.toy else 20
    for _ in range(6):
        trainer.step()
    gpu = section.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as recorded:
        for _ in range(count):
            trainer.step()
        if gpu:
            torch.cuda.synchronize()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    rows = sorted(recorded.key_averages(), key=lambda row: -getattr(row, key))
    total = sum(getattr(row, key) for row in rows) / count
    top = [{"name": row.key[:90], "us": getattr(row, key) / count, "calls": row.count / count} for row in rows[:12]]
    launches = sum(row.count for row in rows if getattr(row, key) > 0) / count
    return {"device_us_per_step": total, "kernels_per_step": launches, "top": top}


if __name__ == "__main__":
    main()
