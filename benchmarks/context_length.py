"""Training step, decision and memory against context length: DM, DT, HDM, HDT and DLSTM, of equal width and size.

    python benchmarks/context_length.py [--quick] [--contexts 10,20,...] [--device cuda] [--json FILE] [--plots FOLDER]
    python benchmarks/context_length.py --draw        only draw the figures of docs/questions/speed.md again

6 layers, hopper's sizes (11 and 3), random weights, one thread; `equal width`: 128; `equal size`: the width with which
a method has about as many parameters as DM (multiples of 8; timestep tables, which grow with the horizon, not counted).
Training: one optimizer step as a trial takes it, on batches of 4,000 timesteps (400 windows of 10 ... 1 of 4,000), so
that a method without a cost of context has the same time everywhere. Decision: the next action of 1 or 100 episodes
that are as old as the context, by decode mode `window` (the paper's: the whole window again in each step) and
`recurrent` (states are carried). Memory: the growth of the process at its peak in a training step; and what a decoder
holds per episode in mode `recurrent`. Times are taken in turns; medians. What would take minutes or all memory is left
out.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timing import in_turns, medians_ms, write_record
from torch import Tensor

from dmray.datasets import Episodes, WindowSampler
from dmray.methods import METHODS
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy, make_decoder
from dmray.specs import TrainingSpec
from dmray.training import Trainer

COMPARED = ("dm", "dt", "hdm", "hdt", "dlstm")
PAIRS = (("dm", "dt"), ("hdm", "hdt"))
CONTEXTS = (10, 20, 60, 200, 1000, 4000)
TIMESTEPS = 4000  # of a training batch, and of an episode
WIDTH, LAYERS = 128, 6
DECISIONS = (("window", 1), ("window", 100), ("recurrent", 1))  # decode modes, episodes
MOST_TIMESTEPS = 20_000  # episodes x context length of a decision
SHAPE = PolicyShape(observation_dim=11, action_dim=3, action_limit=1.0, max_timesteps=TIMESTEPS)
SIZINGS = ("equal width", "equal size")
PLOTS = Path(__file__).parent.parent / "docs" / "questions"
PANELS = {
    "train_us": "training: µs per timestep of a batch",
    "train_mib": "training: peak memory, MiB",
    "window 1": "decision of 1 episode, mode window: ms",
    "window 100": "decision of 100 episodes, mode window: ms",
    "recurrent 1": "decision of 1 episode, mode recurrent: ms",
    "state_mib": "state of an episode, mode recurrent: MiB",
}


class Size(NamedTuple):
    """A method at a width, and its number of parameters without timestep tables."""

    method: str
    d_model: int
    parameters: int


def parameters_of(method: str, d_model: int) -> int:
    """Without the timestep tables of a transformer."""
    config = METHODS[method].config(d_model=d_model, n_layer=LAYERS)
    tables = len(METHODS[method].stages) * SHAPE.max_timesteps * d_model
    counted = METHODS[method].num_parameters(config, SHAPE)
    return counted - (tables if METHODS[method].backbone.timestep_embedding else 0)


def sizes(sizing: str) -> list[Size]:
    """Of each method, with the width that `sizing` gives it."""
    wanted = parameters_of("dm", WIDTH)
    widths = dict.fromkeys(COMPARED, WIDTH)
    if sizing == "equal size":
        for method in COMPARED:
            widths[method] = min(range(8, 4 * WIDTH, 8), key=lambda width: abs(parameters_of(method, width) - wanted))
    return [Size(method, width, parameters_of(method, width)) for method, width in widths.items()]


def policy_of(size: Size, context: int) -> SequencePolicy:
    torch.manual_seed(0)
    config = METHODS[size.method].config(d_model=size.d_model, n_layer=LAYERS, context_length=context)
    return SequencePolicy(PolicyRecipe(size.method, config, "paper", SHAPE, return_scale=1000.0))


def training_step(size: Size, context: int, device: str) -> Callable[[], object]:
    """One more optimizer step on a batch of `TIMESTEPS` timesteps."""
    draw = np.random.default_rng(0)
    episodes = Episodes(
        draw.normal(size=(TIMESTEPS, SHAPE.observation_dim)).astype(np.float32),
        draw.uniform(-1, 1, (TIMESTEPS, SHAPE.action_dim)).astype(np.float32),
        draw.normal(size=TIMESTEPS).astype(np.float32),
        np.array([0, TIMESTEPS]),
    )
    policy = policy_of(size, context).to(device)
    sampler = WindowSampler(
        episodes, policy.tokens, context_length=context, batch_size=TIMESTEPS // context, device=device
    )
    return Trainer(policy, sampler, TrainingSpec(batch_size=TIMESTEPS // context), 0, device).step


def acting(size: Size, context: int, mode: str, episodes: int, device: str) -> tuple[Any, Callable[[], object]]:
    """A decoder of episodes that are `context` timesteps old, and one more decision of it."""
    decoder = make_decoder(policy_of(size, context).to(device).eval(), mode, episodes)
    observations = np.random.default_rng(0).normal(size=(episodes, SHAPE.observation_dim)).astype(np.float32)
    decide = partial(decoder.decide, observations, np.full(episodes, 3600.0))
    if mode == "window":  # the history is filled with what it would hold, without the decisions that put it there
        for history in decoder._histories:
            for _ in range(context):
                history.append(history._buffer[:, 0])
    else:
        for _ in range(context):
            decide()
    return decoder, decide


def held_bytes(thing: Any) -> int:
    """The bytes of all tensors in a decoder's states; `compiled` has a network's weights."""
    if isinstance(thing, Tensor):
        return thing.untyped_storage().nbytes()
    parts: Iterable[Any] = ()
    if isinstance(thing, list | tuple):
        parts = thing
    elif hasattr(thing, "__dict__"):
        parts = [part for name, part in vars(thing).items() if name != "compiled"]
    return sum(map(held_bytes, parts))


def peak_mib(step: Callable[[], Callable[[], object]], device: str) -> float:
    """The growth of the memory at its peak while `step()` is built and called: of a child process, or of the GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        before = _status_kib("VmRSS")
        step()()
        os.write(writing, str((_status_kib("VmHWM") - before) / 1024).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        grown = pipe.read()
    os.waitpid(child, 0)
    return float(grown) if grown else math.nan


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure_memory(contexts: Sequence[int], device: str) -> dict[tuple[Size, int], float]:
    """The peaks of training steps. Before all else: what this process has freed, its children would use again."""
    compared = dict.fromkeys(size for sizing in SIZINGS for size in sizes(sizing))
    return {
        (size, context): peak_mib(partial(training_step, size, context, device), device)
        for size in compared
        for context in contexts
    }


def measure_times(sizing: str, context: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """A row for each method."""
    compared = sizes(sizing)
    steps = {size.method: training_step(size, context, device) for size in compared}
    seconds = medians_ms(in_turns(steps, rounds, warm_up=1))
    del steps
    gc.collect()
    per_timestep = 1e3 / (TIMESTEPS // context * context)
    rows = {
        size.method: {
            "sizing": sizing, "context": context, **size._asdict(),
            "train_us": seconds[size.method] * per_timestep,
        }
        for size in compared
    }  # fmt: skip
    for mode, episodes in DECISIONS:
        if episodes * context > MOST_TIMESTEPS:
            continue
        made = {size.method: acting(size, context, mode, episodes, device) for size in compared}
        times = medians_ms(in_turns({method: decide for method, (_, decide) in made.items()}, rounds, warm_up=1))
        for method, (decoder, _) in made.items():
            rows[method][f"{mode} {episodes}"] = times[method]
            if mode == "recurrent":
                rows[method]["state_mib"] = held_bytes(decoder._states) / 2**20
        del made
        gc.collect()
    return list(rows.values())


def crossing(contexts: Sequence[int], ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The context length from which `ours` is smaller to the end, between two contexts on straight log-log lines.

    None if it is so at no context or at all of them.
    """
    ratios = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    if not ratios or ratios[-1] >= 0:
        return None
    for (left, right), (before, after) in reversed(list(zip(pairwise(contexts), pairwise(ratios), strict=True))):
        if before >= 0 > after:
            share = before / (before - after)
            return math.exp(math.log(left) + share * (math.log(right) - math.log(left)))
    return None


def draw(results: Sequence[Mapping[str, Any]], sizing: str, device: str, path: Path) -> None:
    """A figure of one panel a quantity; rings mark where Mamba's curve falls below the transformer's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11.0, 9.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    rows = [row for row in results if row["sizing"] == sizing]
    for axes, (quantity, title) in zip(figure.subplots(3, 2).flat, PANELS.items(), strict=True):
        curves = {method: curve_of(rows, method, quantity) for method in COMPARED}
        for method, (contexts, values) in curves.items():
            look = METHODS[method]
            axes.plot(
                contexts, values, color=look.colour, marker=look.marker, markersize=5, linewidth=2.0, label=look.label
            )
        for ours, theirs in PAIRS:
            contexts, values = curves[ours]
            at = crossing(contexts, values, curves[theirs][1])
            if at is not None:
                height = math.exp(np.interp(math.log(at), np.log(contexts), np.log(values)))
                axes.plot(at, height, "o", markersize=13, markerfacecolor="none", markeredgecolor=METHODS[ours].colour)
                axes.annotate(
                    f"K {at:,.0f}", (at, height), (0, 10), textcoords="offset points", ha="center", fontsize=9
                )
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xscale("log")
        axes.set_yscale("log")
        contexts = sorted({row["context"] for row in rows})
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts], fontsize=9)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(labelsize=9)
        axes.set_xlabel("context length K, timesteps", fontsize=10)
        axes.grid(color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    widths = ", ".join(
        f"{METHODS[row['method']].label} {row['d_model']}" for row in rows if row["context"] == contexts[0]
    )
    where = "one CPU thread" if device == "cpu" else "one GPU"
    figure.suptitle(f"{sizing}, {LAYERS} layers, {where} (width: {widths})", x=0.01, ha="left", fontsize=12)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(COMPARED), frameon=False, fontsize=10)
    figure.savefig(path, metadata={"Software": None})


def curve_of(rows: Sequence[Mapping[str, Any]], method: str, quantity: str) -> tuple[list[int], list[float]]:
    """The contexts at which a quantity of a method was measured, and its values."""
    found = [(row["context"], row[quantity]) for row in rows if row["method"] == method and quantity in row]
    return [context for context, _ in found], [value for _, value in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--plots", type=Path, default=PLOTS)
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="contexts 10 and 60, three rounds, no figures")
    parser.add_argument("--draw", action="store_true", help="draw the figures of an earlier measurement again")
    options = parser.parse_args()
    if options.draw:
        record = json.loads(options.json.read_text())
        draw_all(record["results"], record["settings"]["device"], options.plots)
        return
    torch.set_num_threads(1)
    contexts = [10, 60] if options.quick else [int(each) for each in options.contexts.split(",")]
    rounds = 3 if options.quick else options.rounds
    settings = {"n_layer": LAYERS, "timesteps": TIMESTEPS, "rounds": rounds, "device": options.device}
    console, results = Console(), []
    console.print("memory", markup=False)
    memory = measure_memory(contexts, options.device)
    for context in contexts:
        for sizing in SIZINGS:
            console.print(f"context length {context}, {sizing}", markup=False)
            for row in measure_times(sizing, context, rounds, options.device):
                size = Size(row["method"], row["d_model"], row["parameters"])
                results.append({**row, "train_mib": memory[size, context]})
            write_record(options.json, settings, results)
    print_tables(results, console)
    if not options.quick:
        draw_all(results, options.device, options.plots)


def draw_all(results: Sequence[Mapping[str, Any]], device: str, folder: Path) -> None:
    name = "speed" if device == "cpu" else "speed_gpu"
    for sizing in SIZINGS:
        draw(results, sizing, device, folder / f"{name}_{sizing.replace(' ', '_')}.png")


def print_tables(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    for sizing in SIZINGS:
        table = Table(title=f"{sizing}: from which context length on Mamba is cheaper", box=None)
        for heading in ("quantity", *(f"{ours} against {theirs}" for ours, theirs in PAIRS)):
            table.add_column(heading)
        rows = [row for row in results if row["sizing"] == sizing]
        for quantity, title in PANELS.items():
            table.add_row(title, *(answer(rows, quantity, *pair) for pair in PAIRS))
        console.print(table)


def answer(rows: Sequence[Mapping[str, Any]], quantity: str, ours: str, theirs: str) -> str:
    """From which context length on the first method is cheaper, in words."""
    contexts, values = curve_of(rows, ours, quantity)
    other = curve_of(rows, theirs, quantity)[1]
    if not contexts:
        return "not measured"
    at = crossing(contexts, values, other)
    if at is not None:
        return f"K {at:,.0f}"
    return "everywhere" if values[-1] < other[-1] else f"nowhere up to {contexts[-1]:,}"


if __name__ == "__main__":
    main()
