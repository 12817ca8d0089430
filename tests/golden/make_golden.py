"""Writes tests/golden/*.npz: small networks under the authors' names, with what they compute, by formulas alone.

    python tests/golden/make_golden.py

NumPy in float64, written from the equations of arXiv 2312.00752 (Mamba), GPT-2 and arXiv 2405.07943, one token at a
time; nothing of dmray is used. Weights are rounded to half and inputs to single precision first, so that what the
files hold is exact in every precision that a test computes in.

Keys of a file: `weights/<stage>/<their name>`, `inputs/<field>` (whole trajectories (B, T, dim) in raw units; mean, std
and the scalars of the protocol too), `outputs/<action input>/<stage>` for the timesteps [first, T).
Shapes below: L tokens, D width, I inner width, N states, R rank of the step size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Array]

FOLDER = Path(__file__).parent
BATCH, LENGTH, FIRST = 2, 7, 2
STATES, ACTIONS, TIMESTEPS = 5, 3, 9
EPSILON = 1e-5
FIELDS = {"return_to_go": 1, "state": STATES, "action": ACTIONS, "subgoal": STATES}
ACTION_LIMIT, RETURN_SCALE = 0.75, 1000.0


class Stage(NamedTuple):
    """Inputs in token order, as (their embedding, value); what is predicted, from which token, by which head."""

    target: str
    tokens: tuple[tuple[str, str], ...]
    read_at: int
    head: str
    tanh: bool = True


class Case(NamedTuple):
    """A method's stages and sizes; `heads` 0 is Mamba."""

    stages: tuple[Stage, ...]
    d_model: int
    n_layer: int = 2
    heads: int = 0
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2


R, S, A = ("embed_return", "return_to_go"), ("embed_state", "state"), ("embed_action", "action input")
G, HIGH_G = ("embed_subgoal", "subgoal"), ("embed_subgoal", "subgoal before")
ACTION_HEAD = "predict_action.0"
LOW = Stage("action", (G, S, A), 1, ACTION_HEAD)
CASES = {
    "dt": Case((Stage("action", (R, S, A), 1, ACTION_HEAD),), d_model=20, heads=1),
    "dm": Case((Stage("action", (S, A), 0, ACTION_HEAD),), d_model=18, d_state=6, d_conv=3, expand=3),
    "dm+r": Case((Stage("action", (R, S, A), 1, ACTION_HEAD),), d_model=18, n_layer=1),
    "hdt": Case(
        (Stage("subgoal", (S, ("embed_sub_goal", "subgoal before")), 1, "predict_state", tanh=False), LOW),
        d_model=20,
        heads=2,
    ),
    "hdm": Case((Stage("subgoal", (HIGH_G, S), 1, "predict_subgoal.0"), LOW), d_model=18),
}


