"""Make `RESULTS.md`, one page with the last results of all benchmarks, from their JSON files.

python benchmarks/results.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Rows = list[list[str]]


def training_step(record: dict[str, Any]) -> Iterator[str]:
    """One optimizer step by context length."""
    results = record["results"]
    names = list(dict.fromkeys(name for result in results for name in result["step_ms"]))
    rows = [[f"K {result['context_length']}" for result in results]]
    for name in names:
        ours = "DM" if "DM" in name or "Mamba" in name else "DT"
        rows.append([_with_ratio(result["step_ms"].get(name), result["step_ms"][ours]) for result in results])
    for ours in ("DM", "DT"):
        times = [(result["products_ms"].get(ours), result["step_ms"][ours]) for result in results]
        rows.append([f"{step / alone:.2f}" if alone else "" for alone, step in times])
        names.append(f"{ours} over its matrix products alone")
    yield "Milliseconds per optimizer step, width 128, 6 layers, batches of 16, one thread; in brackets: over ours."
    yield from _table(["", *rows[0]], [[name, *row] for name, row in zip(names, rows[1:], strict=True)])


def scan(record: dict[str, Any]) -> Iterator[str]:
    """The scan forward with backward by size."""
    results = record["results"]
    names = list(dict.fromkeys(name for result in results for name in result["with_backward_ms"]))
    heads = [" x ".join(str(number) for number in result["size"].values()) for result in results]
    times = [result["with_backward_ms"] for result in results]
    yield "Milliseconds of the selective scan, forward and backward, one thread, by windows x tokens x channels x"
    yield "states; in brackets: over numba's."
    yield from _table(
        ["", *heads], [[name, *(_with_ratio(each.get(name), each["numba"]) for each in times)] for name in names]
    )


def evaluation(record: dict[str, Any]) -> Iterator[str]:
    """100 full episodes."""
    yield "Seconds for 100 episodes of full length, width 128, 6 layers, K 20. `loop` is the published loop (one"
    yield "environment, batches of one, the whole window through the plain PyTorch scan in each step; extrapolated)."
    rows = []
    for result in record["results"]:
        overhead = 1 - (result["physics"] + result["policy"]) / result["wall"]
        rows.append(
            [
                *(str(result[key]) for key in ("task", "method", "mode", "actors")),
                *(f"{result[key]:.1f}" for key in ("wall", "physics", "policy")),
                f"{overhead:.1%}",
                *(f"{result[key]:.0f}" for key in ("one_env_loop_s", "times_faster")),
                "" if result["promised"] is None else f"{result['promised']:.0f}",
            ]
        )
    heads = [
        "task",
        "method",
        "decode",
        "actors",
        "wall",
        "physics",
        "policy",
        "overhead",
        "loop",
        "times faster",
        "target",
    ]
    yield from _table(heads, rows)


def evaluation_beside_training(record: dict[str, Any]) -> Iterator[str]:
    """Training while an evaluation actor runs."""
    (result,) = record["results"]
    yield "DM's training steps per second while an evaluation actor runs on the other core, over those without:"
    yield f"{result['ratio']:.3f} (target: 0.95)."


def decode(record: dict[str, Any]) -> Iterator[str]:
    """One decision of a hundred episodes."""
    results = [result for result in record["results"] if result["episodes"] == 100]
    names = list(results[0]["ms"])
    yield "Milliseconds of one decision for a hundred episodes at once, width 128, 6 layers, one thread, by context"
    yield "length ([plot](../docs/inference.png))."
    rows = [[name, *(f"{result['ms'][name]:.1f}" for result in results)] for name in names]
    yield from _table(["", *(f"K {result['context']}" for result in results)], rows)


def context_length(record: dict[str, Any]) -> Iterator[str]:
    """Cost against context length."""
    results = record["results"]
    contexts = list(dict.fromkeys(result["context"] for result in results))
    yield "Cost by context length, 6 layers, one thread. `equal width`: 128; `equal size`: about as many parameters."
    yield "Figures and where the lines cross: [docs/questions/speed.md](../docs/questions/speed.md)."
    quantities = {
        "train_us": "training, µs per timestep",
        "train_mib": "training, peak MiB",
        "window 1": "decision of 1 episode, `window`, ms",
        "recurrent 1": "decision of 1 episode, `recurrent`, ms",
        "state_mib": "state of an episode, MiB",
    }
    rows = []
    for quantity, title in quantities.items():
        for sizing in dict.fromkeys(result["sizing"] for result in results):
            for method in dict.fromkeys(result["method"] for result in results):
                by_context = {
                    result["context"]: result.get(quantity)
                    for result in results
                    if (result["sizing"], result["method"]) == (sizing, method)
                }
                values = [by_context.get(context) for context in contexts]
                shown = ["" if value is None else f"{value:.3g}" for value in values]
                rows.append([title, sizing, method.upper(), *shown])
    yield from _table(["", "", "", *(f"K {context:,}" for context in contexts)], rows)


def lanes(record: dict[str, Any]) -> Iterator[str]:
    """The vector type of numba's loops."""
    yield "Milliseconds of DM's training step and of a decision for 16 episodes, width 128, 6 layers, K 20, one thread:"
    yield "with the vector type of `dmray/models/lanes.py`, and with plain numba loops in its place."
    rows = [
        [
            result["what"],
            *(f"{result['ms'][name]:.2f}" for name in ("lanes", "plain numba")),
            f"{result['ms']['plain numba'] / result['ms']['lanes']:.2f}",
        ]
        for result in record["results"]
    ]
    yield from _table(["", "lanes", "plain numba", "plain / lanes"], rows)


