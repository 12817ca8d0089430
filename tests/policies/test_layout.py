from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmray.fields import Field, Token
from dmray.models import BACKBONES, MambaConfig
from dmray.policies import Layout, PolicyShape, SequenceModel
from tests.policies.windows import SHAPE

STATE, ACTION, SUBGOAL = Token(Field.STATE), Token(Field.ACTION), Token(Field.SUBGOAL)
BEFORE = Token(Field.ACTION, lag=1)


def test_a_layout_whose_input_is_its_target_is_an_error() -> None:
    with pytest.raises(ValueError, match="is itself one of its inputs"):
        Layout((STATE, ACTION), Field.ACTION, read_at=1)


def test_the_target_may_follow_the_token_that_is_read() -> None:
    assert Layout((STATE, ACTION), Field.ACTION, read_at=0).visible == (STATE,)
    assert Layout((STATE, BEFORE), Field.ACTION, read_at=1).visible == (STATE, BEFORE)


def test_a_layout_with_a_token_of_the_future_is_an_error() -> None:
    with pytest.raises(ValueError, match="in the future"):
        Layout((STATE, Token(Field.STATE, lag=-1)), Field.ACTION, read_at=0)


@pytest.mark.parametrize("read_at", [-1, 2])
def test_a_layout_is_read_at_one_of_its_tokens(read_at: int) -> None:
    with pytest.raises(ValueError, match="not one of the 2 tokens"):
        Layout((STATE, BEFORE), Field.ACTION, read_at=read_at)


def test_a_repeated_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="repeated"):
        Layout((STATE, STATE), Field.ACTION, read_at=0)


tokens = st.builds(Token, st.sampled_from(Field), st.integers(0, 2))
layouts = st.tuples(st.lists(tokens, min_size=1, max_size=4), st.sampled_from(Field), st.integers(0, 3))


@given(layouts)
@settings(max_examples=40, deadline=None)
def test_no_valid_layout_has_its_target_among_its_inputs(drawn: tuple[list[Token], Field, int]) -> None:
    names, target, read_at = drawn
    try:
        layout = Layout(tuple(names), target, read_at)
    except ValueError:
        return
    model = SequenceModel(layout, BACKBONES["mamba"], MambaConfig(d_model=8, n_layer=1, d_state=2), SHAPE)
    answers = torch.randn(1, 5, SHAPE.dim(target), requires_grad=True)
    values = {
        token: torch.cat([torch.zeros(1, token.lag, answers.shape[2]), answers[:, : 5 - token.lag]], dim=1)
        if token.field is target
        else torch.randn(1, 5, SHAPE.dim(token.field))
        for token in names
    }
    prediction = model(values, torch.arange(5)[None])
    (gradient,) = torch.autograd.grad(prediction[:, 2].sum() + 0 * answers.sum(), answers)
    assert float(gradient[:, 2:].abs().max()) == 0.0


def test_a_field_has_the_shapes_number_of_dimensions() -> None:
    shape = PolicyShape(observation_dim=11, action_dim=3, action_limit=1.0, max_timesteps=1000)
    assert [shape.dim(field) for field in Field] == [1, 11, 3, 11]
