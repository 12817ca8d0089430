"""docs/methods.md: the weights of timesteps, the presets and the tokens are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dmray.datasets import WindowSampler
from dmray.fields import Field, Token
from dmray.methods import METHODS
from tests.datasets.examples import episodes_of

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


def windows_with(anchor: str, context: int, length: int) -> np.ndarray:
    """The page's formula: of the windows of an episode, those that have timestep t; (length,)."""
    t = np.arange(length)
    return np.minimum(min(context, length), length - t if anchor == "last" else t + 1)


@pytest.mark.parametrize("anchor", ["last", "first"])
@pytest.mark.parametrize(("context", "length"), [(3, 8), (5, 5), (6, 4)])
def test_the_formula_of_weights_is_what_the_sampler_draws(anchor: str, context: int, length: int) -> None:
    draws = 20_000
    sampler = WindowSampler(
        episodes_of([length]),
        [Token(Field.STATE)],
        context_length=context,
        batch_size=draws,
        anchor=anchor,  # type: ignore[arg-type]
    )
    windows = sampler.sample(torch.Generator().manual_seed(0))
    counts = np.bincount(windows.timesteps[windows.valid].numpy(), minlength=length)
    chance = windows_with(anchor, context, length) / length
    np.testing.assert_allclose(counts / draws, chance, atol=5 * 0.5 / draws**0.5)


def test_the_table_of_weights_follows_from_the_formula() -> None:
    rows = re.findall(r"^\| (\d+), ([\d,]+) \| (last|first) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for context, length, anchor, shown in rows:
        steps = int(length.replace(",", ""))
        weights = windows_with(anchor, int(context), steps)
        places = [0, 5, 10, steps // 2, steps - 10, steps - 5, steps - 1]
        expected = " | ".join(f"{weights[place] / weights.mean():.2f}" for place in places)
        assert shown == expected, (context, length, anchor)


def test_the_table_of_presets_is_the_registrys() -> None:
    presets = METHODS["dt"].presets
    names = [preset.name for preset in presets]
    assert re.search(rf"^\| field \| `{names[0]}` \(default\) \| `{names[1]}` \| `{names[2]}` \|$", PAGE, re.MULTILINE)
    for section in ("model", "training"):
        for field in getattr(presets[0], section):
            values = [json.dumps(getattr(preset, section)[field]).strip('"') for preset in presets]
            assert f"| `{field}` | {' | '.join(f'`{value}`' for value in values)} |" in PAGE, field


def test_the_first_preset_is_what_a_trial_has_without_one() -> None:
    from dmray.specs import TrainingSpec

    for method in ("dt", "dt-r"):
        paper = METHODS[method].presets[0]
        assert METHODS[method].config().model_dump().items() >= paper.model.items()
        assert TrainingSpec().model_dump().items() >= paper.training.items()


def test_the_table_of_tokens_names_every_method_with_its_tokens() -> None:
    rows = re.findall(r"^\| (`.*?`(?:, (?:high|low) level)?) \| ([\w, ]+) \| ([\w\-, ]+) \| ", PAGE, re.MULTILINE)
    named = {name for cell, _, _ in rows for name in re.findall(r"`([^`]+)`", cell)}
    assert named >= set(METHODS._builtin)
    words = {"return_to_go": "return-to-go"}
    for cell, backbone, tokens in rows:
        for name in re.findall(r"`([^`]+)`", cell):
            method = METHODS[name]
            assert backbone.startswith("as above") or backbone.lower().startswith(method.backbone.name), name
            stage = method.stages[-1 if "high" not in cell else 0]
            shown = [token.removeprefix("previous ") for token in tokens.split(", ")]
            assert shown == [words.get(token.field, token.field) for token in stage.tokens], name