def env_steps(record: dict[str, Any]) -> Iterator[str]:
    """Simulator steps."""
    yield "Simulator steps per second on one core, 100 episodes with random actions: ours, a loop over gymnasium's"
    yield "environments, and bare `mj_step`."
    heads = ["family", "engine", "ours", "loop", "mj_step"]
    rows = [
        [
            result["family"],
            result["engine"],
            *(f"{result['steps_per_s'][key]:,.0f}" for key in ("ours", "loop", "floor")),
        ]
        for result in record["results"]
    ]
    yield from _table(heads, rows)


def sweep_overhead(record: dict[str, Any]) -> Iterator[str]:
    """The overhead of Ray."""
    slots = record["settings"]["slots"]
    trained_s = [each["slots_busy"] * slots * each["wall_s"] / each["trials"] for each in record["results"]]
    yield f"Trials of {sum(trained_s) / len(trained_s):.0f} s in {slots} slots, by executor."
    heads = ["executor", "slots busy", "idle seconds per trial", "processes", "head's GiB with 16 slots"]
    rows = [
        [
            result["executor"],
            f"{result['slots_busy']:.0%}",
            f"{result['idle_s_per_trial']:.1f}",
            str(result["processes"]),
            f"{result['head_gib_with_16_slots']:.1f}",
        ]
        for result in record["results"]
    ]
    yield from _table(heads, rows)


def many_trials(record: dict[str, Any]) -> Iterator[str]:
    """Trivial trials."""
    first = record["results"][0]
    yield f"{record['settings']['trials']} trivial trials in one process: {first['wall_s']:.0f} s."


def safety(record: dict[str, Any]) -> Iterator[str]:
    """The checks of files and processes."""
    *results, look = record["results"]
    every = record["settings"]["checkpoint_every_steps"]
    yield "What the checks of checkpoints, ledgers and weights add to a training step, with a checkpoint every"
    yield f"{every:,} steps, and to an evaluation (a cohort of 50 full episodes)."
    yield f"The driver's look at 40 processes, every 5 s, takes {look['look_ms']:.1f} ms."
    rows = [
        [
            result["size"],
            *(f"{result[name]:.1f}" for name in ("step_ms", "checkpoint_ms", "checks_ms", "cohort_ms")),
            *(f"{max(result[name], 0.0):.2%}" for name in ("share_of_training", "share_of_evaluation")),
        ]
        for result in results
    ]
    heads = ["", "step, ms", "checkpoint, ms", "its checks, ms", "cohort, ms", "of training", "of evaluation"]
    yield from _table(heads, rows)


def report(record: dict[str, Any]) -> Iterator[str]:
    """The report of a large sweep."""
    (result,) = record["results"]
    yield f"The report of {result['trials']:,} trials with {result['evaluations']:,} evaluations:"
    yield f"{result['wall_s']:.0f} s, {result['peak_gib']:.1f} GiB."


PARTS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "evaluation": evaluation,
    "evaluation_beside_training": evaluation_beside_training,
    "decode": decode,
    "training_step": training_step,
    "context_length": context_length,
    "scan": scan,
    "lanes": lanes,
    "env_steps": env_steps,
    "sweep_overhead": sweep_overhead,
    "many_trials": many_trials,
    "safety": safety,
    "report": report,
}


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/results.py` from the JSON files in this folder; each section is one script. "
        "Sections are of different days, machines and commits: compare times within one section only.",
        "",
    ]
    for name, part in PARTS.items():
        path = HERE / f"{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            lines += [f"## {name}", "", _machine(record), "", *part(record), ""]
    return "\n".join(lines[:-1]) + "\n"


def _machine(record: dict[str, Any]) -> str:
    made = record.get("made_by")
    if made is None:
        return "*2 cores.*"
    hardware, commit = made["hardware"], (made["git"]["commit"] or "unknown")[:7]
    device = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    return f"*{device}; torch {made['versions']['torch']}; commit {commit}.*"


def _with_ratio(ms: float | None, ours: float) -> str:
    return "" if ms is None else f"{ms:.1f}" if ms == ours else f"{ms:.1f} ({ms / ours:.1f})"


def _table(heads: Iterable[str], rows: Rows) -> Iterator[str]:
    heads = list(heads)
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> None:
    (HERE / "RESULTS.md").write_text(page())


if __name__ == "__main__":
    main()
