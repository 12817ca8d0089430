from __future__ import annotations

from dataclasses import replace

import pytest

from dmray.fields import Field, Token
from dmray.methods import METHODS, Layout, Method, PolicyShape
from dmray.models import BACKBONES
from dmray.policies import PolicyRecipe, SequencePolicy

STATE, ACTION, SUBGOAL = Token(Field.STATE), Token(Field.ACTION), Token(Field.SUBGOAL)
BEFORE = Token(Field.ACTION, lag=1)
every_method = pytest.mark.parametrize("name", list(METHODS))


def method_of(*stages: Layout) -> Method:
    return replace(METHODS["dm"], stages=stages)


def test_a_stage_with_an_input_that_a_later_stage_predicts_is_an_error() -> None:
    low = Layout((SUBGOAL, STATE), Field.ACTION, read_at=1)
    high = Layout((STATE,), Field.SUBGOAL, read_at=0)
    assert method_of(high, low).stages == (high, low)
    with pytest.raises(ValueError, match="not known yet"):
        method_of(low, high)


def test_a_method_must_predict_the_action() -> None:
    with pytest.raises(ValueError, match="no stage predicts the action"):
        method_of(Layout((STATE,), Field.SUBGOAL, read_at=0))


@pytest.mark.parametrize("wrong", [{"name": "my method/1"}, {"name": ""}, {"colour": "reddish"}, {"marker": "??"}])
def test_a_name_or_a_look_that_cannot_be_used_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} '{next(iter(wrong.values())).replace('?', '[?]')}'"):
        replace(METHODS["dm"], **wrong)  # type: ignore[arg-type]


@every_method
def test_the_action_input_changes_the_action_token_and_nothing_else(name: str) -> None:
    paper, dt = METHODS[name], METHODS[name].with_action_input("dt")
    assert paper.with_action_input("paper") == paper
    for ours, theirs in zip(paper.stages, dt.stages, strict=True):
        assert tuple(ACTION if token == BEFORE else token for token in ours.tokens) == theirs.tokens
        assert ACTION not in ours.tokens
        assert (ours.target, ours.read_at, ours.squash) == (theirs.target, theirs.read_at, theirs.squash)


def test_the_methods_have_the_tokens_that_their_sources_say() -> None:
    letters = {Field.RETURN_TO_GO: "R", Field.STATE: "S", Field.ACTION: "A", Field.SUBGOAL: "G"}

    def words(stage: Layout) -> tuple[str, str, int, bool]:
        names = " ".join(f"{letters[token.field]}{token.lag or ''}" for token in stage.tokens)
        return names, letters[stage.target], stage.read_at, stage.squash

    found = {
        name: (METHODS[name].backbone.name, [words(stage) for stage in METHODS[name].stages])
        for name in ("dt", "dm", "dm+r", "hdt", "hdm", "dt-r", "bc", "dlstm")
    }
    assert found == {
        "dt": ("transformer", [("R S A1", "A", 1, True)]),
        "dm": ("mamba", [("S A1", "A", 0, True)]),
        "dm+r": ("mamba", [("R S A1", "A", 1, True)]),
        "hdt": ("transformer", [("S G1", "G", 1, False), ("G S A1", "A", 1, True)]),
        "hdm": ("mamba", [("G1 S", "G", 1, True), ("G S A1", "A", 1, True)]),
        "dt-r": ("transformer", [("S A1", "A", 0, True)]),
        "bc": ("mlp", [("S", "A", 0, True)]),
        "dlstm": ("lstm", [("S A1", "A", 0, True)]),
    }


def test_methods_have_different_names_labels_colours_and_markers() -> None:
    methods = [METHODS[name] for name in METHODS]
    for values in ([m.name for m in methods], [m.label for m in methods], [(m.colour, m.marker) for m in methods]):
        assert len(set(values)) == len(methods)
    assert {METHODS[name].name for name in METHODS} == set(METHODS)


def test_baselines_are_methods_that_exist() -> None:
    assert {baseline for name in METHODS for baseline in METHODS[name].baselines} <= set(METHODS)


@every_method
@pytest.mark.parametrize("width", [64, 160])
def test_the_number_of_parameters_is_that_of_the_built_policy(name: str, width: int) -> None:
    shape = PolicyShape(observation_dim=4, action_dim=2, action_limit=1.0, max_timesteps=150)
    config = METHODS[name].config.model_validate({"d_model": width, "n_layer": 2})
    policy = SequencePolicy(PolicyRecipe(name, config, "paper", shape, 1.0))
    assert METHODS[name].num_parameters(config, shape) == sum(parameter.numel() for parameter in policy.parameters())


@every_method
def test_every_method_runs_on_a_registered_backbone(name: str) -> None:
    assert METHODS[name].backbone in [BACKBONES[backbone] for backbone in BACKBONES]
