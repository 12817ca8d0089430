"""A search as a function of the sweep and of the outcomes so far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dmray.driver.plan_view import render_plan
from dmray.errors import SpecError
from dmray.planning.plan import Plan, plan
from dmray.planning.search import best_of, together
from dmray.planning.search_space import OPEN, Outcome, OutcomeOf
from dmray.planning.trial_filter import TrialFilter
from dmray.progress.search_progress import check_filter
from dmray.specs import SweepSpec, TrialSpec
from dmray.specs.loading import sweep_of

MODEL = {"d_model": [8, 16, 32, 64], "n_layer": 1, "context_length": 4}
SEARCH = {"settings": 12, "rounds": 4, "seeds": [100, 101]}


def searching(**changes: Any) -> SweepSpec:
    content: dict[str, Any] = {
        "name": "searching",
        "datasets": ["maze2d-umaze-v1"],
        "grid": [{"methods": ["dm", "dt"], "models": [MODEL]}],
        "seeds": [0, 1],
        "training": {"steps": 40, "learning_rate": {"log_uniform": [1e-5, 1e-1]}},
        "evaluation": {"episodes": 2, "every_steps": 10, "cohort_size": 2},
        "search": SEARCH,
    }
    return sweep_of(content | changes, "sweep")


def scored(score: Callable[[TrialSpec], float]) -> OutcomeOf:
    return lambda trial: Outcome("finished", score(trial), {40: score(trial)})


def planted(trial: TrialSpec) -> float:
    """Highest at learning rate 3e-3 and width 32."""
    far = abs(math.log10(trial.training.learning_rate) - math.log10(3e-3))
    return 100 - 30 * far - 10 * abs(math.log2(trial.model.d_model) - 5)


def selection(planned: Plan, method: str = "dm") -> list[TrialSpec]:
    return [trial for trial in planned.trials if planned.sweep.is_selection(trial) and trial.method == method]


def report(planned: Plan) -> list[TrialSpec]:
    return [trial for trial in planned.trials if not planned.sweep.is_selection(trial)]


def test_tpe_finds_a_planted_optimum() -> None:
    sweep = searching(search=SEARCH | {"settings": 40, "rounds": 8}, grid=[{"methods": ["dm"], "models": [MODEL]}])
    planned = plan(sweep, scored(planted))
    chosen, _ = report(planned)
    assert chosen.model.d_model == 32
    assert 1e-3 < chosen.training.learning_rate < 9e-3
    tried = selection(planned)
    assert sum(map(planted, tried[-10:])) > sum(map(planted, tried[:10])), "later rounds see the scores of earlier ones"


def test_every_method_tries_as_many_different_settings_on_the_selection_seeds_and_is_reported_on_the_others() -> None:
    planned = plan(searching(), scored(planted))
    for method in ("dm", "dt"):
        tried = selection(planned, method)
        assert len(tried) == 2 * len({trial.seed_group_id for trial in tried}) == 2 * 12
        assert {trial.seed for trial in tried} == {100, 101}
    assert [(trial.method, trial.seed) for trial in report(planned)] == [("dm", 0), ("dm", 1), ("dt", 0), ("dt", 1)]
    assert planned.search is not None
    assert planned.search.selection_trials + planned.search.report_trials == len(planned.trials)


def test_a_round_is_proposed_once_the_one_before_has_ended() -> None:
    sweep = searching()
    ended: set[str] = set()

    def outcome_of(trial: TrialSpec) -> Outcome:
        return scored(planted)(trial) if trial.trial_id in ended else OPEN

    known = [plan(sweep)]
    for _ in range(4):
        ended |= set(known[-1].trial_ids)
        known.append(plan(sweep, outcome_of))
    assert [len(each.trials) for each in known] == [12, 24, 36, 48, 52]
    assert all(before.trials == after.trials[: len(before.trials)] for before, after in pairwise(known))
    one_left = plan(sweep, lambda trial: OPEN if trial == known[0].trials[3] else scored(planted)(trial))
    assert {trial.method: len(selection(one_left, trial.method)) for trial in known[0].trials} == {"dm": 24, "dt": 6}


def test_proposals_depend_on_scores_and_the_searchs_seed_and_on_nothing_unrelated() -> None:
    ids = plan(searching(), scored(planted)).trial_ids
    unrelated = {"resources": {"evaluation_actors": 7}, "name": "other", "storage": "elsewhere", "seeds": [0, 1]}
    assert plan(searching(**unrelated), scored(planted)).trial_ids == ids
    assert plan(searching(search=SEARCH | {"seed": 1}), scored(planted)).trial_ids[:12] != ids[:12]
    other = plan(searching(), scored(lambda trial: -planted(trial))).trial_ids
    assert other[:12] == ids[:12], "the first round has seen no score"
    assert other[12:24] != ids[12:24]
    longer = plan(searching(search=SEARCH | {"settings": 24, "rounds": 8}), scored(planted)).trial_ids
    assert longer[:48] == ids[:48], "twice the settings in twice the rounds begin with the same rounds"


def test_one_setting_is_chosen_for_all_data_sets_by_the_mean_over_them() -> None:
    datasets = ["maze2d-umaze-v1", "maze2d-open-v0"]
    sweep = searching(datasets=datasets, search=SEARCH | {"choose": "overall"})

    def score(trial: TrialSpec) -> float:
        return planted(trial) if trial.dataset.name == datasets[0] else -3 * planted(trial)

    planned = plan(sweep, scored(score))
    means: dict[str, list[float]] = {}
    for trial in selection(planned):
        means.setdefault(f"{trial.model.d_model} {trial.training.learning_rate}", []).append(score(trial))
    assert {len(scores) for scores in means.values()} == {4}
    best = max(means, key=lambda setting: sum(means[setting]))
    chosen = {f"{t.model.d_model} {t.training.learning_rate}" for t in report(planned) if t.method == "dm"}
    assert chosen == {best}
    assert Counter(trial.dataset.name for trial in report(planned)) == dict.fromkeys(datasets, 4)


def test_a_setting_whose_values_do_not_fit_each_other_is_not_proposed() -> None:
    grid = [{"methods": ["dt"], "models": [{"d_model": {"uniform": [8, 64]}, "n_head": [3, 5], "n_layer": 1}]}]
    search = {"algorithm": "random", "settings": 12, "seeds": [100]}
    tried = selection(plan(searching(grid=grid, search=search), scored(planted)), "dt")
    assert len({trial.seed_group_id for trial in tried}) == 12
    assert all(trial.model.d_model % trial.model.n_head == 0 for trial in tried)  # type: ignore[attr-defined]


def test_a_small_space_is_tried_whole_and_each_setting_once() -> None:
    training = {"steps": 40, "learning_rate": [1e-4, 3e-4, 1e-3]}
    grid = [{"methods": ["dm"], "models": [MODEL, {"n_layer": 2, "d_model": 8}]}]
    by_grid = plan(searching(training=training, grid=grid, search={"algorithm": "grid", "seeds": [9]}), scored(planted))
    by_tpe = plan(searching(training=training, grid=grid, search={"settings": 15, "seeds": [9]}), scored(planted))
    assert len(selection(by_grid)) == 5 * 3
    assert set(selection(by_tpe)) == set(selection(by_grid))
    assert report(by_tpe) == report(by_grid)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([("finished", 50.0), ("finished", 60.0), ("finished", 60.0)], 1),
        ([("failed", None), ("stopped", None), ("finished", -5.0)], 2),
        ([("failed", None), ("stopped", None)], None),
    ],
)
def test_the_highest_score_is_chosen_and_of_equals_the_first(outcomes: list[Any], expected: int | None) -> None:
    assert best_of([Outcome(*each) for each in outcomes]) == expected


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["finished", "finished"], Outcome("finished", 15.0, {10: 15.0})),
        (["finished", "stopped"], Outcome("stopped", None, {10: 15.0})),
        (["stopped", "failed"], Outcome("failed", None, {10: 15.0})),
        (["failed", "open"], Outcome("open", None, {10: 15.0})),
    ],
)
def test_a_setting_is_as_good_as_its_worst_trial(states: list[Any], expected: Outcome) -> None:
    first, second = (
        Outcome(state, score if state == "finished" else None, {10: score, step: 0.0})
        for state, score, step in zip(states, (10.0, 20.0), (20, 30), strict=True)
    )
    assert together([first, second]) == expected


def test_failed_and_stopped_settings_are_proposed_away_from_and_never_chosen() -> None:
    def outcome_of(trial: TrialSpec) -> Outcome:
        if trial.training.learning_rate > 1e-2:
            return Outcome("failed")
        return Outcome("stopped", None, {10: 1.0}) if trial.training.learning_rate < 1e-4 else scored(planted)(trial)

    sweep = searching(search=SEARCH | {"settings": 40, "rounds": 8})
    planned = plan(sweep, outcome_of)
    assert all(1e-4 <= trial.training.learning_rate <= 1e-2 for trial in report(planned))
    states = [outcome_of(trial).state for trial in selection(planned)]
    assert states[-40:].count("finished") > states[:40].count("finished")


def test_if_no_setting_finished_none_is_chosen_and_the_group_is_named() -> None:
    planned = plan(searching(), lambda trial: Outcome("failed") if trial.method == "dt" else scored(planted)(trial))
    assert {trial.method for trial in report(planned)} == {"dm"}
    assert planned.search is not None
    assert planned.search.without_choice == ("dt on maze2d-umaze-v1",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": SEARCH | {"seeds": [7, 1]}}, "search.seeds: 1 in 'seeds' too"),
        ({"search": SEARCH | {"seeds": [7, 7]}}, "search: seeds: a seed is given twice"),
        ({"search": SEARCH | {"algorithm": "grid"}}, "search: settings: algorithm grid tries all settings; remove"),
        (
            {"search": SEARCH | {"algorithm": "random"}},
            "search: rounds: only tpe looks at the scores of earlier",
        ),
        (
            {"search": SEARCH | {"algorithm": "tpee"}},
            "search.algorithm: unknown value 'tpee', known: random, tpe",
        ),
        ({"search": {"seeds": [7]}}, "search: settings: say how many settings algorithm tpe tries, for example 20"),
        ({"search": SEARCH | {"rounds": 13}}, "search: rounds 13: more than the 12 settings"),
        ({"order": "cheap_first"}, "order cheap_first: a search starts its trials round by round; remove the field"),
        (
            {"search": SEARCH | {"settings": 30_000}},
            "search: 120,000 selection trials and 4 of the report; a sweep",
        ),
        (
            {"training": {"steps": 40, "learning_rate": [1e-4, 1e-3]}},
            "search.settings 12: there are only 8 settings of dm on maze2d-umaze-v1; give more values, or",
        ),
        (
            {"search": {"algorithm": "grid", "seeds": [7]}},
            "training.learning_rate: an interval has no number of values; add points: n",
        ),
        (
            {
                "datasets": ["maze2d-umaze-v1", "maze2d-open-v0"],
                "search": SEARCH | {"choose": "overall"},
                "overrides": [{"datasets": ["*open*"], "training": {"learning_rate": 1e-3}}],
            },
            "search.choose overall: 'dm' has other values of training.learning_rate on maze2d-open-v0 than on",
        ),
        (
            {"grid": [{"methods": ["dt"], "models": [{"d_model": {"uniform": [9, 11]}, "n_head": 4}]}]},
            "grid.0.models.0: n_head 4 does not divide d_model",
        ),
    ],
)
def test_a_search_that_cannot_be_made_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        plan(searching(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("choose", "trial_filter", "message"),
    [
        ("per_dataset", TrialFilter("dataset=maze*,method=dm"), None),
        ("overall", TrialFilter("method=dm"), None),
        ("overall", TrialFilter("dataset=maze*"), "can be run in parts by method, not by dataset"),
        ("per_dataset", TrialFilter("seed=100"), "not by seed: a setting is chosen by all of its trials"),
        ("per_dataset", TrialFilter(shard="1/2"), "--shard 1/2: the rounds of a search need the scores of all trials"),
    ],
)
def test_a_search_is_run_in_parts_only_by_what_is_searched_apart(
    choose: str, trial_filter: TrialFilter, message: str | None
) -> None:
    sweep = searching(search=SEARCH | {"choose": choose})
    if message is None:
        check_filter(sweep, trial_filter)
    else:
        with pytest.raises(SpecError) as error:
            check_filter(sweep, trial_filter)
        assert message in str(error.value)


def test_the_plan_says_how_many_trials_the_whole_search_has() -> None:
    console = Console(width=140, record=True)
    console.print(render_plan(plan(searching())))
    shown = console.export_text()
    assert "search (tpe): 12 settings of each method on each data set, in 4 rounds, on seeds 100 101" in shown
    assert "in all 48 trials to choose, then 4 of the report" in shown


def test_only_selection_trials_are_stopped_early(tmp_path: Path) -> None:
    sweep = searching(early_stopping={"grace_steps": 10})
    planned = plan(sweep, scored(planted))
    assert all((sweep.early_stopping_of(trial) is None) is (trial.seed < 100) for trial in planned.trials)
    assert len({trial.competitors_id(across_methods=False) for trial in selection(planned)}) == 2, "one for each seed"
