"""Milliseconds of one decision, by method, decode mode, context length and number of episodes in lockstep.

    python benchmarks/decode.py [--quick] [--contexts 10,20,...] [--plot docs/inference.png] [--json FILE]

DM and DT, width 128, 6 layers, hopper's sizes (11 and 3), one thread, random weights (time does not depend on them), in
turns, medians over the rounds; the largest windows are left out (`MOST_TIMESTEPS`). Every decoder has acted for as many
timesteps as the context is long before it is timed, so a window is full and a transformer's cache holds that many. This
is the inference time that the paper compares in words. For DM the table has in brackets how many times its matrix
products alone that is (`products.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from products import bare_products
from rich.console import Console
from rich.table import Table
from timing import in_turns, medians_ms, write_record

from dmray.methods import METHODS as METHODS_BY_NAME
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy, make_decoder
from dmray.specs import MethodName

METHODS: tuple[MethodName, ...] = ("dm", "dt")
MODES = ("window", "stream:2", "recurrent")
EPISODES = (1, 16, 100)
MOST_TIMESTEPS = 20_000  # episodes x context length: a window of more takes DT minutes
OBSERVATIONS, ACTIONS = 11, 3
LINES = {"window": "-", "stream:2": "--", "recurrent": ":"}


def decision(
    method: MethodName, mode: str, context: int, episodes: int, max_timesteps: int = 2000
) -> Callable[[], object]:
    """One more decision of a decoder that has acted for `context` timesteps."""
    torch.manual_seed(0)
    shape = PolicyShape(OBSERVATIONS, ACTIONS, action_limit=1.0, max_timesteps=max_timesteps)
    recipe = PolicyRecipe(
        method, METHODS_BY_NAME[method].config(context_length=context), "paper", shape, return_scale=1000.0
    )
    decoder = make_decoder(SequencePolicy(recipe).eval(), mode, episodes)
    observations = np.random.default_rng(0).normal(size=(episodes, OBSERVATIONS)).astype(np.float32)
    decide = partial(decoder.decide, observations, np.full(episodes, 3600.0))
    if mode == "window":  # the history is filled with what it would hold, without the decisions that put it there
        _fill(decoder, context)
    else:
        for _ in range(context):
            decide()
    return decide


def _fill(decoder: Any, context: int) -> None:
    for history in decoder._histories:
        for _ in range(context):
            history.append(history._buffer[:, 0])


def measure(context: int, episodes: int, rounds: int) -> dict[str, Any]:
    cases = {f"{method} {mode}": decision(method, mode, context, episodes) for method in METHODS for mode in MODES}
    products = {name: bare_products(case) for name, case in cases.items() if name.startswith("dm ")}
    alone = {f"{name}, products": run for name, run in products.items()}
    ms = medians_ms(in_turns(cases | alone, rounds, warm_up=1))
    products_ms = {name: ms.pop(f"{name}, products") for name in products}
    return {"context": context, "episodes": episodes, "ms": ms, "products_ms": products_ms}


def _shown(name: str, ms: dict[str, float], products: dict[str, float]) -> str:
    over = f" ({ms[name] / products[name]:.2f})" if name in products else ""
    return f"{ms[name]:.2f}{over}"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.8), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    counts = sorted({result["episodes"] for result in results})
    for axes, episodes in zip(figure.subplots(1, len(counts), sharey=True, squeeze=False)[0], counts, strict=True):
        rows = [result for result in results if result["episodes"] == episodes]
        for method in METHODS:
            for mode in MODES:
                times = [row["ms"][f"{method} {mode}"] for row in rows]
                axes.plot(
                    [row["context"] for row in rows], times, marker=METHODS_BY_NAME[method].marker, markersize=4,
                    color=METHODS_BY_NAME[method].colour, linestyle=LINES[mode], label=f"{method.upper()} {mode}",
                )  # fmt: skip
        axes.set_title(f"{episodes} episode{'s' if episodes > 1 else ''} at once", loc="left", fontsize=11)
        axes.set_xlabel("context length K")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([row["context"] for row in rows], [str(row["context"]) for row in rows])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("ms per decision, one CPU thread")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent.parent / "docs" / "inference.png")
    parser.add_argument("--contexts", default="10,20,50,100,200,500,1000")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="K 20, three rounds, no plot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    contexts = [20] if options.quick else [int(each) for each in options.contexts.split(",")]
    rounds = 3 if options.quick else options.rounds
    table = Table(title=f"ms per decision, 1 thread, medians of {rounds}", box=None)
    names = [f"{method} {mode}" for method in METHODS for mode in MODES]
    for heading in ("episodes", "K", *names, "dm: window / stream:2", "dm: window / recurrent"):
        table.add_column(heading, justify="right")
    results = []
    for episodes in EPISODES:
        for context in (each for each in contexts if episodes * each <= MOST_TIMESTEPS):
            results.append(measure(context, episodes, rounds))
            ms, products = results[-1]["ms"], results[-1]["products_ms"]
            ratios = (ms["dm window"] / ms["dm stream:2"], ms["dm window"] / ms["dm recurrent"])
            shown = [_shown(name, ms, products) for name in names]
            table.add_row(str(episodes), str(context), *shown, *(f"{r:.1f}" for r in ratios))
    Console(width=150).print(table)
    settings = {"d_model": 128, "n_layer": 6, "observations": OBSERVATIONS, "actions": ACTIONS, "rounds": rounds}
    write_record(options.json, settings, results)
    if not options.quick:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