def linear(w: Weights, name: str, x: Array) -> Array:
    """PyTorch's layout, (out, in)."""
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def conv1d(w: Weights, name: str, x: Array) -> Array:
    """GPT-2's layout, (in, out)."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(w: Weights, name: str, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * w[f"{name}.weight"]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def mixer(w: Weights, name: str, tokens: Array) -> Array:
    """Mamba-1, token by token: a window of the last inputs for the convolution, a state (I, N) for the recurrence."""
    taps, rates = w[f"{name}.conv1d.weight"][:, 0], -np.exp(w[f"{name}.A_log"])
    inner, rank = len(taps), w[f"{name}.dt_proj.weight"].shape[1]
    recent, state, outputs = np.zeros_like(taps), np.zeros_like(rates), []
    for token in tokens:
        x, gate = np.split(linear(w, f"{name}.in_proj", token), [inner])
        recent = np.column_stack([recent[:, 1:], x])
        x = silu((recent * taps).sum(1) + w[f"{name}.conv1d.bias"])
        low_rank, enters, read = np.split(linear(w, f"{name}.x_proj", x), [rank, rank + rates.shape[1]])
        step = np.log1p(np.exp(linear(w, f"{name}.dt_proj", low_rank)))
        state = np.exp(step[:, None] * rates) * state + np.outer(step * x, enters)
        outputs.append(linear(w, f"{name}.out_proj", (state @ read + w[f"{name}.D"] * x) * silu(gate)))
    return np.array(outputs)


def mamba(w: Weights, case: Case, hidden: Array) -> Array:
    for layer in (f"backbone.layers.{n}" for n in range(case.n_layer)):
        hidden = hidden + mixer(w, f"{layer}.mixer", rms_norm(w, f"{layer}.norm", hidden))
        value, gate = np.split(linear(w, f"{layer}.mlp.fc1", rms_norm(w, f"{layer}.norm2", hidden)), 2, axis=-1)
        hidden = hidden + linear(w, f"{layer}.mlp.fc2", value * silu(gate))
    return rms_norm(w, "backbone.norm_f", hidden)


def attention(w: Weights, name: str, heads: int, hidden: Array) -> Array:
    """Each token over itself and those before it, one head after the other."""
    width = hidden.shape[1]
    size = width // heads
    query, key, value = np.split(conv1d(w, f"{name}.c_attn", hidden), 3, axis=1)
    mixed = np.zeros_like(hidden)
    for part in (slice(head * size, (head + 1) * size) for head in range(heads)):
        for i in range(len(hidden)):
            scores = np.array([query[i, part] @ key[j, part] for j in range(i + 1)]) / np.sqrt(size)
            chances = np.exp(scores - scores.max())
            mixed[i, part] = chances / chances.sum() @ value[: i + 1, part]
    return conv1d(w, f"{name}.c_proj", mixed)


def gpt2(w: Weights, case: Case, hidden: Array) -> Array:
    for block in (f"transformer.h.{n}" for n in range(case.n_layer)):
        hidden = hidden + attention(w, f"{block}.attn", case.heads, layer_norm(w, f"{block}.ln_1", hidden))
        wide = np.maximum(conv1d(w, f"{block}.mlp.c_fc", layer_norm(w, f"{block}.ln_2", hidden)), 0)
        hidden = hidden + conv1d(w, f"{block}.mlp.c_proj", wide)
    return layer_norm(w, "transformer.ln_f", hidden)


def predict(w: Weights, case: Case, stage: Stage, values: Mapping[str, Array]) -> Array:
    """Predictions in encoded units, (T, dim), for one window of encoded values (T, dim) that begins at FIRST."""
    tokens = []
    for step in range(LENGTH - FIRST):
        for embedding, value in stage.tokens:
            time = w["embed_timestep.weight"][FIRST + step] if case.heads else 0.0
            tokens.append(linear(w, embedding, values[value][step]) + time)
    backbone = gpt2 if case.heads else mamba
    hidden = backbone(w, case, layer_norm(w, "embed_ln", np.array(tokens)))
    read = linear(w, stage.head, hidden[stage.read_at :: len(stage.tokens)])
    return np.tanh(read) if stage.tanh else read


def mamba_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    width, inner, rank = case.d_model, case.expand * case.d_model, -(-case.d_model // 16)
    hidden = -(-width // 128) * 128
    shapes: dict[str, tuple[int, ...]] = {"backbone.norm_f.weight": (width,)}
    for layer in (f"backbone.layers.{n}" for n in range(case.n_layer)):
        shapes |= {
            f"{layer}.norm.weight": (width,),
            f"{layer}.mixer.A_log": (inner, case.d_state),
            f"{layer}.mixer.D": (inner,),
            f"{layer}.mixer.in_proj.weight": (2 * inner, width),
            f"{layer}.mixer.conv1d.weight": (inner, 1, case.d_conv),
            f"{layer}.mixer.conv1d.bias": (inner,),
            f"{layer}.mixer.x_proj.weight": (rank + 2 * case.d_state, inner),
            f"{layer}.mixer.dt_proj.weight": (inner, rank),
            f"{layer}.mixer.dt_proj.bias": (inner,),
            f"{layer}.mixer.out_proj.weight": (width, inner),
            f"{layer}.norm2.weight": (width,),
            f"{layer}.mlp.fc1.weight": (2 * hidden, width),
            f"{layer}.mlp.fc2.weight": (width, hidden),
        }
    return shapes


def gpt2_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    width = case.d_model
    shapes: dict[str, tuple[int, ...]] = {"embed_timestep.weight": (TIMESTEPS, width)}
    maps = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    maps |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    for block in (f"transformer.h.{n}" for n in range(case.n_layer)):
        for name, shape in maps.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    return shapes | {f"transformer.ln_f.{name}": (width,) for name in ("weight", "bias")}


def stage_shapes(case: Case, stage: Stage) -> dict[str, tuple[int, ...]]:
    dims = FIELDS | {"action input": ACTIONS}
    shapes = gpt2_shapes(case) if case.heads else mamba_shapes(case)
    shapes |= {"embed_ln.weight": (case.d_model,), "embed_ln.bias": (case.d_model,)}
    for embedding, value in stage.tokens:
        dim = dims.get(value, STATES)
        shapes |= {f"{embedding}.weight": (case.d_model, dim), f"{embedding}.bias": (case.d_model,)}
    dim = dims.get(stage.target, STATES)
    return shapes | {f"{stage.head}.weight": (dim, case.d_model), f"{stage.head}.bias": (dim,)}


def draw(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> Array:
    """Weights under which every part matters, exact in half precision."""
    noise = random.standard_normal(shape)
    if name.endswith("A_log"):
        return (np.log(np.arange(1, shape[1] + 1)) + 0.2 * noise).astype(np.float16)
    if len(shape) > 1:
        gain = 0.5 if name.startswith("predict") else 1.5  # a saturated Tanh would hide differences
        return (gain * noise / np.sqrt(np.prod(shape[1:]))).astype(np.float16)
    scales_up = name.endswith("mixer.D") or (name.endswith("weight") and len(shape) == 1)
    return (0.3 * noise + scales_up).astype(np.float16)


def make(method: str) -> dict[str, Array]:
    """Everything in a method's file. RandomState's numbers are the same in every version of NumPy."""
    case, random = CASES[method], np.random.RandomState(sum(map(ord, method)))
    raw = {name: random.standard_normal((BATCH, LENGTH, dim)) for name, dim in FIELDS.items()}
    raw |= {"return_to_go": 3000 + 1000 * raw["return_to_go"], "action": np.tanh(raw["action"])}
    raw |= {"mean": random.standard_normal(STATES), "std": np.exp(0.5 * random.standard_normal(STATES))}
    raw = {name: value.astype(np.float32) for name, value in raw.items()}
    held: dict[str, Array] = {f"inputs/{name}": value for name, value in raw.items()}
    for stage in case.stages:
        weights = {name: draw(random, name, shape) for name, shape in stage_shapes(case, stage).items()}
        held |= {f"weights/{stage.target}/{name}": value for name, value in weights.items()}
        exact = {name: value.astype(np.float64) for name, value in weights.items()}
        for action_input in ("paper", "dt"):
            windows = encoded({name: value.astype(np.float64) for name, value in raw.items()}, action_input)
            rows = [
                predict(exact, case, stage, {name: value[row, FIRST:] for name, value in windows.items()})
                for row in range(BATCH)
            ]
            scale = ACTION_LIMIT if stage.target == "action" else 1.0
            held[f"outputs/{action_input}/{stage.target}"] = np.array(rows) * scale
    return held


def encoded(raw: Mapping[str, Array], action_input: str) -> dict[str, Array]:
    """What the networks are fed: `paper` feeds the action one step earlier, `dt` the timestep's own."""

    def z_score(value: Array) -> Array:
        return (value - raw["mean"]) / raw["std"]

    def a_step_earlier(value: Array) -> Array:
        return np.concatenate([np.zeros_like(value[:, :1]), value[:, :-1]], axis=1)

    return {
        "return_to_go": raw["return_to_go"] / RETURN_SCALE,
        "state": z_score(raw["state"]),
        "action input": a_step_earlier(raw["action"]) if action_input == "paper" else raw["action"],
        "subgoal": z_score(raw["subgoal"]),
        "subgoal before": z_score(a_step_earlier(raw["subgoal"])),
    }


if __name__ == "__main__":
    for method in CASES:
        np.savez_compressed(FOLDER / f"{method}.npz", **make(method))
