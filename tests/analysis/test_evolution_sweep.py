"""`sweeps/evolution.yaml` at toy size: every variant trains, acts and is analysed."""

from __future__ import annotations

from pathlib import Path

import pytest

import dmray
from dmray.models.configs import Evolution

TOY = [
    "datasets=[{name: toy, task: maze2d-open, generate: {behaviour: expert, transitions: 1500}}]",
    "overrides=[]",
    "seeds=[0]",
    "grid.0.methods=[dm+r]",
    "grid.0.models.0.d_model=8",
    "grid.0.models.0.n_layer=1",
    "grid.0.models.0.context_length=3",
    "training={steps: 2, batch_size: 4}",
    "evaluation={episodes: 1, every_steps: 2, decode: recurrent}",
    'tracking={mlflow_uri: "off"}',
]


def test_the_evolution_sweep_trains_and_analyses_every_variant(tmp_path: Path) -> None:
    sweep = dmray.load_sweep("sweeps/evolution.yaml", [*TOY, f"storage={tmp_path}"])
    done = dmray.run_sweep(sweep, local=True, progress=False)
    assert done.succeeded, done.errors
    assert len(done.trials) == 6
    assert set(done.trials["evolution"]) == set(Evolution.__args__)  # type: ignore[attr-defined]
    made = dmray.analyze_decay(done.folders[0].path, windows=2)
    assert made.left_out == ()
    table = made.lengths_by_setting.query("weights == 'trained'").set_index("setting")["p50"]
    assert set(table.index) == {f"evolution {name}" for name in Evolution.__args__}  # type: ignore[attr-defined]
    assert (table["evolution no-decay"], table["evolution memoryless"]) == (float("inf"), 0.0)


@pytest.mark.parametrize(
    ("methods", "evolution", "sentence"),
    [
        ("[dm, dt]", "frozen", "method 'dt' has no 'evolution'"),
        ("[dm]", "no_decay", "unknown value 'no_decay', known: learned, .*no-decay"),
    ],
)
def test_the_plan_refuses_an_evolution_that_cannot_be(methods: str, evolution: str, sentence: str) -> None:
    changes = [f"grid.0.methods={methods}", f"grid.0.models.0.evolution={evolution}"]
    with pytest.raises(dmray.DmrayError, match=sentence):
        dmray.plan_sweep("sweeps/evolution.yaml", [*TOY, *changes])
