"""Published implementations of Decision Transformer, as presets: what they do otherwise than one another.

`tests/methods/test_presets.py` proves each against formulas. docs/methods.md has the table, and what differs beside it.
"""

from __future__ import annotations

from dmray.methods.method import Preset

DT_PRESETS = (
    Preset(
        name="paper",
        source="arXiv 2405.07943: github.com/meowatthemoon/HDT",
        model={
            "activation": "relu",
            "timestep_init": 1.0,
            "embedding_init": "pytorch",
            "attention_init": "normal",
            "residual_init": "scaled",
        },
        training={
            "action_input": "paper",
            "window_anchor": "last",
            "episode_weighting": "uniform",
            "loss_mean": "valid",
        },
    ),
    Preset(
        name="chen",
        source="arXiv 2106.01345: github.com/kzl/decision-transformer",
        model={
            "activation": "relu",
            "timestep_init": 1.0,
            "embedding_init": "pytorch",
            "attention_init": "normal",
            "residual_init": "plain",
        },
        training={
            "action_input": "dt",
            "window_anchor": "first",
            "episode_weighting": "length",
            "loss_mean": "valid",
        },
    ),
    Preset(
        name="corl",
        source="arXiv 2210.07105: github.com/tinkoff-ai/CORL",
        model={
            "activation": "gelu",
            "timestep_init": 0.02,
            "embedding_init": "normal",
            "attention_init": "xavier",
            "residual_init": "plain",
        },
        training={
            "action_input": "dt",
            "window_anchor": "first",
            "episode_weighting": "length",
            "loss_mean": "all",
        },
    ),
)
