"""Writes tests/golden/huggingface.npz: a small DecisionTransformerModel of `transformers`, with what it computes.

    pip install "transformers<5" && python tests/golden/make_huggingface.py

Not run by the tests, which have no `transformers`. Keys: `config` (JSON), `weights/<their name>`, `inputs/<field>` in
raw units, `outputs/action` (B, T, A) of whole windows, `outputs/last` (B, A) with padding on the left and its mask, as
their examples act.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

FILE = Path(__file__).parent / "huggingface.npz"
BATCH, LENGTH, PADDED, SCALE = 2, 6, 9, 1000.0
CONFIG = {
    "state_dim": 5, "act_dim": 3, "hidden_size": 16, "max_ep_len": 12, "n_layer": 2, "n_head": 2, "n_positions": 48,
}  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    model = DecisionTransformerModel(DecisionTransformerConfig(**CONFIG)).eval()
    with torch.no_grad():
        for value in model.parameters():  # the initial ones are too small to show a difference
            value.copy_(torch.randn_like(value).mul(0.3).half().float())
    states, actions = torch.randn(BATCH, LENGTH, 5), torch.rand(BATCH, LENGTH, 3) * 2 - 1
    returns = torch.linspace(3600, 3000, LENGTH).repeat(BATCH, 1)[..., None]
    mean, std = torch.randn(5), torch.rand(5) + 0.5
    timesteps = torch.arange(LENGTH).repeat(BATCH, 1)
    encoded = {
        "states": (states - mean) / std,
        "actions": actions,
        "returns_to_go": returns / SCALE,
        "timesteps": timesteps,
    }
    with torch.no_grad():
        whole = model(**encoded, attention_mask=torch.ones(BATCH, LENGTH)).action_preds
        left = PADDED - LENGTH

        def padded(values: torch.Tensor) -> torch.Tensor:
            return torch.cat([values.new_zeros(BATCH, left, *values.shape[2:]), values], dim=1)

        mask = padded(torch.ones(BATCH, LENGTH))
        last = model(**{name: padded(values) for name, values in encoded.items()}, attention_mask=mask).action_preds
    np.savez_compressed(
        FILE,
        config=np.array(model.config.to_json_string()),
        **{f"weights/{name}": value.numpy() for name, value in model.state_dict().items()},
        **{"inputs/states": states.numpy(), "inputs/actions": actions.numpy(), "inputs/returns": returns.numpy()},
        **{"inputs/mean": mean.numpy(), "inputs/std": std.numpy()},
        **{"outputs/action": whole.numpy(), "outputs/last": last[:, -1].numpy()},
    )


if __name__ == "__main__":
    main()
