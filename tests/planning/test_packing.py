from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.planning.packing import pack_key, packing_lines, packs_together, require_processes, why_unpacked
from dmray.records import SweepFolder
from dmray.specs import ResourcesSpec, TrialSpec
from dmray.trial.job import TrialJob
from tests.sweeps import tiny_plan

SIZE = {"d_model": 16, "n_layer": 1, "context_length": 4}
PACKED = {"trials_per_pack": 4, "gpus_per_trial": 0.25, "device": "cpu"}


def trials_of(path: Path, *methods: str, **changes: Any) -> list[TrialSpec]:
    return list(tiny_plan(path, grid=[{"methods": methods, "models": [SIZE]}], **changes).trials)


@pytest.mark.parametrize(
    ("method", "model", "training", "reason"),
    [
        ("dm", {}, {}, None),
        ("hdm", {}, {}, None),
        ("dt", {}, {}, None),
        ("bc", {}, {}, None),
        ("dlstm", {}, {}, "backbone 'lstm'"),
        ("dm", {}, {"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_what_vmap_cannot_do_is_not_packed_and_the_reason_is_given(
    tmp_path: Path, method: str, model: dict[str, Any], training: dict[str, Any], reason: str | None
) -> None:
    grid = [{"methods": [method], "models": [SIZE | model]}]
    plan = tiny_plan(tmp_path, grid=grid, training=training, resources=PACKED)
    job = TrialJob.of(plan.trials[0], plan.sweep, SweepFolder(tmp_path, "tiny"))
    assert job.trials_per_pack == (4 if reason is None else 1)
    found = why_unpacked(plan.trials[0])
    assert found is None if reason is None else found is not None and reason in found


def test_every_method_says_whether_it_can_be_packed(tmp_path: Path) -> None:
    packable = {name for name in METHODS if METHODS[name].backbone.packable}
    assert packable >= {"dm", "dm+r", "hdm", "dt", "hdt", "bc"}
    assert "dlstm" not in packable


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"seeds": [1]}, True),
        ({"training": {"steps": 80}}, True),
        ({"training": {"learning_rate": 0.5}}, True),
        ({"evaluation": {"episodes": 7}}, True),
        ({"training": {"batch_size": 3}}, False),
        ({"training": {"grad_clip": 3.0}}, False),
        ({"training": {"dtype": "bfloat16"}}, False),
        ({"evaluation": {"return_scale": 7.0}}, False),
        ({"grid": [{"methods": ["dm"], "models": [SIZE | {"d_state": 8}]}]}, False),
        ({"grid": [{"methods": ["dm+r"], "models": [SIZE]}]}, False),
    ],
)
def test_trials_share_a_pack_if_only_seed_rate_length_and_evaluation_differ(
    tmp_path: Path, changes: dict[str, Any], shared: bool
) -> None:
    base = {"grid": [{"methods": ["dm"], "models": [SIZE]}], "training": {"steps": 40}, "evaluation": {"episodes": 4}}
    one, other = (tiny_plan(tmp_path, **content).trials[0] for content in (base, base | changes))
    assert (pack_key(one) == pack_key(other)) == shared


def test_the_trials_of_a_pack_start_together_and_the_others_stay_in_order(tmp_path: Path) -> None:
    trials = trials_of(tmp_path, "dm", "hdm", "dlstm", seeds=[0, 1, 2])
    names = [f"{trial.method} {trial.seed}" for trial in packs_together(trials, 2)]
    assert names == [
        "dm 0", "dm 1", "hdm 0", "hdm 1", "dlstm 0", "dlstm 1", "dm 2", "hdm 2", "dlstm 2",
    ]  # fmt: skip
    assert packs_together(trials, 1) == trials
    assert sorted(names) == sorted(f"{trial.method} {trial.seed}" for trial in trials)


def test_the_plan_says_which_trials_are_not_packed_and_why(tmp_path: Path) -> None:
    trials = trials_of(tmp_path, "dm", "dlstm", seeds=[0, 1])
    first, unpacked = packing_lines(trials, 2)
    assert first == "packed: 2 of 4 trials, up to 2 in one network"
    assert unpacked.startswith("  not packed: 2 of dlstm, which has the backbone 'lstm'")
    assert packing_lines(trials, 1) == []
    alone = trials_of(tmp_path, "dm", "hdm", seeds=[0])
    for given, counts in ((trials, "2 of 4 trials, up to 2"), (alone, "0 of 2 trials, up to 1")):
        first, few, empty, *_ = packing_lines(given, 4)
        most = counts[-1]
        assert first == f"packed: {counts} in one network"
        assert few.startswith(f"  at most {most} of them can share a pack")
        assert empty.endswith(f": -o resources.trials_per_pack={most}")


def test_a_local_run_refuses_packs() -> None:
    require_processes(ResourcesSpec())
    with pytest.raises(SpecError, match=r"one trial after the other.*trials_per_pack=1"):
        require_processes(ResourcesSpec(trials_per_pack=2, gpus_per_trial=0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trials_per_pack": 4}, r"gpus_per_trial is 0; give it gpus_per_trial: 0\.25"),
        ({"trials_per_pack": 4, "gpus_per_trial": 1}, "gpus_per_trial is 1"),
        (
            {"trials_per_pack": 4, "gpus_per_trial": 0.5},
            r"only 2 .* trials_per_pack: 2, or gpus_per_trial: 0\.25",
        ),
        ({"trials_per_pack": 4, "gpus_per_trial": 0.25, "max_concurrent_trials": 2}, "leaves seats empty"),
        ({"trials_per_pack": 65, "gpus_per_trial": 0.01}, "less than or equal to 64"),
    ],
)
def test_packs_that_cannot_fill_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResourcesSpec(**fields)
