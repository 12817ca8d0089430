"""Which trials are stopped early: the rule, its rungs, and how long a decision holds."""

from __future__ import annotations

from typing import Any

import pytest

from dmray.errors import SpecError
from dmray.planning.plan import plan
from dmray.planning.successive_halving import decide, decision_holds
from dmray.specs import EarlyStoppingSpec, EvaluationSpec, SweepSpec, TrainingSpec
from tests.mlflow_mirror.examples import example_sweep, trials_of

RULE = EarlyStoppingSpec(grace_steps=10, reduction_factor=3)


def long_sweep(**changes: Any) -> SweepSpec:
    return example_sweep(
        **{
            "training": {"steps": 1000},
            "evaluation": {"every_steps": 10},
            "grid": [{"methods": ["dm", "dt"], "models": [{"n_layer": layers} for layers in (1, 2, 3)]}],
            "seeds": [0, 1, 2],
        }
        | changes
    )


TRIAL = trials_of(long_sweep())[0]


@pytest.mark.parametrize(
    ("grace", "factor", "steps", "every", "rungs"),
    [
        (10, 3, 1000, 10, (10, 30, 90, 270, 810)),
        (10, 3, 810, 10, (10, 30, 90, 270)),  # the last step is no rung
        (15, 2, 100, 10, (20, 30, 60)),  # 15, 30, 60: to the next evaluation, never before grace_steps
        (1, 2, 50, 20, (20, 40)),  # 1, 2, 4, 8, 16 and 32: each step once
        (40, 3, 40, 10, ()),
        (35, 3, 40, 20, ()),  # 40 is the end
    ],
)
def test_rungs_are_evaluated_steps_before_the_end(
    grace: int, factor: int, steps: int, every: int, rungs: tuple[int, ...]
) -> None:
    rule = EarlyStoppingSpec(grace_steps=grace, reduction_factor=factor)
    assert rule.rungs(TrainingSpec(steps=steps), EvaluationSpec(every_steps=every)) == rungs


@pytest.mark.parametrize(
    ("factor", "score", "peers", "cutoff", "action"),
    [
        (3, 1.0, [], None, "continue"),
        (3, 1.0, [9.0], None, "continue"),  # two scores cannot have a best third
        (3, 1.0, [9.0, 8.0], 9.0, "stop"),
        (3, 8.9, [9.0, 8.0], 9.0, "stop"),
        (3, 9.0, [1.0, 8.0], 9.0, "continue"),
        (3, 9.0, [9.0, 9.0], 9.0, "continue"),  # ties continue
        (3, 8.0, [9.0, 1.0, 1.0, 1.0], 9.0, "stop"),  # of five scores one continues
        (3, 8.0, [9.0, 1.0, 1.0, 1.0, 1.0], 8.0, "continue"),  # of six two
        (2, -5.0, [-9.0], -5.0, "continue"),
        (2, -9.0, [-5.0], -5.0, "stop"),
        (4, 0.0, [1.0, 1.0], None, "continue"),
    ],
)
def test_the_best_of_the_scores_so_far_continue(
    factor: int, score: float, peers: list[float], cutoff: float | None, action: str
) -> None:
    rule = EarlyStoppingSpec(grace_steps=10, reduction_factor=factor)
    decision = decide(rule, 10, score, peers, time_s=1.0)
    assert (decision.num_peers, decision.cutoff, decision.action) == (len(peers), cutoff, action)
    assert (decision.action == "stop") == (cutoff is not None and score < cutoff)
    assert decision_holds(rule, trials_of(long_sweep())[0], decision) == (action == "stop")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RULE, True),
        (None, False),
        (EarlyStoppingSpec(grace_steps=30, reduction_factor=4), True),  # stricter, and 30 is its rung too
        (EarlyStoppingSpec(grace_steps=10, reduction_factor=4), False),  # whose rungs are 10, 40, 160
        (EarlyStoppingSpec(grace_steps=30, reduction_factor=2), False),  # of the four scores two continue
        (EarlyStoppingSpec(grace_steps=10, reduction_factor=3, within="dataset"), False),  # others would compete
    ],
)
def test_a_decision_holds_while_the_rule_would_make_it(rule: EarlyStoppingSpec | None, expected: bool) -> None:
    decision = decide(RULE, 30, 5.0, [9.0, 1.0, 1.0], time_s=1.0)
    assert decision_holds(rule, TRIAL, decision) is expected


def test_a_decision_to_continue_stops_no_trial() -> None:
    assert not decision_holds(RULE, TRIAL, decide(RULE, 30, 9.0, [1.0, 1.0], time_s=1.0))


def test_sizes_of_one_or_all_methods_compete_but_not_different_seeds() -> None:
    grid = [{"methods": ["dm", "dt"], "models": [{"d_model": 64}, {"d_model": 128}]}]
    trials = trials_of(long_sweep(grid=grid, datasets=["hopper-medium-v2", "hopper-expert-v2"]))
    by_method = {trial.trial_id: RULE.competitors_of(trial) for trial in trials}
    assert len(set(by_method.values())) == 4 * 3
    assert all(
        by_method[trial.trial_id].startswith(f"{trial.dataset.name}-{trial.method}-s{trial.seed}-") for trial in trials
    )
    by_dataset = EarlyStoppingSpec(grace_steps=10, within="dataset")
    assert len({by_dataset.competitors_of(trial) for trial in trials}) == 2 * 3


def test_scores_of_another_training_or_protocol_never_compete() -> None:
    others = (
        long_sweep(training={"steps": 2000}),
        long_sweep(evaluation={"every_steps": 10, "decode": "recurrent"}),
        long_sweep(evaluation={"every_steps": 10, "seed": 1}),
    )
    groups = {RULE.competitors_of(trials_of(sweep)[0]) for sweep in (long_sweep(), *others)}
    assert len(groups) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"early_stopping": {"grace_steps": 1000}},
            "grace_steps 1000: there is no evaluation between",
        ),
        ({"early_stopping": {"grace_steps": 991}}, "grace_steps 991: there is no evaluation"),
        (
            {"early_stopping": {"grace_steps": 10, "reduction_factor": 4}},
            "at most 3 trials of a seed compete within",
        ),
        (
            {"early_stopping": {"grace_steps": 10, "reduction_factor": 7, "within": "dataset"}},
            "at most 6 trials of a seed compete within a dataset, so none could be stopped; add models",
        ),
        ({"early_stopping": {"grace_steps": 10, "reduction_factor": 1}}, "greater than or equal to 2"),
    ],
)
def test_a_rule_that_can_stop_no_trial_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, SpecError), match=message):
        plan(long_sweep(**changes))


def test_early_stopping_does_not_change_trial_ids() -> None:
    assert trials_of(long_sweep(early_stopping={"grace_steps": 10})) == trials_of(long_sweep())
